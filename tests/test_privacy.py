"The audit: attacks find what leaks, find nothing where there is nothing, and read no test image."

import math

import pandas as pd
import pytest
import torch

from classimpression.studies import attacks, privacy, defences as protection
from classimpression.carryover import Carryover
from classimpression.core.errors import DataError
from classimpression.data import Split
from classimpression.studies.moments import Moments
from classimpression.studies.drift_study import validation_of
from classimpression.scenarios import make_scenario


def noise(n, seed, classes=2, side=8):
    g = torch.Generator().manual_seed(seed)
    return Split(torch.randint(0, 256, (n, 1, side, side), generator=g, dtype=torch.uint8), torch.arange(n) % classes)


def test_nothing_published_nothing_found():
    "Means and covariances of other images of the same kind tell nothing about the candidates."
    c = attacks.draw_candidates(noise(600, 0), noise(600, 1))
    v = lambda x: x.flatten(1).double() / 255
    elsewhere = Moments.of(v(noise(600, 2).x), noise(600, 2).y, range(2))
    own = attacks.own_moments(v(c.own.x), c.own.y, [0, 1])
    scores = (
        attacks.mean_attack(v(c.x), c.y, elsewhere.means, [0, 1], own),
        attacks.covariance_attack(v(c.x), c.y, elsewhere.means, elsewhere.cov, [0, 1], own),
    )
    for s in scores:
        found = attacks.success(attacks.within_class(s, c.y), c.member, 200)
        assert found["low"] < 0.5 < found["high"] or abs(found["area"] - 0.5) < 0.06


def test_covariance_of_the_candidates_is_found_and_a_coarse_one_is_not():
    train, unseen = noise(200, 0), noise(600, 1)
    v = lambda x: x.flatten(1).double() / 255
    c = attacks.draw_candidates(train, unseen)
    own = attacks.own_moments(v(c.own.x), c.own.y, [0, 1])
    s = Moments.of(v(train.x), train.y, range(2))
    area = lambda m: attacks.roc_area(
        attacks.within_class(attacks.covariance_attack(v(c.x), c.y, m.means, m.cov, [0, 1], own), c.y), c.member
    )
    assert area(s) > 0.85 and area(protection.coarser(s, 0)) < 0.6


def test_candidates_are_disjoint_and_balanced():
    train, unseen = noise(300, 0), noise(100, 1)
    c = attacks.draw_candidates(train, unseen, seed=3, most=10)
    assert c.y[c.member].bincount().tolist() == c.y[~c.member].bincount().tolist() == [10, 10]
    others = {bytes(x.numpy().tobytes()) for x in c.x[~c.member]}
    assert not others & {bytes(x.numpy().tobytes()) for x in c.own.x}, "the attacker's own images are asked about"
    again = attacks.draw_candidates(train, unseen, seed=4, most=10)
    assert not torch.equal(c.x, again.x) and torch.equal(c.x, attacks.draw_candidates(train, unseen, seed=3, most=10).x)


def test_too_few_images_are_refused():
    with pytest.raises(DataError, match="at least two and four"):
        attacks.draw_candidates(noise(10, 0), noise(6, 1))
    with pytest.raises(DataError, match="members and others"):
        attacks.roc_area(torch.ones(3), torch.ones(3, dtype=torch.bool))


def test_equal_scores_are_guessing():
    member = torch.arange(100) < 50
    assert attacks.roc_area(torch.zeros(100), member) == 0.5 and attacks.true_positives(torch.zeros(100), member) == 0
    assert torch.isfinite(attacks.within_class(torch.zeros(100), torch.arange(100) % 3)).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_own_moments_bear_singular_data(channels):
    f = torch.zeros(8, 5)
    f[:, 0] = torch.arange(8.0)
    means, l = attacks.own_moments(f, torch.arange(8) % 2, [0, 1])
    assert torch.isfinite(l).all() and means.shape == (2, 5)
    x = torch.rand(2, channels, 9, 9)
    assert torch.allclose(attacks.ssim(x, x).diagonal(), torch.ones(2).double())


@pytest.mark.slow
def test_controls_are_caught_on_real_images_and_no_test_image_is_read(monkeypatch):
    data = make_scenario("blood-mini")
    fresh = data.again()
    monkeypatch.setattr(type(data), "test", lambda *a: pytest.fail("the audit reads test images"))
    train, unseen = data.joint(3, reference=True), validation_of(fresh)
    found = privacy.controls(train, unseen, draws=50)
    assert min(r["area"] for r in found) >= 0.9, found
    many = privacy.mean_areas(train, unseen, lambda x: privacy.pixels(x)[:, ::7], [1, 200], draws=50)
    assert many[0]["area"] > 0.99 and many[1]["area"] < 0.7


def test_what_is_published_is_what_is_carried():
    from classimpression.methods.statistical import NearestMean
    from classimpression.models import build_classifier, frozen_copy

    model = frozen_copy(build_classifier("small", 1, [2]))
    assert privacy.published(Carryover(model, 2), 10) == []
    model.statistical_head = NearestMean(256, 2)
    assert [p.what for p in privacy.published(Carryover(model, 2, torch.zeros(2, 1, 8, 8)), 10)] == [
        "mean images",
        "means of features",
    ]


def test_noise_is_keyed_and_epsilon_falls_with_it():
    f, y = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3
    a, b, other = (protection.with_noise(f, y, 0.5, seed) for seed in (0, 0, 1))
    assert torch.equal(a.cov, b.cov) and not torch.equal(a.cov, other.cov)
    eps = [protection.epsilon(m, m) for m in (0, 0.1, 1, 10)]
    assert eps[0] == math.inf and eps == sorted(eps, reverse=True)


@pytest.mark.parametrize("counts", [(60, 60), (150, 20), (20, 50, 90)])
def test_no_exchanged_image_moves_the_covariance_further_than_the_bound(counts):
    "Neighbouring sets: one image of the smallest class becomes another of it; random, and the worst case."
    g = torch.Generator().manual_seed(len(counts))
    y, C, few = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)), 3.0, counts.index(min(counts))
    mine = (y == few).nonzero()[:, 0]
    bound = protection.most_moved(C, y.bincount())
    cut = lambda f: f * (C / f.norm(dim=1).clamp(min=C))[:, None]
    cov = lambda f: Moments.of(f, y, range(len(counts))).cov
    exchanged = lambda f, x: torch.where((torch.arange(len(y)) == mine[0])[:, None], x, f)
    moved = lambda f, x: (cov(exchanged(f, x)) - cov(f)).norm()

    far = [cut(torch.randn(len(y), 5, generator=g, dtype=torch.float64) * 9) for _ in range(20)]
    assert all(float(moved(f, -f[mine[0]])) <= bound for f in far)
    worst = far[0].clone()
    worst[mine] = torch.tensor([C, 0, 0, 0, 0], dtype=torch.float64)
    assert 0.99 * bound < float(moved(worst, -worst[mine[0]])) <= bound * (1 + 1e-9)
    assert bound > 1.9 * 2 * C**2 / len(y), "not the bound of one covariance over all images"


def test_card_says_when_the_controls_fail():
    row = dict(members=9, others=9, area=0.5, low=0.4, high=0.6, tpr=0.0, tpr_low=0.0, tpr_high=0.1)
    rows, sizes = (
        pd.DataFrame([dict(method="ncm", published="network", attack="confidence") | row]),
        pd.DataFrame([dict(space="pixels", k=2, dimensions=4) | row]),
    )
    card = lambda area: protection.data_card(
        rows, pd.DataFrame([dict(control="mean of 2 images") | row | dict(area=area)]), sizes, "x"
    )
    assert "DO NOT catch" in card(0.6) and "DO NOT" not in card(0.95) and "nothing found" in card(0.95)


def test_card_warns_where_placebos_are_found():
    row = dict(members=9, others=9, area=0.5, low=0.4, high=0.6, tpr=0.0, tpr_low=0.0, tpr_high=0.1)
    rows, sizes = (
        pd.DataFrame([dict(method="ncm", published="network", attack="confidence") | row]),
        pd.DataFrame([dict(space="pixels", k=2, dimensions=4) | row]),
    )
    card = lambda **more: protection.data_card(
        rows,
        pd.DataFrame([dict(control="mean of 2 images") | row | dict(area=1.0)]),
        sizes,
        "x",
        pd.DataFrame([dict(space="pixels", published="means", images=50) | row | more]),
    )
    assert "Read with care" not in card() and "means, pixels: 0.87" in card(area=0.87, low=0.8)


def test_no_leak_is_declared_where_the_placebo_gets_as_far():
    row = dict(members=9, others=9, area=0.875, low=0.863, high=0.885, tpr=0.35, tpr_low=0.3, tpr_high=0.4)
    rows = pd.DataFrame([dict(method="class-impression", published="mean images", attack="likelihood ratio") | row])
    placebo = lambda high: pd.DataFrame([dict(space="pixels", published="means") | row | dict(area=0.85, high=high)])
    assert protection.told_of_method("class-impression", rows, placebo(0.88)).endswith(": as its placebo).")
    assert protection.told_of_method("class-impression", rows, placebo(0.86)).endswith(": leak).")
    assert "leak, not controlled" in protection.told_of_method("class-impression", rows)


def test_means_are_safe_beyond_the_last_success_only():
    "Above, below, above one half: nothing that was tried is safe."
    sizes = lambda *low: pd.DataFrame(dict(k=[10, 20, 50], low=low))
    assert protection.told_of_means("pixels", sizes(0.6, 0.45, 0.55)).endswith("no number that was tried is safe.")
    assert protection.told_of_means("pixels", sizes(0.6, 0.45, 0.45)).endswith(
        "up to 10 images; from 20 on, no longer."
    )


def test_a_placebo_needs_images_beside_those_asked_about():
    data = make_scenario("blood-mini")
    train = data.joint(0, reference=True)
    unseen = validation_of(data.again())
    c = attacks.draw_candidates(train, unseen.where([0, 1]), most=10**9)
    few = train.take([i for i, x in enumerate(train.x) if any(torch.equal(x, m) for m in c.x[c.member])])
    with pytest.raises(DataError, match="have no training images beside"):
        privacy.placebos(few, c, {"pixels": privacy.pixels}, 10)
    assert all(
        r["images"] == len(train) - int(c.member.sum())
        for r in privacy.placebos(train, c, {"pixels": lambda x: privacy.pixels(x)[:, ::40]}, 10)
    )
