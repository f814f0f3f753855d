"Where a process runs: folders, variables, pipes, flags of Python, other start methods, running loops."

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from . import Refusal, fault

ROOT = Path(__file__).resolve().parents[2]
RUN = "run --scenario blood-mini --method fine-tuning --profile smoke --until 1 --epochs 1 --out {}/runs"
SHADOWS = ("torch", "json", "types", "methods", "tests")


def process(*argv: str, cwd: Path | str = ROOT, env: dict | None = None, before: str = "", behind: str = "") -> str:
    "Run a command of a shell: what it said. Raises `Refusal` for exit code 2 and one line of our own."
    around = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", TQDM_DISABLE="1") | (env or {})
    around = {k: v for k, v in around.items() if v is not None}
    line = f"{before} {' '.join(argv)} {behind}"
    done = subprocess.run(["bash", "-c", line], cwd=cwd, env=around, capture_output=True, text=True, errors="replace")
    said = (done.stdout + done.stderr).strip()
    if done.returncode == 2 and done.stderr.startswith("classimpression: "):
        raise Refusal(said)
    assert done.returncode == 0 and "Traceback" not in said, f"exit code {done.returncode}: {said[-300:]}"
    return said


def command(line: str, *flags: str, **more) -> str:
    return process(sys.executable, *flags, "-m", "classimpression", line, **more)


RUNS = {
    "no HOME": dict(env=dict(HOME=None)),
    "a HOME that is not there": dict(env=dict(HOME="/proc/nobody")),
    "no folder for temporary files": dict(env=dict(TMPDIR="/nonexistent")),
    "one that cannot be written": dict(env=dict(TMPDIR="/proc")),
    "a folder that cannot be written": dict(cwd="/proc"),
    "no input": dict(behind="<&-"),
    "no output": dict(behind=">&-"),
    "threads that are no number": dict(env=dict(OMP_NUM_THREADS="abc")),
    "few file handles": dict(before="ulimit -n 40;"),
}
PRINTS = {
    "an empty HOME": dict(env=dict(HOME="")),
    "a locale without letters": dict(env=dict(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")),
    "an output that takes ASCII": dict(env=dict(PYTHONIOENCODING="ascii")),
    "a time zone that is none": dict(env=dict(TZ="Nowhere/Bogus")),
    "a terminal of five columns": dict(env=dict(COLUMNS="5")),
    "a backend of matplotlib that is none": dict(env=dict(MPLBACKEND="bogus")),
}
FLAGS = {"-O": ("-O",), "-OO": ("-OO",), "-W error": ("-W", "error"), "-X dev": ("-X", "dev"), "-I": ("-I",)}


@fault("environment", "a run with {what}", "right", slow=True, what=RUNS)
def _(folder, what):
    command(RUN.format(folder), **RUNS[what])
    assert len(list((folder / "runs").rglob("result.json"))) == 1


@fault("environment", "a run by python {flags}", "right", slow=True, flags=[f for f in FLAGS if f != "-I"])
def _(folder, flags):
    command(RUN.format(folder), *FLAGS[flags])
    assert len(list((folder / "runs").rglob("result.json"))) == 1


@fault("environment", "{what} printed with {how}", "right", slow=True, what=("list methods", "run --help"), how=PRINTS)
def _(folder, what, how):
    said = "".join(command(what, **PRINTS[how]).split())  # a narrow terminal breaks words
    assert ("usage:classimpression" if "--help" in what else "class-impression") in said


@fault("environment", "a working folder that is gone", says="working folder is gone", slow=True)
def _(folder):
    before = f"mkdir {folder}/gone; cd {folder}/gone; rmdir {folder}/gone;"
    command(RUN.format(folder), before=before)


@fault(
    "environment", "output goes to `{to}`, which closes early", "right", slow=True, to=("head -1", "true", "head -c 1")
)
def _(folder, to):
    said = command("list methods", before="set -o pipefail;", behind=f"| {to} || [ $? = 141 ]")
    assert "Broken" not in said and "Exception" not in said


@fault("environment", "output goes to a disk that is full", says="No space left", slow=True)
def _(folder):
    command("list methods", behind="> /dev/full")


@fault("environment", "a file {name}.py beside the work, command of the shell", "right", slow=True, name=SHADOWS)
def _(folder, name):
    (folder / f"{name}.py").write_text("raise SystemExit('shadow')\n")
    said = process(str(Path(sys.executable).parent / "classimpression"), "list", "methods", cwd=folder)
    assert "class-impression" in said


PLACES = {
    "CLASSIMPRESSION_DATA is a file": (
        "run --scenario blood --method fine-tuning",
        dict(CLASSIMPRESSION_DATA="/etc/hostname"),
    ),
    "CLASSIMPRESSION_DATA is empty": ("run --scenario blood --method fine-tuning", dict(CLASSIMPRESSION_DATA="")),
    "CLASSIMPRESSION_CACHE is a file": (
        "run --scenario echo-phantom-mini --method fine-tuning --profile smoke --out {}",
        dict(CLASSIMPRESSION_CACHE="/etc/hostname"),
    ),
    "CLASSIMPRESSION_METHODS is not there": (
        "run --method fine-tuning",
        dict(CLASSIMPRESSION_METHODS="/nonexistent.py"),
    ),
    "CLASSIMPRESSION_METHODS is a folder": ("run --method fine-tuning", dict(CLASSIMPRESSION_METHODS="/etc")),
    "--log evil": ("run --method fine-tuning --profile smoke --log evil --out {}", {}),
}


@fault("environment", "{what}", says=".", hides="Traceback", slow=True, what=PLACES)
def _(folder, what):
    line, env = PLACES[what]
    command(line.format(folder), env=env)


SCRIPTS = {
    "a loop that runs, as in Jupyter": """
import asyncio
async def main():
    return cli.main(argv)
code = asyncio.run(main())
""",
    "a thread": """
import threading
codes = []
t = threading.Thread(target=lambda: codes.append(cli.main(argv)))
t.start()
t.join()
(code,) = codes
""",
    "a forkserver": """
import multiprocessing
multiprocessing.set_start_method('forkserver')
code = cli.main(argv)
""",
    "spawned processes": """
import multiprocessing
multiprocessing.set_start_method('spawn')
code = cli.main(argv)
""",
    "a folder that changes": """
import os
os.chdir('/')
code = cli.main(argv)
""",
}


@fault("environment", "a run within {what}", "right", slow=True, what=SCRIPTS)
def _(folder, what):
    body = SCRIPTS[what].strip().replace("\n", "\n    ")
    start = f"from classimpression import cli\nargv = {RUN.format(folder).split()}\n"
    (folder / "script.py").write_text(f"{start}if __name__ == '__main__':\n    {body}\n    raise SystemExit(code)\n")
    process(sys.executable, str(folder / "script.py"))
    assert len(list((folder / "runs").rglob("result.json"))) == 1
