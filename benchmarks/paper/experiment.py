"""What the experiments share: networks that are trained once, several at a time, and kept.

A network is trained with the package's own `train`, measured on images that nothing was chosen
on, and kept in `results/paper.work/`, which git ignores. An experiment that needs it again, or is
run again after it was stopped, takes it from there.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import gatepruner
from gatepruner.errors import TrainingError
from gatepruner.images.readers import has_split

sys.path.insert(0, str(Path(__file__).parents[1]))  # the other benchmarks share `record`, too
import record


@dataclass(frozen=True)
class Job:
    """A network to train and to measure.

    Attributes:
        network: its name, as `gated-residual-fc100`.
        recipe: how to train it.
        data: training images, as in `mnist:DIR`.
        limit: at most so many of them.
        held_out: so many of them are not trained on but measured on, for choosing settings;
            with 0 it is the test images that are measured on.
    """

    network: str
    recipe: gatepruner.Recipe
    data: str
    limit: int | None = None
    held_out: int = 0

    def file(self, folder: Path) -> Path:
        """Where the trained network is kept: another one for whatever differs."""
        kind = self.data.partition(":")[0]
        known = {**asdict(self), "data": kind}
        digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]
        return folder / f"{self.network}-{digest}.safetensors"


def parser(description: str | None, data: str) -> argparse.ArgumentParser:
    """The options that every experiment has.

    Args:
        description: what the experiment is.
        data: an example of the images that it takes, as `gatepruner train --data` does.
    """
    found = record.parser(description)
    found.add_argument("--data", required=True, metavar="SPEC", help=f"as in {data}")
    found.add_argument("--device", default="auto", help="where to compute")
    found.add_argument("--seeds", type=int, default=3, help="networks of each kind")
    return found


def work(quick: bool) -> Path:
    """Where trained networks are kept."""
    found = record.folder(quick) / "paper.work"
    found.mkdir(parents=True, exist_ok=True)
    return found


def train(
    jobs: Iterable[Job], folder: Path, *, device: str = "auto", workers: int = 1
) -> list[dict[str, Any]]:
    """Train and measure what is not there yet; a row for every job.

    Args:
        jobs: what to train.
        folder: where the networks are kept.
        device: where to compute.
        workers: processes. Of several each has one thread: layers of 50 units are too small
            for more.
    """
    jobs = list(jobs)
    if workers == 1:
        return [told(job, done(job, folder, device)) for job in jobs]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, torch.set_num_threads, (1,)) as pool:
        waiting = [pool.submit(done, job, folder, device) for job in jobs]
        return [told(job, it.result()) for job, it in zip(jobs, waiting, strict=True)]


def told(job: Job, row: dict[str, Any]) -> dict[str, Any]:
    """The row, after a line about it on the terminal."""
    found = row.get("error") or f"{100 * row['accuracy']:.2f} %, {row['seconds']:.0f} s"
    print(f"{job.network}, seed {job.recipe.seed}: {found}", flush=True)
    return row


def done(job: Job, folder: Path, device: str) -> dict[str, Any]:
    """Train, measure and keep one network, unless it is there."""
    path = job.file(folder)
    kept = path.with_suffix(".json")
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    row: dict[str, Any] = {"network": job.network, "seed": job.recipe.seed}
    start = time.perf_counter()
    try:
        checkpoint = learned(job, path, device)
    except TrainingError as error:
        row["error"] = str(error)
    else:
        gatepruner.save(checkpoint, path, force=True)
        test = images(job, "test")
        row["seconds"] = time.perf_counter() - start
        row |= gatepruner.accuracy(checkpoint, test, device=device, batch_size=500).to_json()
        row |= {"training_loss": checkpoint.notes["epochs"][-1]["loss"]}
        row["gates"] = [round(gate, 5) for gate in checkpoint.known_gates.values()]
    kept.write_text(json.dumps(row))
    path.with_suffix(".state").unlink(missing_ok=True)
    return row


def learned(job: Job, path: Path, device: str) -> gatepruner.Checkpoint:
    """The trained network; a run that was stopped is gone on with."""
    train, state = images(job, "train"), path.with_suffix(".state")
    network = gatepruner.Network.named(job.network, num_classes=len(train.classes))
    began = time.perf_counter()

    def watch(moment: Any) -> None:
        if moment.ends_epoch and time.perf_counter() - began > 60:
            print(f"{job.network}, epoch {moment.epoch}: loss {moment.loss:.4f}", flush=True)

    return gatepruner.train(
        network,
        train,
        job.recipe,
        device=device,
        state=state,
        resume=state.exists(),
        watch=watch,
    )


def images(job: Job, part: str) -> gatepruner.Images:
    """The job's images to `"train"` on, or to `"test"` on."""
    train = loaded(job.data, "train", job.limit)
    if job.held_out:
        kept, held_out = train.held_out(job.held_out, 0)
        assert held_out is not None
        return kept if part == "train" else held_out
    return train if part == "train" else unseen(job.data)


@functools.lru_cache
def loaded(spec: str, split: str, limit: int | None = None) -> gatepruner.Images:
    """One split, read once by each process."""
    shape = (1, 28, 28) if spec.startswith("mnist:") else (3, 32, 32)
    return gatepruner.load_images(spec, shape, split=split, limit=limit)


@functools.lru_cache
def unseen(spec: str) -> gatepruner.Images:
    """All images that nothing is trained or chosen on."""
    test = loaded(spec, "test")
    return loaded(spec, "val").joined(test) if has_split(spec, "val") else test


def checkpoint(job: Job, folder: Path) -> gatepruner.Checkpoint:
    """A network that has been trained."""
    return gatepruner.load(job.file(folder))


def described(recipe: gatepruner.Recipe) -> dict[str, Any]:
    """The recipe, but for what training from fresh weights without a teacher does not use."""
    said = {**asdict(recipe), "learning_rate": recipe.peak}
    return {key: value for key, value in said.items() if key not in UNUSED}


UNUSED = ("seed", "distillation", "temperature")


def runs(
    rows: Sequence[Mapping[str, Any]],
    depths: Sequence[int],
    kind: str,
    value: Callable[[Mapping[str, Any]], float],
) -> list[list[float]]:
    """The value at every depth, for every seed."""
    found = {(row["seed"], row["depth"]): value(row) for row in rows if row["kind"] == kind}
    seeds = sorted({seed for seed, _ in found})
    return [[found[seed, depth] for depth in depths] for seed in seeds]


def error(row: Mapping[str, Any]) -> float:
    """The error in percent; no number where training failed."""
    return 100 * (1 - row["accuracy"]) if "accuracy" in row else math.nan


def mean_gate(row: Mapping[str, Any]) -> float:
    """The mean of g = ReLU(k) over the blocks."""
    return statistics.fmean(row["gates"]) if "gates" in row else math.nan


def tested(rows: Sequence[Mapping[str, Any]]) -> int:
    """How many images accuracy was counted on."""
    (count,) = {row["images"] for row in rows if "images" in row}
    return int(count)
