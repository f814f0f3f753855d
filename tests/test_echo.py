"""Cine series: files of every format written here and read back, crafted hostile ones, a planted name, the store, the
phantom, whole runs.
"""

import json
import os
import stat
import threading
import tracemalloc
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from classimpression import cli
from classimpression.echo.store import CineStore, cine_splits, write_store
from classimpression.core.errors import ConfigError, DataError, LeakError, StateError
from classimpression.data import Split
from classimpression.echo.deidentify import NOT_SEARCHED, clean_frames, decoded, load_salt, sector_mask
from classimpression.echo.scenario import CACHE_VARIABLE, phantom_store
from classimpression.studies.cine_level import calibration_error, frame_rows, player
from classimpression.echo.manifest import (
    ALIKE,
    REPEATED,
    index_manifest,
    layout_manifest,
    read_manifest,
    split_by_patient,
)
from classimpression.echo.phantom import VIEWS, PhantomConfig, phantom_series
from classimpression.echo.readers import Limits, read_series
from faults import files
from faults.files import SECRET, dicom, put_name, video

CFG = PhantomConfig(frames=5, size=64)


@pytest.fixture(scope="module")
def frames():
    return phantom_series(CFG, 0, "AP4").numpy()


# ---------------------------------------------------------------- readers


@pytest.mark.parametrize("rle", [files.EXPLICIT, files.RLE])
def test_dicom(tmp_path, frames, rle):
    assert np.array_equal(read_series(dicom(tmp_path / "a.dcm", frames, rle)), frames)
    colour = np.repeat(frames[..., None], 3, -1)
    assert np.array_equal(read_series(dicom(tmp_path / "b.dcm", colour, rle)), frames)
    assert np.array_equal(
        read_series(dicom(tmp_path / "c.dcm", 255 - frames, PhotometricInterpretation="MONOCHROME1")), frames
    )


def test_dicom_as_scanners_write_it(tmp_path, frames):
    "JPEG frames, a palette, no ending, a rate in place of the time per frame."
    pydicom = pytest.importorskip("pydicom")
    dicom(tmp_path / "a.dcm", frames, files.JPEG, [files.picture(f, "JPEG", quality=95) for f in frames])
    assert np.abs(read_series(tmp_path / "a.dcm").astype(int) - frames).mean() < 5
    for name in ("IM_0001", "1.2.840.113"):
        assert np.array_equal(read_series(dicom(tmp_path / name, frames)), frames)
    ds = files.dataset(255 - frames)
    files.palette(ds)
    ds.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    assert np.array_equal(read_series(tmp_path / "b.dcm"), frames)
    ds = pydicom.dcmread(dicom(tmp_path / "c.dcm", frames))
    del ds.FrameTime
    ds.CineRate = 1
    pydicom.dcmwrite(tmp_path / "c.dcm", ds)
    with pytest.raises(DataError, match="max_seconds"):
        read_series(tmp_path / "c.dcm", Limits(max_seconds=4))


def test_jpeg_lossless_with_its_decoder(tmp_path, frames):
    pytest.importorskip("gdcm", reason="the extra `dicom` is not installed")
    dicom(tmp_path / "a.dcm", frames, files.LOSSLESS, [files.jpeg_lossless(f) for f in frames])
    assert np.array_equal(read_series(tmp_path / "a.dcm"), frames)


def test_a_video_that_was_cut_off_is_refused(tmp_path, frames):
    for name, codec in (("a.avi", "mjpeg"), ("a.mp4", "libx264")):
        whole = video(tmp_path / name, np.concatenate([frames] * 6), codec).read_bytes()
        assert len(read_series(tmp_path / name)) == 30
        (tmp_path / name).write_bytes(whole[: 2 * len(whole) // 3])
        with pytest.raises(DataError, match="cut off|cannot be read"):
            read_series(tmp_path / name)


def test_a_video_that_was_cut_off_inside_dicom_is_refused(tmp_path, frames):
    x, uid = np.concatenate([frames] * 6), "1.2.840.10008.1.2.4.100"
    whole = video(tmp_path / "a.mpg", x, "mpeg2video").read_bytes()
    coded = lambda data: [data + bytes(len(data) % 2)]
    assert read_series(dicom(tmp_path / "a.dcm", x, uid, coded(whole))).shape == x.shape
    for declared, data in ((30, whole[: len(whole) // 2]), (300, whole)):
        with pytest.raises(DataError, match=f"declares {declared} frames and holds .*cut off"):
            read_series(dicom(tmp_path / "b.dcm", x, uid, coded(data), NumberOfFrames=declared))


@pytest.mark.parametrize("kind", ["window", "palette"])
def test_tables_take_no_memory_by_the_pixel(tmp_path, kind):
    x = np.random.default_rng(0).integers(0, 256, (40, 200, 200), dtype=np.uint8)
    ds = files.dataset(x, **(dict(WindowCenter=100, WindowWidth=200) if kind == "window" else {}))
    if kind == "palette":
        files.palette(ds)
    ds.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    read_series(tmp_path / "a.dcm", colour="mean")  # imports
    tracemalloc.start()
    try:
        read_series(tmp_path / "a.dcm", colour="mean")
        assert tracemalloc.get_traced_memory()[1] < 6 * x.nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name, codec", [("a.mp4", "libx264"), ("a.mp4", "mpeg4"), ("a.avi", "mjpeg")])
def test_video(tmp_path, frames, name, codec):
    x = read_series(video(tmp_path / name, frames, codec))
    assert x.shape == frames.shape and np.abs(x.astype(int) - frames).mean() < 12  # these encoders lose something


def test_other_formats(tmp_path, frames):
    nib, io = pytest.importorskip("nibabel"), pytest.importorskip("scipy.io")
    nib.save(nib.Nifti1Image(frames.transpose(2, 1, 0), np.eye(4)), tmp_path / "a.nii.gz")
    np.save(tmp_path / "a.npy", frames)
    io.savemat(
        tmp_path / "a.mat", {"Patient": {"DicomImage": frames.transpose(1, 2, 0), "Name": SECRET}}, do_compression=True
    )
    io.savemat(tmp_path / "b.mat", {"Patient": {"DicomImage": frames.transpose(1, 2, 0)}})
    from PIL import Image

    ims = [Image.fromarray(f) for f in frames]
    ims[0].save(tmp_path / "a.gif", save_all=True, append_images=ims[1:])
    for name in ("a.npy", "a.mat", "b.mat", "a.gif"):
        assert np.array_equal(read_series(tmp_path / name), frames), name
    x = read_series(tmp_path / "a.nii.gz")
    assert np.array_equal(x, frames) or np.abs(x.astype(int) - frames.astype(float) * 255 / frames.max()).max() <= 1


def test_damaged_files_name_nobody(tmp_path, frames):
    nib, io = pytest.importorskip("nibabel"), pytest.importorskip("scipy.io")
    dicom(tmp_path / f"{SECRET}.dcm", frames)
    video(tmp_path / f"{SECRET}.mp4", frames, "libx264")
    video(tmp_path / f"{SECRET}.avi", frames, "mjpeg")
    nib.save(nib.Nifti1Image(frames.transpose(2, 1, 0), np.eye(4)), tmp_path / f"{SECRET}.nii.gz")
    np.save(tmp_path / f"{SECRET}.npy", frames)
    io.savemat(tmp_path / f"{SECRET}.mat", {"Patient": {"DicomImage": frames.transpose(1, 2, 0)}}, do_compression=True)
    for p in list(tmp_path.iterdir()):
        whole = p.read_bytes()
        for damage in (whole[: len(whole) // 3], b"", b"\0" * 400):
            p.write_bytes(damage)
            with pytest.raises(DataError) as e:
                read_series(p)
            assert SECRET not in str(e.value) and str(tmp_path) not in str(e.value), e.value


def test_a_header_that_asks_for_too_much_gets_no_memory(tmp_path, frames):
    with pytest.raises(DataError, match="max_frames"):
        read_series(dicom(tmp_path / "a.dcm", frames, NumberOfFrames=10**8))
    with pytest.raises(DataError, match="max_pixels"):
        read_series(dicom(tmp_path / "b.dcm", frames, Rows=60000, Columns=60000))
    with pytest.raises(DataError, match="max_seconds"):
        read_series(dicom(tmp_path / "c.dcm", frames, FrameTime="99999"))
    with pytest.raises(DataError, match="32 bits per pixel"):
        read_series(dicom(tmp_path / "d.dcm", frames.astype(np.uint32)))
    head = np.lib.format.header_data_from_array_1_0(frames) | dict(shape=(1900, 2000, 1900))
    with open(tmp_path / "a.npy", "wb") as f:
        np.lib.format.write_array_header_1_0(f, head)
    with pytest.raises(DataError, match="max_bytes"):
        read_series(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.array([{"x": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="only plain numbers"):
        read_series(tmp_path / "b.npy")
    bomb = zlib.compress(b"\0" * 50_000_000)
    (tmp_path / "a.mat").write_bytes(
        b"MATLAB 5.0".ljust(124) + b"\x00\x01IM" + (15).to_bytes(4, "little") + len(bomb).to_bytes(4, "little") + bomb
    )
    with pytest.raises(DataError, match="unpacks to more than"):
        read_series(tmp_path / "a.mat", Limits(max_bytes=10_000_000))
    with pytest.raises(DataError, match="max_frames"):
        read_series(video(tmp_path / "a.mp4", np.repeat(frames, 3, 0), "libx264"), Limits(max_frames=7))
    for p in (video(tmp_path / "b.avi", frames[:1], "mjpeg"), dicom(tmp_path / "e.dcm", frames[:1])):
        with pytest.raises(DataError, match="set min_frames to 1"):
            read_series(p)
        assert len(read_series(p, Limits(min_frames=1))) == 1


def test_colour_and_other_contents(tmp_path, frames):
    io = pytest.importorskip("scipy.io")
    doppler = np.repeat(frames[..., None], 3, -1)
    doppler[2:, 20:40, 20:40] = (250, 10, 10)
    for p in (dicom(tmp_path / "a.dcm", doppler), video(tmp_path / "a.mp4", doppler, "libx264")):
        with pytest.raises(DataError, match="colour Doppler"):
            read_series(p)
        assert read_series(p, colour="mean").shape == frames.shape
    with pytest.raises(DataError, match="declares colour flow"):
        read_series(dicom(tmp_path / "b.dcm", frames, UltrasoundColorDataPresent=1))
    burned = dicom(tmp_path / "c.dcm", frames, BurnedInAnnotation="YES")
    with pytest.raises(DataError, match="burned-in"):
        read_series(burned)
    assert np.array_equal(read_series(burned, masked=True), frames)
    io.savemat(tmp_path / "a.mat", {"Other": 1})
    io.savemat(tmp_path / "b.mat", {"Patient": {"Age": 3}})
    io.savemat(tmp_path / "c.mat", {"Patient": {"DicomImage": [[["a"]]]}})
    for name, message in (("a.mat", "no struct Patient"), ("b.mat", "no DicomImage"), ("c.mat", "must be numbers")):
        with pytest.raises(DataError, match=message):
            read_series(tmp_path / name)
    (tmp_path / "d.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(512))
    (tmp_path / "a.xyz").touch()
    with pytest.raises(DataError, match="-v7"):
        read_series(tmp_path / "d.mat")
    with pytest.raises(DataError, match="unknown"):
        read_series(tmp_path / "a.xyz")


# ---------------------------------------------------------------- manifest and store


def hospital(folder: Path, n: int = 6, **more) -> Path:
    "A folder of DICOM files with names in headers, in letters on the picture, and in the files' names."
    folder.mkdir(parents=True, exist_ok=True)
    rows, letters = [], np.random.default_rng(0).random((12, 60)) > 0.5
    for p in range(n):
        for v in VIEWS:
            screen = np.zeros((4, 110, 130), np.uint8)
            screen[:, 30:94, 40:104] = phantom_series(PhantomConfig(frames=4), p, v)
            screen[:, 4:16, 4:64] = 255 * letters
            rows.append(dict(path=f"{SECRET}-{p}-{v}.dcm", view=v, patient=f"{SECRET} {p}"))
            dicom(folder / rows[-1]["path"], screen, **more)
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    return hospital(tmp_path_factory.mktemp("ward"))


@pytest.mark.slow
def test_a_planted_name_is_nowhere(ward, tmp_path, capsys):
    bad = ward.parent / f"{SECRET}-bad.dcm"
    bad.write_bytes(b"damaged " + SECRET.encode())
    table = pd.concat([pd.read_csv(ward), pd.DataFrame([dict(path=bad.name, view="AP2", patient=SECRET)])])
    table.to_csv(ward.parent / "with_bad.csv", index=False)
    (tmp_path / "data").mkdir()
    args = ["data", "index", str(ward.parent / "with_bad.csv"), "--root", str(tmp_path / "data"), "--size", "48"]
    assert cli.main(args) == 2 and not (tmp_path / "data" / "echo").exists()
    refused = capsys.readouterr()
    assert "1 of 31 series cannot be read, the first in row 32" in refused.err
    assert cli.main([*args, "--skip-unreadable"]) == 0
    shown = capsys.readouterr()
    assert "30 series" in shown.out and "train: 15 series of 3 patients" in shown.out
    written = [p for p in (tmp_path / "data").rglob("*") if p.is_file()]
    assert {p.name for p in written} >= {"frames.npy", "index.json", "echo.report.json", "echo.salt"}
    text = (
        b"".join(p.read_bytes() + str(p.relative_to(tmp_path)).encode() for p in written)
        + "".join([*refused, *shown]).encode()
    )
    for secret in (SECRET, "Doe", "19480317", "20200101", str(ward.parent)):
        assert secret.encode() not in text, secret
    assert stat.S_IMODE(os.stat(tmp_path / "data" / "echo.salt").st_mode) == 0o600
    store = CineStore.open(tmp_path / "data" / "echo")
    letters = clean_frames(read_series(ward.parent / f"{SECRET}-0-AP4.dcm"), 48)
    assert np.array_equal(letters, store.frames[store.series[2]["start"] :][:4].numpy())
    assert json.loads((tmp_path / "data" / "echo.report.json").read_text())["unreadable"][0]["row"] == 32


def test_letters_on_the_picture_are_black_in_the_store(ward):
    x = read_series(ward.parent / f"{SECRET}-0-PLAX.dcm")
    mask = sector_mask(x)
    assert not mask[:17, :66].any() and x[0, 4:16, 4:64].any()
    only_letters = np.where(mask, 0, x)
    assert not clean_frames(only_letters, 48, mask).any()


def test_declared_annotation_needs_a_mask(tmp_path):
    m = hospital(tmp_path / "w", 5, BurnedInAnnotation="YES")
    with pytest.raises(DataError, match="burned-in"):
        index_manifest(m, tmp_path / "s", size=32)
    mask = np.zeros((110, 130), bool)
    mask[30:94, 40:104] = True
    store = index_manifest(m, tmp_path / "s", size=32, mask=mask)
    assert len(store.series) == 25
    with pytest.raises(StateError, match="other files or settings"):
        index_manifest(m, tmp_path / "s", size=32, mask=~mask)


def test_what_was_decoded_is_not_decoded_again(ward, tmp_path, monkeypatch):
    from classimpression.echo import manifest

    table, calls, real = pd.read_csv(ward), [], manifest.decoded
    (ward.parent / "broken.dcm").write_bytes(b"damaged")
    pd.concat([table, pd.DataFrame([dict(path="broken.dcm", view="AP2", patient=table.patient[0])])]).to_csv(
        ward.parent / "with_broken.csv", index=False
    )
    monkeypatch.setattr(manifest, "decoded", lambda path, *how: calls.append(path.name) or real(path, *how))
    index = lambda size, **more: manifest.index_manifest(
        ward.parent / "with_broken.csv", tmp_path / "echo", size=size, **more
    )
    with pytest.raises(DataError, match="1 of 31 series cannot be read"):
        index(32)
    assert len(calls) == 31 and calls.count("broken.dcm") == 1
    store = index(32, skip=True)
    assert calls[31:] == ["broken.dcm"] and len(store.series) == 30 and not (tmp_path / ".echo.parts").exists()
    whole = manifest.index_manifest(ward, tmp_path / "apart" / "echo", size=32)
    assert whole.index["md5"] == store.index["md5"]  # the same frames, whichever way they came


def test_another_versions_frames_are_not_taken(tmp_path, monkeypatch):
    "Neither a store nor what waits of an interrupted index; a mend of the cleaning reaches both."
    from classimpression.echo import manifest

    m, real, calls = files.manifest(tmp_path / "w"), manifest.decoded, []
    index = lambda folder: index_manifest(m, tmp_path / folder / "echo", size=32)

    def stops(*how):
        calls.append(how)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*how)

    index("a")
    monkeypatch.setattr(manifest, "decoded", stops)
    with pytest.raises(KeyboardInterrupt):
        index("b")
    monkeypatch.setattr(manifest, "modules_digest", lambda *names: "another version")
    monkeypatch.setattr(manifest, "decoded", lambda *how: real(*how) // 2)
    with pytest.raises(StateError, match="made by another version"):
        index("a")
    store = index("b")
    assert all(store.frames[r["start"] :][: r["frames"]].max() < 128 for r in store.series)
    other = json.loads((tmp_path / "a" / "echo" / "index.json").read_text())
    del other["settings"]["code"]  # as before there was a key
    (tmp_path / "a" / "echo" / "index.json").write_text(json.dumps(other))
    with pytest.raises(StateError, match="made by another version"):
        index("a")


def test_a_damaged_part_is_decoded_again(tmp_path):
    m, parts = files.manifest(tmp_path / "w"), tmp_path / ".echo.parts"
    whole = index_manifest(m, tmp_path / "whole" / "echo", size=32)
    good = (tmp_path / "w" / "5.npy").read_bytes()
    (tmp_path / "w" / "5.npy").write_bytes(b"damaged")
    index = lambda **more: index_manifest(m, tmp_path / "echo", size=32, **more)
    with pytest.raises(DataError, match="1 of 6 series"):
        index()
    frames = sorted(p for p in parts.iterdir() if not p.suffix)
    frames[0].write_bytes(frames[0].read_bytes()[:500])
    frames[1].write_bytes(frames[1].read_bytes()[:-1] + b"x")
    frames[2].with_suffix(".json").write_text("[")
    frames[3].unlink()
    (tmp_path / "w" / "5.npy").write_bytes(good)
    with pytest.warns(UserWarning, match="damaged on the disk; it is decoded again") as said:
        assert index().index["md5"] == whole.index["md5"]
    assert sum("decoded again" in str(w.message) for w in said) == 4


def test_wrong_settings_are_not_blamed_on_files(tmp_path):
    m = files.manifest(tmp_path / "w")
    for wrong in (dict(size=2000), dict(colour="grey"), dict(seed=-1), dict(seed=0.5), dict(bits=99)):
        with pytest.raises(ConfigError, match=f"{[*wrong][0]} must "):
            index_manifest(m, tmp_path / "s" / "echo", skip=True, **wrong)
    with pytest.raises(ConfigError, match="mask must .* keep some"):
        index_manifest(m, tmp_path / "s" / "echo", mask=np.zeros((64, 64), bool))
    assert not (tmp_path / "s").exists()


def test_what_was_not_searched_for_letters_is_counted(tmp_path, frames):
    write = lambda p, x: np.save(p, x[: 11 if p.stem in "123" else 12])
    store = index_manifest(files.manifest(tmp_path / "w", write=write), tmp_path / "a", size=32)
    assert store.index["noticed"][NOT_SEARCHED] == 3
    seen, how = Counter(), (32, Limits(), "refuse", np.ones((64, 64), bool))
    for marks in ("refuse", "keep"):
        decoded(video(tmp_path / "a.avi", np.concatenate([frames] * 4), "mjpeg"), *how, marks, None, seen)
    assert seen[NOT_SEARCHED] == 1


def rows_added(folder: Path, *rows: str) -> Path:
    m = files.manifest(folder)
    m.write_text(m.read_text() + "".join(f"{r}\n" for r in rows))
    return m


def test_one_recording_is_one_view_of_one_patient(tmp_path):
    "The same bytes, or the same frames in another kind of file."
    index = lambda folder, **more: index_manifest(
        tmp_path / folder / "m.csv", tmp_path / f"{folder}.s", size=32, **more
    )
    zero = f"{SECRET} 0"
    for folder, row in (("view", f"x.npy,AP2,{zero}"), ("patient", "x.npy,AP4,other"), ("again", f"x.npy,AP4,{zero}")):
        rows_added(tmp_path / folder, row)
        (tmp_path / folder / "x.npy").write_bytes((tmp_path / folder / "0.npy").read_bytes())
    with pytest.raises(DataError, match="rows 2 and 8 of the manifest: the same file, byte by byte, as two views"):
        index("view")
    with pytest.raises(DataError, match="as two patients"):
        index("patient")
    again = index("again")
    assert len(again.series) == 7 and again.index["noticed"][REPEATED] == 1
    for folder, row in (("view", f"y.npy,AP2,{zero}"), ("patient", "y.npy,AP4,other"), ("again", f"y.npy,AP4,{zero}")):
        rows_added(tmp_path / folder, row)
        np.save(tmp_path / folder / "y.npy", files.heart(0) / 255)
    for folder in ("view", "patient"):
        with pytest.raises(
            DataError, match="first in row 8: the same frames as in row 2, which names another patient or"
        ):
            index(folder)
        assert len(index(folder, skip=True).series) == 6
    (tmp_path / "again.s" / "index.json").unlink()
    (tmp_path / "again.s" / "frames.npy").unlink()
    assert index("again").index["noticed"][REPEATED] == 1


def test_camus_unpacked_beside_packed_counts_once(tmp_path):
    for name in ("p_2CH_half_sequence.nii.gz", "p_2CH_half_sequence.nii", "p_4CH_half_sequence.NII"):
        (tmp_path / name).touch()
    f = layout_manifest("camus", tmp_path)
    assert f.path.tolist() == ["p_2CH_half_sequence.nii.gz", "p_4CH_half_sequence.NII"]
    assert [*f.attrs["noticed"].values()] == [1]


def test_names_that_are_alike_are_counted(tmp_path):
    who = ["7", "007", "P-12", "P12", "a", "b"]
    f = read_manifest(pd.DataFrame(dict(path=[f"{i}.npy" for i in range(6)], view="AP2", patient=who)))
    assert f.patient.tolist() == who and f.attrs["noticed"] == {ALIKE: 4}


def test_letters_inside_the_sector_stop_the_index(tmp_path, capsys):
    "A name that no header declares; the report says where, not what; a mask or a word lets the series in."
    (tmp_path / "w").mkdir()
    rows, rng = [], np.random.default_rng(0)
    for p in range(5):
        x = phantom_series(PhantomConfig(frames=14, size=96), p, "PSAX").numpy()
        if p == 3:
            x = put_name(x, sector_mask(x), "DOE JANE", 12, rng)
        dicom(tmp_path / "w" / f"{p}.dcm", x)
        rows.append(dict(path=f"{p}.dcm", view="PSAX", patient=p))
    pd.DataFrame(rows).to_csv(tmp_path / "w" / "m.csv", index=False)
    (tmp_path / "data").mkdir()
    args = ["data", "index", str(tmp_path / "w" / "m.csv"), "--root", str(tmp_path / "data"), "--size", "48"]
    assert cli.main(args) == 2 and not (tmp_path / "data" / "echo").exists()
    assert (
        "1 of 5 series cannot be read, the first in row 5" in (said := capsys.readouterr().err)
        and "stand still inside the sector" in said
    )
    report = lambda: json.loads((tmp_path / "data" / "echo.report.json").read_text())
    assert [r["row"] for r in report()["unreadable"]] == [5]
    assert cli.main([*args, "--marks", "keep"]) == 0 and "5 series" in capsys.readouterr().out
    assert report() == {"series": 5, "unreadable": [], "noticed": {}}
    with pytest.raises(StateError, match="other files or settings"):
        index_manifest(tmp_path / "w" / "m.csv", tmp_path / "data" / "echo", size=48)
    with pytest.raises(ConfigError, match="marks must be"):
        index_manifest(tmp_path / "w" / "m.csv", tmp_path / "s", marks="see")


def test_views_of_your_own_and_one_file_as_two_patients(tmp_path, frames, capsys):
    rows = []
    for p in range(6):
        for v in ("A5C", "<b>SC</b>"):
            np.save(tmp_path / f"{p}{v[1]}.npy", np.roll(frames, p, 1) // (1 + (v == "A5C")))
            rows.append(dict(path=f"{p}{v[1]}.npy", view=f"{v} ", patient=f" {p}"))
    (tmp_path / "5x.npy").write_bytes(b"no numpy")
    rows.append(dict(path="5x.npy", view="A3C", patient="5"))
    pd.DataFrame(rows).to_csv(tmp_path / "m.csv", index=False)
    args = ["data", "index", str(tmp_path / "m.csv"), "--root", str(tmp_path), "--size", "32", "--skip-unreadable"]
    assert cli.main(args) == 2 and "unknown view" in capsys.readouterr().err
    assert cli.main([*args, "--views", "A5C", "A3C", "<b>SC</b>"]) == 0
    assert CineStore.open(tmp_path / "echo").index["views"] == [
        "A5C",
        "<b>SC</b>",
    ]  # a view of which nothing could be read is none
    from classimpression.scenarios import make_scenario

    assert make_scenario("echo", root=tmp_path).class_names == ["A5C", "<b>SC</b>"]
    rows[2]["path"] = "same.npy"
    (tmp_path / "same.npy").write_bytes((tmp_path / rows[0]["path"]).read_bytes())
    pd.DataFrame(rows[:12]).to_csv(tmp_path / "m.csv", index=False)
    with pytest.raises(DataError, match="rows 2 and 4 of the manifest: the same file"):
        index_manifest(tmp_path / "m.csv", tmp_path / "t", size=32, views=("A5C", "<b>SC</b>"))
    assert not (tmp_path / "t").exists()


def test_a_store_belongs_to_its_manifest(ward, tmp_path):
    store = index_manifest(ward, tmp_path / "a" / "echo", size=32, skip=True)
    again = index_manifest(ward, tmp_path / "a" / "echo", size=32, skip=True)
    assert again.checksum == store.checksum
    table = pd.read_csv(ward)
    table.loc[0, "view"] = "PSAX"
    table.to_csv(ward.parent / "other.csv", index=False)
    for name in ("other.csv", "fewer.csv"):
        table.iloc[:29].to_csv(ward.parent / "fewer.csv", index=False)
        with pytest.raises(StateError, match="other files or settings"):
            index_manifest(ward.parent / name, tmp_path / "a" / "echo", size=32, skip=True)
    other = index_manifest(
        ward, tmp_path / "b" / "echo", size=32, skip=True
    )  # another salt: nobody can tell that these are the same patients
    assert {r["patient"] for r in other.series}.isdisjoint(r["patient"] for r in store.series)
    assert torch.equal(other.frames, store.frames)


def test_paths_stay_inside_their_root(ward, tmp_path):
    (tmp_path / "m").mkdir()
    source = next(ward.parent.glob("*.dcm"))
    (tmp_path / "m" / "link.dcm").symlink_to(source)
    for path in ("../x.dcm", str(source), "link.dcm"):
        pd.DataFrame([dict(path=path, view="AP2", patient=str(i)) for i in range(1)]).to_csv(
            tmp_path / "m" / "m.csv", index=False
        )
        with pytest.raises(DataError, match="row 2 of the manifest: its path, links followed, lies outside") as e:
            index_manifest(tmp_path / "m" / "m.csv", tmp_path / "s", size=32)
        assert SECRET not in str(e.value)


def test_manifests_that_cannot_be(tmp_path):
    def manifest(text, name="m.csv"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    for text, message in (
        ("", "is empty"),
        ("path,view,patient\n", "no rows"),
        ("path,view\na,AP2\n", "lacks the columns"),
        ("path,view,patient\na,<b>AP2</b>,1\n", "unknown view"),
        ("path,view,patient\n,AP2,1\n", "no path"),
        ("path,view,patient,split\na,AP2,1,train\nb,AP3,1,val\n", "more than one split"),
    ):
        with pytest.raises(DataError, match=message):
            read_manifest(manifest(text))
    with pytest.raises(DataError, match="no manifest"):
        read_manifest(tmp_path / "nowhere.csv")
    with pytest.raises(DataError, match="no Parquet table"):
        read_manifest(manifest("no parquet", "m.parquet"))
    with pytest.raises(DataError, match="too few"):
        index_manifest(manifest("path,view,patient\na.npy,AP2,1\n"), tmp_path / "s")
    with pytest.raises(ConfigError, match="unknown layout"):
        layout_manifest("mimic", tmp_path)


def test_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    table = pd.DataFrame([dict(path="a.npy", view="AP2", patient="007", split="train")])
    table.to_parquet(tmp_path / "m.parquet")
    assert read_manifest(tmp_path / "m.parquet").equals(table)


def test_splits_have_no_patient_in_common():
    who = [f"p{i % 40}" for i in range(200)]
    for seed in range(5):
        s = pd.DataFrame(dict(p=who, s=split_by_patient(who, seed)))
        assert s.groupby("p").s.nunique().max() == 1 and set(s.s) == {"train", "val", "test"}
        assert s.groupby("s").p.nunique().to_dict() == {"train": 24, "val": 6, "test": 10}


def test_full_disk_and_foreign_files(tmp_path):
    facts, x = dict(view="AP2", patient="a", split="train"), np.ones((3, 16, 16), np.uint8)

    def full():
        yield facts, x
        raise OSError(28, "No space left on device")

    write_store(tmp_path / "s", [(facts, x)], 16, VIEWS, {})
    before = CineStore.open(tmp_path / "s").checksum
    with pytest.raises(StateError, match="No space left"):
        write_store(tmp_path / "s", full(), 16, VIEWS, {})
    with pytest.raises(DataError, match="no series"):
        write_store(tmp_path / "s", [], 16, VIEWS, {})
    with pytest.raises(DataError, match="frames must be bytes"):
        write_store(tmp_path / "s", [(facts, x[:, :9])], 16, VIEWS, {})
    assert CineStore.open(tmp_path / "s").checksum == before and [p.name for p in tmp_path.iterdir()] == ["s"]
    index = json.loads((tmp_path / "s" / "index.json").read_text())
    for wrong, message in (
        (dict(schema="x"), "no store"),
        (dict(frames=9), "another size"),
        (dict(md5="0"), "wrong MD5"),
        (dict(series=[dict(index["series"][0], start=2)]), "do not fit"),
    ):
        (tmp_path / "s" / "index.json").write_text(json.dumps(index | wrong))
        with pytest.raises(StateError, match=message):
            CineStore.open(tmp_path / "s")
    (tmp_path / "salt").write_text("short")
    with pytest.raises(StateError, match="no salt"):
        load_salt(tmp_path / "salt")


ONE = [(dict(view="AP2", patient="a", split="train"), np.ones((3, 16, 16), np.uint8))]


@pytest.mark.parametrize("theirs", ["raw/0.npy", "frames.npy", "index.json"])
def test_a_folder_with_files_of_others_is_no_place_for_a_store(tmp_path, monkeypatch, theirs):
    "Refused before anything is decoded; the raw series and their table stay."
    from classimpression.echo import manifest

    def never():
        yield pytest.fail("asked for series")

    monkeypatch.setattr(manifest, "decoded", lambda *how: pytest.fail("decoded"))
    file = tmp_path / "echo" / theirs
    m = files.manifest(tmp_path / "echo", 6)
    file.parent.mkdir(exist_ok=True)
    file.write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    for index in (
        lambda: index_manifest(m, tmp_path / "echo"),
        lambda: write_store(tmp_path / "echo", never(), 16, VIEWS, {}),
    ):
        with pytest.raises(StateError, match="echo holds .*no store"):
            index()
    assert {p for p in tmp_path.rglob("*") if p.suffix != ".lock"} - {tmp_path / "echo.salt"} == set(before)


def test_an_earlier_store_outlives_a_failed_replacement(tmp_path, monkeypatch):
    "A full disk at the last step, a kill between two moves, a folder that is a link to another disk."
    (tmp_path / "disk").mkdir()
    (tmp_path / "s").symlink_to(tmp_path / "disk", target_is_directory=True)
    before = CineStore.open(write_store(tmp_path / "s", ONE, 16, VIEWS, {})).checksum
    assert (tmp_path / "s").is_symlink()
    other, move = [(ONE[0][0], ONE[0][1] * 2)], os.replace

    def full(a, b):
        if str(a).endswith(".tmp") and str(b) == str(tmp_path / "disk"):
            raise OSError(28, "No space left on device")
        move(a, b)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StateError, match="earlier store was left"):
        write_store(tmp_path / "s", other, 16, VIEWS, {})
    monkeypatch.undo()
    assert CineStore.open(tmp_path / "s").checksum == before
    move(tmp_path / "disk", tmp_path / ".disk.old")
    with pytest.raises(DataError, match="no series"):
        write_store(tmp_path / "s", [], 16, VIEWS, {})
    assert CineStore.open(tmp_path / "s").checksum == before
    assert CineStore.open(write_store(tmp_path / "s", other, 16, VIEWS, {})).checksum != before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["disk", "s"]


def test_frames_of_a_killed_attempt_do_not_stay(tmp_path):
    left, parts, theirs = (tmp_path / f".s.{name}" for name in ("0a1b2c3d4e5f.tmp", "parts", "mine.tmp"))
    for p in (left, parts, theirs):
        p.mkdir()
        (p / "frames.npy").write_bytes(b"frames")
    write_store(tmp_path / "s", ONE, 16, VIEWS, {})
    assert not left.exists() and parts.exists() and theirs.exists()


def test_one_salt_for_all_who_ask_at_once(tmp_path):
    def ask(i):
        start.wait()
        return load_salt(tmp_path / str(i // 6) / "salt")

    start = threading.Barrier(6, timeout=20)
    with ThreadPoolExecutor(6) as pool:
        salts = list(pool.map(ask, range(60)))
    assert len(set(salts)) == 10 and all(len({*salts[i : i + 6]}) == 1 for i in range(0, 60, 6))
    written = [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".lock"]
    assert len(written) == 10 and all(stat.S_IMODE(p.stat().st_mode) == 0o600 for p in written)


def test_changes_of_a_tensor_never_reach_the_file(tmp_path):
    write_store(
        tmp_path / "s", [(dict(view="AP2", patient="a", split="train"), np.ones((3, 16, 16), np.uint8))], 16, VIEWS, {}
    )
    CineStore.open(tmp_path / "s").frames.zero_()
    assert CineStore.open(tmp_path / "s").frames.all()


# ---------------------------------------------------------------- phantom, scenario, runs


def test_the_phantom_does_not_depend_on_threads_or_on_its_set():
    threads = torch.get_num_threads()
    try:
        made = []
        for n in (1, 2):
            torch.set_num_threads(n)
            made.append(phantom_series(PhantomConfig(frames=3, size=48), 7, "AP3", 1))
        assert torch.equal(*made) and torch.equal(
            made[0], phantom_series(PhantomConfig(patients=9, series=3, frames=3, size=48), 7, "AP3", 1)
        )
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def small(cache, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(cache))
    phantom_store.cache_clear()
    from classimpression.scenarios import make_scenario

    yield make_scenario("echo-phantom-mini")
    phantom_store.cache_clear()


@pytest.mark.slow
def test_runs_on_series(small, tmp_path):
    """Replay joins series, Class Impression draws frames, everything is reproducible; frames and series are judged
    afterwards.
    """
    from classimpression.runs.runner import profile_config, run

    results = [
        run(profile_config("smoke", m, tuned=False, scenario=small.name, out=str(tmp_path / o)), small)
        for m, o in (("class-impression", "a"), ("class-impression", "b"), ("replay", "a"), ("joint", "a"))
    ]
    a, b = ([t["confusion"] for t in r.data["tasks"]] for r in results[:2])
    assert (
        a == b
        and results[0].data["protocol"] == "strict"
        and results[0].data["data_free"]
        and results[0].data["scenario"]["checksum"] == small.checksum
    )
    rows, curves = frame_rows(results[2:], [small.again(), small.again()], 3)
    middle = rows[rows.level == "middle frame"].balanced_accuracy.tolist()
    assert middle == pytest.approx([r.metrics["balanced_accuracy"] for r in results[2:]])
    assert (
        set(rows.level) == {"middle frame", "any frame", "series"}
        and (curves.groupby(["method", "level"]).n.sum().unstack().loc["joint"] == [90, 30, 30]).all()
    )
    assert "/" not in json.dumps(results[0].data["scenario"])
    data = small.again()
    with data.training(1) as task:
        for read in (lambda: data.tasks[0].train, lambda: data.test(1), lambda: task.read(0, "train")):
            with pytest.raises(LeakError):
                read()


def test_your_own_series_become_a_scenario(ward, tmp_path):
    from classimpression.scenarios import make_scenario

    index_manifest(ward, tmp_path / "echo", size=32, skip=True)
    s = make_scenario("echo", root=tmp_path, class_order=[4, 3, 2, 1, 0], sizes=[3, 2])
    assert (s.class_names, s.size, s.sizes) == (list(VIEWS)[::-1], 32, [3, 2]) and len(s.test(1)) == 10
    damaged = bytearray((tmp_path / "echo" / "frames.npy").read_bytes())
    damaged[-1] ^= 255
    (tmp_path / "echo" / "frames.npy").write_bytes(damaged)
    os.utime(tmp_path / "echo" / "index.json", (1, 1))
    with pytest.raises(StateError, match="wrong MD5"):
        make_scenario("echo", root=tmp_path)
    with pytest.raises(DataError, match="data index MANIFEST"):
        make_scenario("echo", root=ward.parent)


def test_one_recording_in_train_and_test_is_refused(tmp_path):
    "Of your own series, as of arrays: other frames than the middle one may differ."
    from classimpression.scenarios import make_scenario

    rng = np.random.default_rng(0)
    new = lambda: rng.integers(0, 256, (3, 16, 16), dtype=np.uint8)
    facts = [dict(view=v, patient=f"{p}{v}", split=p) for p in ("train", "val", "test") for v in ("A", "B")]
    rows = [(f, new()) for f in facts]
    write_store(tmp_path / "echo", rows, 16, ["A", "B"], {})
    assert make_scenario("echo", root=tmp_path, sizes=[2]).facts()["shared_images"]["train, test"] == 0
    for part, of in (("train", 0), ("val", 2)):
        twice = np.concatenate([new()[:1], rows[of][1][1:2], new()[:1]])
        write_store(tmp_path / "echo", [*rows[:5], (facts[5], twice)], 16, ["A", "B"], {})
        with pytest.raises(DataError, match=f"1 of 2 test series have the middle frame of a series in {part}"):
            make_scenario("echo", root=tmp_path, sizes=[2])


def test_a_damaged_phantom_is_made_again(tmp_path):
    cfg = PhantomConfig(patients=5, series=1, frames=2, size=16)
    whole = phantom_store(cfg, tmp_path).checksum
    (file,) = tmp_path.glob("phantom-*/frames.npy")
    file.write_bytes(file.read_bytes()[:-9])
    phantom_store.cache_clear()
    assert phantom_store(cfg, tmp_path).checksum == whole
    phantom_store.cache_clear()


@pytest.mark.parametrize("size", [112, pytest.param(224, marks=pytest.mark.slow)])
def test_the_papers_size_and_one_for_a_cpu(tmp_path, size):
    """Files, index, all tasks with the large network and impressions of the full size, by the commands that README
    names.
    """
    from classimpression.echo.phantom import phantom_set
    from classimpression.runs.runner import profile_config, run

    rows = []
    for i, (facts, x) in enumerate(phantom_set(PhantomConfig(patients=5, series=1, frames=2, size=96))):
        np.save(tmp_path / f"{i}.npy", x.numpy())
        rows.append(
            dict(
                path=f"{i}.npy",
                view=facts["view"],
                patient=facts["patient"],
                split=("train", "train", "train", "val", "test")[i // 5],
            )
        )
    pd.DataFrame(rows).to_csv(tmp_path / "m.csv", index=False)
    assert cli.main(["data", "index", str(tmp_path / "m.csv"), "--root", str(tmp_path), "--size", str(size)]) == 0
    cfg = profile_config(
        "smoke",
        "class-impression",
        tuned=False,
        scenario="echo",
        root=str(tmp_path),
        out=str(tmp_path / "runs"),
        k_min=1,
        group_size=5,
        synthesis_steps=2,
        snapshots=[1, 2],
        synthesis_warmup=1,
    )
    r = run(cfg)
    assert (
        cfg.network == "large"
        and r.data["scenario"]["size"] == size
        and r.impressions(3).x.shape[1:] == (1, size, size)
        and r.carry(3).means.shape == (5, 1, size, size)
    )


def test_patients_are_counted_where_they_are_known(ward, tmp_path):
    "Thirty series of three patients are three people behind a mean."
    from classimpression.carryover import refuse_few

    rng, views = np.random.default_rng(0), ["A", "B"]
    series = [
        (dict(view=views[i % 2], patient=str(i % 3), split="train"), rng.integers(0, 256, (3, 16, 16), dtype=np.uint8))
        for i in range(60)
    ]
    train = cine_splits(CineStore.open(write_store(tmp_path / "s", series, 16, views, {})))["train"]
    assert train.counts(2).tolist() == [30, 30] and train.sources(2).tolist() == [3, 3]
    assert train.where([1]).sources(2).tolist() == [0, 3] and train.relabelled(1 - train.y).take([0, 6]).sources(
        2
    ).tolist() == [0, 1]
    refuse_few(train, [0, 1], 3, views)
    with pytest.raises(DataError, match="'A': 3, 'B': 3"):
        refuse_few(train, [0, 1], 4, views)


def test_without_optional_packages(monkeypatch, tmp_path, frames):
    import sys

    np.save(tmp_path / "a.npy", frames)
    dicom(tmp_path / "a.dcm", frames)
    for name in ("pydicom", "scipy.ndimage"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataError, match="pip install pydicom av"):
        read_series(tmp_path / "a.dcm")
    with pytest.raises(DataError, match="pip install p"):
        clean_frames(read_series(tmp_path / "a.npy"), 32)


def test_player_and_its_stand_in(small, monkeypatch):
    import sys

    split = small.test(3)
    assert type(split) is not Split and player(split, small.class_names).parts["which"].max == 5
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    assert player(split, small.class_names).axes
    assert calibration_error([[0.6, 0.4]] * 5, [0, 0, 0, 1, 1]) == pytest.approx(0)


def test_store_splits_refuse_a_shared_patient(tmp_path):
    x = np.ones((2, 16, 16), np.uint8)
    write_store(tmp_path / "s", [(dict(view="AP2", patient="a", split=s), x) for s in ("train", "test")], 16, VIEWS, {})
    with pytest.raises(DataError, match="more than one split"):
        cine_splits(CineStore.open(tmp_path / "s"))
