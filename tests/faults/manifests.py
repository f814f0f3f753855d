"Tables as spreadsheets and collections write them, people spelled in two ways, and what is left out."

from __future__ import annotations

import shutil
import unicodedata

import numpy as np
import pandas as pd
from classimpression.echo.manifest import ONE_PERSON, index_manifest, layout_manifest, read_manifest
from classimpression.scenarios import from_folder

from . import fault, files

TABLE = "path{s}view{s}patient\na.npy{s}AP2{s}Jäger\n"


@fault(
    "manifest",
    "fields apart by {name}, text in {code}",
    "right",
    name=("comma", "semicolon", "tab", "bar"),
    code=("utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-16-le", "utf-16-be"),
)
def _(folder, name, code):
    s = dict(comma=",", semicolon=";", tab="\t", bar="|")[name]
    (folder / "m.csv").write_bytes(TABLE.format(s=s).encode(code))
    assert read_manifest(folder / "m.csv").values.tolist() == [["a.npy", "AP2", "Jäger"]]


ODD = {
    "Windows line ends": "path,view,patient\r\na.npy,AP2,1\r\n",
    "old Mac line ends in a quoted field": 'path,view,patient,note\na.npy,AP2,1,"a\rb"\n',
    "names of columns in capitals, with spaces": " Path ,VIEW,Patient \na.npy,AP2,1\n",
    "empty rows at the end": "path,view,patient\na.npy,AP2,1\n\n,,\n  ,,\n",
    "empty fields at the end of rows": "path,view,patient\na.npy,AP2,1,,\n",
    "Excel's sep=; in front": "sep=;\npath;view;patient\na.npy;AP2;1\n",
    "quotes around all": '"path","view","patient"\n"a.npy","AP2","1"\n',
    "spaces around view and patient": "path,view,patient\na.npy, AP2 ,  1 \n",
    "a view in small letters": "path,view,patient\na.npy,ap2,1\n",
    "further columns": "age,path,view,patient,x\n9,a.npy,AP2,1,y\n",
    "a comma in the name of a column": '"path",view,patient,"age, in years"\na.npy,AP2,1,9\n',
    "a separator within quotes": 'path;view;patient;"note; long"\na.npy;AP2;1;"x; y"\n',
}


@fault("manifest", "{what}", "right", what=ODD)
def _(folder, what):
    (folder / "m.csv").write_bytes(ODD[what].encode())
    assert read_manifest(folder / "m.csv").values.tolist() == [["a.npy", "AP2", "1"]]


BAD = {
    "no column patient": ("path,view\na,AP2\n", "lacks the columns"),
    "a comma in a path without quotes": (
        "path,view,patient\na.npy,AP2,1\nb,c.npy,AP2,1\n",
        "row 3 of m.csv has 4 fields",
    ),
    "a row that is too short": ("path,view,patient\na.npy,AP2\n", "row 2 of m.csv has 2 fields"),
    "a column twice": ("path,view,patient,Patient\na,AP2,1,2\n", "twice"),
    "columns swapped": (f"path,view,patient\na.npy,{files.SECRET},AP2\n", "row 2.*unknown view.*swapped"),
    "a row without path": ("path,view,patient\n,AP2,1\n", "row 2.*no path"),
    "a path twice": ("path,view,patient\na,AP2,1\n./a,AP2,1\n", "row 3.*earlier row"),
    "a split nobody knows": ("path,view,patient,split\na,AP2,1,all\n", "train, val or test"),
    "split missing in a row": ("path,view,patient,split\na,AP2,1,train\nb,AP2,2,\n", "train, val or test"),
    "no rows": ("path,view,patient\n", "no rows"),
    "spaces alone": ("  \n \n", "empty"),
    "a workbook": ("PK\3\4" + "x" * 50, "workbook"),
}


@fault("manifest", "{what}", says="", hides=("Doe", "19480317"), what=BAD)
def _(folder, what):
    (folder / "m.csv").write_bytes(BAD[what][0].encode())
    try:
        read_manifest(folder / "m.csv")
    except Exception as e:
        import re

        assert re.search(BAD[what][1], str(e)), str(e)
        raise


@fault(
    "identity",
    "a patient called {word!r}",
    says="no patient",
    word=("", "nan", "NaN", "None", "null", "NA", "n/a", "-", "?", "unknown"),
)
def _(folder, word):
    (folder / "m.csv").write_text(f"path,view,patient\na,AP2,1\nb,AP2,{word}\n")
    read_manifest(folder / "m.csv")


@fault("manifest", "a table that was saved twice with a mark of byte order", "right")
def _(folder):
    (folder / "m.csv").write_bytes(b"\xef\xbb\xbf\xef\xbb\xbf" + TABLE.format(s=",").encode())
    assert read_manifest(folder / "m.csv").values.tolist() == [["a.npy", "AP2", "Jäger"]]


TWO = {
    "1 and 1.0": ("1", "1.0"),
    "1 and 1.": ("1", "1."),
    "a space behind": ("P 1", "P 1 "),
    "two spaces between": ("P 1", "P  1"),
    "capitals": ("Jane", "JANE"),
    "an accent of two characters": ("Jäger", unicodedata.normalize("NFD", "Jäger")),
    "a space that does not break": ("P 1", "P\u00a01"),
    "wide digits": ("12", "\uff11\uff12"),
    "a space of no width": ("P1", "P\u200b1"),
    "a hyphen that does not show": ("P1", "P\u00ad1"),
    "a mark of direction": ("P1", "\u200eP1"),
}


@fault("identity", "one patient spelled in two ways, {what}, in train and test", says="more than one split", what=TWO)
def _(folder, what):
    a, b = TWO[what]
    (folder / "m.csv").write_text(f"path,view,patient,split\na,AP2,{a},train\nb,AP2,{b},test\n", encoding="utf-8")
    read_manifest(folder / "m.csv")


@fault("identity", "one patient spelled in two ways, {what}, without splits", "right", what=TWO)
def _(folder, what):
    a, b = TWO[what]
    (folder / "m.csv").write_text(f"path,view,patient\na,AP2,{a}\nb,AP4,{b}\nc,AP4,x\n", encoding="utf-8")
    f = read_manifest(folder / "m.csv")
    assert f.patient.nunique() == 2 and f.attrs["noticed"] in ({ONE_PERSON: 1}, {})


@fault("identity", "patients {a} and {b} are two", "right", a=("1", "p1"), b=("01", "1.5", "11", "p1b"))
def _(folder, a, b):
    (folder / "m.csv").write_text(f"path,view,patient\na,AP2,{a}\nb,AP4,{b}\n")
    assert read_manifest(folder / "m.csv").patient.tolist() == [a, b]


@fault(
    "identity", "patients as {type} in Parquet, the same as text in CSV", "right", type=("int64", "float64", "Int64")
)
def _(folder, type):
    f = pd.DataFrame(dict(path=["a", "b"], view=["AP2", "AP4"], patient=[1, 2]))
    f.to_csv(folder / "m.csv", index=False)
    f.astype({"patient": type}).to_parquet(folder / "m.parquet")
    a, b = (read_manifest(folder / n).patient.map(lambda p: p.split(".")[0]).tolist() for n in ("m.csv", "m.parquet"))
    assert a == b


@fault(
    "manifest",
    "a split called {word}",
    "right",
    word=("TRAIN", "Training", "valid", "validation", "dev", "TEST", "testing"),
)
def _(folder, word):
    (folder / "m.csv").write_text(f"path,view,patient,split\na,AP2,1,{word}\n")
    assert read_manifest(folder / "m.csv").split[0] == {"t": "train", "v": "val", "d": "val"}[word[0].lower()].replace(
        "train", "test" if word.lower().startswith("test") else "train"
    )


@fault("manifest", "paths as Windows writes them", "right")
def _(folder):
    (folder / "m.csv").write_text("path,view,patient\nx\\a.npy,AP2,1\n")
    assert read_manifest(folder / "m.csv").path[0] == "x/a.npy"


@fault("manifest", "{n} patients for three splits", says="too few", n=(1, 4))
def _(folder, n):
    index_manifest(files.manifest(folder / "in", n), folder / "store", size=32)


@fault("manifest", "the same file, byte by byte, as two patients", says="the same file")
def _(folder):
    m = files.manifest(folder / "in")
    shutil.copy(folder / "in" / "0.npy", folder / "in" / "1.npy")
    index_manifest(m, folder / "store", size=32)


@fault(
    "manifest",
    "a store that was indexed with other {what}",
    says="other files or settings",
    slow=True,
    what=("size", "bits", "marks"),
)
def _(folder, what):
    m = files.manifest(folder / "in")
    index_manifest(m, folder / "store", size=32)
    index_manifest(
        m,
        folder / "store",
        **(dict(size=32) | dict(size=dict(size=40), bits=dict(bits=8), marks=dict(marks="keep"))[what]),
    )


@fault("manifest", "an index that stopped half way", "resumed", slow=True)
def _(folder):
    m = files.manifest(folder / "in")
    data = (folder / "in" / "5.npy").read_bytes()
    whole = index_manifest(m, folder / "whole", size=32)
    (folder / "in" / "5.npy").write_bytes(data[:100])
    try:
        index_manifest(m, folder / "store", size=32)
        raise AssertionError("accepted")
    except ValueError:
        pass
    (folder / "in" / "5.npy").write_bytes(data)
    assert index_manifest(m, folder / "store", size=32).index["md5"] == whole.index["md5"]


def camus(folder, n: int = 2) -> None:
    for i in range(n):
        for v in ("2CH", "4CH"):
            p = folder / f"patient{i:04d}" / f"patient{i:04d}_{v}_half_sequence.nii.gz"
            p.parent.mkdir(exist_ok=True, parents=True)
            p.write_bytes(b"x")


@fault("layout", "CAMUS {what}", "right", what=("as it is", "with a Mac's ._ files", "beside @eaDir and __MACOSX"))
def _(folder, what):
    camus(folder)
    if "._" in what:
        for p in list(folder.rglob("*.nii.gz")):
            p.with_name("._" + p.name).write_bytes(b"\0\5\x16\7")
    elif "eaDir" in what:
        camus(folder / "@eaDir")
        camus(folder / "__MACOSX")
    f = layout_manifest("camus", folder)
    assert len(f) == 4 and f.patient.nunique() == 2
    assert f.attrs["noticed"].get("hidden or system files, left out", 0) == dict(a=0, w=4, b=8)[what[0]]


LISTS = {
    "as it is": ("FileName,EF,Split\n0XA,50,TRAIN\n", None),
    "with endings": ("FileName,EF,Split\n0XA.avi,50,TRAIN\n", None),
    "with endings in capitals": ("FileName,EF,Split\n0XA.AVI,50,TRAIN\n", None),
    "in latin-1": ("FileName,EF,Split,Note\n0XA,50,TRAIN,f\xfcr\n", None),
    "apart by semicolons": ("FileName;EF;Split\n0XA;50;TRAIN\n", None),
    "splits in small letters": ("FileName,EF,Split\n0XA,50,train\n", None),
    "without Split": ("FileName,EF\n0XA,50\n", None),
    "an empty FileName": ("FileName,EF,Split\n,50,TRAIN\n", "row 2 of FileList.csv: no FileName"),
    "splits in numbers": ("FileName,EF,Split\n0XA,50,3\n", "Split must be TRAIN, VAL or TEST"),
    "without FileName": ("Name,EF\n0XA,50\n", "lacks the columns"),
    "an empty file": ("", "empty"),
}


@fault("layout", "EchoNet's list: {what}", "right", what=LISTS)
def _(folder, what):
    text, message = LISTS[what]
    (folder / "Videos").mkdir()
    (folder / "Videos" / "0XA.AVI").write_bytes(b"x")
    (folder / "FileList.csv").write_bytes(text.encode("latin-1"))
    try:
        f = layout_manifest("echonet", folder)
    except ValueError as e:
        assert message and message in str(e), str(e)
        return
    assert message is None and f.path.tolist() == ["Videos/0XA.AVI"]
    assert f.get("split", pd.Series(["train"])).tolist() == ["train"] and f.patient[0].upper().startswith("0XA")


@fault(
    "layout",
    "TMED-2 beside {what}",
    "right",
    what=("nothing", "._labels.csv", "an empty table", "another table", "a table that is none"),
)
def _(folder, what):
    for i in range(3):
        (folder / f"{i}s1_0.png").write_bytes(b"x")
    (folder / "labels.csv").write_text(
        "query_key,view_label\n0s1_0.png,PLAX\n1s1_0.png,A4C\n2s1_0.png,Other\n9s1_0.png,PLAX\n"
    )
    more = {
        "._labels.csv": ("._labels.csv", b"\0\5\x16\7\xff\xfe" + bytes(80)),
        "an empty table": ("e.csv", b""),
        "another table": ("o.csv", b"a,b\n1,2\n"),
        "a table that is none": ("n.csv", bytes(range(256))),
    }.get(what)
    if more:
        (folder / more[0]).write_bytes(more[1])
    f = layout_manifest("tmed2", folder)
    assert f.view.tolist() == ["PLAX", "AP4"] and f.patient.tolist() == ["0", "1"]
    assert sum(f.attrs["noticed"].values()) == (2 if what == "nothing" else 3)


@fault(
    "layout",
    "{what} as {kind}",
    says="holds nothing that looks like|no folder",
    what=("an empty folder", "no folder"),
    kind=("camus", "echonet", "tmed2"),
)
def _(folder, what, kind):
    layout_manifest(kind, folder if what == "an empty folder" else folder / "nowhere")


KEPT = {  # what lies in an image folder -> does it stay a class or an image?
    "train/a/.DS_Store": False,
    "train/a/Thumbs.db": False,
    "train/desktop.ini": False,
    "train/a/._0.png": False,
    "train/__MACOSX/a/0.png": False,
    "train/@eaDir/0.png": False,
    "train/.ipynb_checkpoints/0.png": False,
    "train/a/@eaDir/0.png": False,
    "train/a/notes.txt": False,
    "train/a/p1/0.png": True,
    "train/a/p1/deep/er/0.png": True,
    "train/a/7.PNG": True,
    "train/a/dir.png/0.png": True,
}


@fault("folder", "{name} in an image folder", "right", name=KEPT)
def _(folder, name):
    import warnings

    files.image_folder(folder)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes((folder / "train" / "a" / "0.png").read_bytes() if KEPT[name] else b"\0\5\x16\7")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        s = from_folder(folder, sizes=[1, 1])
    assert s.facts()["images"]["train"] == 4 + KEPT[name]
    inside = name.startswith("train/a/") and name != "train/a/7.PNG"
    assert not inside or "left out" in str(heard[0].message) or "within a class" in str(heard[0].message)


@fault("folder", "class names with accents of two characters in train", "right")
def _(folder):
    files.image_folder(folder, ("café", "b"))
    (folder / "train" / "café").rename(folder / "train" / unicodedata.normalize("NFD", "café"))
    assert from_folder(folder, sizes=[1, 1]).class_names == ["b", "café"]


@fault(
    "folder",
    "{what}",
    says="holds the classes|there is no|no image|twice",
    what=("a class missing in val", "val called valid", "an empty class", "a class twice"),
)
def _(folder, what):
    files.image_folder(folder, ("café", "b"))
    if what == "a class missing in val":
        shutil.rmtree(folder / "val" / "b")
    elif what == "val called valid":
        (folder / "val").rename(folder / "valid")
    elif what == "an empty class":
        for p in (folder / "train" / "b").iterdir():
            p.unlink()
    else:
        shutil.copytree(folder / "train" / "café", folder / "train" / unicodedata.normalize("NFD", "café"))
    from_folder(folder, sizes=[1, 1])


@fault(
    "folder",
    "a patient's folder in {parts}",
    says="patients are in two splits",
    parts=("train val", "train test", "val test"),
)
def _(folder, parts):
    files.image_folder(folder)
    for part in ("train", "val", "test"):
        for name in ("a", "b"):
            for i in range(2):
                p = folder / part / name / f"{i}.png"
                who = folder / part / name / (f"{part}{i}" if i or part not in parts.split() else "one")
                who.mkdir()
                p.rename(who / p.name)
    from_folder(folder, sizes=[1, 1], patients=True)


@fault("folder", "images beside patients' folders", says="no patient's folder")
def _(folder):
    from_folder(files.image_folder(folder), sizes=[1, 1], patients=True)


@fault("folder", "images of endings .jfif, .ppm, .gif and .jp2", "right")
def _(folder):
    files.image_folder(folder)
    x = np.zeros((12, 12, 3), np.uint8)
    for ending, kind in ((".jfif", "JPEG"), (".ppm", "PPM"), (".gif", "GIF"), (".jp2", "JPEG2000")):
        (folder / "val" / "a" / f"9{ending}").write_bytes(files.picture(x, kind))
    assert from_folder(folder, sizes=[1, 1]).facts()["images"]["val"] == 8
