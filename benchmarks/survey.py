"""What people bring, and whether it computes what its author's module computes.

Every case has random weights of its own, and runs in a process of its own with limits of time and
memory. What a case gave is kept, so that an interrupted survey goes on where it was; `--again WORD`
tries the cases with this word in their names once more.

usage: python benchmarks/survey.py [--kind KIND] [--again WORD]
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import resource
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import record
import torch
from cases import files, modules, networks
from cases.case import NOT_TRIED, OUTCOMES, Case, Row

SECONDS, BYTES = 240, 6 * 2**30  # of one case
CASES = (*networks.CASES, *modules.CASES, *files.CASES)
QUICK = ("resnet18", "vit", "lerp")


def limited(case: Case, path: Path) -> None:
    """Try a case within a limit of memory, and write what came of it."""
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.chdir(path.parent)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    begin = time.perf_counter()
    row = {**case.tried(), "seconds": round(time.perf_counter() - begin, 2)}
    path.with_suffix(".part").write_text(json.dumps(row))
    path.with_suffix(".part").replace(path)


def apart(case: Case, folder: Path) -> Row:
    """What came of a case that runs in a process of its own."""
    path = folder / "row.json"
    path.unlink(missing_ok=True)
    process = multiprocessing.get_context("fork").Process(target=limited, args=(case, path))
    process.start()
    process.join(SECONDS)
    late = process.is_alive()
    process.kill()
    process.join()
    if path.exists():
        row: Row = json.loads(path.read_text())
        return row
    reason = f"took more than {SECONDS} s" if late else f"ended with {process.exitcode}"
    return {"kind": case.kind, "name": case.name, "outcome": NOT_TRIED, "text": reason}


def surveyed(cases: Sequence[Case], folder: Path, again: str = "") -> list[Row]:
    """What came of all cases; a line of `rows.jsonl` for each that has been tried."""
    for package in ("timm", "torchvision", "transformers"):  # once, not in every process
        with contextlib.suppress(ImportError):
            importlib.import_module(package)
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "rows.jsonl"
    known: dict[str, Row] = {}
    for line in kept.read_text().splitlines() if kept.exists() else ():
        row = json.loads(line)
        known[f"{row['kind']}: {row['name']}"] = row
    for case in cases:
        if case.key in known and not (again and again in case.key):
            continue
        known[case.key] = row = apart(case, folder)
        with kept.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{case.key}: {row['outcome']} {row.get('text', '')}", flush=True)
    return [known[case.key] for case in cases]


def main() -> None:
    options = record.parser(__doc__)
    options.add_argument("--kind", default="", help="only cases with this word in their kind")
    options.add_argument("--again", default="", metavar="WORD", help="cases to try once more")
    options.add_argument("--write", action="store_true", help="write what is known, try nothing")
    chosen = options.parse_args()
    cases = [case for case in CASES if chosen.kind in case.kind]
    if chosen.quick:
        cases = [case for case in cases if case.name in QUICK]
    folder = record.folder(chosen.quick) / "survey.work"
    rows = surveyed(cases, folder, chosen.again)
    counts = Counter(row["outcome"] for row in rows)
    print(", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES))
    if not chosen.kind:
        settings = {"seconds for a case": SECONDS, "parameters at most": networks.MOST}
        record.write("survey", settings, rows, quick=chosen.quick)


if __name__ == "__main__":
    main()
