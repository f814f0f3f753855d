"Small data of real shape for tests; nothing here is a result."

import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import resource
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")

import pytest  # noqa: E402
import torch  # noqa: E402

from classimpression.tasks import from_arrays  # noqa: E402


def toy_scenario(sizes=(2, 2), channels=3, per_class=30, pixels=16, name="toy", **more):
    "Classes that differ in colour and stripes, plus noise."
    k, g = sum(sizes), torch.Generator().manual_seed(0)
    y = torch.arange(k).repeat(per_class)
    stripes = torch.sin(torch.arange(pixels) * (y[:, None] + 1) * 0.4)[:, None, None, :]
    x = 0.5 + 0.25 * stripes + 0.1 * torch.randn(len(y), channels, pixels, pixels, generator=g)
    third = len(y) // 3 // k * k
    parts = [
        (x[: -2 * third], y[: -2 * third]),
        (x[-2 * third : -third], y[-2 * third : -third]),
        (x[-third:], y[-third:]),
    ]
    return from_arrays(*[(a.clamp(0, 1), b) for a, b in parts], sizes=list(sizes), layout="NCHW", name=name, **more)


def processor_seconds() -> float:
    "Of this process and of the children that it has waited for."
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    "What a test costs on a busy machine as on an idle one, into the file that CLASSIMPRESSION_TEST_SECONDS names."
    before = processor_seconds()
    done = yield
    if log := os.environ.get("CLASSIMPRESSION_TEST_SECONDS"):
        more = sum(v for k, v in item.user_properties if k == "processor_seconds")  # of processes forked elsewhere
        with open(log, "a") as f:
            f.write(f"{processor_seconds() - before + more:.2f}\t{item.nodeid}\n")
    return done


LONGEST = ("test_tutorials", "test_packaging", "test_reproduce", "test_runs", "test_engine", "test_comparison")


def pytest_collection_modifyitems(items):
    "Modules with long tests begin, so that at the end no worker waits for another."
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture
def toy():
    return toy_scenario


@pytest.fixture(autouse=True)
def one_thread():
    "Two threads on a busy machine spin; one is as fast for data this small."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def shows(cell) -> bool:
    "Has a cell something for its reader? Warnings are not."
    return any(o.get("name") != "stderr" for o in cell.get("outputs", []))


def left_out(cell) -> bool:
    "Is it a cell that tests do not run?"
    directives = getattr(cell, "directives_", {})
    return bool({"notest", "slow"} & directives.keys()) or directives.get("eval:", [""])[0].lower() == "false"


@contextlib.contextmanager
def same_outputs(notebook: Path):
    """Cells that show something where the file shows nothing, or the other way round, are an error: a cell was edited,
    and its output is gone or belongs to another.
    """
    from execnb.shell import CaptureShell

    run_all, cells = CaptureShell.run_all, []

    def kept(shell, nb, **how):
        cells.extend(c for c in nb.cells if c.cell_type == "code" and not left_out(c))
        shown = [shows(c) for c in cells]
        for c in cells:
            c.outputs = []
        run_all(shell, nb, **how)
        wrong = [c.source for c, before in zip(cells, shown, strict=True) if shows(c) != before]
        again = f"jupyter execute --inplace {notebook.name}, then nbdev_clean"
        assert not wrong, f"the file has lost outputs, or has some of other cells: {again}\n\n" + "\n\n".join(wrong)

    CaptureShell.run_all = kept
    try:
        yield
    finally:
        CaptureShell.run_all = run_all


def run_notebook(notebook: Path, log: Path, variables: dict) -> None:
    "Run all cells of a notebook in this process, and end it."
    with log.open("w") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    os.environ.update(variables)
    os.chdir(notebook.parent)
    multiprocessing.set_start_method(None, force=True)  # as in a kernel: else a loader's workers import all anew
    from nbdev.test import test_nb

    with same_outputs(notebook):
        passed = test_nb(notebook, skip_flags=["notest", "slow"])[0]
    log.with_suffix(".seconds").write_text(str(processor_seconds()))
    sys.exit(not passed)


@pytest.fixture(scope="session")
def forks():
    """Processes of their own for notebooks, forked from one that has imported the large packages: that takes as long
    as running a small notebook.
    """
    root = str(Path(__file__).parent.parent)
    large = ["torchvision", "pandas", "seaborn", "sklearn", "nbdev.test"]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(large)
    with pytest.MonkeyPatch.context() as set_for_all:
        for name, value in {"OMP_NUM_THREADS": "1", "PYTHONPATH": root}.items():
            set_for_all.setenv(name, value)
        multiprocessing.forkserver.ensure_running()
    return context


@pytest.fixture
def executed(forks, tmp_path, record_property):
    "Runs a notebook from top to bottom."

    def go(notebook: Path, **variables: str) -> None:
        process = forks.Process(target=run_notebook, args=(notebook, tmp_path / "log", variables))
        process.start()
        process.join(600)
        if process.exitcode is None:
            process.kill()
        assert process.exitcode == 0, (tmp_path / "log").read_text()[-6000:]
        record_property("processor_seconds", float((tmp_path / "log.seconds").read_text()))

    return go


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    "The site that CLASSIMPRESSION_SITE names, or a fresh build."
    if ready := os.environ.get("CLASSIMPRESSION_SITE"):
        return Path(ready)
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-f", ".mkdocs.yml", "--site-dir", str(out)],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # the theme announces its successor there
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stdout[-2000:] + done.stderr[-4000:]
    return out
