"Odd NIfTI, DICOM and video files: headers that lie, numbers that are none, parts that are missing."

from __future__ import annotations

import gzip
import struct

import numpy as np
from classimpression.echo.readers import Limits, read_series

from . import fault, files

STILL = Limits(min_frames=1)


def volume(path, x: np.ndarray, **header):
    "A NIfTI file whose header fields are set afterwards, byte by byte."
    import nibabel

    image = nibabel.Nifti1Image(x, np.eye(4))
    nibabel.save(image, path)
    places = dict(sizeof=(0, "<i"), dim=(40, "<8h"), code=(70, "<h"), bitpix=(72, "<h"), offset=(108, "<f"))
    places |= dict(slope=(112, "<f"), inter=(116, "<f"), pixdim=(76, "<8f"), magic=(344, "<4s"), sform=(280, "<12f"))
    data = bytearray(path.read_bytes())
    for k, v in header.items():
        at, form = places[k]
        struct.pack_into(form, data, at, *(v if isinstance(v, (tuple, list)) else (v,)))
    path.write_bytes(data)
    return path


MOVING = files.moving(6).transpose(2, 1, 0)  # [W, H, T]
NAN = float("nan")
NIFTI = {
    "an intercept of NaN": dict(slope=1.0, inter=NAN),
    "a slope that turns brightness around": dict(slope=-1.0),
    "a type that nobody knows": dict(code=3333),
    "colours": dict(code=128, bitpix=24),
    "complex numbers": dict(code=32, bitpix=64),
    "numbers of 128 bits": dict(code=1536, bitpix=128),
    "no axes": dict(dim=(0, 64, 48, 6, 1, 1, 1, 1)),
    "nine axes": dict(dim=(9, 64, 48, 6, 1, 1, 1, 1)),
    "one axis": dict(dim=(1, 64, 1, 1, 1, 1, 1, 1)),
    "an axis of 0": dict(dim=(3, 64, 0, 6, 1, 1, 1, 1)),
    "a negative axis": dict(dim=(3, 64, -48, 6, 1, 1, 1, 1)),
    "more frames than it holds": dict(dim=(3, 64, 48, 600, 1, 1, 1, 1)),
    "five axes": dict(dim=(5, 64, 24, 2, 2, 3, 1, 1)),
    "an offset beyond its end": dict(offset=1e9),
    "a negative offset": dict(offset=-352.0),
    "an offset of NaN": dict(offset=NAN),
    "another magic word": dict(magic=b"evil"),
    "a place of NaN": dict(sform=[NAN] * 12),
    "a place of zeros": dict(sform=[0.0] * 12),
}


@fault("hostile", "NIfTI with {what}", hides=files.SECRET, what=NIFTI)
def _(folder, what):
    read_series(volume(folder / "a.nii", MOVING, **NIFTI[what]))


SAME = {  # what the format says: these mean nothing, or nothing else
    "a slope of NaN": dict(slope=NAN),
    "a slope of infinity": dict(slope=float("inf")),
    "a slope of 0": dict(slope=0.0),
    "bits that do not fit its type": dict(bitpix=64),
    "no pixel sizes": dict(pixdim=[0.0] * 8),
}


@fault("numbers", "NIfTI with {what}: as stored", "right", what=SAME)
def _(folder, what):
    assert (read_series(volume(folder / "a.nii", MOVING, **SAME[what])) == files.moving(6)).all()


NUMBERS = {
    "NaN in one voxel": np.where(np.arange(MOVING.size).reshape(MOVING.shape) == 7, np.nan, MOVING / 255.0),
    "infinity in one voxel": np.where(np.arange(MOVING.size).reshape(MOVING.shape) == 7, np.inf, MOVING / 255.0),
    "negative numbers": MOVING.astype(np.int16) - 100,
    "whole numbers of 32 bits": MOVING.astype(np.int32) * 1000,
}


@fault("numbers", "NIfTI with {what}", what=NUMBERS)
def _(folder, what):
    read_series(volume(folder / "a.nii", NUMBERS[what]))


@fault("diagnosis", "a plain NIfTI called .nii.gz", "right")
def _(folder):
    path = volume(folder / "a.nii", MOVING)
    path.rename(folder / "a.nii.gz")
    assert len(read_series(folder / "a.nii.gz")) == 6


@fault("diagnosis", "a NIfTI packed twice", says="damaged|cannot be read|packed")
def _(folder):
    path = volume(folder / "a.nii", MOVING)
    (folder / "b.nii.gz").write_bytes(gzip.compress(gzip.compress(path.read_bytes())))
    read_series(folder / "b.nii.gz")


@fault("numbers", "NIfTI of one frame", says="min_frames")
def _(folder):
    read_series(volume(folder / "a.nii", MOVING[..., :1]))


@fault("numbers", "NIfTI with the other byte order", "right")
def _(folder):
    import nibabel

    image = nibabel.Nifti1Image(MOVING.astype(">i2"), np.eye(4), nibabel.Nifti1Header(endianness=">"))
    nibabel.save(image, folder / "a.nii")
    found = read_series(folder / "a.nii", bits=8)
    assert (found == MOVING.transpose(2, 1, 0)).all() or found.shape == (6, 48, 64)


X = files.moving()
DICOM = {
    "two samples a pixel": dict(SamplesPerPixel=2),
    "no samples a pixel": dict(SamplesPerPixel=0),
    "no rows": dict(Rows=0),
    "rows that are missing": dict(Rows=None),
    "columns that are missing": dict(Columns=None),
    "bits that are missing": dict(BitsAllocated=None),
    "more bits stored than allocated": dict(BitsStored=12),
    "a colour space that nobody knows": dict(PhotometricInterpretation="EVIL"),
    "no colour space": dict(PhotometricInterpretation=None),
    "a palette that is missing": dict(PhotometricInterpretation="PALETTE COLOR"),
    "negative frames": dict(NumberOfFrames=-4),
    "no pixels": dict(PixelData=b""),
    "one pixel": dict(PixelData=b"\x07\x00"),
}


@fault("hostile", "DICOM with {what}", hides=(files.SECRET, "Doe"), what=DICOM)
def _(folder, what):
    path = folder / "a.dcm"
    files.dataset(X, **DICOM[what]).save_as(path, enforce_file_format=False)
    read_series(path)


RAW = {
    "a slope that is text": (0x00281053, "DS", b"evil"),
    "a slope of NaN": (0x00281053, "DS", b"nan "),
    "a slope of 0": (0x00281053, "DS", b"0 "),
    "an intercept that is text": (0x00281052, "DS", b"evil"),
    "a window centre that is text": (0x00281050, "DS", b"mid "),
    "frames that are text": (0x00280008, "IS", b"four"),
    "frames of 10^30": (0x00280008, "IS", b"1" + b"0" * 29),
}


@fault("hostile", "DICOM with {what}", hides=(files.SECRET, "Doe"), what=RAW)
def _(folder, what):
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    ds = files.dataset(X, WindowCenter="100", WindowWidth="200", RescaleSlope="1", RescaleIntercept="0")
    tag, vr, value = RAW[what]
    ds._dict[Tag(tag)] = RawDataElement(Tag(tag), vr, len(value), value, 0, False, True)
    ds.save_as(folder / "a.dcm", enforce_file_format=True)
    read_series(folder / "a.dcm")


FINE = {
    "no bits stored": dict(BitsStored=0),
    "a frame time of 0": dict(FrameTime="0"),
    "a negative frame time": dict(FrameTime="-33"),
    "no frame time": dict(FrameTime=None),
    "no name": dict(PatientName=None, PatientID=None),
}


@fault("numbers", "DICOM with {what}", "right", what=FINE)
def _(folder, what):
    assert (read_series(files.dicom(folder / "a.dcm", X, **FINE[what])) == X).all()


@fault("hostile", "DICOM of 2,000 sequences in one another", hides="Doe")
def _(folder):
    deep = b""
    for _ in range(2000):
        item = struct.pack("<HHI", 0xFFFE, 0xE000, len(deep)) + deep
        deep = struct.pack("<HH2sHI", 0x0040, 0xA730, b"SQ", 0, len(item)) + item
    path = files.dicom(folder / "a.dcm", X)
    data = path.read_bytes()
    start = 144 + struct.unpack("<I", data[140:144])[0]
    path.write_bytes(data[:start] + data[start:].replace(b"\xe0\x7f\x10\x00", deep + b"\xe0\x7f\x10\x00", 1))
    read_series(path)
    raise files_refused(path)


def files_refused(path):
    "The sequences are not read, and the pixels are: that is right as well."
    from classimpression.core.errors import DataError

    return DataError("read without the sequences")


def clip(folder, ending: str = ".mp4", codec: str = "mpeg4", **more):
    return files.video(folder / f"a{ending}", files.moving(24), codec, **more)


@fault("hostile", "a video of one frame", says="min_frames")
def _(folder):
    read_series(files.video(folder / "a.mp4", files.moving(24)[:1], "mpeg4"))


@fault("diagnosis", "a {a} file called .{b}", "right", a=("mp4", "avi", "mov"), b=("avi", "mp4", "mov"))
def _(folder, a, b):
    path = clip(folder, f".{a}")
    path.rename(folder / f"b.{b}")
    assert read_series(folder / f"b.{b}").shape == (24, 48, 64)


@fault("diagnosis", "a video whose key frames are gone", says="cannot be read|cut off|damaged")
def _(folder):
    path = clip(folder, ".avi")
    data = bytearray(path.read_bytes())
    i = data.find(b"00dc", data.find(b"movi"))
    n = struct.unpack_from("<I", data, i + 4)[0]
    data[i + 8 : i + 8 + n] = bytes(n)
    path.write_bytes(data)
    read_series(path)


@fault("hostile", "a playlist called a.{ending}", hides=("passwd", "root:"), ending=("mp4", "avi", "mov"))
def _(folder, ending):
    (folder / f"a.{ending}").write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n")
    read_series(folder / f"a.{ending}")


@fault("hostile", "a list for ffmpeg's concat called a.{ending}", ending=("mp4", "avi", "mov"))
def _(folder, ending):
    clip(folder, ".avi").rename(folder / "other.avi")
    (folder / f"a.{ending}").write_text("ffconcat version 1.0\nfile other.avi\n")
    read_series(folder / f"a.{ending}")


@fault("numbers", "a TIFF whose pages have 8 and 16 bits", says="mixed depths")
def _(folder):
    from PIL import Image

    pages = [Image.fromarray(X[0]), Image.fromarray(X[1].astype(np.uint16) * 257)]
    pages[0].save(folder / "a.tif", save_all=True, append_images=pages[1:])
    read_series(folder / "a.tif")


HALF = {
    "a centre without a width": dict(WindowCenter="100"),
    "a width without a centre": dict(WindowWidth="100"),
    "an empty centre": dict(WindowCenter="", WindowWidth="100"),
    "an empty width": dict(WindowCenter="100", WindowWidth=""),
}


@fault("geometry", "DICOM with half a window, {what}: as stored", "right", what=HALF)
def _(folder, what):
    assert (read_series(files.dicom(folder / "a.dcm", X, **HALF[what])) == X).all()


SYNTAXES = {
    "HTJ2K": ("201", "needs GDCM"),
    "HTJ2K with RPCL": ("202", "needs GDCM"),
    "JPEG 2000, part 2": ("92", "pydicom does not decode"),
    "JPIP": ("94", "pydicom does not decode"),
    "JPEG of spectral selection": ("53", "pydicom does not decode"),
    "JPEG of full progression": ("55", "pydicom does not decode"),
    "JPEG Lossless, process 14": ("57", "needs GDCM"),
    "JPEG-LS with loss": ("81", "needs GDCM"),
    "MPEG-2 at high level": ("101", "it holds a video"),
    "MPEG-4 in fragments": ("102.1", "it holds a video"),
    "HEVC of 10 bits": ("108", "it holds a video"),
}


@fault("diagnosis", "DICOM in {what}", hides=(files.SECRET, "Doe"), what=SYNTAXES)
def _(folder, what):
    uid, says = SYNTAXES[what]
    coded = [files.picture(f, "JPEG2000", no_jp2=True) for f in X]
    try:
        read_series(files.dicom(folder / "a.dcm", X, f"1.2.840.10008.1.2.4.{uid}", coded))
    except ValueError as e:
        assert says in str(e), str(e)
        raise


@fault("numbers", "DICOM of numbers with the most significant byte first, {bits} bits", "right", bits=(8, 16))
def _(folder, bits):
    from pydicom.filewriter import dcmwrite

    x = X if bits == 8 else X.astype(np.uint16) * 257
    ds = files.dataset(x)
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.2"
    ds.PixelData = np.frombuffer(x.tobytes(), "<u2").byteswap().tobytes()
    ds["PixelData"].VR = "OW"
    dcmwrite(folder / "a.dcm", ds, implicit_vr=False, little_endian=False, force_encoding=True)
    assert (read_series(folder / "a.dcm") == X).all()


@fault("diagnosis", "the header of a NIfTI pair", says="header without its numbers")
def _(folder):
    import nibabel

    nibabel.save(nibabel.Nifti1Pair(MOVING, np.eye(4)), folder / "a.img")
    (folder / "a.hdr").rename(folder / "a.nii")
    read_series(folder / "a.nii")


CODECS = {
    "gray16le": (".avi", "ffv1"),
    "rgb48be": (".avi", "png"),
    "yuv422p10le": (".mov", "prores_ks"),
    "rgb24": (".mov", "qtrle"),
    "rgba": (".mov", "png"),
    "gray16be": (".mov", "rawvideo"),
    "gbrp": (".avi", "utvideo"),
    "bgr0": (".avi", "zmbv"),
}


@fault("numbers", "a video whose pixels are {form}", "right", form=CODECS)
def _(folder, form):
    from fractions import Fraction

    import av

    ending, codec = CODECS[form]
    x = files.moving(8)
    with av.open(str(folder / f"a{ending}"), "w") as box:
        s = box.add_stream(codec, rate=25)
        s.width, s.height, s.pix_fmt = x.shape[2], x.shape[1], form
        for t, f in enumerate(x):
            v = av.VideoFrame.from_ndarray(np.repeat(f[..., None], 3, -1), format="rgb24")
            v.pts, v.time_base = t, Fraction(1, 25)
            box.mux(s.encode(v))
        box.mux(s.encode())
    found = read_series(folder / f"a{ending}")
    assert found.shape == x.shape and np.abs(found.astype(int) - x).max() <= 3
