"The project as a whole: notebooks and modules in step, quiet imports, one direction of imports, notebooks that run."

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALL = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
EXPERIMENTS = [p for p in ALL if p.parent.name == "experiments"]
TUTORIALS = [p for p in ALL if p.parent.name == "tutorials"]
NOTEBOOKS = [p for p in ALL if p not in (*EXPERIMENTS, *TUTORIALS)]
PACKAGE = ROOT / "classimpression"
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if not p.name.startswith("_"))
# From the ground up: a room may use itself and what stands before it. "" is the top: the method itself.
ROOMS = ["core", "", "echo", "methods", "pretrained", "runs", "report", "studies", "adapters"]
DOOR = {"cli"}  # may use everything, and nothing uses it
HEAVY = (
    "torchvision",
    "timm",
    "monai",
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
    text = "\n".join(source(c) for c in json.loads(notebook.read_text())["cells"])
    found = re.search(r"^#\| default_exp ([\w.]+)", text, re.M)
    return found and found.group(1)


def room_of(module: Path) -> str:
    return module.relative_to(PACKAGE).parent.as_posix().replace(".", "")


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    "A copy of the repository after cleaning and exporting its notebooks."
    copy = tmp_path_factory.mktemp("copy") / "repository"
    left = {"runs", "figures", "tests", "build", "_site"}

    def ignore(folder, names):
        hidden = [n for n in names if n == "__pycache__" or n.startswith((".git", ".venv"))]
        return [*hidden, *(left & set(names) if Path(folder) == ROOT else ())]

    shutil.copytree(ROOT, copy, ignore=ignore)
    for module in (copy / "classimpression").rglob("*.py"):
        if not module.name.startswith("__"):
            module.unlink()
    done = python(
        "from nbdev.clean import nbdev_clean; from nbdev.doclinks import nbdev_export; nbdev_clean(); nbdev_export()",
        cwd=copy,
    )
    assert done.returncode == 0, done.stderr
    return copy


@needs_notebooks
def test_modules_come_from_the_notebooks(copy):
    def modules(root):
        return {p.relative_to(root).as_posix(): p.read_text() for p in root.rglob("*.py")}

    ours, exported = modules(PACKAGE), modules(copy / "classimpression")
    assert set(ours) == set(exported), "a module without notebook, or a notebook without module"
    assert not [name for name in ours if ours[name] != exported[name]], "run nbdev_export"


@needs_notebooks
def test_notebooks_are_clean(copy):
    for notebook in ALL:
        assert (copy / notebook.relative_to(ROOT)).read_text() == notebook.read_text(), (
            f"run nbdev_clean: {notebook.name} differs"
        )


@needs_notebooks
def test_widgets_leave_no_state_that_nothing_shows():
    for notebook in ALL:
        found = json.loads(notebook.read_text())
        shown = any("widget" in k for c in found["cells"] for o in c.get("outputs", []) for k in o.get("data", {}))
        assert shown or "widgets" not in found["metadata"], f"take metadata.widgets out of {notebook.name}"


def test_the_door_is_light_and_complete():
    code = """if True:
        import sys, time
        start = time.perf_counter()
        import classimpression as ci
        seconds = time.perf_counter() - start
        assert not {"torch", "numpy", "pandas"} & set(sys.modules), "the door loads a large library"
        assert set(ci.__all__) <= set(dir(ci)) and 15 <= len(ci.__all__) <= 25
        for name in ci.__all__:
            assert callable(getattr(ci, name)) and getattr(ci, name).__module__.startswith("classimpression."), name
        assert ci.make_scenario("echo-phantom-mini").name == "echo-phantom-mini"
        try: ci.synthesise
        except AttributeError as e: assert "it offers" in str(e)
        else: raise AssertionError("a name that does not exist was found")
        print(seconds)"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert (PACKAGE / "py.typed").exists()


@pytest.mark.parametrize("module", ["cli", "synthesis", "runs.runner"])
def test_a_module_that_is_run_by_mistake_says_so(module):
    done = subprocess.run(
        [sys.executable, "-m", f"classimpression.{module}"], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 2 and "python -m classimpression --help" in done.stderr, done.stderr


@needs_notebooks
def test_every_room_says_what_lives_there_and_numbers_its_notebooks():
    for room in filter(None, ROOMS):
        doc = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text()))
        assert doc and len(doc.splitlines()[0]) > 20, f"{room}/__init__.py has no first line"
    for room in ROOMS:
        names = [p.name for p in NOTEBOOKS if p.parent == ROOT / "nbs" / room and p.name[0].isdigit()]
        numbers = [int(n[:2]) for n in names]
        first = numbers[0]  # 0: what the room needs before its story begins
        assert first in (0, 1) and numbers == list(range(first, first + len(names))), (
            f"the numbers in nbs/{room} collide or have gaps"
        )
        for n in names:
            wanted = f"{room}.{n[3:-6]}".lstrip(".")
            assert module_of(ROOT / "nbs" / room / n) == wanted, f"nbs/{room}/{n} should export {wanted}"


def test_import_is_quiet():
    code = """if True:
        import importlib, sys, warnings, numpy, random, torch, os
        def state():
            names = ("get_num_threads", "get_num_interop_threads", "initial_seed", "get_default_dtype",
                     "is_grad_enabled", "are_deterministic_algorithms_enabled")
            of_torch = [getattr(torch, name)() for name in names]
            drawn = torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist()
            return of_torch, drawn, numpy.geterr(), warnings.filters[:], dict(os.environ), sys.path[:]
        known = set(sys.modules)
        for name in sys.argv[1:]:
            before = state()
            importlib.import_module("classimpression." + name)
            assert state() == before, f"importing {name} changed a global setting"
        print(*{m.split(".")[0] for m in set(sys.modules) - known})"""
    names = [".".join(p.relative_to(PACKAGE).with_suffix("").parts) for p in MODULES]
    assert len(names) > 40
    done = python(code, *names)
    assert done.returncode == 0, done.stderr
    assert not set(done.stdout.split()) & set(HEAVY), done.stdout
    assert not done.stderr


@needs_notebooks
def test_imports_go_one_way():
    def number(module):
        (found,) = [p.name for p in (ROOT / "nbs" / room_of(module)).glob(f"[0-9]*_{module.stem}.ipynb")]
        return int(found[:2])

    where = {p.stem: p for p in MODULES}
    assert len(where) == len(MODULES), "two modules share a name"
    for module in MODULES:
        here = (ROOMS.index(room_of(module)), number(module))
        for node in ast.walk(ast.parse(module.read_text())):
            ours = isinstance(node, ast.ImportFrom) and (
                node.level or (node.module or "").startswith("classimpression")
            )
            if not ours:
                continue
            names = {(node.module or "").rpartition(".")[2], *(a.name for a in node.names)} & set(where)
            for name in sorted(names - {module.stem} - DOOR if module.stem not in DOOR else ()):
                there = (ROOMS.index(room_of(where[name])), number(where[name]))
                assert there < here, (
                    f"{room_of(module)}/{module.stem} imports {room_of(where[name])}/{name}, which comes later"
                )
            assert module.stem in DOOR or not names & DOOR, f"{module.stem} imports the door"


def uses_of_rooms() -> dict[str, set[str]]:
    "Room -> rooms that its modules import from."
    where, uses = {p.stem: p for p in MODULES}, {}
    for module in (p for p in MODULES if p.stem not in DOOR):
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("classimpression")):
                names = {(node.module or "").rpartition(".")[2], *(a.name for a in node.names)} & set(where)
                uses.setdefault(room_of(module), set()).update(room_of(where[n]) for n in names)
    return {room: {r for r in used if r != room} for room, used in uses.items()}


def picture_of_rooms() -> str:
    "Mermaid: an arrow from each room to those that it uses, but for rooms that these use in turn."
    uses = uses_of_rooms()
    further = lambda r: {x for u in uses.get(r, ()) for x in (u, *further(u))}
    name = lambda r: r or "top"
    title = lambda r: f"{r}/" if r else "the method: nbs/01 to 11"
    lines = [f'    {name(r)}["{title(r)}"]' for r in ROOMS]
    for r in ROOMS:
        direct = uses.get(r, set()) - {x for u in uses.get(r, ()) for x in further(u)}
        lines += [f"    {name(r)} --> {name(u)}" for u in sorted(direct, key=ROOMS.index)]
    return "\n".join(["```mermaid", "flowchart BT", *lines, "```"])


def test_contributing_shows_the_rooms_as_they_are():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    shown = re.search(r"<!-- rooms -->\n(.*?)\n<!-- /rooms -->", text, re.S)[1]
    assert shown == picture_of_rooms(), f"put this between the marks in CONTRIBUTING.md:\n{picture_of_rooms()}"
    for room in filter(None, ROOMS):
        assert f"`{room}/`" in text, f"CONTRIBUTING.md does not say what {room}/ holds"


@needs_notebooks
def test_only_what_draws_imports_plots():
    draws = {"ablations", "curves", "explorers", "gallery", "domain_gap", "panels", "claims"}
    users = {
        p.stem for p in MODULES if re.search(r"import.*\bplots\b|\.plots import", p.read_text()) and p.stem != "plots"
    }
    assert {u for u in users if room_of(next(p for p in MODULES if p.stem == u)) != "studies"} <= draws


LONG = """index 07_synthesis 11_training 12_cli adapters/01_adopt adapters/02_estimator adapters/04_export
echo/06_scenario methods/01_registry methods/03_regularised methods/04_prototypes methods/05_generated
methods/06_drift methods/07_analytic methods/08_census methods/09_rehearsal pretrained/02_backbones
pretrained/04_census_any pretrained/07_chunks report/04_curves report/08_gallery report/09_domain_gap
report/10_verify report/12_explorers
report/13_page runs/03_runner runs/04_engine runs/05_tuning runs/08_weights runs/09_reproduce studies/02_drift_study
studies/03_census_ablation studies/04_sanity_checks studies/08_privacy studies/11_benchmark studies/12_peers
studies/13_regimes studies/17_scaling""".split()
TO_RUN = [(p.relative_to(ROOT / "nbs").with_suffix("").as_posix(), p) for p in NOTEBOOKS]


@needs_notebooks
@pytest.mark.parametrize(
    "notebook",
    [pytest.param(p, id=name, marks=[pytest.mark.slow] if name in LONG else []) for name, p in TO_RUN],
)
def test_notebook_runs(notebook, executed):
    executed(notebook)


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
    for module in MODULES:
        text = module.read_text()
        assert not re.search(
            r"import \*|\bpickle\b|torch\.save\(|torch\.load\((?![^\n]*weights_only=True)|allow_pickle=True", text
        ), module.name


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


@needs_notebooks
def test_notebooks_called_long_are_there():
    assert set(LONG) <= {name for name, _ in TO_RUN}


def test_nobody_is_sent_to_a_package_of_our_name():
    "The registry has no package of this name: whoever took it could serve anything to those who follow a message."
    told = [str(p) for p in (ROOT / "classimpression").rglob("*.py") if "install 'classimpression" in p.read_text()]
    assert not told, f"name the packages that are needed, or the clone's '.[extra]': {told}"


@pytest.mark.skipif(not (ROOT / "CHANGELOG.md").exists(), reason="the changelog is not beside the tests")
def test_one_version_and_a_dated_changelog():
    from datetime import date

    import classimpression

    said = {
        "settings.ini": re.search(r"^version = (.*)$", (ROOT / "settings.ini").read_text(), re.M)[1],
        "CITATION.cff": re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.M)[1],
        "__init__.py": classimpression.__version__,
    }
    titles = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    released = [re.fullmatch(r"(\d+\.\d+\.\d+) - (\d{4}-\d{2}-\d{2})", t) for t in titles if t != "Unreleased"]
    assert titles[0] == "Unreleased" and all(released), titles
    days = [date.fromisoformat(m[2]) for m in released]
    assert days == sorted(days, reverse=True)
    assert set(said.values()) == {released[0][1]}, said


@pytest.mark.skipif(not (ROOT / "Dockerfile").exists(), reason="the Dockerfile is not beside the tests")
def test_the_dockerfile_opens_the_tour():
    text = (ROOT / "Dockerfile").read_text()
    opened = re.search(r"--LabApp.default_url=/lab/tree/([^\"]+)", text)[1]
    (extra,) = re.findall(r"'\.\[(\w+)\]'", text)
    settings = (ROOT / "settings.ini").read_text()
    assert (ROOT / opened).is_file() and f"\n{extra}_requirements = jupyterlab" in settings
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert "-c constraints.txt" in text and not {"nbs", "constraints.txt", "classimpression", "figures"} & set(ignored)
