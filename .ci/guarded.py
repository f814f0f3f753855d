"""What the tests guard, in words: `python .ci/guarded.py` prints a table, `python .ci/guarded.py COMMIT` what is gone
and new since a commit. Faults are listed by `python -m tests.faults`, known defects of others by mutations.py.
"""

import ast
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent


def files(commit: str) -> dict[str, str]:
    "Tests and notebooks, of a commit or as they lie here."
    git = lambda *a: subprocess.run(["git", "-C", str(ROOT), *a], capture_output=True, text=True, check=True).stdout
    where = ["tests/test_*.py", "nbs/**/*.ipynb", "nbs/*.ipynb"]
    if not commit:
        return {p.relative_to(ROOT).as_posix(): p.read_text() for w in where for p in ROOT.glob(w)}
    names = git("ls-tree", "-r", "--name-only", commit, "tests", "nbs").splitlines()
    wanted = [n for n in names if re.fullmatch(r"tests/test_\w+\.py|nbs/.*\.ipynb", n)]
    return {n: git("show", f"{commit}:{n}") for n in wanted}


def guards(name: str, text: str) -> Counter:
    "Test functions with their number of assertions; a notebook counts as one."
    if name.endswith(".ipynb"):
        cells = (c for c in json.loads(text)["cells"] if c["cell_type"] == "code")
        code = "\n".join("".join(c["source"]) for c in cells)
        return Counter({"": len(re.findall(r"^\s*(?:assert\b|test_\w+\()", code, re.M))})
    found = Counter()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            raises = lambda n: isinstance(n, ast.Call) and getattr(n.func, "attr", "") == "raises"
            found[node.name] += sum(isinstance(n, ast.Assert) or raises(n) for n in ast.walk(node))
    return found


def all_guards(commit: str = "") -> dict[str, int]:
    "What is guarded, and by how many assertions."
    return {f"{n} {k}".strip(): v for n, text in sorted(files(commit).items()) for k, v in guards(n, text).items()}


def main(commit: str = "") -> None:
    now = all_guards()
    if not commit:
        print("\n".join(f"{n:4d}  {name.replace('test_', '').replace('_', ' ')}" for name, n in now.items()))
        return
    before = all_guards(commit)
    for sign, one, other in (("-", before, now), ("+", now, before)):
        print("\n".join(f"{sign} {one[name]:4d}  {name}" for name in one if name not in other))
    changed = {name: n for name, n in now.items() if name in before and before[name] != n}
    print("\n".join(f"  {before[name]:4d} -> {n:4d}  {name}" for name, n in changed.items()))
    print(f"{len(before)} guards with {sum(before.values())} assertions; now {len(now)} with {sum(now.values())}")


if __name__ == "__main__":
    main(*sys.argv[1:])
