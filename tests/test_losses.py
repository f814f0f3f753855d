"""The losses against values computed by hand or with plain Python numbers: no torch expression judges
itself here.
"""

import inspect
import math
import random

import pytest
import torch
from torch import tensor

from classimpression.core.errors import ConfigError
from classimpression.losses import class_centroids, class_weights, cn_cross_entropy, distillation_loss
from classimpression.losses import distillation_weight, intra_domain_loss, margin_loss, total_loss, update_centroids
from classimpression.settings import TrainConfig

CLOSE = dict(rel=1e-12, abs=1e-12)


def table(rows, cols, seed):
    "Numbers in [-1, 1] as nested lists, from Python's own generator."
    r = random.Random(seed)
    return [[r.uniform(-1, 1) for _ in range(cols)] for _ in range(rows)]


def labels(n, k, seed):
    r = random.Random(seed)
    return [r.randrange(k) for _ in range(n)]


def t64(rows):
    return torch.tensor(rows, dtype=torch.float64, requires_grad=True)


def assert_gradient(f, rows, h=1e-6, tol=1e-7):
    "Central differences in float64, one number after the other, against the gradient."
    x = t64(rows)
    f(x).backward()
    for i in range(len(rows)):
        for j in range(len(rows[0])):
            up, down = ([list(r) for r in rows] for _ in range(2))
            up[i][j] += h
            down[i][j] -= h
            slope = (f(t64(up)).item() - f(t64(down)).item()) / (2 * h)
            assert x.grad[i, j].item() == pytest.approx(slope, abs=tol), (i, j)


# ---- independent definitions: lists of floats in, a float out


def ref_cross_entropy(z, y, w):
    total = norm = 0.0
    for row, c in zip(z, y, strict=True):
        total += w[c] * (math.log(sum(math.exp(v) for v in row)) - row[c])
        norm += w[c]
    return total / norm


def ref_margin(s, y, n_old, m, k):
    total = count = 0
    for row, c in zip(s, y, strict=True):
        if c >= n_old:
            continue
        for new in sorted(row[n_old:])[::-1][:k]:
            total += max(0.0, m - row[c] + new)
            count += 1
    return total / count if count else 0.0


def ref_distillation(a, b):
    dot = lambda u, v: sum(p * q for p, q in zip(u, v, strict=True))
    return sum(1 - dot(u, v) / math.sqrt(dot(u, u) * dot(v, v)) for u, v in zip(a, b, strict=True)) / len(a)


def ref_centroids(s, y, k):
    out = []
    for c in range(k):
        mine = [row for row, label in zip(s, y, strict=True) if label == c]
        out.append([sum(col) / len(mine) for col in zip(*mine, strict=True)] if mine else [0.0] * len(s[0]))
    return out


def ref_intra_domain(source, target, tau, classes=None):
    keep = range(len(source)) if classes is None else classes

    def unit(c):
        length = math.sqrt(sum(v * v for v in c)) + 1e-10
        return [v / length for v in c]

    trace = total = 0.0
    for j in keep:
        for k in keep:
            r = math.exp(sum(a * b for a, b in zip(unit(target[j]), unit(source[k]), strict=True)) / tau)
            total += r
            trace += r if j == k else 0.0
    return -math.log(trace) + math.log(total)


# ---- class weights and cross-entropy


def test_class_weights_are_inverse_frequencies_with_largest_class_1():
    assert class_weights([40, 10, 20, 39]).tolist() == pytest.approx([1, 4, 2, 40 / 39], rel=1e-7)
    assert class_weights(tensor([5])).tolist() == [1]
    assert class_weights(tensor([3.0, 6.0])).dtype == torch.float32


@pytest.mark.parametrize("counts", [[3, 0], [0, 0], [], [[1, 2]], [3, -1], [3, float("nan")]])
def test_class_weights_refuse(counts):
    with pytest.raises(ConfigError):
        class_weights(counts)


@pytest.mark.parametrize("weights", [None, [1, 1, 1], [1, 2.5, 7]])
def test_cross_entropy(weights):
    z, y = table(11, 3, 1), labels(11, 3, 2)
    got = cn_cross_entropy(t64(z), tensor(y), None if weights is None else tensor(weights))
    assert got.item() == pytest.approx(ref_cross_entropy(z, y, weights or [1, 1, 1]), **CLOSE)
    assert_gradient(lambda x: cn_cross_entropy(x, tensor(y), None if weights is None else tensor(weights)), z)


def test_cross_entropy_divides_by_the_weights_of_the_batch():
    "(3 ln 4 + ln 4/3) / 4, and for a batch of one class the weight drops out."
    z = tensor([[0, math.log(3)]] * 2, dtype=torch.float64)
    assert cn_cross_entropy(z, tensor([0, 1]), tensor([3.0, 1.0])).item() == pytest.approx(1.1116412889, abs=1e-9)
    assert cn_cross_entropy(z, tensor([0, 0]), tensor([3.0, 1.0])).item() == pytest.approx(math.log(4), **CLOSE)


# ---- margin


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("m", [0.0, 0.3, 0.5])
def test_margin(k, m):
    s, y = table(17, 7, 3), labels(17, 7, 4)
    assert margin_loss(t64(s), tensor(y), 4, m, k).item() == pytest.approx(ref_margin(s, y, 4, m, k), **CLOSE)
    assert_gradient(lambda x: margin_loss(x, tensor(y), 4, m, k), s)


def test_margin_by_hand():
    s = tensor([[0.5, 0.1, 0.4, 0.0], [0.2, 0.6, 0.9, 0.7], [0.9, 0.9, 0.1, 0.9]])
    y = tensor([0, 1, 2])  # classes 0 and 1 are old
    assert margin_loss(s, y, 2).item() == pytest.approx((0.2 + 0.6) / 2, rel=1e-6)
    assert margin_loss(s, y, 2, k=2).item() == pytest.approx((0.2 + 0 + 0.6 + 0.4) / 4, rel=1e-6)
    assert margin_loss(s, y, 2, margin=0.0).item() == pytest.approx((0 + 0.3) / 2, rel=1e-6)


def test_margin_one_new_class_and_one_old_class():
    s, y = table(9, 4, 5), [0, 3, 1, 2, 0, 3, 3, 1, 0]
    for n_old in (1, 3):
        assert margin_loss(t64(s), tensor(y), n_old).item() == pytest.approx(ref_margin(s, y, n_old, 0.3, 1), **CLOSE)
    assert_gradient(lambda x: margin_loss(x, tensor(y), 3), s)
    assert_gradient(lambda x: margin_loss(x, tensor(y), 1, k=3), s)


@pytest.mark.parametrize("y, n_old", [([2, 3, 2], 2), ([0, 1, 2], 0), ([0, 1, 2], 4)])
def test_margin_is_zero_with_a_graph_without_old_samples_or_new_classes(y, n_old):
    s = t64(table(3, 4, 6))
    loss = margin_loss(s, tensor(y), n_old)
    loss.backward()
    assert loss.item() == 0 and torch.equal(s.grad, torch.zeros_like(s))


def test_margin_ignores_new_samples_altogether():
    s, y = table(6, 4, 7), [0, 1, 2, 3, 2, 1]
    x = t64(s)
    margin_loss(x, tensor(y), 2).backward()
    assert not x.grad[[2, 3, 4]].any()
    old = [i for i in range(6) if y[i] < 2]
    alone = margin_loss(t64([s[i] for i in old]), tensor([y[i] for i in old]), 2)
    assert margin_loss(x, tensor(y), 2).item() == pytest.approx(alone.item(), **CLOSE)
    assert margin_loss(x[:0], tensor(y)[:0], 2).item() == 0


@pytest.mark.parametrize("n_old, k", [(3, 2), (2, 0), (2, -1), (2, 1.5), (5, 1), (-1, 1)])
def test_margin_refuses(n_old, k):
    with pytest.raises(ConfigError):
        margin_loss(t64(table(3, 4, 8)), tensor([0, 1, 2]), n_old, k=k)


# ---- distillation


def test_distillation():
    a, b = table(8, 5, 9), table(8, 5, 10)
    assert distillation_loss(t64(a), t64(b)).item() == pytest.approx(ref_distillation(a, b), **CLOSE)
    assert_gradient(lambda x: distillation_loss(x, t64(b)), a)


def test_distillation_by_hand_limits_and_no_gradient_for_the_old_model():
    a, b = t64([[1.0, 0.0], [3.0, 4.0]]), t64([[0.0, 1.0], [4.0, 3.0]])
    loss = distillation_loss(a, b)
    loss.backward()
    assert loss.item() == pytest.approx(0.52, **CLOSE) and b.grad is None
    assert a.grad.flatten().tolist() == pytest.approx([0, -0.5, -0.0224, 0.0168], abs=1e-12)
    assert distillation_loss(a, a * 3).item() == pytest.approx(0, abs=1e-12)
    assert distillation_loss(a, -a).item() == pytest.approx(2, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distillation_of_zero_rows_is_finite(dtype):
    a = torch.zeros(2, 3, dtype=dtype, requires_grad=True)
    loss = distillation_loss(a, tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]], dtype=dtype))
    loss.backward()
    assert loss.item() == 1 and a.grad.isfinite().all()


def test_distillation_weight():
    assert distillation_weight(2, 2) == 5
    assert distillation_weight(6, 2) == pytest.approx(8.660254037844386, **CLOSE)
    assert distillation_weight(9, 3) == pytest.approx(8.660254037844386, **CLOSE)
    assert distillation_weight(8, 2, base=1.0) == 2
    assert distillation_weight(1, 1) == 5 and distillation_weight(0, 2) == 0


@pytest.mark.parametrize("args", [(-1, 2), (2, 0), (2, 2, -1.0), (2, 2, float("nan")), (2, 2, float("inf"))])
def test_distillation_weight_refuses(args):
    with pytest.raises(ConfigError):
        distillation_weight(*args)


# ---- centroids and intra-domain contrast


def test_centroids():
    s, y = table(12, 4, 11), [0, 0, 2, 2, 2, 0, 1, 2, 0, 0, 2, 1]  # class 3 is absent
    got = class_centroids(t64(s), tensor(y), 4)
    for row, want in zip(got.tolist(), ref_centroids(s, y, 4), strict=True):
        assert row == pytest.approx(want, **CLOSE)
    assert got[3].tolist() == [0] * 4
    assert_gradient(lambda x: (class_centroids(x, tensor(y), 4) * t64(table(4, 4, 12)).detach()).sum(), s)


def test_centroids_by_hand_one_class_and_other_width():
    s = tensor([[1.0, 0.0, 4.0], [3.0, 2.0, 0.0], [5.0, 5.0, 5.0]])
    assert class_centroids(s, tensor([0, 0, 1]), 2).tolist() == [[2, 1, 2], [5, 5, 5]]
    assert class_centroids(s, tensor([0, 0, 0]), 1).tolist() == [[3, pytest.approx(7 / 3), 3]]
    assert class_centroids(s[:0], tensor([], dtype=torch.int64), 2).tolist() == [[0] * 3] * 2


def test_update_keeps_a_share_of_the_history_and_its_direction():
    old, new = t64([[1.0, 2.0], [4.0, 8.0]]), t64([[3.0, 0.0], [0.0, 0.0]])
    c = update_centroids(old, new, 0.9)
    c.sum().backward()
    assert c.flatten().tolist() == pytest.approx([2.8, 0.2, 0.4, 0.8], **CLOSE)
    assert old.grad is None and new.grad.flatten().tolist() == pytest.approx([0.9] * 4, **CLOSE)
    assert torch.equal(update_centroids(old, new, 1), new) and torch.equal(update_centroids(old, new, 0), old)


@pytest.mark.parametrize("rho", [-0.1, 1.1, float("nan")])
def test_update_refuses(rho):
    with pytest.raises(ConfigError):
        update_centroids(torch.zeros(2, 2), torch.ones(2, 2), rho)


@pytest.mark.parametrize("tau", [0.5, 1, 5])
@pytest.mark.parametrize("classes", [None, [0, 2, 4], [3]])
def test_intra_domain(tau, classes):
    s, t = table(5, 6, 13), table(5, 6, 14)
    got = intra_domain_loss(t64(s), t64(t), tau, classes)
    assert got.item() == pytest.approx(ref_intra_domain(s, t, tau, classes), **CLOSE)
    assert_gradient(lambda x: intra_domain_loss(x, t64(t), tau, classes), s)
    assert_gradient(lambda x: intra_domain_loss(t64(s), x, tau, classes), t)


def test_intra_domain_by_hand():
    "log(1 + 1/e) aligned, log(1 + e) exchanged, log K where all similarities are equal, 0 for one class."
    s, t = t64([[2.0, 0.0], [0.0, 0.5]]), t64([[0.1, 0.0], [0.0, 9.0]])
    assert intra_domain_loss(s, t).item() == pytest.approx(0.31326168751822286, abs=1e-9)
    assert intra_domain_loss(s, t.flip(0)).item() == pytest.approx(1.3132616875182228, abs=1e-9)
    assert intra_domain_loss(s, t, tau=5).item() == pytest.approx(math.log(1 + math.exp(-0.2)), abs=1e-9)
    assert intra_domain_loss(torch.ones(4, 3), torch.ones(4, 3)).item() == pytest.approx(math.log(4), rel=1e-6)
    assert intra_domain_loss(s[:1], t[:1]).item() == 0
    three = tensor(
        [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64
    )  # not symmetric: R = exp [[1,0,-1],[0,1,0],[0,1,0]]
    target = tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    e = math.e
    assert intra_domain_loss(three, target).item() == pytest.approx(
        math.log((3 * e + 1 / e + 5) / (2 * e + 1)), abs=1e-9
    )


def test_intra_domain_takes_indices_or_a_mask_and_nothing_is_zero():
    s, t = t64(table(5, 5, 15)), t64(table(5, 5, 16))
    mask = tensor([True, False, True, True, False])
    same = [intra_domain_loss(s, t, classes=c) for c in ([0, 2, 3], (0, 2, 3), tensor([0, 2, 3]), mask)]
    assert all(torch.equal(a, same[0]) for a in same)
    for none in ([], mask & ~mask):
        s.grad = None
        loss = intra_domain_loss(s, t, classes=none)
        loss.backward()
        assert loss.item() == 0 and torch.equal(s.grad, torch.zeros_like(s))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_intra_domain_of_zero_rows_is_finite(dtype):
    s, t = tensor(table(4, 4, 17), dtype=dtype), tensor(table(4, 4, 18), dtype=dtype)
    s[1], t[1], t[2] = 0, 0, 0
    got = intra_domain_loss(s.requires_grad_(True), t.requires_grad_(True))
    got.backward()
    assert got.item() == pytest.approx(ref_intra_domain(s.tolist(), t.tolist(), 1), rel=1e-5)
    assert s.grad.isfinite().all() and t.grad.isfinite().all()
    z = torch.zeros(3, 3, dtype=dtype, requires_grad=True)
    all_zero = intra_domain_loss(z, z)
    all_zero.backward()
    assert all_zero.item() == pytest.approx(math.log(3), rel=1e-6) and z.grad.isfinite().all()


def test_intra_domain_small_temperature_does_not_overflow():
    s = torch.eye(3, requires_grad=True)
    loss = intra_domain_loss(s, torch.eye(3), tau=1e-3)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6) and s.grad.isfinite().all()


@pytest.mark.parametrize("tau", [0, -1, float("nan"), float("inf")])
def test_intra_domain_refuses(tau):
    with pytest.raises(ConfigError):
        intra_domain_loss(torch.eye(2), torch.eye(2), tau)


def test_two_steps_of_the_whole_term():
    "Scores to centroids to running means to loss, over two batches with an absent class, against Python lists."
    rho, tau, run = 0.9, 5.0, [[[0.0] * 3] * 3] * 2
    source = target = torch.zeros(3, 3, dtype=torch.float64)
    for step in range(2):
        s, y, u = (
            table(10, 3, 20 + step),
            labels(10, 2, 30 + step),
            table(10, 3, 40 + step),
        )  # no labelled sample of class 2
        pseudo = [row.index(max(row)) for row in u]
        batch = [ref_centroids(s, y, 3), ref_centroids(u, pseudo, 3)]
        for d in range(2):
            run[d] = [[(1 - rho) * run[d][i][j] + rho * batch[d][i][j] for j in range(3)] for i in range(3)]
        x, v = t64(s), t64(u)
        source = update_centroids(source, class_centroids(x, tensor(y), 3), rho)
        target = update_centroids(target, class_centroids(v, v.argmax(1), 3), rho)
        loss = intra_domain_loss(source, target, tau)
        loss.backward()  # the history holds no graph: twice is no error
        assert loss.item() == pytest.approx(ref_intra_domain(*run, tau), **CLOSE)
        assert x.grad.isfinite().all() and x.grad.abs().max() < 10 and v.grad.any()


# ---- the sum

TERMS = ("cross_entropy", "distillation", "margin", "intra_domain")


def make_terms(x):
    y = tensor([0, 1, 2, 0, 3])
    return dict(
        cross_entropy=cn_cross_entropy(7 * x, y, tensor([1.0, 2.0, 3.0, 4.0])),
        distillation=distillation_loss(x, x.detach().flip(1)),
        margin=margin_loss(x, y, 2),
        intra_domain=intra_domain_loss(x[:4], x[1:]),
    )


@pytest.mark.parametrize("off", TERMS)
@pytest.mark.parametrize("nan", [False, True])
def test_weight_0_is_bitwise_the_loss_without_the_term(off, nan):
    weights = {"cross_entropy": 1.0, "distillation": 8.660254, "margin": 0.7, "intra_domain": 1.3}
    rows = table(5, 4, 50)
    x = torch.tensor(rows, requires_grad=True)
    terms = make_terms(x)
    if nan:
        terms[off] = terms[off] * float("nan")
    got = total_loss(terms, weights | {off: 0})
    got.backward()
    z = torch.tensor(rows, requires_grad=True)
    without, left = make_terms(z), None
    for name in TERMS:
        if name != off:
            left = weights[name] * without[name] if left is None else left + weights[name] * without[name]
    left.backward()
    assert torch.equal(got, left) and torch.equal(x.grad, z.grad)
    del terms[off]
    assert torch.equal(total_loss(terms, weights | {off: 0.0}), got)  # need not be there at all


def test_total_is_the_weighted_sum():
    terms = {n: tensor(v, dtype=torch.float64) for n, v in zip(TERMS, (1.5, 0.25, 0.1, 0.7), strict=True)}
    assert total_loss(terms, dict(zip(TERMS, (1.0, 5.0, 2.0, 0.5), strict=True))).item() == pytest.approx(
        1.5 + 1.25 + 0.2 + 0.35, **CLOSE
    )
    only = total_loss(terms, dict(zip(TERMS, (1, 0, 0, 0), strict=True)))
    assert torch.equal(only, terms["cross_entropy"])


@pytest.mark.parametrize(
    "weights",
    [
        {"a": -1.0},
        {"a": float("nan")},
        {"a": float("inf")},
        {"a": None},
        {"a": 0.0},
        {},
        {"b": 1.0},
        {"a": 1.0, "b": 1.0},
    ],
)
def test_total_refuses(weights):
    with pytest.raises(ConfigError):
        total_loss({"a": tensor(1.0)}, weights)


def test_a_losss_defaults_are_those_of_the_settings():
    "Training passes its settings on; whoever calls a loss bare gets the same loss."
    default = lambda f, name: inspect.signature(f).parameters[name].default
    assert default(margin_loss, "margin") == TrainConfig.margin
    assert default(margin_loss, "k") == TrainConfig.margin_k
    assert default(intra_domain_loss, "tau") == TrainConfig.tau
    assert default(distillation_weight, "base") == TrainConfig.distillation
