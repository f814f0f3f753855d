"Networks and class means of other people, as `adopt` gets them."

from __future__ import annotations

import numpy as np
import torch
from classimpression.adapters.adopt import adopt
from torch import nn

from . import fault


class Net(nn.Module):
    "A small classifier with batch normalisation."

    def __init__(self, k: int = 4):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.fc = nn.Linear(8, k)

    def forward(self, x):
        return self.fc(self.body(x).flatten(1))


class Odd(Net):
    "The same with something else as its answer."

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return self.answer(super().forward(x))


def raises(out):
    raise KeyError("secret")


def leaves(out):
    raise SystemExit(0)


ANSWERS = {
    "a list": lambda out: [out],
    "numpy": lambda out: out.detach().numpy(),
    "nothing": lambda out: None,
    "a dictionary without logits": lambda out: {"scores": out},
    "one answer for the batch": lambda out: out.mean(0),
    "a map of answers": lambda out: out[:, :, None, None].expand(-1, -1, 2, 2),
    "no classes": lambda out: out[:, :0],
    "not a number": lambda out: out * float("nan"),
    "infinity": lambda out: out + float("inf"),
    "complex numbers": lambda out: torch.complex(out, out),
    "class numbers": lambda out: out.argmax(1, keepdim=True),
    "a KeyError": raises,
    "the end of the process": leaves,
    "other answers each time": lambda out: torch.rand_like(out),
}


@fault("label", "adopt: a network that answers with {what}", what=ANSWERS)
def _(folder, what):
    adopt(Odd(ANSWERS[what]), 16)


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.LazyLinear(4))


def with_norm(**state) -> nn.Module:
    net = Net()
    for k, v in state.items():
        getattr(net.body[1], k).fill_(v)
    return net


def no_copy() -> nn.Module:
    net = Net()
    net.seen = net.fc.weight * 2  # part of a graph: it cannot be copied
    return net


NETWORKS = {
    "a class, not an object": lambda: Net,
    "a function": lambda: lambda x: x,
    "a state dict": lambda: Net().state_dict(),
    "a path": lambda: "model.pt",
    "layers that have no size yet": lazy,
    "weights on no device": lambda: Net().to("meta"),
    "negative variances": lambda: with_norm(running_var=-1.0),
    "variances that are not a number": lambda: with_norm(running_var=float("nan")),
    "statistics that were never tracked": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), nn.Flatten(), nn.Linear(8 * 14 * 14, 4)
    ),
    "instance normalisation": lambda: nn.Sequential(nn.InstanceNorm2d(3), nn.Flatten(), nn.Linear(768, 4)),
    "another number of channels": lambda: nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)),
}


@fault("label", "adopt: a network with {what}", what=NETWORKS)
def _(folder, what):
    adopt(NETWORKS[what](), 16)


@fault("label", "adopt: a network that holds a tensor of a graph", says="cannot be copied")
def _(folder):
    adopt(no_copy(), 16)


@fault("label", "adopt: a network in training mode with dropout answers the same twice", "right")
def _(folder):
    net = nn.Sequential(Net(), nn.Dropout(0.5)).train()
    model, x = adopt(net, 16).model, torch.rand(2, 3, 16, 16)
    assert torch.equal(model(x), model(x)) and net.training


ARGUMENTS = {
    "size 0": dict(size=0),
    "size -3": dict(size=-3),
    "size 16.5": dict(size=16.5),
    "size '16'": dict(size="16"),
    "size of three": dict(size=(3, 16, 16)),
    "size of nothing": dict(size=()),
    "size None": dict(size=None),
    "size of a million": dict(size=10**6),
    "no channels": dict(channels=0),
    "std 0": dict(std=0.0),
    "std of two": dict(std=(0.2, 0.3)),
    "mean as text": dict(mean="imagenet"),
    "mean None": dict(mean=None),
    "classes beyond": dict(classes=[4]),
    "classes below": dict(classes=[-1]),
    "a class twice": dict(classes=[1, 1]),
    "no class": dict(classes=[]),
    "classes as text": dict(classes="01"),
    "classes as a number": dict(classes=2),
    "half a class": dict(classes=[0.5]),
    "true as a class": dict(classes=[True, 2]),
    "means as text": dict(means="mean.png"),
    "means of another size": dict(means=np.zeros((4, 3, 8, 8))),
    "means with the channels last": dict(means=np.zeros((4, 16, 16, 3))),
    "means that hold objects": dict(means=np.full((4, 3, 16, 16), None)),
    "means of whole numbers up to 200": dict(means=np.full((4, 3, 16, 16), 200)),
    "complex means": dict(means=np.zeros((4, 3, 16, 16), complex)),
}


@fault("label", "adopt: {what}", what=ARGUMENTS)
def _(folder, what):
    adopt(Net(), **dict(size=16) | ARGUMENTS[what])


@fault(
    "label",
    "adopt: {what} is right",
    "right",
    what=("a pair as size", "numpy numbers", "one class", "means of 16-bit floats"),
)
def _(folder, what):
    args = {"a pair as size": dict(size=[16, 16]), "numpy numbers": dict(size=np.int64(16), channels=np.int8(3))}
    args |= {"one class": dict(size=16, classes=np.array([3]))}
    args |= {"means of 16-bit floats": dict(size=16, means=torch.rand(4, 3, 16, 16).half())}
    assert adopt(Net(), **args[what]).model(torch.rand(2, 3, 16, 16)).shape == (2, 4)


class Rounds(Net):
    def forward(self, x):
        return super().forward((x * 255).round() / 255)


class Detaches(Net):
    def forward(self, x):
        return super().forward(x.detach())


class Lists(Net):
    def forward(self, x):
        return super().forward(torch.tensor(x.tolist()))


class Silent(Net):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


@fault(
    "numbers",
    "adopt: a network that no gradient passes: {how}",
    says="no gradient",
    how=("rounding", "detach", "lists", "no_grad", "zeros"),
)
def _(folder, how):
    net = dict(rounding=Rounds, detach=Detaches, lists=Lists, no_grad=Silent, zeros=Net)[how]()
    if how == "zeros":
        for p in net.parameters():
            p.data.zero_()
    adopt(net, 16)


def replaced() -> nn.Module:
    net = Net()
    net.forward = lambda x: Net.forward(net, x)  # a copy calls the original
    return net


def pruned() -> nn.Module:
    from torch.nn.utils import prune

    net = Net()
    prune.l1_unstructured(net.body[0], "weight", 0.5)
    return net


STRANGE = {
    "a softmax at its end": (lambda: Odd(lambda out: out.softmax(1)), "probabilities"),
    "several answers": (lambda: Odd(lambda out: (out, out.mean())), "several things"),
    "a forward that holds the original": (replaced, "none of its normalisation layers"),
    "weights that are pruned on the fly": (pruned, "prune.remove"),
    "quantised layers": (lambda: torch.ao.quantization.quantize_dynamic(Net().eval(), {nn.Linear}), "is quantised"),
    "an input that it changes in place": (lambda: nn.Sequential(InPlace(), Net()), "differs from call to call"),
    "two inputs": (lambda: Two(), "missing 1 required"),
    "an answer that depends on how often it was asked": (lambda: Counts(), "differs from call to call"),
    "a list of modules": (lambda: nn.ModuleList([Net()]), "does not map images"),
    "an embedding": (lambda: nn.Embedding(3, 4), "does not map images"),
}


class InPlace(nn.Module):
    def forward(self, x):
        x -= 0.5
        return x


class Two(Net):
    def forward(self, x, mask):
        return super().forward(x)


class Counts(Net):
    n = 0

    def forward(self, x):
        self.n += 1
        return super().forward(x) * self.n


@fault("label", "adopt: a network with {what}, said", what=STRANGE)
def _(folder, what):
    make, says = STRANGE[what]
    try:
        adopt(make(), 16)
    except ValueError as e:
        assert says in str(e), str(e)
        raise


ODD_MEANS = {
    "a masked array": lambda: np.ma.masked_array(np.zeros((4, 3, 16, 16)), True),
    "a sparse tensor": lambda: torch.zeros(4, 3, 16, 16).to_sparse(),
    "a tensor on no device": lambda: torch.zeros(4, 3, 16, 16, device="meta"),
    "pictures": lambda: [object()] * 4,
}


@fault("numbers", "adopt: means that are {what}", says="means", what=ODD_MEANS)
def _(folder, what):
    adopt(Net(), 16, means=ODD_MEANS[what]())


@fault("numbers", "adopt: a normalisation for 0..255 ({what})", says="divide mean and std by 255", what=("mean", "std"))
def _(folder, what):
    adopt(
        Net(),
        16,
        **dict(mean=dict(mean=(123.7, 116.3, 103.5), std=0.2), std=dict(mean=0.5, std=(58.4, 57.1, 57.4)))[what],
    )


@fault("label", "adopt: a logarithm of probabilities, or gradients that are wanted, are right", "right")
def _(folder):
    adopt(Odd(lambda out: out.log_softmax(1)), 16, means=torch.zeros(4, 3, 16, 16, requires_grad=True))


@fault("environment", "impressions are made within {where}", "right", where=("no_grad", "inference_mode", "64 bits"))
def _(folder, where):
    from classimpression.synthesis import SynthesisConfig, synthesize

    small = SynthesisConfig(groups=1, group_size=2, steps=2, warmup=1)
    net = Net()
    wanted = synthesize(adopt(net, 16), small).x
    if where == "64 bits":
        torch.set_default_dtype(torch.float64)
    try:
        with {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}.get(where, torch.enable_grad)():
            assert torch.equal(synthesize(adopt(net, 16), small).x, wanted)
    finally:
        torch.set_default_dtype(torch.float32)
