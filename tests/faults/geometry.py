"Turned, mirrored, windowed: what viewers show is what is read, or it is declared and counted."

from __future__ import annotations

import warnings
from collections import Counter

import numpy as np
from classimpression.pictures import NOT_SQUARE, TURNED
from classimpression.echo.manifest import MIXED, index_manifest
from classimpression.echo.readers import WINDOW, Limits, read_series
from classimpression.scenarios import from_folder, read_image

from . import fault, files

STILL = Limits(min_frames=1)
UPRIGHT = {
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).T,
    8: lambda x: np.rot90(x, 1),
}  # EXIF orientation -> what viewers show of the stored [H, W]


def tagged(path, x: np.ndarray, orientation: int, kind: str):
    "A picture that says how it is to be turned."
    from PIL import Image

    tags = Image.Exif()
    tags[0x0112] = orientation
    path.write_bytes(files.picture(x, kind, exif=tags))
    return path


@fault(
    "geometry", "{kind} in an image folder with orientation {n}", "right", kind=("PNG", "TIFF", "WEBP"), n=range(1, 9)
)
def _(folder, kind, n):
    x, seen = files.moving(1)[0], Counter()
    more = tagged(folder / "a.png", np.repeat(x[..., None], 3, -1), n, kind) if kind == "WEBP" else None
    y = read_image(more or tagged(folder / "a.png", x, n, kind), 1, None, seen=seen)[..., 0]
    assert y.shape == UPRIGHT[n](x).shape and np.abs(y.astype(int) - UPRIGHT[n](x)).max() <= (
        40 if kind == "WEBP" else 0
    )
    assert seen[TURNED] == (n > 1)


@fault("geometry", "JPEG still in a series with orientation {n}", "right", n=range(2, 9))
def _(folder, n):
    x = files.moving(1)[0]
    y = read_series(tagged(folder / "a.jpg", x, n, "JPEG"), STILL)[0]
    assert y.shape == UPRIGHT[n](x).shape and np.abs(y.astype(int) - UPRIGHT[n](x)).mean() < 3


@fault("geometry", "16-bit PNG with orientation {n}", "right", n=(3, 6))
def _(folder, n):
    x = files.moving(1)[0].astype(np.uint16) * 257
    assert np.array_equal(read_series(tagged(folder / "a.png", x, n, "PNG"), STILL)[0], UPRIGHT[n](x) >> 8)


@fault("geometry", "a JPEG whose EXIF block is damaged", "right")
def _(folder):
    x = files.moving(1)[0]
    data = bytearray(tagged(folder / "a.jpg", x, 6, "JPEG").read_bytes())
    at = data.find(b"Exif\0\0") + 6
    data[at : at + 8] = b"\xff" * 8
    (folder / "a.jpg").write_bytes(data)
    assert read_image(folder / "a.jpg", 1, None).shape == (*x.shape, 1)


@fault("geometry", "half of the images of a folder stored sideways, declared by EXIF", "right")
def _(folder):
    files.image_folder(folder, n=4, ending=".jpg")
    for p in list(folder.rglob("*.jpg"))[::2]:
        x = read_image(p, 3, None)
        tagged(p, np.ascontiguousarray(np.rot90(x)), 6, "JPEG")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        s = from_folder(folder, sizes=[1, 1])
    assert s.facts()["images"]["train"] == 8 and TURNED in str(heard[0].message)


@fault("geometry", "lying and standing images in one folder", says="another size")
def _(folder):
    files.image_folder(folder)
    (folder / "val" / "a" / "0.png").write_bytes(files.picture(np.zeros((12, 20, 3), np.uint8)))
    from_folder(folder, sizes=[1, 1])


@fault("geometry", "lying and standing images in one folder, resized", "right")
def _(folder):
    files.image_folder(folder)
    for i, shape in enumerate(((12, 20, 3), (20, 12, 3))):
        (folder / "val" / "a" / f"{i}.png").write_bytes(files.picture(np.zeros(shape, np.uint8)))
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        from_folder(folder, sizes=[1, 1], resize=16)
    assert "lie" in str(heard[0].message) and "stand" in str(heard[0].message)


@fault("geometry", "a picture whose pixels are not square", "right")
def _(folder):
    seen = Counter()
    (folder / "a.png").write_bytes(files.picture(files.moving(1)[0], dpi=(100, 200)))
    read_series(folder / "a.png", STILL, seen=seen)
    assert seen[NOT_SQUARE] == 1


TURNS = {  # a, b, c, d of a display matrix, which brings (x, y) to (ax + cy, bx + dy) -> frames as players show them
    "90 degrees": ((0, 1, -1, 0), lambda x: np.rot90(x, -1, (1, 2))),
    "180 degrees": ((-1, 0, 0, -1), lambda x: np.rot90(x, 2, (1, 2))),
    "270 degrees": ((0, -1, 1, 0), lambda x: np.rot90(x, 1, (1, 2))),
    "left and right mirrored": ((-1, 0, 0, 1), lambda x: x[:, :, ::-1]),
    "top and bottom mirrored": ((1, 0, 0, -1), lambda x: x[:, ::-1]),
    "mirrored on the diagonal": ((0, 1, 1, 0), lambda x: x.swapaxes(1, 2)),
    "mirrored on the other diagonal": ((0, -1, -1, 0), lambda x: np.rot90(x, 2, (1, 2)).swapaxes(1, 2)),
    "nothing, twice as large": ((2, 0, 0, 2), lambda x: x),
}


@fault("geometry", "a video whose header says: {turn}", "right", turn=TURNS)
def _(folder, turn):
    x, (matrix, shown) = files.moving(3), TURNS[turn]
    p, seen = files.turn(files.video(folder / "a.mp4", x, "libx264"), matrix), Counter()
    y, want = read_series(p, seen=seen), shown(x)
    assert y.shape == want.shape and np.abs(y.astype(int) - want).mean() < 6
    assert seen[TURNED] == (turn != "nothing, twice as large")


@fault("geometry", "a video whose header turns it by 12 degrees", says="no quarter turn")
def _(folder):
    c, s = np.cos(0.2), np.sin(0.2)
    read_series(files.turn(files.video(folder / "a.mp4", files.moving(3), "libx264"), (c, s, -s, c)))


AFFINES = {"LP": np.diag([-1, -1, 1, 1]), "RA": np.eye(4), "LA": np.diag([-2, 2, 1, 1]), "RP": np.diag([1, -1, 1, 1])}


@fault("geometry", "NIfTI with axes {axes}", "right", axes=AFFINES)
def _(folder, axes):
    x, seen = files.moving(), Counter()
    assert np.array_equal(read_series(files.nifti(folder / "a.nii.gz", x, AFFINES[axes]), seen=seen), x)
    assert seen == {f"NIfTI axes {axes}": 1}


@fault("geometry", "a store of NIfTI files that run in two directions", "right", slow=True)
def _(folder):
    kinds = iter(["LP", "LP", "RP", "LP", "LP", "LP"])
    m = files.manifest(folder / "in", 6, lambda p, x: files.nifti(p, x, AFFINES[next(kinds)]), ".nii.gz")
    store = index_manifest(m, folder / "store", size=32)
    noticed = store.index["noticed"]
    assert {k: n for k, n in noticed.items() if "NIfTI" in k} == {"NIfTI axes LP": 5, "NIfTI axes RP": 1, MIXED: 1}


def by_hand(x, c, w):
    return np.rint(255 * np.clip((x - (c - 0.5)) / (w - 1) + 0.5, 0, 1)).astype(np.uint8)


@fault("geometry", "DICOM with the window {c}/{w}", "right", c=(60, 128, 100.5), w=(80, 256, 2))
def _(folder, c, w):
    x, seen = files.moving(), Counter()
    y = read_series(files.dicom(folder / "a.dcm", x, WindowCenter=c, WindowWidth=w), seen=seen)
    assert np.array_equal(y, by_hand(x, c, w)) and seen[WINDOW] == ((c, w) != (128, 256))


@fault("geometry", "DICOM with a window of 16-bit numbers", "right")
def _(folder):
    x = files.moving().astype(np.uint16) * 100
    y = read_series(files.dicom(folder / "a.dcm", x, WindowCenter=9000, WindowWidth=12000))
    assert np.array_equal(y, by_hand(x, 9000, 12000))


@fault("geometry", "DICOM with a window of numbers that have a sign", "right")
def _(folder):
    x = files.moving().astype(np.int16) * 10 - 1000
    y = read_series(files.dicom(folder / "a.dcm", x, WindowCenter=0, WindowWidth=2000))
    assert np.array_equal(y, by_hand(x, 0, 2000))


@fault("geometry", "DICOM with a window after a rescaling", "right")
def _(folder):
    x = files.moving()
    more = dict(RescaleSlope=2, RescaleIntercept=-100, RescaleType="US", WindowCenter=100, WindowWidth=300)
    y = read_series(files.dicom(folder / "a.dcm", x, **more))
    assert np.abs(y.astype(int) - by_hand(2.0 * x - 100, 100, 300)).max() <= 1


@fault("geometry", "DICOM with two windows: viewers take the first", "right")
def _(folder):
    x = files.moving()
    y = read_series(files.dicom(folder / "a.dcm", x, WindowCenter=[60, 90], WindowWidth=[80, 20]))
    assert np.array_equal(y, by_hand(x, 60, 80))


@fault("geometry", "MONOCHROME1 with a window", "right")
def _(folder):
    x = files.moving()
    more = dict(PhotometricInterpretation="MONOCHROME1", WindowCenter=60, WindowWidth=80)
    assert np.array_equal(read_series(files.dicom(folder / "a.dcm", x, **more)), 255 - by_hand(x, 60, 80))


@fault("geometry", "DICOM with a table in place of a window", "right")
def _(folder):
    from pydicom import Dataset

    x, item = files.moving(), Dataset()
    item.LUTDescriptor, item.LUTExplanation = [256, 0, 8], "gamma"
    table = np.rint(255 * (np.arange(256) / 255) ** 0.5).astype(np.uint16)
    item.add_new("LUTData", "US", table.tolist())
    y = read_series(files.dicom(folder / "a.dcm", x, VOILUTSequence=[item]))
    assert np.array_equal(y, table[x])


@fault("geometry", "DICOM with a window in the shared functional group", "right")
def _(folder):
    from pydicom import Dataset

    x, group, item = files.moving(), Dataset(), Dataset()
    item.WindowCenter, item.WindowWidth = 60, 80
    group.FrameVOILUTSequence = [item]
    y = read_series(files.dicom(folder / "a.dcm", x, SharedFunctionalGroupsSequence=[group]))
    assert np.array_equal(y, by_hand(x, 60, 80))


@fault("geometry", "DICOM whose frames have windows of their own", says="window of its own")
def _(folder):
    from pydicom import Dataset

    def group(c):
        g, item = Dataset(), Dataset()
        item.WindowCenter, item.WindowWidth = c, 80
        g.FrameVOILUTSequence = [item]
        return g

    read_series(
        files.dicom(folder / "a.dcm", files.moving(), PerFrameFunctionalGroupsSequence=[group(c) for c in (1, 2, 3, 4)])
    )


@fault("geometry", "DICOM with a window of width {w}", says="impossible", w=(0, -5))
def _(folder, w):
    read_series(files.dicom(folder / "a.dcm", files.moving(), WindowCenter=60, WindowWidth=w))


@fault("geometry", "DICOM of numbers with a sign and no window", says="no window")
def _(folder):
    read_series(files.dicom(folder / "a.dcm", (files.moving() // 2).astype(np.int8)))


@fault("geometry", "DICOM whose slope turns brightness around, without a window", says="no window")
def _(folder):
    read_series(files.dicom(folder / "a.dcm", files.moving(), RescaleSlope=-1, RescaleIntercept=255, RescaleType="US"))


@fault("geometry", "DICOM whose pixels are not square", "right")
def _(folder):
    seen = Counter()
    read_series(files.dicom(folder / "a.dcm", files.moving(), PixelAspectRatio=[1, 2]), seen=seen)
    assert seen == {NOT_SQUARE: 1}
