"Doors to what people already use: scikit-learn's verbs, ONNX and torch.export, networks of others."

import importlib.util
import inspect
import json

import numpy as np
import pytest
import torch
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn
from test_methods import EXPECTED, TINY

from classimpression.methods.statistical import NearestMean, Ridge, StreamingLDA
from classimpression.adapters.adopt import adopt
from classimpression.adapters.estimator import NOT_AS_SKLEARN, IncrementalClassifier
from classimpression.adapters.export import export_onnx, export_torch
from classimpression.adapters.recommend import Candidate, decide, recommend
from classimpression.core.errors import ConfigError, DataError, StateError
from classimpression.methods.registry import find_method
from classimpression.models import NETWORKS, batch_norms, build_classifier
from classimpression.runs.configs import without_effect
from classimpression.scenarios import make_scenario
from classimpression.synthesis import SynthesisConfig, synthesize

needs_onnx = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime"))),
    reason="needs the extra `export` and onnxruntime",
)


def few(scenario, t, n):
    "The first n training images of each class of a task, with the classes' names as labels."
    with scenario.again().training(t) as task:
        s = task.train
    rows = torch.cat([(s.y == k).nonzero()[:n, 0] for k in task.labels])
    return s.x[rows].numpy(), np.array(scenario.class_names)[s.y[rows]]


@pytest.mark.parametrize("name", EXPECTED)
def test_every_method_is_an_estimator(name, tmp_path):
    scenario = make_scenario("blood-mini", sizes=[2, 1, 5], class_order=[7, 1, 0, 2, 3, 4, 5, 6])
    settings = dict(
        epochs=1,
        first_epochs=1,
        batch_size=16,
        options=TINY.get(name),
    )
    more = dict(groups=1, group_size=12, synthesis_steps=2, synthesis_warmup=1, margin_k=1)
    settings |= {k: v for k, v in more.items() if k not in without_effect(name)}
    est = IncrementalClassifier(name, "smoke", settings=settings)
    for t in range(2):
        assert est.partial_fit(*few(scenario, t, 12)) is est
    x = scenario.test(1).x[:8].numpy()
    p, scores = est.predict_proba(x), est.decision_function(x)
    assert p.shape == (8, 3) and np.allclose(p.sum(1), 1) and (p >= 0).all()
    assert (
        list(est.arrival_) == ["eosinophil", "platelet", "basophil"]
        and list(est.classes_) == sorted(est.arrival_)
        and (est.predict(x) == est.classes_[scores.argmax(1)]).all()
    )
    assert 0 <= est.score(x, est.predict(x)[::-1]) <= est.score(x, est.predict(x)) == 1
    n = find_method(name).exemplars
    assert est.carry_.images == (0 if n == 0 else 36 if n is None else min(n, 12) * 3)
    again = IncrementalClassifier.load(est.save(tmp_path / "e.safetensors"))
    assert np.allclose(again.decision_function(x), scores, rtol=1e-3, atol=1e-3) and again.carry_.images == 0, (
        "real images are never written"
    )


@pytest.mark.slow
def test_it_learns_and_a_failed_task_changes_nothing():
    scenario = make_scenario("blood-mini")
    est = IncrementalClassifier("class-impression", "smoke", settings=dict(first_epochs=8))
    x, y = few(scenario, 0, 150)
    est.fit(x / np.float32(255), y)  # floats in [0, 1] are the same images
    assert est.score(x, y) > 0.75
    before = est.decision_function(x)
    with pytest.raises(ValueError, match="fewer than 10"):
        est.partial_fit(*few(scenario, 1, 3))
    with pytest.raises(ValueError, match="earlier task"):
        est.partial_fit(x, y)
    assert np.array_equal(before, est.decision_function(x)) and est.sizes_ == [2]
    est.fit(*few(scenario, 1, 12))  # from scratch
    assert set(est.classes_) == {"erythroblast", "immature granulocyte"} and est.sizes_ == [2]


def test_scikit_learn_takes_it():
    base = pytest.importorskip("sklearn.base")
    from sklearn.model_selection import cross_val_score

    scenario = make_scenario("blood-mini")
    x, y = few(scenario, 0, 40)
    est = IncrementalClassifier("ncm", "smoke")
    copy = base.clone(est.set_params(random_state=3))
    assert copy is not est and copy.get_params() == est.get_params() and base.is_classifier(est)
    assert cross_val_score(est, x, y, cv=2).shape == (2,)
    channels_last = IncrementalClassifier("ncm", "smoke", "NHWC", 3).fit(x.transpose(0, 2, 3, 1), y)
    assert np.array_equal(channels_last.decision_function(x.transpose(0, 2, 3, 1)), est.fit(x, y).decision_function(x))


@pytest.mark.parametrize("order", [["b", "a"], ["cd", "ab"]])
def test_scikit_learns_scorers_whatever_the_order_of_arrival(order, tmp_path):
    "Two classes: the larger one is positive. More of them: columns are sorted."
    metrics = pytest.importorskip("sklearn.metrics")
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator

    x, y = blobs(80, (3, 16, 16), sorted("".join(order)))
    est = IncrementalClassifier("slda", "smoke", settings=dict(k_min=1))
    for task in order:
        est.partial_fit(x[np.isin(y, list(task))], y[np.isin(y, list(task))])
    for e in (est, IncrementalClassifier.load(est.save(tmp_path / "e.safetensors"))):
        assert list(e.arrival_) == list("".join(order)) and list(e.classes_) == sorted("".join(order))
        assert e.score(x, y) > 0.9 and metrics.get_scorer("roc_auc_ovr")(e, x, y) > 0.95
        assert metrics.get_scorer("neg_log_loss")(e, x, y) > -1
    assert CalibratedClassifierCV(FrozenEstimator(est), method="sigmoid").fit(x, y).score(x, y) > 0.9
    card = est.card(x, y, x, y, most=3, draws=5)
    assert f"**classes**: {', '.join(est.arrival_)}" in card


class Rows(IncrementalClassifier):
    "Rows of any numbers as lines of grey pixels: the checks bring numbers of both signs, images are in [0, 1]."

    def unrolled(self, X):
        x = super().unrolled(X)
        wild = isinstance(x, np.ndarray) and x.dtype.kind in "iuf" and np.isfinite(x).all()
        return 0.5 + np.sin(x / 4.0) / 2 if wild else x


ROWS = Rows("slda", "smoke", image_shape=(1, 1, -1), settings=dict(epochs=1, k_min=1, batch_size=32))


STRICT = {"xfail_strict": True} if "xfail_strict" in inspect.signature(parametrize_with_checks).parameters else {}


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks([ROWS], expected_failed_checks=lambda e: NOT_AS_SKLEARN, **STRICT)  # strict from 1.8
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


HEADS = dict(
    nearest=lambda: NearestMean(256),
    cosine_mean=lambda: NearestMean(256, cosine=True),
    slda=lambda: StreamingLDA(256),
    ridge=lambda: Ridge(256, 30),
)


def with_head(name):
    "A small network with a head of that kind, and real images."
    split = make_scenario("blood-mini").test(1)
    model = build_classifier("small", 3, [2, 2]).eval().requires_grad_(False)
    model.statistical_head = HEADS[name]()
    model.statistical_head.update(model.features(split.images()), split.y, [0, 1, 2, 3])
    return model, split.images(torch.arange(0, 320, 27))


def test_a_network_that_cannot_be_exported_is_refused_with_the_versions():
    class Moody(nn.Module):
        def forward(self, x):
            scores = x.flatten(1)[:, :2]
            return scores if scores.sum() > 0 else -scores

    with pytest.raises(ConfigError, match=rf"torch.export of Moody does not work with torch {torch.__version__[:3]}"):
        export_torch(Moody())


def test_an_operation_without_onnx_form_is_named(tmp_path):
    class Eigen(nn.Module):
        def forward(self, x):
            return torch.linalg.eigvals(x[:, 0, :2, :2]).real

    with pytest.raises(ConfigError, match=r"ONNX of Eigen does not work with torch .*, onnxscript .*linalg_eig"):
        export_onnx(Eigen(), tmp_path / "eigen.onnx")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["cosine_mean", "ridge"])
def test_torch_export_agrees(name, tmp_path):
    model, x = with_head(name)
    export_torch(model, path=tmp_path / "m.pt2")
    scores = torch.export.load(tmp_path / "m.pt2").module()
    for batch in (x, x[:1]):
        torch.testing.assert_close(scores(batch), model(batch), rtol=1e-4, atol=1e-4)


def blobs(n=40, shape=(3, 24, 40), classes=("Große Zelle", "weiße")):
    "Bright and dark images with noise, and names."
    g, y = np.random.default_rng(0), np.arange(n) % len(classes)
    bright = 45 * y.reshape(-1, *[1] * len(shape))
    return (g.integers(0, 120, (n, *shape)) + bright).astype(np.uint8), np.array(list(classes))[y]


@pytest.mark.parametrize("layout", [pytest.param("rings", marks=pytest.mark.slow), "grid"])
def test_images_need_not_be_square(layout, tmp_path):
    "Rings turn with the image; the file for other programs knows both sides."
    x, y = blobs()
    est = IncrementalClassifier("census", "smoke", settings=dict(options=dict(layout=layout, rounds=1, n_patches=500)))
    est.partial_fit(x, y)
    assert est.score(x, y) == 1 and est.carry_.model.backbone.box.tolist() == [0, 24, 0, 40]
    f = lambda x: est.carry_.model.backbone.describe(torch.from_numpy(x).float() / 255)[:, :-256]
    if layout == "rings":
        turned = np.ascontiguousarray(x[:8, :, ::-1, ::-1])
        assert torch.allclose(f(x[:8]).mean(1), f(turned).mean(1), rtol=0.05)
    program = export_torch(est.carry_.model, (24, 40)).module()
    assert (program(torch.from_numpy(x) / 255).argmax(1).numpy() == (y == "weiße")).all()


def test_messages_name_the_users_classes():
    x, y = blobs(shape=(3, 16, 16))
    with pytest.raises(DataError, match="Große Zelle.: 3"):
        IncrementalClassifier("slda", "smoke").partial_fit(x[14:], np.where(np.arange(26) < 3, y[0], y[1]))
    with pytest.raises(DataError, match="patients, where they are known.*Große Zelle.: 2, .weiße.: 1"):
        IncrementalClassifier("slda", "smoke").partial_fit(x, y, patients=np.where(y == "weiße", 7, np.arange(40) % 4))
    with pytest.raises(DataError, match="the classes .'weiße'. have fewer than 4 images"):
        recommend(x[:5], y[[0, 0, 0, 0, 1]], outside=False)
    with pytest.raises(ConfigError, match="unknown profile 'quik'"):
        recommend(x, y, profile="quik")
    with pytest.warns(UserWarning, match="the first task has one class"):
        est = IncrementalClassifier("ncm", "smoke").partial_fit(x[y == "weiße"], y[y == "weiße"])
    with pytest.raises(DataError, match="four that were not; there are {'weiße': .20, 3."):
        est.card(x[y == "weiße"], y[y == "weiße"], x[1:6:2], y[1:6:2])


def test_brightness_is_that_of_the_first_task(tmp_path):
    "A dark image of 16 bits alone counts as in its batch, from a file too; floats in [0, 1] need no bits."
    g, y = np.random.default_rng(0), np.arange(40) % 2
    x = g.integers(0, 60000, (40, 1, 12, 12)).astype(np.uint16)
    x[0] //= 40
    est = IncrementalClassifier("ncm", "smoke").partial_fit(x, y)
    for e in (est, IncrementalClassifier.load(est.save(tmp_path / "e.safetensors"))):
        assert np.allclose(e.scores(x[:1]), e.scores(x[:9])[:1], atol=1e-5) and e.as_images(x[:1]).max() < 6
    whole = (x // 256).astype(np.int32)
    with pytest.raises(DataError, match="not int32"):
        est.predict(whole)
    eight = IncrementalClassifier("ncm", "smoke", bits=8).partial_fit(whole, y)
    with pytest.raises(DataError, match="floats in .0, 1. need no bits"):
        eight.predict(whole / 255)
    assert np.array_equal(eight.predict(whole), eight.predict(whole.astype(np.uint8)))


def test_names_of_columns_come_back_from_a_file(tmp_path):
    pd, (x, y) = pytest.importorskip("pandas"), blobs(shape=(1, 6, 6))
    rows = pd.DataFrame(x.reshape(40, 36), columns=[f"p{i}" for i in range(36)])
    est = IncrementalClassifier("ncm", "smoke", image_shape=(1, 6, 6)).partial_fit(rows, y)
    for e in (est, IncrementalClassifier.load(est.save(tmp_path / "e.safetensors"))):
        assert np.array_equal(e.predict(rows), est.predict(rows)) and e.n_features_in_ == 36
        with pytest.raises(DataError, match="feature names should match"):
            e.predict(rows[rows.columns[::-1]])


def test_what_the_first_task_was_learned_with_stays(tmp_path):
    x, y = blobs(80, (3, 16, 16), "abcd")
    first = np.isin(y, ["a", "b"])
    est = IncrementalClassifier("slda", "smoke", settings=dict(epochs=1, k_min=1)).partial_fit(x[first], y[first])
    for change, said in (
        (dict(method="ncm"), "learned with method='slda'.*method='ncm' now"),
        (dict(settings=dict(options=dict(shrinkage=0.9))), "shrinkage=0.9 now"),
        (dict(settings=dict(initialisation="torch")), "initialisation='torch' now"),
        (dict(backbone=Grouped()), "network='small'"),
    ):
        before = est.get_params()
        est.set_params(**change)
        for act in (lambda: est.partial_fit(x[~first], y[~first]), lambda: est.save(tmp_path / "e.safetensors")):
            with pytest.raises(ConfigError, match=said):
                act()
        est.set_params(**before)
    assert est.sizes_ == [2] and not (tmp_path / "e.safetensors").exists()
    est.set_params(settings=dict(epochs=2, lr=0.3, k_min=2)).partial_fit(x[~first], y[~first])
    assert est.sizes_ == [2, 2]
    assert est.set_params(method="ncm").fit(x, y).sizes_ == [4], "fit begins anew"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without one")
def test_a_file_from_an_accelerator_is_read_without_one(tmp_path):
    x, y = blobs(shape=(3, 16, 16))
    est = IncrementalClassifier("ncm", "smoke").partial_fit(x, y)
    est.settings = dict(epochs=2, device="cuda")
    path = est.save(tmp_path / "e.safetensors")
    with pytest.warns(UserWarning, match="uses what this machine has"):
        again = IncrementalClassifier.load(path)
    assert again.settings == dict(epochs=2) and np.array_equal(again.scores(x), est.scores(x))
    labels = np.arange(40, dtype=np.uint64) % 2
    mixed = IncrementalClassifier("ncm", "smoke").partial_fit(x, labels).partial_fit(x, labels.astype(np.int64) + 2)
    assert IncrementalClassifier.load(mixed.save(path)).classes_.tolist() == [0, 1, 2, 3]


def test_nothing_that_is_asked_for_is_ignored(tmp_path):
    "Refused with the way out; files of before, which hold such words, still load."
    from classimpression.adapters.estimator import NEVER_READ, WITHOUT_NETWORK
    from classimpression.carryover import load_tensors, save_tensors
    from classimpression.runs.configs import setting_types

    public = "efficientnet_lite0"
    for name, settings, backbone, said in (
        ("patches", None, public, "patches has no network; leave it out"),
        ("census-any", dict(options=dict(features="codes")), public, "leave one of the two out"),
        ("census-any", dict(options=dict(backbone=public)), "efficientnet_lite0-levels", "are two; give one of them"),
        ("ncm", dict(network="large"), public, "are two; give one of them"),
        ("ncm", dict(optimizer="adam", momentum=0.9), None, "never read by optimizer='adam'"),
        ("ncm", dict(synthesis_steps=5), None, "would change nothing"),
        ("ncm", dict(method="slda"), None, "arguments of the estimator"),
        *(("ncm", {k: None}, None, "an estimator never reads") for k in NEVER_READ),
    ):
        with pytest.raises(ConfigError, match=said):
            IncrementalClassifier(name, "smoke", settings=settings, backbone=backbone).config()
    assert set(NEVER_READ) < set(setting_types()) and set(WITHOUT_NETWORK) < set(EXPECTED)
    for name, backbone in (("ncm", public), ("census-any", public), ("patches", None)):
        assert IncrementalClassifier(name, "smoke", backbone=backbone).config().method == name
    x, y = blobs(shape=(3, 16, 16))
    path = IncrementalClassifier("ncm", "smoke", settings=dict(epochs=2)).partial_fit(x, y).save(tmp_path / "e")
    tensors, facts = load_tensors(path)
    facts["estimator"]["params"]["settings"] = dict(
        threads=2, epochs=2, optimizer="adam", momentum=0.9, synthesis_steps=5
    )
    save_tensors(path, tensors, facts)
    again = IncrementalClassifier.load(path)
    assert again.settings == dict(epochs=2, optimizer="adam") and again.score(x, y) > 0.9


@pytest.mark.parametrize("name", ["patches", "ncm", "fetril", "trained-ridge"])
def test_methods_said_to_have_no_network_have_none(name, monkeypatch):
    "Those, and only those, never build the network that settings name."
    from classimpression.adapters.estimator import WITHOUT_NETWORK

    built = []
    monkeypatch.setitem(NETWORKS, "told", lambda channels: built.append(1) or NETWORKS["small"](channels))
    (x, y), settings = blobs(shape=(3, 32, 32)), dict(epochs=1, network="told", options=TINY.get(name))
    IncrementalClassifier(name, "smoke", settings=settings).partial_fit(x, y)
    assert bool(built) == (name not in WITHOUT_NETWORK)


def test_a_card_says_what_the_bytes_allow(tmp_path):
    "Statistics larger than the images they summarise are no summary; a file keeps the counts."
    x, y = blobs(80, (3, 16, 16), "abcd")
    est = IncrementalClassifier("slda", "smoke")
    for task in ("cd", "ab"):
        est.partial_fit(x[np.isin(y, list(task))], y[np.isin(y, list(task))])
    for e in (est, IncrementalClassifier.load(est.save(tmp_path / "e.safetensors"))):
        assert (e.seen_bytes_, e.counts_) == (x.size, [20] * 4)
        page = e.card(x, y, x, y, most=3, draws=5)
        share = 100 * est.carry_.statistics / x.size
        assert (
            share > 10 and f"**tier**: reference; real images: 0; statistics: {est.carry_.statistics:,} bytes" in page
        )
        assert f"{share:.1f} % of the images' own" in page
    from classimpression.studies import card

    counted = []
    with pytest.MonkeyPatch.context() as m:
        m.setattr(card, "carried_attacks", lambda carry, c, n: counted.append(n.tolist()) or [])
        few = np.concatenate([np.flatnonzero(y == k)[:4] for k in "abcd"])
        est.card(x[few], y[few], x, y, most=3, draws=5)
    assert counted == [[20] * 4], "an attacker knows how many there were, not how many the auditor brought"
    small = IncrementalClassifier("ncm", "smoke").partial_fit(x, y)
    assert "**tier**: M1; real images: 0; statistics: " in small.card(x, y, x, y, most=3, draws=5)


class Grouped(nn.Module):
    "A network without batch normalisation."

    def __init__(self):
        super().__init__()
        self.f = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2))

    def forward(self, x):
        return self.f(x).mean((2, 3))


def test_a_stored_estimator_answers_bit_by_bit(tmp_path):
    "Its numbers lie in memory as they did in training; without its network it says which to pass."
    (x, y), net = blobs(shape=(3, 16, 16)), Grouped()
    for backbone in (None, net):
        est = IncrementalClassifier("slda", "smoke", backbone=backbone).partial_fit(x, y)
        again = IncrementalClassifier.load(est.save(tmp_path / "e.safetensors"), backbone=backbone)
        assert np.array_equal(est.scores(x), again.scores(x))
    NETWORKS.pop(est.network_name())  # as in another process
    with pytest.raises(StateError, match="pass the same one, backbone="):
        IncrementalClassifier.load(tmp_path / "e.safetensors")


@pytest.mark.slow
def test_an_estimator_exports_itself(tmp_path):
    ort, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    x, y = blobs(shape=(1, 24, 40))
    est = IncrementalClassifier("slda", "smoke").partial_fit(x, y)
    path = export_onnx(est, tmp_path / "e.onnx")
    (scores,) = ort.InferenceSession(path).run(None, {"images": x.astype(np.float32) / 255})
    assert (est.arrival_[scores.argmax(1)] == est.predict(x)).all()
    kept = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert json.loads(kept["classes"]) == ["Große Zelle", "weiße"]
    export_onnx(est.carry_.model, path, np.array([10, 11]), (24, 40), 1)
    assert json.loads({p.key: p.value for p in onnx.load(path).metadata_props}["classes"]) == [10, 11]


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("name", ["nearest", "slda"])
def test_onnx_agrees(name, tmp_path):
    import onnxruntime

    model, x = with_head(name)
    session = onnxruntime.InferenceSession(export_onnx(model, tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    scores, mine = session.run(None, {"images": x.numpy()})[0], model(x).numpy()
    assert np.abs(scores - mine).max() < 1e-4 * np.abs(mine).max() and (scores.argmax(1) == mine.argmax(1)).all()


@pytest.mark.parametrize("build", ["shufflenet_v2_x0_5", "mobilenet_v3_small"])
def test_impressions_from_networks_of_others(build):
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    net = getattr(models, build)(num_classes=5).eval()
    before = [v.clone() for v in net.state_dict().values()]
    carry = adopt(net, 32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), classes=[4, 2])
    x = torch.rand(3, 3, 32, 32)
    assert torch.allclose(
        carry.model(x),
        net(
            (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None])
            / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
        )[:, [4, 2, 0, 1, 3]],
        atol=1e-5,
    )
    made = synthesize(carry, SynthesisConfig(groups=1, group_size=6, steps=4, warmup=1, start="noise"))
    assert set(made.y.tolist()) <= {0, 1} and made.terms["statistics"][-1] < made.terms["statistics"][0]
    assert len(batch_norms(carry.model)) == len(batch_norms(net)) and all(
        torch.equal(a, b) for a, b in zip(before, net.state_dict().values())
    )


def test_an_adopted_network_can_be_saved(tmp_path):  # its normalisation layers are named twice
    from classimpression.carryover import load_carryover, save_carryover

    net = lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    carry = adopt(net().eval(), 16)
    save_carryover(tmp_path / "c.safetensors", carry, {})
    again, _ = load_carryover(tmp_path / "c.safetensors", lambda facts: adopt(net().eval(), 16).model)
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(again.model(x), carry.model(x))


def test_recommendations_keep_a_patient_in_one_fold(monkeypatch):
    from classimpression.adapters import recommend as module

    seen = []
    monkeypatch.setattr(
        module,
        "try_candidate",
        lambda c, data, sizes, fold, *a: (
            seen.append(fold) or dict(balanced=50.0, worst_class=40.0, MB=1.0, tier="M1", seconds=1.0)
        ),
    )
    x, y = torch.full((24, 3, 8, 8), 9, dtype=torch.uint8), np.arange(24) % 3
    whose = np.arange(24) // 3 // 2  # four patients with six images of all classes
    module.recommend(x, y, sizes=np.array([2, 1]), tier="M1", outside=False, patients=whose)
    assert len(seen) >= 2 and not any(set(whose[a]) & set(whose[b]) for a, b, _ in seen)
    seen.clear()
    module.recommend(x, y, tier="M1", outside=False)
    assert any(set(whose[a]) & set(whose[b]) for a, b, _ in seen)  # nobody said whose they are


def test_a_recommended_estimator_reads_the_images_that_were_tried():

    y = np.arange(80) % 2
    x = (np.random.default_rng(0).integers(0, 6000, (80, 12, 16, 3)) + 9000 * y[:, None, None, None]).astype(np.uint16)
    only = dict(candidates=(Candidate("ncm"),), profile="smoke", outside=False)
    est = recommend(x, y, layout="NHWC", bits=14, **only).estimator("smoke")
    assert (est.layout, est.bits) == ("NHWC", 14) and est.as_images(x).max() == x.max() >> 6
    assert est.partial_fit(x, y).image_shape_ == (3, 12, 16)
    assert recommend(x >> 6, y, layout="NHWC", bits=8, **only).estimator("smoke", "NCHW").layout == "NCHW"


def test_replay_on_images_that_are_not_square():
    from types import SimpleNamespace

    from classimpression.adapters.avalanche import ImpressionReplay

    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    ).eval()
    images = [(torch.rand(1, 12, 16), i % 2) for i in range(24)]
    strategy = SimpleNamespace(model=net, experience=SimpleNamespace(dataset=images))
    plugin = ImpressionReplay(SynthesisConfig(groups=1, group_size=4, steps=1, warmup=1))
    plugin.after_training_exp(strategy)
    assert plugin.carry.means.shape == (2, 1, 12, 16)
    assert synthesize(plugin.carry, plugin.synthesis, 0, 1).x.shape == (4, 1, 12, 16)


def test_one_picture_under_two_labels_is_said():
    x = np.random.default_rng(0).integers(0, 255, (24, 3, 16, 16)).astype(np.uint8)
    x[20] = x[0]
    est = IncrementalClassifier("slda", profile="smoke", layout="NCHW", settings=dict(epochs=1, k_min=1))
    with pytest.warns(UserWarning, match="2 of 24 images of X are there with another label too") as found:
        est.partial_fit(x, np.arange(24) // 12)
    assert found[0].filename == __file__


def test_one_class_first_is_no_trouble_for_a_network_that_learned_elsewhere(recwarn):
    x, y = blobs(shape=(3, 16, 16))
    IncrementalClassifier("ncm", backbone=Grouped()).partial_fit(x[y == "weiße"], y[y == "weiße"])
    assert not [w for w in recwarn if "one class" in str(w.message)]


def test_recommendations_count_people_as_the_estimator_does():

    x, y = np.random.default_rng(0).integers(256, size=(96, 3, 16, 16), dtype=np.uint8), np.arange(96) % 2
    whose = np.arange(96) // 2 % 6  # six people, and sixteen images of each
    ask = dict(profile="smoke", outside=False, candidates=(Candidate("ncm"), Candidate("fine-tuning")))
    advice = recommend(x, y, patients=whose, **ask)
    assert advice.method == "fine-tuning" and "Not tried: ncm: " in advice.reason and "patients" in advice.reason
    assert set(recommend(x, y, **ask).table.candidate) == {"ncm", "fine-tuning"}


def test_each_reason_is_told_once_and_nothing_recognised_is_no_advice():
    row = dict(candidate="ncm", tier="M1", balanced=37.5, worst_class=0.0, spread=0.0, MB=0.1, seconds=1.0, folds=2)
    said = decide([(Candidate("ncm"), row)], [("a", "too few"), ("b", "too few"), ("c", "no time")], "M1", False).reason
    assert (
        said.count("too few.") == 1
        and "Not tried: a, b: too few." in said
        and said.startswith("None that fits recognises all classes")
    )
    with pytest.raises(StateError, match="tried: ncm .tier M1.(.|\n)*--minutes"):
        decide([(Candidate("ncm"), row)], [("a", "no time")], "M0", False)
    with pytest.raises(DataError, match="nothing to tell apart"):
        recommend(np.zeros((8, 3, 8, 8), np.uint8), np.zeros(8, int))
