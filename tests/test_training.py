"The update of the model, the methods, and the contracts of what they may see."

from dataclasses import replace

import pytest
import torch

from classimpression.carryover import Carryover, ExemplarCarryover, Extra, allowed_tier, hand_over, load_carryover
from classimpression.carryover import save_carryover
from classimpression.core.errors import ConfigError, DataError, LeakError, StateError
from classimpression.data import tensor_digest
from classimpression.core.seeding import generator
from classimpression.losses import class_centroids, class_weights, cn_cross_entropy, distillation_loss
from classimpression.losses import intra_domain_loss, margin_loss, update_centroids
from classimpression.methods.registry import METHODS, find_method, joint, method
from classimpression.models import batch_norms, build_classifier
from classimpression.settings import TrainConfig, epoch_rate, published_training
from classimpression.synthesis import Impressions, SynthesisConfig, synthesize
from classimpression.training import Batch, TaskData, class_impression_terms, draw_epoch, epoch_batches, fit_task
from classimpression.tasks import from_arrays
from classimpression.training import accuracy_of, start_model

CFG = TrainConfig(epochs=2, batch_size=20)
FEW = SynthesisConfig(groups=2, group_size=10, steps=6, warmup=2, shift=3)
weights = lambda model: tensor_digest(*model.state_dict().values())


def first_task(scenario, cfg=CFG):
    with scenario.training(0, cfg.pool) as task:
        model, _ = fit_task(None, task, None, cfg)
        return hand_over(model, task, None)


@pytest.mark.parametrize("sizes, channels", [((1, 3, 1), 1), ((1, 1), 3), ((2, 2), 3), ((3, 1), 3)])
def test_any_sequence_of_tasks_runs(toy, sizes, channels):
    scenario = toy(sizes, channels)
    carry = first_task(scenario)
    for t in range(1, len(sizes)):
        impressions = synthesize(carry, FEW, seed=0, task=t)
        with scenario.training(t, CFG.pool) as task:
            model, history = fit_task(carry, task, impressions, CFG)
            carry = hand_over(model, task, carry)
        assert model.head.sizes == list(sizes[: t + 1]) and set(history.terms) == {
            "cross_entropy",
            "distillation",
            "margin",
            "intra_domain",
        }
        assert all(torch.isfinite(torch.tensor(v)).all() for v in history.terms.values())
    assert carry.means.shape[0] == sum(sizes) and carry.tier == "M1" and carry.images == 0


@pytest.mark.slow
def test_the_method_learns_what_fine_tuning_forgets(toy):
    "On easy data: old classes survive with impressions better than without."
    old = {}
    for name in ("class-impression", "fine-tuning"):
        scenario = toy((2, 2), per_class=90)
        cfg = replace(CFG, epochs=6)
        carry = first_task(scenario, cfg)
        impressions = synthesize(carry, replace(FEW, groups=4, steps=40, warmup=5), seed=0, task=1)
        with scenario.training(1, cfg.pool) as task:
            model, _ = find_method(name).fit(carry, task, impressions, cfg)
        old[name] = accuracy_of(model, scenario.test(0))
    assert old["class-impression"] > old["fine-tuning"] + 20, old


def test_same_seed_same_bytes_other_seed_other_weights(toy):
    def once(seed):
        scenario, cfg = toy(), replace(CFG, seed=seed)
        carry = first_task(scenario, cfg)
        impressions = synthesize(carry, FEW, seed=seed)
        with scenario.training(1, cfg.pool, seed=seed) as task:
            return (
                weights(carry.model),
                tensor_digest(impressions.x),
                weights(fit_task(carry, task, impressions, cfg)[0]),
            )

    torch.manual_seed(1)
    a = once(0)
    torch.manual_seed(2)
    b = once(0)  # the global generator does not matter
    assert a == b and all(x != y for x, y in zip(a, once(1)))


def test_one_step_equals_a_computation_by_hand(toy):
    """One batch, all four terms, weights of the paper: the new parameters are the old ones minus lr times the gradient
    of the sum.
    """
    scenario = toy((2, 2))
    carry, cfg = (
        first_task(scenario),
        replace(CFG, epochs=1, batch_size=1000, classes_per_task=3, margin=0.4, rho=0.7, tau=2.0, schedule="constant"),
    )
    impressions = synthesize(carry, FEW)
    with scenario.training(1, "new-train") as task:
        model, history = fit_task(carry, task, impressions, cfg)
        reference = start_model(carry, task, cfg)
        m = TaskData(task, impressions, cfg, carry.model)
        (b,) = epoch_batches(m, 0)
        counts = torch.bincount(torch.cat([task.train.y, impressions.y]), minlength=4)
    f = reference.features(b.x)
    s = reference.head.scores(f)
    for l in reference.modules():
        if isinstance(l, torch.nn.BatchNorm2d):
            l.momentum = 0.0  # the pool's pass leaves running statistics alone
    p = reference.head.scores(reference.features(b.pool))
    source = update_centroids(torch.zeros(4, 4), class_centroids(s, b.y, 4), 0.7)
    target = update_centroids(torch.zeros(4, 4), class_centroids(p, p.argmax(1), 4), 0.7)
    terms = dict(
        cross_entropy=cn_cross_entropy(reference.head.sigma * s, b.y, class_weights(counts)),
        distillation=distillation_loss(f, carry.model.features(b.x)),
        margin=margin_loss(s, b.y, 2, 0.4),
        intra_domain=intra_domain_loss(source, target, 2.0),
    )
    λ = 5 * (2 / 3) ** 0.5
    (terms["cross_entropy"] + λ * terms["distillation"] + terms["margin"] + terms["intra_domain"]).backward()
    for k, v in terms.items():
        assert history.terms[k][0] == pytest.approx(v.item(), rel=1e-4, abs=1e-6), k
    assert history.weights["distillation"] == pytest.approx(λ)
    for (name, old), new in zip(reference.named_parameters(), model.parameters()):
        step = torch.zeros_like(old) if old.grad is None else 0.1 * old.grad
        torch.testing.assert_close(new.detach(), (old - step).detach(), rtol=1e-4, atol=2e-6, msg=name)
    assert name.startswith("head")


def test_weight_zero_is_the_loss_without_the_term(toy):
    scenario = toy()
    carry = first_task(scenario)
    impressions = synthesize(carry, FEW)

    def fit(**changes):
        cfg, again = replace(CFG, **changes), scenario.again()
        with again.training(1, cfg.pool) as task:
            return weights(fit_task(carry, task, impressions, cfg)[0])

    bare = fit(distillation=0.0, margin_weight=0.0, idc_weight=0.0)
    assert bare == fit(
        distillation=0.0,
        margin_weight=0.0,
        idc_weight=0.0,
        pool="none",
        margin=1.0,
        rho=0.3,
        tau=3.0,
        classes_per_task=7,
    )
    assert (
        len(
            {
                bare,
                fit(margin_weight=0.0, idc_weight=0.0),
                fit(distillation=0.0, idc_weight=0.0),
                fit(distillation=0.0, margin_weight=0.0),
            }
        )
        == 4
    )


def test_masked_intra_domain_loss_and_pool_updates_change_the_result(toy):
    scenario = toy()
    carry = first_task(scenario)
    impressions = synthesize(carry, FEW)
    seen = set()
    for changes in (dict(), dict(idc_classes="pool"), dict(bn_update=True), dict(pool="new-val"), dict(pool="test")):
        cfg, again = replace(CFG, **changes), scenario.again()
        with again.training(1, cfg.pool) as task:
            seen.add(weights(fit_task(carry, task, impressions, cfg)[0]))
    assert len(seen) == 5


def test_pool_passes_leave_no_trace_unless_asked(toy):
    scenario = toy()
    carry = first_task(scenario)
    impressions = synthesize(carry, FEW)
    running = {}
    for update in (False, True):
        cfg = replace(CFG, epochs=1, bn_update=update, lr=1e-12)  # no learning: only statistics move
        for pool in ("none", "new-train"):
            again = scenario.again()
            use = replace(cfg, pool=pool, idc_weight=0.0 if pool == "none" else 1.0)
            with again.training(1, pool) as task:
                running[update, pool] = fit_task(carry, task, impressions, use)[0].backbone.stem[1].running_mean
    assert torch.allclose(running[False, "none"], running[False, "new-train"], atol=1e-6)
    assert not torch.allclose(running[True, "none"], running[True, "new-train"], atol=1e-4)


def test_the_teacher_and_the_old_rows_do_not_change(toy):
    scenario = toy()
    carry = first_task(scenario)
    before, impressions = weights(carry.model), synthesize(carry, FEW)
    with scenario.training(1, CFG.pool) as task:
        model, _ = fit_task(carry, task, impressions, CFG)
    assert weights(carry.model) == before and not carry.model.training
    assert torch.equal(model.head.blocks[0], carry.model.head.blocks[0])


def test_selection_keeps_the_best_epoch_and_drives_the_plateau(toy):
    scenario, cfg = toy(), replace(CFG, epochs=4, selection="new-val", schedule="paper")
    with scenario.training(0, cfg.pool, cfg.selection) as task:
        val = task.val
        model, history = fit_task(None, task, None, cfg)
        assert history.val[history.best_epoch] == max(history.val) == accuracy_of(model, val) and len(history.val) == 4


def test_the_best_epoch_is_a_copy_and_not_the_last_model(toy, monkeypatch):
    def trained(*accuracies):
        cfg, values = replace(CFG, epochs=len(accuracies), selection="new-val", schedule="constant"), iter(accuracies)
        monkeypatch.setattr("classimpression.training.accuracy_of", lambda *a: next(values))
        with toy().training(0, cfg.pool, cfg.selection) as task:
            return weights(fit_task(None, task, None, cfg)[0])

    assert trained(10.0, 90.0, 50.0, 40.0) == trained(10.0, 90.0) != trained(10.0)


def test_the_first_task_has_no_old_statistics_to_freeze(toy):
    def trained(kind):
        with toy().training(0) as task:
            return fit_task(None, task, None, replace(CFG, epochs=1, bn_statistics=kind))[0]

    assert weights(trained("frozen")) == weights(trained("joint")) == weights(trained("separate"))
    assert all(n.running_var.sub(1).abs().max() > 0 for n in batch_norms(trained("frozen")))  # they moved


def test_sampling_with_replacement():
    rows = list(draw_epoch(100, 50, 0.66, 40, generator(0)))
    assert sum(len(r) + len(s) for r, s in rows) == round(100 / 0.34)
    many = torch.cat([s for k in range(200) for _, s in draw_epoch(34, 50, 0.66, 40, generator(k))])
    assert abs(len(many) / (200 * 100) - 0.66) < 0.01 and torch.bincount(many, minlength=50).min() > 200


def test_schedules():
    published = [epoch_rate(TrainConfig(schedule="as_published"), e) for e in range(100)]
    assert (
        published[:7] == [0.1] * 7
        and published[7] == pytest.approx(0.03)
        and published[25] == pytest.approx(8.1e-4)
        and 4e-9 < published[99] < 5e-9
    )
    paper = TrainConfig(schedule="paper", selection="new-val")
    assert (
        epoch_rate(paper, 7, [50.0] + [40.0] * 6) == pytest.approx(0.03) and epoch_rate(paper, 7, list(range(7))) == 0.1
    )
    assert (
        published_training("blood", 2) == dict(rho=0.999, tau=1.0, synthetic_share=0.66)
        and published_training("organa", 3)["synthetic_share"] == 0.5
    )
    assert [published_training("tissue", t)["tau"] for t in (1, 2, 3)] == [1.0, 5.0, 5.0] and [
        published_training("path", t)["rho"] for t in (1, 2, 3)
    ] == [0.99, 0.9, 0.9]


@pytest.mark.parametrize(
    "bad",
    [
        dict(idc_weight=-1.0),
        dict(rho=2.0),
        dict(tau=0.0),
        dict(epochs=0),
        dict(pool="tests"),
        dict(selection="best"),
        dict(schedule="step"),
        dict(lr=float("inf")),
        dict(synthetic_share=1.0),
        dict(schedule="paper"),
        dict(pool="none"),
        dict(batch_size=2.5),
        dict(dtype="half"),
        dict(seed=-1),
    ],
)
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ConfigError):
        TrainConfig(**bad)


# Contracts of what may be seen and carried


def test_training_cannot_reach_old_tasks_or_test_images(toy):
    scenario = toy((2, 2, 2))
    carry = first_task(scenario)
    tried = []

    def nosy(carry, task, impressions, cfg):
        for read in (
            lambda: scenario.test(1),
            lambda: scenario.tasks[0].train,
            lambda: scenario.tasks[0].val,
            lambda: scenario.tasks[2].train,
            lambda: scenario.joint(0, reference=True),
        ):
            with pytest.raises(LeakError):
                read()
            tried.append(read)
        assert not hasattr(task, "test")
        return fit_task(carry, task, impressions, cfg)

    with scenario.training(1, CFG.pool) as task:
        nosy(carry, task, synthesize(carry, FEW), replace(CFG, epochs=1))
    assert len(tried) == 5
    with pytest.raises(LeakError):
        scenario.tasks[0].train
    assert len(scenario.test(1)) > 0


def test_a_carryover_has_no_place_for_images_and_exemplars_need_registration(toy):
    scenario = toy()
    carry = first_task(scenario)
    assert not hasattr(carry, "exemplars") and carry.images == 0
    with pytest.raises(TypeError):
        Carryover(carry.model, 2, exemplars=scenario.joint(0, reference=True))
    with scenario.training(1) as task:
        with pytest.raises(LeakError, match="real images"):
            joint(carry, task, None, CFG)
    with pytest.raises(ConfigError, match="reference"):
        method("hoarder", "Hoarder", "M1", exemplars=5)
    assert "hoarder" not in METHODS


def test_tiers_bytes_and_allowance(toy):
    scenario = toy()
    carry = first_task(scenario)
    held = ExemplarCarryover(carry.model, 2, carry.means, {}, scenario.joint(0, reference=True))
    assert held.tier == "reference" and held.images == len(held.exemplars) and held.bytes > carry.bytes
    big = Carryover(carry.model, 2, carry.means, {"gram": Extra(torch.zeros(500, 500), "M2")})
    assert big.tier == "M2" and big.bytes == carry.bytes + 10**6
    assert [allowed_tier(big, n) for n in (9_000_000, 11_000_000)] == ["reference", "M2"]


def test_a_mean_over_few_images_is_refused(toy):
    scenario = toy(per_class=15)
    with scenario.training(0) as task:
        model = build_classifier("small", 3, [2])
        with pytest.raises(DataError, match="nearly show a patient"):
            hand_over(model, task, None)
        assert hand_over(model, task, None, k_min=1).means.shape == (2, 3, 16, 16)


def test_exemplars_never_reach_the_disk(toy, tmp_path):
    scenario = toy()
    carry = first_task(scenario)
    held = ExemplarCarryover(
        carry.model, 2, carry.means, {"sums": Extra(torch.ones(3), "M2")}, scenario.joint(0, reference=True)
    )
    path = save_carryover(tmp_path / "c.safetensors", held, dict(task=1))
    back, meta = load_carryover(path, lambda meta: build_classifier("small", 3, [2]))
    assert type(back) is Carryover and torch.equal(back.extra["sums"].value, torch.ones(3)) and meta["task"] == 1
    with pytest.raises(StateError, match="another network"):
        load_carryover(path, lambda meta: build_classifier("small", 1, [2]))


def test_terms_of_a_batch_have_gradients_for_every_trained_part(toy):
    scenario = toy()
    carry = first_task(scenario)
    impressions = synthesize(carry, FEW)
    with scenario.training(1, CFG.pool) as task:
        model, m = start_model(carry, task, CFG), TaskData(task, impressions, CFG, carry.model)
        terms = class_impression_terms(m, task, CFG, dict(distillation=1.0, margin=1.0, intra_domain=1.0))(0)(
            model, next(iter(epoch_batches(m, 0)))
        )
        assert isinstance(next(iter(epoch_batches(m, 0))), Batch)
    for name, value in terms.items():
        grads = torch.autograd.grad(value, list(model.backbone.parameters()), retain_graph=True, allow_unused=True)
        assert any(g is not None and g.abs().sum() > 0 for g in grads), name


@pytest.mark.parametrize("n, batch_size", [(41, 20), (20, 20)])
def test_a_last_batch_of_one_joins_the_one_before(n, batch_size):  # batch norm over one number per channel fails
    g = torch.Generator().manual_seed(0)
    images = lambda k: (torch.randint(0, 256, (k, 3, 32, 32), generator=g, dtype=torch.uint8), torch.arange(k) % 2)
    scenario = from_arrays(images(n), images(4), images(4), sizes=[2], layout="NCHW")
    with scenario.training(0) as task:
        model, history = fit_task(None, task, None, replace(CFG, epochs=1, network="large", batch_size=batch_size))
    assert history.terms["cross_entropy"][0] > 0 and not model.training


def test_epochs_chosen_for_later_tasks_are_not_the_first_task_s():
    from classimpression.runs.configs import profile_config, training_settings

    first = lambda name, **o: training_settings(profile_config("standard", name, options=o or None), 0, [2, 2])
    shared = first("class-impression")
    assert (shared.epochs, shared.lr) == (15, 0.1)
    sequel = first("ccsi")  # two epochs at a fifth of the rate were chosen, for its later tasks
    assert (sequel.epochs, sequel.lr, sequel.class_weighting) == (shared.epochs, shared.lr, True)
    for name in ("pass", "adagauss"):  # their own first task takes the way of stepping, not the number of steps
        changed = first(name, epochs=1, lr=0.004)
        assert changed.epochs == first(name).epochs > 1 and changed.lr == 0.004
    assert first("joint", epochs=7).epochs == 7  # every task is a first one


def test_a_pool_that_no_loss_asks_for_is_not_drawn(toy, monkeypatch):
    from classimpression import training

    drawn = []
    batches = training.epoch_batches
    monkeypatch.setattr(training, "epoch_batches", lambda m, e: (drawn.append(b.pool) or b for b in batches(m, e)))
    scenario, cfg = toy(), TrainConfig(epochs=1, batch_size=20)
    with scenario.training(0, pool="new-train") as task:
        carry = hand_over(fit_task(None, task, None, cfg)[0], task, None)
    assert drawn and not any(p is not None for p in drawn)
    some = Impressions(torch.rand(8, 3, 16, 16), torch.arange(8) % 2, {}, {})
    for idc_pool, asked in (("shared", False), ("own", True)):
        drawn.clear()
        with scenario.again().training(1, pool="new-train") as task:
            fit_task(carry, task, some, replace(cfg, idc_pool=idc_pool))
        assert {p is not None for p in drawn} == {asked}
