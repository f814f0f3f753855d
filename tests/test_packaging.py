"The project as a whole: notebooks and modules in step, quiet imports, one direction of imports, notebooks that run."

import ast
import json
import multiprocessing
import multiprocessing.forkserver
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
EXPERIMENTS = sorted((ROOT / "nbs" / "experiments").glob("*.ipynb"))
TUTORIALS = sorted((ROOT / "nbs" / "tutorials").glob("*.ipynb"))
HEAVY = (
    "torchvision",
    "pydicom",
    "av",
    "nibabel",
    "pyarrow",
    "onnx",
    "avalanche",
    "pandas",
    "matplotlib",
    "scipy",
    "sklearn",
    "seaborn",
    "papermill",
    "fastcore",
    "nbdev",
)
needs_notebooks = pytest.mark.skipif(not NOTEBOOKS, reason="the notebooks are not beside the tests")


def python(code: str, *args: str, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, **{"cwd": ROOT, "timeout": 600, **kwargs}
    )


def source(cell: dict) -> str:
    return "".join(cell["source"])


def module_of(notebook: Path) -> str | None:
    found = re.search(
        r"^#\| default_exp (\w+)", "\n".join(source(c) for c in json.loads(notebook.read_text())["cells"]), re.M
    )
    return found and found.group(1)


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    "A copy of the repository after cleaning and exporting its notebooks."
    copy = tmp_path_factory.mktemp("copy") / "repository"
    shutil.copytree(
        ROOT,
        copy,
        ignore=lambda folder, names: [
            n
            for n in names
            if n in {"runs", "figures", "tests", "build", "_site", "__pycache__"} or n.startswith((".git", ".venv"))
        ],
    )
    for module in (copy / "classimpression").glob("*.py"):
        module.unlink()
    (copy / "classimpression" / "__init__.py").write_text((ROOT / "classimpression" / "__init__.py").read_text())
    done = python(
        "from nbdev.clean import nbdev_clean; from nbdev.doclinks import nbdev_export; nbdev_clean(); nbdev_export()",
        cwd=copy,
    )
    assert done.returncode == 0, done.stderr
    return copy


@needs_notebooks
def test_modules_come_from_the_notebooks(copy):
    modules = {p.name for p in (ROOT / "classimpression").glob("*.py")}
    assert modules == {p.name for p in (copy / "classimpression").glob("*.py")}, (
        "a module without notebook, or a notebook without module"
    )
    for name in modules:
        assert (copy / "classimpression" / name).read_text() == (ROOT / "classimpression" / name).read_text(), (
            f"run nbdev_export: {name} differs"
        )


@needs_notebooks
def test_notebooks_are_clean(copy):
    for notebook in [*NOTEBOOKS, *EXPERIMENTS, *TUTORIALS]:
        assert (copy / notebook.relative_to(ROOT)).read_text() == notebook.read_text(), (
            f"run nbdev_clean: {notebook.name} differs"
        )


def test_import_is_quiet():
    code = """if True:
        import importlib, sys, warnings, numpy, random, torch, os
        state = lambda: (torch.get_num_threads(), torch.get_num_interop_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), torch.initial_seed(),
                         torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist(), numpy.geterr(), torch.are_deterministic_algorithms_enabled(),
                         warnings.filters[:], dict(os.environ), sys.path[:])
        known = set(sys.modules)
        for name in sys.argv[1:]:
            before = state()
            importlib.import_module("classimpression." + name)
            assert state() == before, f"importing {name} changed a global setting"
        print(*{m.split(".")[0] for m in set(sys.modules) - known})"""
    names = sorted(p.stem for p in (ROOT / "classimpression").glob("*.py") if not p.stem.startswith("_"))
    assert len(names) > 40
    done = python(code, *names)
    assert done.returncode == 0, done.stderr
    assert not set(done.stdout.split()) & set(HEAVY), done.stdout
    assert not done.stderr


@needs_notebooks
def test_imports_go_one_way():
    order = [m for m in map(module_of, sorted(NOTEBOOKS, key=lambda p: p.name.split("_")[0])) if m]
    for here, name in enumerate(order):
        tree = ast.parse((ROOT / "classimpression" / f"{name}.py").read_text())
        used = {
            n.module.split(".")[-1]
            for n in ast.walk(tree)
            if isinstance(n, ast.ImportFrom)
            and (n.level or (n.module or "").startswith("classimpression."))
            and n.module
        }
        assert used <= set(order[:here]), f"{name} imports {sorted(used - set(order[:here]))}, which come later"


@needs_notebooks
def test_only_figures_import_plots():
    users = [
        p.stem
        for p in (ROOT / "classimpression").glob("*.py")
        if re.search(r"import.*\bplots\b|classimpression\.plots|from \.plots", p.read_text())
        and p.stem not in ("_modidx", "plots")
    ]
    assert set(users) <= {
        "ablations",
        "budgets",
        "calibration",
        "curves",
        "descents",
        "explorers",
        "framewise",
        "gallery",
        "growth",
        "holding",
        "likeness",
        "motion",
        "panels",
        "protection",
    }


def run_notebook(notebook: Path, log: Path) -> None:
    "Run all cells of a notebook in this process, and end it."
    with log.open("w") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    os.chdir(notebook.parent)
    from nbdev.test import test_nb

    sys.exit(not test_nb(notebook, skip_flags=["notest", "slow"])[0])


@pytest.fixture(scope="module")
def forks():
    """Processes of their own for notebooks, forked from one that has imported the large packages: that takes as long
    as running a small notebook.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchvision", "pandas", "seaborn", "nbdev.test"])
    with pytest.MonkeyPatch.context() as set_for_all:
        for name, value in {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}.items():
            set_for_all.setenv(name, value)
        multiprocessing.forkserver.ensure_running()
    return context


@needs_notebooks
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(notebook, forks, tmp_path):
    process = forks.Process(target=run_notebook, args=(notebook, tmp_path / "log"))
    process.start()
    process.join(600)
    if process.exitcode is None:
        process.kill()
    assert process.exitcode == 0, (tmp_path / "log").read_text()[-6000:]


@needs_notebooks
@pytest.mark.parametrize("notebook", EXPERIMENTS, ids=lambda p: p.stem)
def test_experiment_notebooks_only_call(notebook):
    cells = [c for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"]
    assert [i for i, c in enumerate(cells) if "parameters" in c["metadata"].get("tags", [])] == [0], (
        "the first code cell, and only it, is tagged `parameters`"
    )
    assert all(isinstance(n, ast.AnnAssign) for n in ast.parse(source(cells[0])).body), (
        "parameters have a type and a default"
    )
    for cell in cells:
        tree = ast.parse(source(cell))
        assert not [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.Lambda))], source(
            cell
        )
        assert not re.search(r"\bplt\b|matplotlib|seaborn|import \*", source(cell)), source(cell)


def test_no_stars_and_no_pickle():
    for module in (ROOT / "classimpression").glob("*.py"):
        text = module.read_text()
        assert not re.search(r"import \*|\bpickle\b|torch\.(load|save)\(|allow_pickle=True", text), module.name


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="the README is not beside the tests")
class TestReadme:
    text = (ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else ""

    def test_two_commands(self):
        blocks = re.findall(r"```bash\n(.*?)```", self.text, re.S)
        assert len(blocks) == 2 and all(
            b.count("\n") == 1 and "-c constraints.txt" in b and b.startswith("python3 -m venv") for b in blocks
        )
        assert blocks[0].strip().endswith("classimpression reproduce") and blocks[1].strip().endswith(
            "python -m pytest"
        )

    def test_example_on_own_data_runs(self, tmp_path, monkeypatch, capsys):
        from PIL import Image

        for part, n in dict(train=12, val=4, test=4).items():
            for c, name in enumerate("abcd"):
                folder = tmp_path / "images" / part / name
                folder.mkdir(parents=True)
                for i in range(n):
                    Image.new("RGB", (32, 32), (60 * c + 2 * i, 200 - 40 * c, 90)).save(folder / f"{i}.png")
        monkeypatch.chdir(tmp_path)
        code = "".join(re.findall(r"```python\n(.*?)```", self.text, re.S))
        small = {
            "epochs=10": "epochs=1",
            '"quick"': '"smoke"',
            'synthesis_preset("fast", scenario.name, t)': "SynthesisConfig(steps=2, warmup=1, groups=1)",
            "import synthesis_preset": "import SynthesisConfig",
        }
        for long, short in small.items():
            assert long in code
            code = code.replace(long, short)
        from classimpression.methods.registry import METHODS

        exec(code, {})
        assert METHODS.pop("distil-only").hyper_parameters == {"strength": 5.0}
        out = capsys.readouterr().out
        assert out.count("[[") == 3 and "average_incremental_accuracy" in out

    def test_numbers_come_from_the_tables(self, tmp_path):
        from classimpression.report.readme import fill_readme

        copy = tmp_path / "README.md"
        copy.write_text(self.text)
        assert fill_readme(copy, ROOT / "figures") == self.text, "run classimpression.report.readme.fill_readme()"

    def test_picture_and_links_exist(self):
        for page in (ROOT / "README.md", ROOT / "figures" / "README.md"):
            for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
                assert (page.parent / target).exists(), (page.name, target)


def test_constraints_pin_everything():
    lines = [x for x in (ROOT / "constraints.txt").read_text().splitlines() if not x.startswith("#")]
    assert len(lines) > 50 and all(re.fullmatch(r"[\w.-]+==[\w.]+", x) for x in lines)
    names = {re.split(r"==", x)[0].lower().replace("_", "-") for x in lines}
    settings = (ROOT / "settings.ini").read_text()
    wanted = {
        re.split(r"[<>=\[]", w)[0].lower()
        for line in re.findall(r"^(?:\w+_)?requirements = (.*)$", settings, re.M)
        for w in line.split()
    }
    assert wanted <= names, f"constraints.txt lacks {sorted(wanted - names)}"
