"python -m tests.faults [GROUP ...]: try all faults, print how many held in each group, keep the table."

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import pandas as pd
from classimpression.core.files import write_json
from classimpression.core.provenance import environment
from classimpression.runs.tables import write_table

from . import load, tried


def table(outcomes: list) -> pd.DataFrame:
    "One row for each fault."
    return pd.DataFrame(
        [
            dict(
                group=o.fault.group,
                fault=o.fault.what,
                expect=o.fault.expect,
                verdict=o.verdict,
                said=o.said,
                reason=o.fault.known,
            )
            for o in outcomes
        ]
    )


def counts(rows: pd.DataFrame) -> pd.DataFrame:
    "Tried, held, wrong and known to be wrong in each group, and in all."
    n = pd.crosstab(rows.group, rows.verdict).reindex(columns=["held", "wrong", "known"], fill_value=0)
    n.insert(0, "tried", n.sum(axis=1))
    n.loc["all"] = n.sum()
    return n


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    p.add_argument("groups", nargs="*", help="groups of faults (default: all)")
    p.add_argument("--fast", action="store_true", help="only those that take less than a second")
    p.add_argument("--list", action="store_true", help="print the names and stop")
    p.add_argument("--match", default="", help="only faults whose name holds this text")
    p.add_argument(
        "--out",
        type=Path,
        help="folder of faults.csv and faults.json (default: figures/faults for all faults, otherwise none)",
    )
    args = p.parse_args(argv)
    chosen = [
        f
        for f in load()
        if (not args.groups or f.group in args.groups) and not (args.fast and f.slow) and args.match in f.name
    ]
    if not chosen:
        p.error(f"there is no such fault; groups: {', '.join(sorted({f.group for f in load()}))}")
    if args.list:
        print("\n".join(f.name for f in chosen))
        return 0
    start, outcomes = time.perf_counter(), []
    for f in chosen:
        outcomes.append(o := tried(f))
        if not o.held:
            print(f"{o.verdict.upper()}  {f.name}\n       {o.said}", flush=True)
        elif o.seconds > 1 and not f.slow:
            print(f"slow   {f.name}: {o.seconds:.1f} s", flush=True)
    rows = table(outcomes)
    n = counts(rows)
    print(n.to_string())
    out = args.out or (Path("figures/faults") if len(chosen) == len(load()) else None)
    if out:
        write_table(out / "faults.csv", rows)
        write_json(
            out / "faults.json",
            dict(counts=n.to_dict("index"), seconds=round(time.perf_counter() - start, 1), environment=environment()),
        )
    return int((rows.verdict == "wrong").any())


if __name__ == "__main__":
    sys.exit(main())
