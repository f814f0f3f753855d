"""Replay, iCaRL, EEIL and LUCIR: what their recipes ask for, against loops and against known bugs of public
implementations.
"""

import functools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import classimpression.methods.rehearsal as rehearsal
from classimpression import training
from classimpression.carryover import ExemplarCarryover, choose_exemplars, hand_over, herd, take_exemplars
from classimpression.core.errors import LeakError
from classimpression.core.files import read_json
from classimpression.data import tensor_digest
from classimpression.methods.registry import METHODS, UnionTask, find_method, joint
from classimpression.models import batch_norms, frozen_copy
from classimpression.methods.rehearsal import balanced, distil_heads, eeil, icarl, lucir
from classimpression.methods.rehearsal import nearest_exemplars, replay, with_kept
from classimpression.runs.runner import RunConfig, run
from classimpression.settings import TrainConfig
from classimpression.training import accuracy_of, teacher_features

NAMES = ("replay", "icarl", "eeil", "lucir")
CFG = TrainConfig(epochs=1, **rehearsal.RECIPE)
weights = lambda model: tensor_digest(*model.state_dict().values())


def carried(model, task, carry, history, per_class):
    "What the runner would hand over, with that many images of each class."
    new = hand_over(model, task, carry, means=False, extra=history.extra)
    kept = take_exemplars(task.train, choose_exemplars(task.train, task.labels, per_class, 0))
    if carry is not None:
        kept = type(kept)(torch.cat([carry.exemplars.x, kept.x]), torch.cat([carry.exemplars.y, kept.y]))
    return ExemplarCarryover(new.model, new.n_classes, exemplars=kept)


def until(name, scenario, t, cfg=CFG, per_class=3, **hyper_parameters):
    "The carryover before task `t`."
    carry = None
    for i in range(t):
        with scenario.training(i) as task:
            model, history = find_method(name).fit(carry, task, None, cfg, **hyper_parameters)
            carry = carried(model, task, carry, history, per_class)
    return carry


class Steps:
    "Records the loss terms of every step of a method, with what they were computed from."

    def __init__(self, monkeypatch):
        self.seen, self.weights, self.tasks, self.settings, self.starts, learn = [], [], [], [], [], rehearsal.learn

        def spy(carry, task, cfg, terms, weights, *args, **kwargs):
            self.starts.append(frozen_copy(kwargs["model"]) if "model" in kwargs else None)
            self.weights.append(weights)
            self.tasks.append(task)
            self.settings.append(cfg)

            def recorded(model, f, b):
                found = terms(model, f, b)
                self.seen.append(
                    dict(
                        phase=len(self.weights),
                        model=model,
                        f=f.detach().clone(),
                        s=model.head.scores(f).detach(),
                        z=model.head(f).detach(),
                        b=b,
                        terms={k: v.detach() for k, v in found.items()},
                        free=[n for n, p in model.named_parameters() if p.requires_grad],
                    )
                )
                return found

            return learn(carry, task, cfg, recorded, weights, *args, **kwargs)

        monkeypatch.setattr(rehearsal, "learn", spy)


# --- all four -------------------------------------------------------------------------------------


def test_they_are_references_and_say_so(toy):
    for name in NAMES:
        m = find_method(name)
        assert (m.tier, m.exemplars, m.data_free, m.means, m.impressions, m.first) == (
            "reference",
            20,
            False,
            False,
            False,
            "",
        )
        assert m.training == dict(lr=0.05, momentum=0.9, weight_decay=5e-4, batch_size=64)
    assert [find_method(n).herding for n in NAMES] == [False, True, True, True]
    scenario = toy((1, 1))
    with scenario.training(0) as task:
        bare = hand_over(replay(None, task, None, CFG)[0], task, None, means=False)
    with scenario.training(1) as task:
        for name in NAMES:
            with pytest.raises(LeakError, match="needs real images"):
                find_method(name).fit(bare, task, None, CFG)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("sizes", "channels", "dtype"), [((1, 1, 1), 1, "float32"), ((1, 3), 3, "bfloat16"), ((3, 1), 3, "float32")]
)
def test_any_sequence_of_tasks_runs(toy, name, sizes, channels, dtype):
    scenario, cfg = toy(sizes, channels), replace(CFG, dtype=dtype, batch_size=8)
    carry = until(name, scenario, len(sizes) - 1, cfg)
    with scenario.training(len(sizes) - 1) as task:
        model, history = find_method(name).fit(carry, task, None, cfg)
    assert model.head.sizes == list(sizes) and not model.training
    assert all(math.isfinite(x) for v in history.terms.values() for x in v)
    assert model(torch.rand(2, channels, 16, 16)).shape == (2, sum(sizes))


@pytest.mark.parametrize(
    ("name", "hyper_parameters"), [("icarl", {}), ("icarl", dict(bce=True)), ("eeil", {}), ("lucir", {})]
)
def test_the_teacher_stays_in_evaluation_mode_and_unchanged(toy, monkeypatch, name, hyper_parameters):
    "A teacher in training mode would normalise by the batch and change (known bug of a public iCaRL)."
    scenario = toy((2, 2))
    carry, steps = until(name, scenario, 1), Steps(monkeypatch)
    before = weights(carry.model)
    with scenario.training(1) as task:
        find_method(name).fit(carry, task, None, replace(CFG, batch_size=10), **hyper_parameters)
    assert weights(carry.model) == before and not any(m.training for m in carry.model.modules())
    assert not any(p.requires_grad for p in carry.model.parameters())
    for s in steps.seen:
        assert torch.allclose(s["b"].old, carry.model.features(s["b"].x), atol=1e-5)
    assert sum(len(s["b"].y) for s in steps.seen if s["phase"] == 1) == len(
        steps.tasks[0].train
    )  # one epoch of all images at hand


@pytest.mark.parametrize("name", NAMES)
def test_old_rows_move_where_the_recipe_says_so(toy, name):
    scenario = toy((2, 2))
    carry = until(name, scenario, 1)
    with scenario.training(1) as task:
        model, _ = find_method(name).fit(carry, task, None, CFG)
    assert torch.equal(model.head.blocks[0], carry.model.head.blocks[0]) == (name == "lucir")


# --- replay ---------------------------------------------------------------------------------------


def test_replay_of_everything_is_joint_training_with_a_warm_start(toy, monkeypatch):
    scenario, cfg, materials = toy((2, 2), per_class=90), replace(CFG, epochs=6, batch_size=20), []

    class Spy(training.TaskData):
        def __init__(self, *args):
            super().__init__(*args)
            materials.append(self)

    carry = until("replay", scenario, 1, cfg, per_class=None)
    monkeypatch.setattr(training, "TaskData", Spy)
    with scenario.training(1) as task:
        model, history = replay(carry, task, None, cfg)
    everything = scenario.joint(1, reference=True)
    sort = lambda s: s.take((s.y * 10**9 + s.x.flatten(1).long().sum(1)).argsort(stable=True)).digest()
    assert len(materials) == 1 and sort(materials[0].real) == sort(everything)
    assert materials[0].teacher is None and history.weights == dict(
        cross_entropy=1.0, distillation=0.0, margin=0.0, intra_domain=0.0
    )
    again = scenario.again()
    with again.training(0):
        pass
    with again.training(1) as task:
        fresh, _ = joint(carry, task, None, cfg)
    test = scenario.test(1)
    for classes in ((0, 1), (2, 3)):
        assert accuracy_of(model, test.where(classes)) > 75, classes
    assert abs(accuracy_of(model, test) - accuracy_of(fresh, test)) < 15


def test_replay_weighs_classes_by_their_inverse_frequency(toy, monkeypatch):
    scenario, seen = toy((2, 2), per_class=60), []
    carry, loss = until("replay", scenario, 1, per_class=4), training.cn_cross_entropy
    monkeypatch.setattr(training, "cn_cross_entropy", lambda z, y, w: seen.append(w) or loss(z, y, w))
    with scenario.training(1) as task:
        replay(carry, task, None, CFG)
        replay(carry, task, None, replace(CFG, class_weighting=False))
        n = int(task.train.counts(4)[2])
    assert torch.allclose(seen[0], torch.tensor([n / 4, n / 4, 1.0, 1.0])) and seen[-1] is None


# --- iCaRL ----------------------------------------------------------------------------------------


def test_icarl_keeps_what_herding_chooses_and_never_changes_it(toy, tmp_path, monkeypatch):
    scenario, got, plain = toy((2, 1, 2), per_class=45), [], METHODS["icarl"]

    @functools.wraps(plain.fit)
    def spy(carry, task, impressions, cfg, **hyper_parameters):
        got.append(None if carry is None else carry.exemplars)
        return plain.fit(carry, task, impressions, cfg, **hyper_parameters)

    monkeypatch.setitem(METHODS, "icarl", replace(plain, fit=spy))
    result = run(
        RunConfig(method="icarl", scenario="toy", epochs=1, first_epochs=1, exemplars=5, out=str(tmp_path)),
        data=scenario,
    )
    everything, kept = scenario.joint(2, reference=True), {}
    for t, labels in enumerate(([0, 1], [2], [3, 4])):
        row, model = read_json(result.folder / f"task{t + 1}" / "row.json"), result.carry(t).model
        assert (
            model.statistical_head.spec["kind"] == "nearest-mean" and model.statistical_head.n_classes == labels[-1] + 1
        )
        for k in labels:
            mine = everything.where([k])
            assert (
                row["exemplars"][str(k)] == herd(teacher_features(model, mine.x), 5) != sorted(row["exemplars"][str(k)])
            )
            kept[k] = mine.take(row["exemplars"][str(k)]).digest()
        assert row["tier"] == "reference" and row["carried_images"] == 5 * labels[0]
    assert got[0] is None and [len(g) for g in got[1:]] == [10, 15]
    for exemplars in got[1:]:
        for k in exemplars.y.unique().tolist():
            assert exemplars.where([k]).digest() == kept[k]
    assert not result.data["data_free"]


def test_icarl_answers_by_means_of_what_is_at_hand(toy):
    "Old classes: their kept images only, seen by the new model; new classes: all training images."
    scenario = toy((2, 2), per_class=60)
    carry = until("icarl", scenario, 1, per_class=4)
    with scenario.training(1) as task:
        model, _ = icarl(carry, task, None, CFG)
        new = task.train
    means = []
    for k in range(4):
        images = (carry.exemplars if k < 2 else new).where([k])
        assert len(images) == (4 if k < 2 else len(new) // 2)
        total = torch.zeros(model.backbone.n_features)
        for i in range(len(images)):
            with torch.no_grad():
                f = model.features(images.images(torch.tensor([i])))[0]
            total += f / f.norm()
        means.append(total / total.norm())
    assert torch.allclose(F.normalize(model.statistical_head.means, dim=1), torch.stack(means), atol=1e-6)
    test = scenario.test(1).images()
    with torch.no_grad():
        f, answers = model.features(test), model(test).argmax(1)
    loop = [min(range(4), key=lambda k: float((x / x.norm() - means[k]).norm())) for x in f]
    assert answers.tolist() == loop
    with torch.no_grad():
        assert not torch.equal(model.head(f), model(test))
    old = nearest_exemplars(carry.model, carry, UnionTask(1, new, 4, n_old=2), CFG)  # the old model's means are others
    assert not torch.allclose(old(f), model.statistical_head(f), atol=1e-4)


def test_icarl_loss_is_cross_entropy_over_all_classes_plus_distillation(toy, monkeypatch):
    scenario = toy((2, 2))
    carry, steps = until("icarl", scenario, 1), Steps(monkeypatch)
    with scenario.training(1) as task:
        icarl(carry, task, None, CFG, kd=2.0, temperature=3.0)
    s, soft = steps.seen[0], lambda z: (z / 3).softmax(1)
    z_old = carry.model.head(carry.model.features(s["b"].x))
    kd = -(soft(z_old) * soft(s["z"][:, :2]).log()).sum(1).mean()
    ce = -s["z"].log_softmax(1)[range(len(s["b"].y)), s["b"].y].mean()
    assert torch.allclose(s["terms"]["distillation"], kd, atol=1e-5) and torch.allclose(
        s["terms"]["cross_entropy"], ce, atol=1e-5
    )
    assert steps.weights == [dict(cross_entropy=1.0, distillation=2.0)] and "head.blocks.0" in s["free"]
    assert set(s["b"].y.tolist()) == {0, 1, 2, 3}  # kept and new images in one batch


# --- EEIL -----------------------------------------------------------------------------------------


def test_every_old_head_is_distilled():
    "A public EEIL leaves the newest old head out (all of them in the second task)."
    g = torch.Generator().manual_seed(0)
    z, z_old = torch.randn(5, 8, generator=g, requires_grad=True), torch.randn(5, 6, generator=g)
    loss = distil_heads(z, z_old, [2, 2, 2])
    loss.backward()
    assert (z.grad[:, :6].abs().sum(0) > 0).all() and not z.grad[:, 6:].any()
    for h in range(3):
        other = z_old.clone()
        other[:, 2 * h] += 1
        assert distil_heads(z, other, [2, 2, 2]) != loss, h
    shifted = z_old.clone()
    shifted[:, 2:4] += 7  # the softmax runs within a head: a shift of a whole head changes nothing
    assert torch.allclose(distil_heads(z, shifted, [2, 2, 2]), loss, atol=1e-5)


def test_eeil_distils_all_heads_in_both_phases(toy, monkeypatch):
    scenario, blocks = toy((2, 3, 2)), []
    carry, steps, kd = until("eeil", scenario, 2), Steps(monkeypatch), rehearsal.kd_loss
    monkeypatch.setattr(
        rehearsal,
        "kd_loss",
        lambda z, z_old, t: blocks.append((z.shape[1], z_old.shape[1], z_old.detach(), t)) or kd(z, z_old, t),
    )
    with scenario.training(2) as task:
        model, history = eeil(carry, task, None, replace(CFG, epochs=3), temperature=4.0)
    first, second = ([s for s in steps.seen if s["phase"] == p] for p in (1, 2))
    assert [b[:2] for b in blocks] == [(2, 2), (3, 3)] * len(first) + [(2, 2), (3, 3), (2, 2)] * len(second)
    assert {b[3] for b in blocks} == {4.0} and first and second
    z_old = carry.model.head(second[-1]["b"].old)
    assert torch.equal(blocks[-3][2], z_old[:, :2]) and torch.equal(
        blocks[-2][2], z_old[:, 2:]
    )  # the task before teaches the old heads
    assert torch.allclose(
        blocks[-1][2], steps.starts[1](second[-1]["b"].x)[:, 5:], atol=1e-5
    )  # the first phase's model the new one
    assert len(history.lr) == 4 and history.best_epoch == 3 and all(len(v) == 4 for v in history.terms.values())


def test_the_second_phase_is_short_slow_and_balanced(toy, monkeypatch):
    scenario = toy((2, 2), per_class=90)
    carry, steps = until("eeil", scenario, 1, per_class=5), Steps(monkeypatch)
    with scenario.training(1) as task:
        n = int(task.train.counts(4)[2])
        eeil(carry, task, None, replace(CFG, epochs=7))
        _, single = eeil(carry, task, None, CFG)
    first, second = steps.tasks[:2]
    assert first.train.counts(4).tolist() == [5, 5, n, n] and second.train.counts(4).tolist() == [5] * 4
    assert [s.epochs for s in steps.settings] == [7, 2, 1, 1] and [s.lr for s in steps.settings[:2]] == pytest.approx(
        [0.05, 0.005]
    )
    drawn = torch.cat([s["b"].y for s in steps.seen if s["phase"] == 2])
    assert drawn.bincount().tolist() == [10] * 4 and len(single.lr) == 2
    assert {"head.blocks.0", "head.blocks.1", "backbone.stem.0.weight"} <= set(
        next(s for s in steps.seen if s["phase"] == 2)["free"]
    )
    assert second.train.where([0, 1]).digest() == carry.exemplars.digest()


def test_balance_does_not_need_many_images(toy):
    scenario = toy((2, 2))
    carry = until("eeil", scenario, 1, per_class=8)
    with scenario.training(1) as task:
        few = task.train.where([3]).take([0, 1])  # a new class with fewer images than are kept of an old one
        y = torch.cat([torch.full((10,), 2), few.y])
        union = with_kept(
            carry, UnionTask(1, type(few)(torch.cat([task.train.where([2]).x[:10], few.x]), y), 4, n_old=2)
        )
    assert balanced(union, 0).train.counts(4).tolist() == [8, 8, 8, 2]


# --- LUCIR ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 3, 1), (3, 1, 2)])
def test_lucir_weighs_the_distillation_by_the_task_at_hand(toy, sizes):
    "A public LUCIR has weight 0 in the first increment, and that of the task before in later ones."
    scenario, carry = toy(sizes), None
    for t in range(3):
        with scenario.training(t) as task:
            model, history = lucir(carry, task, None, replace(CFG, classes_per_task=5))
            carry = carried(model, task, carry, history, 3)
        if t:
            assert (
                history.weights["distillation"] == pytest.approx(5 * math.sqrt(sum(sizes[:t]) / sizes[t]))
                and history.terms["distillation"][0] > 0
            )


@pytest.mark.parametrize(("sizes", "k"), [((2, 3), 2), ((2, 1), 1)])
def test_lucir_loss_against_a_loop(toy, monkeypatch, sizes, k):
    scenario = toy(sizes)
    carry, steps = until("lucir", scenario, 1), Steps(monkeypatch)
    with scenario.training(1) as task:
        model, _ = lucir(carry, task, None, replace(CFG, batch_size=200))
    s, hinges, gaps = steps.seen[0], [], []
    s_all, y = s["s"], s["b"].y.tolist()
    for i, label in enumerate(y):
        f, old = s["f"][i], carry.model.features(s["b"].x[i : i + 1])[0]
        gaps.append(1 - float(f @ old / f.norm() / old.norm()))
        if label < 2:
            hinges += [max(0.0, 0.5 - float(s_all[i, label] - v)) for v in sorted(s_all[i, 2:].tolist())[::-1][:k]]
    assert len(hinges) == 6 * k  # three kept images of each old class
    assert float(s["terms"]["margin"]) == pytest.approx(sum(hinges) / len(hinges), abs=1e-5)
    assert float(s["terms"]["distillation"]) == pytest.approx(sum(gaps) / len(gaps), abs=1e-4)
    ce = F.cross_entropy(carry.model.head.sigma * s_all, s["b"].y)
    assert torch.allclose(s["terms"]["cross_entropy"], ce, atol=1e-5)
    assert "head.blocks.0" not in s["free"] and {"head.sigma", "head.blocks.1"} <= set(s["free"])
    assert not torch.equal(model.head.sigma, carry.model.head.sigma)


def test_lucir_starts_from_imprinted_rows(toy, monkeypatch):
    scenario, started = toy((2, 2)), []
    carry, learn = until("lucir", scenario, 1), rehearsal.learn

    def spy(carry, task, cfg, *args, **kwargs):
        started.append(training.start_model(carry, task, cfg))
        return learn(carry, task, cfg, *args, **kwargs)

    monkeypatch.setattr(rehearsal, "learn", spy)
    with scenario.training(1) as task:
        lucir(carry, task, None, CFG)
        f = F.normalize(teacher_features(carry.model, task.train.x), dim=1)
        mean = F.normalize(torch.stack([f[task.train.y == k].mean(0) for k in (2, 3)]), dim=1)
    rows = started[0].head.blocks[1]
    assert torch.allclose(F.normalize(rows, dim=1), mean, atol=1e-5) and torch.allclose(
        rows.norm(dim=1), carry.model.head.blocks[0].norm(dim=1).mean().expand(2), atol=1e-5
    )


# --- statistics -----------------------------------------------------------------------------------


def test_computing_the_means_leaves_the_network_alone(toy):
    scenario = toy((2, 2))
    carry = until("icarl", scenario, 1)
    with scenario.training(1) as task:
        model, _ = icarl(carry, task, None, CFG)
        before = tensor_digest(*(b for m in batch_norms(model) for b in (m.running_mean, m.running_var)))
        statistical_head = nearest_exemplars(model.train(), carry, task, CFG)
        assert isinstance(statistical_head, nn.Module) and torch.equal(
            statistical_head(torch.ones(1, 256)), model.statistical_head(torch.ones(1, 256))
        )
        assert tensor_digest(*(b for m in batch_norms(model) for b in (m.running_mean, m.running_var))) == before
