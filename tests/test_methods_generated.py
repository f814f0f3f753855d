"Methods that replay generated images, against loops and numpy; every test fails for a bug of a public implementation."

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from classimpression.methods import generated as G
from classimpression.carryover import hand_over
from classimpression.core.errors import ConfigError
from classimpression.data import tensor_digest
from classimpression.methods.generated import GeneratorConfig
from classimpression.heads import LinearHead
from classimpression.methods.registry import METHODS, first_task, sort_options
from classimpression.models import batch_norms, build_classifier
from classimpression.settings import TrainConfig
from classimpression.synthesis import Impressions
from classimpression.training import Batch, TaskData, start_model

NAMES = ("deepinversion", "abd", "r-dfcil")
FEW = dict(steps=2, images=40)
CFG = TrainConfig(epochs=2, lr=0.05, momentum=0.9, batch_size=32, synthetic_share=0.5)


def carried(scenario, cfg=CFG, bias=True):
    with scenario.training(0) as task:
        model, _ = first_task(task, cfg, linear=True, bias=bias)
        return hand_over(model, task, None, means=False)


def state(model):
    return tensor_digest(*model.state_dict().values())


def real_old(scenario):
    old = scenario.joint(0, reference=True)
    return Impressions(old.images(), old.y, {}, {})


def a_batch(n_old=3, n_new=2, n=5, d=8, seed=0):
    "Real images of new classes first, then as many of old ones; features only."
    g = torch.Generator().manual_seed(seed)
    y = torch.cat([torch.randint(n_old, n_old + n_new, (n,), generator=g), torch.randint(0, n_old, (n,), generator=g)])
    old = torch.randn(2 * n, d, generator=g)
    return Batch(None, y, old, None), old + 0.3 * torch.randn(2 * n, d, generator=g)


class Pair(nn.Module):
    "A model of which only the head matters."

    def __init__(self, n_old=3, n_new=2, d=8, bias=True):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.old, self.head = LinearHead(d, [n_old], bias), LinearHead(d, [n_old, n_new], bias)


def log_softmax(z):
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


# -- the objective of the generator


def test_statistics_term_is_the_divergence_of_every_layer():
    g, layers, inputs, want = torch.Generator().manual_seed(0), [], [], []
    for c in (3, 5):
        l, h = nn.BatchNorm2d(c), torch.randn(6, c, 4, 4, generator=g) * 2 + 1
        l.running_mean, l.running_var = torch.randn(c, generator=g), torch.rand(c, generator=g) + 0.5
        layers.append(l)
        inputs.append(h)
        a = h.double().numpy().transpose(1, 0, 2, 3).reshape(c, -1)
        mb, vb, mr, vr = a.mean(1), a.var(1), l.running_mean.numpy(), l.running_var.numpy()
        want.append(
            np.mean(
                [
                    np.log(np.sqrt(vb[k]) / np.sqrt(vr[k])) - 0.5 * (1 - (vr[k] + (mr[k] - mb[k]) ** 2) / vb[k])
                    for k in range(c)
                ]
            )
        )
    assert float(G.statistics_divergence(inputs, layers)) == pytest.approx(np.mean(want), rel=1e-5)


def test_diversity_and_roughness_follow_numpy():
    z = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    p = np.exp(log_softmax(z.double().numpy())).mean(0)
    assert float(G.diversity_loss(z)) == pytest.approx(1 + (p * np.log(p)).sum() / np.log(4), abs=1e-6)
    assert float(G.diversity_loss(z[:, :1])) == 0
    x = torch.rand(2, 3, 6, 7, generator=torch.Generator().manual_seed(1))
    k = np.array([[np.exp(-(dx**2 + dy**2) / 4) for dx in range(-2, 3)] for dy in range(-2, 3)])
    k /= k.sum()
    a = x.double().numpy()
    wide = np.pad(a, [(0, 0), (0, 0), (2, 2), (2, 2)], mode="reflect")
    blurred = sum(k[i, j] * wide[:, :, i : i + 6, j : j + 7] for i in range(5) for j in range(5))
    assert float(G.roughness(x)) == pytest.approx(((a - blurred) ** 2).mean(), rel=1e-4)


def test_content_term_divides_the_logits_by_the_temperature():
    teacher = build_classifier("small", 1, [3]).eval().requires_grad_(False)
    x = torch.rand(6, 1, 16, 16)
    z = teacher(x).double().numpy()
    for T in (1.0, 1000.0):
        want = -log_softmax(z / T)[range(6), z.argmax(1)].mean()
        assert float(
            G.generator_terms(teacher, x, GeneratorConfig(temperature=T), batch_norms(teacher))["cross_entropy"]
        ) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("n_old, channels, side", [(1, 1, 18), (3, 3, 16)])
def test_the_objective_teaches_the_generator_and_leaves_the_teacher_alone(n_old, channels, side):
    teacher = build_classifier("small", channels, [n_old]).eval()
    before, made = state(teacher), G.Generator((channels, side, side), 8, 4)
    teacher.requires_grad_(False)
    start = [p.detach().clone() for p in made.parameters()]
    terms = G.fit_generator(
        teacher, made, GeneratorConfig(steps=2, batch=8, n_noise=8), torch.Generator().manual_seed(0)
    )
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())
    assert sum(not torch.equal(a, b) for a, b in zip(start, made.parameters())) >= 8
    assert all(v.shape == (2, 1) and v.isfinite().all() for v in terms.values())
    assert (
        state(teacher) == before
        and not any(m.training for m in teacher.modules())
        and all(p.grad is None for p in teacher.parameters())
    )
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in teacher.modules())


def test_hooks_are_gone_after_an_error():
    teacher = build_classifier("small", 3, [2]).eval()
    with pytest.raises(RuntimeError):
        G.generator_terms(teacher, torch.rand(2, 1, 16, 16), GeneratorConfig(), batch_norms(teacher))
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in teacher.modules())


def test_settings_are_checked():
    for bad in (dict(steps=-1), dict(images=0), dict(batch=1), dict(temperature=0.0), dict(bn_weight=-1.0)):
        with pytest.raises(ConfigError):
            GeneratorConfig(**bad)
    with pytest.raises(ConfigError, match="bn_weight=0"):
        G.fit_generator(nn.Linear(2, 2), None, GeneratorConfig(), None)


# -- drawing images


@pytest.mark.parametrize("sizes, channels", [((1, 2), 1), ((3, 1), 3)])
def test_images_are_labelled_by_the_frozen_model_and_kept(toy, tmp_path, sizes, channels):
    scenario, cfg = toy(sizes, channels), replace(CFG, cache=str(tmp_path))
    carry = carried(scenario)
    before, rng, g = state(carry.model), torch.get_rng_state(), GeneratorConfig(**FEW, batch=8)
    with scenario.training(1) as task:
        a, b, c = (G.generate(carry, task, k, g) for k in (cfg, cfg, replace(cfg, cache=None)))
        other = G.generate(carry, task, replace(cfg, seed=1), g)
    assert a.x.shape == (40, channels, 16, 16) and a.x.dtype == torch.float32 and 0 <= a.x.min() and a.x.max() <= 1
    with torch.no_grad():
        assert torch.equal(carry.model(a.x).argmax(1), a.y) and a.y.max() < sizes[0]
    assert [k.settings["reused"] for k in (a, b, c)] == [False, True, False] and len(
        list(tmp_path.glob("generated-*.safetensors"))
    ) == 2
    assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y) and torch.equal(a.x, c.x) and not torch.equal(a.x, other.x)
    assert state(carry.model) == before and not carry.model.training and torch.equal(torch.get_rng_state(), rng)
    assert a.x[0].sub(a.x[1]).abs().max() > 1e-3


def test_another_teacher_gets_other_images(toy, tmp_path):
    cfg, g = replace(CFG, cache=str(tmp_path)), GeneratorConfig(**FEW, batch=8)
    digests = []
    for cfg_0 in (CFG, replace(CFG, seed=5)):
        scenario = toy()
        carry = carried(scenario, cfg_0)
        with scenario.training(1) as task:
            digests.append(tensor_digest(G.generate(carry, task, cfg, g).x))
    assert digests[0] != digests[1]


# -- the three methods


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sizes, channels, per_class", [((1, 1), 1, 30), ((2, 3), 3, 30)])
def test_a_second_task_of_any_size(toy, name, sizes, channels, per_class):
    scenario, fit = toy(sizes, channels, per_class), METHODS[name].fit
    carry = carried(scenario, bias=name != "r-dfcil")
    before = state(carry.model)
    with scenario.training(1) as task:
        model, history = fit(carry, task, None, CFG, **FEW)
    assert model.head.sizes == list(sizes) and state(carry.model) == before and not model.training
    assert all(np.isfinite(v).all() and len(v) == len(history.lr) for v in history.terms.values())
    assert model.head.bias == (name != "r-dfcil") and all(
        not torch.equal(a, b) for a, b in zip(model.head.blocks[:1], carry.model.head.blocks) if sum(sizes) > 2
    )


@pytest.mark.parametrize("name", NAMES)
def test_given_images_take_the_place_of_generated_ones(toy, name, monkeypatch):
    scenario = toy((2, 2))
    carry, given = carried(scenario, bias=name != "r-dfcil"), real_old(scenario)
    monkeypatch.setattr(G, "generate", lambda *a: pytest.fail("generated although images were given"))
    others = replace(given, x=torch.rand(given.x.shape))
    with scenario.training(1) as task:
        a, b, c = (state(METHODS[name].fit(carry, task, k, CFG)[0]) for k in (given, given, others))
    assert a == b != c


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_and_augmented_images(toy, name):
    scenario = toy((2, 1))
    carry = carried(scenario, bias=name != "r-dfcil")
    with scenario.training(1) as task:
        _, history = METHODS[name].fit(
            carry, task, None, replace(CFG, epochs=1, dtype="bfloat16", augment_shift=1), **FEW
        )
    assert all(np.isfinite(v).all() for v in history.terms.values())


def test_saved_seconds_are_counted(toy, tmp_path):
    scenario, cfg = toy(), replace(CFG, epochs=1, cache=str(tmp_path))
    carry = carried(scenario)
    with scenario.training(1) as task:
        cached_seconds = [
            METHODS[n].fit(carry, task, None, cfg, **FEW)[1].cached_seconds for n in ("abd", "deepinversion")
        ]
    assert cached_seconds[0] == {} and set(cached_seconds[1]) == {"seconds", "cpu_seconds"}


def test_declarations():
    for n in NAMES:
        m = METHODS[n]
        assert (m.tier, m.impressions, m.means, m.exemplars, m.first) == (
            "M0",
            False,
            False,
            0,
            "",
        ) and m.hyper_parameters["steps"] == 10000
        assert m.training["batch_size"] == 128 and m.training["synthetic_share"] == 0.5 and "epochs" not in m.training
        assert sort_options(m, dict(steps=5, lr=0.1))[1]["steps"] == 5


def test_deepinversion_distils_over_all_classes_on_generated_images():
    m, (b, f) = Pair(), a_batch()
    f.requires_grad_()
    terms = G.deepinversion_terms(m, f, b, m.old)
    z, zh = (t.detach().double().numpy() for t in (m.head(f), m.old(b.old)))
    p = np.exp(log_softmax(zh / 2))
    real, synthetic = range(5), range(5, 10)
    assert terms["cross_entropy"].item() == pytest.approx(-log_softmax(z)[real, b.y[:5].numpy()].mean(), rel=1e-5)
    assert terms["distillation"].item() == pytest.approx(-(p[:5] * log_softmax(z[:5, :3] / 2)).sum(1).mean(), rel=1e-5)
    padded = np.concatenate([p, np.zeros((10, 2))], 1)
    assert terms["replay"].item() == pytest.approx(
        -np.mean([(padded[i] * log_softmax(z / 2)[i]).sum() for i in synthetic]), rel=1e-5
    )
    slope = torch.autograd.grad(terms["replay"], m.head.blocks[1], retain_graph=True)[0]
    assert slope.abs().min() > 0  # new logits are pushed down on old images: no such term without padding
    other = Batch(None, torch.cat([b.y[:5], (b.y[5:] + 1) % 3]), b.old, None)
    assert G.deepinversion_terms(m, f, other, m.old)["replay"].item() == terms["replay"].item()  # no hard labels


def test_abd_weights_belong_to_classes_and_reach_any_label():
    assert G.balance(40, 50).tolist() == pytest.approx([0.8] * 40 + [0.2] * 10)
    m, (b, f) = Pair(40, 10, 8), a_batch(40, 10, n=3)  # labels up to 49, six samples
    z, w = m.head(f).detach().double().numpy(), np.where(np.arange(50) < 40, 0.8, 0.2)
    b = replace(b, y=torch.tensor([49, 40, 47, 0, 39, 13]))
    terms = G.abd_terms(m, f, b, m.old)
    assert terms["head_only"].item() == pytest.approx(-(w[b.y] * log_softmax(z)[range(6), b.y]).mean(), rel=1e-5)
    assert terms["among_new"].item() == pytest.approx(
        -0.2 * log_softmax(z[:3, 40:])[range(3), b.y[:3] - 40].mean(), rel=1e-5
    )


def test_abd_head_learns_on_detached_features_and_drift_is_seen_by_the_old_head():
    m, (b, f) = Pair(), a_batch()
    f.requires_grad_()
    terms = G.abd_terms(m, f, b, m.old.requires_grad_(False))
    assert torch.autograd.grad(terms["head_only"], f, allow_unused=True, retain_graph=True)[0] is None
    assert all(
        g.abs().max() > 0 for g in torch.autograd.grad(terms["head_only"], list(m.head.blocks), retain_graph=True)
    )
    slope = torch.autograd.grad(terms["among_new"], f, retain_graph=True)[0]
    assert slope[:5].abs().min() > 0 and slope[5:].abs().max() == 0  # only new images shape the features
    W, gap = m.old.weight.double().numpy(), (f.detach() - b.old).double().numpy()
    want = np.mean([sum((W[k] @ gap[i]) ** 2 for k in range(3)) / 3 for i in range(10)])
    assert terms["distillation"].item() == pytest.approx(want, rel=1e-4)
    assert torch.autograd.grad(terms["distillation"], f)[0].abs().sum(1).min() > 0


def test_one_new_class_is_learned_from_all_logits():
    m, (b, f) = Pair(3, 1), a_batch(3, 1)
    for terms in (
        G.abd_terms(m, f, b, m.old),
        G.r_dfcil_terms(m, f, b, m.old, nn.ModuleList([nn.Linear(8, 16), nn.Linear(8, 16)])),
    ):
        assert terms["among_new"] > 0.01


@pytest.mark.parametrize("part", [slice(0, 5), slice(5, 10)])
def test_a_batch_may_lack_real_or_synthetic_images(part):
    m, (b, f) = Pair(), a_batch()
    b, f, maps = (
        Batch(None, b.y[part], b.old[part], None),
        f[part].requires_grad_(),
        nn.ModuleList([nn.Linear(8, 16), nn.Linear(8, 16)]),
    )
    for terms in (
        G.deepinversion_terms(m, f, b, m.old),
        G.abd_terms(m, f, b, m.old),
        G.r_dfcil_terms(m, f, b, m.old, maps),
    ):
        assert all(v.isfinite() for v in terms.values())
        assert torch.autograd.grad(sum(terms.values()), f, retain_graph=True)[0].isfinite().all()


def test_angles_follow_a_triple_loop():
    g = torch.Generator().manual_seed(0)
    f, h = torch.randn(5, 4, generator=g), torch.randn(5, 4, generator=g)

    def cosine(a, i, j, k):
        u, v = a[i] - a[j], a[i] - a[k]
        return 0.0 if i in (j, k) else u @ v / np.linalg.norm(u) / np.linalg.norm(v)

    a, b = f.double().numpy(), h.double().numpy()
    want = np.mean([abs(cosine(a, i, j, k) - cosine(b, i, j, k)) for i in range(5) for j in range(5) for k in range(5)])
    assert float(G.angle_loss(f, h)) == pytest.approx(want, rel=1e-5)
    close = f[[0, 0, 1, 2]] + torch.tensor([1e-7, 0, 0, 0])[:, None]  # the same image twice, up to rounding
    close.requires_grad_()
    G.angle_loss(close, h[[0, 0, 1, 2]]).backward()
    assert close.grad.abs().max() < 10


def test_r_dfcil_terms_and_maps():
    m, (b, f) = Pair(bias=False), a_batch(n=40)
    maps = nn.ModuleList([nn.Linear(8, 16, bias=False), nn.Linear(8, 16, bias=False)])
    terms = G.r_dfcil_terms(m, f.requires_grad_(), b, m.old, maps)
    z, zh = (t.detach().double().numpy() for t in (m.head(f), m.old(b.old)))
    assert terms["outputs"].item() == pytest.approx(abs(z[40:, :3] - zh[40:]).mean(), rel=1e-5)
    slope = torch.autograd.grad(terms["angles"], [f, *maps.parameters()])
    assert (
        slope[0][:32].abs().sum(1).min() > 0
        and slope[0][32:].abs().max() == 0
        and all(s.abs().max() > 0 for s in slope[1:])
    )


def test_r_dfcil_second_phase_moves_the_head_only(toy, monkeypatch):
    scenario = toy((2, 2))
    carry, old, seen, train = carried(scenario, bias=False), real_old(scenario), [], G.train

    def spy(model, *args):
        out = train(model, *args)
        seen.append((args[3], args[2], {k: v.clone() for k, v in out[0].state_dict().items()}))
        return out

    monkeypatch.setattr(G, "train", spy)
    with scenario.training(1) as task:
        start = start_model(carry, task, CFG).state_dict()
        model, history = METHODS["r-dfcil"].fit(carry, task, old, replace(CFG, epochs=10), rkd=0.25)
    (a, wa, first), (b, wb, last) = seen
    assert (
        (a.epochs, b.epochs, b.lr, b.schedule) == (8, 2, 0.005, "constant")
        and history.lr[-2:] == [0.005, 0.005]
        and len(history.lr) == 10
    )
    assert (
        all(torch.equal(first[k], last[k]) for k in first if k.startswith("backbone")) and len(batch_norms(model)) == 9
    )
    assert all(not torch.equal(first[k], last[k]) for k in first if k.startswith("head"))
    assert all(
        not torch.equal(first[k], start[k]) for k in first if "running" in k
    )  # the first phase moves the statistics
    alpha, beta = np.log2(2), 1.0
    assert wa == pytest.approx(
        dict(among_new=0.5 * (1 + 1 / alpha) / beta, outputs=0.15 * alpha * beta, angles=0.25 * alpha * beta)
    )
    assert wb == pytest.approx(dict(balanced=0.5, outputs=0.15 * alpha * beta))


def test_r_dfcil_counts_draws_not_files(toy):
    scenario = toy((2, 2))
    carry = carried(scenario)
    old = real_old(scenario)
    few = Impressions(old.x[old.y == 0][:3], old.y[old.y == 0][:3], {}, {})
    with scenario.training(1) as task:
        n, m = len(task.train), TaskData(task, few, replace(CFG, synthetic_share=0.75), carry.model)
    assert G.expected_counts(m, 4).tolist() == pytest.approx([3 * n, 1, n / 2, n / 2])
