"The comparison: repeats, tuning, the table from real runs, and the gates against a straw man."

import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
import torch

from classimpression.runs.configs import profile_config, tuning_repeat
from classimpression.core.errors import ConfigError
from classimpression.core.files import read_json
from classimpression.core.provenance import package_folder
from classimpression.core.seeding import generator
from classimpression.runs.engine import run_all
from classimpression.runs.run_store import identity
from classimpression.methods.registry import METHODS, find_method
from classimpression.metrics import bootstrap_interval, holm, paired_interval, paired_probability
from classimpression.runs.runner import RunConfig, run, run_folder
from classimpression.report.comparison import main_rows
from classimpression.report.verify import results_in
from classimpression.runs.tuning import trial_configs, tune


def test_committed_pairs_follow_their_rule():
    found = read_json(package_folder() / "assets" / "repeats.json")["scenarios"]
    for name, f in found.items():
        for p in f["reported"][1:]:
            k = len(p["class_order"])
            assert p["class_order"] == torch.randperm(k, generator=generator(p["seed"], "class order", name)).tolist()
        assert f["reported"][0] == {"seed": 0, "class_order": None} and len(f["reported"]) == 5
        assert tuning_repeat(name)["seed"] not in [p["seed"] for p in f["reported"]] and tuning_repeat(name)[
            "class_order"
        ] not in [p["class_order"] for p in f["reported"]]


def test_tuning_never_reads_a_test_image(toy, tmp_path):
    "With eval_split='val' the test images may be noise: nothing changes."
    scenario = toy(name="mine", sizes=(2, 1))
    noise = scenario.again()
    noise._store.splits["test"] = type(noise._store.splits["test"])(
        torch.randint(256, noise._store.splits["test"].x.shape, dtype=torch.uint8), noise._store.splits["test"].y
    )
    results = [
        run(
            RunConfig(
                method="lwf", scenario="mine", eval_split="val", epochs=1, batch_size=16, out=str(tmp_path / str(i))
            ),
            s,
        )
        for i, s in enumerate((scenario, noise))
    ]
    assert results[0].metrics == results[1].metrics and results[0].data["protocol"] == "eval_split=val"
    val = scenario.again().on_validation().test(1)
    assert sum(map(sum, results[0].data["tasks"][-1]["confusion"])) == len(val)
    with pytest.raises(ConfigError, match="eval_split='val'"):
        RunConfig(eval_split="val", pool="new-val")


def test_trials_are_as_many_for_all_and_chosen_values_come_from_them():
    tuned = read_json(package_folder() / "assets" / "tuned.json")
    others = {
        "class-impression-balanced",
        "ccsi",
        "census-any",
        "joint-probe",
        "first-session",
    }  # searched in stages, or by a plan of their own
    for m in set(METHODS) - others:
        trials = trial_configs(m)
        assert len(trials) == (2 if m == "ncm" else 8) and all(
            c.eval_split == "val" and c.profile == "tune" and c.seed == tuning_repeat("blood")["seed"] for c in trials
        )
        if m in tuned:
            t = tuned[m]
            assert (
                t["options"] in [x["options"] for x in t["trials"]]
                and t["protocol"] == "eval_split=val"
                and t["class_order"] == tuning_repeat("blood")["class_order"]
            )
            assert (
                max(x["balanced_accuracy"] for x in t["trials"])
                == next(x for x in t["trials"] if x["options"] == t["options"])["balanced_accuracy"]
            )
            options = profile_config("standard", m).options or {}
            assert {k: options[k] for k in t["options"]} == t["options"], (
                f"the standard profile of {m} does not use what tuning chose"
            )
        for scenario, t in (
            tuned.get(m, {}).get("scenarios", {}).items()
        ):  # chosen there, on that scenario's own tuning order
            all_trials = t["trials"] + t.get("further", {}).get(
                "trials", []
            )  # `further`: more trials, declared before they ran (24_tuning says why)
            best = max(all_trials, key=lambda x: (x["balanced_accuracy"], x["average_incremental_accuracy"]))
            assert t["options"] == {k: v for k, v in best["options"].items() if k != "epochs"} and (
                t["scenario"],
                t["class_order"],
            ) == (scenario, tuning_repeat(scenario)["class_order"])
            assert profile_config("standard", m, scenario=scenario).options.items() >= t[
                "options"
            ].items() and profile_config("standard", m, scenario=scenario) != profile_config("standard", m)


@pytest.mark.slow
def test_a_failed_run_stops_no_other_and_runs_are_apart(tmp_path):
    good = [profile_config("smoke", m, out=str(tmp_path)) for m in ("fine-tuning", "slda")]
    bad = profile_config("smoke", "fine-tuning", scenario="blood", root=str(tmp_path / "nowhere"), out=str(tmp_path))
    said = []
    results, failed = run_all([good[0], bad, good[1]], jobs=2, tell=said.append)
    assert (
        [r.data["method"] for r in results] == ["fine-tuning", "slda"]
        and list(failed) == [str(run_folder(bad))]
        and len([line for line in said if re.match(r" *\d/3 ", line)]) == 3
    )
    assert sys.platform != "linux" or all(r.data["tasks"][0]["peak_memory_mb"] > 0 for r in results)


def test_options_are_checked_before_work(tmp_path):
    for options, said in (({"kdd": 1.0}, r"\['kdd'\]"), ({"lr": -1.0}, "lr"), ({"seed": 3}, r"\['seed'\]")):
        with pytest.raises(ConfigError, match=said):
            RunConfig(method="lwf", options=options)
    with pytest.raises(ConfigError, match="keeps no real images"):
        RunConfig(method="lwf", exemplars=5)


def test_options_hold_after_the_first_task_only(toy, tmp_path):
    runs = [
        run(RunConfig(method="lwf", scenario="toy", epochs=1, batch_size=16, options=o, out=str(tmp_path)), toy())
        for o in (None, {"lr": 0.001}, {"kd": 0.0})
    ]
    first = [r.carry(0).model.state_dict() for r in runs]
    assert all(torch.equal(first[0][k], f[k]) for f in first for k in f)
    last = [r.model.state_dict() for r in runs]
    assert not any(all(torch.equal(last[0][k], other[k]) for k in other) for other in last[1:])


def test_the_number_of_exemplars_is_a_setting(toy, tmp_path):
    a, b = (
        run(RunConfig(method="replay", scenario="toy", epochs=1, batch_size=16, exemplars=n, out=str(tmp_path)), toy())
        for n in (None, 3)
    )
    assert (
        [r.data["tasks"][1]["carried_images"] for r in (a, b)] == [2 * min(20, 10), 6]
        and a.data["tier"] == "reference"
        and not a.data["data_free"]
    )
    assert {k: len(v) for k, v in b.data["tasks"][0]["exemplars"].items()} == {"0": 3, "1": 3}


def test_statistics_larger_than_a_tenth_of_the_images_are_a_reference(toy, tmp_path):
    r = run(RunConfig(method="slda", scenario="toy", epochs=1, batch_size=16, out=str(tmp_path)), toy())
    assert (
        r.data["tier"] == "reference" and r.data["data_free"]
    )  # 30 tiny images per class: the covariance is larger than they are


# --- gates ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_replay_with_unlimited_memory_equals_joint(toy, tmp_path):
    alike = dict(epochs=20, lr=0.05, momentum=0.9, class_weighting=False, batch_size=16, scenario="toy")
    data = toy(per_class=60)
    joint, replay = (
        run(RunConfig(method=m, out=str(tmp_path), **alike, **more), data.again()).metrics["balanced_accuracy"]
        for m, more in (("joint", {}), ("replay", dict(exemplars=10**6)))
    )
    assert joint > 60 and abs(joint - replay) < 10, (joint, replay)


@pytest.mark.slow
@pytest.mark.xdist_group("real images")  # one process learns the first task once
@pytest.mark.parametrize("name", ["class-impression", "deepinversion", "abd", "r-dfcil"])
def test_real_images_in_place_of_synthetic_ones_are_learned_from(name, toy, tmp_path_factory):
    """The straw man's gate, small: with real old images the same code must keep old classes (the full gate runs on
    BloodMNIST, `with_real_images`).
    """
    from dataclasses import replace

    from classimpression.carryover import hand_over
    from classimpression.data import to_unit
    from classimpression.methods.registry import sort_options
    from classimpression.settings import TrainConfig
    from classimpression.synthesis import Impressions
    from classimpression.training import evaluate

    scenario, m = toy(per_class=300), find_method(name)
    cfg = TrainConfig(epochs=6, cache=str(tmp_path_factory.getbasetemp() / "gate"))
    with scenario.training(0) as task:
        model, history = m.fit(None, task, None, cfg)
        carry = hand_over(model, task, None, m.means, history.extra)
    old = scenario.joint(0, reference=True)
    real = Impressions(to_unit(old.x), old.y, {}, {})
    training, hyper_parameters = sort_options(m, profile_config("quick", name).options)
    with scenario.training(1, "new-train") as task:
        settings = replace(cfg, **training | dict(epochs=6 if m.impressions else 24))
        model, _ = m.fit(carry, task, real, settings, **hyper_parameters)
    conf = evaluate(model, scenario.test(1), 4)
    recalls = conf.diagonal() / conf.sum(1)
    assert recalls.mean() > 0.8 and recalls[:2].mean() > 0.7, recalls


def test_intervals_and_probabilities_equal_those_of_scipy():
    a, b = np.random.default_rng(0).normal(size=(2, 5))
    mean, low, high = paired_interval(a, b)
    test = stats.ttest_rel(a, b)
    expected = test.confidence_interval(0.95)
    assert (low, high, mean) == pytest.approx((expected.low, expected.high, (a - b).mean()))
    assert paired_probability(a, b) == pytest.approx(test.pvalue)
    assert paired_interval([60.0, 64.0, 62.0], [50.0, 52.0, 54.0])[2] == pytest.approx(10 + 4.30265 * 2 / 3**0.5)


def test_correction_never_lowers_a_probability_nor_changes_their_order():
    p = np.random.default_rng(1).random(9) ** 3
    corrected = holm(p)
    assert (corrected >= p).all() and corrected.max() <= 1 and corrected.min() == pytest.approx(9 * p.min())
    assert (np.diff(corrected[np.argsort(p)]) >= 0).all()


def test_bootstrap_width_is_the_standard_error():
    rng = np.random.default_rng(0)
    y, a, b = np.repeat([0, 1], 500), rng.random(1000) < 0.8, rng.random(1000) < 0.7
    _, low, high = bootstrap_interval(a, b, y, draws=4000)
    d = a.astype(float) - b
    se = 100 * np.sqrt(sum(d[y == k].var() / 500 for k in (0, 1))) / 2
    assert (high - low) / 2 == pytest.approx(1.96 * se, rel=0.1)


# --- what is reported ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parent.parent / "figures" / "main_table").glob("*_runs.json")), ids=lambda p: p.stem
)
def test_reported_rows_of_a_method_have_one_recipe_and_full_provenance(path):
    "A mean over repeats of which some were run with older hyper-parameters would be a mean of two methods."
    runs, table = results_in(path), pd.read_csv(path.parent / "runs.csv", dtype={"class_order": str})
    large = path.parent.parent / "published" / path.name  # runs at the published budget have rows in the same table
    if large.exists():
        runs = runs + results_in(large)
    recipes = {}
    for r in runs:
        assert (
            r["scenario"]["checksum"]
            and r["environment"]["torch"]
            and r["seconds"] > 0
            and r["settings"]["seed"] == r["seed"]
        )
        recipes.setdefault((r["profile"], r["method"]), []).append(dict(identity(r["settings"]), seed=0, class_order=0))
    assert not [k for k, v in recipes.items() if any(x != v[0] for x in v)]
    mine = table[table.scenario == runs[0]["scenario"]["name"]]
    key = lambda r: (r["profile"], r["method"], r["seed"])
    numbers = {key(r): r["metrics"]["balanced_accuracy"] for r in runs}
    assert {key(r): pytest.approx(r["balanced_accuracy"], abs=1e-3) for _, r in mine.iterrows()} == numbers


@pytest.mark.slow
def test_tune_writes_what_it_found(tmp_path):
    found = tune(["ncm"], tmp_path / "tuned.json", jobs=0, scenario="blood-mini", profile="smoke", out=str(tmp_path))[
        "ncm"
    ]
    assert len(found["trials"]) == 2 and found["failed"] == 0 and found["environment"]["torch"]


def test_a_run_of_the_first_tasks_is_complete_if_it_was_asked_for_them_only(tmp_path):
    whole = profile_config("smoke", "fine-tuning", out=str(tmp_path), until=2)
    data = run(whole).data
    assert [t["task"] for t in data["tasks"]] == [1, 2] and len(main_rows([data])) == 1
    unsealed = {k: v for k, v in data.items() if "digest" not in k} | dict(settings=data["settings"] | dict(until=None))
    with pytest.raises(ConfigError, match="stopped after task 2"):
        main_rows([unsealed])
