"Addresses of schedulers, numbers as settings, files that are believed by their place."

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import torch
from classimpression.methods.registry import cached
from classimpression.core.provenance import package_folder
from classimpression.report.ablations import bound_rows
from classimpression.report.claims import table_at
from classimpression.report.readme import campaign_values, measured, short_text
from classimpression.runs.engine import check_scheduler
from classimpression.runs.runner import run
from classimpression.runs.tables import read_table, write_table
from classimpression.runs.weights import load_released
from classimpression.studies.sanity_checks import gate_of

from . import fault
from .toys import config, scenario

OPEN = (
    "TCP://10.0.0.5:8786",
    "ucx://10.0.0.5:1",
    "tcp://0.0.0.0:1",
    "tcp://[::ffff:10.0.0.5]:1",
    "tcp://[fe80::1]:1",
    "tcp://127.0.0.1.:1",
    "tcp://localhost.evil.org:1",
    "tcp://2130706433:1",
    "tcp://0x7f.1:1",
    "tcp://127.1:1",
    "tcp://127.999.1.1:1",
    "tcp://localhost.:1",
    "tlsx://10.0.0.5:1",
    "tcp+tls://10.0.0.5:1",
)
NONE = (
    "tcp://user:pw@127.0.0.1:1",
    "tcp://127.0.0.1@evil.org:1",
    "tcp://127.0.0.1:1:2",
    "tcp://127.0.0.1",
    "tcp://127.0.0.1:",
    "tcp://127.0.0.1:70000",
    "tcp://127.0.0.1:0",
    "tcp://127.0.0.1:\u0661",
    "tcp://127.0.0.\u0661:1",
    "tls://10.0.0.5:1/../x",
    " tls://10.0.0.5:1",
    "tls://10.0.0.5:1\n",
    "tls://:1",
    "file:///etc/passwd",
    "inproc://1.2.3.4/5/6",
)


@fault("network", "a scheduler at {address!r}: refused", says="encrypted|no address", address=(*OPEN, *NONE))
def _(folder, address):
    check_scheduler(address)


@fault("network", "a scheduler at {address!r} with --insecure", says="no address", address=NONE)
def _(folder, address):
    check_scheduler(address, insecure=True)


@fault(
    "network",
    "a scheduler at {address}: taken",
    "right",
    address=("TLS://10.0.0.5:1", "tls://[2001:db8::1]:1", "tcp://127.1.2.3:1"),
)
def _(folder, address):
    check_scheduler(address)


NUMBERS = dict(
    lr=(math.nan, math.inf, -0.1, 0.0, "0.1", True, 10**400),
    epochs=(0, -1, 1.5, math.nan),
    batch_size=(0, -8, 2.5),
    momentum=(1.5, -0.1, math.nan),
    weight_decay=(-1.0, math.inf),
    seed=(-1, 1.5, "0"),
    k_min=(0, -1, 2.5),
    threads=(0, -2, 10**9),
    until=(0, -1, 1.5),
    group_size=(0, -1),
    groups=(0, -3),
    synthesis_steps=(-1, 2.5),
    synthesis_lr=(0.0, math.nan),
    tau=(0.0, -1.0, math.nan),
    rho=(-1.0, math.inf),
    synthetic_share=(-0.1, 1.5, math.nan),
    margin_k=(0, -1),
    class_order=([0, 0, 1], [-1, 0, 1], "012", [0.5]),
    sizes=([0, 3], [-1, 4], "21", [2.5, 0.5], []),
    dtype=("float16", "double", ""),
    device=("cuda:99", "tpu", "", 0),
    network=("", "resnet999"),
    schedule=("evil", ""),
    pool=("all", ""),
    selection=("best-of-test", ""),
    eval_split=("train", ""),
    head=("mlp", ""),
    options=([1], "lr=1", dict(evil=1), dict(lr="x"), dict(lr=math.nan)),
    scenario=("", "toy\n", 3, None),
)
CASES = [f"{k}={v!r}" for k, values in NUMBERS.items() for v in values]
VALUES = {f"{k}={v!r}": {k: v} for k, values in NUMBERS.items() for v in values}


@fault("label", "a run with {case:.60}", case=CASES)
def _(folder, case):
    cfg = config(folder, **VALUES[case])
    run(cfg, scenario())


@fault("identity", "the file of a sanity check of {whose}", "right", whose=("another seed", "other data", "nobody"))
def _(folder, whose):
    facts = dict(
        balanced_accuracy=90.0, old=90.0, new=90.0, seconds=1.0, checksum="a", settings=dict(seed=0), environment={}
    )
    mine = json.loads(json.dumps(facts))
    assert gate_of(write(folder / "mine.json", mine), dict(seed=0), "a") == mine
    other = {"another seed": dict(settings=dict(seed=1)), "other data": dict(checksum="b"), "nobody": dict(old="90")}
    assert gate_of(write(folder / "a.json", mine | other[whose]), dict(seed=0), "a") is None


def write(path, facts):
    path.write_text(json.dumps(facts))
    return path


@fault("identity", "released weights of another task under this name", says="damaged")
def _(folder):
    shutil.copytree(package_folder() / "assets/weights/blood", folder / "blood")
    shutil.copy(folder / "blood/task2.safetensors", folder / "blood/task1.safetensors")
    load_released("blood", 1, folder)


@fault(
    "identity",
    "released weights: {what}",
    what=("a card without files", "a path as a file", "task {n}".format(n=99), "a name that leaves"),
)
def _(folder, what):
    shutil.copytree(package_folder() / "assets/weights/blood", folder / "blood")
    card = json.loads((folder / "blood/card.json").read_text())
    if what == "a card without files":
        del card["files"]
    if what == "a path as a file":
        card["files"] = {"../../../etc/passwd": "0"}
    (folder / "blood/card.json").write_text(json.dumps(card))
    load_released("../blood" if what == "a name that leaves" else "blood", 99 if "99" in what else 1, folder)


@fault(
    "identity",
    "a cache that was {what}",
    "right",
    what=("copied from another key", "cut", "emptied", "replaced by a folder of the same numbers"),
)
def _(folder, what):
    made = []

    def make(n: float):
        made.append(n)
        return {"x": torch.full((3,), n)}, {}

    cached(folder, "toy", dict(seed=0), lambda: make(0.0))
    cached(folder, "toy", dict(seed=1), lambda: make(1.0))
    first, second = sorted(folder.glob("*.safetensors"), key=lambda p: p.stat().st_mtime_ns)
    how = {
        "copied from another key": lambda: shutil.copy(second, first),
        "cut": lambda: first.write_bytes(first.read_bytes()[:-4]),
    }
    how |= {"emptied": lambda: first.write_bytes(b"")}
    how.get(what, lambda: None)()
    again, _ = cached(folder, "toy", dict(seed=0), lambda: make(0.0))
    assert torch.equal(again["x"], torch.zeros(3)) and len(made) == (2 if what.startswith("replaced") else 3)


@fault(
    "storage",
    "a store of features whose {what}",
    "right",
    what=("numbers are cut", "numbers are gone", "names are cut", "names are gone", "checksums are cut"),
)
def _(folder, what):
    from classimpression.pretrained.features import FeatureStore

    x = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(-1, 1, 4, 4)
    compute = lambda images: images.float().flatten(1)[:, :3]
    store = FeatureStore(folder, {}, 3)
    store.lookup(x[:6], compute)
    path = dict(numbers=store.values, names=store.names, checksums=store.sums)[what.split()[0]]
    path.write_bytes(path.read_bytes()[: 0 if "gone" in what else -9])
    path.unlink() if "gone" in what else None
    for part in (x[3:], x):
        again = FeatureStore(folder, {}, 3)
        assert torch.equal(again.lookup(part, compute), compute(part))


def zeros(data: bytearray, row: int) -> None:
    "A block of zeros, as a failing disk returns it."
    data[2 * 3 * row : 2 * 3 * (row + 2)] = bytes(2 * 3 * 2)


def one_bit(data: bytearray, row: int) -> None:
    "The last bit of a number."
    data[2 * 3 * row] ^= 1


def swapped(data: bytearray, row: int) -> None:
    "Features of two images exchanged."
    data[: 2 * 3], data[2 * 3 : 4 * 3] = data[2 * 3 : 4 * 3], data[: 2 * 3]


DAMAGE = {"a block of zeros": zeros, "one bit changed": one_bit, "two rows exchanged": swapped}


@fault(
    "storage",
    "a store of features with {how}",
    how=DAMAGE,
    says="were changed after they were written",
)
def _(folder, how):
    from classimpression.pretrained.features import FeatureStore

    x = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(-1, 1, 4, 4)
    store = FeatureStore(folder, {}, 3)
    store.lookup(x, lambda images: images.float().flatten(1)[:, :3] + 1)
    data = bytearray(store.values.read_bytes())
    DAMAGE[how](data, 4)
    store.values.write_bytes(data)
    FeatureStore(folder, {}, 3).lookup(x, lambda images: None)


@fault("storage", "a store of features without checksums, with a block of zeros", says="are empty")
def _(folder):
    from classimpression.pretrained.features import FeatureStore

    x = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(-1, 1, 4, 4)
    store = FeatureStore(folder, {}, 3)
    store.lookup(x, lambda images: images.float().flatten(1)[:, :3] + 1)
    data = bytearray(store.values.read_bytes())
    zeros(data, 4)
    store.values.write_bytes(data)
    store.sums.unlink()
    FeatureStore(folder, {}, 3)


@fault("numbers", "README's count of faults, raised in faults.json", "right")
def _(folder):
    (folder / "faults").mkdir()
    (folder / "faults/faults.csv").write_text(
        "group,fault,expect,verdict,said,reason\na,b,right,held,,\na,c,right,wrong,,\n"
    )
    (folder / "faults/faults.json").write_text('{"counts": {"all": {"tried": 9999, "held": 9999}}}')
    assert campaign_values(folder) == {"faults-tried": "2", "faults-held": "1"}


TABLES = {
    "README": lambda d: short_text(d),
    "README's values": lambda d: measured(
        d,
        dict(
            table="main_table/runs.csv",
            same=dict(scenario="blood", method="census", profile="standard", protocol="strict"),
            of={},
        ),
    ),
    "the bounds of ablations": lambda d: bound_rows(d, "blood", "standard"),
    "claims": lambda d: table_at(d / "main_table/runs.csv"),
}


@fault("numbers", "one number changed in a table that {who} read", says="cut or changed", who=TABLES)
def _(folder, who):
    path = folder / "main_table/runs.csv"
    write_table(path, read_table(Path(__file__).parents[2] / "figures/main_table/runs.csv"))
    TABLES[who](folder)
    text = path.read_text()
    i = text.index("93.")
    path.write_text(text[:i] + "99" + text[i + 2 :])
    TABLES[who](folder)


@fault("numbers", "images of numpy's {kind} scale", "right", kind=("float16", "float64", ">f4"))
def _(folder, kind):
    from classimpression.data import as_bytes

    x = np.linspace(0, 1, 256).astype(kind).reshape(1, 16, 16)
    assert np.abs(as_bytes(x).astype(int).ravel() - np.arange(256)).max() <= 1
