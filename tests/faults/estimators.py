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


@fault("label", "a class of the second task looks like one of the first", says="two classes look the same")
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
    new().fit(np.zeros_like(X), Y)


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
