"Whole runs: killed and resumed, refused, stored; and what a run must never do."

import errno
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from classimpression.core.errors import ClassImpressionError, ConfigError, DataError, StateError
from classimpression.carryover import load_tensors, save_tensors
from classimpression.core.files import read_json, write_bytes, write_json
from classimpression.data import file_md5
from classimpression.core.provenance import module_files, package_folder
from classimpression.methods.registry import METHODS, method
from classimpression.models import NETWORKS, SmallNet, register_network
from classimpression.runs.runner import RunConfig, RunResult, prepare, profile, profile_config, run, run_folder
from classimpression.runs.tables import merge_results
from classimpression.tasks import from_arrays
from classimpression.training import fit_task

TINY = dict(
    scenario="toy",
    epochs=1,
    batch_size=20,
    groups=1,
    group_size=10,
    synthesis_steps=4,
    synthesis_warmup=1,
    threads=1,
    k_min=5,
)


def tiny(out, **more):
    return RunConfig.of(**{**TINY, "out": str(out), **more})


def stored(folder: Path) -> dict:
    "Bytes of the tensors, and the numbers without times and versions."
    tensors = {str(p.relative_to(folder)): file_md5(p) for p in sorted(folder.rglob("*.safetensors"))}
    rows = [
        {
            k: v
            for k, v in read_json(p).items()
            if k not in ("seconds", "cpu_seconds", "peak_memory_mb", "cached_seconds", "digest")
        }
        for p in sorted(folder.rglob("row.json"))
    ]
    return dict(tensors=tensors, rows=rows, metrics=read_json(folder / "result.json")["metrics"])


# A process that imports everything once and runs each attempt in a child: 20 kills cost seconds and not minutes.
KILLER = """
import os, random, signal, sys, time
sys.path.insert(0, sys.argv[1])
import torch, torch._dynamo; torch.set_num_threads(1)
from conftest import toy_scenario
from test_runs import tiny
from classimpression.core.provenance import modules_digest
from classimpression.runs.runner import run
modules_digest()
data, out, seed = toy_scenario((2, 1, 1), per_class=60), sys.argv[2], int(sys.argv[3])
rng, kills, moments, duration, k = random.Random(seed), 0, [], None, 0

def attempt(cfg, after=None):
    "Run in a child; kill it after some seconds. Returns whether it was killed."
    pid = os.fork()
    if pid == 0:
        try: run(cfg, data)
        except BaseException as e: print(repr(e), file=sys.stderr); os._exit(1)
        os._exit(0)
    if after is None:
        assert os.waitpid(pid, 0)[1] == 0; return False
    end = time.time() + after
    while time.time() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done: assert status == 0, status; return False
        time.sleep(.002)
    os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0); return True

start = time.time(); attempt(tiny(f"{out}/whole")); duration = time.time() - start
while kills < 20:
    cfg = tiny(f"{out}/broken{k}"); k += 1
    while kills < 20 and attempt(cfg, rng.uniform(0, duration)):
        kills += 1
        left = __import__("pathlib").Path(cfg.out).rglob("*")
        moments.append(sorted(str(p.relative_to(out)) for p in left if p.is_file()))
    attempt(cfg)
print(k, kills, len(set(map(tuple, moments))))
"""


@pytest.mark.slow
def test_killed_at_twenty_random_moments_and_resumed_equals_uninterrupted(tmp_path):
    seed = 20  # of the moments; what they hit still depends on the machine
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(Path(__file__).parent), str(tmp_path), str(seed)],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    n, kills, states = map(int, done.stdout.split())
    assert kills == 20 and states >= 3, f"seed {seed}: the kills found only {states} different states on the disk"
    folder = lambda name: next((tmp_path / name / "toy").iterdir())
    whole = stored(folder("whole"))
    assert len(whole["tensors"]) == 5 and len(whole["rows"]) == 3
    for k in range(n):
        assert stored(folder(f"broken{k}")) == whole, f"seed {seed}, run {k}"
        assert not list(folder(f"broken{k}").rglob("*.tmp"))


@pytest.mark.slow
def test_terminated_command_resumes(tmp_path):
    "SIGTERM to the command line in the middle of a run, then the same command again."
    command = [
        sys.executable,
        "-c",
        "import sys; from classimpression.cli import main; sys.exit(main())",
        "run",
        "--profile",
        "smoke",
        "--method",
        "class-impression",
        "--until",
        "3",
        "--out",
        str(tmp_path),
    ]
    p = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for _ in range(1200):
        if list(tmp_path.rglob("task2/row.json")):
            break
        time.sleep(0.05)
    p.send_signal(signal.SIGTERM)
    assert p.wait(60) != 0 and not list(tmp_path.rglob("result.json"))
    first = next(tmp_path.rglob("task2/row.json"))
    kept = first.read_bytes()
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert (
        first.read_bytes() == kept
        and RunResult.load(first.parent.parent).metrics == stored(first.parent.parent)["metrics"]
    )


def test_a_first_task_from_the_cache_gives_the_same_bytes_and_counts_fully(toy, tmp_path):
    one = run(tiny(tmp_path), toy(sizes=(2, 1)))
    before, cost = stored(one.folder), one.data["tasks"][0]["cpu_seconds"]
    assert one.data["tasks"][0]["cached_seconds"] == {}
    again = run(tiny(tmp_path), toy(sizes=(2, 1)), fresh=True)
    first = again.data["tasks"][0]
    assert (
        stored(again.folder) == before
        and first["cached_seconds"]["cpu_seconds"] > 0
        and first["cpu_seconds"] >= first["cached_seconds"]["cpu_seconds"]
        and cost > 0
    )


MOVED = """if True:
    import sys, torch
    from conftest import toy_scenario
    from pathlib import Path
    import classimpression.synthesis
    FOLDER = str(Path(classimpression.synthesis.__file__).parent)
    sys.path.insert(0, FOLDER)
    from tests_of_moves import go
    go(toy_scenario(sizes=(2, 2), per_class=24), sys.argv[1])"""

GO = """
from classimpression.{runner} import RunConfig, run

def go(scenario, out):
    few = dict(epochs=1, batch_size=20, groups=1, group_size=10, synthesis_steps=4, synthesis_warmup=1, k_min=5)
    cfg = RunConfig.of(scenario="toy", threads=1, out=out, **few)
    r = run(cfg, scenario.again())
    print(r.folder.name, r.data["finished"])
"""


@pytest.mark.slow
def test_a_module_that_moves_keeps_a_finished_run_and_its_cache(tmp_path):
    package = tmp_path / "copy" / "classimpression"
    shutil.copytree(package_folder(), package, ignore=shutil.ignore_patterns("__pycache__"))
    runner = module_files()["runner"].relative_to(package_folder()).with_suffix("").as_posix().replace("/", ".")
    (package / "tests_of_moves.py").write_text(GO.format(runner=runner))
    env = os.environ | dict(
        PYTHONPATH=f"{package.parent}{os.pathsep}{Path(__file__).parent}", OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES=""
    )

    def names_and_cache():
        done = subprocess.run(
            [sys.executable, "-c", MOVED, str(tmp_path / "runs")], capture_output=True, text=True, env=env, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        return done.stdout, sorted(p.name for p in (tmp_path / "runs" / "cache").glob("*.safetensors"))

    before = names_and_cache()
    old, new = package / "losses.py", package / "elsewhere" / "deep_losses" / "losses.py"
    new.parent.mkdir(parents=True)
    for path in package.rglob("*.py"):  # what a move rewrites: the imports
        path.write_text(
            re.sub(
                r"from \.+losses import", "from classimpression.elsewhere.deep_losses.losses import", path.read_text()
            )
        )
    new.write_text(re.sub(r"from \.+(\w)", r"from classimpression.\1", old.read_text()))
    old.unlink()
    assert names_and_cache() == before, "a move made a finished run or its cache count as unmade"
    text = new.read_text()
    assert "return (1 - rho) * history.detach() + rho * batch" in text
    new.write_text(
        text.replace(
            "return (1 - rho) * history.detach() + rho * batch", "return rho * batch + (1 - rho) * history.detach()"
        )
    )
    after = names_and_cache()
    assert after[0] != before[0] and len(after[1]) > len(before[1]), (
        "a changed statement must make another run and another first task"
    )


def test_another_seed_gives_other_numbers(toy, tmp_path):
    a, b = (run(tiny(tmp_path, seed=s), toy()) for s in (0, 1))
    assert a.folder != b.folder and stored(a.folder)["tensors"] != stored(b.folder)["tensors"]
    again = run(tiny(tmp_path / "again"), toy())
    assert stored(again.folder) == stored(a.folder)


@pytest.mark.parametrize("name", ["class-impression", "fine-tuning", "joint"])
@pytest.mark.parametrize("sizes,channels", [((1, 1, 2), 1), ((3, 1), 3)])
def test_every_method_on_unequal_and_one_class_tasks(toy, tmp_path, name, sizes, channels):
    data = toy(sizes, channels)
    r = run(tiny(tmp_path, method=name), data)
    d = r.data
    assert [t["task"] for t in d["tasks"]] == list(range(1, len(sizes) + 1)) and [
        len(t["row"]) for t in d["tasks"]
    ] == list(range(1, len(sizes) + 1))
    assert (d["tier"], d["data_free"]) == {
        "class-impression": ("M1", True),
        "fine-tuning": ("M0", True),
        "joint": ("reference", False),
    }[name]
    assert d["tasks"][-1]["carried_images"] == (
        len(data.joint(len(sizes) - 2, reference=True)) if name == "joint" else 0
    )
    assert (
        d["scenario"]["checksum"] == data.checksum
        and d["settings"]["epochs"] == 1
        and torch.__version__.startswith(d["environment"]["torch"])
    )
    assert d["environment"]["code"]["modules"] and all(t["seconds"]["training"] > 0 for t in d["tasks"])
    assert sum(map(sum, d["tasks"][-1]["confusion"])) == len(data.test(len(sizes) - 1))


def test_loose_protocols_are_named_and_counted(toy, tmp_path):
    tiny = lambda out, **more: RunConfig.of(**TINY | dict(out=str(out), k_min=10) | more)
    strict = run(tiny(tmp_path), toy()).data
    pool = run(tiny(tmp_path, pool="test", bn_update=True), toy()).data
    old = run(tiny(tmp_path, selection="all-val"), toy()).data
    assert (
        strict["protocol"] == "strict"
        and pool["protocol"] == "pool=test, bn_update=True"
        and old["protocol"] == "selection=all-val"
    )
    assert (strict["data_free"], old["data_free"], old["tier"]) == (True, False, "reference") and old["tasks"][1][
        "carried_images"
    ] > 0


def test_methods_with_hidden_state_resume_too(toy, tmp_path):
    "A method that draws from the global generators of Python and torch gets the same numbers when it is resumed."
    import random

    @method("gambler", "Gambler", "M0")
    def gambler(carry, task, impressions, cfg):
        model, history = fit_task(carry, task, None, replace(cfg, distillation=0.0, margin_weight=0.0, idc_weight=0.0))
        model.head.sigma.data += random.random() + torch.rand(())
        return model, history

    try:
        whole = run(tiny(tmp_path / "a", method="gambler"), toy((2, 1, 1)))
        cut = run(tiny(tmp_path / "b", method="gambler"), toy((2, 1, 1)))
        for p in (cut.folder / "result.json", cut.folder / "task3" / "row.json"):
            p.unlink()
        random.random()
        assert stored(run(tiny(tmp_path / "b", method="gambler"), toy((2, 1, 1))).folder) == stored(whole.folder)
    finally:
        del METHODS["gambler"]


@pytest.mark.parametrize(
    "method, called",
    [
        ("class-impression", "wide"),
        ("ccsi", "wide-continual"),
        ("trained-ridge", "levels-wide"),
        ("census", "census-rings-wide"),
    ],
)
def test_a_network_of_your_own(method, called, toy, tmp_path):
    "Networks that methods make of it are read back by their names."

    class Wide(SmallNet):
        pass

    register_network("wide", Wide)
    try:
        r = run(tiny(tmp_path, method=method, network="wide"), toy())
        assert r.data["settings"]["network"] == "wide" and r.carry(1).model.network == called
    finally:
        del NETWORKS["wide"]


def test_finished_impressions_are_not_made_again(toy, tmp_path, monkeypatch):
    r = run(tiny(tmp_path), toy())
    whole = stored(r.folder)
    for p in (r.folder / "result.json", r.folder / "task2" / "row.json"):
        p.unlink()
    monkeypatch.setattr("classimpression.runs.runner.make_groups", lambda *a, **k: pytest.fail("synthesised again"))
    assert stored(run(tiny(tmp_path), toy()).folder) == whole


def test_an_interrupted_synthesis_goes_on_after_its_last_finished_group(toy, tmp_path, monkeypatch):
    import classimpression.synthesis as synthesis

    cfg, descend, calls = lambda out: tiny(out, groups=3), synthesis.descend, []
    whole = run(cfg(tmp_path / "whole"), toy(sizes=(2, 1)))

    def stopped(*a, **k):
        calls.append(a)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return descend(*a, **k)

    monkeypatch.setattr(synthesis, "descend", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(cfg(tmp_path / "broken"), toy(sizes=(2, 1)))
    assert len(list(tmp_path.glob("broken/**/group*.safetensors"))) == 2
    after = run(cfg(tmp_path / "broken"), toy(sizes=(2, 1)))
    shared = load_tensors(next(tmp_path.glob("broken/cache/impressions-*.safetensors")))[1]
    assert (
        shared["earlier"]["cpu_seconds"] > 0
    )  # whoever takes them from the cache pays for the groups made before the interruption
    assert (
        len(calls) == 4 and stored(after.folder) == stored(whole.folder) and not list(after.folder.rglob("group*"))
    )  # the third group only


# Refused before any work, with nothing lost


@pytest.mark.parametrize(
    "bad",
    [
        dict(epochs="2"),
        dict(epochs=1.5),
        dict(lr=None),
        dict(tv_weight=-1.0),
        dict(bn_weight=float("nan")),
        dict(l2_weight=float("inf")),
        dict(method="magic"),
        dict(scenario=3),
        dict(sizes="2,2"),
        dict(network="vit"),
        dict(pool="secret"),
        dict(seed=True),
        dict(groups=0),
        dict(k_min=0),
        dict(threads=0),
        dict(synthesis_steps=-1),
        dict(first_epochs=0),
        dict(typo=1),
        dict(options=dict(bn_update=True)),
        dict(options=dict(selection="test")),
        dict(options=dict(class_weighting="False")),
    ],
)
def test_bad_settings(bad, tmp_path):
    with pytest.raises(ConfigError) as e:
        RunConfig.of(**{"out": str(tmp_path), **bad})
    name = next(iter(bad))
    assert (
        name in str(e.value)
        or name.startswith("synthesis_")
        and f"synthesis settings (synthesis_... or ..._weight): {name.removeprefix('synthesis_')}" in str(e.value)
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "bad,error",
    [
        (dict(scenario="moon"), ConfigError),
        (dict(scenario="blood", root="/nonexistent"), DataError),
        (dict(class_order=[0, 0, 1, 2, 3, 4, 5, 6]), ConfigError),
        (dict(sizes=[2, 2]), ConfigError),
        (dict(sizes=[8, 0]), ConfigError),
        (dict(k_min=201), DataError),
        (dict(margin_k=3), ConfigError),
        (dict(device="cuda:7"), ConfigError),
    ],
)
def test_bad_plans(bad, error, tmp_path):
    with pytest.raises(error):
        run(RunConfig.of(**{**TINY, "scenario": "blood-mini", "out": str(tmp_path), **bad}))
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("name", METHODS)
def test_statistics_of_few_images_are_refused(name, toy, tmp_path, monkeypatch):
    """Whatever a method carries about a class rests on k_min images, unless less is asked for; the model alone, or
    real images, need no such number.
    """
    monkeypatch.setattr("classimpression.runs.runner.run_task", lambda *a: pytest.fail("work began"))
    cfg = dict(method=name, k_min=10, margin_weight=0.0)
    few = lambda: toy((2, 1, 1), per_class=27)  # 9 of them for training
    if METHODS[name].tier == "M0" or not METHODS[name].data_free:
        prepare(tiny(tmp_path, **cfg), few())
    else:
        with pytest.raises(DataError, match=r"too few training images .*: 9.*lower k_min"):
            run(tiny(tmp_path, **cfg), few())
        prepare(tiny(tmp_path, **cfg | dict(k_min=9)), few())
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    "name",
    ["class-impression", pytest.param("census", marks=pytest.mark.slow), "slda", "ncm", "fecam", "fetril", "adagauss"],
)
def test_one_image_of_a_class_set_explicitly(name, toy, tmp_path):
    "k = 1: a class of a single image is learned if this is asked for, and refused otherwise."

    def rare():
        s = toy((2, 1), per_class=30, pixels=32)
        train = s.joint(1, reference=True)
        last = (train.y == 2).nonzero()[:, 0]
        how = dict(sizes=[2, 1], layout="NCHW", name="toy", overlap="mark")  # the images do not matter
        few, held = train.take(torch.cat([(train.y < 2).nonzero()[:, 0], last[:1]])), s.test(1)
        return from_arrays((few.x, few.y), (held.x, held.y), (held.x, held.y), **how)

    small = dict(census=dict(n_patches=2000, rounds=2), adagauss=dict(adapter_epochs=2, samples=100)).get(name)
    cfg = dict(method=name, options=small, margin_weight=0.0, bn_update=False)
    with pytest.raises(DataError, match="{'2': 1}|too few training images"):
        run(tiny(tmp_path, **cfg | dict(k_min=10)), rare())
    r = run(tiny(tmp_path, **cfg | dict(k_min=1)), rare())
    assert len(r.data["tasks"]) == 2 and all(
        torch.isfinite(v).all() for v in r.carry(1).model.state_dict().values() if v.is_floating_point()
    )


def test_data_of_another_name_are_refused(toy, tmp_path):
    with pytest.raises(ConfigError, match="same name"):
        run(tiny(tmp_path, scenario="other"), toy())


def test_an_unwritable_folder_is_refused_before_work(toy, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setattr("classimpression.runs.runner.run_task", lambda *a: pytest.fail("work began"))
    with pytest.raises(StateError, match="cannot write"):
        run(tiny(tmp_path / "file"), toy())


def test_a_full_disk_costs_the_new_file_only(toy, tmp_path, monkeypatch):
    r = run(tiny(tmp_path), toy((2, 1, 1)))
    whole = stored(r.folder)
    for name in ("result.json", "task3/row.json", "task3/carry.safetensors"):
        (r.folder / name).unlink()
    before = {p: p.read_bytes() for p in r.folder.rglob("*") if p.is_file()}

    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateError, match="No space left"):
        run(tiny(tmp_path), toy((2, 1, 1)))
    assert {p: p.read_bytes() for p in r.folder.rglob("*") if p.is_file()} == before
    with pytest.raises(StateError, match="earlier file was left"):
        write_bytes(r.folder / "task1" / "row.json", b"new")
    monkeypatch.undo()
    assert stored(run(tiny(tmp_path), toy((2, 1, 1))).folder) == whole


@pytest.mark.slow
def test_what_does_not_fit_is_made_again_or_refused(toy, tmp_path):
    "Tensors and rows that are damaged, changed or another run's are made again, with the same numbers."
    r = run(tiny(tmp_path), toy())
    whole = stored(r.folder)
    other = run(tiny(tmp_path, seed=5), toy())
    carry, row = r.folder / "task2" / "carry.safetensors", r.folder / "task2" / "row.json"
    impressions = r.folder / "task2" / "impressions.safetensors"
    mapped, facts = load_tensors(carry)
    tensors = {k: v.clone() for k, v in mapped.items()}  # the file below them will be spoiled
    faults = {
        "or damaged": lambda: carry.write_bytes(carry.read_bytes()[:1000]),
        "does not fit its digest": lambda: carry.write_bytes(carry.read_bytes()[:-1000] + bytes(1000)),
        "holds no carryover": lambda: save_tensors(carry, {"x": torch.zeros(1)}, {"y": 1}),
        "another run or task": lambda: shutil.copy(other.folder / "task2" / "carry.safetensors", carry),
        "not the file that its row names": lambda: save_tensors(
            carry, tensors | dict(means=tensors["means"] / 2), facts
        ),
        "cannot read tensors": carry.unlink,
        "not valid JSON": lambda: row.write_text("{ half"),
        "task 2: run": lambda: shutil.copy(other.folder / "task2" / "row.json", row),
        "impressions are made again": lambda: (
            row.unlink(),
            shutil.copy(other.folder / "task2" / "impressions.safetensors", impressions),
        ),
    }
    for says, spoil in faults.items():
        (r.folder / "result.json").unlink()
        spoil()
        with pytest.warns(UserWarning, match=says):
            assert stored(run(tiny(tmp_path), toy()).folder) == whole, says


def test_results_of_others_and_changed_results_are_refused(toy, tmp_path):
    r, other = run(tiny(tmp_path), toy()), run(tiny(tmp_path, seed=5), toy())
    path, data = r.folder / "result.json", r.data
    unsealed = {k: v for k, v in data.items() if k != "digest"}
    faults = [
        (other.data, "is the result of"),
        (data | dict(tier="M0"), "does not fit its digest"),
        (unsealed | dict(tier="M0"), "tier"),
        (unsealed | dict(protocol="strict", settings=data["settings"] | dict(pool="test")), "protocol"),
        (unsealed | dict(tasks=data["tasks"][:1]), "1 of 2 tasks"),
        (unsealed | dict(seed=5), "seed"),
        (unsealed | dict(metrics=data["metrics"] | dict(balanced_accuracy=99.0)), "balanced_accuracy"),
        (unsealed | dict(metrics={}), "final_accuracy"),
        (unsealed | dict(data_free=False), "data_free"),
        ([1, 2], "not a result"),
        (dict(schema=1), "missing required field"),
    ]
    for changed, says in faults:
        write_json(path, changed)
        with pytest.raises(StateError, match=says):
            RunResult.load(r.folder)
    write_json(path, data)
    assert RunResult.load(r.folder).data == data
    shutil.copy(other.folder / "task1" / "carry.safetensors", r.folder / "task1" / "carry.safetensors")
    with pytest.raises(StateError, match="not the file that this run wrote"):
        RunResult.load(r.folder).carry(0)
    settings = r.folder / "settings.json"
    path.unlink()
    write_json(settings, dict(read_json(settings), checksum="other data"))
    with pytest.raises(StateError, match="belongs to a run with other images; choose another out"):
        run(tiny(tmp_path), toy())


# What a run must never do


def test_no_pickle_and_no_socket(toy, tmp_path, monkeypatch):
    def never(*a, **k):
        pytest.fail("a pickle was read or written")

    for module, name in (
        (pickle, "load"),
        (pickle, "loads"),
        (pickle, "dump"),
        (pickle, "Unpickler"),
        (torch, "load"),
        (torch, "save"),
    ):
        monkeypatch.setattr(module, name, never)

    def offline(*a, **k):
        pytest.fail("a socket was opened")

    monkeypatch.setattr(socket, "socket", offline)
    monkeypatch.setattr(socket, "create_connection", offline)
    r = run(tiny(tmp_path), toy())
    assert RunResult.load(r.folder).impressions(1).x.shape[0] == 10 and r.carry(1).n_classes == 4
    assert {p.suffix for p in tmp_path.rglob("*") if p.is_file() and p.stat().st_size} == {".json", ".safetensors"}
    assert {p.name[-5:] for p in tmp_path.rglob("*") if p.is_file() and not p.stat().st_size} == {".lock"}, (
        "only locks are empty"
    )


def test_results_name_no_place_of_this_machine(toy, tmp_path):
    r = run(tiny(tmp_path), toy())
    text = (r.folder / "result.json").read_text()
    assert str(tmp_path) not in text and str(Path.home()) not in text and socket.gethostname() not in text


def test_test_images_are_read_after_training_only(toy, tmp_path):
    "Other test images change the numbers of the evaluation, and nothing that was trained."

    def data(noise):
        scenario = toy()
        test = scenario._store.splits["test"]
        if noise:
            test.x.copy_(torch.randint(0, 255, test.x.shape, generator=torch.Generator().manual_seed(1)).byte())
        return scenario

    a, b = (run(tiny(tmp_path / str(n)), data(n)) for n in (False, True))
    assert stored(a.folder)["tensors"] == stored(b.folder)["tensors"]
    history = lambda r: [t["history"] for t in r.data["tasks"]]
    assert history(a) == history(b)


def test_profiles_are_known_and_valid():
    for name in ("first", "smoke", "quick", "standard", "paper"):
        assert "all" in profile(name)
        for m in METHODS:
            assert profile_config(name, m).profile == name
    standard = profile_config("standard", "class-impression", scenario="blood")
    assert (
        standard.epochs >= 10
        and standard.synthesis_steps >= 300
        and standard.groups is None
        and standard.schedule == "cosine"
    )  # the floors of the protocol
    assert profile_config("standard", "joint").epochs >= 20


def test_threads_are_restored_and_global_state_is_untouched(toy, tmp_path):
    torch.set_num_threads(2)
    state = torch.get_rng_state()
    run(tiny(tmp_path), toy())
    assert (
        torch.get_num_threads() == 2
        and torch.equal(state, torch.get_rng_state())
        and run_folder(tiny(tmp_path)).exists()
    )


def test_errors_are_one_family():
    assert all(issubclass(e, ClassImpressionError) for e in (ConfigError, DataError, StateError))


def test_auto_is_a_device_and_not_the_name_of_one():
    assert RunConfig(device="auto").device in ("cpu", "cuda", "mps")


def test_the_margin_of_options_is_checked_before_work(toy, tmp_path):
    cfg = RunConfig(scenario="toy", out=str(tmp_path), options=dict(margin_k=3))
    with pytest.raises(ConfigError, match="margin_k is 3, but task 2 brings only 2 new classes"):
        run(cfg, toy())
    assert not list(tmp_path.glob("toy/*/task1"))


def test_a_first_task_of_one_class_is_said_to_teach_nothing(toy, tmp_path):
    small = dict(profile="smoke", method="slda", scenario="toy", out=str(tmp_path))
    cfg = RunConfig.of(**small | dict(epochs=1, threads=1))
    with pytest.warns(UserWarning, match="the first task has one class"):
        run(cfg, toy(sizes=(1, 2)))


def test_runs_with_other_sizes_stay_beside_each_other(toy, tmp_path):
    results = []
    for sizes in ([2, 2], [1, 3], None):
        data = toy(sizes=tuple(sizes or (3, 1)))
        small = dict(profile="smoke", method="slda", scenario="toy", out=str(tmp_path / str(sizes)), sizes=sizes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results.append(run(RunConfig.of(**small | dict(epochs=1, threads=1)), data))
    labels = [r.data["profile"] for r in results]
    assert "sizes=[1, 3]" in labels[1] and "sizes" not in labels[0] and "sizes" not in labels[2]
    assert len(merge_results(tmp_path / "all.json", results)) == 3
    assert len(merge_results(tmp_path / "all.json", results[:1])) == 3  # again, in its place


def test_a_synthesis_that_ends_within_its_warm_up_says_so(toy, tmp_path):
    cfg = tiny(tmp_path, synthesis_steps=3, synthesis_warmup=9)
    with pytest.warns(UserWarning, match="3 steps of the synthesis end within its warm-up of 9"):
        prepare(cfg, toy())


def test_who_waited_gets_no_run_on_other_images(toy, tmp_path):
    cfg = tiny(tmp_path)
    a, b = toy(), toy(per_class=36)
    done = run(cfg, a)
    with pytest.raises(StateError, match="other images"):
        run(cfg, b)
    (done.folder / "settings.json").unlink()
    with pytest.raises(StateError, match="run on other images"):
        run(cfg, b)


def test_what_is_shown_cannot_stop_what_is_made(tmp_path):
    from classimpression.report.page import Page
    from classimpression.runs.engine import run_all

    cfg = profile_config("smoke", "ncm", out=str(tmp_path), until=2)
    row = run_folder(cfg) / "task1" / "row.json"
    row.parent.mkdir(parents=True)
    row.write_text('{"task": 1, "accur')
    page = Page(tmp_path / "report.html", [cfg])

    def show(state):
        page.update(state)
        raise StateError("cannot write report.html")

    with pytest.warns(UserWarning, match="the page stays as it was: cannot write report.html"):
        (result,), failed = run_all([cfg], 1, lambda s: None, show=show)
    assert not failed and len(result.data["tasks"]) == 2 and page.path.exists()


def test_repeats_on_other_images_or_settings_share_no_file(toy, tmp_path):
    one, two = run(tiny(tmp_path), toy()), run(tiny(tmp_path, seed=1), toy(per_class=36))
    other = run(tiny(tmp_path, seed=2, weight_decay=0.1), toy())
    assert other.data["profile"] != one.data["profile"], "settings of one's own are named"
    merge_results(tmp_path / "all.json", [one])
    with pytest.raises(StateError, match="differ: images"):
        merge_results(tmp_path / "all.json", [two])
    assert len(merge_results(tmp_path / "all.json", [other])) == 2


def test_a_registered_scenario_can_be_tuned_on(monkeypatch):
    from classimpression import scenarios
    from classimpression.runs.tuning import trial_configs

    monkeypatch.setattr(scenarios, "MADE", dict(scenarios.MADE))
    mini = lambda name, order, sizes, root, size, verify: scenarios.make_scenario(
        "blood-mini", order, sizes, root, size
    )
    scenarios.register_scenario("of-my-own", mini)
    assert {c.scenario for c in trial_configs("lwf", "of-my-own")} == {"of-my-own"}
    assert trial_configs("joint", "of-my-own")[0].sizes == [8]
