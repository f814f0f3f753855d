"Files as people have them, made small: DICOM, video, pictures, NIfTI, MATLAB."

from __future__ import annotations

import io
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np

SECRET = "Doe^Jane-19480317"  # stands in headers, names of files and names of folders; never in what we say
EXPLICIT, IMPLICIT, DEFLATED = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99"
JPEG, LOSSLESS, JPEG_LS, J2K = (f"1.2.840.10008.1.2.4.{k}" for k in (50, 70, 80, 90))
RLE = "1.2.840.10008.1.2.5"


def moving(frames: int = 4, height: int = 48, width: int = 64) -> np.ndarray:  # uint8 [T, H, W]
    "Smooth grey frames of which no two are alike; each corner has a brightness of its own."
    y, x = np.mgrid[:height, :width]
    return np.stack([((x * 3 + y * 2 + 10 * t) % 200 + 20).astype(np.uint8) for t in range(frames)])


def heart(i: int = 0, frames: int = 14, size: int = 64) -> np.ndarray:  # uint8 [T, H, W]
    "A moving sector on black."
    y, x = np.mgrid[:size, :size]
    fan = ((x - size / 2) ** 2 + y**2 < (0.94 * size) ** 2) & (abs(x - size / 2) < 0.8 * y)
    wave = lambda t: 130 + 60 * np.sin(x / 7 + i + t / 2) * np.cos(y / 9 - t / 3)
    return np.stack([np.where(fan, wave(t), 0).astype(np.uint8) for t in range(frames)])


def picture(x: np.ndarray, kind: str = "PNG", **more) -> bytes:
    "One picture as the bytes of a file."
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(x).save(out, kind, **more)
    return out.getvalue()


def jpeg_lossless(x: np.ndarray) -> bytes:  # of uint8 [H, W]
    "Process 14, selection value 1, one component of 8 bits; nine categories with codes of 4 bits."
    d = x.astype(int)
    p = np.empty_like(d)
    p[:, 1:], p[1:, 0], p[0, 0] = d[:, :-1], d[:-1, 0], 128
    bits = []
    for v in (d - p).ravel():
        n = int(abs(v)).bit_length()
        bits.append(f"{n:04b}" + (f"{(v if v > 0 else v + (1 << n) - 1):0{n}b}" if n else ""))
    b = "".join(bits)
    b += "1" * (-len(b) % 8)
    body = bytes(int(b[i : i + 8], 2) for i in range(0, len(b), 8)).replace(b"\xff", b"\xff\x00")
    sof = b"\xff\xc3\x00\x0b\x08" + struct.pack(">2H", *x.shape) + b"\x01\x01\x11\x00"
    dht = b"\xff\xc4\x00\x1c\x00" + bytes([0, 0, 0, 9] + [0] * 12) + bytes(range(9))
    return b"\xff\xd8" + sof + dht + b"\xff\xda\x00\x08\x01\x01\x00\x01\x00\x00" + body + b"\xff\xd9"


def dataset(x: np.ndarray, uid: str = EXPLICIT, frames: list[bytes] | None = None, **more):
    "A pydicom data set with a name in its header; `frames` are compressed ones; more: other elements, None: none."
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID("1.2.840.10008.5.1.4.1.1.3.1"), generate_uid()
    meta.TransferSyntaxUID = UID(uid)
    ds = FileDataset("x", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.StudyDate = SECRET, SECRET, "19480317", "20200101"
    ds.Rows, ds.Columns, ds.NumberOfFrames = *x.shape[1:3], len(x)
    ds.SamplesPerPixel, ds.PhotometricInterpretation = (3, "RGB") if x.ndim == 4 else (1, "MONOCHROME2")
    if x.ndim == 4:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = ds.BitsStored = 8 * x.dtype.itemsize
    ds.HighBit, ds.PixelRepresentation, ds.FrameTime = ds.BitsStored - 1, int(x.dtype.kind == "i"), "33"
    ds.PixelData = encapsulate(frames) if frames else x.tobytes()
    for k, v in more.items():
        if v is None:
            del ds[k]
        else:
            setattr(ds, k, v)
    return ds


def dicom(path: Path, x: np.ndarray, uid: str = EXPLICIT, frames: list[bytes] | None = None, **more) -> Path:
    "A DICOM file."
    ds = dataset(x, EXPLICIT if uid == RLE else uid, frames, **more)
    if uid == RLE:
        ds.compress(RLE)
    ds.save_as(path, enforce_file_format=True)
    return path


def palette(ds) -> None:
    "Make a data set one that stores numbers into a palette which turns brightness around."
    ds.PhotometricInterpretation = "PALETTE COLOR"
    for i in range(3):
        ds.add_new(0x00281101 + i, "US", [256, 0, 16])
        ds.add_new(0x00281201 + i, "OW", (np.arange(256, dtype=np.uint16)[::-1] * 257).tobytes())


def bomb(path: Path, x: np.ndarray, megabytes: int) -> Path:
    "A deflated DICOM file whose header is honest and whose data unpack to far more."
    dicom(path, x, DEFLATED)
    data = path.read_bytes()
    start = 144 + struct.unpack("<I", data[140:144])[0]
    plain = zlib.decompress(data[start:], -15)
    z = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = z.compress(plain + b"\xfc\xff\xfc\xffOB\0\0" + struct.pack("<I", megabytes << 20))
    for _ in range(megabytes):
        packed += z.compress(bytes(1 << 20))
    path.write_bytes(data[:start] + packed + z.flush())
    return path


def video(path: Path, x: np.ndarray, codec: str, rate: int = 25, pts: list[int] | None = None, gop: int = 12) -> Path:
    "A video file of frames [T, H, W] or [T, H, W, 3]; pts: times of the frames in units of a frame."
    import av

    kinds = {"mjpeg": "yuvj420p", "rawvideo": "bgr24", "ffv1": "gray"}
    with av.open(str(path), "w") as box:
        s = box.add_stream(codec, rate=rate)
        s.width, s.height, s.pix_fmt, s.gop_size = x.shape[2], x.shape[1], kinds.get(codec, "yuv420p"), gop
        for t, f in enumerate(x):
            rgb = f if f.ndim == 3 else np.repeat(f[..., None], 3, -1)
            v = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
            v.pts, v.time_base = t if pts is None else pts[t], Fraction(1, rate)
            box.mux(s.encode(v))
        box.mux(s.encode())
    return path


def trim(source: Path, path: Path, seconds: float) -> Path:
    "Cut the beginning off without encoding, as `ffmpeg -ss ... -c copy` does: an edit list hides what stays before."
    import av

    with av.open(str(source)) as i, av.open(str(path), "w") as o:
        s = i.streams.video[0]
        copy, shift = o.add_stream_from_template(s), int(seconds / s.time_base)
        for k in i.demux(s):
            if k.dts is not None:
                k.pts -= shift
                k.dts -= shift
                k.stream = copy
                o.mux(k)
    return path


def turn(path: Path, matrix: tuple[float, float, float, float]) -> Path:
    "Write a display matrix (a, b, c, d) into the header of an MP4 file, as a phone does."
    b = bytearray(path.read_bytes())
    i = b.find(b"tkhd") + 44
    a, b_, c, d = (round(v * 65536) & 0xFFFFFFFF for v in matrix)
    b[i : i + 36] = struct.pack(">9I", a, b_, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(b)
    return path


def tiff(path: Path, x: np.ndarray) -> Path:
    "Pages of a TIFF file."
    from PIL import Image

    ims = [Image.fromarray(f) for f in x]
    ims[0].save(path, save_all=True, append_images=ims[1:])
    return path


def png16(x: np.ndarray) -> bytes:  # of uint16 [H, W, 3]
    "A colour PNG of 16 bits per channel, which Pillow cannot write."
    part = lambda t, d: struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d))
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in x)
    head = struct.pack(">IIBBBBB", x.shape[1], x.shape[0], 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(raw)) + part(b"IEND", b"")


def tiff16(x: np.ndarray) -> bytes:  # of uint16 [H, W, 3]
    "A colour TIFF of 16 bits per channel, which Pillow cannot write."
    tags = {256: (3, 1, x.shape[1]), 257: (3, 1, x.shape[0]), 258: (3, 3, 146), 259: (3, 1, 1), 262: (3, 1, 2)}
    tags |= {273: (4, 1, 152), 277: (3, 1, 3), 278: (3, 1, x.shape[0]), 279: (4, 1, x.nbytes), 284: (3, 1, 1)}
    tags[339] = (3, 1, 1)
    rows = b"".join(struct.pack("<HHI", k, *v[:2]) + struct.pack("<I", v[2]) for k, v in sorted(tags.items()))
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + rows + bytes(4)
    return head + struct.pack("<3H", 16, 16, 16) + x.astype("<u2").tobytes()


def nifti(path: Path, x: np.ndarray, affine: np.ndarray | None = None) -> Path:
    "A half sequence [W, H, T], as CAMUS keeps it."
    import nibabel

    nibabel.save(nibabel.Nifti1Image(x.transpose(2, 1, 0), np.eye(4) if affine is None else affine), path)
    return path


def matlab(path: Path, x: np.ndarray, packed: bool = True) -> Path:
    "The form of the paper's data."
    from scipy.io import savemat

    savemat(path, {"Patient": {"DicomImage": x.transpose(1, 2, 0), "Name": SECRET}}, do_compression=packed)
    return path


def animated(path: Path, x: np.ndarray, **more) -> Path:
    "A GIF."
    from PIL import Image

    ims = [Image.fromarray(f) for f in x]
    ims[0].save(path, save_all=True, append_images=ims[1:], **more)
    return path


def image_folder(folder: Path, names=("a", "b"), n: int = 2, ending: str = ".png", size: int = 12) -> Path:
    "train, val and test, each with folders of classes."
    rng = np.random.default_rng(0)
    for part in ("train", "val", "test"):
        for name in names:
            (folder / part / name).mkdir(parents=True)
            for i in range(n):
                x = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
                kind = {"jpg": "JPEG", "tif": "TIFF"}.get(ending[1:], ending[1:].upper())
                (folder / part / name / f"{i}{ending}").write_bytes(picture(x, kind))
    return folder


def manifest(folder: Path, n: int = 6, write=None, ending: str = ".npy") -> Path:
    "Series of hearts of n patients, and the table that names them."
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["path,view,patient"]
    for i in range(n):
        p = folder / f"{i}{ending}"
        (write or np.save)(p, heart(i))
        rows.append(f"{i}{ending},{('AP4', 'AP2')[i % 2]},{SECRET} {i}")
    (folder / "m.csv").write_text("\n".join(rows) + "\n")
    return folder / "m.csv"


def put_name(x: np.ndarray, sector: np.ndarray, text: str, height: int, rng: np.random.Generator) -> np.ndarray:
    "White letters at a random place inside the sector of every frame."
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(height)
    left, top, right, bottom = font.getbbox(text)
    tall, wide = bottom - top, right - left
    fits = lambda r, c: (
        sector[r : r + tall, c : c + wide].all() and r + tall < len(sector) and c + wide < sector.shape[1]
    )
    r, c = next(map(int, place) for place in rng.permutation(np.argwhere(sector)) if fits(*place))
    letters = Image.new("L", sector.shape[::-1])
    ImageDraw.Draw(letters).text((c - left, r - top), text, fill=255, font=font)
    ink = np.asarray(letters, np.float32) / 255
    return (x * (1 - ink) + 255 * ink).round().astype(np.uint8)
