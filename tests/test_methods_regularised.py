"LwF, LwF-MC, LwM and EWC against independent computations, and against known mistakes of public implementations."

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import classimpression.methods.regularised as R
from classimpression.carryover import hand_over
from classimpression.core.errors import StateError
from classimpression.methods.registry import find_method
from classimpression.models import NETWORKS, batch_norms, build_classifier, register_network
from classimpression.settings import TrainConfig
from classimpression.training import evaluate

ALL = ("lwf", "lwf-mc", "lwm", "ewc", "ewc-online")
CFG = TrainConfig(epochs=1, lr=0.05, momentum=0.9, batch_size=32)


class Plain(nn.Module):
    "No normalisation, so that training and evaluation mode compute the same."

    n_features = 6

    def __init__(self, channels=3):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(channels, 6, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1))

    def features(self, x):
        return self.net(x).flatten(1)

    forward = features


@pytest.fixture
def plain():
    register_network("plain", Plain)
    yield replace(CFG, network="plain")
    del NETWORKS["plain"]


def learned(name, scenario, cfg=CFG, tasks=2, **hyper_parameters):
    "The last task's model and history, and the carryovers before and after it."
    carry = before = None
    for t in range(tasks):
        with scenario.training(t) as task:
            model, history = find_method(name).fit(carry, task, None, cfg, **hyper_parameters)
            before, carry = carry, hand_over(model, task, carry, False, history.extra)
    return model, history, before, carry


def state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def test_declarations():
    assert {n: (find_method(n).title, find_method(n).tier, find_method(n).data_free) for n in ALL} == {
        "lwf": ("LwF", "M0", True),
        "lwf-mc": ("LwF-MC", "M0", True),
        "lwm": ("LwM", "M0", True),
        "ewc": ("EWC (separate)", "M2", True),
        "ewc-online": ("EWC (online)", "M2", True),
    }
    assert [find_method(n).hyper_parameters for n in ALL] == [
        dict(kd=3.0, temperature=2.0, among="new"),
        dict(kd=1.0),
        dict(kd=1.0, temperature=2.0, attention=1.0, among="new"),
        dict(strength=1000.0, samples=512),
        dict(strength=1000.0, gamma=1.0, samples=512),
    ]


# --- losses ---------------------------------------------------------------------------------------


def soft(v, T):
    e = np.exp((v - v.max()) / T)
    return e / e.sum()


@pytest.mark.parametrize("T", [1.0, 2.0, 5.0])
def test_distillation_is_a_plain_loop_over_all_old_classes(T):
    g = np.random.default_rng(0)
    z, z_old = g.normal(size=(4, 7)) * 3, g.normal(size=(4, 5)) * 3
    wanted = np.mean([-sum(p * math.log(q) for p, q in zip(soft(b, T), soft(a[:5], T))) for a, b in zip(z, z_old)])
    assert float(R.kd_loss(torch.tensor(z), torch.tensor(z_old), T)) == pytest.approx(
        wanted, rel=1e-6
    )  # no factor T^2, no mean over classes
    for k in range(5):  # a head left out would not matter
        other = z_old.copy()
        other[:, k] += 1
        assert abs(float(R.kd_loss(torch.tensor(z), torch.tensor(other), T)) - wanted) > 1e-4
    s, t = torch.tensor(z, requires_grad=True), torch.tensor(z_old, requires_grad=True)
    R.kd_loss(s, t, T).backward()
    assert t.grad is None and (s.grad[:, :5] != 0).all() and (s.grad[:, 5:] == 0).all()


def test_binary_losses_are_a_plain_loop():
    g = np.random.default_rng(1)
    z, z_old, y = g.normal(size=(6, 5)) * 2, g.normal(size=(6, 3)) * 2, np.array([3, 4, 3, 4, 4, 3])
    s = lambda v: 1 / (1 + math.exp(-v))
    bce = lambda p, v: -p * math.log(s(v)) - (1 - p) * math.log(1 - s(v))
    new = sum(bce(float(y[i] == k), z[i, k]) for i in range(6) for k in (3, 4)) / 6
    old = sum(bce(s(z_old[i, k]), z[i, k]) for i in range(6) for k in range(3)) / 6
    found = R.binary_losses(torch.tensor(z), torch.tensor(z_old), torch.tensor(y))
    assert [float(v) for v in found] == pytest.approx([new, old], rel=1e-6)
    for k in range(3):
        other = torch.tensor(z_old)
        other[:, k] += 1
        assert abs(float(R.binary_losses(torch.tensor(z), other, torch.tensor(y))[1]) - old) > 1e-4


def test_cross_entropy_among_new_classes():
    z = torch.tensor([[9.0, -2.0, 1.0, 3.0, 0.0], [0.0, 5.0, 0.0, 0.0, 2.0]], requires_grad=True)
    loss = R.new_class_cross_entropy(z, torch.tensor([3, 4]), 2)
    row = lambda v, k: -math.log(math.exp(v[k]) / sum(map(math.exp, v)))
    assert float(loss.detach()) == pytest.approx((row([1, 3, 0], 1) + row([0, 0, 2], 2)) / 2)
    loss.backward()
    assert (z.grad[:, :2] == 0).all() and (z.grad[:, 2:] != 0).all()
    one = R.new_class_cross_entropy(z, torch.tensor([4, 4]), 4)
    assert torch.equal(one, F.cross_entropy(z, torch.tensor([4, 4]))) and one > 1


# --- LwF and LwF-MC -------------------------------------------------------------------------------


def test_lwf_asks_the_frozen_model_in_evaluation_mode_about_all_old_classes(toy, monkeypatch):
    seen, kd = [], R.kd_loss

    def spy(z, z_old, T):
        seen.append((z.shape[1], z_old.clone(), T))
        return kd(z, z_old, T)

    monkeypatch.setattr(R, "kd_loss", spy)
    scenario = toy(sizes=(2, 1, 3))
    model, history, before, _ = learned("lwf", scenario, tasks=3, temperature=3.0)
    assert {(n, o.shape[1], T) for n, o, T in seen} == {(3, 2, 3.0), (6, 3, 3.0)} and history.weights[
        "distillation"
    ] == 3.0
    frozen = before.model(scenario.joint(2, reference=True).where([3, 4, 5]).images())
    last = torch.cat([o for n, o, _ in seen if n == 6])
    rows = lambda z: z[z[:, 0].argsort()]
    assert last.shape == frozen.shape and torch.allclose(rows(last), rows(frozen), atol=1e-4)


@pytest.mark.parametrize("name", ("lwf", "lwf-mc", "lwm"))
def test_old_rows_go_on_learning_and_the_teacher_does_not(toy, name):
    scenario = toy(sizes=(2, 1, 2))
    with scenario.training(0) as task:
        model, _ = find_method(name).fit(None, task, None, CFG)
        carry = hand_over(model, task, None, False)
    kept = state(carry.model)
    with scenario.training(1) as task:
        model, _ = find_method(name).fit(carry, task, None, CFG)
    assert (model.head.blocks[0] != carry.model.head.blocks[0]).any() and (
        model.head.offsets[0] != carry.model.head.offsets[0]
    ).any()
    assert all(torch.equal(v, kept[k]) for k, v in carry.model.state_dict().items()) and not carry.model.training
    assert not any(m._forward_hooks for m in [*model.modules(), *carry.model.modules()])


@pytest.mark.parametrize("name", ("lwf", "lwf-mc"))
def test_distillation_keeps_old_answers(toy, name):
    with (scenario := toy(sizes=(3, 2), per_class=45)).training(0) as task:
        model, _ = find_method(name).fit(None, task, None, replace(CFG, epochs=20))
        old, gaps = hand_over(model, task, None, False), []
    strong = replace(CFG, epochs=25, momentum=0.0, lr=0.1)  # long enough that old scores move without it
    for kd in (0.0, 3.0):
        with scenario.again().training(1) as task, torch.no_grad():
            with torch.enable_grad():
                model, _ = find_method(name).fit(old, task, None, strong, kd=kd)
            x = task.train.images(torch.arange(len(task.train)))
            gaps.append(float((model(x)[:, :3].softmax(1) - old.model(x).softmax(1)).abs().sum(1).mean()))
    assert gaps[1] < gaps[0] / 2


# --- LwM ------------------------------------------------------------------------------------------


def tiny():
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 4, 3, padding=1)).double(), nn.Linear(
        4 * 9, 3
    ).double()


def test_attention_loss_has_the_gradient_of_finite_differences():
    "A constant map, or a constant gradient in it, would fail: the head is not linear in the map."
    body, head = tiny()
    teacher, teacher_head = copy.deepcopy(body), copy.deepcopy(head)
    with torch.no_grad():
        for p in teacher.parameters():
            p.add_(0.3 * torch.randn_like(p))
    x, k = torch.rand(5, 2, 3, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 0])

    def q(body, head, learn):
        a = body(x)
        if not a.requires_grad:
            a.requires_grad_()
        z = head((a + 0.5 * a**3).flatten(1)).gather(1, k[:, None])
        return R.attention_map(z, a, learn)

    target = q(teacher, teacher_head, False)
    loss = lambda: R.attention_loss(q(body, head, True), target)
    weights = [*body.parameters(), head.weight]
    exact = torch.autograd.grad(loss(), weights)
    assert all(g.abs().sum() > 0 for g in exact)
    for p, g in zip(weights, exact):
        for i in range(0, p.numel(), max(1, p.numel() // 4)):
            up, down = [], []
            for sign, found in ((1, up), (-1, down)):
                p.data.view(-1)[i] += sign * 1e-6
                found.append(float(loss().detach()))
                p.data.view(-1)[i] -= sign * 1e-6
            assert (up[0] - down[0]) / 2e-6 == pytest.approx(float(g.reshape(-1)[i]), rel=1e-3, abs=1e-6)


def test_attention_map_by_hand():
    a = torch.rand(2, 3, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    w = torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.0, 3.0]])
    q = R.attention_map((a.mean((2, 3)) * w).sum(1), a)
    for i in range(2):
        A = np.zeros((2, 2))
        for c in range(3):
            A += w[i, c].item() / 4 * a[i, c].detach().numpy()
        A = np.maximum(A, 0).ravel()
        assert q[i].numpy() == pytest.approx(A / np.linalg.norm(A), abs=1e-6)
    assert float(
        R.attention_loss(torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([[0.0, 1.0], [0.6, 0.8]]))
    ) == pytest.approx(1.0)


def test_an_image_that_nothing_speaks_for_has_a_finite_gradient():
    a = torch.rand(2, 3, 4, 4).requires_grad_()
    sign = torch.tensor([-1.0, 1.0], requires_grad=True)
    q = R.attention_map(sign * a.sum((1, 2, 3)), a, learn=True)
    assert (q[0] == 0).all() and float(q[1].detach().norm()) == pytest.approx(1)
    R.attention_loss(q, torch.full_like(q, 0.25)).backward()
    assert a.grad.isfinite().all() and sign.grad.isfinite().all() and (a.grad[0] == 0).all() and (a.grad[1] != 0).any()


@pytest.mark.parametrize(
    "network, channels, pixels, shape", [("small", 1, 32, (64, 16, 16)), ("large", 3, 64, (128, 2, 2))]
)
def test_the_map_is_the_last_one_before_pooling(network, channels, pixels, shape):
    net = build_classifier(network, channels, [2]).eval()
    with R.last_map(net.backbone) as a:
        net(torch.rand(2, channels, pixels, pixels))
    assert tuple(a[0].shape) == (2, *shape)
    assert not any(m._forward_hooks for m in net.modules())


def test_pooling_layers_do_not_give_the_map():
    inner = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2)
    )  # its output is that of a pooling layer, too
    for last in (nn.Identity(), nn.AdaptiveAvgPool2d(2)):
        net = nn.Sequential(inner, last, nn.Flatten())
        with R.last_map(net) as a:
            net(torch.rand(1, 3, 10, 10))
        assert tuple(a[0].shape) == (1, 5, 8, 8)


def test_attention_moves_the_backbone(toy):
    "With the other terms' help fixed, another weight of the attention loss must change what is learned."
    runs = [learned("lwm", toy(), attention=w) for w in (0.0, 1.0)]
    weights = [R.flat_weights(m) for m, *_ in runs]
    assert (weights[0] != weights[1]).float().mean() > 0.9 and "attention" not in runs[0][1].terms
    lwf = R.flat_weights(learned("lwf", toy(), kd=1.0)[0])
    assert torch.equal(lwf, weights[0])  # without attention LwM is LwF
    strong = learned("lwm", toy(), replace(CFG, epochs=3, lr=0.01), attention=3.0)[1].terms["attention"]
    assert strong[-1] < strong[0]


def test_both_networks_are_asked_about_the_same_old_class(toy, plain, monkeypatch):
    "The student is the teacher with exchanged old rows, so that their own favourites differ."
    calls, original, start = [], R.attention_map, R.start_model

    def spy(z, a, learn=False):
        q = original(z, a, learn)
        assert q.requires_grad == learn
        calls.append((learn, z.detach(), a.detach().mean((2, 3))))
        return q

    def exchanged(*args):
        model = start(*args)
        for p in (model.head.blocks[0], model.head.offsets[0]):
            p.data = p.data[[1, 2, 0]]
        return model

    monkeypatch.setattr(R, "attention_map", spy)
    monkeypatch.setattr(R, "start_model", exchanged)
    with (scenario := toy(sizes=(3, 2))).training(0) as task:
        carry = hand_over(R.lwm(None, task, None, plain)[0], task, None, False)
    with scenario.training(1) as task:
        model, _ = R.lwm(carry, task, None, replace(plain, lr=1e-12, momentum=0.0))
    assert calls and [learn for learn, *_ in calls] == [True, False] * (len(calls) // 2)
    for (_, z, f), (_, z_old, f_old) in zip(calls[::2], calls[1::2]):
        with torch.no_grad():
            k, wanted, own = (
                model.head(f)[:, :3].argmax(1, keepdim=True),
                carry.model.head(f_old),
                carry.model.head(f_old).argmax(1, keepdim=True),
            )
        assert (
            torch.allclose(f, f_old, atol=1e-5)
            and torch.allclose(z_old, wanted.gather(1, k), atol=1e-5)
            and (k != own).all()
        )
        assert torch.allclose(z, wanted.gather(1, own), atol=1e-5)


# --- EWC ------------------------------------------------------------------------------------------


def test_fisher_is_a_loop_over_single_images_and_leaves_the_model_alone():
    net = build_classifier("small", 3, [2, 1]).train()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for m in batch_norms(net):
            m.running_mean.normal_(0, 0.1, generator=g)
            m.running_var.uniform_(0.5, 1.5, generator=g)
    net.backbone.stem.eval()  # a mixture of modes must survive as it is
    x, y = torch.rand(70, 3, 12, 12, generator=g), torch.randint(3, (70,), generator=g)  # more than one chunk
    kept, modes, rng = state(net), [m.training for m in net.modules()], torch.random.get_rng_state()
    found = R.fisher_diagonal(net, x, y)
    assert all(torch.equal(v, kept[k]) for k, v in net.state_dict().items()) and modes == [
        m.training for m in net.modules()
    ]
    assert all(p.grad is None for p in net.parameters()) and torch.equal(rng, torch.random.get_rng_state())
    assert found.dtype == torch.float32 and found.shape == R.flat_weights(net).shape
    still, total = copy.deepcopy(net).eval(), 0
    for i in range(70):
        grads = torch.autograd.grad(still(x[[i]]).log_softmax(1)[0, y[i]], list(still.backbone.parameters()))
        total = total + torch.cat([v.reshape(-1) for v in grads]).square()
    wanted = total / 70
    assert float((found - wanted).norm() / wanted.norm()) < 1e-3  # processors round in other orders
    assert torch.allclose(found, wanted, rtol=1e-2, atol=1e-5 * float(wanted.max()))
    batch = torch.autograd.grad(F.cross_entropy(still(x), y), list(still.backbone.parameters()))
    assert float(torch.cat([v.reshape(-1) for v in batch]).square().sum()) < 0.5 * float(
        found.sum()
    )  # the square of the mean is too small


def test_fisher_of_a_task_is_keyed_and_sees_no_more_images_than_allowed(toy, monkeypatch):
    scenario, seen, original = toy(), [], R.fisher_diagonal
    monkeypatch.setattr(R, "fisher_diagonal", lambda m, x, y: (seen.append((len(x), y)), original(m, x, y))[1])
    net = build_classifier("small", 3, [2]).eval()
    with scenario.training(0) as task:
        rng = torch.random.get_rng_state()
        a, b, c = (
            R.task_fisher(net, task, CFG, 16),
            R.task_fisher(net, task, CFG, 16),
            R.task_fisher(net, task, replace(CFG, seed=1), 16),
        )
        R.task_fisher(net, task, CFG, 10**6)
        assert torch.equal(rng, torch.random.get_rng_state())
        assert [n for n, _ in seen] == [16, 16, 16, len(task.train)]
    assert torch.equal(a, b) and not torch.equal(a, c) and (a > 0).any()
    assert len(seen[3][1].unique()) == 2  # drawn labels, also where one class has the larger probability


def test_penalty_by_hand():
    w, anchors, fisher = (
        torch.tensor([1.0, 2.0, 3.0], requires_grad=True),
        torch.tensor([[0.0, 2.0, 1.0], [1.0, 0.0, 0.0]]),
        torch.tensor([[2.0, 1.0, 0.0], [5.0, 1.0, 4.0]]),
    )
    loss = R.ewc_penalty(w, anchors, fisher)
    assert float(loss.detach()) == pytest.approx(0.5 * (2 * 1 + 0 + 0 + 0 + 1 * 4 + 4 * 9))
    loss.backward()
    assert w.grad.tolist() == pytest.approx([2 * 1, 1 * 2, 4 * 3])
    held = R.limit_fisher(fisher, 3.5)
    assert held.sum(0).tolist() == pytest.approx([3.5, 2, 3.5]) and held[:, 0].tolist() == pytest.approx([1.0, 2.5])
    assert torch.equal(R.limit_fisher(fisher, math.inf), fisher) and torch.equal(
        R.limit_fisher(fisher * 0, 1.0), fisher * 0
    )


def test_what_is_carried(toy):
    sizes, before = (2, 2, 1), None
    for name, fishers, anchors in (("ewc", 3, 2), ("ewc-online", 1, 0)):
        scenario, carry, models, extras = toy(sizes=sizes), None, [], []
        for t in range(3):
            with scenario.training(t) as task:
                model, history = find_method(name).fit(
                    carry, task, None, CFG, samples=12, **(dict(gamma=0.5) if name == "ewc-online" else {})
                )
                carry = hand_over(model, task, carry, False, history.extra)
                models.append(R.flat_weights(carry.model))
                extras.append((carry.extra["fisher"].value, R.task_fisher(model, task, CFG, 12)))
        P = len(models[0])
        assert carry.tier == "M2" and all(e.value.dtype == torch.float32 for e in carry.extra.values())
        assert carry.extra["fisher"].value.shape == (fishers, P) and ("weights" in carry.extra) == (anchors > 0)
        if anchors:
            assert torch.equal(carry.extra["weights"].value, torch.stack(models[:2])) and torch.allclose(
                extras[2][0], torch.cat([latest for _, latest in extras])
            )
        else:
            assert torch.allclose(extras[2][0], 0.25 * extras[0][1] + 0.5 * extras[1][1] + extras[2][1])
        assert before is None or torch.equal(before, extras[0][0])  # the first task is the same for both
        before = extras[0][0]
    with toy(sizes=sizes).training(1) as task, pytest.raises(StateError, match="Fisher"):
        R.ewc(replace(carry, extra={}), task, None, CFG)


@pytest.mark.parametrize("name", ("ewc", "ewc-online"))
def test_a_weight_that_mattered_stays_and_the_head_of_old_classes_too(toy, name):
    scenario = toy()
    with scenario.training(0) as task:
        model, history = find_method(name).fit(None, task, None, CFG, samples=8)
        fisher = torch.zeros_like(history.extra["fisher"].value)
        fisher[0, 500:600] = 1e6  # somewhere in the convolutions, whose memory has another order
        carry = hand_over(model, task, None, False, {"fisher": R.Extra(fisher, "M2")})
    with scenario.training(1) as task:
        model, _ = find_method(name).fit(carry, task, None, replace(CFG, epochs=30, momentum=0.0), samples=8)
    moved = (R.flat_weights(model) - R.flat_weights(carry.model)).abs().detach()
    rest = torch.cat([moved[:500], moved[600:]])
    assert moved[500:600].mean() < 0.3 * rest[rest > 0].mean() and moved.isfinite().all()
    assert torch.equal(model.head.blocks[0], carry.model.head.blocks[0]) and torch.equal(
        model.head.offsets[0], carry.model.head.offsets[0]
    )


def test_no_strength_makes_ewc_diverge(toy, monkeypatch):
    with (scenario := toy()).training(0) as task:
        model, history = R.ewc(None, task, None, CFG, samples=16)
        carry = hand_over(model, task, None, False, history.extra)

    def moved(strength):
        with scenario.again().training(1) as task:
            model, history = R.ewc(
                carry, task, None, replace(CFG, epochs=25, lr=0.005, momentum=0.0), strength=strength, samples=4
            )
        assert all(map(math.isfinite, history.terms["cross_entropy"] + history.terms["consolidation"]))
        return (R.flat_weights(model) - R.flat_weights(carry.model)).detach()

    held = carry.extra["fisher"].value[0] > 1 / (0.005 * 1e9)
    free, strong = moved(0.0), moved(1e9)
    assert (
        0.1 < held.float().mean() < 0.9
        and strong[held].norm() < 0.2 * free[held].norm()
        and strong[~held].norm() > 0.2 * free[~held].norm()
    )
    monkeypatch.setattr(R, "limit_fisher", lambda fisher, largest: fisher)
    with pytest.raises(StateError, match="diverged"):
        moved(1e9)


# --- one class ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_a_single_new_class_is_learned(toy, name):
    "Cross-entropy among one class is zero; an implementation without a way out learns nothing."
    scenario, cfg = toy(sizes=(2, 1)), replace(CFG, epochs=4)
    with scenario.training(0) as task:
        model, history = find_method(name).fit(None, task, None, cfg)
        carry = hand_over(model, task, None, False, history.extra)
    with scenario.training(1) as task:
        model, start = find_method(name).fit(carry, task, None, cfg)[0], R.start_model(carry, task, cfg)
    assert (model.head.blocks[1] != start.head.blocks[1]).any() and (
        R.flat_weights(model) != R.flat_weights(start)
    ).any()
    before, after = (evaluate(m, scenario.test(1), 3)[2, 2] for m in (start, model))
    assert after >= before and after >= 8  # of 10 test images


@pytest.mark.parametrize("name", ALL)
def test_a_first_task_of_one_class(toy, name):
    model, history, _, _ = learned(name, toy(sizes=(1, 2, 1), channels=1), tasks=3)
    assert model.head.sizes == [1, 2, 1] and all(torch.isfinite(p).all() for p in model.parameters())
    assert all(math.isfinite(v) for vs in history.terms.values() for v in vs)
