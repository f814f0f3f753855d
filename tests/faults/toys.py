"Small data and finished runs that faults are tried on."

from __future__ import annotations

import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

import torch
from classimpression.core.files import read_json, write_json
from classimpression.runs.run_store import run_folder, sealed
from classimpression.runs.runner import RunConfig, run
from classimpression.tasks import Scenario, from_arrays

TINY = dict(scenario="toy", epochs=1, batch_size=24, groups=1, group_size=6, synthesis_steps=2, synthesis_warmup=1)
HOME = tempfile.TemporaryDirectory(prefix="faults-runs-")


def images(seed: int = 0, classes: int = 3, each: int = 12, pixels: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    "Noise around a grey of each class: uint8 [N, 3, H, W], labels."
    g, y = torch.Generator().manual_seed(seed), torch.arange(classes).repeat(each)
    noise = torch.randint(0, 60, (len(y), 3, pixels, pixels), generator=g)
    return (noise + 60 * y.view(-1, 1, 1, 1)).byte(), y


def scenario(**more) -> Scenario:
    "Two tasks of two classes and one."
    return from_arrays(images(0), images(1), images(2), **dict(sizes=[2, 1], layout="NCHW", name="toy") | more)


def config(out: Path, **more) -> RunConfig:
    "The smallest run; strict."
    return RunConfig.of(**dict(TINY, out=str(out)) | more)


@lru_cache(maxsize=None)
def finished(method: str = "class-impression", seed: int = 0) -> Path:
    "Folder of a finished run that nobody may change."
    torch.set_num_threads(1)
    return run(config(Path(HOME.name), method=method, seed=seed), scenario()).folder


def copied(folder: Path, method: str = "class-impression", seed: int = 0) -> tuple[RunConfig, Path]:
    "Settings and folder of a copy of a finished run."
    cfg = config(folder, method=method, seed=seed)
    shutil.copytree(finished(method, seed), run_folder(cfg))
    return cfg, run_folder(cfg)


def numbers(folder: Path) -> dict:
    "What may not depend on how often a run was interrupted."
    r = read_json(folder / "result.json")
    keep = ("task", "classes", "confusion", "accuracy", "carried_bytes", "tier", "history", "files")
    return dict(metrics=r["metrics"], rows=[{k: t[k] for k in keep} for t in r["tasks"]], files=r["files"])


def rewrite(path: Path, change, anew: bool) -> None:
    "Change a sealed file, with or without making its digest anew."
    facts = change(read_json(path))
    write_json(path, sealed(facts) if anew and isinstance(facts, dict) else facts)
