"Files of the kind that scanners write, for tests: DICOM and video from arrays, and letters burnt into a picture."

import io
from pathlib import Path

import numpy as np
import pytest

SECRET = "Doe^Jane-19480317"


def as_jpeg(frame: np.ndarray) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(frame).save(out, "JPEG", quality=90)
    return out.getvalue()


def dicom(path: Path, x: np.ndarray, rle: bool = False, jpeg: bool = False, **more) -> Path:
    "A multi-frame ultrasound image that names a patient."
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit, RLELossless, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = (
        "1.2.840.10008.5.1.4.1.1.3.1",
        generate_uid(),
        ExplicitVRLittleEndian,
    )
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.StudyDate = SECRET, SECRET, "19480317", "20200101"
    ds.Rows, ds.Columns, ds.NumberOfFrames = *x.shape[1:3], len(x)
    ds.SamplesPerPixel, ds.PhotometricInterpretation = (3, "RGB") if x.ndim == 4 else (1, "MONOCHROME2")
    if x.ndim == 4:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation, ds.FrameTime = 7, 0, "33"
    ds.PixelData = x.tobytes()
    for k, v in more.items():
        setattr(ds, k, v)
    if rle:
        ds.compress(RLELossless)
    if jpeg:
        ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        ds.PixelData = encapsulate([as_jpeg(f) for f in x])
        ds["PixelData"].VR = "OB"
    pydicom.dcmwrite(path, ds)
    return path


def video(path: Path, x: np.ndarray, codec: str) -> Path:
    "A video of one of FFmpeg's encoders."
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as box:
        s = box.add_stream(codec, rate=25)
        s.width, s.height = x.shape[2], x.shape[1]
        s.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for f in x:
            rgb = f if f.ndim == 3 else np.repeat(f[..., None], 3, -1)
            for packet in s.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")):
                box.mux(packet)
        for packet in s.encode():
            box.mux(packet)
    return path


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
