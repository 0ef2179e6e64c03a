"""What people bring, and whether it computes what its author's module computes.

Every case has random weights of its own, and runs in a process of its own with limits of time and
memory. What a case gave is kept, so that an interrupted survey goes on where it was; `--again WORD`
tries the cases with this word in their names once more.

usage: python benchmarks/survey.py [--kind KIND] [--again WORD] [--write]
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import record
import torch
from cases import data, files, modules, networks
from cases.case import NOT_TRIED, OUTCOMES, Case, Row

SECONDS, BYTES = 240, 6 * 2**30  # of one case
CASES = (*networks.CASES, *modules.CASES, *files.CASES, *data.CASES)
QUICK = ("block: x + f(x)", "under model", "class folders: some of the names")


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
    inside = Path(tempfile.mkdtemp(dir=folder))
    path = inside / "row.json"
    process = multiprocessing.get_context("fork").Process(target=limited, args=(case, path))
    process.start()
    process.join(SECONDS)
    late = process.is_alive()
    process.kill()
    process.join()
    reason = f"took more than {SECONDS} s" if late else f"ended with {process.exitcode}"
    row: Row = {"kind": case.kind, "name": case.name, "outcome": NOT_TRIED, "text": reason}
    if path.exists():
        row = json.loads(path.read_text())
    shutil.rmtree(inside)
    return row


def kept(folder: Path) -> dict[str, Row]:
    """What is known of cases that have been tried: the last line of `rows.jsonl` on each."""
    path = folder / "rows.jsonl"
    rows = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return {f"{row['kind']}: {row['name']}": row for row in rows}


def survey(cases: Sequence[Case], folder: Path, again: str = "") -> None:
    """Try the cases that are not known yet, and those with a word in their names once more."""
    for package in ("timm", "torchvision", "transformers"):  # once, not in every process
        with contextlib.suppress(ImportError):
            importlib.import_module(package)
    folder.mkdir(parents=True, exist_ok=True)
    known = kept(folder)
    for case in cases:
        if case.key in known and not (again and again in case.key):
            continue
        row = apart(case, folder)
        with (folder / "rows.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{case.key}: {row['outcome']} {row.get('text', '')}", flush=True)


def main() -> None:
    options = record.parser(__doc__)
    options.add_argument("--kind", default="", help="try only cases with this word in their kind")
    options.add_argument("--again", default="", metavar="WORD", help="cases to try once more")
    options.add_argument("--write", action="store_true", help="try nothing, write what is known")
    chosen = options.parse_args()
    cases = [case for case in CASES if not chosen.quick or case.name in QUICK]
    folder = record.folder(chosen.quick) / "survey.work"
    if not chosen.write:
        survey([case for case in cases if chosen.kind in case.kind], folder, chosen.again)
    known = kept(folder)
    rows = [known[case.key] for case in cases if case.key in known]
    counts = Counter(row["outcome"] for row in rows)
    print(", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES))
    settings = {
        "seconds for a case": SECONDS,
        "parameters at most": networks.MOST,
        **{name: version(name) for name in ("timm", "transformers")},
    }
    record.write("survey", settings, rows, quick=chosen.quick)


if __name__ == "__main__":
    main()
