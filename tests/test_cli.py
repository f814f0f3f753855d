"The command line: what it refuses, and what a small experiment leaves behind."

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from classimpression import cli
from classimpression.runs.tables import merge_rows, read_rows, tidy


def call(capsys, *argv: str) -> tuple[int, str, str]:
    try:
        code = cli.main(list(argv))
    except SystemExit as e:
        code = e.code
    return code, *capsys.readouterr()


@pytest.mark.parametrize(
    "argv, message",
    [
        (["reproduce", "nonsense"], "unknown experiment 'nonsense'; known: foundation, main_table"),
        (["reproduce", "--only", "../../secrets"], "unknown experiment"),
        (["reproduce", "losses", "--profile", "smoke", "-p", "variants", '["no pity"]'], "no variants"),
        (["reproduce", "foundation", "--scheduler", "tcp://127.0.0.1:9", "--jobs", "-2"], "jobs"),
        (["reproduce", "-p", "sedes", "[1]"], "no parameter 'sedes'"),
        (["reproduce", "-p", "seeds", "3"], "must be of type list"),
        (["reproduce", "--scenario", "bloot"], "bloot"),
        (["reproduce", "--methods", "magic"], "magic"),
        (["reproduce", "--profile", "slow"], "slow"),
        (["reproduce", "--scenario", "blood", "--root", "/nonexistent"], "/nonexistent"),
        (["run", "--method", "magic"], "magic"),
        (["run", "--method", "joint", "--epochs", "-3"], "epochs"),
        (["run", "--method", "joint", "--epochs", "many"], "epochs"),
        (["data", "download", "bloot"], "bloot"),
        (["bench", "--rounds", "0"], "rounds"),
        (["bench", "--threads", "0"], "threads"),
    ],
)
def test_mistakes_are_refused_before_any_work(capsys, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLASSIMPRESSION_DATA", raising=False)
    code, out, err = call(capsys, *argv)
    assert code == 2 and message in err and "Traceback" not in err and len(err.splitlines()) == 1, err
    assert not list(tmp_path.iterdir()), "nothing may be written"


def test_unknown_options_are_refused(capsys):
    for argv in (["reproduce", "--sedes", "1"], ["run", "--epoch-s", "1"], ["reprodcue"], []):
        code, _, err = call(capsys, *argv)
        assert code == 2 and "usage:" in err


@pytest.mark.parametrize("option", ["--out", "--figures"])
def test_unwritable_output_is_refused_before_any_work(capsys, tmp_path, monkeypatch, option):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("kept")
    code, out, err = call(capsys, "reproduce", "--profile", "smoke", option, "file/inside")
    assert code == 2 and "cannot write" in err and (tmp_path / "file").read_text() == "kept"
    assert not list(tmp_path.rglob("*.ipynb")) and not list(tmp_path.rglob("result.json"))


@pytest.mark.parametrize("command", ["reproduce", "run", "tune", "verify", "data", "bench", "info"])
def test_help_has_an_example(capsys, command):
    code, out, _ = call(capsys, command, "--help")
    assert code == 0 and f"example: classimpression {command}" in " ".join(out.split())


def test_info_is_json_without_names(capsys):
    code, out, _ = call(capsys, "info")
    facts = json.loads(out)
    assert (
        code == 0
        and facts["torch"]
        and {"foundation", "main_table", "report"} <= set(facts["experiments"])
        and str(Path.home()) not in out
    )


def test_data_list(capsys, tmp_path):
    (tmp_path / "bloodmnist.npz").write_bytes(b"not this")
    code, out, _ = call(capsys, "data", "list", "--root", str(tmp_path))
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert (
        code == 0
        and "embedded" in lines["blood-mini"]
        and "wrong checksum" in lines["blood"]
        and "missing" in lines["organa"]
    )
    assert call(capsys, "data", "check", "--root", str(tmp_path))[0] == 1


# One small experiment serves the tests below.
CONTENT = [
    ".csv",
    ".json",
    "_accuracy.png",
    "_matrix.png",
    "_confusion.png",
    "_recalls.png",
    "_means.png",
    "_impressions.png",
    "_real_and_synthetic.png",
    "_synthesis.png",
    "_history.png",
]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    "`reproduce` in an empty folder, in a process of its own, with a seed that is not the notebook's default."
    folder = tmp_path_factory.mktemp("experiment")
    command = [
        sys.executable,
        "-c",
        "import sys; from classimpression.cli import main; sys.exit(main())",
        "reproduce",
        "foundation",
        "--profile",
        "smoke",
        "--seeds",
        "7",
        "--jobs",
        "0",
    ]
    return folder, subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
@pytest.mark.xdist_group("one experiment")
def test_reproduce_leaves_everything_and_says_where(experiment):
    folder, done = experiment
    assert done.returncode == 0, done.stdout + done.stderr
    notebook = folder / "figures" / "smoke" / "foundation/blood-mini.ipynb"
    made = [folder / "figures" / "smoke" / f"foundation/blood-mini{c}" for c in CONTENT]
    for path in [notebook, *made]:
        assert path.stat().st_size > 100 and str(path.relative_to(folder)) in done.stdout
    assert str(folder) not in notebook.read_text() and "UserWarning" not in done.stderr
    assert not [p for p in folder.rglob("*") if p.suffix in (".tmp", ".pkl", ".pt", ".pth")]


@pytest.mark.slow
@pytest.mark.xdist_group("one experiment")
def test_injected_parameter_reaches_the_result(experiment):
    folder, done = experiment
    results = [json.loads(p.read_text()) for p in (folder / "runs").rglob("result.json")]
    assert {(r["seed"], r["settings"]["seed"], r["profile"]) for r in results} == {(7, 7, "smoke")}
    assert {r["method"] for r in results} == {"class-impression", "fine-tuning", "joint"}
    assert set(read_rows(folder / "figures" / "smoke" / "foundation/blood-mini.csv").seed) == {7}


@pytest.mark.slow
@pytest.mark.xdist_group("one experiment")
def test_rerun_replaces_only_its_own_rows(experiment, capsys, monkeypatch):
    folder, _ = experiment
    monkeypatch.chdir(folder)
    path = folder / "figures" / "smoke" / "foundation/blood-mini.csv"
    before = read_rows(path)
    strangers = before.assign(seed=99)
    merge_rows(path, strangers)
    code, out, err = call(
        capsys, "reproduce", "foundation", "--profile", "smoke", "--seeds", "7", "--methods", "fine-tuning"
    )
    assert code == 0, err
    after = read_rows(path)
    pd.testing.assert_frame_equal(after[after.seed == 99].reset_index(drop=True), strangers.reset_index(drop=True))
    assert len(after) == 2 * len(before)
    stored = [json.loads(p.read_text()) for p in (folder / "runs").rglob("result.json")]
    assert len(tidy(stored)) == len(before), "the finished run was read again, not repeated"


MINE = """
from classimpression.methods.registry import first_task, method

@method("stands-still", "Learns the first task only", tier="M0", trials=({"lr": .05}, {"lr": .1}))
def stands_still(carry, task, impressions, cfg):
    "The lower bound of lower bounds."
    from classimpression.methods.registry import find_method
    return first_task(task, cfg) if carry is None else find_method("fine-tuning").fit(carry, task, None, cfg)
"""


def test_methods_of_a_readers_own_reach_runs_and_tables(tmp_path):
    "The command line, a run in a process of its own and a notebook's kernel are three processes; all know the method."
    import os
    from classimpression.runs.tuning import trial_configs

    (tmp_path / "mine.py").write_text(MINE)
    env = {
        **os.environ,
        "CLASSIMPRESSION_METHODS": str(tmp_path / "mine.py"),
        "TQDM_DISABLE": "1",
        "OMP_NUM_THREADS": "1",
    }
    argv = [
        "reproduce",
        "main_table",
        "--profile",
        "smoke",
        "--methods",
        "stands-still",
        "ncm",
        "--jobs",
        "1",
        "--out",
        "runs",
        "--figures",
        "figures",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from classimpression.cli import main; sys.exit(main())", *argv],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    table = pd.read_csv(next((tmp_path / "figures").rglob("main_table/blood-mini_summary.csv")))
    assert set(table.method) == {"Learns the first task only", "Nearest class mean"}
    asked = (
        "from classimpression.runs.tuning import trial_configs; print([c.options for c in "
        "trial_configs('stands-still', scenario='blood-mini', profile='smoke')])"
    )
    said = subprocess.run([sys.executable, "-c", asked], env=env, capture_output=True, text=True, timeout=300)
    assert said.stdout.strip() == "[{'lr': 0.05}, {'lr': 0.1}]", said.stderr[-2000:]
    with pytest.raises(ValueError, match="unknown method 'stands-still'"):
        trial_configs("stands-still")
