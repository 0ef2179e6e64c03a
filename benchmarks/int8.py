"""Whether the savings of removing blocks and of 8-bit integers multiply.

Of a trained ResNet-56, 10 of the 27 blocks are removed, those that `taylor` ranks lowest on 500
training images, and batch-norm statistics are recalibrated on the same images; nothing is
fine-tuned. Whole and pruned network are exported to ONNX in float32 and, calibrated on the same
images, in 8 bits. The four files are run by ONNX Runtime on one thread: accuracy and agreement on
2,000 images of val, and the time of a pass of one image, all four in turns. It is the CPU time of
the thread, which other programs on the same cores do not lengthen by waiting. If the savings
multiply, the share of the time that both leave is the product of the shares that each leaves.

The multiplications of 8-bit integers are fast on a CPU with VNNI instructions; the settings say
whether this one has them.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import record
import torch
from torch import Tensor

import gatepruner
from gatepruner.measuring.accuracy import wilson
from gatepruner.measuring.engines import OnnxRuntime
from gatepruner.measuring.inputs import normalization_of

REMOVED, CALIBRATION, IMAGES, BATCH, UNCOUNTED = 10, 500, 2000, 100, 10
WHOLE, PRUNED = "whole", "pruned"
FLOAT, INT8 = "float32", "int8"
Case = tuple[str, str]  # network and precision


def exported(
    networks: Mapping[str, gatepruner.Checkpoint], calibration: gatepruner.Calibration
) -> dict[Case, bytes]:
    """The ONNX files of all networks in both precisions."""
    files: dict[Case, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, precision in itertools.product(networks, (FLOAT, INT8)):
            used = calibration if precision == INT8 else None
            path = Path(folder, f"{name}-{precision}.onnx")
            written = gatepruner.export(networks[name], path, calibration=used)
            files[name, precision] = path.read_bytes()
            print(name, precision, json.dumps(written.details), flush=True)
    return files


def classified(running: OnnxRuntime, images: Tensor) -> Tensor:
    """The class of each image."""
    return torch.cat([running(batch).argmax(1) for batch in images.split(BATCH)])


def vnni() -> bool:
    """Whether the CPU has instructions for 8-bit dot products."""
    info = Path("/proc/cpuinfo")
    return info.exists() and any(
        name in info.read_text() for name in ("avx512_vnni", "avx_vnni", "asimddp")
    )


def times_in_turns(
    engines: Mapping[Case, OnnxRuntime], image: Tensor, rounds: int
) -> dict[Case, list[float]]:
    """Seconds of CPU time of a pass, for every file in every round; the first ten are not kept."""
    times: dict[Case, list[float]] = {case: [] for case in engines}
    for turn in range(UNCOUNTED + rounds):
        for case, running in engines.items():
            start = time.thread_time()
            running(image)
            if turn >= UNCOUNTED:
                times[case].append(time.thread_time() - start)
    return times


def rows_of(
    engines: Mapping[Case, OnnxRuntime], data: gatepruner.Images, images: Tensor, rounds: int
) -> list[dict[str, Any]]:
    """Accuracy, agreement and latency of each file."""
    classes = {case: classified(running, images) for case, running in engines.items()}
    times = times_in_turns(engines, images[:1], rounds)
    seconds = {case: record.spread(all) for case, all in times.items()}
    kept = {case: one["median"] / seconds[WHOLE, FLOAT]["median"] for case, one in seconds.items()}
    rows = []
    for case, found in classes.items():
        name, precision = case
        right = int((found == data.labels).sum())
        low, high = wilson(right, len(data))
        agreement = float((found == classes[name, FLOAT]).float().mean())
        rows.append(
            {
                "network": name,
                "precision": precision,
                "images": len(data),
                "accuracy": right / len(data),
                "low": low,
                "high": high,
                "agreement": agreement,
                "seconds": seconds[case],
                "kept": kept[case],
                "product": kept[name, FLOAT] * kept[WHOLE, precision],
            }
        )
    return rows


def main() -> None:
    options = record.parser(__doc__, "train and val", device=False)
    options.add_argument("--rounds", type=int, default=400)
    chosen = options.parse_args()
    limits = (20, 40) if chosen.quick else (CALIBRATION, IMAGES)
    whole, train, val = record.loaded(chosen, train=limits[0], val=limits[1])
    count = min(REMOVED, len(whole.network.removable) - 1)
    names = gatepruner.rank(whole, "taylor", train).first(count)
    pruned = gatepruner.recalibrate(gatepruner.remove(whole, names), train)
    least = 0.0 if chosen.quick else gatepruner.Calibration.least_agreement
    calibration = gatepruner.Calibration(train, least_agreement=least)
    files = exported({WHOLE: whole, PRUNED: pruned}, calibration)
    engines = {case: OnnxRuntime.of(model, threads=1) for case, model in files.items()}
    images = normalization_of(whole, val)(val.pixels)
    rounds = 3 if chosen.quick else chosen.rounds
    rows = rows_of(engines, val, images, rounds)
    for row in rows:
        row["file_bytes"] = len(files[row["network"], row["precision"]])
        print(row, flush=True)
    settings = {
        "network": str(whole.network),
        "removed": ", ".join(names),
        "calibration": f"{len(train)} training images",
        "batch": 1,
        "time": "CPU time of the one thread",
        "threads of ONNX Runtime": 1,
        "rounds": rounds,
        "VNNI": "yes" if vnni() else "no",
        "onnxruntime": version("onnxruntime"),
    }
    record.write("int8", settings, rows, quick=chosen.quick)


if __name__ == "__main__":
    main()
