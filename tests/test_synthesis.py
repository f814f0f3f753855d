"Synthesis against an independent computation of the published formulas, and what it must never do."

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from classimpression.carryover import Carryover
from classimpression.core.errors import ConfigError, StateError
from classimpression.core.speed import compiler_works
from classimpression.heads import CosineHead
from classimpression.models import Classifier, build_classifier, frozen_copy
from classimpression.synthesis import PUBLISHED_SYNTHESIS, Impressions, SynthesisConfig, captured_inputs, descend
from classimpression.synthesis import draw_group, impression_loss, synthesis_rate, synthesize


@pytest.fixture(scope="module")
def carry():
    "A frozen network whose normalisation statistics are not the initial ones, with four classes."
    model = build_classifier("small", 3, [2, 2], seed=7).train()
    g = torch.Generator().manual_seed(1)
    for _ in range(3):
        model(torch.rand(32, 3, 32, 32, generator=g))
    return Carryover(frozen_copy(model), 4, torch.rand(4, 3, 32, 32, generator=g))


def published_terms(model, x, y):
    "The terms in numpy loops, from the text of paper.md and nothing else."
    inputs, layers = [], [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    handles = [m.register_forward_pre_hook(lambda _, a: inputs.append(a[0].detach().double().numpy())) for m in layers]
    with torch.no_grad():
        logits = model(x).double().numpy()
    for h in handles:
        h.remove()
    ce = np.mean([math.log(sum(math.exp(v) for v in row)) - row[k] for row, k in zip(logits, y.tolist())])
    bn = 0.0
    for i, (a, m) in enumerate(zip(inputs, layers)):
        mean = [a[:, c].mean() for c in range(a.shape[1])]
        var = [((a[:, c] - mean[c]) ** 2).mean() for c in range(a.shape[1])]
        d_mean = math.sqrt(sum((p - q) ** 2 for p, q in zip(mean, m.running_mean.tolist())))
        d_var = math.sqrt(sum((p - q) ** 2 for p, q in zip(var, m.running_var.tolist())))
        bn += (10 if i == 0 else 1) * (d_mean + d_var)
    p = x.double().numpy()
    H, W = p.shape[2:]
    repeats = {
        "right": ((0, 0), (0, 1)),
        "down": ((0, 0), (1, 0)),
        "diagonal": ((0, 0), (1, 1)),
        "other diagonal": ((0, 1), (1, 0)),
    }
    tv = tv1 = 0.0
    for (r0, c0), (r1, c1) in repeats.values():
        h, w = H - max(r0, r1), W - max(c0, c1)
        d = p[:, :, r0 : r0 + h, c0 : c0 + w] - p[:, :, r1 : r1 + h, c1 : c1 + w]
        tv += math.sqrt((d**2).sum())
        tv1 += abs(d).mean()
    l2 = np.mean([math.sqrt((image**2).sum()) for image in p])
    return dict(cross_entropy=ce, statistics=bn, tv=tv, tv1=tv1, l2=l2)


def test_every_term_equals_the_published_formula(carry):
    x, y = torch.rand(10, 3, 32, 32, generator=torch.Generator().manual_seed(2)), torch.arange(10) % 4
    cfg = SynthesisConfig(ce_weight=2.0, bn_weight=3.0, tv_weight=0.5, tv1_weight=0.25, l2_weight=0.1)
    total, terms = impression_loss(carry.model, x, y, cfg)
    wanted = published_terms(carry.model, x, y)
    for name, value in wanted.items():
        assert terms[name].item() == pytest.approx(value, rel=2e-5), name
    weights = dict(cross_entropy=2.0, statistics=3.0, tv=0.5, tv1=0.25, l2=0.1)
    assert total.item() == pytest.approx(sum(weights[k] * v for k, v in wanted.items()), rel=2e-5)


def test_groups_have_the_gradients_they_would_have_alone(carry):
    cfg, g = SynthesisConfig(tv1_weight=0.3), torch.Generator().manual_seed(3)
    x, y = torch.rand(5 * 40, 3, 32, 32, generator=g), torch.randint(0, 4, (200,), generator=g)
    together = x.clone().requires_grad_()
    total, _ = impression_loss(carry.model, together, y, cfg, 5)
    total.sum().backward()
    for k in range(5):
        rows = slice(40 * k, 40 * k + 40)
        alone = x[rows].clone().requires_grad_()
        value, _ = impression_loss(carry.model, alone, y[rows], cfg)
        value.sum().backward()
        assert value.item() == pytest.approx(total[k].item(), rel=1e-5)
        assert (alone.grad - together.grad[rows]).norm() <= 1e-5 * alone.grad.norm()


@pytest.mark.slow
def nearly_all_alike(a, b):
    """But for rounding, which Adam enlarges in single pixels whose gradient is next to nothing: 71 of 153,600 at most
    over three seeds, and 4e-6 on average.
    """
    d = (a - b).abs()
    return float(d.mean()) <= 1e-5 and float((d > 1e-3).double().mean()) <= 1e-3


def test_images_do_not_depend_on_the_chunks(carry):
    cfg = SynthesisConfig(groups=5, group_size=10, steps=20, warmup=5)
    one, *others = (synthesize(carry, cfg, seed=1, chunk=chunk) for chunk in (1, 2, 3, 5))
    for many in others:
        assert torch.equal(one.y, many.y) and nearly_all_alike(one.x, many.x)
    assert not nearly_all_alike(one.x, synthesize(carry, replace(cfg, lr=0.0501), seed=1).x), "a slip is seen"


def test_groups_do_not_depend_on_each_other_or_on_their_order(carry):
    few, more = (
        SynthesisConfig(groups=2, group_size=8, steps=5, warmup=2),
        SynthesisConfig(groups=4, group_size=8, steps=5, warmup=2),
    )
    assert torch.equal(synthesize(carry, few, seed=1).x, synthesize(carry, more, seed=1).x[:16])
    a, b = (draw_group(carry, few, 1, "synthesis", 1, g) for g in (0, 1))
    ab, ba = (
        descend(
            carry.model,
            torch.cat([p[0], q[0]]),
            torch.cat([p[1], q[1]]),
            torch.stack([p[2], q[2]], 1),
            torch.stack([p[3], q[3]], 1),
            few,
        )[0]
        for p, q in ((a, b), (b, a))
    )
    assert nearly_all_alike(ab[:8], ba[8:]) and nearly_all_alike(ab[8:], ba[:8])


def test_the_kept_batch_is_the_one_after_the_lowest_loss(carry):
    """An independent loop: torch's Adam, views by index, the batch stored after the step whose loss before it was
    lowest.
    """
    cfg = SynthesisConfig(groups=1, group_size=6, steps=12, warmup=3, shift=5, lr=1.0)
    x0, y, shifts, flips = draw_group(carry, cfg, 8, "synthesis", 1, 0)
    x, lowest, kept = x0.clone().requires_grad_(), math.inf, None
    adam = torch.optim.Adam([x], betas=(0.5, 0.9))
    for s in range(12):
        adam.param_groups[0]["lr"] = (s + 1) / 3 if s < 3 else 0.2 * (1 + math.cos(math.pi * (s - 3) / 9))
        rows, cols = (torch.arange(32) - shifts[s, 0]) % 32, (torch.arange(32) - shifts[s, 1]) % 32
        view = x[:, :, rows][:, :, :, cols]
        if flips[s]:
            view = view[..., torch.arange(31, -1, -1)]
        loss = impression_loss(carry.model, view, y, cfg)[0].sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            x.clamp_(0, 1)
        if loss.item() < lowest:
            lowest, kept = loss.item(), x.detach().clone()
    made = synthesize(carry, cfg, seed=8)
    assert (kept - x).abs().max() > 0.01, "the lowest loss is not the last one"
    assert (made.x - kept).abs().mean() <= 1e-3  # Adam turns a rounding error into a step
    assert made.terms["total"].min().item() == pytest.approx(lowest, rel=1e-4)


def test_rate_falls_to_two_fifths_after_the_warm_up():
    cfg = SynthesisConfig()
    assert (
        synthesis_rate(99, cfg) == pytest.approx(0.05)
        and synthesis_rate(100, cfg) == pytest.approx(0.02)
        and synthesis_rate(4999, cfg) < 1e-7
    )


def test_labels_are_uniform_over_old_classes_and_the_start_is_the_mean(carry):
    cfg = SynthesisConfig(groups=1, group_size=4000, steps=0)
    x, y, _, _ = draw_group(carry, cfg, 0, "synthesis", 1, 0)
    assert np.bincount(y.numpy(), minlength=4).min() > 900
    inside = (carry.means[y] > 0.4) & (carry.means[y] < 0.6)
    noise = (x - carry.means[y])[inside]
    assert abs(noise.mean()) < 0.001 and abs(noise.std() - 0.1) < 0.001
    assert 0 <= x.min() and x.max() <= 1


def test_nothing_is_left_behind(carry):
    before = {k: v.clone() for k, v in carry.model.state_dict().items()}
    state = torch.get_rng_state()
    synthesize(carry, SynthesisConfig(groups=1, group_size=4, steps=3, warmup=1))
    impression_loss(carry.model, carry.means, torch.arange(4), SynthesisConfig())
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in carry.model.state_dict().items())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in carry.model.modules())
    assert all(p.grad is None and not p.requires_grad for p in carry.model.parameters()) and not carry.model.training
    with pytest.raises(RuntimeError, match="boom"):
        with captured_inputs([carry.model.backbone.stem[1]]):
            raise RuntimeError("boom")
    assert not carry.model.backbone.stem[1]._forward_pre_hooks


def test_bfloat16_finds_the_same_terms(carry):
    x, y = carry.means.repeat(10, 1, 1, 1), torch.arange(40) % 4
    _, exact = impression_loss(carry.model, x, y, SynthesisConfig())
    with torch.autocast("cpu", torch.bfloat16):
        _, rough = impression_loss(carry.model, x, y, SynthesisConfig())
    for k in exact:
        assert rough[k].item() == pytest.approx(exact[k].item(), rel=0.02), k


class BackToFront(nn.Module):
    "Declares its normalisation in another order than it uses it, and one layer that it never calls."

    def __init__(self):
        super().__init__()
        self.second, self.never, self.first = (nn.BatchNorm2d(3) for _ in range(3))
        self.conv, self.fc = nn.Conv2d(3, 3, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.fc(self.second(self.conv(self.first(x))).mean((2, 3)))


def test_statistics_are_compared_with_those_of_the_layer_that_is_called():
    torch.manual_seed(0)
    net, x = BackToFront(), torch.rand(16, 3, 8, 8)
    for m in (net.first, net.second):
        m.momentum = 1.0
    net.train()(x)  # now it remembers these images
    _, terms = impression_loss(frozen_copy(net), x, torch.zeros(16, dtype=torch.int64), SynthesisConfig())
    assert terms["statistics"].item() < 0.01  # but for n and n - 1; in the order of declaration it would be above 1


def test_an_objective_that_is_no_number_is_refused(carry):
    broken = frozen_copy(carry.model)
    broken.backbone.stem[1].running_var[0] = float("nan")
    with pytest.raises(StateError, match="NaN"):
        synthesize(Carryover(broken, 4, carry.means), SynthesisConfig(groups=1, group_size=4, steps=2, warmup=1))


class NoNorm(nn.Module):
    "A classifier without batch normalisation."

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3 * 32 * 32, 4)

    def forward(self, x):
        return self.fc(x.flatten(1))


def test_networks_without_batch_normalisation(carry):
    plain = Carryover(frozen_copy(NoNorm()), 4, carry.means)
    with pytest.raises(ConfigError, match="set bn_weight=0"):
        synthesize(plain, SynthesisConfig(steps=1))
    assert set(synthesize(plain, SynthesisConfig(groups=1, group_size=4, steps=2, bn_weight=0.0)).terms) == {
        "total",
        "cross_entropy",
        "tv",
        "tv1",
        "l2",
    }


@pytest.mark.parametrize(
    "bad",
    [
        dict(ce_weight=-1.0),
        dict(tv_weight=float("nan")),
        dict(l2_weight=float("inf")),
        dict(groups=0),
        dict(steps=-1),
        dict(lr=0.0),
        dict(start="zebra"),
        dict(beta1=1.0),
        dict(dtype="float16"),
        dict(group_size=True),
    ],
)
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ConfigError):
        SynthesisConfig(**bad)


def test_published_values():
    assert PUBLISHED_SYNTHESIS["blood"] == dict(tv_weight=(0.01, 0.001, 0.01), groups=(16, 24, 30))
    assert PUBLISHED_SYNTHESIS["path"] == dict(tv_weight=(0.01, 0.01, 0.001), groups=(16, 25, 35))
    assert PUBLISHED_SYNTHESIS["organa"] == dict(tv_weight=(0.1, 0.001, 0.1), groups=(16, 24, 30))
    assert PUBLISHED_SYNTHESIS["tissue"] == dict(tv_weight=(0.01, 0.001, 0.001), groups=(16, 24, 30))
    cfg = SynthesisConfig()
    assert (
        cfg.steps,
        cfg.group_size,
        cfg.bn_weight,
        cfg.l2_weight,
        cfg.tv1_weight,
        cfg.lr,
        cfg.beta1,
        cfg.beta2,
        cfg.warmup,
        cfg.shift,
    ) == (5000, 40, 1.0, 0.1, 0.0, 0.05, 0.5, 0.9, 100, 30)


def test_divergence_and_foreign_files_are_reported(carry, tmp_path):
    broken = Carryover(frozen_copy(carry.model), 4, torch.full((4, 3, 32, 32), float("nan")))
    with pytest.raises(StateError, match="NaN"):
        synthesize(broken, SynthesisConfig(groups=1, group_size=2, steps=1))
    with pytest.raises(StateError, match="class means"):
        synthesize(Carryover(carry.model, 4), SynthesisConfig(steps=1))
    (tmp_path / "x.safetensors").write_bytes(b"not a tensor file at all")
    with pytest.raises(StateError, match="cannot read"):
        Impressions.load(tmp_path / "x.safetensors")


class Tiny(nn.Module):
    "Small enough to be compiled in some seconds."

    n_features = 4

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU())

    def features(self, x):
        return self.net(x).mean((2, 3))


@pytest.fixture
def tiny():
    return Carryover(
        frozen_copy(Classifier(Tiny(), CosineHead(4, [2]))),
        2,
        torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(3)),
    )


@pytest.mark.slow
def test_compiled_steps_equal_plain_ones(tiny, near=1e-4):
    if not compiler_works():
        pytest.skip("torch.compile does not work here")
    settings = dict(groups=2, group_size=4, steps=3, warmup=0)
    plain, fast = (synthesize(tiny, SynthesisConfig(compiled=c, **settings), chunk=2) for c in (False, True))
    for name, values in plain.terms.items():
        torch.testing.assert_close(fast.terms[name], values, rtol=near, atol=near)
    assert not fast.settings == plain.settings  # what was done is written down
    assert (fast.x - plain.x).abs().mean() < near
    assert not any(m._forward_pre_hooks for m in tiny.model.modules())


def test_without_a_compiler_the_synthesis_warns_and_goes_on(tiny, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no compiler in sight")

    compiler_works.cache_clear()
    monkeypatch.setattr(torch, "compile", broken)
    settings = dict(groups=1, group_size=4, steps=2)
    with pytest.warns(UserWarning, match="no compiler in sight"):
        got = synthesize(tiny, SynthesisConfig(compiled=True, **settings))
    compiler_works.cache_clear()
    assert torch.equal(got.x, synthesize(tiny, SynthesisConfig(**settings)).x)
