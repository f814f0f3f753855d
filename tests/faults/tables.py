"Tables that were cut or changed, names that look like something else, markup in cells."

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
from classimpression.core.errors import check_text
from classimpression.core.files import read_json, write_json
from classimpression.report.comparison import latex_text, merge_runs
from classimpression.report.claims import claim_verdicts
from classimpression.report.explorers import load_results
from classimpression.report.readme import fill_values
from classimpression.report.verify import reported_runs, verify
from classimpression.runs.tables import broken_tables, cell_text, example_result, merge_results, merge_rows
from classimpression.runs.tables import read_results, read_rows, tidy, to_markdown

from . import fault


def made(method: str = "lwf", seed: int = 0, **more) -> dict:
    "An invented result of two tasks."
    return example_result(method, seed, [[98], [70, 88]]) | more


CUTS = {
    "to nothing": lambda t: "",
    "to its header": lambda t: t[: t.index("\n") + 1],
    "inside the last row": lambda t: t[:-15],
    "inside the second row": lambda t: t[: t.index("\n") + 40],
    "before the last row": lambda t: t[: t.rindex("\n", 0, -1) + 1],
    "after the first row": lambda t: "".join(t.splitlines(True)[:2]),
    "without its first row": lambda t: "".join([t.splitlines(True)[0], *t.splitlines(True)[2:]]),
    "by one number": lambda t: t.replace("98", "99", 1),
    "by a row twice": lambda t: t + t.splitlines(True)[-1],
    "by two columns swapped": lambda t: t.replace("accuracy,balanced_accuracy", "balanced_accuracy,accuracy", 1),
    "to zero bytes": lambda t: "\0" * len(t),
}


@fault("numbers", "a table changed {how}, then added to", how=CUTS)
def _(folder, how):
    path = folder / "foundation.csv"
    merge_rows(path, tidy([made(), made(seed=1)]))
    changed = CUTS[how](path.read_text())
    path.write_text(changed)
    try:
        merge_rows(path, tidy([made(seed=2)]))
    finally:
        assert path.read_text() == changed, "it was written over"


@fault(
    "numbers",
    "a table without digests, cut {how}",
    how=("to nothing", "to its header", "inside the last row", "after the first row"),
)
def _(folder, how):
    path = folder / "foundation.csv"
    merge_rows(path, tidy([made(), made(seed=1)]))
    (folder / "digests.json").unlink()
    path.write_text(CUTS[how](path.read_text()))
    read_rows(path)


COMMITTED = Path(__file__).parents[2] / "figures"
READERS = {
    "verify": lambda figures: verify(figures, n=0),
    "the report's claims": lambda figures: claim_verdicts(figures),
    "README's filler": lambda figures: fill_values("<!--value:faults-tried-->1<!--/value-->", figures),
    "the table's page": lambda figures: read_rows(figures / "main_table/runs.csv"),
    "the browser of results": lambda figures: load_results(figures),
    "whoever adds a row": lambda figures: merge_rows(figures / "main_table/runs.csv", tidy([made()])),
}


@fault(
    "numbers",
    "committed tables cut {how}, read by {reader}",
    says="cut or changed after",
    how=("to nothing", "before the last row", "by one number"),
    reader=READERS,
)
def _(folder, how, reader):
    copied = ("main_table/runs.csv", "main_table/blood_runs.json", "faults/faults.csv", "main_table/digests.json")
    for name in (*copied, "faults/digests.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(COMMITTED / name, folder / name)
    for path in folder.rglob("*.csv"):
        path.write_text(CUTS[how](path.read_text()).replace("held", "wrong", how == "by one number"))
    READERS[reader](folder)


@fault("numbers", "a committed table that is gone, for verify", says="cannot read the table")
def _(folder):
    (folder / "losses").mkdir()
    shutil.copy(COMMITTED / "losses/digests.json", folder / "losses/digests.json")
    verify(folder, n=0)


@fault("names", "digests.json names {name}", says="files of other folders", name=("../runs.csv", "/etc/passwd"))
def _(folder, name):
    write_json(folder / "digests.json", {name: dict(rows=1, digest="x")})
    broken_tables(folder)


@fault("numbers", "digests.json holds {text}", text=("[]", '{"foundation.csv": 3}', "{ half"))
def _(folder, text):
    path = folder / "foundation.csv"
    merge_rows(path, tidy([made()]))
    (folder / "digests.json").write_text(text)
    read_rows(path)


@fault("crash", "killed between the digest of a table and the table", "resumed")
def _(folder):
    path, ledger = folder / "foundation.csv", folder / "digests.json"
    merge_rows(path, tidy([made()]))
    before = read_json(ledger)[path.name]
    write_json(ledger, {path.name: dict(rows=4, digest="of the new table", before=before["digest"])})
    merge_rows(path, tidy([made(seed=1)]))
    assert len(read_rows(path)) == 4


@fault("numbers", "line ends of another system", "right")
def _(folder):
    path = folder / "foundation.csv"
    merge_rows(path, tidy([made()]))
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert len(read_rows(path)) == 2


@fault(
    "numbers",
    "a method called {name}, merged twice",
    "right",
    name=("007", "NA", "1e5", "True", "nan", "None", "1_0", "inf"),
)
def _(folder, name):
    for _ in range(2):
        merge_rows(folder / "a.csv", tidy([made(name, profile=name)]))
    back = read_rows(folder / "a.csv")
    assert len(back) == 2 and set(back.method) == {name} == set(back.profile)


CELLS = ("a|b", "<script>alert(1)</script>", "two\nlines", "&amp;", "a\\|b")


@fault("numbers", "markup in a cell of Markdown: number {i}", "right", i=range(len(CELLS)))
def _(folder, i):
    shown = to_markdown(pd.DataFrame({"x": [CELLS[i]]})).splitlines()
    assert len(shown) == 3 and "<script" not in shown[2] and shown[2].replace("\\|", "").count("|") == 2


@fault("numbers", "{text} in a cell of LaTeX", "right", text=(r"\input", "$x$", "50 %", "a_b", "#1", "~", "^", "<"))
def _(folder, text):
    shown = latex_text(text)
    assert not any(f" {c}" in f" {shown}" for c in "$%#~^") and "\\input" not in shown and cell_text(text)


@fault(
    "hostile", "a formula as the title of a method: {title}", title=("=1+1", "+cmd", "-2", "@SUM(A1)", "a\tb", "a\nb")
)
def _(folder, title):
    check_text("title", title)


CHANGES = {
    "accuracy": lambda r: r["tasks"][1].update(accuracy=99.9),
    "metrics": lambda r: r["metrics"].update(balanced_accuracy=99.9),
    "confusion": lambda r: r["tasks"][1]["confusion"][0].__setitem__(0, 1),
    "tasks": lambda r: r["tasks"].pop(),
}


@fault("identity", "a line of results with another {what}", what=CHANGES)
def _(folder, what):
    merge_results(folder / "a.json", [made()])
    results = read_json(folder / "a.json")
    CHANGES[what](results[0])
    write_json(folder / "a.json", results)
    merge_results(folder / "a.json", [made(seed=1)])


NO_RESULTS = ("{}", "[1]", '[{"method": 3}]', "[[[]]]", "null", "[" * 5000, '[{"method": "../x", "seed": 0}]')


@fault(
    "hostile",
    "results that are none: number {i}, read by {reader}",
    i=range(len(NO_RESULTS)),
    reader=("read_results", "merge_runs"),
)
def _(folder, i, reader):
    (folder / "a.json").write_text(NO_RESULTS[i])
    read_results(folder / "a.json") if reader == "read_results" else merge_runs(folder / "a.json", [made()])


@fault(
    "hostile", "reported runs that are none: number {i}", says="no reported runs|valid JSON", i=range(len(NO_RESULTS))
)
def _(folder, i):
    (folder / "a_runs.json").write_text(NO_RESULTS[i])
    reported_runs(folder)


@fault("hostile", "a result whose {key} is {value}", key=("method", "scenario"), value=("../evil", "<b>", "a|b", "=x"))
def _(folder, key, value):
    r = made()
    r["scenario"] = r["scenario"] | (dict(name=value) if key == "scenario" else {})
    (folder / "a.json").write_text(json.dumps([r | (dict(method=value) if key == "method" else {})]))
    read_results(folder / "a.json")
