"Heads made of statistics, and the methods that statistical_head with them."

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge as SklearnRidge

from classimpression.methods.analytic import Levels, PatchFeatures, kmeans
from classimpression.methods.statistical import Gaussians, NearestMean, Ridge, StreamingLDA, factor, feature_means, pack
from classimpression.methods.statistical import unpack
from classimpression.carryover import hand_over, load_carryover, save_carryover
from classimpression.core.errors import ConfigError, DataError, StateError
from classimpression.core.seeding import generator
from classimpression.heads import make_head
from classimpression.methods.registry import find_method
from classimpression.models import build_classifier, find_network, rebuild
from classimpression.settings import TrainConfig

D, COUNTS = 12, [30, 60, 25, 90, 40]
HEADS = {
    "euclidean": lambda: NearestMean(D),
    "cosine": lambda: NearestMean(D, cosine=True),
    "slda": lambda: StreamingLDA(D),
    "slda-priors": lambda: StreamingLDA(D, shrinkage=0.2, priors=True),
    "fecam": lambda: Gaussians(D),
    "fecam-unit": lambda: Gaussians(D, unit=True),
    "qda": lambda: Gaussians(D, shrinkage2=0.0, correlation=False, quadratic=True, tukey=1.0),
    "ridge": lambda: Ridge(D),
    "ridge-plain": lambda: Ridge(D, 30, balanced=False),
    "ridge-both": lambda: Ridge(D, 30, both=True, penalty=5.0),
}
FEW = dict(
    ncm={},
    slda={},
    fecam={},
    ranpac=dict(random=40),
    acil=dict(random=40),
    patches=dict(random=40, n_patches=1000, rounds=2),
)
FEW |= {"trained-ridge": dict(random=40), "untrained-ridge": dict(random=40)}


@pytest.fixture(scope="module")
def data():
    g = torch.Generator().manual_seed(1)
    y = torch.arange(5).repeat_interleave(torch.tensor(COUNTS))
    mix = torch.randn(5, D, D, generator=g) / 2
    f = (
        torch.randn(5, D, generator=g)[y] / 2
        + torch.einsum("nd,nde->ne", torch.randn(len(y), D, generator=g), mix[y])
        + 2
    )
    order = torch.randperm(len(y), generator=g)
    return f.clamp(min=0)[order], y[order]


def show(head, f, y, tasks):
    for labels in tasks:
        mine = torch.isin(y, torch.tensor(labels))
        head.update(f[mine], y[mine], labels)
    return head


@pytest.mark.parametrize("kind", HEADS)
def test_tasks_give_what_all_at_once_gives(kind, data):
    f, y = data
    once = show(HEADS[kind](), f, y, [[0, 1, 2, 3, 4]])
    for tasks in ([[0], [1], [2], [3], [4]], [[0, 1], [2], [3, 4]], [[0, 1, 2, 3], [4]]):
        head = HEADS[kind]()
        if isinstance(head, Ridge):  # standardised by its first task: here the same for both
            first, once = show(HEADS[kind](), f, y, [tasks[0]]), HEADS[kind]()
            once.centre, once.scale = first.centre, first.scale
            once.absorb(f, y, [0, 1, 2, 3, 4], once.settings["balanced"])
        show(head, f, y, tasks)
        a, b = head(f), once(f)
        assert (a - b).abs().max() <= 1e-5 * b.abs().max().clamp(min=1), (kind, tasks)
        assert a.dtype == torch.float32 and a.shape == (len(f), 5)


@pytest.mark.parametrize("kind", HEADS)
def test_order_of_arrival_only_renames_classes(kind, data):
    f, y = data
    new_name = torch.tensor([3, 0, 4, 1, 2])
    head, other = HEADS[kind](), HEADS[kind]()
    if isinstance(head, Ridge):
        for h in (head, other):
            h.centre, h.scale = f.mean(0), f.std(0)
            h.absorb(f, y if h is head else new_name[y], range(5), h.settings["balanced"])
    else:
        show(head, f, y, [[0, 1, 2], [3, 4]]), show(other, f, new_name[y], [[0], [1, 2, 3, 4]])
    assert torch.allclose(head(f), other(f)[:, new_name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", HEADS)
def test_files_copies_and_stale_weights(kind, data, tmp_path):
    f, y = data
    head = show(HEADS[kind](), f, y, [[0, 1]])
    before, kept = head(f), copy.deepcopy(head)
    back = make_head(head.spec)
    back.load_state_dict(head.state_dict())
    assert torch.equal(back(f), before) and back.spec == head.spec
    show(head, f, y, [[2, 3, 4]])
    assert head(f).shape == (len(f), 5) and torch.equal(kept(f), before)  # new weights here, old ones in the copy
    other = make_head(head.spec)
    show(fresh := HEADS[kind](), f.flip(1), y, [[0, 1, 2, 3, 4]]), fresh(f)
    fresh.load_state_dict(head.state_dict())  # other statistics in an object that has answered already
    other.load_state_dict(head.state_dict())
    assert torch.equal(fresh(f), head(f)) and torch.equal(other.to("cpu").eval()(f), head(f))
    assert not head(f).requires_grad and not list(head.parameters())


def test_only_statistics_are_stored(data):
    f, y = data
    tri, K = D * (D + 1) // 2, 5
    sizes = dict(euclidean=K * D, slda=K + K * D + tri, fecam=K * D + K * tri, ridge=2 * D + K + K * D + tri)
    sizes["ridge-plain"] = 2 * D + K + K * 30 + 30 * 31 // 2
    for kind, n in sizes.items():
        head = show(HEADS[kind](), f, y, [[0, 1, 2, 3, 4]])
        head(f)
        assert sum(t.numel() for t in head.state_dict().values()) == n, kind
    assert NearestMean(D).tier == "M1" and StreamingLDA(D).tier == Gaussians(D).tier == Ridge(D).tier == "M2"


def test_feature_means_by_hand(data):
    f, y = data
    expected = np.stack([f.numpy().astype(np.float64)[y.numpy() == k].mean(0) for k in (4, 1)])
    assert np.allclose(feature_means(f, y, [4, 1]), expected, atol=1e-6)
    with pytest.raises(ConfigError, match=r"classes \[7\]"):
        feature_means(f, y, [1, 7])


def test_nearest_mean_scores(data):
    f, y = data
    means = feature_means(f, y, range(5)).numpy()
    plain, cosine = show(NearestMean(D), f, y, [[0, 1], [2, 3, 4]]), show(NearestMean(D, cosine=True), f, y, [range(5)])
    assert np.allclose(plain(f), -((f.numpy()[:, None] - means) ** 2).sum(2), atol=1e-3)
    assert np.allclose(
        cosine(f), (f.numpy() @ means.T) / np.linalg.norm(f, axis=1)[:, None] / np.linalg.norm(means, axis=1), atol=1e-5
    )
    plain.put(torch.zeros(2, D))
    assert plain.n_classes == 2 and torch.allclose(plain(f)[:, 0], -f.square().sum(1), rtol=1e-4)
    with pytest.raises(ConfigError, match="shape"):
        plain.put(torch.zeros(2, D + 1))


@pytest.mark.parametrize("shrinkage", [1e-4, 0.3])
def test_slda_is_scikit_learns(data, shrinkage):
    f, y = data
    peer = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(f.double(), y)
    posterior = torch.tensor(peer.predict_proba(f.double())).float()
    head = StreamingLDA(D, shrinkage=shrinkage, priors=True)
    for tasks in ([range(5)], [[0], [1, 2], [3, 4]]):
        h = show(copy.deepcopy(head), f, y, [list(t) for t in tasks])
        assert torch.allclose(h(f).softmax(1), posterior, atol=1e-4)
        assert (h(f).argmax(1).numpy() == peer.predict(f.double())).all()
    equal = show(StreamingLDA(D, shrinkage=shrinkage), f, y, [[0, 1], [2, 3, 4]])
    moved = posterior.log() - (torch.tensor(COUNTS) / len(y)).log()  # priors taken out
    assert torch.allclose(equal(f).softmax(1), moved.softmax(1), atol=1e-4)


def test_slda_takes_portions_of_a_class(data):
    f, y = data
    once, portions = show(StreamingLDA(D), f, y, [range(5)]), StreamingLDA(D)
    portions.update(f[y <= 1][:40], y[y <= 1][:40], [0, 1])
    portions.update(f[y <= 1][40:], y[y <= 1][40:], [0, 1])
    portions.update(f[y == 2][:1], y[y == 2][:1], [2])
    rest = torch.isin(y, torch.tensor([3, 4])) | ((y == 2) & ((y == 2).cumsum(0) > 1))
    portions.update(f[rest], y[rest], [2, 3, 4])
    assert torch.equal(portions.counts, torch.tensor(COUNTS))
    assert torch.allclose(portions.means, once.means, atol=1e-5) and torch.allclose(
        portions.scatter, once.scatter, rtol=1e-4, atol=1e-3
    )
    assert torch.allclose(portions(f).softmax(1), once(f).softmax(1), atol=1e-4)


def test_shift_of_all_features_changes_no_answer(data):
    f, y = data
    for kind in ("slda", "qda", "ridge-plain"):  # large common offsets must not cost precision
        a, b = (show(HEADS[kind](), x, y, [[0, 1], [2, 3, 4]])(x) for x in (f, f + 100))
        assert torch.allclose(a.softmax(1), b.softmax(1), atol=2e-2), kind


@pytest.mark.parametrize("kind", ["both", "random", "features"])
@pytest.mark.parametrize("balanced", [True, False])
def test_ridge_is_scikit_learns(data, kind, balanced):
    f, y = data
    head = Ridge(D, 0 if kind == "features" else 40, penalty=2.5, balanced=balanced, both=kind == "both", seed=3)
    show(head, f, y, [[0, 1], [2], [3, 4]])
    h = head.lift(f).double()
    assert h.shape[1] == dict(both=D + 40, random=40, features=D)[kind]
    weight = len(y) / 5 / np.array(COUNTS)[y] if balanced else None
    peer = SklearnRidge(2.5).fit(h, F.one_hot(y), sample_weight=weight)
    assert np.allclose(head(f), peer.predict(h), atol=2e-5)


def test_ridge_standardises_by_its_first_task(data):
    f, y = data
    f = f.clone()
    f[y <= 1, 0] = 1.0  # silent in task 1
    head = show(Ridge(D, 8), f, y, [[0, 1], [2, 3, 4]])
    first = f[y <= 1]
    sd = first.std(0, correction=0)
    assert torch.allclose(head.centre, first.mean(0), atol=1e-5)
    assert torch.allclose(head.scale[1:], sd[1:], atol=1e-5) and torch.isclose(
        head.scale[0], sd.square().mean().sqrt() / 10, rtol=1e-3
    )
    z = (f - head.centre) / head.scale
    w = torch.randn(D, 8, generator=generator(0, "random features", D, 8)) / D**0.5
    assert torch.allclose(head.lift(f), F.relu(z @ w), atol=1e-4)
    assert not torch.equal(Ridge(D, 8, seed=1).projection, head.projection) and torch.equal(
        Ridge(D, 8).projection, head.projection
    )


def by_hand(f, y, k, γ, unit):
    "FeCAM's distance to class k, by loops over matrix elements."
    t = np.sqrt(f[y == k])
    mean, cov = f[y == k].mean(0), np.cov(t.T)
    v1 = np.mean([cov[i, i] for i in range(D)])
    v2 = np.mean([cov[i, j] for i in range(D) for j in range(D) if i != j])
    cov = np.array([[cov[i, j] + (γ * v1 if i == j else γ * v2) for j in range(D)] for i in range(D)])
    cov = np.array([[cov[i, j] / np.sqrt(cov[i, i] * cov[j, j]) for j in range(D)] for i in range(D)])
    x, m = np.sqrt(f), np.sqrt(mean)
    if unit:
        x, m = x / np.linalg.norm(x, axis=1, keepdims=True), m / np.linalg.norm(m)
    return np.array([(a - m) @ np.linalg.inv(cov) @ (a - m) for a in x])


@pytest.mark.parametrize("unit", [False, True])
def test_fecam_by_hand(data, unit):
    f, y = data
    head = show(Gaussians(D, unit=unit, shrinkage1=0.7, shrinkage2=0.7), f, y, [[0, 1], [2, 3, 4]])
    for k in (0, 4):
        assert np.allclose(
            -2 * head(f)[:, k], by_hand(f.numpy().astype(float), y.numpy(), k, 0.7, unit), rtol=1e-3, atol=1e-3
        )


def test_public_fecam_shrinks_twice():
    "Shrinking by 1 twice, as the public code does, is shrinking by 3 once."
    a = torch.randn(D, D, generator=torch.Generator().manual_seed(0)).double()
    once, thrice = (Gaussians(D, shrinkage1=γ, shrinkage2=γ, correlation=False) for γ in (1.0, 3.0))
    assert torch.allclose(once.shrunk(once.shrunk(a @ a.T)), thrice.shrunk(a @ a.T))


def test_gaussians_as_quadratic_discriminant(data):
    f, y = data
    head = show(
        Gaussians(D, shrinkage1=0.1, shrinkage2=0.0, correlation=False, quadratic=True, tukey=1.0),
        f,
        y,
        [[0], [1, 2, 3, 4]],
    )
    logs = []
    for k in range(5):
        x = f[y == k].double().numpy()
        cov = np.cov(x.T)
        cov += 0.1 * np.trace(cov) / D * np.eye(D)
        gap = f.double().numpy() - x.mean(0)
        logs.append(-0.5 * np.einsum("nd,de,ne->n", gap, np.linalg.inv(cov), gap) - 0.5 * np.linalg.slogdet(cov)[1])
    assert np.allclose(head(f), np.stack(logs, 1), rtol=1e-3, atol=1e-2)
    moved = Gaussians(**{k: v for k, v in head.spec.items() if k not in ("kind", "n_classes")})
    moved.put(head.means, head.covariances())
    assert torch.equal(moved(f), head(f)) and torch.equal(head.covariances(), head.covariances().mT)
    with pytest.raises(ConfigError, match="covariances"):
        moved.put(head.means, head.covs)


@pytest.mark.parametrize("kind", HEADS)
def test_poor_data_still_give_an_answer(kind):
    "One class, one image, dead features, features that wake up later."
    g = torch.Generator().manual_seed(0)
    head = HEADS[kind]()
    f = torch.rand(9, D, generator=g)
    f[:, 3:] = 0
    head.update(f, torch.zeros(9, dtype=torch.int64), [0])
    assert head(f).shape == (9, 1) and head(f).isfinite().all()
    late = torch.rand(1, D, generator=g) + 5
    head.update(late, torch.ones(1, dtype=torch.int64), [1])
    assert head(torch.cat([f, late])).isfinite().all() and head(late).argmax() == 1
    if kind != "fecam":
        assert (head(f).argmax(1) == 0).float().mean() > 0.8
    nothing = HEADS[kind]()
    nothing.update(torch.ones(4, D), torch.tensor([0, 0, 1, 1]), [0, 1])
    assert nothing(torch.ones(2, D)).isfinite().all()


@pytest.mark.parametrize("kind", HEADS)
def test_complaints_and_precision(kind, data):
    f, y = data
    head = HEADS[kind]()
    with pytest.raises(StateError, match="no class yet"):
        head(f)
    with pytest.raises(ConfigError, match="the new ones are 0, 1"):
        head.update(f[y == 1], y[y == 1], [1])
    with pytest.raises(ConfigError, match=r"images of the classes \[2, 3, 4\]"):
        head.update(f, y, [0, 1])
    with pytest.raises(ConfigError, match=r"no image of the classes \[1\]"):
        head.update(f[y == 0], y[y == 0], [0, 1])
    show(head, f, y, [range(5)])
    if not kind.startswith("slda"):
        with pytest.raises(ConfigError, match="the new ones are 5, 6"):
            head.update(f, y, range(5))
    with torch.autocast("cpu", torch.bfloat16):
        scores = head(f.bfloat16())
    assert scores.dtype == torch.float32 and torch.equal(scores, head(f.bfloat16().float()))


def test_symmetric_matrices():
    a = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    a = a + a.T
    assert torch.equal(unpack(pack(a), 5).float(), a) and pack(a).shape == (15,)
    low = torch.ones(4, 4).double()
    assert torch.allclose(factor(low) @ factor(low).T, low, atol=1e-4)
    with pytest.raises(StateError, match="NaN"):
        factor(low * torch.nan)
    with pytest.raises(StateError, match="negative"):
        factor(-low)


# ---- methods -------------------------------------------------------------------------------------


def go(name, scenario, cfg, upto=None, **hyper_parameters):
    "Run a method over the tasks; the carryovers."
    carries = []
    for t in range(len(scenario.sizes) if upto is None else upto + 1):
        with scenario.training(t) as task:
            model, h = find_method(name).fit(
                carries[-1] if carries else None, task, None, cfg, **FEW[name] | hyper_parameters
            )
            carries.append(
                hand_over(model, task, carries[-1] if carries else None, means=False, extra=h.extra, k_min=1)
            )
    return carries


@pytest.mark.parametrize("name", FEW)
def test_methods_over_unequal_tasks(name, toy, tmp_path):
    cfg, scenario = TrainConfig(epochs=1), toy((1, 2, 1), channels=1 if name in ("slda", "patches") else 3)
    before = torch.random.get_rng_state()
    carries = go(name, scenario, cfg)
    assert torch.equal(torch.random.get_rng_state(), before)
    x = scenario.test(2).images()
    first = carries[0].model
    for t, carry in enumerate(carries):
        assert carry.model(x).shape == (len(x), [1, 3, 4][t]) and carry.images == 0 and not carry.extra
        assert carry.tier == carry.model.statistical_head.tier
        for a, b in zip(first.backbone.state_dict().values(), carry.model.backbone.state_dict().values()):
            assert torch.equal(a, b)
    assert first.statistical_head.n_classes == 1  # the carried model was not touched by later tasks
    path = save_carryover(tmp_path / "carry.safetensors", carries[-1], dict(carries[-1].model.spec))
    back, _ = load_carryover(path, rebuild)
    assert torch.equal(back.model.to(memory_format=torch.channels_last)(x), carries[-1].model(x))
    assert (
        back.bytes == carries[-1].bytes == sum(v.numel() * v.element_size() for v in back.model.state_dict().values())
    )
    with scenario.again().training(2) as task:
        model, h = find_method(name).fit(
            load_carryover(save_carryover(path, carries[1], dict(carries[1].model.spec)), rebuild)[0],
            task,
            None,
            cfg,
            **FEW[name],
        )
    assert torch.equal(model.eval()(x), carries[-1].model(x)) and h.lr == [] and not model.training


@pytest.mark.parametrize("name", ["slda", "fecam", "acil", "untrained-ridge"])
def test_a_method_in_tasks_is_its_head_on_all_images(name, toy):
    "No feature drifts and none is forgotten: the final head is what all images at once would give."
    scenario = toy((2, 1, 2))
    carry = go(name, scenario, TrainConfig(epochs=1))[-1]
    all_images = scenario.joint(2, reference=True)
    model = carry.model
    with torch.no_grad():
        f = model.features(all_images.images())
    spec = model.statistical_head.spec
    head = make_head(dict(spec, n_classes=0))
    if isinstance(head, Ridge):
        head.centre, head.scale = model.statistical_head.centre, model.statistical_head.scale
        head.absorb(f, all_images.y, range(5), head.settings["balanced"])
    else:
        head.update(f, all_images.y, range(5))
    a, b = head(f), model.statistical_head(f)
    assert (a - b).abs().max() < 1e-3 * b.abs().max() and (a.argmax(1) == b.argmax(1)).float().mean() > 0.99
    assert (model.statistical_head(f).argmax(1) == all_images.y).float().mean() > 0.6  # chance is .2


def test_first_task_is_shared(toy):
    cfg, starts = TrainConfig(epochs=1), {}
    for name in ("fine-tuning", "ncm", "ranpac", "trained-ridge"):
        with toy((2, 2)).training(0) as task:
            model, h = find_method(name).fit(None, task, None, cfg, **FEW.get(name, {}))
        starts[name] = model.backbone.net if isinstance(model.backbone, Levels) else model.backbone
        assert len(h.lr) == 1
    for other in starts.values():
        for a, b in zip(starts["ncm"].state_dict().values(), other.state_dict().values()):
            assert torch.equal(a, b)


def test_untrained_network_is_really_untrained(toy):
    cfg = TrainConfig(epochs=3, seed=5)
    a, b = (go("untrained-ridge", toy((2, 2)), c)[-1].model for c in (cfg, TrainConfig(seed=6)))
    fresh = build_classifier("small", 3, [2], 5).backbone
    for k, v in fresh.state_dict().items():
        assert torch.equal(a.backbone.net.state_dict()[k], v), k
    assert (
        not torch.equal(a.backbone.net.stem[0].weight, b.backbone.net.stem[0].weight)
        and find_method("untrained-ridge").first
    )


@pytest.mark.parametrize("name,pixels", [("small", 16), ("small", 32), ("small", 40), ("large", 64)])
def test_levels_are_the_blocks_outputs(name, pixels):
    "Compared with hooks on the plain network."
    net = find_network(name)(3).eval()
    found = []
    handles = [
        b.register_forward_hook(lambda m, i, o: found.append(F.adaptive_avg_pool2d(o, 4).flatten(1)))
        for b in net.blocks.children()
    ]
    x = torch.rand(3, 3, pixels, pixels, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        net.features(x)
        for h in handles:
            h.remove()
        levels = Levels(net, 3).eval()
        assert (
            torch.allclose(levels.features(x), torch.cat(found, 1), atol=1e-6)
            and levels.n_features == levels.features(x).shape[1]
        )
    assert Levels(copy.deepcopy(net).train(), 3).net.stem[1].num_batches_tracked == 0
    with pytest.raises(ConfigError, match="no stem"):
        Levels(torch.nn.Identity(), 3)


@pytest.mark.parametrize("channels,pixels", [(1, 16), (3, 28), (3, 40)])
def test_patch_codes_by_loops(channels, pixels):
    g = torch.Generator().manual_seed(0)
    x = torch.randint(256, (12, channels, pixels, pixels), generator=g, dtype=torch.uint8)
    net = PatchFeatures(channels, n_centroids=7)
    net.learn(x, g, patches=400, rounds=2, k_min=1)
    unit = x[:2].float() / 255
    codes = torch.zeros(7, pixels - 5, pixels - 5)
    for i in range(pixels - 5):
        for j in range(pixels - 5):
            p = unit[1, :, i : i + 6, j : j + 6].flatten().double()
            p = (p - p.mean()) / (p.var(correction=0) + 10 / 255**2).sqrt()
            d = ((p - net.mean) @ net.whiten.double() - net.centroids).norm(dim=1)
            codes[:, i, j] = (d.mean() - d).clamp(min=0)
    assert torch.allclose(net.encode(unit)[1], codes, atol=1e-3)
    f = net.features(unit)
    assert f.shape == (2, net.n_features) == (2, 28 + 16 * channels)
    assert torch.allclose(f[1, :28], F.adaptive_avg_pool2d(codes, 2).flatten(), atol=1e-3)
    assert torch.allclose(f[:, 28:], F.adaptive_avg_pool2d(unit, 4).flatten(1), atol=1e-6)
    flat = torch.full((1, channels, pixels, pixels), 0.5)
    assert net.features(flat).isfinite().all()
    with pytest.raises(DataError, match="smaller than a patch"):
        net.features(torch.zeros(1, channels, 5, 5))


def test_whitening_makes_patches_white():
    g = torch.Generator().manual_seed(0)
    x = (torch.rand(20, 1, 16, 16, generator=g).cumsum(3) * 16).clamp(max=255).byte()
    net = PatchFeatures(1, n_centroids=400)
    with pytest.raises(ConfigError, match="300 vectors for 400"):
        net.learn(x, g, patches=300, rounds=0)
    net.learn(
        x, generator(0, "p"), patches=400, rounds=0, k_min=1
    )  # no rounds: the centroids are the whitened patches, in another order
    λ = torch.linalg.eigvalsh(torch.cov(net.centroids.T))
    assert λ.max() < 1.001 and λ[-1] > 0.9 and net.centroids.mean(0).abs().max() < 1e-3


def test_kmeans_improves_and_survives_empty_clusters():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(300, 4, generator=g)
    cost = [
        torch.cdist(x, kmeans(x, 8, r, torch.Generator().manual_seed(1))).min(1).values.square().mean()
        for r in (0, 1, 3, 10)
    ]
    assert cost == sorted(cost, reverse=True) and cost[-1] < 0.9 * cost[0]
    assert kmeans(torch.ones(10, 2), 3, 2, torch.Generator()).isfinite().all()


@pytest.mark.parametrize("known", [False, True])
def test_no_centroid_rests_on_few_images_or_patients(known):
    "Alone in its cluster, a patch could be read off the stored centroids."
    g = torch.Generator().manual_seed(0)
    x, patient = torch.randint(256, (60, 1, 12, 12), generator=g, dtype=torch.uint8), torch.arange(60) // 3
    whose = patient if known else None

    def seen(k_min):
        net = PatchFeatures(1, n_centroids=200)
        net.learn(x, torch.Generator().manual_seed(1), 600, 3, whose, k_min)
        g = torch.Generator().manual_seed(1)
        n, i, j = (torch.randint(m, (600,), generator=g) for m in (60, 7, 7))
        p = (
            torch.stack([x[a, 0, b : b + 6, c : c + 6].flatten() for a, b, c in zip(n, i, j, strict=True)]).float()
            / 255
        )
        p = (p - p.mean(1, keepdim=True)) / (p.var(1, correction=0, keepdim=True) + 10 / 255**2).sqrt()
        return torch.cdist(net.centroids, (p - net.mean) @ net.whiten), net

    raw, _ = seen(1)
    floor, net = seen(10)
    assert raw.min() < 1e-3, "some centroid is a patch"
    assert floor.min() > 1 and torch.equal(net.mean, seen(1)[1].mean)


def test_patches_come_from_the_first_task_only(toy):
    "Same first task, other images later: the same whitening and centroids."
    carries = go("patches", toy((2, 2)), TrainConfig())
    other = go("patches", toy((2, 1)), TrainConfig(), upto=0)
    with toy((2, 2)).training(0) as task:
        x = task.train.x
    net = PatchFeatures(3)
    net.learn(x, generator(0, "patches"), 1000, 2)
    for c in carries:
        for k, v in net.state_dict().items():
            assert torch.equal(c.model.backbone.state_dict()[k], v), k
    assert len(other) == 1 and find_method("patches").first and carries[1].model.statistical_head.settings["both"]
    assert not torch.equal(
        go("patches", toy((2, 2)), TrainConfig(seed=1), upto=0)[0].model.backbone.centroids, net.centroids
    )


def test_acil_keeps_within_a_tenth_of_bloodmnist():
    head = Ridge(256, 400, n_classes=2)
    assert (
        sum(t.numel() * t.element_size() for t in head.state_dict().values()) < 2500 * 28 * 28 * 3 / 10
    )  # task 1 has more than 3,000 images
