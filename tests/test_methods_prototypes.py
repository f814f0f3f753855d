"PASS, SSRE and FeTrIL against computations by hand, and against the bugs of their ports."

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from classimpression.methods import prototypes
from classimpression.carryover import Extra, hand_over, load_carryover, save_carryover
from classimpression.core.errors import ConfigError, StateError
from classimpression.data import tensor_digest
from classimpression.core.seeding import seeded
from classimpression.heads import LinearHead
from classimpression.methods.registry import find_method
from classimpression.models import batch_norms, build_classifier, frozen_copy, rebuild
from classimpression.methods.prototypes import Adapted, Turned, add_adapters, draw_prototypes, familiarity
from classimpression.methods.prototypes import merge_adapters, nearest_class, prototype_radius
from classimpression.methods.prototypes import pseudo_features, turn, turned_batches, turned_labels
from classimpression.settings import TrainConfig
from classimpression.training import TaskData, accuracy_of, epoch_batches, start_model, teacher_features

NAMES = ("pass", "ssre", "fetril")
CFG = TrainConfig(epochs=1, batch_size=20)
KNOBS = {"fetril": dict(head_epochs=3)}
bits = lambda module: tensor_digest(*module.state_dict().values())


def step(name, scenario, t, carry, **changes):
    "Task `t` by the method: model, history, carryover."
    m = find_method(name)
    hyper_parameters = KNOBS.get(name, {}) | {k: changes.pop(k) for k in list(changes) if k in m.hyper_parameters}
    cfg = replace(CFG, **(m.training if t or m.first else {}) | changes)
    with scenario.training(t) as task:
        model, h = m.fit(carry, task, None, cfg, **hyper_parameters)
        return model, h, hand_over(model, task, carry, m.means, h.extra)


def through(name, scenario, **changes):
    "All tasks of the scenario."
    carry, found = None, []
    for t in range(len(scenario.sizes)):
        found.append(step(name, scenario, t, carry, **changes))
        carry = found[-1][2]
    return found


def images(scenario, t):
    "Training images of one task, for a look after the run."
    with scenario.again().training(t) as task:
        return task.train


def by_hand(model, split):
    "Mean features, one image at a time, in numpy."
    with torch.no_grad():
        f = np.concatenate([model.eval().features(split.x[i : i + 1].float() / 255).numpy() for i in range(len(split))])
    return np.stack([f[split.y.numpy() == k].mean(0) for k in sorted(set(split.y.tolist()))])


# what all three have in common


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sizes,channels", [((1, 3), 1), ((3, 1, 1), 3)])
def test_prototypes_cover_all_classes_and_old_ones_stay(toy, name, sizes, channels):
    scenario = toy(sizes, channels)
    done, total = through(name, scenario), 0
    for t, (model, h, carry) in enumerate(done):
        mu, n_old, total = carry.extra["prototypes"].value, total, total + sizes[t]
        assert (
            mu.shape == (total, 256)
            and mu.dtype == torch.float32
            and carry.extra["prototypes"].tier == carry.tier == "M1"
            and carry.means is None
        )
        if t:
            assert torch.equal(mu[:n_old], done[t - 1][2].extra["prototypes"].value)
        np.testing.assert_allclose(
            mu[n_old:].numpy(), by_hand(model, images(scenario, t)), atol=1e-5
        )  # measured in evaluation mode
        assert all(map(math.isfinite, sum(h.terms.values(), []))) and model.head.n_classes == total
        assert model(torch.rand(2, channels, 16, 16)).shape == (2, total) and not model.training


@pytest.mark.parametrize("name", NAMES)
def test_the_carryover_survives_a_file_and_the_teacher_a_task(toy, tmp_path, name):
    scenario = toy((2, 1))
    model, h, carry = step(name, scenario, 0, None)
    other, _ = load_carryover(save_carryover(tmp_path / "c.safetensors", carry, model.spec), rebuild)
    before, state = bits(carry.model), torch.random.get_rng_state()
    a, _, _ = step(name, scenario, 1, carry)
    with scenario.again().training(0):
        pass
    b, _, following = step(name, scenario.again(), 1, other)
    assert bits(a) == bits(b) and bits(carry.model) == before and torch.equal(state, torch.random.get_rng_state())
    again, _ = load_carryover(
        save_carryover(tmp_path / "d.safetensors", following, b.spec), rebuild
    )  # the structure is that of the spec
    assert bits(again.model) == bits(b) and all(
        torch.equal(v.value, again.extra[k].value) for k, v in following.extra.items()
    )


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_and_another_seed(toy, name):
    scenario = toy((2, 2), 1)
    a, h, carry = through(name, scenario, dtype="bfloat16")[-1]
    assert all(map(math.isfinite, sum(h.terms.values(), []))) and carry.extra["prototypes"].value.dtype == torch.float32
    assert bits(a) != bits(through(name, scenario.again(), dtype="bfloat16", seed=1)[-1][0])


@pytest.mark.parametrize("name", NAMES)
def test_a_foreign_carryover_is_refused(toy, name):
    scenario = toy()
    carry = step("fine-tuning", scenario, 0, None)[2]
    with pytest.raises(StateError, match="no prototypes"):
        step(name, scenario, 1, carry)


def test_impossible_settings_are_refused(toy):
    with pytest.raises(ConfigError, match="temperature"):
        step("pass", toy(), 0, None, temperature=0)
    with pytest.raises(ConfigError, match="temperature"):
        step("ssre", toy(), 0, None, temperature=-1.0)
    with pytest.raises(ConfigError, match="similarity"):
        nearest_class(torch.zeros(1, 2), torch.zeros(1, 2), "manhattan")


def test_old_classes_are_drawn_equally_often_with_gaussian_noise():
    mu = torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0]])
    with seeded(0, "test"):
        (p, c), (q, d) = draw_prototypes(mu, 6000, 2.0), draw_prototypes(mu, 7)
    assert abs(torch.bincount(c) / 6000 - 1 / 3).max() < 0.03 and torch.equal(q, mu[d])
    noise = (p - mu[c]).numpy()
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 2) < 0.05 and abs(np.corrcoef(noise.T)[0, 1]) < 0.05


# PASS


def test_rotations_and_their_labels():
    x, y = torch.rand(3, 2, 5, 5), torch.tensor([2, 0, 7])
    turned, labels = turn(x), turned_labels(y)
    for i in range(12):
        b, k = i % 3, labels[i].item() % 4
        assert labels[i].item() // 4 == y[b].item() and k == i // 3
        np.testing.assert_array_equal(turned[i].numpy(), np.rot90(x[b].numpy(), k, (1, 2)))


@pytest.mark.parametrize("shift", [0, 2])
def test_student_and_teacher_see_the_same_rotated_images(toy, shift):
    "Features that are computed once (shift 0), and features of augmented images."
    scenario, cfg = toy(), replace(CFG, batch_size=7, augment_shift=shift, augment_flip=bool(shift))
    teacher = frozen_copy(build_classifier("small", 3, [2]))
    with scenario.training(0) as task:
        m = TaskData(task, None, cfg, Turned(teacher))
        found, plain = list(turned_batches(m, 0)), list(epoch_batches(m, 0))
    assert m.cached == (shift == 0)
    for b, p in zip(found, plain, strict=True):
        torch.testing.assert_close(b.old, teacher_features(teacher, b.x), atol=1e-5, rtol=1e-5)
        assert torch.equal(b.x, turn(p.x)) and torch.equal(b.x[: len(p.x)], p.x) and len(b.y) == 4 * len(p.y)
    assert sum(len(b.y) for b in found) == 4 * len(images(scenario, 0))
    quarter = len(found[0].y) // 4
    assert (
        found[0].old[:quarter] - found[0].old[quarter : 2 * quarter]
    ).abs().max() > 1e-3  # not four times the upright ones


def test_the_upright_columns_answer(toy):
    model, _, carry = through("pass", toy())[-1]
    x = torch.rand(5, 3, 16, 16)
    with torch.no_grad():
        logits = F.linear(model.features(x), torch.cat(list(model.head.blocks)), torch.cat(list(model.head.offsets)))
    assert logits.shape == (5, 16) and model.head.spec == dict(
        kind="linear", n_features=256, sizes=[2, 2], bias=True, copies=4
    )
    torch.testing.assert_close(model(x), logits[:, [0, 4, 8, 12]])


def test_the_radius_is_that_of_the_first_task(toy):
    scenario = toy((2, 2, 1))
    done = through("pass", scenario)
    first = images(scenario, 0)
    f = teacher_features(done[0][0], first.x).numpy()
    traces = [np.trace(np.cov(f[first.y.numpy() == c].T)) for c in (0, 1)]
    r = [carry.extra["radius"].value for _, _, carry in done]
    np.testing.assert_allclose(float(r[0]), np.sqrt(np.mean(traces) / 256), rtol=1e-4)
    assert torch.equal(r[0], r[1]) and torch.equal(r[0], r[2]) and r[0].numel() == 1
    assert prototype_radius(torch.rand(1, 3), torch.tensor([0]), [0]) == 0  # one image has no spread


def test_one_step_of_pass_by_hand(toy):
    "One batch and plain SGD: loss terms and new weights follow from formulas written down again here."
    scenario = toy((1, 3))  # fewer old classes than new ones
    carry = step("pass", scenario, 0, None)[2]
    cfg = dict(optimizer="sgd", lr=0.01, weight_decay=0.0, batch_size=1000, schedule="constant")
    carry = replace(carry, extra=carry.extra | {"radius": Extra(torch.tensor(0.7), "M1")})
    model, h, _ = step("pass", scenario, 1, carry, kd=3.0, proto=2.0, temperature=0.5, **cfg)
    with scenario.again().training(1) as task:
        settings = replace(CFG, freeze_old=False, **cfg)
        student = start_model(carry, task, settings)
        (b,) = epoch_batches(TaskData(task, None, settings), 0)
    x, y = turn(b.x), turned_labels(b.y)
    f, old = student.features(x), teacher_features(carry.model, x)
    with seeded(CFG.seed, "training", 1):
        c, noise = torch.randint(1, (1000,)), torch.randn(1000, 256)
    W, o = torch.cat(list(student.head.blocks)), torch.cat(list(student.head.offsets))
    z, zp = f @ W.T + o, (carry.extra["prototypes"].value[c] + 0.7 * noise) @ W.T + o
    ce = -(z / 0.5).log_softmax(1)[torch.arange(len(y)), y].mean()
    pce = -(zp / 0.5).log_softmax(1)[torch.arange(1000), 4 * c].mean()
    kd = (f - old).square().sum().sqrt()  # one norm over the whole 4B x D matrix
    for k, v in dict(cross_entropy=ce, distillation=kd, prototypes=pce).items():
        assert h.terms[k] == [pytest.approx(v.item(), rel=1e-4)], k
    (ce + 3 * kd + 2 * pce).backward()
    for p, new in zip(student.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p.detach() - 0.01 * p.grad, new.detach(), atol=1e-4, rtol=1e-3)
    assert student.head.blocks[0].grad.abs().max() > 0  # old rows learn, too


def test_prototypes_of_old_classes_are_upright(toy, monkeypatch):
    "With several old classes only columns 0, 4, ... are targets, B draws in every step, the short last batch included."
    seen, true = [], F.cross_entropy
    scenario = toy((3, 1))
    carry = step("pass", scenario, 0, None)[2]
    monkeypatch.setattr(
        prototypes.F, "cross_entropy", lambda z, y, **more: seen.append((len(z), y)) or true(z, y, **more)
    )
    step("pass", scenario, 1, carry, batch_size=8)
    n = len(images(scenario, 1))
    assert n % 8 and len(seen) == 2 * -(-n // 8)
    assert (
        all(len(y) == 8 and set(y.tolist()) <= {0, 4, 8} for _, y in seen[1::2])
        and sum(m for m, _ in seen[::2]) == 4 * n
    )
    assert set(torch.cat([y for _, y in seen[1::2]]).tolist()) == {0, 4, 8} and set(
        torch.cat([y for _, y in seen[::2]]).tolist()
    ) == {12, 13, 14, 15}


def test_pass_begins_with_rotations_and_new_weights_of_the_seed(toy):
    model, h, _ = step("pass", toy(per_class=60), 0, None, epochs=6, batch_size=8)
    assert set(h.terms) == {"cross_entropy"} and h.terms["cross_entropy"][-1] < h.terms["cross_entropy"][0]
    assert accuracy_of(model, images(toy(per_class=60), 0)) > 60


# SSRE


class Odd(nn.Module):
    "Convolutions of every kind: strides, dilation, groups, bias, no padding, other kernels."

    n_features = 6

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, 2, 1)
        self.b = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, 1, 2, dilation=2, groups=2, bias=False))
        self.c = nn.ModuleDict(
            {
                "x": nn.Conv2d(6, 6, 3, (1, 2), 0),
                "y": nn.Conv2d(6, 6, 5, padding=2),
                "z": nn.Conv2d(6, 6, 3, padding=1, padding_mode="circular"),
            }
        )

    def features(self, x):
        return self.c["z"](self.c["y"](self.c["x"](self.b(self.a(x))))).mean((2, 3))


def networks():
    from classimpression.models import Classifier

    with seeded(0, "networks"):
        odd = Classifier(Odd(), LinearHead(6, [2]))
    return {
        "odd": (odd, 4),
        "small": (build_classifier("small", 3, [2]), 7),
        "large": (build_classifier("large", 3, [2]), 17),
    }


@pytest.mark.parametrize("kind", ["odd", "small", "large"])
def test_merging_adapters_is_exact(kind):
    (plain, n), x = networks()[kind], torch.rand(3, 3, 40, 40)
    adapted = add_adapters(copy.deepcopy(plain))
    sides = [p for k, p in adapted.named_parameters() if k.endswith("side")]
    assert len(sides) == n and all(p.requires_grad for p in sides) and not adapted.training
    torch.testing.assert_close(adapted(x), plain.eval()(x), atol=0, rtol=0)
    with torch.no_grad():
        [p.normal_(std=0.3) for p in sides]
    merged = merge_adapters(copy.deepcopy(adapted))
    torch.testing.assert_close(merged(x), adapted(x), atol=1e-5, rtol=1e-5)
    assert (merged(x) - plain(x)).abs().max() > 1e-3
    assert [(k, v.shape) for k, v in merged.state_dict().items()] == [
        (k, v.shape) for k, v in plain.state_dict().items()
    ]
    assert [type(m) for m in merged.modules()] == [type(m) for m in plain.modules()]
    plain.load_state_dict(merged.state_dict())
    torch.testing.assert_close(plain(x), merged(x), atol=0, rtol=0)


def test_an_adapter_is_a_parallel_convolution():
    """Against two convolutions side by side: the 1x1 one has the stride of the other and reads the pixel under its
    centre.
    """
    for conv in (
        nn.Conv2d(4, 6, 3, 1, 1),
        nn.Conv2d(4, 6, 3, 2, 1, bias=False),
        nn.Conv2d(4, 6, 3, (2, 1), 1, groups=2),
        nn.Conv2d(4, 6, 3, 1, 2, dilation=2),
    ):
        net = nn.Module()
        net.backbone, net.network, x = nn.Sequential(copy.deepcopy(conv)), "", torch.rand(2, 4, 9, 9)
        side = add_adapters(net).backbone[0].side
        with torch.no_grad():
            side.normal_()
        both = conv(x) + F.conv2d(x, side[:, :, None, None], stride=conv.stride, groups=conv.groups)
        torch.testing.assert_close(net.backbone(x), both, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(merge_adapters(net).backbone(x), both, atol=1e-5, rtol=1e-5)


def test_adapters_of_unusual_networks():
    """A convolution that is used twice gets one adapter; one with a parametrization of its own is left alone; without
    any the error says so.
    """
    net, conv = nn.Module(), nn.Conv2d(3, 3, 3, padding=1)
    net.backbone, net.network = (
        nn.Sequential(conv, nn.Sequential(nn.ReLU(), conv), nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 3))),
        "mine",
    )
    names, x = list(net.state_dict()), torch.rand(2, 3, 8, 8)
    sides = [m.side for m in add_adapters(net).modules() if isinstance(m, Adapted)]
    assert len(sides) == 1
    with torch.no_grad():
        sides[0].normal_()
        before = net.backbone(x)
    torch.testing.assert_close(merge_adapters(net).backbone(x), before, atol=1e-5, rtol=1e-5)
    assert list(net.state_dict()) == names and net.backbone[0] is net.backbone[1][1] is conv
    net.backbone = nn.Sequential(nn.Conv2d(3, 3, 1))
    with pytest.raises(ConfigError, match="'mine' has no 3x3"):
        add_adapters(net)


def test_only_adapters_and_classifier_learn(toy, monkeypatch):
    scenario, caught = toy((2, 2)), {}
    carry = step("ssre", scenario, 0, None)[2]
    x = torch.rand(6, 3, 16, 16)

    def merge(model):
        with torch.no_grad():
            caught["adapted"] = model(x)
        return merge_adapters(model)

    monkeypatch.setattr(prototypes, "merge_adapters", merge)
    model, _, _ = step("ssre", scenario, 1, carry)
    with torch.no_grad():
        torch.testing.assert_close(model(x), caught["adapted"], atol=1e-5, rtol=1e-5)
    old, new = carry.model.backbone.state_dict(), model.backbone.state_dict()
    for k, v in old.items():
        if v.shape[2:] == (3, 3):
            moved = (new[k] - v).abs().amax((0, 1)) > 0
            assert moved[1, 1] and moved.sum() == 1, k
        else:
            assert torch.equal(v, new[k]), k  # shortcuts, batch norm, its running statistics
    assert len(batch_norms(model)) == 9 and all(
        int(m.num_batches_tracked) == int(n.num_batches_tracked)
        for m, n in zip(batch_norms(model), batch_norms(carry.model))
    )
    assert not torch.equal(model.head.blocks[0], carry.model.head.blocks[0]) and not torch.equal(
        model.head.offsets[0], carry.model.head.offsets[0]
    )
    loaded = rebuild(model.spec)
    loaded.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(x), model(x), atol=1e-6, rtol=1e-6)


def test_familiarity_by_hand():
    g = torch.Generator().manual_seed(0)
    f, mu = torch.randn(9, 5, generator=g), torch.randn(3, 5, generator=g) + torch.tensor([2.0, 0, 0, 0, 0])
    cosines = [[float(np.dot(a, m) / np.linalg.norm(a) / np.linalg.norm(m)) for m in mu.numpy()] for a in f.numpy()]
    cosines[0] = [float(np.dot(-mu[0].numpy(), m) / np.linalg.norm(mu[0]) / np.linalg.norm(m)) for m in mu.numpy()]
    f[0] = -mu[0]
    assert min(map(max, cosines)) < 0
    np.testing.assert_allclose(familiarity(f, mu).numpy(), [min(max(*row, 0), 1) for row in cosines], atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(familiarity(f, mu), familiarity(f, mu).float(), atol=1e-6, rtol=0)


def test_two_steps_of_ssre_by_hand(toy):
    """Adapters start at zero, so the first step sees the teacher's features; the second distils what the first has
    moved.
    """
    scenario = toy((2, 3))
    carry = step("ssre", scenario, 0, None)[2]
    carry = replace(
        carry, extra={"prototypes": Extra(torch.randn(2, 256, generator=torch.Generator().manual_seed(0)), "M1")}
    )  # weights far from 1
    cfg = dict(
        optimizer="sgd",
        lr=0.1,
        weight_decay=0.0,
        batch_size=1000,
        schedule="constant",
        kd=2.0,
        proto=3.0,
        temperature=0.5,
    )
    model, h, _ = step("ssre", scenario, 1, carry, **cfg)
    with scenario.again().training(1) as task:
        student = start_model(carry, task, replace(CFG, freeze_old=False)).eval()
        x, y = task.train.images(), task.train.y
    mu, old = carry.extra["prototypes"].value, teacher_features(carry.model, x)
    looks_old = lambda f: torch.stack([F.normalize(f, dim=1) @ m / m.norm() for m in mu]).max(0).values.clamp(0, 1)
    w = looks_old(old)
    with seeded(CFG.seed, "training", 1):
        c = torch.randint(2, (1000,))
    W, o = torch.cat(list(student.head.blocks)), torch.cat(list(student.head.offsets))
    logs = ((old @ W.T + o) / 0.5).log_softmax(1)
    ce = -((1 - w) * logs[torch.arange(len(y)), y]).mean()
    pce = -((mu[c] @ W.T + o) / 0.5).log_softmax(1)[torch.arange(1000), c].mean()  # no noise, no rotations
    assert h.terms["cross_entropy"] == [pytest.approx(ce.item(), rel=1e-4)] and h.terms["prototypes"] == [
        pytest.approx(pce.item(), rel=1e-4)
    ]
    assert h.terms["distillation"][0] < 1e-2
    (ce + 3 * pce).backward()
    for p, new in zip(student.head.parameters(), model.head.parameters(), strict=True):
        assert p.grad.abs().max() > 0
        torch.testing.assert_close(p.detach() - 0.1 * p.grad, new.detach(), atol=1e-5, rtol=1e-3)
    distilled = (w * (teacher_features(model, x) - old).norm(dim=1)).sum().item()  # sum over the batch
    _, h, _ = step("ssre", scenario.again(), 1, carry, **cfg, epochs=2)
    assert (
        0.01 < w.mean() < 0.9
        and distilled > 1000 * h.terms["distillation"][0]
        and h.terms["distillation"][1] == pytest.approx(distilled, rel=1e-2)
    )
    moved = teacher_features(model, x)
    current = (looks_old(moved) * (moved - old).norm(dim=1)).sum().item()
    _, h, _ = step("ssre", scenario.again(), 1, carry, **cfg, epochs=2, weigh_by="current")
    assert h.terms["distillation"][1] == pytest.approx(current, rel=1e-2) != pytest.approx(distilled, rel=1e-2)


# FeTrIL


@pytest.mark.parametrize("similarity", ["euclidean", "cosine"])
def test_translation_in_numpy(similarity):
    rng = np.random.default_rng(0)
    old, f, y = rng.normal(size=(4, 5)), rng.normal(size=(30, 5)), np.repeat([4, 5, 6], [5, 10, 15])
    f += 2 * np.eye(5)[y - 4]
    old += 2 * np.eye(5)[[0, 1, 2, 2]]
    new = np.stack([f[y == k].mean(0) for k in (4, 5, 6)])
    cosine = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    far = [[np.linalg.norm(o - n) if similarity == "euclidean" else -cosine(o, n) for n in new] for o in old]
    n = [int(np.argmin(row)) for row in far]
    t = lambda a: torch.tensor(a, dtype=torch.float32)
    nearest = nearest_class(t(old), t(new), similarity)
    assert nearest.tolist() == n and len(set(n)) > 1
    x, c = pseudo_features(t(f), torch.tensor(y), t(old), t(new), nearest)
    assert c.tolist() == [
        k for k in range(4) for _ in range(int((y == n[k] + 4).sum()))
    ]  # as many as the new class has
    np.testing.assert_allclose(
        x.numpy(), np.concatenate([f[y == n[k] + 4] - new[n[k]] + old[k] for k in range(4)]), atol=1e-5
    )
    for k in range(4):  # the old mean, the new shape
        np.testing.assert_allclose(x[c == k].mean(0).numpy(), old[k], atol=1e-5)
        np.testing.assert_allclose(np.cov(x[c == k].numpy().T), np.cov(f[y == n[k] + 4].T), atol=1e-4)


def test_fetril_leaves_the_backbone_alone_to_the_last_bit(toy):
    done = through("fetril", toy((2, 1, 3)))
    assert len({bits(m.backbone) for m, _, _ in done}) == 1  # running statistics included
    assert [m.head.sizes for m, _, _ in done] == [[2], [2, 1], [2, 1, 3]] and all(
        isinstance(m.head, LinearHead) and m.head.copies == 1 for m, _, _ in done
    )
    assert len(done[-1][1].lr) == 3 and done[-1][1].lr[0] > done[-1][1].lr[-1]  # its own epochs, cosine rate


def test_the_classifier_of_fetril_is_fresh(toy):
    "What the old head held does not matter; the prototypes do."
    scenario = toy()
    carry = step("fetril", scenario, 0, None)[2]
    spoilt = copy.deepcopy(carry)
    with torch.no_grad():
        [p.mul_(-7) for p in spoilt.model.head.parameters()]
    a, b = (step("fetril", scenario.again(), 1, c)[0] for c in (carry, spoilt))
    assert bits(a) == bits(b)
    moved = replace(carry, extra={"prototypes": Extra(carry.extra["prototypes"].value.flip(0), "M1")})
    assert bits(step("fetril", scenario.again(), 1, moved)[0]) != bits(a)


def test_fetril_with_one_new_class_keeps_old_classes(toy):
    "All old classes borrow the shape of the only new one, and both are recognised on easy data."
    scenario = toy((2, 1), per_class=60)
    carry = step("fetril", scenario, 0, None, epochs=10, batch_size=16)[2]
    model, h, _ = step("fetril", scenario, 1, carry, head_epochs=50)
    assert h.terms["cross_entropy"][-1] < h.terms["cross_entropy"][0] and accuracy_of(model, scenario.test(0)) > 60, (
        accuracy_of(model, scenario.test(0))
    )
