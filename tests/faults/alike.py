"Names that look the same or show nothing, splits that come out empty, lines that end in odd ways."

from __future__ import annotations

import unicodedata
import warnings

import numpy as np
import pandas as pd
from classimpression.core.errors import DataError
from classimpression.data import load_medmnist
from classimpression.echo.manifest import index_manifest, layout_manifest, read_manifest
from classimpression.echo.phantom import PhantomConfig
from classimpression.echo.scenario import made_scenario, phantom_store
from classimpression.runs.configs import RunConfig
from classimpression.scenarios import from_folder
from classimpression.settings import TrainConfig
from classimpression.synthesis import SynthesisConfig
from classimpression.tasks import from_arrays

from . import arrays, command, fault, files
from .estimators import X, new
from .toys import images

BLANK = ("", " ", "\t", "\xa0", "\u200b", "\ufeff", "\u2060", "\u00ad", "\u3164", "\u2800", "\u034f", "\ufe0f")


@fault("label", "the estimator learns a class called {name!a}", says="empty name", name=BLANK)
def _(folder, name):
    new().fit(X, ["a", name] * 12)


@fault("label", "arrays with a class called {name!a}", says="class name|empty name", name=BLANK)
def _(folder, name):
    from_arrays(images(0), images(1), images(2), sizes=[3], layout="NCHW", class_names=["a", name, "b"])


TWINS = {
    "a space around": "caf\u00e9 ",
    "a space that does not break": "\xa0caf\u00e9",
    "a sign of no width": "caf\u200b\u00e9",
    "a mark of byte order": "\ufeffcaf\u00e9",
    "a mark of direction": "\u202ecaf\u00e9",
    "an accent of two characters": unicodedata.normalize("NFD", "caf\u00e9"),
    "an accent behind a sign of no width": "cafe\u200b\u0301",
    "a hyphen that does not show": "ca\u00adf\u00e9",
    "a selector of variants": "caf\u00e9\ufe0f",
    "a joiner": "ca\u034ff\u00e9",
}


@fault("label", "the estimator learns two classes that differ by {what}", says="is there twice", what=TWINS)
def _(folder, what):
    new().fit(X, ["caf\u00e9", TWINS[what]] * 12)


@fault("label", "arrays with two classes that differ by {what}", says="is there twice|class name", what=TWINS)
def _(folder, what):
    names = ["a", "caf\u00e9", TWINS[what]]
    from_arrays(images(0), images(1), images(2), sizes=[3], layout="NCHW", class_names=names)


@fault("label", "arrays with one class name twice", says="is there twice")
def _(folder):
    from_arrays(images(0), images(1), images(2), sizes=[3], layout="NCHW", class_names=["a", "b", "a"])


@fault("folder", "a class twice in train, which differs by {what}", says="is there twice", what=TWINS)
def _(folder, what):
    from_folder(files.image_folder(folder, ("caf\u00e9", TWINS[what])), sizes=[1, 1])


@fault("folder", "a class whose name in val differs by {what}", "right", what=TWINS)
def _(folder, what):
    files.image_folder(folder, ("caf\u00e9", "b"))
    (folder / "val" / "caf\u00e9").rename(folder / "val" / TWINS[what])
    assert from_folder(folder, sizes=[1, 1]).class_names == ["b", "caf\u00e9"]


@fault("folder", "a class called {name!a}", says="empty name", name=BLANK[1:])
def _(folder, name):
    from_folder(files.image_folder(folder, ("a", name)), sizes=[1, 1])


def patients(folder, **called):
    "An image folder with a patient of each split's own, or with those that are named."
    files.image_folder(folder)
    for part in ("train", "val", "test"):
        for p in list((folder / part).rglob("*.png")):
            who = p.parent / called.get(part, part)
            who.mkdir(exist_ok=True)
            p.rename(who / p.name)
    return folder


PEOPLE = TWINS | {
    "capitals": "CAF\u00c9",
    "wide letters": "\uff43af\u00e9",
    "a full stop and no": None,  # 1 and 1.0
}


@fault("folder", "a patient in train and test, the names differ by {what}", says="patients are in two", what=PEOPLE)
def _(folder, what):
    one, other = ("caf\u00e9", PEOPLE[what]) if PEOPLE[what] else ("1", "1.0")
    from_folder(patients(folder, train=one, test=other), sizes=[1, 1], patients=True)


@fault("folder", "one patient's two folders differ by {what}: said, and one", "right", what=PEOPLE)
def _(folder, what):
    one, other = ("caf\u00e9", PEOPLE[what]) if PEOPLE[what] else ("1", "1.0")
    patients(folder, train=one)
    (folder / "train" / "a" / one).rename(folder / "train" / "a" / other)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        s = from_folder(folder, sizes=[1, 1], patients=True)
    assert s.tasks[0].train.patient.unique().numel() == 1 and "spelled in two ways" in str(heard[-1].message)


@fault("folder", "a patient's folder called {name!a}", says="no patient's name", name=("unknown", "NaN", "-", "\u200b"))
def _(folder, name):
    from_folder(patients(folder, train=name), sizes=[1, 1], patients=True)


HEAD = ("path", "view", "patient", "split")
INSIDE = {
    "a space that does not break": "\xa0{}",
    "a sign of no width": "{}\u200b",
    "a mark of byte order": "\ufeff{}",
    "a mark of direction": "\u202a{}\u202c",
    "a selector of variants": "{}\ufe0f",
}
PLACES = ("name of a column", "view", "split", "first column, apart by semicolons,")


@fault(
    "manifest",
    "a {place} with {what}",
    "right",
    what=INSIDE,
    place=("name of a column", "view", "split", "separator's"),
)
def _(folder, place, what):
    sign = INSIDE[what].format
    head = [sign(h) if place == "name of a column" else h for h in HEAD]
    row = ["a.npy", sign("AP2") if place == "view" else "AP2", "1", sign("train") if place == "split" else "train"]
    s = ";" if place == PLACES[3] else ","
    head[0] = sign(head[0]) if s == ";" else head[0]
    (folder / "m.csv").write_text(f"{s.join(head)}\n{s.join(row)}\n")
    assert read_manifest(folder / "m.csv").values.tolist() == [["a.npy", "AP2", "1", "train"]]


@fault("manifest", "a column {name} twice, in {kind}", says="twice", name=HEAD, kind=("CSV", "a table"))
def _(folder, name, kind):
    row = dict(path="a.npy", view="AP2", patient="1", split="train") | {f" {name.upper()}\u200b": "x"}
    if kind == "CSV":
        pd.DataFrame([row]).to_csv(folder / "m.csv", index=False)
    read_manifest(folder / "m.csv" if kind == "CSV" else pd.DataFrame([row]))


@fault("manifest", "views that differ by {what}", says="differ by more", what=("capitals", "a sign of no width"))
def _(folder, what):
    (folder / "m.csv").write_text("path,view,patient\na.npy,A4C,1\n")
    read_manifest(folder / "m.csv", ("A4C", "a4c" if what == "capitals" else "A4C\u200b"))


@fault("manifest", "accents of files as a Mac writes them, and a table that does otherwise", "right")
def _(folder):
    m = files.manifest(folder / "in")
    (folder / "in" / "3.npy").rename(folder / "in" / unicodedata.normalize("NFD", "J\u00e4ger.npy"))
    m.write_text(m.read_text().replace("3.npy", "J\u00e4ger.npy"))
    assert len(index_manifest(m, folder / "store", size=32).series) == 6


@fault("layout", "EchoNet's list and files differ by how an accent is stored", "right")
def _(folder):
    (folder / "Videos").mkdir()
    (folder / "Videos" / unicodedata.normalize("NFD", "J\u00e4.avi")).write_bytes(b"x")
    (folder / "FileList.csv").write_text("FileName\u200b,Split\nJ\u00e4,TRAIN\n")
    (path,) = layout_manifest("echonet", folder).path
    assert (folder / path).is_file()


ENDS = {
    "CR CR LF": "\r\r\n",
    "CR LF": "\r\n",
    "CR": "\r",
    "LF CR": "\n\r",
    "LF LF": "\n\n",
    "CR LF CR LF": "\r\n\r\n",
    "CR CR CR LF": "\r\r\r\n",
}
ROWS = ["path,view,patient", "a.npy,AP2,1", "b.npy,AP4,2"]


@fault("manifest", "lines that end in {end}", "right", end=ENDS)
def _(folder, end):
    (folder / "m.csv").write_bytes((ENDS[end].join(ROWS) + ENDS[end]).encode())
    assert read_manifest(folder / "m.csv").values.tolist() == [["a.npy", "AP2", "1"], ["b.npy", "AP4", "2"]]


EMPTY = ("", ",,", " , , ", "\xa0", "\u200b,,", '"",,""', "\t")


@fault("manifest", "an empty row {where}, {row!a}", "right", where=("first", "within", "last"), row=EMPTY)
def _(folder, where, row):
    rows = list(ROWS)
    rows.insert(dict(first=0, within=2, last=3)[where], row)
    (folder / "m.csv").write_text("\r\n".join(rows), newline="")
    f = read_manifest(folder / "m.csv")
    assert f.values.tolist() == [["a.npy", "AP2", "1"], ["b.npy", "AP4", "2"]]
    assert f.attrs["noticed"].get("empty rows, left out", 0) == int(where != "last")


@fault("manifest", "DOS's end of file, Ctrl-Z, in a row of its own", "right")
def _(folder):
    (folder / "m.csv").write_bytes("\r\n".join([*ROWS, "\x1a"]).encode())
    assert len(read_manifest(folder / "m.csv")) == 2


@fault("manifest", "a wrong row behind empty ones keeps its number", says="row 6 of the manifest: unknown view")
def _(folder):
    (folder / "m.csv").write_text("\n".join([*ROWS[:2], "", "", ROWS[2], "c.npy,AP9,3"]))
    read_manifest(folder / "m.csv")


@fault("manifest", "a series that cannot be read behind empty rows keeps its number", says="first in row 5")
def _(folder):
    m = files.manifest(folder / "in")
    rows = m.read_text().splitlines()
    m.write_text("\n".join([*rows[:2], "", "", *rows[2:]]))
    (folder / "in" / "1.npy").write_bytes(b"damaged")
    index_manifest(m, folder / "store", size=32)


def with_splits(folder, splits) -> str:
    m = files.manifest(folder / "in", len(splits))
    rows = m.read_text().splitlines()
    m.write_text("\n".join([f"{rows[0]},split", *(f"{r},{s}" for r, s in zip(rows[1:], splits))]))
    return m


PARTS = {
    "training": (["training"] * 6, "val and test"),
    "test": (["test"] * 6, "train and val"),
    "train or val": (["train", "val"] * 3, "test"),
    "train or test": (["train", "test"] * 3, "val"),
}


@fault("manifest", "every row says {word}", says="no series is in", word=PARTS)
def _(folder, word):
    m = with_splits(folder, PARTS[word][0])
    try:
        index_manifest(m, folder / "data" / "echo", size=32)
    except DataError as e:
        assert f"no series is in {PARTS[word][1]}:" in str(e), str(e)
        assert not (folder / "data").exists()  # before work
        raise


@fault("manifest", "every row says training, at the command line", says="no series is in val and test")
def _(folder):
    (folder / "data").mkdir()
    command("data", "index", with_splits(folder, ["training"] * 6), "--root", folder / "data", "--size", "32")


@fault("manifest", "all that can be read is in train", says="no series is in val and test")
def _(folder):
    m = with_splits(folder, ["train", "train", "val", "train", "test", "train"])
    for i in (2, 4):
        (folder / "in" / f"{i}.npy").write_bytes(b"damaged" * i)
    index_manifest(m, folder / "store", size=32, skip=True)


@fault("manifest", "a view that no test patient has is named", "right")
def _(folder):
    m = with_splits(folder, ["train", "train", "val", "val", "test", "test"])
    m.write_text(m.read_text().replace("5.npy,AP2", "5.npy,AP4"))
    noticed = index_manifest(m, folder / "store", size=32).index["noticed"]
    assert noticed == {"views without a series in test: AP2": 1}


@fault("manifest", "a scenario from a store whose test split lacks a view", says="no image of .*AP2.* in the test")
def _(folder):
    m = with_splits(folder, ["train", "train", "val", "val", "test", "test"])
    m.write_text(m.read_text().replace("5.npy,AP2", "5.npy,AP4"))
    index_manifest(m, folder / "data" / "echo", size=32)
    made_scenario("echo", None, None, folder / "data")


@fault("layout", "EchoNet's list says TRAIN everywhere", says="no series is in val and test")
def _(folder):
    (folder / "Videos").mkdir()
    (folder / "FileList.csv").write_text("FileName,Split\n" + "".join(f"{i},TRAIN\n" for i in range(9)))
    index_manifest(layout_manifest("echonet", folder), folder / "store", folder, size=32)


@fault("numbers", "a phantom of {n} patients as a scenario", says="split holds no|split", n=(1, 2, 3))
def _(folder, n):
    store = phantom_store(PhantomConfig(patients=n, series=1, frames=2, size=32), folder)
    from classimpression.echo.store import cine_splits
    from classimpression.tasks import from_splits

    from_splits(*cine_splits(store).values(), sizes=[5], class_names=store.index["views"])


@fault("label", "arrays without {part} images", says="no images|holds no image", part=("train", "val", "test"))
def _(folder, part):
    given = dict(train=images(0), val=images(1), test=images(2))
    x, y = given[part]
    given[part] = x[:0], y[:0]
    from_arrays(**given, sizes=[3], layout="NCHW")


@fault("folder", "no image in {part}", says="no image", part=("train", "val", "test"))
def _(folder, part):
    for p in (files.image_folder(folder) / part).rglob("*.png"):
        p.unlink()
    from_folder(folder, sizes=[1, 1])


@fault("label", "an npz file without {part} images", says="no images", part=("train", "val", "test"))
def _(folder, part):
    a = arrays.arrays()
    for k in ("images", "labels"):
        a[f"{part}_{k}"] = a[f"{part}_{k}"][:0]
    np.savez(folder / "a.npz", **a)
    load_medmnist(folder / "a.npz", None, 3, 3)


OLD = {"a_bn": SynthesisConfig, "a_ce": SynthesisConfig, "a_margin": TrainConfig, "judge": RunConfig}


@fault("diagnosis", "the old name {name} of a setting", says="{name} is called .* now", name=OLD)
def _(folder, name):
    OLD[name](**{name: 1})


@fault("diagnosis", "an old name of a setting in dataclasses.replace", says="a_bn is called bn_weight now")
def _(folder):
    import dataclasses

    dataclasses.replace(SynthesisConfig(), a_bn=0.0)
