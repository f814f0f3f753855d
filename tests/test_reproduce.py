"Many notebooks by one command: a failing one stops no other, what is typed reaches them, what is finished is read."

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
from filelock import FileLock

from classimpression.runs import experiments, reproduce
from classimpression.core.errors import ConfigError
from classimpression.core.files import read_json
from classimpression.core.provenance import package_folder
from classimpression.runs.engine import fork_server
from classimpression.runs.experiments import Experiment

pytest.importorskip("papermill")
ROOT = Path(__file__).parent.parent


def notebook(path: Path, code: str) -> None:
    "An experiment notebook of two cells."
    cell = lambda source, tags: dict(
        cell_type="code",
        id=tags or "work",
        metadata=dict(tags=[tags]) if tags else {},
        outputs=[],
        execution_count=None,
        source=source,
    )
    cells = [
        cell(
            'scenario: str = "blood-mini"\nprofile: str = "smoke"\nrepeats: list = [0]\nmethods: list = '
            '["fine-tuning"]\njobs: int = 1\nroot: str = ""\nout: str = "runs"\nfigures: str = "figures"',
            "parameters",
        ),
        cell(code, ""),
    ]
    path.write_text(
        json.dumps(
            dict(
                cells=cells,
                metadata=dict(kernelspec=dict(name="python3", display_name="python3", language="python")),
                nbformat=4,
                nbformat_minor=5,
            )
        )
    )


READS = """from classimpression.runs.engine import run_all
from classimpression.runs.experiments import plan_runs
from pathlib import Path
results, failed = run_all(plan_runs(scenario, profile, methods, repeats=repeats, out=out), jobs)
assert jobs == -1 and not failed
(Path(figures) / profile / "read.txt").write_text(" ".join(r.folder.name for r in results))"""


@pytest.fixture
def three(tmp_path, monkeypatch):
    "Three experiments on the same runs, the second of which fails."
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for name, code in dict(first="print('first', repeats)", second="raise ValueError('no luck')", third=READS).items():
        notebook(folder / f"{name}.ipynb", code)
    plan = {
        n: Experiment(n, n, "Why?", ["fine-tuning"], dict(smoke=[dict(scenario="blood-mini", repeats=[0])]))
        for n in ("first", "second", "third")
    }
    monkeypatch.setattr(experiments, "experiments", lambda: plan)
    monkeypatch.setattr(reproduce, "experiments", lambda: plan)
    monkeypatch.setattr(reproduce, "notebook_folder", lambda: folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_notebook_that_fails_stops_no_other(three, capsys):
    assert reproduce.reproduce([], "smoke", {}, jobs=0) == 1
    out, err = capsys.readouterr()
    figures = three / "figures" / "smoke"
    assert {p.relative_to(figures).as_posix() for p in figures.rglob("*.ipynb")} == {
        "first/blood-mini.ipynb",
        "second/blood-mini.failed.ipynb",
        "third/blood-mini.ipynb",
    }
    assert "the notebook second/blood-mini stopped: ValueError: no luck; up to there: figures/smoke/second" in err
    assert "Failed after" in err.splitlines()[-1] and not re.search("Done|Next|[Ff]ailed", out)
    assert out.count("fine-tuning, blood-mini, seed 0") == 1, "three notebooks share one run"
    (run,) = (three / "runs").rglob("result.json")
    assert (figures / "read.txt").read_text() == run.parent.name
    before = run.read_bytes()
    notebook(three / "notebooks" / "second.ipynb", "print('mended')")
    assert reproduce.reproduce(["second"], "smoke", {}, jobs=0) == 0 and run.read_bytes() == before
    assert not (figures / "second/blood-mini.failed.ipynb").exists() and (figures / "second/blood-mini.ipynb").exists()


@pytest.mark.slow
def test_a_run_that_fails_is_told_with_its_notebooks(three, capsys):
    assert reproduce.reproduce(["first"], "smoke", dict(methods=["fine-tuning", "joint"], repeats=[1]), jobs=-1) == 1
    out, err = capsys.readouterr()
    assert "2 runs of first/blood-mini not finished" in err and "first [1]" in out


def test_the_plan_is_printed_and_nothing_is_done(three, capsys):
    assert reproduce.reproduce([], "smoke", {}, only_plan=True) == 0
    out = capsys.readouterr().out
    assert (
        out.startswith("3 notebooks")
        and "shared runs once" in out.splitlines()[-1]
        and "1 run,    0 finished" in out.splitlines()[-1]
    )
    assert {p.name for p in three.iterdir()} == {"notebooks"}


def test_entries_that_typed_parameters_make_the_same_are_one(three, monkeypatch):
    two = Experiment(
        "first",
        "first",
        "Why?",
        ["fine-tuning"],
        dict(
            smoke=[
                dict(scenario="blood-mini", repeats=[0, 1], methods=["slda"]),
                dict(scenario="blood-mini", repeats=[0]),
            ]
        ),
    )
    monkeypatch.setattr(reproduce, "find_experiment", lambda name: two)
    monkeypatch.setattr(experiments, "find_experiment", lambda name: two)
    count = lambda **given: [len(j.configs) for j in reproduce.jobs_of(["first"], "smoke", given)]
    assert count() == [2, 1] and count(repeats=[2]) == [1, 1] and count(repeats=[2], methods=["ncm", "slda"]) == [2]


def test_unknown_parameters_and_profiles_are_refused(three):
    for given, said in (
        (dict(sedes=[1]), "no parameter 'sedes'"),
        (dict(repeats=3), "must be of type list"),
        (dict(scenario="moon"), "moon"),
        (dict(methods=["magic"]), "magic"),
    ):
        with pytest.raises(ConfigError, match=said):
            reproduce.reproduce([], "smoke", given)
    with pytest.raises(ConfigError, match="slow"):
        reproduce.reproduce([], "slow", {})
    assert {p.name for p in three.iterdir()} == {"notebooks"}


def test_executed_notebooks_name_no_folder_of_this_machine(tmp_path):
    path = tmp_path / "losses.running.ipynb"
    cell = dict(
        cell_type="code",
        id="given",
        metadata=dict(tags=["injected-parameters"]),
        outputs=[],
        execution_count=1,
        source='repeats = [0]\nroot = "/data/of/mine"\nfigures = "figures"',
    )
    notes = dict(
        input_path="/home/me/losses.ipynb",
        output_path=str(path),
        parameters=dict(repeats=[0], root="/data/of/mine", figures="figures"),
    )
    path.write_text(json.dumps(dict(cells=[cell], metadata=dict(papermill=notes), nbformat=4, nbformat_minor=5)))
    reproduce.tidy_notebook(path, Path("/home/me/losses.ipynb"), tmp_path / "losses" / "blood.ipynb")
    nb = json.loads(path.read_text())
    assert nb["metadata"]["papermill"] == dict(
        input_path="losses.ipynb", output_path="blood.ipynb", parameters=dict(repeats=[0], figures="figures")
    )
    assert (
        "".join(nb["cells"][0]["source"]) == 'repeats = [0]\nfigures = "figures"' and "/data/of" not in path.read_text()
    )


@pytest.mark.slow
def test_two_that_execute_one_notebook_take_turns(tmp_path):
    "Else one renames what the other is still writing."
    notebook(
        tmp_path / "both.ipynb",
        "import pathlib, time\nlog = pathlib.Path(out)\nlog.open('a').write(f'starts {repeats}\\n'); time.sleep(1); "
        "log.open('a').write(f'ends {repeats}\\n')",
    )
    (tmp_path / "figures").mkdir()
    done = []
    go = lambda k: done.append(
        reproduce.execute(
            tmp_path / "both.ipynb", tmp_path / "figures" / "both.ipynb", dict(repeats=[k], out=str(tmp_path / "log"))
        )
    )
    both = [threading.Thread(target=go, args=(k,)) for k in (1, 2)]
    for t in both:
        t.start()
    for t in both:
        t.join()
    first, second = [line.split()[1] for line in (tmp_path / "log").read_text().splitlines()[::2]]
    assert (tmp_path / "log").read_text().split() == [
        "starts",
        first,
        "ends",
        first,
        "starts",
        second,
        "ends",
        second,
    ] and {first, second} == {"[1]", "[2]"}
    assert done == [tmp_path / "figures" / "both.ipynb"] * 2 and [
        p.name for p in (tmp_path / "figures").glob("*.ipynb")
    ] == ["both.ipynb"]


@pytest.mark.slow
def test_two_commands_at_once_on_the_same_folders_lose_nothing(tmp_path):
    """Two processes share a run, all tables and the notebook; one method is asked for by the first only, one by the
    second only.
    """
    command = [
        sys.executable,
        "-c",
        "import sys; from classimpression.cli import main; sys.exit(main())",
        "reproduce",
        "--profile",
        "smoke",
        "--only",
        "main_table",
        "--jobs",
        "0",
        "--out",
        "runs",
        "--figures",
        "figures",
        "--methods",
    ]
    env = os.environ | dict(TQDM_DISABLE="1", OMP_NUM_THREADS="1", PYTHONPATH=str(package_folder().parent))
    asked = [("fine-tuning", "slda"), ("slda", "ncm")]
    both = [
        subprocess.Popen(
            [*command, *methods], cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for methods in asked
    ]
    try:
        said = [p.communicate(timeout=500)[0] for p in both]
    finally:
        for p in both:
            p.kill()
    assert [p.returncode for p in both] == [0, 0], "\n".join(said)
    results = {read_json(p)["run_id"]: read_json(p) for p in (tmp_path / "runs").rglob("result.json")}
    assert sorted(r["method"] for r in results.values()) == ["fine-tuning", "ncm", "slda"] and all(
        len(r["tasks"]) == 4 for r in results.values()
    )
    figures = tmp_path / "figures" / "smoke"
    table, lines = pd.read_csv(figures / "main_table/runs.csv"), read_json(figures / "main_table/blood-mini_runs.json")
    assert sorted(table.method) == sorted(r["method"] for r in lines) == ["fine-tuning", "ncm", "slda"] and {
        r["run_id"] for r in lines
    } == set(results)
    assert len(pd.read_csv(figures / "main_table/blood-mini_summary.csv")) == 3, "the last summary is of all rows"
    assert (
        json.loads((figures / "main_table/blood-mini.ipynb").read_text())["metadata"]["papermill"]["exception"] is None
    )
    assert not [
        p
        for p in tmp_path.rglob("*")
        if p.suffix == ".tmp" or ".running" in p.name or ".failed" in p.name or p.name == ".writable"
    ]
    for lock in tmp_path.rglob(".lock"):
        with FileLock(lock, timeout=0):
            pass  # left as an empty file, held by nobody


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only")
def test_a_forked_kernel_is_interrupted_and_ends_with_who_asked_for_it():
    from jupyter_client import KernelManager

    with fork_server("reproduce", "serve_kernels") as server, reproduce.own_kernel(server):
        manager = KernelManager(kernel_name="python3")
        manager.start_kernel()
        client = manager.client()
        client.start_channels()
        client.wait_for_ready(120)
        said = []
        run = lambda code: client.execute_interactive(code, timeout=120, output_hook=said.append)["content"]["status"]
        assert run("import os, seaborn, time; print(os.getpid(), os.getpgid(0))") == "ok"
        text = "".join(m["content"].get("text", "") for m in said)
        kernel, group = map(int, text.split())
        assert kernel == group and kernel != manager.provisioner.pid
        threading.Timer(2.0, manager.interrupt_kernel).start()
        assert run("time.sleep(100)") == "error" and run("time.sleep(0)") == "ok", "interrupted, and alive"
        client.stop_channels()
        os.kill(manager.provisioner.pid, signal.SIGKILL)
        for _ in range(200):
            if not Path(f"/proc/{kernel}").exists() or " Z " in Path(f"/proc/{kernel}/stat").read_text():
                break
            time.sleep(0.1)
        else:
            raise AssertionError("a kernel that nobody waits for")
        manager.cleanup_resources()


def test_a_kernel_takes_the_code_of_the_command_not_of_the_working_directory(tmp_path, monkeypatch):
    "IPython puts the working directory before site-packages."
    there, here = tmp_path / "site-packages", tmp_path / "clone"
    there.mkdir()
    (there / "classimpression").symlink_to(package_folder())
    here.mkdir()
    (here / "classimpression.py").write_text("raise ImportError('other code')")
    notebook(tmp_path / "where.ipynb", "import classimpression\nprint('from', classimpression.__file__)")
    monkeypatch.chdir(here)
    monkeypatch.setattr(reproduce, "fresh_environment", lambda: dict(PYTHONPATH=str(there)))
    with reproduce.own_kernel():
        done = reproduce.execute(tmp_path / "where.ipynb", tmp_path / "done.ipynb", {})
    assert done and f"from {there}" in done.read_text()


EXECUTED = sorted((ROOT / "figures").glob("*/*.ipynb"))


@pytest.mark.skipif(not EXECUTED, reason="the executed notebooks are not beside the tests")
def test_executed_notebooks_have_todays_names_or_say_which_they_have():
    assert len(EXECUTED) > 20
    for path in EXECUTED:
        nb = json.loads(path.read_text(encoding="utf-8"))
        known = set(reproduce.parameters_of(ROOT / "nbs" / "experiments" / f"{path.parent.name}.ipynb"))
        typed = {
            line.partition(" = ")[0]
            for c in nb["cells"]
            if "injected-parameters" in c["metadata"].get("tags", [])
            for line in "".join(c["source"]).splitlines()
            if " = " in line
        }
        strange = (typed | set(nb["metadata"]["papermill"]["parameters"])) - known
        assert not strange, f"{path}: its source has no parameters {strange}"
        notes = ["".join(c["source"]) for c in nb["cells"] if reproduce.NOTE in c["metadata"].get("tags", [])]
        wanted = reproduce.note_of(nb, path.parent.name)
        assert notes == [wanted] * bool(wanted), f"{path}: run classimpression.runs.reproduce.add_notes()"


@pytest.mark.skipif(not EXECUTED, reason="the executed notebooks are not beside the tests")
def test_notebooks_that_compute_for_minutes_are_in_the_plan_with_their_time():
    taken = {k: s for k, s in experiments.notebook_seconds(EXECUTED).items() if s > 60}
    costs = experiments.measured_seconds("none")
    assert len(taken) > 5 and not {k for k, s in taken.items() if costs.get(k, 0.0) < s / 2}


@pytest.mark.skipif(not EXECUTED, reason="the measured minutes are not beside the tests")
@pytest.mark.parametrize("profile", ["first", "quick"])
def test_the_estimate_is_right_within_a_third(profile, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    todo = reproduce.jobs_of([], profile, {})
    said = reproduce.expected_clock(todo, 2, experiments.measured_seconds("runs"))
    minutes = pd.read_csv(ROOT / "figures" / "first_hour" / "minutes.csv").set_index("command").minutes
    assert 2 / 3 < said / (60 * minutes[profile]) < 4 / 3, "on a machine like that of the committed costs"
