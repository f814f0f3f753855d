"""The naive loops compute what ours compute; the fast paths equal the plain ones; without a GPU nothing breaks. No
test of a time.
"""

import copy
import itertools
import sys

import pandas as pd
import pytest
import torch

from classimpression.studies import peers
from classimpression.studies import scaling as growth
from classimpression.studies.benchmark import WEIGHTS, bench_row, composed_rows, convolutions, make_case, ratio
from classimpression.studies.benchmark import AVX2, number_type_rows, step_counts
from classimpression.studies.benchmark import take_turns, training_contenders
from classimpression.core.errors import ConfigError
from classimpression.data import to_unit
from classimpression.losses import total_loss
from classimpression.models import frozen_copy
from classimpression.studies.naive import PerSample, naive_inversion, naive_loss, naive_training
from classimpression.settings import TrainConfig
from classimpression.synthesis import SynthesisConfig, descend, draw_group
from classimpression.training import Batch, TaskData, class_impression_terms, start_model, teacher_features
from classimpression.runs.weights import load_released


@pytest.fixture(scope="module")
def case():
    return make_case(n_old=4, n_new=2, blocks=2, pixels=16, n_real=60, n_synthetic=40)


@pytest.mark.parametrize("cfg", [TrainConfig(), TrainConfig(rho=0.5, tau=5.0, margin=0.6)], ids=["published", "other"])
def test_naive_losses_equal_ours_over_two_steps(case, cfg):
    task, model = case.task, start_model(case.carry, case.task, cfg)
    m = TaskData(task, case.impressions, cfg, case.carry.model)
    terms = class_impression_terms(m, task, cfg, WEIGHTS)(0)
    running = {k: [torch.zeros(6) for _ in range(6)] for k in ("source", "target")}
    for step in range(2):
        real = slice(10 * step, 10 * step + 10)
        x, y = (
            torch.cat([to_unit(task.train.x[real]), case.impressions.x[:12]]),
            torch.cat([task.train.y[real], case.impressions.y[:12]]),
        )
        pool = to_unit(task.pool[20:40])
        a, b = copy.deepcopy(model), copy.deepcopy(model)
        ours = total_loss(terms(a, Batch(x, y, teacher_features(case.carry.model, x), pool)), WEIGHTS)
        naive, log = naive_loss(b, case.carry.model, x, y, pool, running, 4, m.counts(6), WEIGHTS, cfg)
        assert naive.item() == pytest.approx(ours.item(), rel=1e-5) and log[0] == pytest.approx(naive.item())
        ours.backward()
        naive.backward()
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            if p.grad is not None:
                torch.testing.assert_close(p.grad, q.grad, rtol=2e-3, atol=2e-5)


def test_naive_training_moves_no_old_row_and_draws_both_kinds(case):
    cfg = TrainConfig(batch_size=10)
    model = start_model(case.carry, case.task, cfg)
    before = [b.detach().clone() for b in model.head.blocks]
    seen = list(
        itertools.islice(
            naive_training(model, case.carry.model, case.task, case.impressions, WEIGHTS, cfg, workers=0), 3
        )
    )
    assert all(len(log) == 6 for log in seen)
    assert [torch.equal(a, b) for a, b in zip(before, model.head.blocks)] == [True, True, False]


def test_naive_inversion_makes_the_images_of_ours(case):
    cfg = SynthesisConfig(group_size=8, steps=4, warmup=2)
    x, y, shifts, flips = draw_group(case.carry, cfg, 3, "test")
    *_, slow = naive_inversion(copy.deepcopy(case.carry.model), x, y, shifts, flips, cfg)
    fast, *_ = descend(frozen_copy(case.carry.model), x, y, shifts[:, None], flips[:, None], cfg)
    torch.testing.assert_close(slow, fast, atol=3e-4, rtol=0)


def test_many_groups_at_once_equal_one_after_the_other(case):
    cfg = SynthesisConfig(group_size=8, steps=4, warmup=2)
    drawn = [draw_group(case.carry, cfg, 0, "test", g) for g in range(3)]
    together, *_ = descend(
        case.carry.model,
        torch.cat([d[0] for d in drawn]),
        torch.cat([d[1] for d in drawn]),
        *(torch.stack([d[i] for d in drawn], 1) for i in (2, 3)),
        cfg,
    )
    alone = torch.cat([descend(case.carry.model, x, y, s[:, None], f[:, None], cfg)[0] for x, y, s, f in drawn])
    torch.testing.assert_close(together, alone, atol=3e-4, rtol=0)


def test_sixteen_bits_give_every_term_of_the_inversion_within_one_per_cent():
    """Means over 8 shifts and flips, at class means plus noise, on a network that has been trained: random weights
    have other sizes.
    """
    carry = load_released("blood", 1)
    x, y, s, f = draw_group(carry, SynthesisConfig(group_size=24, steps=8), 0, "test")

    def means(dtype):
        cfg = SynthesisConfig(group_size=24, steps=1, dtype=dtype)
        seen = [descend(carry.model, x, y, s[i, None, None], f[i, None, None], cfg)[1] for i in range(8)]
        return {k: torch.stack([t[k] for t in seen]).mean().item() for k in seen[0]}

    fast, plain = means("bfloat16"), means("float32")
    assert fast == pytest.approx(plain, rel=0.01) and fast["statistics"] != plain["statistics"]


def test_per_sample_images_are_the_bytes(case):
    data = PerSample(case.task.train.x, case.task.train.y)
    assert len(data) == 60 and all(
        torch.allclose(data[i][0], to_unit(case.task.train.x[i]), atol=1e-7) for i in (0, 59)
    )


def test_the_first_round_does_not_count_and_ratios_stay_within_rounds():
    calls = []
    found, clock = take_turns(
        {"ours": lambda n: calls.append(n), "naive": lambda n: calls.append(-n)}, {"ours": 3, "naive": 1}, rounds=4
    )
    assert calls == [3, -1] * 5 and {len(v) for v in (*found.values(), *clock.values())} == {4}
    assert ratio([2.0, 30.0, 2.0], [1.0, 10.0, 1.0]) == 2.0
    assert bench_row("r", dict(ours=[1.0, 2.0], limit=[0.5, 1.0]))["ratio_to_naive"] is None


def test_composed_runs_are_sums_of_steps():
    rows = [
        dict(row=r, device="cpu", threads=1, batch=40, dtype="float32", ours=a, naive=b, plain=c, limit=1.0)
        for r, a, b, c in (("training step", 2.0, 20.0, 8.0), ("inversion step", 3.0, 9.0, None))
    ]
    n, whole = step_counts([40, 34, 34], groups=(1, 2), epochs=1, descent=10), composed_rows(rows, [40, 34, 34])[0]
    assert n == {"training step": 1 + 3 + 3, "inversion step": 30}
    full = step_counts([40, 34, 34])
    assert whole["naive"] == pytest.approx((full["training step"] * 20 + full["inversion step"] * 9) / 1e3, abs=0.1)


def test_without_a_gpu_the_cpu_is_measured_and_said_so(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(
        growth,
        "speed_rows",
        lambda case, device, k, *a, **b: [
            bench_row(
                "training step",
                dict(ours=[1.0], limit=[1.0], naive=[2.0], plain=[1.0], convolutions=[0.9]),
                device=device,
                threads=k,
                batch=40,
                dtype="float32",
            ),
            bench_row(
                "inversion step",
                dict(ours=[1.0], limit=[1.0], naive=[2.0]),
                device=device,
                threads=k,
                batch=40,
                dtype="float32",
            ),
        ],
    )
    rows = growth.bench(tmp_path, rounds=1, memory=False, pixels=16, whole=0, tell=lambda _: None)
    assert set(rows.device) == {"cpu"} and (tmp_path / "benchmark" / "speed.csv").exists()
    assert '"gpu_found": false' in (tmp_path / "benchmark" / "speed.json").read_text()
    assert list(pd.read_csv(tmp_path / "benchmark" / "speed.csv").columns)[:5] == [
        "row",
        "device",
        "threads",
        "batch",
        "dtype",
    ]
    assert growth.goal_table(rows).values.tolist() == [["training step", "convolutions", 1.25, 1.111, True]]


def test_convolutions_alone_are_those_of_the_pass(case):
    model, x, seen = copy.deepcopy(case.carry.model), to_unit(case.task.train.x[:4]), []
    count = lambda *_: seen.append(1)
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    run = convolutions(model, x, weights=False)
    hooks = [m.register_forward_hook(count) for m in layers]
    run()
    assert len(seen) == len(layers) and not any(h.remove() for h in hooks)
    model(x)
    assert len(seen) == len(layers)  # no hook of ours is left


def test_a_head_with_second_moments_stays_within_its_bytes():
    rows = pd.DataFrame(growth.head_rows(tasks=(2, 12), features=64, per_class=10))
    assert rows.within.all() and (rows.bytes < rows.allowed_bytes).all() and rows["rank"].is_monotonic_increasing


def test_a_peer_is_asked_in_its_own_python(monkeypatch):
    asked = []

    def apart(python, contender, *task):
        asked.append((python, contender, task[0]))
        return dict(processor=1.0 if contender == "ours" else 2.0, clock=3.0, accuracy=50.0, mb=700.0)

    monkeypatch.setattr(peers, "whole_apart", apart)
    rows = pd.DataFrame(peers.whole_rows("other-python", methods=("lwf",), rounds=2))
    assert asked == [(sys.executable, "ours", "lwf"), ("other-python", "avalanche", "lwf")] * 2
    assert rows.row.tolist() == ["whole run, lwf", "peak memory, whole run, lwf", "accuracy, whole run, lwf"]
    assert rows.ours.tolist() == [1000.0, 700.0, 50.0] and rows.ours_by_the_clock[0] == 3000.0
    goals = growth.goal_table(rows)
    assert goals[["at_most", "ours", "met"]].values.tolist() == [[0.8, 0.5, True], [1.0, 1.0, True]]


def test_a_peer_that_does_not_load_is_refused_before_anything_is_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(growth, "speed_rows", lambda *a, **k: pytest.fail("measured all the same"))
    with pytest.raises(ConfigError, match="no Python at .*missing"):
        growth.measure(peers=str(tmp_path / "missing"))
    with pytest.raises(RuntimeError, match="avalanche did not run with"):
        growth.measure(peers=str(without_modules(tmp_path)))


def without_modules(folder):
    "A Python that finds nothing of what is installed."
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    return python


def test_a_process_apart_draws_without_the_notebook_that_asked(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    assert peers.said_apart(sys.executable, "import os; print(os.environ['MPLBACKEND'])", "ours") == "agg"


def test_number_types_are_measured_as_on_a_processor_with_avx2_alone():
    rows = number_type_rows((AVX2,), steps=1, rounds=1, n_real=80, n_synthetic=40, pixels=16)
    assert [r["row"] for r in rows] == ["training step", "inversion step"]
    assert all(r["instructions"] in ("AVX2", "DEFAULT", "NO AVX") and r["float32"] > 0 < r["bfloat16"] for r in rows)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_the_same_contenders_run_on_a_gpu(case):
    for run in training_contenders(case, TrainConfig(batch_size=10, device="cuda"), naive=False).values():
        run(1)


def test_exponents():
    assert growth.exponent([1, 2, 4], [2, 8, 32]) == pytest.approx(2)
    with pytest.raises(ConfigError, match="two points"):
        growth.exponent([1], [1])
    with pytest.raises(ConfigError, match="one size"):
        make_case(n_old=5, blocks=2)
