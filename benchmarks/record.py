"""What every benchmark records: its numbers, and the conditions under which they were measured.

A result is a JSON document `results/NAME.json`; a smoke run (`--quick`) writes to
`results/quick/`, so that it never takes the place of a real one.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
MAKE = """
import sys
import gatepruner
network = gatepruner.Network.named(sys.argv[1])
gatepruner.save(gatepruner.Checkpoint(network, network.initial_weights(0)), sys.argv[2])
"""
COMMAND = str(Path(sys.executable).with_name("gatepruner"))


def parser(
    description: str | None, splits: str = "", *, device: bool = True
) -> argparse.ArgumentParser:
    """The options that every script has.

    Args:
        description: what the script measures.
        splits: of the folder of images that the script takes beside a trained network.
        device: whether such a script can compute elsewhere than on the CPU.
    """
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--quick", action="store_true", help="a smoke run: small, few rounds")
    if splits:
        options.add_argument("--checkpoint", required=True, type=Path, help="a trained network")
        options.add_argument("--data", required=True, help=f"folder with {splits}; in each CLASS/*")
    if splits and device:
        options.add_argument("--device", default="cpu", help="where to compute")
    return options


def loaded(chosen: argparse.Namespace, **limits: int | None) -> tuple[Any, ...]:
    """The trained network and its images: at most so many of every split that is named."""
    import gatepruner  # not above: see prune_large

    whole = gatepruner.load(chosen.checkpoint)
    shape, spec = whole.network.base.input_shape, f"imagefolder:{chosen.data}"
    splits = (
        gatepruner.load_images(spec, shape, split=split, limit=limit)
        for split, limit in limits.items()
    )
    return whole, *splits


def folder(quick: bool) -> Path:
    """Where results are written."""
    path = RESULTS / "quick" if quick else RESULTS
    path.mkdir(parents=True, exist_ok=True)
    return path


def write(name: str, settings: Mapping[str, Any], rows: Sequence[Any], *, quick: bool) -> Path:
    """Write the result of the benchmark `name`.

    Args:
        name: of the script.
        settings: what the numbers depend on besides hardware and versions.
        rows: the measurements, plain JSON.
        quick: whether it was a smoke run.
    """
    path = folder(quick) / f"{name}.json"
    document = {
        "benchmark": name,
        "quick": quick,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "hardware": hardware(),
        "versions": versions(),
        "settings": dict(settings),
        "rows": list(rows),
    }
    _replace(path, json.dumps(document, indent=1) + "\n")
    print(f"wrote {path}")
    return path


def rows_of(name: str, *, quick: bool) -> list[Any]:
    """The measurements that an earlier run of the benchmark `name` has written; none without."""
    path = folder(quick) / f"{name}.json"
    rows: list[Any] = json.loads(path.read_text())["rows"] if path.exists() else []
    return rows


def _replace(path: Path, content: str) -> None:
    """Write a file, whole or not at all."""
    path.with_suffix(".part").write_text(content)
    path.with_suffix(".part").replace(path)


def hardware() -> dict[str, Any]:
    """The processor, how many of its cores this process may use, threads, memory, load, GPU."""
    model = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else os.environ.get("OMP_NUM_THREADS") or cores or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": model,
        "cores": cores,
        "threads": int(threads),
        "memory_bytes": memory,
        "system": f"{platform.system()} {platform.machine()}",
        "load_average": round(os.getloadavg()[0], 2),
        **({"gpu": torch.cuda.get_device_name()} if torch and torch.cuda.is_initialized() else {}),
    }


def versions() -> dict[str, str]:
    """What the numbers were measured with."""
    installed = {name: importlib.metadata.version(name) for name in ("torch", "torchvision")}
    return {"python": platform.python_version(), **installed, "gatepruner": own_version()}


def own_version() -> str:
    """The version of gatepruner, which runs from its folder, too."""
    code = Path(__file__).parents[1] / "gatepruner" / "__init__.py"
    (version,) = re.findall(r'^__version__ = "(.+)"', code.read_text(), re.MULTILINE)
    return str(version)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles and number of some measurements."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high, "n": len(values)}


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def once(path: Path, work: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """What the JSON file holds; worked out and written if there is none."""
    if not path.exists():
        _replace(path, json.dumps(work()))
    known: dict[str, Any] = json.loads(path.read_text())
    return known


def in_turns(
    work: Mapping[str, Callable[[], object]], rounds: int, uncounted: int = 1
) -> dict[str, list[float]]:
    """Seconds of every call in every round; in each, all are called, under the same conditions."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(uncounted + rounds):
        for name, call in work.items():
            taken = seconds(call)
            if turn >= uncounted:
                times[name].append(taken)
    return times


def run(command: Sequence[str]) -> None:
    """Run a command that must succeed; what it prints is shown only if it does not."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def make(network: str, path: Path) -> None:
    """Write a checkpoint with fresh weights, in a process of its own."""
    run([sys.executable, "-c", MAKE, network, str(path)])
