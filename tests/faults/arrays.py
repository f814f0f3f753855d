"MedMNIST's files and arrays of one's own with the wrong type, shape, key or label."

from __future__ import annotations

import io
import zipfile

import numpy as np
from classimpression.data import load_medmnist
from classimpression.tasks import from_arrays

from . import fault

RNG = np.random.default_rng(0)
PARTS = ("train", "val", "test")


def arrays(n: int = 12, side: int = 8) -> dict[str, np.ndarray]:
    "The six arrays of a colour file with three classes."
    y = np.arange(n)[:, None] % 3
    return {
        f"{p}_{k}": v
        for p in PARTS
        for k, v in (("images", RNG.integers(0, 256, (n, side, side, 3), np.uint8)), ("labels", y.astype(np.uint8)))
    }


def change(key: str, how):
    "Arrays of which one was changed."
    a = arrays()
    a[key] = how(a[key])
    return a


NPZ = {
    "float images up to 255": lambda: change("train_images", lambda x: x.astype(np.float32)),
    "images of NaN": lambda: change("train_images", lambda x: np.full(x.shape, np.nan)),
    "negative images": lambda: change("val_images", lambda x: -x.astype(np.int16)),
    "images of 64-bit numbers": lambda: change("test_images", lambda x: x.astype(np.int64)),
    "channels first": lambda: change("train_images", lambda x: x.transpose(0, 3, 1, 2)),
    "four channels": lambda: change("train_images", lambda x: np.concatenate([x, x[..., :1]], -1)),
    "grey images": lambda: change("train_images", lambda x: x[..., 0]),
    "one image": lambda: change("train_images", lambda x: x[0]),
    "no images": lambda: change("test_images", lambda x: x[:0]),
    "images of 0 pixels": lambda: change("train_images", lambda x: x[:, :0]),
    "test images of another size": lambda: change("test_images", lambda x: x[:, :6, :6]),
    "volumes": lambda: change("train_images", lambda x: x[:, None].repeat(2, 1)),
    "complex images": lambda: change("train_images", lambda x: x.astype(complex)),
    "images of text": lambda: change("train_images", lambda x: np.full(x.shape, "a")),
    "one label less": lambda: change("train_labels", lambda y: y[:-1]),
    "labels that are shares": lambda: change("train_labels", lambda y: y / 3),
    "labels that are whole floats": lambda: change("train_labels", lambda y: y.astype(float)),
    "labels of NaN": lambda: change("train_labels", lambda y: np.full(y.shape, np.nan)),
    "labels from 1 to 3": lambda: change("train_labels", lambda y: y + 1),
    "labels of -1": lambda: change("train_labels", lambda y: y.astype(int) - 1),
    "fourteen labels an image": lambda: change("train_labels", lambda y: np.zeros((12, 14), np.uint8)),
    "labels as a table": lambda: change("train_labels", lambda y: y[:, :, None]),
    "labels of text": lambda: change("train_labels", lambda y: y.astype(str)),
    "labels of truth values": lambda: change("train_labels", lambda y: y > 0),
    "no test labels": lambda: {k: v for k, v in arrays().items() if k != "test_labels"},
    "keys of another data set": lambda: {k.replace("val", "valid"): v for k, v in arrays().items()},
    "nothing": dict,
}


@fault("label", "an npz file with {what}", what=NPZ)
def _(folder, what):
    np.savez(folder / "a.npz", **NPZ[what]())
    load_medmnist(folder / "a.npz", None, 3, 3)


def rewritten(how):
    "The bytes of an npz file, changed."
    out = io.BytesIO()
    np.savez(out, **arrays())
    return how(out.getvalue())


def twice(data: bytes) -> bytes:
    "One array stands twice in the archive; the second is another."
    out = io.BytesIO(data)
    other = io.BytesIO()
    np.save(other, np.zeros((12, 8, 8, 3), np.uint8))
    with zipfile.ZipFile(out, "a") as z:
        z.writestr("train_images.npy", other.getvalue())
    return out.getvalue()


def encrypted(data: bytes) -> bytes:
    "The flag of encryption is set in every header."
    data = bytearray(data)
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        i = -1
        while (i := data.find(mark, i + 1)) >= 0:
            data[i + at] |= 1
    return bytes(data)


def alone(data: bytes) -> bytes:
    out = io.BytesIO()
    np.save(out, np.zeros((12, 8, 8, 3), np.uint8))
    return out.getvalue()


def flipped(data: bytes) -> bytes:
    "One pixel was changed, and the check sum of the archive left as it was."
    return data[:400] + bytes([data[400] ^ 255]) + data[401:]


FILES = {
    "an array that stands twice": twice,
    "the flag of encryption": encrypted,
    "one npy array in place of an archive": alone,
    "a changed pixel": flipped,
    "its second half missing": lambda d: d[: len(d) // 2],
    "its last 10 bytes missing": lambda d: d[:-10],
    "a text in front": lambda d: b"HTTP/1.1 404 Not Found\r\n\r\n",
    "a page that says 404": lambda d: b"<html>404</html>",
}


@fault("storage", "an npz file with {what}", what=FILES)
def _(folder, what):
    (folder / "a.npz").write_bytes(rewritten(FILES[what]))
    load_medmnist(folder / "a.npz", None, 3, 3)


@fault("storage", "a folder called a.npz", says="there is no file")
def _(folder):
    (folder / "a.npz").mkdir()
    load_medmnist(folder / "a.npz", None, 3, 3)


FINE = {
    "Fortran order": lambda: change("train_images", np.asfortranarray),
    "labels of 64 bits": lambda: change("train_labels", lambda y: y.astype(np.int64)),
    "labels [N]": lambda: change("train_labels", lambda y: y[:, 0]),
    "big-endian labels": lambda: change("train_labels", lambda y: y.astype(">i4")),
    "another array beside": lambda: arrays() | dict(names=np.zeros(3)),
    "floats in [0, 1]": lambda: change("train_images", lambda x: x / np.float32(255)),
}


@fault("label", "an npz file with {what}: right", "right", what=FINE)
def _(folder, what):
    given = FINE[what]()
    np.savez_compressed(folder / "a.npz", **given)
    train = load_medmnist(folder / "a.npz", None, 3, 3)["train"]
    wanted = given["train_images"] if given["train_images"].dtype == np.uint8 else np.rint(given["train_images"] * 255)
    assert (train.x.permute(0, 2, 3, 1).numpy() == wanted).all()
    assert (train.y.numpy() == np.arange(12) % 3).all()


X, Y = RNG.integers(0, 256, (12, 8, 8, 3), np.uint8), np.arange(12) % 3
ARRAYS = {
    "a class that has no image": lambda: ((X, Y % 2), (X + 1, Y), (X + 2, Y)),
    "a class without test images": lambda: ((X, Y), (X + 1, Y), (X + 2, Y % 2)),
    "labels beyond the sizes": lambda: ((X, Y + 1), (X + 1, Y), (X + 2, Y)),
    "text as labels": lambda: ((X, Y.astype(str)), (X + 1, Y), (X + 2, Y)),
    "images of three sizes": lambda: ((X, Y), (X[:, :6, :6], Y), (X[:, :4, :4], Y)),
    "grey validation images": lambda: ((X, Y), (X[..., :1], Y), (X + 2, Y)),
    "no labels": lambda: ((X, None), (X + 1, Y), (X + 2, Y)),
    "images of objects": lambda: ((X.astype(object), Y), (X + 1, Y), (X + 2, Y)),
    "a ragged list": lambda: (([X[0], X[1, :4]], [0, 1]), (X + 1, Y), (X + 2, Y)),
    "three values in a pair": lambda: ((X, Y, Y), (X + 1, Y), (X + 2, Y)),
    "nothing for validation": lambda: ((X, Y), None, (X + 2, Y)),
    "images and labels in the wrong order": lambda: ((Y, X), (X + 1, Y), (X + 2, Y)),
}


@fault("label", "arrays of one's own with {what}", what=ARRAYS)
def _(folder, what):
    scenario = from_arrays(*ARRAYS[what](), sizes=[2, 1])
    scenario.test(1)


SIZES = {
    "no task": [],
    "a task of no class": [3, 0],
    "a negative task": [4, -1],
    "half a class": [1.5, 1.5],
    "text": ["2", "1"],
    "a number": 3,
    "true": [True, 2],
    "fewer classes than labels": [2],
}


@fault("label", "task sizes: {what}", what=SIZES)
def _(folder, what):
    from_arrays((X, Y), (X + 1, Y), (X + 2, Y), sizes=SIZES[what])


ORDERS = {
    "a class twice": [0, 0, 1],
    "a class too many": [0, 1, 2, 3],
    "negative": [-1, 0, 1],
    "text": ["0", "1", "2"],
    "half classes": [0.5, 1, 2],
    "true": [True, False, 2],
    "a number": 2,
}


@fault("label", "class order: {what}", what=ORDERS)
def _(folder, what):
    from_arrays((X, Y), (X + 1, Y), (X + 2, Y), sizes=[2, 1], class_order=ORDERS[what])
