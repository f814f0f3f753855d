"""Faults that were tried on the library: what people bring, what breaks, what somebody changes on purpose.

Each module of this package holds one group of small functions; `python -m tests.faults` runs them and keeps count.
"""

from .frame import FAULTS, Fault, Outcome, Refusal, command, fault, peak, tried

__all__ = ["FAULTS", "Fault", "Outcome", "Refusal", "command", "fault", "load", "peak", "tried"]


def load() -> list[Fault]:
    "All faults of all modules of this package, in the order of their groups."
    import importlib
    from pathlib import Path

    apart = {"__init__", "__main__", "frame", "files", "fuzz_readers"}
    for p in sorted(Path(__file__).parent.glob("*.py")):
        if p.stem not in apart:
            importlib.import_module(f".{p.stem}", __name__)
    return FAULTS
