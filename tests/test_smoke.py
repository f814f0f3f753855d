"""One small run serves all tests here: `classimpression reproduce` in an empty folder, in a process of its own, with
two experiments that share runs, two repeats, and a method of a reader's own.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from classimpression import cli
from classimpression.core.files import read_json
from classimpression.core.provenance import package_folder
from classimpression.report.comparison import MAIN, main_rows, main_summary
from classimpression.report.verdicts import reproduced
from classimpression.runs.configs import reported_repeats
from classimpression.runs.tables import merge_rows, read_rows, tidy
from classimpression.runs.tuning import trial_configs

pytest.importorskip("papermill")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("smoke")]
METHODS = ["class-impression", "fine-tuning", "slda", "replay"]
MINE = """
import copy
from classimpression.heads import grow
from classimpression.methods.registry import first_task, method
from classimpression.training import History

@method("stands-still", "Learns the first task only", tier="M0", trials=({"lr": .05}, {"lr": .1}))
def stands_still(carry, task, impressions, cfg):
    "The lower bound of lower bounds: of a new class it knows that there is one."
    if carry is None:
        return first_task(task, cfg)
    model = copy.deepcopy(carry.model)
    grow(model.head, len(task.labels))
    return model.eval(), History()
"""
PICTURES = "accuracy matrix confusion recalls means impressions real_and_synthetic synthesis history".split()


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    "Environment of a command that knows a method of the reader's own."
    path = tmp_path_factory.mktemp("mine") / "mine.py"
    path.write_text(MINE)
    more = dict(CLASSIMPRESSION_METHODS=str(path), PYTHONPATH=str(package_folder().parent))
    return os.environ | more | dict(TQDM_DISABLE="1", OMP_NUM_THREADS="1")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory, mine):
    folder = tmp_path_factory.mktemp("smoke")
    what = ["reproduce", "foundation", "main_table", "--profile", "smoke", "--jobs", "1", "--repeats", "0", "1"]
    command = [sys.executable, "-m", "classimpression", *what, "--methods", *METHODS, "stands-still"]
    done = subprocess.run(command, cwd=folder, env=mine, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder, done


@pytest.fixture
def figures(smoke):
    return smoke[0] / "figures" / "smoke"


@pytest.fixture
def runs(figures):
    return read_json(figures / "main_table/blood-mini_runs.json")


def test_it_leaves_everything_and_says_where(smoke, figures):
    folder, done = smoke
    notebook = figures / "foundation/blood-mini.ipynb"
    made = [figures / f"foundation/blood-mini{c}" for c in (".csv", ".json", *(f"_{p}.png" for p in PICTURES))]
    for path in [notebook, *made]:
        assert path.stat().st_size > 100, path
    page = figures / "report.html"
    lines = done.stdout.splitlines()
    assert f"Page:   {page.as_uri()}" in lines and page.stat().st_size > 10_000
    assert [line for line in lines if line.startswith("Folder: figures/smoke (")] and "Done in" in done.stdout
    for ending in "summary.csv summary.md summary.tex paired.csv bootstrap.csv verdicts.csv runs.json".split():
        assert (figures / f"main_table/blood-mini_{ending}").stat().st_size > 100, ending
    for ending in ("curves.png", "carried.png"):
        assert (figures / f"main_table/blood-mini_{ending}").stat().st_size > 100, ending
    assert str(folder) not in notebook.read_text() and "UserWarning" not in done.stderr
    assert not [p for p in folder.rglob("*") if p.suffix in (".tmp", ".pkl", ".pt", ".pth")]


def test_injected_parameters_reach_the_results(smoke, figures):
    folder, _ = smoke
    seeds = {p["seed"] for p in reported_repeats("blood")[:2]}
    results = [json.loads(p.read_text()) for p in (folder / "runs").rglob("result.json")]
    assert len(results) == 10, "two notebooks share their runs"
    assert {(r["seed"], r["profile"]) for r in results} == {(s, "smoke") for s in seeds}
    assert all(r["settings"]["seed"] == r["seed"] for r in results)
    assert {r["method"] for r in results} == {*METHODS, "stands-still"}
    assert set(read_rows(figures / "foundation/blood-mini.csv").seed) == seeds


def test_main_table_is_that_of_the_runs(figures, runs):
    table = pd.read_csv(figures / "main_table/runs.csv", dtype={"class_order": str})
    assert tuple(table.columns) == MAIN and len(table) == 10 and set(table.protocol) == {"strict"}
    orders = {"0 1 2 3 4 5 6 7", " ".join(map(str, reported_repeats("blood")[1]["class_order"]))}
    assert set(table.class_order) == orders
    assert all({"settings", "environment", "seed"} <= set(r) and r["scenario"]["checksum"] for r in runs)
    keys = ["method", "seed"]
    pd.testing.assert_frame_equal(
        main_rows(runs).sort_values(keys)[["method", "final_accuracy"]].reset_index(drop=True),
        table.sort_values(keys)[["method", "final_accuracy"]].reset_index(drop=True),
        rtol=1e-4,
    )
    assert np.isfinite(table.seconds).all() and (table.seconds > 0).all()
    carried = table.set_index(keys).carried_images
    assert carried["replay", 0] == 120 and carried["slda", 0] == 0


def test_all_methods_start_from_the_same_first_task(runs):
    first = {(r["method"], r["seed"]): r["tasks"][0]["confusion"] for r in runs}
    assert first["class-impression", 0] == first["fine-tuning", 0] == first["replay", 0]
    seconds = {r["method"]: r["tasks"][0]["cpu_seconds"] for r in runs if r["seed"] == 0}
    assert seconds["replay"] > 0.5 * seconds["class-impression"], "the shared first task counts for every method"


def test_summary_and_verdicts_need_no_particular_methods(runs):
    rows = main_rows(runs)
    words = {"reproduced", "reproduced as far as compared", "not reproduced", "not comparable", "missing"}
    assert len(main_summary(rows)) == 5 and set(reproduced(rows).verdict) <= words


def test_methods_of_a_readers_own_reach_runs_tables_and_trials(figures, mine):
    "The command line, a run in a process of its own and a notebook's kernel are three processes; all know the method."
    table = pd.read_csv(figures / "main_table/blood-mini_summary.csv")
    assert {"Learns the first task only", "Streaming LDA"} <= set(table.method)
    asked = (
        "from classimpression.runs.tuning import trial_configs; "
        "print([c.options for c in trial_configs('stands-still', scenario='blood-mini', profile='smoke')])"
    )
    said = subprocess.run([sys.executable, "-c", asked], env=mine, capture_output=True, text=True, timeout=300)
    assert said.stdout.strip() == "[{'lr': 0.05}, {'lr': 0.1}]", said.stderr[-2000:]
    with pytest.raises(ValueError, match="unknown method 'stands-still'"):
        trial_configs("stands-still")


def test_rerun_replaces_only_its_own_rows(smoke, figures, capsys, monkeypatch):
    "The last test here: it adds rows."
    folder, _ = smoke
    monkeypatch.chdir(folder)
    path = figures / "foundation/blood-mini.csv"
    before = read_rows(path)
    strangers = before.assign(seed=99)
    merge_rows(path, strangers)
    what = ["reproduce", "foundation", "--profile", "smoke", "--repeats", "0", "--methods", "fine-tuning"]
    code = cli.main(what)
    assert code == 0, capsys.readouterr().err
    after = read_rows(path)
    pd.testing.assert_frame_equal(after[after.seed == 99].reset_index(drop=True), strangers.reset_index(drop=True))
    assert len(after) == 2 * len(before)
    stored = [json.loads(p.read_text()) for p in (folder / "runs").rglob("result.json")]
    assert len(stored) == 10 and len(tidy(stored)) == len(before), "the finished run was read again, not repeated"
