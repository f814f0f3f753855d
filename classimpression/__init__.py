"""Class-incremental learning of medical image classifiers without keeping patients' images.

`import classimpression as ci` offers what a user needs; each name is loaded when it is first asked for. The method
itself lives beside this file (data, tasks, models, synthesis, losses, training ...), everything else in rooms with
a name.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:  # for editors and type checkers; at run time see `__getattr__`
    from .adapters.adopt import adopt
    from .adapters.estimator import IncrementalClassifier
    from .adapters.export import export_onnx, export_torch
    from .adapters.recommend import recommend
    from .carryover import hand_over
    from .methods.registry import method
    from .models import register_network
    from .runs.configs import RunConfig, profile_config
    from .runs.runner import run
    from .runs.weights import load_released
    from .scenarios import from_folder, make_scenario, register_scenario
    from .settings import TrainConfig
    from .synthesis import SynthesisConfig, synthesis_preset, synthesize
    from .tasks import from_arrays
    from .training import evaluate, fit_task

_DOOR = {
    "adapters.adopt": ("adopt",),
    "adapters.estimator": ("IncrementalClassifier",),
    "adapters.export": ("export_onnx", "export_torch"),
    "adapters.recommend": ("recommend",),
    "carryover": ("hand_over",),
    "methods.registry": ("method",),
    "models": ("register_network",),
    "runs.configs": ("RunConfig", "profile_config"),
    "runs.runner": ("run",),
    "runs.weights": ("load_released",),
    "scenarios": ("from_folder", "make_scenario", "register_scenario"),
    "settings": ("TrainConfig",),
    "synthesis": ("SynthesisConfig", "synthesis_preset", "synthesize"),
    "tasks": ("from_arrays",),
    "training": ("evaluate", "fit_task"),
}
_NEEDS = {"scenarios": "echo.scenario", "methods.registry": "runs.configs"}  # rooms that register what a name looks up
_HOME = {name: module for module, names in _DOOR.items() for name in names}
__all__ = [
    "IncrementalClassifier",
    "RunConfig",
    "SynthesisConfig",
    "TrainConfig",
    "adopt",
    "evaluate",
    "export_onnx",
    "export_torch",
    "fit_task",
    "from_arrays",
    "from_folder",
    "hand_over",
    "load_released",
    "make_scenario",
    "method",
    "profile_config",
    "recommend",
    "register_network",
    "register_scenario",
    "run",
    "synthesis_preset",
    "synthesize",
]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'classimpression' has no name {name!r}; it offers {', '.join(__all__)}")
    home = _HOME[name]
    if home in _NEEDS:
        import_module(f"classimpression.{_NEEDS[home]}")
    value = getattr(import_module(f"classimpression.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


def _refuse_modules(arguments: list[str]) -> None:
    "Say so when a module of the library is run: without this, Python would define some functions and exit with 0."
    asked = arguments[arguments.index("-m") + 1] if "-m" in arguments[:-1] else ""
    if asked.startswith("classimpression.") and asked != "classimpression.__main__":
        sys.stderr.write(f"{asked} is a module to import, not a program; run: python -m classimpression --help\n")
        raise SystemExit(2)


if sys.argv[:1] == ["-m"]:
    _refuse_modules(sys.orig_argv)
