"""Changed files, thousands for each reader: `python -m tests.faults.fuzz_readers [KIND ...] [--files 10000]`.

A child process with a limit of memory reads them one by one. Each file has to be read or refused by an error of the
library, within ten seconds, without the memory that its limits forbid; a child that dies is a crash.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from . import files
from .frame import alarm, resident

X = files.moving(4, 32, 40)
MEMORY = 300 << 20  # bytes that a child may grow by; the limits below allow series of 20 MB
SECONDS = 10


def jpegs() -> list[bytes]:
    return [files.picture(f, "JPEG") for f in X]


SEEDS = {  # kind -> writers of whole files
    "dicom": (
        lambda p: files.dicom(p / "a.dcm", X),
        lambda p: files.dicom(p / "b.dcm", X, files.DEFLATED),
        lambda p: files.dicom(p / "c.dcm", X, files.JPEG, jpegs()),
        lambda p: files.dicom(p / "d.dcm", X, files.RLE),
        lambda p: files.dicom(p / "e.dcm", X.astype(np.uint16) * 200, WindowCenter=9000, WindowWidth=9000),
        lambda p: files.dicom(p / "f.dcm", X, files.J2K, [files.picture(f, "JPEG2000", no_jp2=True) for f in X]),
    ),
    "video": (
        lambda p: files.video(p / "a.avi", X, "mjpeg"),
        lambda p: files.video(p / "b.mp4", X, "libx264"),
        lambda p: files.turn(files.video(p / "c.mov", X, "mpeg4"), (0, 1, -1, 0)),
        lambda p: files.video(p / "d.avi", X, "ffv1"),
    ),
    "picture": (
        lambda p: files.animated(p / "a.gif", X),
        lambda p: files.tiff(p / "b.tif", X.astype(np.uint16) * 200),
        lambda p: (p / "c.png", (p / "c.png").write_bytes(files.picture(X[0])))[0],
        lambda p: (p / "d.jpg", (p / "d.jpg").write_bytes(files.picture(X[0], "JPEG")))[0],
        lambda p: (p / "e.bmp", (p / "e.bmp").write_bytes(files.picture(X[0], "BMP")))[0],
    ),
    "nifti": (lambda p: files.nifti(p / "a.nii", X), lambda p: files.nifti(p / "b.nii.gz", X)),
    "numpy": (lambda p: (p / "a.npy", np.save(p / "a.npy", X))[0],),
    "matlab": (lambda p: files.matlab(p / "a.mat", X), lambda p: files.matlab(p / "b.mat", X, False)),
    "manifest": (lambda p: files.manifest(p),),
}


def changed(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    "One to four small changes of a file."
    b = bytearray(data)
    head = max(1, len(b) if rng.random() < 0.4 else min(len(b), 600))  # headers matter most
    for _ in range(rng.integers(1, 5)):
        i, n = int(rng.integers(head)), int(rng.integers(1, 40))
        how = rng.integers(7)
        if how == 0:
            b[i : i + 1] = bytes([rng.integers(256)])
        elif how == 1:
            b[i : i + 4] = int(rng.choice([0, 1, 255, 2**15, 2**31 - 1, 2**32 - 1])).to_bytes(
                4, rng.choice(["little", "big"])
            )
        elif how == 2:
            del b[i : i + n]
        elif how == 3:
            b[i:i] = rng.integers(0, 256, n, dtype=np.uint8).tobytes()
        elif how == 4:
            b[i:i] = b[i : i + n] * int(rng.integers(1, 50))
        elif how == 5:
            del b[int(rng.integers(len(b) + 1)) :]
        else:
            b[i : i + n] = other[i : i + n]
    return bytes(b)


def child(kind: str, start: int, stop: int, log: Path) -> None:
    "Read changed files start..stop-1; one line of the log for each, written before and after."
    from classimpression.core.errors import ClassImpressionError
    from classimpression.echo.manifest import read_manifest
    from classimpression.echo.readers import Limits, read_series

    limits = Limits(min_frames=1, max_frames=200, max_pixels=10**6, max_bytes=20_000_000)
    read = read_manifest if kind == "manifest" else lambda p: read_series(p, limits)
    with tempfile.TemporaryDirectory() as folder, open(log, "a", buffering=1) as out:
        whole = [w(Path(folder)) for w in SEEDS[kind]]
        data = [p.read_bytes() for p in whole]
        for p in whole:
            read(p)  # all that is imported is there before memory is counted
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        most = taken + (9 << 30)  # of addresses: Python asks for 4 GB where a header says so, and touches nothing of it
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        for i in range(start, stop):
            rng = np.random.default_rng([i, len(kind)])
            k, j = rng.integers(len(data), size=2)
            p = whole[k].with_name("x" + "".join(whole[k].suffixes))
            p.write_bytes(changed(data[k], data[j], rng))
            out.write(json.dumps(dict(i=i)) + "\n")
            Path("/proc/self/clear_refs").write_text("5")
            before, begun = resident("VmRSS"), time.perf_counter()
            try:
                with alarm(SECONDS):
                    read(p)
                how = "read"
            except ClassImpressionError as e:
                how = "hang" if "TimeoutError" in str(e) else "refused"
            except TimeoutError:
                how = "hang"
            except Exception as e:
                how = f"raw {type(e).__name__}: {str(e)[:80]}"
            grown = resident("VmHWM") - before
            how = f"memory {grown >> 20} MB" if grown > MEMORY else how
            out.write(json.dumps(dict(i=i, how=how, seconds=round(time.perf_counter() - begun, 2))) + "\n")


def fuzz(kind: str, n: int) -> dict:
    "Outcomes of n changed files; children that die are counted and followed by others."
    found, at, slowest = Counter(), 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        while at < n:
            log.write_text("")
            subprocess.run(
                [sys.executable, "-m", "tests.faults.fuzz_readers", "--child", kind, str(at), str(n), str(log)],
                stderr=subprocess.DEVNULL,
            )
            rows = [json.loads(line) for line in log.read_text().splitlines()]
            done = [r for r in rows if "how" in r]
            found.update(r["how"] for r in done)
            slowest = max([slowest, *(r["seconds"] for r in done)])
            if not rows:
                raise RuntimeError(f"the child for {kind} does not start")
            last = rows[-1]["i"]
            if "how" not in rows[-1]:
                found[f"crash at {last}"] += 1
            at = last + 1
    return dict(kind=kind, files=n, **dict(sorted(found.items())), slowest_seconds=slowest)


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m tests.faults.fuzz_readers", description=__doc__)
    p.add_argument("kinds", nargs="*", help=f"of {', '.join(SEEDS)} (default: all)")
    p.add_argument("--files", type=int, default=10_000, help="changed files for each kind (default: 10000)")
    p.add_argument("--out", type=Path, help="JSON file of the outcomes")
    p.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = p.parse_args(argv)
    if args.child:
        child(args.child[0], int(args.child[1]), int(args.child[2]), Path(args.child[3]))
        return 0
    rows = []
    for kind in args.kinds or SEEDS:
        rows.append(fuzz(kind, args.files))
        print(rows[-1], flush=True)
    if args.out:
        from classimpression.core.files import write_json
        from classimpression.core.provenance import environment

        write_json(args.out, dict(rows=rows, environment=environment()))
    good = {"read", "refused", "kind", "files", "slowest_seconds"}
    return int(any(set(r) - good for r in rows))


if __name__ == "__main__":
    sys.exit(main())
