"What people do with the estimator: labels of odd kinds, weights, rows, files that were changed."

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from classimpression.adapters.estimator import IncrementalClassifier, as_labels, number_labels
from classimpression.carryover import load_tensors, save_tensors

from . import fault
from .toys import images

X, Y = (a.numpy() for a in images(0, classes=2))


def new(**more) -> IncrementalClassifier:
    "The estimator that learns fastest."
    return IncrementalClassifier("slda", "smoke", settings=dict(epochs=1, k_min=1), **more)


@lru_cache(maxsize=None)
def learned() -> IncrementalClassifier:
    "An estimator of two classes that nobody may change."
    torch.set_num_threads(1)
    return new().fit(X, Y)


LABELS = {
    "a whole number and text": [1, "1"] * 12,
    "true and 2": [True, 2] * 12,
    "true and text": [True, "true"] * 12,
    "text in an array of objects beside numbers": np.array([0, "a"] * 12, dtype=object),
    "floats with a rest, as objects": np.array([0.5, 1.5] * 12, dtype=object),
    "lists in lists": [[[0]], [[1]]] * 12,
    "dictionaries": [{"a": 1}, {"a": 2}] * 12,
    "1e300": [1e300, 0] * 12,
    "2**70": [2**70, 0] * 12,
    "infinity": [np.inf, 0] * 12,
    "not a number": [np.nan, 0] * 12,
    "not a number beside text": np.array([np.nan, "a"] * 12, dtype=object),
    "nothing": [None, 1] * 12,
    "complex numbers": [1j, 0] * 12,
    "dates": np.array(["2020-01-01", "2021-01-01"] * 12, dtype="datetime64[D]"),
    "bytes that are no text": [b"\xff", b"a"] * 12,
    "one-hot rows": np.eye(2)[Y],
    "one label for all": [0],
    "a number": 0,
    "an empty list": [],
    "words": "ab" * 12,
    "names that differ by a space": ["a", "a "] * 12,
    "names that differ by a sign of no width": ["a", "a\u200b"] * 12,
    "names that differ by how an accent is stored": ["\u00e9", "e\u0301"] * 12,
}


@fault("label", "the estimator learns from {what}", what=LABELS)
def _(folder, what):
    new().fit(X, LABELS[what])


ODD_TENSORS = {
    "sparse": lambda x: torch.tensor(x).to_sparse(),
    "quantised": lambda x: torch.quantize_per_tensor(torch.tensor(x).float(), 1.0, 0, torch.quint8),
}


@fault("environment", "the estimator learns from a {kind} tensor", says="sparse", kind=ODD_TENSORS)
def _(folder, kind):
    new().fit(ODD_TENSORS[kind](np.asarray(X)), Y)


@fault("label", "a class of the second task looks like one of the first", says="there twice")
def _(folder):
    number_labels(["b ", "c"], np.array(["a", "b"]))


@fault("storage", "the estimator is saved as a folder that is there", says="it is a folder")
def _(folder):
    new().fit(X, Y).save(folder)


@fault("environment", "the estimator computes on {device}", says="device", device=("gpu", "meta", "cuda:77", "CPU", 3))
def _(folder, device):
    IncrementalClassifier("ncm", "smoke", settings=dict(device=device)).fit(X, Y)


GOOD = {
    "-1": ([-1, 1] * 12, [-1, 1]),
    "true and false": ([True, False] * 12, [False, True]),
    "floats that are whole": (np.array([2.0, 5.0] * 12, dtype=object), [2, 5]),
    "bytes": ([b"a", b"b"] * 12, ["a", "b"]),
    "numpy's whole numbers in a list": ([np.int8(3), np.uint16(4)] * 12, [3, 4]),
    "numpy's text in a list": ([np.str_("b"), "a"] * 12, ["a", "b"]),
    "unsigned 64 bits": (np.array([2**60, 3] * 12, np.uint64), [3, 2**60]),
}


@fault("label", "the estimator takes {what} as labels", "right", what=GOOD)
def _(folder, what):
    given, wanted = GOOD[what]
    assert sorted(set(as_labels(given).tolist())) == wanted


@fault(
    "label",
    "the estimator scores with {what} as weights",
    says="sample_weight",
    what=("zeros", "negative numbers", "too few", "text", "not a number"),
)
def _(folder, what):
    odd = dict(zeros=np.zeros(24), text=["a"] * 24)
    odd |= {"negative numbers": -np.ones(24), "too few": np.ones(5), "not a number": np.full(24, np.nan)}
    learned().score(X, Y, sample_weight=odd[what])


@fault(
    "label",
    "the estimator learns with weights that are {what}",
    says="sample_weight",
    what=("negative", "text", "too few", "not a number"),
)
def _(folder, what):
    odd = dict(negative=-np.ones(24), text=["a"] * 24) | {"too few": np.ones(5), "not a number": np.full(24, np.nan)}
    new().fit(X, Y, sample_weight=odd[what])


SHAPES = {
    "text": "3x16x16",
    "a number": 768,
    "two open sides": (-1, -1, 16),
    "a side of 0": (3, 0, 16),
    "a negative side": (3, -2, 16),
    "half a pixel": (3, 16.5, 16),
    "two sides": (48, 16),
    "nothing inside": (),
}


@fault("label", "an estimator for images of the shape: {what}", says="image_shape", what=SHAPES)
def _(folder, what):
    new(image_shape=SHAPES[what]).fit(X.reshape(24, -1), Y)


@fault("label", "the estimator in the layout {layout!r}", says="layout", layout=("CHW", "nchw", None, 3))
def _(folder, layout):
    new(layout=layout).fit(X, Y)


@fault("label", "the estimator learns from images that are all alike", says="alike")
def _(folder):
    new().fit(np.full_like(X, 9), Y)


@fault("label", "the estimator's second task has images of another size", says="resize")
def _(folder):
    from copy import deepcopy

    deepcopy(learned()).partial_fit(X[:, :, :8, :8], Y + 2)


@fault("label", "the estimator scores text against numbers", says="these labels are")
def _(folder):
    learned().score(X, Y.astype(str))


def changed(folder, **facts):
    "A stored estimator whose facts were changed, with a digest made anew."
    path = learned().save(folder / "a.safetensors")
    tensors, meta = load_tensors(path)
    meta["estimator"] |= facts
    IncrementalClassifier.load(save_tensors(path, tensors, meta))


FACTS = {
    "one class twice": dict(classes=[0, 0]),
    "a number and text as classes": dict(classes=[0, "0"]),
    "true and 1 as classes": dict(classes=[True, 1]),
    "sizes of another sequence": dict(sizes=[3]),
    "a size of 0": dict(sizes=[2, 0]),
    "images of 10^9 pixels": dict(image_shape=[3, 10**5, 10**5]),
    "another method": dict(params=dict(method="lwf", profile="smoke")),
    "a method that is none": dict(params=dict(method="../evil")),
    "a layout that is none": dict(params=dict(layout="CHW")),
    "settings that are a list": dict(params=dict(settings=["epochs"])),
    "settings that are none": dict(params=dict(settings=dict(speed=9))),
    "a seed that is text": dict(params=dict(random_state="x")),
    "an unknown parameter": dict(params=dict(evil=1)),
}


@fault("identity", "a stored estimator with {what}, digest made anew", what=FACTS)
def _(folder, what):
    changed(folder, **FACTS[what])


@fault("identity", "a stored estimator, stored again and loaded", "right")
def _(folder):
    again = IncrementalClassifier.load(learned().save(folder / "a.safetensors"))
    assert np.allclose(again.predict_proba(X), learned().predict_proba(X), atol=1e-5)


ODD_LABELS = {
    "a masked array with gaps": np.ma.masked_array(Y, Y == 1),
    "pairs of an index of two levels": [(0, 0), (1, 1)] * 12,
    "a generator": (y for y in Y),
    "a set": {0, 1},
}


@fault("label", "the estimator learns from labels that are {what}", says="labels", what=ODD_LABELS)
def _(folder, what):
    new().fit(X, ODD_LABELS[what])


@fault("label", "the estimator learns from labels of pandas with a missing one", says="missing")
def _(folder):
    import pandas as pd

    new().fit(X, pd.Series([0, None] * 12, dtype="Int64"))


def more_labels() -> dict:
    "Labels as programs make them, and the classes that they mean."
    import pandas as pd

    named = np.array(["a", "b"])[Y]
    newer = hasattr(np.dtypes, "StringDType")  # numpy 2
    more = {"numpy's text of any length": (named.astype(np.dtypes.StringDType()), ["a", "b"])} if newer else {}
    return more | {
        "pandas' text": (pd.Series(named, dtype="string"), ["a", "b"]),
        "pandas' whole numbers": (pd.Series(Y, dtype="Int64"), [0, 1]),
        "pandas' truth values": (pd.Series(Y == 1, dtype="boolean"), [False, True]),
        "a list of arrays of no axis": ([np.array(y) for y in Y], [0, 1]),
        "a list of tensors, as data sets give them": ([torch.tensor(int(y)) for y in Y], [0, 1]),
        "a tensor with a gradient": (torch.tensor(Y, dtype=torch.float32, requires_grad=True), [0, 1]),
        "a table of one column": (pd.DataFrame({"y": Y}), [0, 1]),
        "half floats": (Y.astype(np.float16), [0, 1]),
    }


@fault("label", "the estimator reads labels: {what}", "right", what=sorted(more_labels()))
def _(folder, what):
    given, wanted = more_labels()[what]
    assert sorted(set(as_labels(given).tolist())) == wanted


ODD_IMAGES = {
    "a masked array with gaps": (np.ma.masked_array(X, X > 100), "masked array with gaps"),
    "complex numbers with a bit of conjugation": (torch.tensor(X).to(torch.complex64).conj(), "complex"),
    "bytes with a sign": (X.astype(np.int8), "not int8"),
    "floats in -1..1": (X / 127.5 - 1, "negative numbers"),
    "floats that leave [0, 1] by more than rounding": (X / X.max() * 1.001, "must lie in"),
    "two sizes": ([x if i else x[:, :8] for i, x in enumerate(X)], "not one rectangular array"),
    "a data set of torch": (torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y)), "images"),
    "a path": ("images.npz", "must be numbers"),
    "nothing": (None, "must be numbers"),
}


@fault("numbers", "the estimator learns from images that are {what}", what=ODD_IMAGES)
def _(folder, what):
    images, says = ODD_IMAGES[what]
    try:
        new().fit(images, Y)
    except ValueError as e:
        assert says in str(e), str(e)
        raise


FINE_IMAGES = {
    "half floats": lambda: (X / 255).astype(np.float16),
    "floats of 128 bits": lambda: (X / 255).astype(np.longdouble),
    "brain floats": lambda: torch.tensor(X / 255).bfloat16(),
    "a tensor with a gradient": lambda: torch.tensor(X / 255).float().requires_grad_(),
    "steps backwards": lambda: X[:, :, ::-1][:, :, ::-1],
    "floats beyond 1 by rounding": lambda: X / 255 * (1 + 1e-7) + (X == X.max()) * 1e-7,
    "a list of tensors": lambda: [torch.tensor(x) for x in X],
    "a masked array without gaps": lambda: np.ma.masked_array(X),
}


@fault("numbers", "the estimator reads images: {what}", "right", what=FINE_IMAGES)
def _(folder, what):
    x = learned().as_images(FINE_IMAGES[what]())
    assert np.abs(x.numpy().astype(int) - X).max() <= (1 if "brain" in what or "half" in what else 0)


ROWS = X.reshape(len(X), -1)


def rows(**more) -> IncrementalClassifier:
    return new(image_shape=(3, 16, 16), **more)


def usages() -> dict:
    "What scikit-learn's own tools do with an estimator; each gives what has to be true."
    import sklearn
    from sklearn.base import clone
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.ensemble import StackingClassifier
    from sklearn.frozen import FrozenEstimator
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score, cross_validate
    from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier
    from sklearn.multioutput import MultiOutputClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, MinMaxScaler

    def routed(**config):
        with sklearn.config_context(enable_metadata_routing=True):
            est = clone(rows().set_fit_request(sample_weight=True).set_score_request(sample_weight=False))
            fits = dict(params=dict(sample_weight=np.ones(len(Y))), error_score="raise")
            return cross_validate(est, ROWS, Y, cv=2, **fits)["test_score"].min() > 0.9

    def tables():
        import pandas as pd

        with sklearn.config_context(transform_output="pandas"):
            pipe = make_pipeline(MinMaxScaler(), rows())
            return pipe.fit(pd.DataFrame(ROWS).rename(columns=str), Y).score(ROWS, Y) > 0.9

    def plain_routing():
        with sklearn.config_context(enable_metadata_routing=True):
            return (
                cross_val_score(make_pipeline(FunctionTransformer(), rows()), ROWS, Y, cv=2, error_score="raise").min()
                > 0.9
            )

    grid = dict(settings=[dict(epochs=1, k_min=1), dict(epochs=2, k_min=1)])
    return {
        "a scaler to [0, 1] in front": lambda: make_pipeline(MinMaxScaler(), rows()).fit(ROWS, Y).score(ROWS, Y) > 0.9,
        "cross_val_score": lambda: cross_val_score(new(), X, Y, cv=3, error_score="raise").min() > 0.9,
        "cross_val_predict": lambda: cross_val_predict(new(), X, Y, cv=2, method="predict_proba").shape == (24, 2),
        "a search over settings": lambda: (
            GridSearchCV(new(), grid, cv=2, error_score="raise").fit(X, Y).best_score_ > 0.9
        ),
        "calibration": lambda: (CalibratedClassifierCV(rows(), cv=2).fit(ROWS, Y).predict(ROWS) == Y).mean() > 0.9,
        "calibration of one that is frozen": lambda: (
            CalibratedClassifierCV(FrozenEstimator(rows().fit(ROWS, Y))).fit(ROWS, Y).predict_proba(ROWS).shape
            == (24, 2)
        ),
        "stacking": lambda: (
            StackingClassifier([("a", rows())], LogisticRegression(), cv=2).fit(ROWS, Y).score(ROWS, Y) > 0.9
        ),
        "one against the rest": lambda: OneVsRestClassifier(rows()).fit(ROWS, Y).score(ROWS, Y) > 0.9,
        "one against one": lambda: OneVsOneClassifier(rows()).fit(ROWS, Y).score(ROWS, Y) > 0.9,
        "two targets": lambda: MultiOutputClassifier(rows()).fit(ROWS, np.c_[Y, 1 - Y]).predict(ROWS).shape == (24, 2),
        "weights that are routed": routed,
        "routing without weights": plain_routing,
        "tables between the steps": tables,
        "a clone of one that has learned": lambda: not hasattr(clone(learned()), "carry_"),
    }


USAGES = (
    "a scaler to [0, 1] in front|cross_val_score|cross_val_predict|a search over settings|calibration|stacking|"
    "calibration of one that is frozen|one against the rest|one against one|two targets|weights that are routed|"
    "routing without weights|tables between the steps|a clone of one that has learned"
).split("|")


@fault("environment", "scikit-learn: {what}", "right", slow=True, what=USAGES)
def _(folder, what):
    assert sorted(USAGES) == sorted(usages())
    assert usages()[what]()


@fault(
    "label",
    "the estimator predicts from a table whose columns are {what}",
    says="feature names",
    what=("turned", "others"),
)
def _(folder, what):
    import pandas as pd

    table = pd.DataFrame(ROWS).rename(columns=str)
    est = rows().fit(table, Y)
    est.predict(table[table.columns[::-1]] if what == "turned" else table.add_prefix("p"))


@fault("environment", "the estimator learns within {where}", "right", where=("no_grad", "inference_mode", "64 bits"))
def _(folder, where):
    if where == "64 bits":
        torch.set_default_dtype(torch.float64)
    try:
        with {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}.get(where, torch.enable_grad)():
            assert new().fit(X, Y).score(X, Y) > 0.9
    finally:
        torch.set_default_dtype(torch.float32)
