"Impressions beside real images: nearest neighbours, films, feature spaces. All images are invented."

import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from classimpression.report import gallery, domain_gap as likeness, plots
from classimpression.core.errors import ConfigError, DataError, LeakError
from classimpression.report.gallery import Neighbours, distance_table, example_run, exhibit, nearest, neighbours
from classimpression.report.gallery import recognition_table, save_gif


@pytest.fixture(scope="module")
def runs():
    torch.set_num_threads(1)
    return {c: example_run(c) for c in (1, 3)}


@pytest.fixture(params=[1, 3], ids=["grey", "colour"])
def e(runs, request):
    return exhibit(*runs[request.param])


def with_impressions(e, rows):
    "The same exhibit with some of its impressions only."
    return replace(e, impressions=replace(e.impressions, x=e.impressions.x[rows], y=e.impressions.y[rows]))


@pytest.mark.slow
def test_a_planted_copy_is_found(e):
    planted = int((e.impressions.y == 0).nonzero()[0, 0])
    found = neighbours(e, k=2)
    for space in gallery.SPACES:
        n = found[space][0]
        i = n.rows.tolist().index(planted)
        assert n.images[i, 0] == 7 and n.distance[i, 0] < 0.2 < n.distance[i, 1]
        assert n.distance[:, 0].argmin() == i and (np.delete(n.distance[:, 0].numpy(), i) > 1).all()
    table = distance_table(found, e.names)
    assert (
        table[table.kind == "impression"].copies.tolist() == [1, 0, 0] * 2
        and not table[table.kind != "impression"].copies.any()
    )


def test_distances_are_those_of_the_slow_way(e):
    found, real, x = neighbours(e), e.train.images().double(), e.impressions.x.double()
    with torch.no_grad():
        f_real, f = [e.before.model.features(v.float()).double() for v in (real, x)]
    for c in range(3):
        pixels, features = found["pixels"][c], found["features"][c]
        for row, (d, a) in enumerate(zip(pixels.distance, features.distance, strict=True)):
            i, mine = int(pixels.rows[row]), (e.train.y == c).nonzero()[:, 0].tolist()
            rms = sorted(100 * float((x[i] - real[j]).square().mean().sqrt()) for j in mine)[:3]
            angle = sorted(
                float(torch.acos((f[i] @ f_real[j] / f[i].norm() / f_real[j].norm()).clamp(max=1)).rad2deg())
                for j in mine
            )[:3]
            assert np.allclose(d, rms, atol=1e-3) and np.allclose(a, angle, atol=1e-2)
    u = e.unseen.images().double()[(e.unseen.y == 1).nonzero()[4, 0]]
    assert (
        abs(
            float(found["pixels"][1].unseen[4])
            - min(100 * float((u - r).square().mean().sqrt()) for r in real[e.train.y == 1])
        )
        < 1e-3
    )


def test_padding_does_not_count(e):
    x, padded = e.train.x.clone(), e.impressions.x.clone()
    x[..., :2, :], padded[..., :2, :] = 0, 1  # a black border in all real images, white in the impressions
    before, after = [
        neighbours(v)["pixels"][1].distance
        for v in (
            replace(e, train=replace(e.train, x=x)),
            replace(e, train=replace(e.train, x=x), impressions=replace(e.impressions, x=padded)),
        )
    ]
    assert torch.equal(before, after)


def test_fewer_training_images_than_asked_for():
    d, i = nearest(torch.zeros(2, 3), torch.ones(1, 3), k=5)
    assert d.shape == (2, 1) and i.tolist() == [[0], [0]]
    assert float(nearest(torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0]]), angle=True)[0]) == pytest.approx(
        180, abs=0.1
    )


def test_counts_on_hand_worked_distances():
    n = Neighbours(
        torch.arange(4),
        torch.tensor([[0.1], [1.0], [3.0], [9.0]]),
        torch.zeros(4, 1),
        torch.arange(101.0) + 2,
        torch.tensor([5.0]),
    )  # 5 % of the unseen: below 7
    t = distance_table({"pixels": {0: n}}, ["a"]).set_index("kind")
    assert t.near.to_dict() == {"impression": 3, "unseen image": 5, "class mean": 1} and t.copies.to_dict() == {
        "impression": 1,
        "unseen image": 0,
        "class mean": 0,
    }
    assert t.loc["impression", ["lowest", "lower_quartile", "median", "upper_quartile"]].tolist() == pytest.approx(
        [0.1, 0.775, 2, 4.5], abs=0.006
    )
    empty = distance_table({"pixels": {0: replace(n, unseen=torch.zeros(0))}}, ["a"]).set_index("kind")
    assert (
        empty.loc["unseen image", "images"] == 0
        and np.isnan(empty.loc["unseen image", "median"])
        and not empty.near.any()
    )


def test_recognised_agrees_with_the_network(e):
    t = recognition_table(e.before.model, e.impressions.x, e.impressions.y, e.names)
    with torch.no_grad():
        p = e.before.model(e.impressions.x).softmax(1)
    for c in range(3):
        mine = e.impressions.y == c
        assert t.recognised[c] == pytest.approx(
            100 * float((p[mine].argmax(1) == c).float().mean()), abs=0.01
        ) and t.confidence[c] == pytest.approx(100 * float(p[mine, c].mean()), abs=0.01)
    assert (
        recognition_table(e.before.model, e.train.x, e.train.y, e.names).recognised > 90
    ).all()  # bytes and floats alike


def test_classes_with_one_impression_or_none(e):
    one = int((e.impressions.y == 2).nonzero()[0, 0])
    few = with_impressions(
        e, [*(e.impressions.y == 0).nonzero()[:, 0].tolist(), one]
    )  # none of class 1, one of class 2
    found = neighbours(few)
    table, share = (
        distance_table(found, e.names),
        recognition_table(few.before.model, few.impressions.x, few.impressions.y, e.names),
    )
    assert (
        set(table["class"]) == {e.names[0], e.names[2]}
        and share.images.tolist()[1:] == [0, 1]
        and np.isnan(share.recognised[1])
    )
    apart, seen = likeness.separability(few), likeness.recognition(few)
    assert apart.synthetic.isna().tolist() == [False, True, True] * 2
    for fig in (
        gallery.plot_impressions_per_class(few),
        gallery.plot_neighbours(few, found),
        gallery.plot_distances(table),
        likeness.plot_features(likeness.feature_points(few)),
        likeness.plot_gap(apart, seen),
    ):
        assert plots.to_png(fig, dpi=40).startswith(b"\x89PNG")
    assert not re.search(r"\bnan\b", gallery.gallery_reading(share, table) + likeness.gap_reading(apart, seen))
    with pytest.raises(DataError, match="no training image of class 0"):
        neighbours(replace(e, train=e.train.where([1, 2])))
    assert not len(neighbours(replace(e, unseen=e.unseen.where([1, 2])))["pixels"][0].unseen)


def test_only_a_fitting_run_is_looked_at(runs):
    run, data = runs[3]
    change = lambda **kw: SimpleNamespace(data=run.data | kw, impressions=run.impressions, carry=run.carry)
    for bad, words in (
        (change(tasks=[dict(impressions=0)] * 3), "no impressions"),
        (change(protocol="selection=new-val"), "not unseen"),
        (change(scenario=run.data["scenario"] | dict(checksum="x")), "the run saw"),
    ):
        with pytest.raises(DataError, match=words):
            exhibit(bad, data)


def test_no_test_image_is_read_and_the_given_data_stay_closed(runs, monkeypatch):
    run, data = runs[3]
    part = data._store.part.__func__

    def watched(self, split, *rest):
        assert split != "test", "the gallery read test images"
        return part(self, split, *rest)

    monkeypatch.setattr(type(data._store), "part", watched)
    mine = data.again()
    with mine.training(2):
        with pytest.raises(LeakError):
            exhibit(run, mine)
        with pytest.raises(LeakError):
            mine.joint(1, reference=True)
    assert len(exhibit(run, mine).train) == 120
    assert mine._store.gate.closed == 3


def test_figures_are_deterministic(e):
    found = neighbours(e)
    apart, seen = likeness.separability(e), likeness.recognition(e)
    for draw in (
        lambda: gallery.plot_impressions_per_class(e),
        lambda: gallery.plot_neighbours(e, found),
        lambda: gallery.plot_distances(distance_table(found, e.names)),
        lambda: likeness.plot_features(likeness.feature_points(e)),
        lambda: likeness.plot_gap(apart, seen),
    ):
        assert plots.to_png(draw(), dpi=50) == plots.to_png(draw(), dpi=50)


def test_labels_of_a_grid_stay_inside(e):
    fig = gallery.plot_impressions_per_class(e)
    fig.draw_without_rendering()
    [ax] = fig.axes
    assert all(t.get_window_extent().x0 >= 0 for t in ax.get_yticklabels()) and all(
        t.get_window_extent().y0 >= 0 for t in ax.texts
    )


class TestFilm:
    def test_it_is_the_synthesis_of_the_run(self, e):
        film = gallery.film(e, 8)
        assert list(film)[:2] == [0, 1] and list(film)[-1] == 40 and 6 <= len(film) <= 9
        assert torch.equal(film[1], e.impressions.snapshots[1]) and torch.equal(film[40], e.impressions.snapshots[40])
        start, mean = film[0][e.impressions.y[:15] == 1], e.before.means[1]
        assert 0.05 < float((start - mean).std()) < 0.15  # the mean, and noise of 1/10

    def test_frames_bytes_and_times(self, e, tmp_path):
        film = {
            s: v
            for s, v in zip(
                (0, 5, 300),
                torch.rand(3, 15, *e.impressions.x.shape[1:], generator=torch.Generator().manual_seed(0)),
                strict=True,
            )
        }
        path = save_gif(film, e.impressions.y, e.names, tmp_path / "a" / "film.gif", pause=100, hold=2000)
        with Image.open(path) as gif:
            assert gif.n_frames == 3 and gif.info["loop"] == 0
            times = []
            for k in range(3):
                gif.seek(k)
                times.append(gif.info["duration"])
            assert (
                times == [100, 100, 2000] and gif.size[0] == (3 * 34 - 2) * 6
            )  # three classes side by side, enlarged six times
            gif.seek(1)
            frame = np.asarray(gif.convert("RGB"), dtype=float) / 255
        first = [int((e.impressions.y[:15] == c).nonzero()[0, 0]) for c in range(3)]
        top = next(
            r
            for r in range(40)
            if np.abs(
                frame[r : r + 192 : 6, 0:192:6] - plots.to_float(film[5][first[:1]])[0].permute(1, 2, 0).numpy()
            ).mean()
            < 0.06
        )
        assert np.array_equal(
            frame[top : top + 192, :192].reshape(32, 6, 32, 6, 3)[:, :1].repeat(6, 1),
            frame[top : top + 192, :192].reshape(32, 6, 32, 6, 3),
        )  # pixels are squares
        assert (
            path.read_bytes()
            == save_gif(
                dict(reversed(film.items())), e.impressions.y, e.names, tmp_path / "b.gif", pause=100, hold=2000
            ).read_bytes()
        )
        assert not list(tmp_path.rglob("*.tmp"))

    def test_many_classes_are_drawn_smaller(self, tmp_path):
        path = save_gif(
            {1: torch.rand(11, 1, 32, 32)}, torch.arange(11), [f"class {i}" for i in range(11)], tmp_path / "a.gif"
        )
        with Image.open(path) as gif:
            assert gif.size[0] <= 1250 and gif.n_frames == 1

    def test_nothing_to_show(self, tmp_path):
        with pytest.raises(DataError, match="no snapshots"):
            save_gif({}, torch.arange(2), ["a", "b"], tmp_path / "a.gif")


class TestEmbedding:
    def test_pca_is_numpys(self):
        f = torch.randn(40, 12, generator=torch.Generator().manual_seed(0)) * torch.linspace(1, 4, 12)
        points, share = likeness.pca(f)
        u, s, _ = np.linalg.svd(f.double().numpy() - f.double().numpy().mean(0), full_matrices=False)
        for k in range(2):
            assert np.allclose(points[:, k], u[:, k] * s[k]) or np.allclose(points[:, k], -u[:, k] * s[k])
        assert np.allclose(share, (s**2 / (s**2).sum())[:2])
        turned, _ = likeness.pca(f.flip(0))
        assert torch.allclose(turned.flip(0), points)  # no sign by chance
        assert torch.isfinite(likeness.pca(torch.ones(5, 3))[0]).all()

    def test_axes_say_what_they_show(self):
        f = torch.zeros(6, 3)
        f[:, 0] = torch.arange(6.0) * 3
        f[::2, 1] = 1
        labels = likeness.embed(f)[1]
        assert labels[0].startswith("first component (9") and labels[1].startswith("second component (")

    def test_names_and_packages(self, monkeypatch):
        f = torch.rand(20, 4)
        with pytest.raises(ConfigError, match="known: pca, tsne, umap"):
            likeness.embed(f, "mds")
        with pytest.raises(DataError, match="too few"):
            likeness.embed(f[:3])
        monkeypatch.setattr(likeness, "find_spec", lambda name: None)
        assert likeness.at_hand() == ["pca"]
        for how, package in (("umap", "umap-learn"), ("tsne", "scikit-learn")):
            with pytest.raises(ConfigError, match=f"pip install {package}"):
                likeness.embed(f, how)

    def test_tsne_has_a_fixed_seed(self):
        pytest.importorskip("sklearn")
        f = torch.rand(20, 4)
        a, labels = likeness.embed(f, "tsne")
        assert np.array_equal(a, likeness.embed(f, "tsne")[0]) and a.shape == (20, 2) and labels[0] == "t-SNE, axis 1"

    def test_umap_is_called_with_a_seed(self, monkeypatch):
        class UMAP:
            def __init__(self, n_neighbors, random_state):
                self.given = n_neighbors, random_state

            def fit_transform(self, x):
                return np.full((len(x), 2), self.given)

        monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=UMAP))
        monkeypatch.setattr(likeness, "find_spec", lambda name: True)
        assert likeness.embed(torch.rand(200, 4), "umap", seed=3)[0][0].tolist() == [15, 3]

    def test_points_are_balanced_and_the_same_images_in_both_panels(self, e):
        p = likeness.feature_points(e, per_class=2)
        assert (p.groupby(["network", "kind", "class"]).size() == 2).all() and len(p) == 24
        before, after = [p[p.network == n].reset_index(drop=True) for n in ("before", "after")]
        assert before.drop(columns="network").equals(
            after.drop(columns="network")
        )  # the example's network did not change


class TestToldApart:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(600, 10, generator=g)

    def test_one_distribution_is_chance(self):
        assert abs(likeness.separable(self.x[:300], self.x[300:]) - 50) < 6

    def test_apart_is_certain(self):
        assert likeness.separable(self.x[:300], self.x[300:] + 3) > 99

    def test_between_it_is_what_theory_says(self):
        shift = torch.zeros(10)
        shift[4] = 2.0  # Φ(1) = 84.1 %
        assert abs(likeness.separable(self.x[:300] * 5, (self.x[300:] + shift) * 5) - 84.1) < 4

    def test_a_direction_of_small_variance_counts(self):
        scale, shift = torch.ones(10), torch.zeros(10)
        scale[0], shift[0] = 0.1, 0.5  # five deviations, but little in absolute terms
        assert likeness.separable(self.x[:300] * scale, self.x[300:] * scale + shift, shrink=0.001) > 97

    def test_fit_and_judgement_use_different_images(self):
        wide = torch.randn(
            40, 500, generator=torch.Generator().manual_seed(1)
        )  # more features than images: could be learned by heart
        assert likeness.separable(wide[:20], wide[20:]) < 75

    def test_few_or_equal_images(self):
        assert np.isnan(likeness.separable(self.x[:3], self.x)) and np.isnan(likeness.separable(self.x[:0], self.x))
        assert likeness.separable(torch.ones(10, 4), torch.ones(10, 4)) == pytest.approx(50)
        assert likeness.separable(torch.ones(10, 4), torch.zeros(10, 4)) == pytest.approx(100)
        assert np.isfinite(likeness.separable(self.x[:5], self.x[5:]))  # the rarer kind decides how many count

    def test_synthetic_noise_is_told_from_cells(self, e):
        t = likeness.separability(e)
        assert (t.synthetic.dropna() > 80).all() and (abs(t.unseen - 50) < 25).all()
