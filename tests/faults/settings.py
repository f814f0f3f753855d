"Names, settings, places, kernels, addresses: what is around a run."

from __future__ import annotations

import errno
import os
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
from classimpression.carryover import load_tensors
from classimpression.core.files import read_json, write_json
from classimpression.methods.registry import cached, method
from classimpression.models import register_network
from classimpression.runs.configs import profile_config, profile_label
from classimpression.runs.engine import check_scheduler
from classimpression.runs.reproduce import own_kernel, reproduce
from classimpression.runs.runner import RunConfig, run

from . import command, fault
from .toys import config, finished, scenario

EVIL = ("../evil", "/etc/x", "a/b", "..", "a\\b", "<b>", "x|y", "a\nb", "")


@fault("hostile", "a scenario called {name!r}", says="must be a name", name=EVIL)
def _(folder, name):
    RunConfig.of(scenario=name)


@fault("hostile", "data called {name!r}", says="must be a name", name=EVIL)
def _(folder, name):
    scenario(name=name)


@fault("hostile", "a method called {name!r}", says="must be a name", name=EVIL[:6])
def _(folder, name):
    method(name, "Title", "M0")


@fault("hostile", "a profile called {name!r}", says="must be a name", name=EVIL[:6])
def _(folder, name):
    RunConfig.of(profile=name)


@fault("hostile", "a network called {name!r}", says="must be a name", name=EVIL[:6])
def _(folder, name):
    register_network(name, None)


PLAIN = {
    "class_order of numpy": (dict(class_order=np.arange(8)[::-1]), "class_order", list(range(8))[::-1]),
    "a list of numpy's numbers": (dict(class_order=list(np.arange(8))), "class_order", list(range(8))),
    "a tuple": (dict(sizes=(4, 4)), "sizes", [4, 4]),
    "np.int64": (dict(seed=np.int64(3)), "seed", 3),
    "5.0": (dict(epochs=5.0), "epochs", 5),
    "np.float64": (dict(lr=np.float64(0.5)), "lr", 0.5),
    "a path": (dict(out=Path("x") / "y"), "out", os.path.join("x", "y")),
    "np.bool_": (dict(bn_update=np.bool_(True)), "bn_update", True),
    "options of numpy": (dict(options=dict(lr=np.float64(0.1))), "options", dict(lr=0.1)),
}


@fault("environment", "settings as people have them: {what}", "right", what=PLAIN)
def _(folder, what):
    given, name, plain = PLAIN[what]
    value = getattr(RunConfig.of(**given), name)
    assert value == plain and type(value) is type(plain)


BUDGETS = {
    "epochs": 3,
    "lr": 0.01,
    "batch_size": 7,
    "synthesis_steps": 11,
    "groups": 2,
    "margin_weight": 0.0,
    "head": "linear",
    "first_epochs": 1,
    "network": "large",
}


@fault("label", "standard with another {setting} is called standard", "right", setting=BUDGETS)
def _(folder, setting):
    cfg = profile_config("standard", "class-impression", **{setting: BUDGETS[setting]})
    assert profile_label(cfg) == f"standard, {setting}={BUDGETS[setting]}"


@fault("label", "other task sizes are called standard", "right")
def _(folder):
    assert profile_label(profile_config("standard", "lwf", sizes=[4, 4]), [2, 2, 2, 2]) == "standard, sizes=[4, 4]"


OPEN = ("tcp://10.0.0.5:8786", "10.0.0.5:8786", "ws://dask:8786", "tcp://127.0.0.1.evil.org:1", "tcp://scheduler:1")


@fault("network", "a scheduler at {address} without encryption", says="not encrypted", address=OPEN)
def _(folder, address):
    check_scheduler(address)


@fault(
    "network", "{address!r} as a scheduler", says="no address", address=("x", "http://", "/tmp/s.json", "tcp://a b:1")
)
def _(folder, address):
    check_scheduler(address)


@fault(
    "network",
    "a scheduler at {address}",
    "right",
    address=("tls://10.0.0.5:8786", "tcp://127.0.0.1:1", "localhost:1", "tcp://[::1]:1"),
)
def _(folder, address):
    check_scheduler(address)


@fault("environment", "another Python calls its kernel python3", "right")
def _(folder):
    from jupyter_client.kernelspec import KernelSpecManager

    write_json(
        folder / "kernels" / "python3" / "kernel.json", dict(argv=["/other"], display_name="x", language="python")
    )
    with mock.patch.dict(os.environ, JUPYTER_PATH=str(folder)), own_kernel():
        assert KernelSpecManager().get_kernel_spec("python3").argv[0] == sys.executable


@fault("environment", "{package} is missing", says="lacks .*{package}", package=("ipykernel", "papermill"))
def _(folder, package):
    with mock.patch("importlib.util.find_spec", lambda name: None if name == package else 1):
        reproduce(["foundation"], "smoke", {})


@fault("environment", "a methods file that calls sys.exit({code})", says="cannot be imported: SystemExit", code=(0, 1))
def _(folder, code):
    (folder / "mine.py").write_text(f"import sys; sys.exit({code})")
    with mock.patch.dict(os.environ, CLASSIMPRESSION_METHODS=str(folder / "mine.py")):
        command("run", "--method", "fine-tuning", "--profile", "smoke", "--out", folder / "runs")


@fault("environment", "a method that calls sys.exit in training", says="called sys.exit")
def _(folder):
    from classimpression.methods.registry import METHODS

    leaves = replace(METHODS["fine-tuning"], fit=lambda *a, **k: sys.exit(0))
    with mock.patch.dict(METHODS, {"fine-tuning": leaves}):
        run(config(folder, method="fine-tuning"), scenario())


def refused(number: int):
    "An `open` that the system refuses."
    return mock.patch("builtins.open", side_effect=OSError(number, os.strerror(number)))


@fault("storage", "no file handles are left for a healthy file", says="Too many open files", hides="delete")
def _(folder):
    path = finished() / "task1" / "carry.safetensors"
    with refused(errno.EMFILE):
        load_tensors(path)


@fault("storage", "no right to read a healthy file", says="Permission denied", hides="delete")
def _(folder):
    path = finished() / "task1" / "carry.safetensors"
    with refused(errno.EACCES):
        load_tensors(path)


@fault(
    "storage",
    "JSON at {where}",
    says="cannot read|zero byte",
    hides="delete",
    where=("a folder", "nowhere", "a name of 5,000 letters", "a zero byte"),
)
def _(folder, where):
    names = {"a folder": ".", "nowhere": "x.json", "a name of 5,000 letters": "x" * 5000, "a zero byte": "a\0b"}
    read_json(folder / names[where])


@fault("storage", "--out with {what}", what=("a zero byte", "a name of 5,000 letters", "a file in its way"))
def _(folder, what):
    (folder / "file").write_text("")
    out = {"a zero byte": "a\0b", "a name of 5,000 letters": "x" * 5000, "a file in its way": "file"}[what]
    command("run", "--method", "fine-tuning", "--profile", "smoke", "--out", folder / out)


@fault("storage", "a cache on a disk that cannot be written", says="cannot write the lock .* Read-only")
def _(folder):
    with mock.patch.object(Path, "mkdir", side_effect=OSError(errno.EROFS, os.strerror(errno.EROFS))):
        cached(folder / "cache", "x", {}, lambda: ({}, {}))


@fault(
    "storage", "a cached result that is {how}", "right", how=("cut", "made with other settings", "of another library")
)
def _(folder, how):
    import torch
    from safetensors.torch import save_file

    make = lambda: ({"x": torch.full((300,), 3.0)}, {})
    cached(folder, "x", dict(seed=0), make)
    (path,) = folder.glob("x-*.safetensors")
    if how == "cut":
        path.write_bytes(path.read_bytes()[:200])
    elif how == "of another library":
        save_file({"x": torch.zeros(300)}, path)
    else:
        cached(folder / "other", "x", dict(seed=1), lambda: ({"x": torch.zeros(300)}, {}))
        path.write_bytes(next((folder / "other").glob("x-*.safetensors")).read_bytes())
    tensors, facts = cached(folder, "x", dict(seed=0), make)
    assert float(tensors["x"].mean()) == 3 and not facts["reused"]
