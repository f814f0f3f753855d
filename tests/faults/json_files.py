"JSON of the wrong shape, depth, size or kind in every place where it is read."

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
from classimpression.core.files import MOST_JSON, read_json, write_json
from classimpression.echo.store import CineStore, cine_splits, write_store
from classimpression.report.ablations import base_from_main
from classimpression.report.comparison import runs_beside
from classimpression.report.explorers import ResultsBrowser, as_html, load_results
from classimpression.report.panels import cost_rows
from classimpression.report.verify import merge_details
from classimpression.runs.experiments import measured_seconds
from classimpression.runs.reproduce import parse_value
from classimpression.runs.tables import add_measurement, check_same_making, example_result, merge_results, read_results
from classimpression.runs.tuning import chosen_before
from classimpression.runs.weights import released

from . import command, fault

MAIN = "main_table/toy_runs.json"
READERS = {  # a reader -> the file that it reads below a folder, and how
    "results": ("toy_runs.json", lambda d: read_results(d / "toy_runs.json")),
    "new results": ("toy_runs.json", lambda d: merge_results(d / "toy_runs.json", [example_result("lwf", 0, [[9]])])),
    "budgets": (MAIN, lambda d: runs_beside(d, "toy", "standard")),
    "ablations": (MAIN, lambda d: base_from_main(d, "losses", "toy", "standard", ["lwf"])),
    "comparison": (MAIN, lambda d: check_same_making(d / MAIN, [], "toy", "standard")),
    "panels": (MAIN, lambda d: cost_rows(read_results(d / MAIN))),
    "details of verify": ("details.json", lambda d: merge_details(d / "details.json", [])),
    "measurements": ("costs.json", lambda d: add_measurement(d / "costs.json", {})),
    "choices of tuning": ("tuned.json", lambda d: chosen_before(d / "tuned.json")),
    "cards of weights": ("blood/card.json", lambda d: released(d)),
    "a store's index": ("index.json", lambda d: CineStore.open(d)),
    "settings of a run": ("a.json", lambda d: command("run", "--config", d / "a.json", "--out", d / "runs")),
}
CONTENTS = {
    "nothing": b"",
    "half an object": b'{"a": ',
    "text that is no UTF-8": b'{"a": "\xff"}',
    "100,000 lists in lists": b"[" * 100_000 + b"]" * 100_000,
    "a list of numbers": b"[1, 2]",
    "a list of lists": b"[[]]",
    "a number": b"7",
    "text": b'"evil"',
    "null": b"null",
    "not a number": b'[{"a": NaN}]',
    "objects without anything": b"[{}]",
}


@fault("hostile", "JSON: {reader} holds {content}", "refused", reader=READERS, content=CONTENTS)
def _(folder, reader, content):
    name, read = READERS[reader]
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(CONTENTS[content])
    read(folder)
    if reader in ("measurements", "a store's index") and content == "objects without anything":
        read_json(folder / name, list[int])  # measurements of any kind are kept


@fault(
    "hostile", "JSON: {reader} of 130 MB", says="bytes of JSON", reader=[r for r in READERS if r != "settings of a run"]
)
def _(folder, reader):
    name, read = READERS[reader]
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    with open(folder / name, "wb") as f:
        f.truncate(MOST_JSON + 1)  # a file with a hole, which takes no space
    read(folder)


def honest() -> dict:
    "A result as figures keep it."
    return example_result("class-impression", 0, [[90], [80, 70]])


LIES = {
    "accuracy after task 2": lambda r: r["tasks"][1].update(accuracy=99.0),
    "balanced accuracy": lambda r: r["metrics"].update(balanced_accuracy=99.0),
    "forgetting": lambda r: r["metrics"].update(forgetting=-5.0),
    "counts with a rest": lambda r: r["tasks"][0]["confusion"][0].__setitem__(0, 0.5),
    "counts of 10^30": lambda r: r["tasks"][0]["confusion"][0].__setitem__(0, 10**30),
    "rows of two lengths": lambda r: r["tasks"][0]["confusion"][0].append(0),
    "a confusion matrix that is missing": lambda r: r["tasks"][0].pop("confusion"),
    "a class that nobody has": lambda r: r["tasks"][0]["confusion"].__setitem__(0, [0, 0]),
    "one task of two": lambda r: r["tasks"].pop(),
    "negative task sizes": lambda r: r["scenario"].update(sizes=[-2, 6]),
    "sizes that are text": lambda r: r["scenario"].update(sizes=["2", "2"]),
    "a scenario that is text": lambda r: r.update(scenario="toy"),
    "a seed that is text": lambda r: r.update(seed="0"),
    "markup as a title": lambda r: r.update(title="=HYPERLINK()"),
    "a class with a line break": lambda r: r["scenario"].update(class_names=["a\nb", "c", "d", "e"]),
}
BELIEVERS = {
    "results": lambda d: read_results(d / MAIN),
    "budgets": lambda d: runs_beside(d, "example", "standard"),
    "ablations": lambda d: base_from_main(d, "losses", "example", "standard", ["class-impression"]),
    "comparison": lambda d: check_same_making(d / MAIN, [], "example", "standard"),
    "panels": lambda d: cost_rows(read_results(d / MAIN)),
    "the explorer": load_results,
}


@fault("numbers", "{what} changed in a reported result, read by {who}", what=LIES, who=BELIEVERS)
def _(folder, what, who):
    r = copy.deepcopy(honest())
    LIES[what](r)
    write_json(folder / MAIN, [r])
    (folder / "main_table/example_runs.json").write_text((folder / MAIN).read_text())
    BELIEVERS[who](folder)


NAMES = ("<img src=x onerror=alert(1)>", "a_b^c", "x" * 150, "&lt;b&gt;", "{0}", "%s", "\\def", "5 $")


@fault("hostile", "a class called $\\frac in foreign results, in the explorer", says="without two")
def _(folder):
    r = honest()
    r["scenario"]["class_names"] = ["$\\frac{1}{$", "b", "c", "d"]
    write_json(folder / MAIN, [r])
    load_results(folder)


@fault("hostile", "a class called {name!r} in foreign results, in the explorer", "right", slow=True, name=NAMES)
def _(folder, name):
    r = honest()
    r["scenario"]["class_names"] = [name, "b", "c", "d"]
    r["scenario"]["name"] = "toy"
    write_json(folder / "main_table/toy_runs.json", [r])
    b = ResultsBrowser(folder)
    for view in ("accuracy matrix", "confusion", "recalls", "curves"):
        b.view.value = view
        assert b.plot.value[:4] == b"\x89PNG", f"{view}: {b.status.value}"
        assert "<img" not in b.status.value + b.source.value


@fault("hostile", "a folder called <b> in the explorer", "right")
def _(folder):
    write_json(folder / "<b>evil<i>" / "toy_runs.json", [honest()])
    b = ResultsBrowser(folder)
    assert "<b>" not in b.source.value and "&lt;b&gt;evil" in b.source.value


@fault("hostile", "every widget of HTML is filled by as_html", "right")
def _(folder):
    root = Path(__file__).parents[2] / "classimpression"
    for path, boxes in (("report/explorers.py", "status|source"), ("studies/cine_level.py", "said")):
        import re

        text = (root / path).read_text()
        for line in re.findall(rf"^.*\b(?:self\.)?(?:{boxes})\.value = .*$", text, re.M):
            assert "as_html(" in line or '= "", b' in line, line
    assert as_html("<b>") == "&lt;b&gt;"


@fault(
    "hostile",
    "a finished run's {what} while durations are read",
    "right",
    what=("[]", "7", '{"tasks": 3}', "[" * 9999, "\xff"),
)
def _(folder, what):
    path = folder / "toy/lwf-seed0-a-b/result.json"
    path.parent.mkdir(parents=True)
    path.write_text(what, encoding="latin-1")
    measured_seconds(folder, committed=False)


@fault("hostile", "a parameter of {n} lists in lists", "right", n=(10, 100_000))
def _(folder, n):
    text = "[" * n + "]" * n
    assert parse_value(text) == (json.loads(text) if n == 10 else text)


@fault("hostile", "--options of 100,000 lists in lists")
def _(folder):
    import contextlib
    import io

    from classimpression.core.errors import ConfigError

    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            command("run", "--options", '{"a":' * 100_000 + "1" + "}" * 100_000, code=2)
        except SystemExit as e:
            raise ConfigError(said.getvalue()[-200:]) from e


CONFIGS = {
    "YAML of 100,000 lists in lists": ("a.yaml", b"[" * 100_000),
    "YAML that makes objects": ("a.yaml", b"!!python/object/apply:os.system ['true']"),
    "YAML that doubles itself 30 times": (
        "a.yaml",
        b"a0: &a0 [x]\n" + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (i, i, i - 1, i - 1) for i in range(1, 30)),
    ),
    "YAML that doubles itself 30 times within options": (
        "a.yaml",
        b"x0: &x0 [x]\n"
        + b"".join(b"x%d: &x%d [*x%d, *x%d]\n" % (i, i, i - 1, i - 1) for i in range(1, 30))
        + b"options: {lr: *x29}",
    ),
    "a megabyte of spaces": ("a.yaml", b" " * 2**20 + b"seed: 1"),
    "YAML that holds itself": ("a.yaml", b"&a {options: *a}"),
    "YAML in latin-1": ("a.yaml", b"method: \xe9"),
    "a folder": ("a.yaml", None),
    "a device": ("a.json", b"\x00\x01\x02"),
    "dates": ("a.yaml", b"seed: 2020-01-01"),
    "one setting twice, in two ways": ("a.json", b'{"settings": 3}'),
    "keys that are numbers": ("a.yaml", b"1: 2"),
}


@fault("hostile", "--config: {what}", what=CONFIGS)
def _(folder, what):
    name, text = CONFIGS[what]
    (folder / name).mkdir() if text is None else (folder / name).write_bytes(text)
    command("run", "--config", folder / name, "--out", folder / "runs")


INDEX = {
    "a view that it does not list": lambda i: i["series"][0].update(view="z"),
    "a split that is none": lambda i: i["series"][0].update(split="all"),
    "a series of no frames": lambda i: i["series"][0].update(frames=0),
    "a negative start": lambda i: i["series"][0].update(start=-1),
    "a size of 0": lambda i: i.update(size=0),
    "a size of a million": lambda i: i.update(size=10**6),
    "frames that are text": lambda i: i.update(frames="2"),
    "no series": lambda i: i.update(series=[]),
    "views that are text": lambda i: i.update(views="ab"),
    "a patient who is a list": lambda i: i["series"][0].update(patient=["x"]),
    "one patient in two splits": lambda i: [
        s.update(patient="p", split=k) for s, k in zip(i["series"], ("train", "test"))
    ],
    "another schema": lambda i: i.update(schema="evil-1"),
}


@fault("hostile", "a store whose index has {what}", what=INDEX)
def _(folder, what):
    frames = np.zeros((3, 8, 8), np.uint8)
    facts = [dict(view=v, patient=v, split="train", source=v) for v in "ab"]
    write_store(folder / "s", [(f, frames) for f in facts], 8, ["a", "b"], {})
    index = json.loads((folder / "s/index.json").read_text())
    INDEX[what](index)
    (folder / "s/index.json").write_text(json.dumps(index))
    cine_splits(CineStore.open(folder / "s"))
