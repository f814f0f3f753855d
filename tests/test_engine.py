"Many runs: dead workers, dead runners, two at once, changed code, full disks, a scheduler of its own."

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from classimpression.core import errors, provenance
from classimpression.data import file_md5
from classimpression.runs import run_store as folders
from classimpression.core.errors import StateError
from classimpression.core.files import read_json, write_json
from classimpression.runs.engine import run_all, run_apart
from classimpression.runs.run_store import finished_run, run_lock, run_folder
from classimpression.runs.runner import RunConfig, profile_config, run

pytest.importorskip("distributed")
RUN = dict(profile="smoke", method="class-impression", until=3)


def config(out, **more):
    more = RUN | more
    return profile_config(more.pop("profile"), more.pop("method"), out=str(out), **more)


TIMES = ("seconds", "cpu_seconds", "peak_memory_mb", "cached_seconds", "digest")


def numbers(folder: Path) -> dict:
    "Everything in a result that may not depend on where and how it was made."
    r = read_json(folder / "result.json")
    rows = [{k: v for k, v in t.items() if k not in TIMES} for t in r["tasks"]]
    return dict(
        metrics=r["metrics"],
        tasks=rows,
        tensors={str(p.relative_to(folder)): file_md5(p) for p in sorted(folder.rglob("*.safetensors"))},
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "The numbers of one undisturbed run in this process."
    return numbers(run(config(tmp_path_factory.mktemp("whole"))).folder)


def descendants(pid: int) -> list[int]:
    "Children of a process, their children, and so on; only these are looked at."
    try:
        lists = [p.read_text() for p in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []
    mine = [int(child) for text in lists for child in text.split()]
    return mine + [further for child in mine for further in descendants(child)]


def runs_of(pid: int) -> list[int]:
    "Processes below this one that belong to the engine, oldest first: the server, and a run."
    said = lambda p: Path(f"/proc/{p}/cmdline").read_text()
    return sorted(p for p in descendants(pid) if alive(p) and "classimpression.runs.engine" in said(p))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds: float = 240.0) -> None:
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "this should have happened long ago"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.xdist_group("whole run")
def test_killed_run_and_killed_runner(tmp_path, whole):
    """The process that started everything dies, and its runs with it; then a run's process dies, and is reported. Each
    time the work goes on after the last finished task.
    """
    code = f"""
import sys
from classimpression.runs.engine import run_all
from classimpression.runs.runner import profile_config
results, failed = run_all([profile_config('smoke', 'class-impression', until=3, out={str(tmp_path)!r})], 1)
print(failed); sys.exit(bool(failed))
"""
    (tmp_path / "go.py").write_text(code)  # no guard of the main module is needed
    start = lambda: subprocess.Popen(
        [sys.executable, str(tmp_path / "go.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | dict(OMP_NUM_THREADS="1", PYTHONPATH=str(Path(provenance.package_folder()).parent)),
    )
    rows = lambda n: list(tmp_path.rglob(f"task{n}/row.json"))
    first = start()
    wait_for(lambda: rows(1) or first.poll() is not None)
    assert first.poll() is None, first.stdout.read()
    mine = runs_of(first.pid)
    assert len(mine) == 2, "a server and a run"
    kept = rows(1)[0].read_bytes()
    first.kill()
    first.wait()  # the runner dies: nobody works on for nobody
    wait_for(lambda: not any(map(alive, mine)), 60)
    assert not list(tmp_path.rglob("result.json"))
    second = start()
    wait_for(lambda: rows(2) or second.poll() is not None)
    assert second.poll() is None, second.stdout.read()
    server, one = runs_of(second.pid)
    os.kill(one, signal.SIGKILL)  # the run dies: it is said
    assert second.wait(300) == 1 and "process of this run died" in second.stdout.read()
    folder = run_folder(config(tmp_path))
    assert run(config(tmp_path)).folder == folder, "whoever goes on may be another process than the engine's"
    assert numbers(folder) == whole and rows(1)[0].read_bytes() == kept and not list(folder.rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.xdist_group("whole run")
def test_a_scheduler_of_its_own_with_two_workers_gives_the_same_numbers(tmp_path, whole):
    "The command that a cluster uses: `dask scheduler`, two `dask worker`s, an address."
    env = os.environ | dict(OMP_NUM_THREADS="1", PYTHONPATH=str(Path(provenance.package_folder()).parent))
    dask = [sys.executable, "-m", "dask"]
    scheduler = subprocess.Popen(
        [
            *dask,
            "scheduler",
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--no-dashboard",
            "--scheduler-file",
            str(tmp_path / "s.json"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=env,
    )
    started = [scheduler]
    try:
        wait_for(lambda: (tmp_path / "s.json").exists(), 60)
        address = read_json(tmp_path / "s.json")["address"]
        assert re.match(r"tcp://127\.0\.0\.1:\d+$", address)
        for k in range(2):
            started.append(
                subprocess.Popen(
                    [
                        *dask,
                        "worker",
                        address,
                        "--nthreads",
                        "1",
                        "--no-dashboard",
                        "--host",
                        "127.0.0.1",
                        "--local-directory",
                        str(tmp_path / f"w{k}"),
                    ],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=env,
                )
            )
        said = []
        results, failed = run_all(
            [
                config(tmp_path / "runs"),
                config(tmp_path / "runs", method="fine-tuning", until=1),
                config(tmp_path / "runs", method="fine-tuning", scenario="blood", root=str(tmp_path)),
            ],
            tell=said.append,
            scheduler=address,
        )
        ends = [line for line in said if re.match(r" *\d/3 ", line)]  # the other lines tell of tasks
        assert len(results) == 2 and len(failed) == 1 and len(ends) == 3 and "DataError" in "".join(failed.values())
        assert numbers(results[0].folder) == whole
        assert all(t["peak_memory_mb"] for t in results[0].data["tasks"])
    finally:
        for p in reversed(started):
            p.terminate()
        for p in started:
            p.wait(30)


@pytest.mark.slow
def test_two_at_once_make_one_run(tmp_path, monkeypatch):
    "Two threads stand for two commands: the second waits and reads."
    cfg, learned = config(tmp_path, method="fine-tuning"), []
    from classimpression.runs import runner

    real = runner.run_task
    monkeypatch.setattr(runner, "run_task", lambda *a: (learned.append(a[4]), real(*a))[1])
    results = []
    both = [threading.Thread(target=lambda: results.append(run(cfg))) for _ in range(2)]
    for t in both:
        t.start()
    for t in both:
        t.join()
    assert learned == [0, 1, 2] and len(results) == 2 and results[0].data == results[1].data


@pytest.mark.slow
def test_who_waits_leaves_alone_what_the_other_is_writing(tmp_path):
    from classimpression.runs.runner import prepare

    cfg = config(tmp_path, method="fine-tuning")
    folder = run(cfg).folder
    (folder / "result.json").unlink()
    (half := folder / "task3" / ".carry.safetensors.0.tmp").write_text("half")
    with run_lock(folder):
        prepare(cfg)
    assert half.exists()
    run(cfg)
    assert not half.exists()  # with the lock in hand, it is what a killed run left


def test_a_lock_of_a_dead_process_is_no_lock(tmp_path):
    folder = tmp_path / "run"
    code = (
        f"import sys, time; from pathlib import Path; from classimpression.runs.run_store import run_lock\nwith "
        f"run_lock(Path({str(folder)!r})): print('held', flush=True); time.sleep(600)"
    )
    p = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | dict(PYTHONPATH=str(Path(provenance.package_folder()).parent)),
    )
    assert p.stdout.readline() == "held\n"
    said, entered = [], []

    def enter():
        with run_lock(folder, said.append):
            entered.append(time.time())

    waiting = threading.Thread(target=enter)
    waiting.start()
    waiting.join(1)
    assert not entered and len(said) == 1 and "another process" in said[0]
    p.kill()
    p.wait()
    killed = time.time()
    waiting.join(20)
    assert len(entered) == 1 and entered[0] - killed < 10
    enter()
    assert len(entered) == 2 and len(said) == 1


@pytest.mark.slow
def test_other_code_is_another_run_unless_asked_for(tmp_path, monkeypatch):
    cfg = config(tmp_path, method="fine-tuning")
    first = run(cfg)
    monkeypatch.setattr(folders, "code_of", lambda *_: "feedfacefeedface")
    assert (
        run_folder(cfg) != first.folder
        and finished_run(cfg) is None
        and finished_run(replace(cfg, any_code=True)) == first.folder
    )
    results, failed = run_all([replace(cfg, any_code=True)], jobs=-1)
    assert not failed and results[0].folder == first.folder
    assert run_all([cfg], jobs=-1)[1] == {str(run_folder(cfg)): "made by other code"}


@pytest.mark.slow
def test_a_damaged_result_stops_nobody_and_is_put_together_again(tmp_path):
    cfgs = [config(tmp_path, method="fine-tuning", seed=s, until=2) for s in (0, 1)]
    whole = [numbers(run(c).folder) for c in cfgs]
    damaged = run_folder(cfgs[0]) / "result.json"
    for content in (b"", b"{ half", b"[1, 2]", b"\x00\xff"):
        damaged.write_bytes(content)
        results, failed = run_all(cfgs, jobs=0)
        assert [r.data["seed"] for r in results] == [1] and len(failed) == 1 and "delete it" in "".join(failed.values())
    damaged.unlink()
    assert [numbers(r.folder) for r in run_all(cfgs, jobs=0)[0]] == whole


@pytest.mark.slow
def test_a_full_disk_and_a_read_only_disk_are_failures_of_one_run(tmp_path, monkeypatch):
    good, other = (config(tmp_path / name, method="fine-tuning", until=2) for name in "ab")
    done = numbers(run(good).folder)
    for number in (errno.ENOSPC, errno.EROFS):

        def refuse(*a, number=number, **k):
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as m:
            m.setattr(os, "fsync", refuse)
            results, failed = run_all([good, other], jobs=0)
        assert (
            len(results) == 1 and os.strerror(number) in "".join(failed.values()) and numbers(results[0].folder) == done
        )
    assert numbers(run_all([other], jobs=0)[0][0].folder)["metrics"] == done["metrics"]
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="cannot write the lock"):
        run(config(tmp_path / "file", method="fine-tuning"))


@pytest.mark.slow
def test_what_a_run_apart_raises_comes_back(tmp_path, monkeypatch):
    from dataclasses import asdict

    with pytest.raises(errors.DataError, match="does not exist|there is no file"):
        run_apart(asdict(config(tmp_path, method="fine-tuning", scenario="blood", root=str(tmp_path / "none"))))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(StateError, match="process of this run died"):
        run_apart(asdict(config(tmp_path, method="fine-tuning")))


def test_a_folder_of_other_settings_is_refused_under_the_lock(tmp_path):
    cfg = config(tmp_path, method="fine-tuning")
    write_json(run_folder(cfg) / "settings.json", dict(method="joint"))
    with pytest.raises(StateError, match="belongs to a run with other .*images"):
        run(cfg)


def test_tasks_of_an_own_folder_are_counted_without_opening_it(tmp_path, monkeypatch):
    from classimpression.runs import engine

    for kind in range(5):
        (tmp_path / "cells" / "train" / f"kind{kind}").mkdir(parents=True)
    monkeypatch.setattr(engine, "make_scenario", lambda *a, **k: 1 / 0)
    assert engine.task_count(RunConfig(scenario="folder-cells", root=str(tmp_path))) == 2


def test_a_search_does_not_take_the_trials_of_another(tmp_path):
    from classimpression.runs.run_store import run_folder
    from classimpression.runs.tuning import add_choice, chosen_before, one_trial, search_file, staged_configs
    from classimpression.runs.tuning import trial_configs

    plan = dict(scenario="organa", seeds=[1, 2], profile="tune")
    path = search_file(tmp_path / "tuned.json", "lwf")
    write_json(path, dict(trials=[dict(options={})], scenario="blood-mini", seed=[1, 2], profile="tune"))
    with pytest.raises(StateError, match="trials of another search, with {'scenario': 'blood-mini'}"):
        one_trial("lwf", {}, plan, path)
    mine = dict(options={}, ours=1, runs=[run_folder(c).name for c in staged_configs("lwf", {}, plan)])
    write_json(path, dict(trials=[mine], scenario="organa", seed=[1, 2], profile="tune"))
    assert one_trial("lwf", {}, plan, path)["ours"] == 1
    with pytest.raises(StateError, match="other settings or code"):
        one_trial("lwf", {}, plan, path, first_epochs=99)
    write_json(
        path, dict(trials=[mine | dict(runs=[n[:-6] + "abcdef" for n in mine["runs"]])], **plan | dict(seed=[1, 2]))
    )
    with pytest.raises(StateError, match="other settings or code"):
        one_trial("lwf", {}, plan, path)
    assert one_trial("lwf", {}, plan, path, any_code=True)["ours"] == 1
    choice = lambda n: dict(scenario="blood", options=dict(n=n), trials=[])
    for name in ("lwf", "ewc"):
        add_choice(tmp_path / "tuned.json", name, choice(name))
    assert {k: v["options"]["n"] for k, v in chosen_before(tmp_path / "tuned.json").items()} == dict(
        lwf="lwf", ewc="ewc"
    )
    for kind in range(3):
        (tmp_path / "cells" / "train" / f"kind{kind}").mkdir(parents=True)
    own = trial_configs("joint", "folder-cells", root=str(tmp_path))  # images of one's own have no committed repeat
    assert (own[0].seed, own[0].class_order, own[0].sizes) == (1001, None, [3])
