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
import multiprocessing
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
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

UNUSED = ("seed", "distillation", "temperature")  # in training without a teacher


@dataclass(frozen=True)
class Job:
    """A network to train and to measure.

    Attributes:
        network: its name, as `gated-residual-fc100`.
        recipe: how to train it.
        data: its images, as in `mnist:DIR`.
        limit: train on at most this many of them.
    """

    network: str
    recipe: gatepruner.Recipe
    data: str
    limit: int | None = None

    def file(self, folder: Path) -> Path:
        """Where the trained network is kept; jobs that differ have different files."""
        known = {**asdict(self), "data": self.data.partition(":")[0]}
        digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]
        return folder / f"{self.network}-{digest}.safetensors"


def parser(description: str | None, data: str, workers: int = 1) -> argparse.ArgumentParser:
    """The options that every experiment has.

    Args:
        description: what the experiment is.
        data: an example of the images that it takes, as `gatepruner train --data` does.
        workers: how many networks are trained at a time, by default.
    """
    options = record.parser(description)
    options.add_argument("--data", required=True, metavar="SPEC", help=f"as in {data}")
    options.add_argument("--device", default="auto", help="where to compute")
    options.add_argument("--seeds", type=int, default=3, help="networks of each kind")
    options.add_argument("--workers", type=int, default=workers, help="processes that train")
    return options


def train(jobs: Iterable[Job], chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Train and measure the networks that are not there yet.

    Args:
        jobs: what to train.
        chosen: the options. Of several workers each has one thread: layers of 50 units are too
            small for more.

    Returns:
        A row for every job.
    """
    work = functools.partial(done, folder=folder(chosen.quick), device=chosen.device)
    if chosen.workers == 1:
        return [work(job) for job in jobs]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(chosen.workers, spawn, torch.set_num_threads, (1,)) as pool:
        return list(pool.map(work, jobs))


def checkpoints(jobs: Iterable[Job], chosen: argparse.Namespace) -> list[gatepruner.Checkpoint]:
    """The networks, which have been trained."""
    return [gatepruner.load(job.file(folder(chosen.quick))) for job in jobs]


def folder(quick: bool) -> Path:
    """Where trained networks are kept."""
    path = record.folder(quick) / "paper.work"
    path.mkdir(parents=True, exist_ok=True)
    return path


def done(job: Job, folder: Path, device: str) -> dict[str, Any]:
    """Train, measure and keep one network, unless it is there; its row."""
    path = job.file(folder)
    return record.once(path.with_suffix(".json"), lambda: measured(job, path, device))


def measured(job: Job, path: Path, device: str) -> dict[str, Any]:
    """Train and keep one network; its row, of an error if training diverges."""
    row, start = {"network": job.network, "seed": job.recipe.seed}, time.perf_counter()
    state = path.with_suffix(".state")
    try:
        checkpoint = learned(job, state, device)
    except TrainingError as error:
        return {**row, "error": str(error)}
    gatepruner.save(checkpoint, path, force=True)
    seconds = time.perf_counter() - start
    accuracy = gatepruner.accuracy(checkpoint, unseen(job.data), device=device, batch_size=500)
    state.unlink(missing_ok=True)
    print(f"{path.stem}: {100 * accuracy.accuracy:.2f} %, {seconds:.0f} s", flush=True)
    return {
        **row,
        "seconds": seconds,
        **accuracy.to_json(),
        "training_loss": checkpoint.notes["epochs"][-1]["loss"],
        "gates": [round(gate, 5) for gate in checkpoint.known_gates.values()],
    }


def learned(job: Job, state: Path, device: str) -> gatepruner.Checkpoint:
    """The trained network; a run that was stopped is continued."""
    train = loaded(job.data, "train", job.limit)
    network = gatepruner.Network.named(job.network, num_classes=len(train.classes))
    how: dict[str, Any] = {"device": device, "state": state, "resume": state.exists()}
    return gatepruner.train(network, train, job.recipe, **how)


@functools.lru_cache
def loaded(spec: str, split: str, limit: int | None = None) -> gatepruner.Images:
    """One split, read once by each process."""
    shape = (1, 28, 28) if spec.startswith("mnist:") else (3, 32, 32)
    return gatepruner.load_images(spec, shape, split=split, limit=limit)


@functools.lru_cache
def unseen(spec: str, limit: int | None = None) -> gatepruner.Images:
    """The images that nothing is trained or chosen on, at most `limit` of them."""
    test = loaded(spec, "test")
    test = loaded(spec, "val").joined(test) if has_split(spec, "val") else test
    return test.spread(limit)


def write(
    name: str,
    chosen: argparse.Namespace,
    recipe: gatepruner.Recipe,
    rows: Sequence[Mapping[str, Any]],
    more: Mapping[str, Any],
) -> None:
    """Record the result, the recipe and the number of seeds among its settings."""
    recipe_settings = {**asdict(recipe), "learning_rate": recipe.peak}
    used = {key: value for key, value in recipe_settings.items() if key not in UNUSED}
    record.write(name, {**used, "seeds": chosen.seeds, **more}, rows, quick=chosen.quick)


def tested(rows: Iterable[Mapping[str, Any]]) -> int:
    """How many images accuracy was counted on."""
    (count,) = {row["images"] for row in rows if "images" in row}
    return int(count)
