"The tutorials run from top to bottom, define no library code, and show pictures where there are no widgets."

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TUTORIALS = sorted((ROOT / "nbs" / "tutorials").glob("*.ipynb"))
pytestmark = pytest.mark.skipif(not TUTORIALS, reason="the tutorials are not beside the tests")
NEEDS = {"avalanche": "avalanche", "cluster": "distributed"}


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda p: p.stem)
def test_tutorial_runs(path, executed):
    needed = NEEDS.get(path.stem)
    if needed and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{path.stem} needs a package that is not installed here (extra `avalanche`, `notebooks`)")
    executed(path, CLASSIMPRESSION_STATIC="1", TQDM_DISABLE="1")


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
