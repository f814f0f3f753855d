"A planted name must not be in what we say, write, or print."

from __future__ import annotations

import json
import os
import warnings

import numpy as np
from classimpression.echo.readers import READERS, Limits, read_mask, read_series

from . import Refusal, command, fault, files

NAME = ("Doe", "Jane", "19480317")
STILL = Limits(min_frames=1)


def silent(folder, run) -> None:
    "Run something; neither what it says, nor what it writes into `data`, may hold the name."
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            said = run()
        except Refusal as e:
            said = str(e)
    written = [p for p in (folder / "data").rglob("*") if p.is_file()]
    text = f"{said} {[str(w.message) for w in heard]} {[str(p.relative_to(folder)) for p in written]}".encode()
    text += b"".join(p.read_bytes() for p in written)
    shown = [w for w in NAME if w.encode() in text]
    assert not shown, f"{shown} in {text[:300]!r}"
    assert "Traceback" not in str(said)


def index(folder, *more):
    (folder / "data").mkdir(exist_ok=True)
    return command("data", "index", *more, "--root", folder / "data", "--size", "32")


@fault("names", "an ending that is a name", says="ending is unknown", hides=NAME)
def _(folder):
    (folder / "Doe.Jane").write_bytes(b"x")
    read_series(folder / "Doe.Jane")


@fault("names", "a damaged file {ending} whose name is a patient's", hides=NAME, ending=READERS)
def _(folder, ending):
    p = folder / f"{files.SECRET}{ending}"
    p.write_bytes(b"damaged " + files.SECRET.encode() * 99)
    read_series(p, STILL)


@fault("names", "columns swapped in a manifest", "right")
def _(folder):
    m = files.manifest(folder / "in")
    m.write_text(m.read_text().replace("path,view,patient", "path,patient,view"))
    silent(folder, lambda: index(folder, m))


@fault("names", "a manifest with a row too long, which holds a name", "right")
def _(folder):
    m = files.manifest(folder / "in")
    m.write_text(m.read_text() + "Doe, Jane.npy,AP2,Doe, Jane\n")
    silent(folder, lambda: index(folder, m))


@fault(
    "names",
    "a file of a manifest that is {what}",
    "right",
    what=("missing", "damaged", "a folder", "without permission", "a link out"),
)
def _(folder, what):
    m = files.manifest(folder / "in")
    bad = folder / "in" / f"{files.SECRET}.npy"
    m.write_text(m.read_text().replace("3.npy", bad.name))
    if what == "damaged":
        bad.write_bytes(b"x")
    elif what == "a folder":
        bad.mkdir()
    elif what == "without permission":
        np.save(bad, files.heart())
        bad.chmod(0)
    elif what == "a link out":
        os.symlink("/etc/hostname", bad)
    silent(folder, lambda: index(folder, m))


@fault("names", "a mask that is {what}", "right", what=("missing", "damaged", "a folder"))
def _(folder, what):
    mask = folder / "in" / f"{files.SECRET}.png"
    m = files.manifest(folder / "in")
    if what == "damaged":
        mask.write_bytes(b"x")
    elif what == "a folder":
        mask.mkdir()
    silent(folder, lambda: index(folder, m, "--mask", mask))


@fault("names", "a damaged mask", says="the mask cannot be read", hides=NAME)
def _(folder):
    (folder / f"{files.SECRET}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    read_mask(folder / f"{files.SECRET}.png")


@fault("names", "a collection whose folders are names (--layout camus)", "right", slow=True)
def _(folder):
    for i in range(6):
        p = folder / "in" / f"{files.SECRET}-{i}" / f"{files.SECRET}_2CH_half_sequence.nii.gz"
        p.parent.mkdir(parents=True)
        files.nifti(p, files.heart(i))
    silent(folder, lambda: index(folder, "--layout", "camus", "--files", folder / "in"))
    assert not list((folder / "data").glob("*.csv"))


@fault("names", "DICOM whose header has odd values that libraries quote", "right")
def _(folder):
    import pydicom

    (folder / "in").mkdir()
    rows = ["path,view,patient"]
    for i in range(6):
        p = files.dicom(folder / "in" / f"{i}.dcm", files.heart(i))
        ds = pydicom.dcmread(p)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ds.PatientName, ds.StudyDate = "Doe^Jane" * 30, "Doe 1948"
            ds.save_as(p)
        rows.append(f"{i}.dcm,AP4,{i}")
    (folder / "in" / "m.csv").write_text("\n".join(rows))
    silent(folder, lambda: index(folder, folder / "in" / "m.csv"))


@fault("names", "a report of series that cannot be read", "right", slow=True)
def _(folder):
    m = files.manifest(folder / "in", 7)
    (folder / "in" / "2.npy").write_bytes(files.SECRET.encode())
    silent(folder, lambda: index(folder, m, "--skip-unreadable"))
    report = json.loads((folder / "data" / "echo.report.json").read_text())
    assert [r["row"] for r in report["unreadable"]] == [4] and report["noticed"][
        "series that cannot be read, left out"
    ] == 1


@fault("names", "a table of a layout is written only where it is asked for", "right")
def _(folder):
    (folder / "in" / "patient1").mkdir(parents=True)
    (folder / "in" / "patient1" / "patient1_2CH_half_sequence.nii.gz").write_bytes(b"x")
    index(folder, "--layout", "camus", "--files", folder / "in", "--list", folder / "list.csv")
    assert "patient1_2CH" in (folder / "list.csv").read_text() and not list((folder / "data").iterdir())
