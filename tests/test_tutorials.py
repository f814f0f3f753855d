"The tutorials run from top to bottom, define no library code, and show pictures where there are no widgets."

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TUTORIALS = sorted((ROOT / "nbs" / "tutorials").glob("*.ipynb"))
pytestmark = pytest.mark.skipif(not TUTORIALS, reason="the tutorials are not beside the tests")
NEEDS = {"avalanche": "avalanche", "cluster": "distributed"}
GROUPS = [[p.stem for p in TUTORIALS if p.stem != "avalanche"][i::2] for i in range(2)] + [
    ["avalanche"]
]  # one process runs several: torch is imported once


@pytest.mark.slow
@pytest.mark.parametrize("names", GROUPS, ids=" ".join)
def test_tutorials_run(names):
    missing = [n for n in names if n in NEEDS and importlib.util.find_spec(NEEDS[n]) is None]
    if missing:
        pytest.skip(f"{missing} need packages that are not installed here (extra `avalanche`, `notebooks`)")
    code = (
        "import sys; from pathlib import Path; from nbdev.test import test_nb; ok = [test_nb(Path(p), "
        "skip_flags=['notest', 'slow'])[0] for p in sys.argv[1:]]; sys.exit(not all(ok))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *(str(ROOT / "nbs" / "tutorials" / f"{n}.ipynb") for n in names)],
        cwd=ROOT / "nbs" / "tutorials",
        capture_output=True,
        text=True,
        timeout=600,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TQDM_DISABLE": "1",
            "OMP_NUM_THREADS": "1",
            "CLASSIMPRESSION_STATIC": "1",
        },
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda p: p.stem)
def test_tutorials_are_tidy(path):
    cells = json.loads(path.read_text())["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    assert not any(re.search(r"#\| *export|import \*", c) for c in code)
    assert path.stem == "explorers" or any("assert" in c for c in code), "a tutorial asserts what it says"
    outputs = [o for c in cells for o in c.get("outputs", [])]
    assert outputs and not any(o["output_type"] == "error" for o in outputs), "executed, without error"
    assert not any("application/vnd.jupyter.widget-view+json" in o.get("data", {}) for o in outputs), (
        "execute with CLASSIMPRESSION_STATIC=1: readers on GitHub have no widgets"
    )
    assert len(path.read_text()) < 400_000
