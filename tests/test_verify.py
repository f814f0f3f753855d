"Reported results, drawn and repeated: what is drawn from, what a changed number leads to, what is written down."

import copy
import json
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest

from classimpression import cli
from classimpression.core.errors import StateError
from classimpression.core.files import read_json, write_json
from classimpression.core.provenance import digest, package_folder
from classimpression.metrics import summarise, task_summary
from classimpression.runs.configs import OLD_NAMES
from classimpression.runs.run_store import first_names, identity
from classimpression.runs.tables import broken_tables, read_ledger, reported_files
from classimpression.runs.runner import RunConfig, profile_config, run
from classimpression.report.verify import drawn, reported_runs, spread_of, verify

FIGURES = package_folder().parent / "figures"


@pytest.mark.skipif(not FIGURES.is_dir(), reason="only in a checkout")
def test_every_committed_run_is_drawn_from_once_and_can_be_made_again():
    runs = reported_runs(FIGURES)
    lines = {
        p.relative_to(FIGURES).as_posix().removesuffix("_runs.json"): len(read_json(p))
        for p in reported_files(FIGURES, "*_runs.json")
    }
    told = [t for r in runs for t in r["tables"]]
    assert {t: told.count(t) for t in lines} == lines and len(lines) > 10
    assert len({r["run_id"] for r in runs}) == len(runs) < len(told)
    old_names = {new: old for old, new in OLD_NAMES.items()}
    for r in runs:
        cfg = RunConfig.of(**r["settings"] | dict(root=None, out="", cache=None, any_code=False))
        told = identity(asdict(cfg))
        hashes = {digest(told)[:10], digest({old_names.get(k, k): v for k, v in told.items()})[:10]}
        hashes |= {digest(first_names(told))[:10]}  # with old names inside the options too
        names = tuple(f"{cfg.method}-seed{cfg.seed}-{h}" for h in hashes)
        assert r["run_id"].startswith(names), "the run that would be made is not the reported one"


def invented(seed: int, accuracies: list[float], **settings) -> dict:
    "As much of a result as a spread is taken from."
    tasks = [dict(balanced_accuracy=a) for a in accuracies]
    settings = dict(method="class-impression", profile="ablation", seed=seed, class_order=None) | settings
    scenario = dict(name="blood", checksum="x", sizes=[1, 1], class_order=[0, 1])
    return dict(method="class-impression", profile="ablation", protocol="strict", seed=seed) | dict(
        scenario=scenario, settings=settings, tasks=tasks
    )


def test_variants_of_an_ablation_have_a_spread_of_their_own():
    whole = [invented(s, [90 + s, 40 + 10 * s]) for s in range(3)]
    without = [invented(s, [90, 30 + s], idc_weight=0.0) for s in range(2)]
    allowed, repeats = spread_of(whole[0], whole[0], whole + without)
    assert repeats == 3 and allowed.tolist() == [2.0, 20.0], "twice the standard deviation over its three repeats"
    allowed, repeats = spread_of(without[0], without[0], whole + without)
    assert repeats == 2 and np.isnan(allowed).all(), "two repeats are no spread"


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    "Three small runs in two tables, and the folder where they have been repeated."
    folder = tmp_path_factory.mktemp("reported")
    runs = [run(profile_config("smoke", "fine-tuning", seed=s, until=2, out=f"{folder}/again")).data for s in range(3)]
    for name, part in dict(main_table=runs, losses=runs[1:]).items():
        write_json(folder / name / "blood-mini_runs.json", part)
    return folder, runs


@pytest.mark.slow
@pytest.mark.xdist_group("verify")
def test_the_outcome_is_kept_run_by_run(reported, tmp_path, capsys):
    folder, runs = reported
    go = lambda *more: cli.main(
        [
            "verify",
            "--figures",
            str(folder),
            "--out",
            f"{folder}/again",
            "--jobs",
            "0",
            "--save",
            str(tmp_path / "kept" / "verified.csv"),
            *more,
        ]
    )
    assert go("--sample", "1", "--tables", "main_table") == 0
    first = pd.read_csv(tmp_path / "kept" / "verified.csv")
    assert (
        go("--sample", "9", "--scenario", "blood-mini", "--minutes", "60") == 0
        and "3 of 3 reported runs" in capsys.readouterr().out
    )
    table, facts = (
        pd.read_csv(tmp_path / "kept" / "verified.csv", dtype=dict(class_order=str)),
        read_json(tmp_path / "kept" / "verified.json"),
    )
    assert len(first) == 1 and sorted(table.run_id) == sorted(r["run_id"] for r in runs) == [d["run_id"] for d in facts]
    assert (
        set(table.verdict) == {"identical"}
        and set(table.difference) == {0.0}
        and set(table.repeats) == {3}
        and table.same_code.all()
    )
    assert dict(zip(table.run_id, table.tables))[runs[1]["run_id"]] == "losses/blood-mini, main_table/blood-mini"
    assert all(
        d["environment"]["torch"]
        and d["finished"]
        and d["balanced_accuracy"]["reported"] == d["balanced_accuracy"]["again"]
        for d in facts
    )
    kept = {p.name for p in (tmp_path / "kept").iterdir() if p.name[0] != "."}
    assert kept == {"verified.csv", "verified.json", "digests.json"}, "no half a file"


@pytest.mark.slow
@pytest.mark.xdist_group("verify")
def test_a_changed_number_is_found_and_does_not_hide_in_its_own_spread(reported, tmp_path, capsys):
    folder, runs = reported
    changed = copy.deepcopy(runs)
    for r in changed:
        del r["digest"]  # as an earlier version wrote them
    confusion = changed[0]["tasks"][0]["confusion"]
    confusion[0] = confusion[0][::-1]  # another outcome, and all numbers that follow from it
    changed[0]["tasks"][0] |= task_summary(confusion, changed[0]["scenario"]["sizes"][:1])
    sizes = changed[0]["scenario"]["sizes"][:2]
    changed[0]["metrics"] = summarise([t["confusion"] for t in changed[0]["tasks"]], sizes)
    (tmp_path / "main_table_runs.json").write_text(json.dumps(changed))
    argv = ["verify", "--figures", str(tmp_path), "--out", f"{folder}/again", "--jobs", "0"]
    assert cli.main(argv) == 1
    assert capsys.readouterr().out.count("different") == 1
    (tmp_path / "main_table_runs.json").write_text(json.dumps(changed[:2]))
    assert cli.main(argv) == 1 and "no spread" in capsys.readouterr().out
    (tmp_path / "losses_runs.json").write_text(json.dumps(runs))
    with pytest.raises(StateError, match="other outcomes of the run"):
        reported_runs(tmp_path)


@pytest.mark.slow
@pytest.mark.xdist_group("verify")
@pytest.mark.parametrize("sealed", [True, False])
def test_a_number_without_its_outcomes_is_told_drawn_or_not(reported, tmp_path, capsys, sealed):
    folder, runs = reported
    changed = copy.deepcopy(runs)
    changed[2]["metrics"]["balanced_accuracy"] += 40
    changed[2]["tasks"][-1]["balanced_accuracy"] += 40
    if not sealed:
        del changed[2]["digest"]
    (tmp_path / "main_table_runs.json").write_text(json.dumps(changed))
    argv = ["verify", "--figures", str(tmp_path), "--out", f"{folder}/again", "--jobs", "0", "--sample", "1"]
    assert cli.main(argv) == 1
    said = capsys.readouterr().out
    assert said.count("altered") == 1 and ("balanced_accuracy" if not sealed else "does not fit its digest") in said


@pytest.mark.slow
@pytest.mark.xdist_group("verify")
def test_other_images_are_no_repetition(reported, tmp_path):
    folder, runs = reported
    other = copy.deepcopy(runs[0])
    del other["digest"]  # as an earlier version wrote it
    other["scenario"]["checksum"] = "another"
    (tmp_path / "main_table_runs.json").write_text(json.dumps([other]))
    assert list(verify(tmp_path, out=f"{folder}/again", jobs=0).verdict) == ["other data"]


def test_the_draw_is_the_same_for_the_same_seed_only():
    runs = [dict(run_id=str(i)) for i in range(50)]
    assert (
        drawn(runs, 5, 1) == drawn(runs, 5, 1) != drawn(runs, 5, 2)
        and len({r["run_id"] for r in drawn(runs, 50, 1)}) == 50
    )
    assert np.unique([r["run_id"] for r in drawn(runs, 99)]).size == 50


@pytest.mark.skipif(not FIGURES.is_dir(), reason="only in a checkout")
def test_every_committed_table_is_sealed_and_whole():
    tables = reported_files(FIGURES, "*.csv")
    assert len(tables) > 100
    unsealed = [p.as_posix() for p in tables if p.name not in read_ledger(p.parent)]
    assert not unsealed, "written past `write_table`, or never entered by `seal_tables`"
    assert broken_tables(FIGURES) == []
