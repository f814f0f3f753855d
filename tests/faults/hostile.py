"Files that ask for too much, run something, or leave their folder."

from __future__ import annotations

import gzip
import io
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from classimpression.core.errors import DataError
from classimpression.data import read_npz
from classimpression.echo.manifest import index_manifest, read_manifest
from classimpression.echo.readers import READERS, Limits, read_series
from classimpression.scenarios import from_folder, read_image

from . import fault, files, peak

SMALL = Limits(max_bytes=50_000_000)
STILL = Limits(min_frames=1)


def refused_within(megabytes: int, path: Path, says: str, limits: Limits = SMALL) -> None:
    "Read a file that has to be refused; the process may grow by so much meanwhile."
    with peak() as grown:
        try:
            read_series(path, limits)
        except DataError as e:
            said = str(e)
        else:
            raise AssertionError("accepted")
    assert grown[0] < megabytes << 20, f"{grown[0]:,} bytes"
    raise DataError(said)


@fault("hostile", "a deflated DICOM file of 300 KB that unpacks to 300 MB", says="unpacks to more than", slow=True)
def _(folder):
    refused_within(120, files.bomb(folder / "a.dcm", files.moving(), 300), "", Limits())


@fault(
    "hostile",
    "a deflated DICOM file whose header declares {what} too much",
    says="{what}",
    what=("max_frames", "max_pixels", "max_bytes"),
)
def _(folder, what):
    more = dict(max_frames=dict(NumberOfFrames=10**7), max_pixels=dict(Rows=60000, Columns=60000))
    more["max_bytes"] = dict(Rows=2000, Columns=2000, NumberOfFrames=1900)
    refused_within(60, files.dicom(folder / "a.dcm", files.moving(), files.DEFLATED, **more[what]), what)


@fault(
    "hostile",
    "a deflated DICOM file without its first 128 bytes, 100 MB unpacked",
    says="unpacks to more than",
    slow=True,
)
def _(folder):
    p = files.bomb(folder / "a.dcm", files.moving(), 100)
    p.write_bytes(p.read_bytes()[132:])
    refused_within(80, p, "")


@fault("hostile", "NIfTI in gzip that unpacks to 200 MB", says="max_bytes", slow=True)
def _(folder):
    files.nifti(folder / "b.nii", files.moving())
    with gzip.open(folder / "a.nii.gz", "wb", 1) as f:
        f.write((folder / "b.nii").read_bytes())
        for _ in range(200):
            f.write(bytes(1 << 20))
    refused_within(40, folder / "a.nii.gz", "")


@fault("hostile", "MATLAB that unpacks to 100 MB", says="max_bytes", slow=True)
def _(folder):
    bomb = zlib.compress(bytes(100 << 20), 1)
    head = b"MATLAB 5.0".ljust(124) + b"\x00\x01IM" + struct.pack("<II", 15, len(bomb))
    (folder / "a.mat").write_bytes(head + bomb)
    refused_within(40, folder / "a.mat", "")


@fault(
    "hostile",
    "DICOM whose header declares {what} too much",
    says="{what}",
    what=("max_frames", "max_pixels", "max_seconds", "max_bytes"),
)
def _(folder, what):
    more = dict(
        max_frames=dict(NumberOfFrames=10**8),
        max_pixels=dict(Rows=60000, Columns=60000),
        max_seconds=dict(FrameTime="99999"),
        max_bytes=dict(Rows=2000, Columns=2000, NumberOfFrames=1900),
    )
    refused_within(30, files.dicom(folder / "a.dcm", files.moving(), **more[what]), what)


@fault(
    "hostile",
    "DICOM whose {kind} frames are larger than its header says",
    says="pixels, its header says|GDCM",
    kind=("JPEG", "JPEG 2000", "JPEG Lossless"),
)
def _(folder, kind):
    big = np.zeros((3000, 4000), np.uint8)
    uid, frame = {
        "JPEG": (files.JPEG, lambda: files.picture(big, "JPEG")),
        "JPEG 2000": (files.J2K, lambda: files.picture(big[:600, :800], "JPEG2000", no_jp2=True)),
        "JPEG Lossless": (files.LOSSLESS, lambda: files.jpeg_lossless(big[:50, :70])),
    }[kind]
    refused_within(60, files.dicom(folder / "a.dcm", files.moving(), uid, [frame()] * 4), "")


@fault("hostile", "a {kind} of 60000x60000 pixels", says="pixels", kind=("PNG", "GIF", "BMP", "TIFF"))
def _(folder, kind):
    p = folder / f"a.{kind.lower()}"
    data = bytearray(files.picture(np.zeros((8, 8), np.uint8), kind))
    if kind == "PNG":
        data[16:24] = struct.pack(">II", 60000, 60000)
        data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    elif kind == "GIF":
        data[6:10] = struct.pack("<HH", 60000, 60000)
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", 60000, 60000)
    else:
        for tag in (256, 257):
            at = next(i for i in range(8, len(data)) if data[i : i + 2] == struct.pack("<H", tag))
            data[at : at + 12] = struct.pack("<HHIHH", tag, 3, 1, 60000, 0)
    p.write_bytes(data)
    refused_within(30, p, "", STILL)


@fault("hostile", "a {kind} of 60000x60000 pixels in an image folder", says="pixels", kind=("PNG",))
def _(folder, kind):
    data = bytearray(files.picture(np.zeros((8, 8), np.uint8)))
    data[16:24] = struct.pack(">II", 60000, 60000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    (folder / "a.png").write_bytes(data)
    read_image(folder / "a.png", 1, None)


@fault(
    "hostile",
    "MATLAB whose {what}",
    says="longer than the file|unpacks to more|no struct|no DicomImage|must be numbers|declares|cannot be read",
    what=("lengths are huge", "struct has no fields", "dimensions are negative", "numbers are cells", "tags are zeros"),
)
def _(folder, what):
    data = bytearray(files.matlab(folder / "a.mat", files.moving(), packed=False).read_bytes())
    at = data.find(b"DicomImage")
    if what == "lengths are huge":
        data[132:136] = struct.pack("<I", 2**31)
    elif what == "struct has no fields":
        data[at : at + 10] = bytes(10)
    elif what == "dimensions are negative":
        i = data.find(struct.pack("<3i", 48, 64, 4))
        data[i : i + 12] = struct.pack("<3i", -48, 64, -4)
    elif what == "numbers are cells":
        i = data.find(struct.pack("<3i", 48, 64, 4))
        data[i - 16] = 1
    else:
        data[at + 200 : at + 400] = bytes(200)
        data[136:200] = bytes(64)
    (folder / "a.mat").write_bytes(data)
    read_series(folder / "a.mat")


@fault("hostile", "a GIF of 3000 frames", says="max_frames", slow=True)
def _(folder):
    x = np.arange(3000, dtype=np.uint8)[:, None, None] + np.zeros((1, 2, 2), np.uint8)
    refused_within(60, files.animated(folder / "a.gif", x), "", Limits(max_frames=100))


@fault("hostile", "a GIF that lasts an hour", says="max_seconds")
def _(folder):
    read_series(files.animated(folder / "a.gif", files.moving(), duration=600_000))


@fault("hostile", "a video of more frames than the limit", says="max_frames")
def _(folder):
    read_series(files.video(folder / "a.mp4", files.moving(20), "libx264"), Limits(max_frames=7))


@fault(
    "hostile",
    "a NumPy file that declares {shape}",
    says="max_|holds no frames",
    shape=((10**9, 2, 2), (9, 10**6, 10**6), (2000, 2000, 1900), (0, 5, 5), (-4, 5, 5)),
)
def _(folder, shape):
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, dict(descr="|u1", fortran_order=False, shape=shape))
    (folder / "a.npy").write_bytes(out.getvalue())
    refused_within(20, folder / "a.npy", "")


@fault("hostile", "a NumPy file that declares more than it holds", says="cut off")
def _(folder):
    np.save(folder / "a.npy", np.zeros((100, 600, 600), np.uint8))
    os.truncate(folder / "a.npy", 1000)
    refused_within(20, folder / "a.npy", "")


@fault("hostile", "a NumPy file of {what}", says="only plain numbers", what=("objects", "text", "records"))
def _(folder, what):
    x = {"objects": np.array([{"x": 1}], dtype=object), "text": np.array(["a"]), "records": np.zeros(3, "u1,u1")}[what]
    np.save(folder / "a.npy", x, allow_pickle=True)
    read_series(folder / "a.npy")


@fault("hostile", "an npz file with an array of objects", says="pickled objects never")
def _(folder):
    np.savez(folder / "a.npz", x=np.array([{"x": 1}], dtype=object))
    read_npz(folder / "a.npz")


@fault("hostile", "an npz file of 1 MB that declares 8 GB", says="limit is|declares")
def _(folder):
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, dict(descr="|u1", fortran_order=False, shape=(8 * 10**9,)))
    with zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("x.npy", out.getvalue() + bytes(10**6))
    read_npz(folder / "a.npz")


@fault(
    "hostile",
    "NIfTI whose header declares {what}",
    says="max_|cannot be read|axes|no frames",
    what=("30000 frames", "30000x30000", "7 axes", "an offset of 1 GB", "a text type"),
)
def _(folder, what):
    data = bytearray(files.nifti(folder / "a.nii", files.moving()).read_bytes())
    where = {
        "30000 frames": (46, struct.pack("<h", 30000)),
        "30000x30000": (42, struct.pack("<2h", 30000, 30000)),
        "7 axes": (40, struct.pack("<8h", 7, 2, 2, 2, 2, 2, 2, 2)),
        "an offset of 1 GB": (108, struct.pack("<f", 1e9)),
        "a text type": (70, struct.pack("<h", 999)),
    }[what]
    data[where[0] : where[0] + len(where[1])] = where[1]
    (folder / "a.nii").write_bytes(data)
    refused_within(30, folder / "a.nii", "")


@fault("hostile", "NIfTI with an extension of 1 GB in gzip", says="max_bytes|cannot be read")
def _(folder):
    data = bytearray(files.nifti(folder / "a.nii", files.moving()).read_bytes())
    data[108:112] = struct.pack("<f", 1.0e9 + 352)
    data[348:352] = b"\1\0\0\0"
    head = bytes(data[:352]) + struct.pack("<ii", 10**9, 0)
    with gzip.open(folder / "a.nii.gz", "wb", 1) as f:
        f.write(head)
        for _ in range(40):
            f.write(bytes(1 << 20))
    refused_within(30, folder / "a.nii.gz", "", Limits(max_bytes=10_000_000))


@fault(
    "hostile",
    "{kind} in a file called .png",
    says="PostScript|HTML|cannot read|Photoshop|damaged|PDF|no picture",
    kind=("PostScript", "PDF", "SVG", "Photoshop", "FITS"),
)
def _(folder, kind):
    data = {
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(touch hacked) system\n",
        "PDF": b"%PDF-1.4\n",
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "Photoshop": b"8BPS\0\1" + bytes(64),
        "FITS": b"SIMPLE  =                    T".ljust(2880),
    }[kind]
    (folder / "a.png").write_bytes(data)
    read_image(folder / "a.png", 1, None)


@fault("hostile", "an empty file called {ending}", ending=READERS)
def _(folder, ending):
    (folder / f"{files.SECRET}{ending}").touch()
    read_series(folder / f"{files.SECRET}{ending}", STILL)


@fault("hostile", "a file of zeros called {ending}", hides=(files.SECRET, "Doe"), ending=READERS)
def _(folder, ending):
    (folder / f"{files.SECRET}{ending}").write_bytes(bytes(5000))
    read_series(folder / f"{files.SECRET}{ending}", STILL)


@fault(
    "hostile",
    "a manifest whose path is {what}",
    slow=True,
    says="outside the root|zero byte|cannot be read",
    what=("../a.npy", "/etc/passwd", "a\\..\\..\\b.npy", "a link out", "links in a circle", "5,000 letters"),
)
def _(folder, what):
    m = files.manifest(folder / "in")
    np.save(folder / "a.npy", files.heart())
    os.symlink(folder / "a.npy", folder / "in" / "link.npy")
    os.symlink(folder / "in" / "circle.npy", folder / "in" / "circle.npy")
    path = {"a link out": "link.npy", "links in a circle": "circle.npy", "5,000 letters": "a" * 5000}.get(what, what)
    m.write_text(m.read_text().replace("3.npy", path))
    index_manifest(m, folder / "store", size=32)


@fault("hostile", "an image folder with a link out of it", says="leaves its folder")
def _(folder):
    files.image_folder(folder / "in")
    (folder / "secret.png").write_bytes(files.picture(np.zeros((12, 12, 3), np.uint8)))
    os.symlink(folder / "secret.png", folder / "in" / "val" / "a" / "9.png")
    from_folder(folder / "in", sizes=[1, 1])


@fault("hostile", "an image folder with a folder that links to itself", "right")
def _(folder):
    files.image_folder(folder)
    os.symlink(folder / "val" / "a", folder / "val" / "a" / "again")
    from_folder(folder, sizes=[1, 1])


@fault("hostile", "an image folder with a pipe called 9.png", "right")
def _(folder):
    files.image_folder(folder)
    os.mkfifo(folder / "val" / "a" / "9.png")
    from_folder(folder, sizes=[1, 1])


@fault(
    "hostile",
    "a manifest with {what}",
    says="manifest|fields|zero byte|empty|lacks|quote",
    what=("a field of 200,000 letters", "a quote that does not close", "10,000 columns", "random bytes"),
)
def _(folder, what):
    text = {
        "a field of 200,000 letters": b"path,view,patient\n" + b"a" * 200_000 + b",AP9,1\n",
        "a quote that does not close": b'path,view,patient\n"a.npy,AP2,1\n',
        "10,000 columns": b"x," * 10_000 + b"\n",
        "random bytes": np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8).tobytes(),
    }[what]
    (folder / "m.csv").write_bytes(text)
    read_manifest(folder / "m.csv")
