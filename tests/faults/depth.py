"Numbers of more than 8 bits: scaled by what a file declares, or refused with the fix."

from __future__ import annotations

import struct
from collections import Counter

import numpy as np
import pydicom
from classimpression.echo.readers import OTHER_COLOURS, Limits, read_series
from classimpression.pictures import DEEP, SEE_THROUGH
from classimpression.scenarios import read_image
from classimpression.tasks import from_arrays
from PIL import Image

from . import fault, files

STILL = Limits(min_frames=1)
BYTES = files.moving()
DEEP16 = BYTES.astype(np.uint16) * 257 - 100  # the upper byte is a little darker
WRITERS = {
    "TIFF": lambda p, x: files.tiff(p.with_suffix(".tif"), x),
    "NumPy": lambda p, x: (np.save(p.with_suffix(".npy"), x), p.with_suffix(".npy"))[1],
    "NIfTI": lambda p, x: files.nifti(p.with_suffix(".nii.gz"), x),
    "MATLAB": lambda p, x: files.matlab(p.with_suffix(".mat"), x),
    "DICOM": lambda p, x: files.dicom(p.with_suffix(".dcm"), x),
}
PLAIN = {k: WRITERS[k] for k in ("TIFF", "NumPy", "NIfTI", "MATLAB")}


@fault("numbers", "{kind} series of 16 bits", "right", kind=WRITERS)
def _(folder, kind):
    seen = Counter()
    assert np.array_equal(read_series(WRITERS[kind](folder / "a", DEEP16), seen=seen), DEEP16 >> 8)
    assert seen[DEEP] == 1


@fault("numbers", "{kind} series of 12 bits in 16", says=r"bits=12", kind=WRITERS)
def _(folder, kind):
    read_series(WRITERS[kind](folder / "a", DEEP16 >> 4))


@fault("numbers", "{kind} series of 12 bits in 16, said", "right", kind=WRITERS)
def _(folder, kind):
    assert np.array_equal(read_series(WRITERS[kind](folder / "a", DEEP16 >> 4), bits=12), DEEP16 >> 8)


@fault("numbers", "{kind} series of floats in 0..1", "right", kind=PLAIN)
def _(folder, kind):
    y = read_series(PLAIN[kind](folder / "a", (BYTES / 255).astype(np.float32)))
    assert np.array_equal(y, BYTES)


@fault("numbers", "{kind} series of floats in 0..200", says="bits=8", kind=PLAIN)
def _(folder, kind):
    read_series(PLAIN[kind](folder / "a", BYTES.astype(np.float32)))


@fault("numbers", "{kind} series of floats in 0..200, said", "right", kind=PLAIN)
def _(folder, kind):
    assert np.array_equal(read_series(PLAIN[kind](folder / "a", BYTES.astype(np.float32)), bits=8), BYTES)


@fault(
    "numbers",
    "{kind} series of {type} that holds bytes",
    says="bits=8",
    kind=("NumPy", "NIfTI", "MATLAB"),
    type=("int16", "int32"),
)
def _(folder, kind, type):
    read_series(WRITERS[kind](folder / "a", BYTES.astype(type)))


@fault(
    "numbers",
    "{kind} series that holds {what}",
    says="{what}",
    kind=("TIFF", "NumPy", "NIfTI"),
    what=("NaN", "infinity"),
)
def _(folder, kind, what):
    x = (BYTES / 255).astype(np.float32)
    x[1, 2, 3] = np.nan if what == "NaN" else np.inf
    read_series(WRITERS[kind](folder / "a", x))


@fault("numbers", "{kind} series with negative numbers", says="negative", kind=("NumPy", "NIfTI", "MATLAB"))
def _(folder, kind):
    read_series(WRITERS[kind](folder / "a", BYTES.astype(np.int16) - 50), bits=8)


@fault("numbers", "NumPy series of truth values", "right")
def _(folder):
    np.save(folder / "a.npy", BYTES > 100)
    assert np.array_equal(read_series(folder / "a.npy"), (BYTES > 100) * np.uint8(255))


@fault("numbers", "NumPy series of 16 bits, big-endian", "right")
def _(folder):
    np.save(folder / "a.npy", DEEP16.astype(">u2"))
    assert np.array_equal(read_series(folder / "a.npy"), DEEP16 >> 8)


@fault("numbers", "{kind} of 16 bits as a still", "right", kind=("grey PNG", "colour PNG", "TIFF"))
def _(folder, kind):
    x = DEEP16[0]
    p = folder / ("a.tif" if kind == "TIFF" else "a.png")
    p.write_bytes(files.png16(np.stack([x] * 3, -1)) if kind == "colour PNG" else files.picture(x, kind.split()[-1]))
    assert np.array_equal(read_series(p, STILL)[0], x >> 8)
    assert np.array_equal(read_image(p, 1, None)[..., 0], x >> 8)  # the same in an image folder


@fault("numbers", "a 16-bit PNG in an image folder that uses 12 of its bits", says="bits=12")
def _(folder):
    (folder / "a.png").write_bytes(files.picture(DEEP16[0] >> 4))
    read_image(folder / "a.png", 1, None)


@fault("numbers", "a dark frame in a series of 16 bits", "right")
def _(folder):
    x = DEEP16.copy()
    x[0] = 7
    assert np.array_equal(read_series(files.tiff(folder / "a.tif", x)), x >> 8)


@fault("numbers", "a black series of 16 bits", "right")
def _(folder):
    assert not read_series(files.tiff(folder / "a.tif", DEEP16 * 0)).any()


@fault("numbers", "a series of 32-bit numbers in TIFF", says="bits=16")
def _(folder):
    read_series(files.tiff(folder / "a.tif", DEEP16.astype(np.int32)))


@fault("numbers", "DICOM of {stored} bits in 16", "right", stored=(8, 10, 12, 16))
def _(folder, stored):
    x = (DEEP16 >> (16 - stored)).astype(np.uint16)
    y = read_series(files.dicom(folder / "a.dcm", x, BitsStored=stored, HighBit=stored - 1))
    assert np.array_equal(y, DEEP16 >> 8)


@fault("numbers", "DICOM of {stored} bits", says="bits per pixel", stored=(1, 6, 32))
def _(folder, stored):
    x = BYTES.astype(np.uint32) if stored == 32 else BYTES // 255
    read_series(files.dicom(folder / "a.dcm", x, BitsStored=stored, HighBit=stored - 1))


@fault("numbers", "DICOM with an overlay in the bits that its numbers leave", "right")
def _(folder):
    x = (DEEP16 >> 4) | ((BYTES > 100).astype(np.uint16) << 15)
    assert np.array_equal(read_series(files.dicom(folder / "a.dcm", x, BitsStored=12, HighBit=11)), DEEP16 >> 8)


@fault("numbers", "a palette of 16 bits in DICOM", "right")
def _(folder):
    ds = files.dataset(255 - BYTES)
    files.palette(ds)
    ds.save_as(folder / "a.dcm", enforce_file_format=True)
    assert np.array_equal(read_series(folder / "a.dcm"), BYTES)


@fault("numbers", "colours of 16 bits in DICOM", says="8 are read")
def _(folder):
    read_series(files.dicom(folder / "a.dcm", np.stack([DEEP16] * 3, -1)))


@fault("numbers", "a setting of {bits} bits", says="bits", bits=(0, 7, 33, 8.5, "twelve", True))
def _(folder, bits):
    np.save(folder / "a.npy", DEEP16)
    read_series(folder / "a.npy", bits=bits)


@fault(
    "numbers", "arrays of {type} as images", "refused", says="bits=|divide by 255", type=("int64", "int32", "float64")
)
def _(folder, type):
    x, y = BYTES[:, :32, :32].astype(type), [0, 1, 0, 1]
    from_arrays(*[(x + k, y) for k in range(3)], sizes=[1, 1], layout="NHW")


@fault(
    "numbers",
    "a DICOM file of {stored} bits that end at bit {high}",
    says="end at bit {high} .HighBit.",
    stored=(8, 12),
    high=(13, 15),
)
def _(folder, stored, high):
    x = (DEEP16 >> (16 - stored)) << (high + 1 - stored)
    read_series(files.dicom(folder / "a.dcm", x, BitsStored=stored, HighBit=high))


@fault("numbers", "a DICOM file of colours of kind {kind}", says="of kind {kind}", kind=OTHER_COLOURS)
def _(folder, kind):
    read_series(files.dicom(folder / "a.dcm", np.stack([BYTES] * 3, -1), PhotometricInterpretation=kind))


@fault("names", "a DICOM file whose kind of colour is a name", says="a kind that nobody knows", hides="DOE")
def _(folder):
    read_series(files.dicom(folder / "a.dcm", BYTES, PhotometricInterpretation="DOE^JANE"))


@fault("diagnosis", "a DICOM file that does not say its kind of colour", says="PhotometricInterpretation")
def _(folder):
    read_series(files.dicom(folder / "a.dcm", BYTES, PhotometricInterpretation=""))


@fault("numbers", "a DICOM file whose kind of colour is written small", "right")
def _(folder):
    x = read_series(files.dicom(folder / "a.dcm", BYTES, PhotometricInterpretation="monochrome2"))
    assert np.array_equal(x, BYTES)


@fault("diagnosis", "a DICOM file whose palette is {what}", says="palette is missing or damaged", what=("gone", "cut"))
def _(folder, what):
    path = files.dicom(folder / "a.dcm", BYTES, PhotometricInterpretation="PALETTE COLOR")
    if what == "cut":
        ds = pydicom.dcmread(path)
        for i in range(3):
            ds.add_new(0x00281101 + i, "US", [256, 0, 8])
            ds.add_new(0x00281201 + i, "OW", bytes(100))
        ds.save_as(path)
    read_series(path)


def tiff_of(x: np.ndarray, white: bool = False, signed: bool = False) -> bytes:
    "A grey TIFF with tags that Pillow does not write."
    kind = 3 if x.dtype.kind == "f" else 2 if signed else 1
    tags = {256: x.shape[1], 257: x.shape[0], 258: 8 * x.itemsize, 259: 1, 262: int(not white), 273: 8, 277: 1}
    tags |= {278: x.shape[0], 279: x.nbytes, 339: kind}
    rows = b"".join(struct.pack("<HHII", k, 4, 1, v) for k, v in sorted(tags.items()))
    return struct.pack("<2sHI", b"II", 42, 8 + x.nbytes) + x.tobytes() + struct.pack("<H", len(tags)) + rows + bytes(4)


ODD = {
    "signed bytes": tiff_of((BYTES[0] - 100).astype(np.uint8), signed=True),
    "16 bits with white as 0": tiff_of(DEEP16[0], white=True),
    "floats with white as 0": tiff_of((BYTES[0] / 255).astype(np.float32), white=True),
}


@fault("numbers", "a TIFF of {what} in an image folder", says="have a sign|WhiteIsZero", what=ODD)
def _(folder, what):
    (folder / "a.tif").write_bytes(ODD[what])
    read_image(folder / "a.tif", 1, None)


@fault("numbers", "a TIFF of bytes with white as 0", "right")
def _(folder):
    (folder / "a.tif").write_bytes(tiff_of(BYTES[0], white=True))
    assert np.array_equal(read_image(folder / "a.tif", 1, None)[..., 0], 255 - BYTES[0])


@fault("geometry", "a TIFF in CIE L*a*b*, whose band A is no transparency", "right")
def _(folder):
    Image.fromarray(np.full((16, 16, 3), 90, np.uint8), "LAB").save(folder / "a.tif")
    seen = Counter()
    read_image(folder / "a.tif", 3, None, seen=seen)
    assert not seen[SEE_THROUGH]
