"Whole files that were called damaged, damaged ones that were read, and what a message has to name."

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np
from classimpression.echo import readers
from classimpression.echo.readers import Limits, read_series
from classimpression.scenarios import read_image

from . import fault, files

STILL = Limits(min_frames=1)
X = files.moving()


@fault("diagnosis", "DICOM in {name}", "right", name=("plain", "deflated", "RLE", "JPEG", "JPEG 2000"))
def _(folder, name):
    uid = dict(
        zip(
            ("plain", "deflated", "RLE", "JPEG", "JPEG 2000"),
            (files.EXPLICIT, files.DEFLATED, files.RLE, files.JPEG, files.J2K),
        )
    )[name]
    coded = {"JPEG": [files.picture(f, "JPEG", quality=95) for f in X]}
    coded["JPEG 2000"] = [files.picture(f, "JPEG2000", no_jp2=True) for f in X]
    y = read_series(files.dicom(folder / "a.dcm", X, uid, coded.get(name)))
    assert np.abs(y.astype(int) - X).max() <= (12 if name == "JPEG" else 0)


def without_gdcm(do):
    "Read as on a machine without GDCM."
    from pydicom.pixels.decoders.base import Decoder

    was = Decoder.is_available
    Decoder.is_available = property(lambda self: "gdcm" not in self._available and was.fget(self) or False)
    try:
        do()
    finally:
        Decoder.is_available = was


@fault(
    "diagnosis",
    "DICOM in {name} without a decoder",
    says=r"{name}.*1\.2\.840\.10008.*pip install python-gdcm",
    hides=files.SECRET,
    name=("JPEG Lossless", "JPEG-LS"),
)
def _(folder, name):
    uid = files.LOSSLESS if name == "JPEG Lossless" else files.JPEG_LS
    p = files.dicom(folder / "a.dcm", X, uid, [files.jpeg_lossless(f) for f in X])
    without_gdcm(lambda: read_series(p))


@fault("diagnosis", "DICOM in an unknown transfer syntax", says=r"unknown transfer syntax 1\.2\.3\.4")
def _(folder):
    read_series(files.dicom(folder / "a.dcm", X, "1.2.3.4", [b"\0" * 64] * 4))


@fault("diagnosis", "DICOM that holds {name}", says="video.*{name}", name=("MPEG-4 AVC", "MPEG2", "HEVC"))
def _(folder, name):
    uid = {
        "MPEG-4 AVC": "1.2.840.10008.1.2.4.102",
        "MPEG2": "1.2.840.10008.1.2.4.100",
        "HEVC": "1.2.840.10008.1.2.4.107",
    }[name]
    read_series(files.dicom(folder / "a.dcm", X, uid, [b"\0\0\0\x18ftypisom" + bytes(64)]))


@fault("diagnosis", "DICOM that holds a whole MPEG-4 video", "right")
def _(folder):
    data = files.video(folder / "a.mp4", X, "libx264").read_bytes()
    y = read_series(files.dicom(folder / "a.dcm", X, "1.2.840.10008.1.2.4.102", [data + bytes(len(data) % 2)]))
    assert y.shape == X.shape and np.abs(y.astype(int) - X).mean() < 6


@fault("diagnosis", "DICOM without its first 128 bytes, {what}", "right", what=("with a description", "without any"))
def _(folder, what):
    import pydicom

    p = files.dicom(folder / "a.dcm", X)
    if what == "with a description":
        p.write_bytes(p.read_bytes()[132:])
    else:
        ds = pydicom.dcmread(p)
        bare = pydicom.Dataset()
        bare.update({e.tag: e for e in ds})
        pydicom.dcmwrite(p, bare, implicit_vr=True, little_endian=True, enforce_file_format=False)
    assert np.array_equal(read_series(p), X)


@fault("diagnosis", "DICOM without NumberOfFrames: {n} {kind} frames", "right", n=(1, 4), kind=("plain", "JPEG", "RLE"))
def _(folder, n, kind):
    import pydicom

    x = X[:n]
    uid = dict(plain=files.EXPLICIT, JPEG=files.JPEG, RLE=files.RLE)[kind]
    p = files.dicom(
        folder / "a.dcm", x, uid, [files.picture(f, "JPEG", quality=95) for f in x] if kind == "JPEG" else None
    )
    ds = pydicom.dcmread(p)
    del ds.NumberOfFrames
    ds.save_as(p)
    y = read_series(p, STILL)
    assert y.shape == x.shape and np.abs(y.astype(int) - x).max() <= 12


@fault("diagnosis", "DICOM that declares {n} frames and holds 4", says="cut off|NumberOfFrames is wrong", n=(2, 5))
def _(folder, n):
    read_series(files.dicom(folder / "a.dcm", X, NumberOfFrames=n))


@fault("diagnosis", "DICOM that declares {n} JPEG frames and holds 4", n=(5, 9))
def _(folder, n):
    read_series(files.dicom(folder / "a.dcm", X, files.JPEG, [files.picture(f, "JPEG") for f in X], NumberOfFrames=n))


@fault("diagnosis", "DICOM without pixels", says="without pixels")
def _(folder):
    read_series(files.dicom(folder / "a.dcm", X, Rows=None, PixelData=None))


@fault("diagnosis", "DICOM with every thousandth byte changed", "right")
def _(folder):
    p = files.dicom(folder / "a.dcm", X)
    data = bytearray(p.read_bytes())
    data[-3000::1000] = b"\xff\xff\xff"  # in the pixels: nothing tells
    p.write_bytes(data)
    assert read_series(p).shape == X.shape


@fault(
    "diagnosis",
    "a NIfTI file called {ending}, {what}",
    "right",
    ending=(".nii", ".nii.gz"),
    what=("packed", "not packed"),
)
def _(folder, ending, what):
    data = files.nifti(folder / "b.nii", X).read_bytes()
    (folder / f"a{ending}").write_bytes(gzip.compress(data) if what == "packed" else data)
    assert np.array_equal(read_series(folder / f"a{ending}"), X)


@fault("diagnosis", "one byte of a packed NIfTI file changed", says="damaged|cut off|cannot be read")
def _(folder):
    p = files.nifti(folder / "a.nii.gz", X)
    data = bytearray(p.read_bytes())
    data[len(data) // 2] ^= 16
    p.write_bytes(data)
    read_series(p)


@fault(
    "diagnosis", "a {what} video trimmed without encoding at {at} s", "right", what=("mp4", "mov"), at=(0.4, 1.0, 2.0)
)
def _(folder, what, at):
    files.video(folder / "a.mp4", files.moving(60), "libx264", gop=100)
    y = read_series(files.trim(folder / "a.mp4", folder / f"b.{what}", at))
    assert abs(len(y) - (60 - 25 * at)) <= 1


@fault("diagnosis", "AVI ({codec}) with {n} dropped frames", "right", codec=("mpeg4", "mjpeg"), n=(3, 5, 40))
def _(folder, codec, n):
    times = [t + (n if t > 9 else 0) for t in range(20)]
    assert len(read_series(files.video(folder / "a.avi", files.moving(20), codec, pts=times))) == 20


@fault("diagnosis", "AVI at half of the declared rate", "right")
def _(folder):
    assert len(read_series(files.video(folder / "a.avi", files.moving(20), "mjpeg", pts=list(range(0, 40, 2))))) == 20


@fault(
    "diagnosis",
    "AVI whose header says {what}",
    "right",
    what=("0 frames", "0 frames per second", "a larger RIFF than the file, but all frames"),
)
def _(folder, what):
    p = files.video(folder / "a.avi", files.moving(20), "mjpeg")
    b = bytearray(p.read_bytes())
    i, j = b.find(b"avih") + 8, b.find(b"strh") + 8
    if what == "0 frames":
        b[i + 16 : i + 20] = b[j + 32 : j + 36] = bytes(4)
    elif what == "0 frames per second":
        b[i : i + 4], b[j + 20 : j + 28] = bytes(4), bytes(8)
    else:
        b[4:8] = struct.pack("<I", 1 << 30)
    p.write_bytes(b)
    assert len(read_series(p)) == 20


@fault("diagnosis", "AVI cut at {share} of its length", says="cut off|cannot be read", share=(0.3, 0.5, 0.7, 0.9))
def _(folder, share):
    p = files.video(folder / "a.avi", files.moving(40), "mjpeg")
    os.truncate(p, int(share * p.stat().st_size))
    read_series(p)


def fast_start(path: Path) -> Path:
    "An MP4 file whose table of frames stands in front, as web servers want it, so that a cut leaves it whole."
    import av

    copy = path.with_name("fast.mp4")
    with av.open(str(path)) as i, av.open(str(copy), "w", options={"movflags": "faststart"}) as o:
        s = o.add_stream_from_template(i.streams.video[0])
        for k in i.demux(i.streams.video[0]):
            if k.dts is not None:
                k.stream = s
                o.mux(k)
    return copy


@fault(
    "diagnosis",
    "MP4 with its table in front, cut at {share} of its length",
    says="cut off|cannot be read",
    share=(0.4, 0.6, 0.8, 0.95),
)
def _(folder, share):
    p = fast_start(files.video(folder / "a.mp4", files.moving(60), "libx264"))
    assert len(read_series(p)) == 60
    os.truncate(p, int(share * p.stat().st_size))
    read_series(p)


@fault("diagnosis", "MP4 with its table behind, cut at {share} of its length", says="cannot be read", share=(0.5, 0.9))
def _(folder, share):
    p = files.video(folder / "a.mp4", files.moving(60), "libx264")
    os.truncate(p, int(share * p.stat().st_size))
    read_series(p)


@fault("diagnosis", "trimmed without encoding, then cut off", says="cut off|cannot be read")
def _(folder):
    files.video(folder / "a.mp4", files.moving(60), "libx264", gop=100)
    p = fast_start(files.trim(folder / "a.mp4", folder / "b.mp4", 1.0))
    os.truncate(p, int(0.6 * p.stat().st_size))
    read_series(p)


@fault("diagnosis", "a video in a codec that nobody knows", says="codec.*unknown|cannot be read")
def _(folder):
    p = files.video(folder / "a.avi", files.moving(20), "mjpeg")
    p.write_bytes(p.read_bytes().replace(b"MJPG", b"QQQQ"))
    read_series(p)


@fault("diagnosis", "a video with sound only", says="no video stream")
def _(folder):
    import av

    with av.open(str(folder / "a.mp4"), "w") as box:
        s = box.add_stream("aac", rate=8000)
        f = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        f.sample_rate = 8000
        box.mux(s.encode(f))
        box.mux(s.encode())
    read_series(folder / "a.mp4")


@fault("diagnosis", "{ending} in capitals", "right", ending=(".AVI", ".MP4", ".Dcm", ".NPY", ".Nii.GZ"))
def _(folder, ending):
    p = folder / f"a{ending.lower()}"
    write = {
        ".avi": lambda: files.video(p, X, "mjpeg"),
        ".mp4": lambda: files.video(p, X, "libx264"),
        ".dcm": lambda: files.dicom(p, X),
    }
    write |= {".npy": lambda: np.save(p, X), ".nii.gz": lambda: files.nifti(p, X)}
    write[ending.lower()]()
    assert read_series(p.rename(folder / f"A{ending}")).shape == X.shape


WRONG = {
    "macOS": b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(90),
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "HTML": b"<!DOCTYPE html><html><title>404</title>",
    "PDF": b"%PDF-1.7\n" + bytes(40),
    "ZIP": b"PK\3\4" + bytes(60),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(60),
}


@fault(
    "diagnosis",
    "{what} in a file called {ending}",
    says="{what}",
    hides=files.SECRET,
    what=WRONG,
    ending=(".dcm", ".mp4", ".png", ".nii.gz", ".npy"),
)
def _(folder, what, ending):
    p = folder / f"{files.SECRET}{ending}"
    p.write_bytes(WRONG[what])
    read_series(p, STILL)


@fault("diagnosis", "out of file handles", says="Too many open files")
def _(folder):
    import resource

    np.save(folder / "a.npy", X)
    readers.needs("pydicom")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    handles = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, hard))
    try:
        while True:
            try:
                handles.append(os.open(folder / "a.npy", os.O_RDONLY))
            except OSError:
                break
        read_series(folder / "a.npy")
    finally:
        for h in handles:
            os.close(h)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@fault("diagnosis", "not enough memory for a series", says="not enough memory")
def _(folder):
    def hungry(path, how):
        raise MemoryError

    np.save(folder / "a.npy", X)
    was = readers.READERS[".npy"]
    readers.READERS[".npy"] = hungry
    try:
        read_series(folder / "a.npy")
    finally:
        readers.READERS[".npy"] = was


@fault("diagnosis", "a JPEG of 12 bits in {where}", says="JPEG.*(12 bits|GDCM)", where=("an image folder", "DICOM"))
def _(folder, where):
    data = files.picture(X[0], "JPEG")
    at = data.find(b"\xff\xc0")
    data = data[:at] + b"\xff\xc1" + data[at + 2 : at + 4] + b"\x0c" + data[at + 5 :]  # precision 12
    if where == "DICOM":
        more = dict(BitsAllocated=16, BitsStored=12, HighBit=11)
        p = files.dicom(folder / "a.dcm", X, "1.2.840.10008.1.2.4.51", [data] * 4, **more)
        without_gdcm(lambda: read_series(p))
    (folder / "a.jpg").write_bytes(data)
    read_image(folder / "a.jpg", 1, None)


@fault("diagnosis", "an AVI file whose writer left its size at 0, cut in half", says="cut off|cannot be read")
def _(folder):
    p = files.video(folder / "a.avi", files.moving(40), "mjpeg")
    data = bytearray(p.read_bytes())
    data[4:8] = bytes(4)
    p.write_bytes(data[: len(data) // 2])
    read_series(p)


@fault("diagnosis", "a folder called a.npy", says="no such file")
def _(folder):
    (folder / "a.npy").mkdir()
    read_series(folder / "a.npy")


@fault(
    "diagnosis",
    "a {kind} picture cut at {share}",
    says="cut off",
    kind=("PNG", "JPEG", "TIFF", "BMP", "WEBP"),
    share=(0.5, 0.9),
)
def _(folder, kind, share):
    rng = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    data = files.picture(rng, kind)
    (folder / "a.png").write_bytes(data[: int(share * len(data))])
    read_image(folder / "a.png", 3, None)


@fault("diagnosis", "{kind} in a picture called .png", "right", kind=("JPEG", "TIFF", "BMP", "WEBP", "GIF"))
def _(folder, kind):
    (folder / "a.png").write_bytes(files.picture(X[0], kind))
    assert read_image(folder / "a.png", 1, None).shape == (48, 64, 1)


@fault("diagnosis", "colours of 16 bits in TIFF", "right")
def _(folder):
    x = np.stack([X[0].astype(np.uint16) * 257] * 3, -1)
    (folder / "a.tif").write_bytes(files.tiff16(x))
    assert np.array_equal(read_image(folder / "a.tif", 1, None)[..., 0], X[0])
