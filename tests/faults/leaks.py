"Images that are read where they may not be, and images that are kept where they should not be."

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from copy import copy as shallow
from copy import deepcopy
from types import SimpleNamespace

import torch
from classimpression.carryover import Extra, hand_over
from classimpression.data import as_split
from classimpression.models import NETWORKS, build_classifier
from classimpression.runs.run_store import RunResult, protocol_name
from classimpression.runs.runner import run
from classimpression.tasks import from_arrays
from torch import nn

from . import fault
from .toys import config, images, scenario

READS = {
    "test images": lambda s, copy: s.test(0),
    "a copy": lambda s, copy: s.again(),
    "a copy for validation": lambda s, copy: s.on_validation(),
    "test images of an earlier copy": lambda s, copy: copy.test(0),
    "training images of an old task of an earlier copy": lambda s, copy: copy.tasks[0].train,
    "training images of this task of an earlier copy": lambda s, copy: copy.tasks[1].train,
    "all images of an earlier copy": lambda s, copy: copy.joint(0, reference=True),
    "test images of the same data made anew": lambda s, copy: scenario().test(0),
    "an old task": lambda s, copy: s.tasks[0].train,
    "another training": lambda s, copy: copy.training(0).__enter__(),
}


@fault("leak", "in training: {what}", says="in training|is over", what=READS)
def _(folder, what):
    s = scenario()
    copy = s.again()
    with s.training(1):
        READS[what](s, copy)


OVERLAPS = {
    "all of them": lambda x, y: (x, y),
    "in another order": lambda x, y: (x.flip(0), y.flip(0)),
    "as floats": lambda x, y: (x / 255, y),
    "the first one of each class": lambda x, y: (
        torch.cat([x[::12], images(2)[0]]),
        torch.cat([y[::12], images(2)[1]]),
    ),
    "with another label": lambda x, y: (x, (y + 1) % 3),
    "half of them": lambda x, y: (torch.cat([x[::2], images(2)[0]]), torch.cat([y[::2], images(2)[1]])),
}


@fault("leak", "test images are training images: {which}", says="test images are training images too", which=OVERLAPS)
def _(folder, which):
    train = images(0)
    from_arrays(train, images(1), OVERLAPS[which](*train), sizes=[2, 1], layout="NCHW")


@fault("leak", "overlapping test images that are marked", "right")
def _(folder):
    made = from_arrays(images(0), images(1), images(0), sizes=[2, 1], layout="NCHW", name="toy", overlap="mark")
    r = run(config(folder, method="fine-tuning"), made)
    assert r.data["protocol"] == "test images in training=36" and RunResult.load(r.folder)


SPLIT = as_split(*images(0, classes=2))
TASK = SimpleNamespace(train=SPLIT, labels=[0, 1], n_seen=2)
KEPT = {
    "bytes": lambda x: x[:3],
    "floats": lambda x: x[:3] / 255,
    "doubles in 0..255": lambda x: x[:3].double(),
    "rows": lambda x: x[:3].flatten(1),
    "channels last": lambda x: x[:3].movedim(1, -1),
    "half precision": lambda x: (x[:3] / 255).half(),
}


@fault("leak", "images in Extra, declared as M1: {form}", "right", form=KEPT)
def _(folder, form):
    packed = hand_over(build_classifier("small", 3, [2]), TASK, None, False, {"x": Extra(KEPT[form](SPLIT.x), "M1")})
    assert (packed.tier, packed.images) == ("reference", 3)


class Hoarder(nn.Module):
    "A network with room for more than weights."

    n_features = 256

    def __init__(self, channels: int):
        super().__init__()
        self.net, self.seen = build_classifier("small", channels, [2]).backbone, {}
        self.register_buffer("scale", torch.ones(1))

    def features(self, x):
        return self.net(x)


HIDES = {
    "a buffer": lambda b, x: b.register_buffer("kept", x),
    "a buffer that is not stored": lambda b, x: b.register_buffer("kept", x, persistent=False),
    "an attribute": lambda b, x: setattr(b, "kept", x),
    "a list": lambda b, x: setattr(b, "kept", [x]),
    "a dictionary of lists": lambda b, x: b.seen.update(old=[x]),
    "a split": lambda b, x: setattr(b, "kept", SPLIT.take([0, 1, 2])),
}


@fault("leak", "images in {where} of a registered network", "right", where=HIDES)
def _(folder, where):
    NETWORKS["hoarder"] = Hoarder
    try:
        model = build_classifier("hoarder", 3, [2])
        HIDES[where](model.backbone, SPLIT.x[:3].clone())
        packed = hand_over(model, TASK, None, False)
    finally:
        del NETWORKS["hoarder"]
    assert (packed.tier, packed.images) == ("reference", 3) and packed.bytes > build_bytes() + 3 * 16 * 16 * 3 - 1


def build_bytes() -> int:
    "Bytes of the network alone."
    return hand_over(build_classifier("small", 3, [2]), TASK, None, False).bytes


@fault("leak", "a constant buffer of a registered network is no memory", "right")
def _(folder):
    NETWORKS["hoarder"] = Hoarder
    try:
        assert hand_over(build_classifier("hoarder", 3, [2]), TASK, None, False).tier == "M0"
    finally:
        del NETWORKS["hoarder"]


LABELS = {
    "k_min=1": dict(k_min=1),
    "pool=test": dict(pool="test"),
    "pool=all-val": dict(pool="all-val"),
    "selection=test": dict(selection="test"),
    "selection=new-val": dict(selection="new-val"),
    "bn_update=True": dict(bn_update=True),
    "eval_split=val": dict(eval_split="val"),
}


@fault("label", "a run with {label} is called strict", "right", label=LABELS)
def _(folder, label):
    assert protocol_name(config(folder, **LABELS[label])) == label


@fault("leak", "validation images are test images", says="test images are validation images too")
def _(folder):
    from_arrays(images(0), images(1), images(1), sizes=[2, 1], layout="NCHW")


@fault("leak", "validation images are test images, and that is marked", "right")
def _(folder):
    made = from_arrays(images(0), images(1), images(1), sizes=[2, 1], layout="NCHW", overlap="mark")
    assert made.facts()["shared_images"]["val, test"] == 36


HANDS = {
    "a thread that asks the scenario": lambda s, copy: threaded(lambda: s.test(0)),
    "a deep copy": lambda s, copy: deepcopy(s).test(0),
    "a shallow copy": lambda s, copy: shallow(s).test(0),
    "a copy through pickle": lambda s, copy: pickle.loads(pickle.dumps(s)).test(0),
    "a deep copy of an old task": lambda s, copy: deepcopy(s.tasks[0]).train,
    "a loop over all tasks": lambda s, copy: [t.train for t in s.tasks],
    "validation images of an old task": lambda s, copy: s.tasks[0].val,
}


def threaded(ask):
    "What a function gives or raises in a thread of its own."
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(ask).result()


@fault("leak", "in training, by {what}", says="in training|is over", what=HANDS)
def _(folder, what):
    s = scenario()
    copy = s.again()
    with s.training(1):
        HANDS[what](s, copy)


@fault(
    "leak",
    "in training, by a thread that asks an earlier copy",
    says="in training",
    known="a thread has a context of its own, so that a run of the same data in another thread can go on",
)
def _(folder):
    s = scenario()
    copy = s.again()
    with s.training(1):
        threaded(lambda: copy.test(0))


@fault("leak", "a training that was entered and never left", says="in training")
def _(folder):
    s = scenario()
    block = s.training(0)
    block.__enter__()
    try:
        s.test(0)
    finally:
        block.__exit__(None, None, None)


@fault("leak", "a training that ended in an error lets nothing stay open", "right")
def _(folder):
    s = scenario()
    try:
        with s.training(0):
            raise KeyError("x")
    except KeyError:
        pass
    assert len(s.test(0)) and s._store.extra == {} and s._store.cut == {}
