"How a fault is written down, tried and judged."

from __future__ import annotations

import contextlib
import io
import itertools
import re
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from classimpression.core.errors import ClassImpressionError

EXPECTED = ("refused", "right", "resumed")
FAULTS: list[Fault] = []


@dataclass(frozen=True)
class Fault:
    "One thing that is done to the library, and how it has to end."

    group: str  # geometry, hostile, numbers, ...
    what: str  # what is done
    expect: str  # refused: an error of the library; right: no error, the function's assertions hold; resumed: so too
    do: Callable  # (folder, **values); the folder is empty and vanishes
    says: str = ""  # refused: what the message must hold (a regular expression)
    hides: tuple = ()  # refused: what the message must not hold
    slow: bool = False  # takes more than a second: left to `python -m tests.faults`
    seconds: float = 60  # a fault that takes longer hangs
    known: str = ""  # why it does not hold yet
    values: dict = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.group}: {self.what}"


@dataclass(frozen=True)
class Outcome:
    "How a fault ended."

    fault: Fault
    held: bool
    said: str  # message of the error, or why it is wrong; the folder's name is left out
    seconds: float

    @property
    def verdict(self) -> str:
        return "held" if self.held else "known" if self.fault.known else "wrong"


class Refusal(ClassImpressionError):
    "A command that refused: exit code 2 and one line of its own."


def fault(
    group: str,
    what: str,
    expect: str = "refused",
    /,
    says: str = "",
    hides: str | Iterable[str] = (),
    slow: bool = False,
    seconds: float = 60,
    known: str = "",
    **over: Iterable,  # values: one fault for each combination, their names in braces in `what` and `says`
) -> Callable:
    "Decorator that registers a function as one fault, or as several."
    assert expect in EXPECTED, f"expect is one of {EXPECTED}, not {expect!r}"

    def register(do: Callable) -> Callable:
        for combination in itertools.product(*over.values()):
            values = dict(zip(over, combination))
            fill = (lambda text, v=values: text.format(**v)) if values else (lambda text: text)
            hidden = (hides,) if isinstance(hides, str) else tuple(hides)
            made = Fault(
                group, fill(what), expect, do, fill(says), hidden, slow, 6 * seconds if slow else seconds, known, values
            )
            assert made.name not in {f.name for f in FAULTS}, f"two faults are called {made.name!r}"
            FAULTS.append(made)
        return do

    return register


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    "Interrupt a block that hangs; only where signals reach, which is the main thread of Unix."
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_):
        raise TimeoutError(f"it takes more than {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def judged(f: Fault, folder: Path) -> tuple[bool, str]:
    "Did it end as expected, and what was said?"
    try:
        with alarm(f.seconds):
            f.do(folder, **f.values)
    except ClassImpressionError as e:
        if f.expect != "refused":
            return False, f"refused: {e}"
        shown = [h for h in f.hides if h in str(e)]
        right = re.search(f.says, str(e), re.S) and not shown
        return bool(right), str(e) if right else f"shows {shown}: {e}" if shown else f"says nothing of {f.says!r}: {e}"
    except (Exception, SystemExit) as e:
        return False, f"{type(e).__name__}: {e}"
    return f.expect != "refused", "" if f.expect != "refused" else "accepted"


def tried(f: Fault) -> Outcome:
    "Try one fault in a folder of its own."
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="fault-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        held, said = judged(f, Path(folder))
    temporary = rf"{re.escape(tempfile.gettempdir())}/faults?-[\w-]+"
    said = " ".join(re.sub(temporary, "FOLDER", said).split())
    seconds = time.perf_counter() - start
    return Outcome(f, held and seconds < f.seconds, said[:400], seconds)


def command(*argv: str | Path, code: int = 0) -> str:
    "Run `classimpression ...` in this process: what it printed. Raises `Refusal` where it refused in one line."
    from classimpression import cli

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        ended = cli.main([str(a) for a in argv])
    said = err.getvalue().strip()
    if ended == 2 and said.rpartition("\n")[2].startswith("classimpression: "):
        raise Refusal(said)
    assert ended == code, f"exit code {ended}: {said[-300:]}"
    return out.getvalue()


def resident(word: str) -> int:
    "Bytes of memory that this process has (VmRSS) or had at most (VmHWM)."
    return 1024 * int(re.search(rf"{word}:\s*(\d+) kB", Path("/proc/self/status").read_text()).group(1))


@contextlib.contextmanager
def peak() -> Iterator[list[int]]:
    """By how many bytes the process grew at most within a block, whichever library asked for them; a list that is
    filled at its end (Linux).
    """
    found: list[int] = []
    Path("/proc/self/clear_refs").write_text("5")  # forget the earlier peak
    before = resident("VmRSS")
    yield found
    found.append(resident("VmHWM") - before)
