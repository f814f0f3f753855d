"Every fault of `tests/faults` that takes less than a second; `python -m tests.faults` tries them all."

import pytest

from classimpression.core.errors import DataError
from faults import Fault, load, tried


@pytest.mark.parametrize("fault", [pytest.param(f, id=f.name) for f in load() if not f.slow])
def test_fault(fault):
    done = tried(fault)
    if fault.known and not done.held:
        pytest.xfail(fault.known)
    assert done.held, done.said


def test_the_frame_judges(tmp_path):
    "An accepted fault, a foreign error, a message without the right words and one that tells too much are wrong."

    def refuse(folder, text="it has 16 bits"):
        raise DataError(text)

    def crash(folder):
        raise KeyError("x")

    def wait(folder):
        while True:
            pass

    made = lambda do, expect="refused", **more: Fault("frame", "x", expect, do, **more)
    for f, held in (
        (made(refuse, says="16 bits"), True),
        (made(refuse, says="8 bits"), False),
        (made(refuse, hides=("16",)), False),
        (made(refuse, "right"), False),
        (made(crash), False),
        (made(crash, "right"), False),
        (made(lambda folder: None), False),
        (made(lambda folder: None, "right"), True),
        (made(wait, "right", seconds=0.05), False),
    ):
        assert tried(f).held == held
    assert tried(made(crash, known="a reason")).verdict == "known"
