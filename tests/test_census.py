"Our own method, the gates, and the study of motion: what they promise, on data small enough to see it."

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from classimpression.studies import sanity_checks as gates, moments, census_ablation as parts
from classimpression.carryover import hand_over
from classimpression.methods.census import Census, SketchedLDA, affordable_rank, pooling_regions, crop_box, jittered
from classimpression.methods.census import regression
from classimpression.runs.configs import profile_config
from classimpression.core.errors import ConfigError, DataError, StateError
from classimpression.core.seeding import generator
from classimpression.methods.registry import find_method
from classimpression.models import SmallNet
from classimpression.settings import TrainConfig


def learned(layout, x, channels=3):
    net = Census(SmallNet(channels), channels, layout).eval()
    net.learn(x, generator(0, "patches"), 600, 2)
    return net


def pictures(n=24, channels=3, pixels=20, seed=0):
    return torch.randint(
        256, (n, channels, pixels, pixels), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


def test_rings_ignore_the_poses_that_are_averaged_and_a_grid_does_not():
    x = pictures()
    rings, grid = learned("rings", x), learned("grid", x)
    image = x[:6] / 255
    half_turn = lambda b: b.rot90(
        2, (2, 3)
    )  # of {0, 90, mirrored, rotate_flip and mirrored}: their mean changes little, a grid's features move
    gap = lambda net: (
        (net.describe(half_turn(image)) - net.describe(image))[:, :-256].norm() / net.describe(image)[:, :-256].norm()
    ).item()
    assert gap(rings) < gap(grid) / 2


def test_cells_cover_every_position_once_and_weigh_one():
    for n in (12, 23, 28):
        for fine in (False, True):
            rings = pooling_regions("rings", n, n, fine)
            assert torch.allclose(rings.sum(1), torch.ones(len(rings))) and bool(((rings > 0).sum(0) == 1).all())
            for layout, k in (("grid", 9), ("quadrants", 4)):
                assert torch.allclose(pooling_regions(layout, n, n, fine).sum(1), torch.ones(49 if fine else k))


def test_a_frame_of_padding_is_cut_and_images_that_are_all_the_same_are_not():
    x = torch.nn.functional.pad(pictures(), (2, 3, 1, 4), value=7)
    assert crop_box(x).tolist() == [1, 21, 2, 22] and crop_box(x[:1]).tolist() == [0, 25, 0, 25]
    bare, padded = learned("grid", pictures()), learned("grid", x)
    assert torch.allclose(bare.describe(pictures() / 255)[:, :-256], padded.describe(x / 255)[:, :-256], atol=1e-5)


def test_both_sizes_of_patches_are_counted_each_in_its_own_columns():
    x = pictures()
    for layout in ("rings", "grid"):
        net = learned(layout, x)
        where, f = parts.columns(net), net.in_pose(x / 255)
        for name, p in zip(parts.CODES, net.patches, strict=True):
            assert torch.allclose(f[:, where[name]], net.counted(p.encode(net.cut(x / 255))), atol=1e-6)
        assert not torch.allclose(f[:, where[parts.CODES[0]]], f[:, where[parts.CODES[1]]], atol=1e-2)
        assert (
            torch.allclose(f[:, where["network"]], net.net.features(x / 255), atol=1e-6)
            and where["network"].stop == net.n_features
        )


@pytest.mark.slow
def test_parts_are_judged_without_a_look_at_test_images(toy):
    scenario = toy(sizes=(2, 1), pixels=32)
    noise = scenario.again()
    noise._store.splits["test"] = None
    x = pictures(pixels=32)
    net, bare = learned("rings", x), SmallNet(3).eval()
    looks = [parts.looked_at(net, bare, s) for s in (scenario.joint(0, reference=True), noise.joint(0, reference=True))]
    judged = [parts.evaluate_variant(parts.Variant(share=None), net, [look], look, 28 * 28 * 3) for look in looks]
    assert judged[0] == judged[1] and judged[0]["carried_bytes"] > 0
    nothing = parts.evaluate_variant(parts.Variant(share=0.0), net, [looks[0]], looks[0], 28 * 28 * 3)
    assert nothing["carried_bytes"] < judged[0]["carried_bytes"]


def test_regression_from_means_and_covariance_is_scikit_learns_ridge_with_classes_of_equal_weight():
    from sklearn.linear_model import Ridge

    g = torch.Generator().manual_seed(2)
    y = torch.tensor([0] * 90 + [1] * 40 + [2] * 10)
    f = (
        torch.randn(140, 6, generator=g).double() @ torch.randn(6, 6, generator=g).double()
        + torch.randn(3, 6, generator=g).double()[y]
    )
    means = torch.stack([f[y == k].mean(0) for k in range(3)])
    cov, s = sum((f[y == k] - m).T @ (f[y == k] - m) / int((y == k).sum()) for k, m in enumerate(means)) / 3, 0.05
    w, b, middle = regression(means, cov, s)
    z = means - means.mean(0)
    size = float((cov + z.T @ z / 3).diagonal().mean())
    theirs = (
        Ridge(alpha=3 * s / (1 - s) * size)
        .fit(f.numpy(), np.eye(3)[y], sample_weight=(1 / torch.bincount(y))[y].numpy())
        .predict(f.numpy())
    )
    assert np.allclose(((f - middle) @ w.T).numpy() * (1 - s) + 1 / 3, theirs, atol=1e-9) and torch.allclose(
        b, torch.full((3,), 1 / 3).double()
    )


def test_images_smaller_than_a_patch_are_refused():
    with pytest.raises((ConfigError, DataError), match="smaller|too few"):
        learned("rings", pictures(pixels=7))


@pytest.mark.slow
def test_statistics_never_exceed_their_share(toy, tmp_path):
    scenario, m, carry = toy(sizes=(1, 2, 1), pixels=32, per_class=180), find_method("census"), None
    for t in range(3):
        with scenario.training(t) as task:
            model, _ = m.fit(
                carry, task, None, TrainConfig(epochs=1, cache=str(tmp_path)), n_patches=600, rounds=2, share=0.09
            )
            carry = hand_over(model, task, carry, means=False)
        assert carry.statistics <= 0.09 * scenario.n_train_seen_bytes(t) and len(model.statistical_head.sketch) > 0
    assert carry.images == 0 and model.statistical_head.n_classes == 4


def test_jittered_copies_repeat_by_seed_leave_the_frame_alone_and_move_more_when_asked():
    x, box, draw = (
        pictures(pixels=24),
        torch.tensor([2, 22, 3, 21]),
        lambda amount, seed=0: jittered(x, box, generator(seed, "jitter"), amount),
    )
    assert torch.equal(draw(1.0), draw(1.0)) and not torch.equal(draw(1.0), draw(1.0, seed=1))
    outside = torch.ones(24, 24, dtype=torch.bool)
    outside[2:22, 3:21] = False
    assert torch.equal(draw(1.0)[..., outside], x[..., outside]) and not torch.equal(
        draw(1.0)[..., ~outside], x[..., ~outside]
    )
    gap = [(draw(a).float() - x).abs().mean() for a in (0.0, 0.05, 1.0)]
    assert gap[0] < 0.5 < gap[1] < gap[2]


def test_copies_count_for_the_statistics_and_not_for_what_may_be_carried():
    g = torch.Generator().manual_seed(2)
    f, y = torch.randn(60, 6, generator=g), torch.arange(2).repeat_interleave(30)
    once, twice, moved = SketchedLDA(6), SketchedLDA(6), SketchedLDA(6)
    once.update(f, y, [0, 1], 2.5)
    twice.update(torch.cat([f, f]), y.repeat(2), [0, 1], 2.5, copies=2)
    moved.update(torch.cat([f, f + 1]), y.repeat(2), [0, 1], 2.5, copies=2)
    assert (
        int(once.images) == int(twice.images) == 60 and len(once.sketch) == len(twice.sketch) == len(moved.sketch) > 0
    )
    assert torch.allclose(once.means, twice.means, atol=1e-6) and torch.allclose(
        moved.means, once.means + 0.5, atol=1e-6
    )


@pytest.mark.parametrize("n, d", [(1, 5), (3, 8), (40, 8)])
def test_singular_covariances_are_finite_and_answers_deterministic(n, d):
    g = torch.Generator().manual_seed(n)
    f, y = torch.randn(2 * n, d, generator=g), torch.arange(2).repeat_interleave(n)
    f[:, -1] = 0  # a feature that never varies
    head = SketchedLDA(d)
    head.update(f, y, [0, 1], 1e4)
    assert torch.isfinite(head(f)).all() and torch.equal(head(f), head(f))


def test_classes_in_any_order_give_the_same_answers():
    g = torch.Generator().manual_seed(3)
    y = torch.arange(4).repeat_interleave(50)
    f = torch.randn(200, 6, generator=g) + 2 * torch.randn(4, 6, generator=g)[y]
    a, b = SketchedLDA(6), SketchedLDA(6)
    for k in range(4):
        a.update(f[y == k], y[y == k], [k], 1e4)
    order = torch.tensor([2, 0, 3, 1])  # class order[k] comes as number k
    for k in range(4):
        b.update(f[y == order[k]], torch.full((50,), k), [k], 1e4)
    assert torch.allclose(a(f)[:, order], b(f), atol=0.05 * a(f).abs().max())
    assert (a(f).argmax(1) == order[b(f).argmax(1)]).float().mean() > 0.98


def test_more_bytes_never_lower_the_rank():
    ranks = [affordable_rank(b, 100, 5) for b in range(0, 60_000, 500)]
    assert ranks == sorted(ranks) and ranks[0] == 0 and ranks[-1] == 100
    used = lambda r: 4 * 100 * 5 + 12 + 2 * 100 * r
    assert all(used(r) <= b for r, b in zip(ranks, range(0, 60_000, 500)) if r)


def test_bad_statistics_are_refused():
    head = SketchedLDA(3)
    with pytest.raises(StateError, match="knows no class"):
        head(torch.zeros(1, 3))
    with pytest.raises(ConfigError):
        head.update(torch.zeros(2, 3), torch.tensor([1, 1]), [1], 1e3)
    with pytest.raises(ConfigError):
        SketchedLDA(3, shrinkage=2.0)


# --- gates ------------------------------------------------------------------------------------------------------------


def test_a_gate_is_computed_once(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        gates,
        "with_real_images",
        lambda cfg: calls.append(cfg.method) or dict(balanced_accuracy=81.0, old=80.0, new=82.0),
    )
    for _ in range(2):
        rows = gates.fed_with_real_images(
            "blood-mini", "smoke", [0], ["abd", "r-dfcil"], out=tmp_path, tell=lambda s: None
        )
    assert calls == ["abd", "r-dfcil"] and [r["holds"] for r in rows] == [True, True]
    kept = json.loads(next((tmp_path / "gates").rglob("abd*.json")).read_text())
    assert (
        kept["settings"]["method"] == "abd"
        and kept["environment"]["torch"]
        and kept["seconds"] >= 0
        and len(kept["checksum"]) == 32
    )
    rows = gates.fed_with_real_images(
        "blood-mini", "smoke", [0], ["abd"], bound=90.0, out=tmp_path, tell=lambda s: None
    )
    assert rows[0]["holds"] is False


def test_a_method_without_images_has_no_gate(tmp_path):
    with pytest.raises(ConfigError, match="makes no images"):
        gates.with_real_images(replace(profile_config("smoke", "lwf"), out=str(tmp_path)))


# --- motion -----------------------------------------------------------------------------------------------------------


def test_a_map_from_both_kinds_of_images_finds_what_neither_shows():
    g = torch.Generator().manual_seed(0)
    f = torch.randn(400, 6, generator=g).double()
    a = torch.eye(6).double() + 0.3 * torch.randn(6, 6, generator=g).double()
    new, made = f.clone(), f.clone()
    new[:, 3:], made[:, :3] = 0, 0  # each kind varies in half of the directions
    truth = moments.Moments.of(f @ a, torch.zeros(400), range(1))
    old = moments.Moments.of(f, torch.zeros(400), range(1))

    def error(*probes):
        x = torch.cat(probes)
        s = moments.move(old, *moments.fit_drift(x, x @ a - x, 1e-6))
        return float((s.cov - truth.cov).norm())

    assert error(new, made) < 1e-3 < min(error(new), error(made)) / 10


def test_true_statistics_make_scikit_learns_discriminant():
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    g = torch.Generator().manual_seed(1)
    y = torch.arange(3).repeat_interleave(80)
    f = torch.randn(240, 5, generator=g) @ torch.randn(5, 5, generator=g) + torch.randn(3, 5, generator=g)[y]
    ours = moments.recalls_of(moments.Moments.of(f, y, range(3)), f, y, shrinkage=0.0)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", priors=[1 / 3] * 3).fit(f.numpy(), y.numpy()).predict(f.numpy())
    assert ours == pytest.approx(100 * np.mean([(theirs[y.numpy() == k] == k).mean() for k in range(3)]), abs=1e-9)
