"""`compress`: gates learned, blocks removed, gates folded, the accuracy won back, all measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from gatepruner.compression.folder import Folder
from gatepruner.compression.recipe import CompressionRecipe
from gatepruner.compression.record import Compressed, StepRecord
from gatepruner.compression.steps import STEPS, Request
from gatepruner.errors import DataError, GatePrunerError, PlanError
from gatepruner.images.images import Images, Track
from gatepruner.images.normalization import Normalization
from gatepruner.measuring.accuracy import accuracy
from gatepruner.measuring.device import description, pick_device
from gatepruner.measuring.inputs import check_batch, check_fit, normalization_of
from gatepruner.measuring.latency import Latency
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.pruning.goals import COSTS, Goal, check_reachable
from gatepruner.pruning.meter import Meter


def compress(
    checkpoint: Checkpoint,
    train: Images,
    goal: Goal,
    recipe: CompressionRecipe | None = None,
    *,
    test: Images,
    held_out: Images | None = None,
    normalization: Normalization | None = None,
    device: str | torch.device = "auto",
    folder: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    watch: Callable[[Any], None] = lambda event: None,
    track: Callable[[str], Track] = lambda description: iter,
    on_stop: Callable[[], None] = lambda: None,
) -> Compressed:
    """Make a trained network smaller: learn gates, remove blocks, fold, recalibrate, fine-tune.

    Every step's network is evaluated on the test images. All that can be refused is refused
    before anything is learned.

    Args:
        checkpoint: the trained network.
        train: training images of its size and classes.
        goal: blocks to remove, a cost to reach, or a loss of accuracy to stay within.
        recipe: how.
        test: labelled images that nothing is learned from or chosen on.
        held_out: training images that are not in `train`, for a goal of loss.
        normalization: instead of the one that the checkpoint records.
        device: where to compute, and to measure latency.
        folder: where to keep the network of every step; nothing is kept by default.
        resume: whether to continue with what is done in that folder, if anything is.
        force: whether what is in that folder may be replaced.
        watch: called with a `GateMoment`, `Moment`, `Reach` or `StepRecord` as each comes up.
        track: makes, from a description, a wrapper of an iterable that shows progress.
        on_stop: called when a signal asks a learning step to stop.

    Returns:
        The smaller network, with a record of every step and its latency.

    Raises:
        PlanError: the goal cannot be reached.
        DataError: the images do not fit the network.
        TrainingError: there are too few training images, or learning failed.
        CheckpointError: the folder holds something else.
    """
    recipe = recipe or CompressionRecipe()
    device = pick_device(device) if isinstance(device, str) else device
    meter = Meter(checkpoint.network, device, recipe.gating.latency_batch)
    _refuse(checkpoint, train, goal, recipe, test, held_out)
    chosen = normalization_of(checkpoint.notes, train.shape[0], normalization)
    configuration = _configuration(checkpoint, train, goal, recipe, test, chosen)
    kept = Folder(Path(folder) if folder is not None else None, configuration)
    request = Request(
        *(checkpoint, goal, recipe, train, held_out, chosen),
        *(device, meter, kept, watch, track, on_stop),
    )
    if goal.kind in COSTS:
        check_reachable(goal, checkpoint.network, request.may_go, meter)
    kept.begin(resume=resume, force=force)
    meter.known.update(_latencies(kept.facts))
    made = _carry_out(request, test)
    records = _timed(request, made)
    small = made[records[-1].name]
    removed = set(checkpoint.network.removable) - set(small.network.removable)
    return Compressed(
        checkpoint=small,
        steps=records,
        removed=small.network.in_order(removed),
        configuration={**configuration, **_conditions(request, small)},
    )


def _carry_out(request: Request, test: Images) -> dict[str, Checkpoint]:
    """Take every step that is not done yet; the network of each, by its name."""
    made, network = dict[str, Checkpoint](), request.whole
    for step in STEPS:
        if not step.wanted(request.recipe):
            continue
        done = request.folder.done(step.name)
        if done is None:
            start = time.monotonic()
            done = step.make(request, network)
            seconds = time.monotonic() - start
            counted = accuracy(
                done,
                test,
                device=request.device,
                normalization=request.normalization,
                track=request.track(f"accuracy, {step.name}"),
            )
            record = StepRecord.of(step.name, done.network, counted, seconds, shown=step.shown)
            request.folder.facts["latencies"] = _plain(request.meter)
            request.folder.keep(record, done)
        made[step.name] = network = done
        request.watch(next(it for it in request.folder.records if it.name == step.name))
    return made


def _timed(request: Request, made: Mapping[str, Checkpoint]) -> tuple[StepRecord, ...]:
    """The records with latencies; those that are not known yet are measured in turns."""
    networks = {name: checkpoint.network for name, checkpoint in made.items()}
    latencies = request.meter.latencies(list(networks.values()))
    times = dict(zip(networks, latencies, strict=True))
    records = request.folder.records
    records[:] = [record.timed(times[record.name]) for record in records]
    request.folder.facts["latencies"] = _plain(request.meter)
    request.folder.write()
    return tuple(records)


def _plain(meter: Meter) -> dict[str, Any]:
    return {key: asdict(latency) for key, latency in meter.known.items()}


def _latencies(facts: Mapping[str, Any]) -> dict[str, Latency]:
    return {key: Latency(**one) for key, one in facts.get("latencies", {}).items()}


def _refuse(
    checkpoint: Checkpoint,
    train: Images,
    goal: Goal,
    recipe: CompressionRecipe,
    test: Images,
    held_out: Images | None,
) -> None:
    """Raise one error with all that is wrong, before anything is computed."""
    checks: list[Callable[[], object]] = [
        *(lambda images=images: check_fit(checkpoint.network, images) for images in (train, test)),
        lambda: _check_batch(train, recipe),
        lambda: _check_held_out(goal, held_out),
        lambda: _check_count(goal, checkpoint.network),
    ]
    problems: list[GatePrunerError] = []
    for check in checks:
        try:
            check()
        except GatePrunerError as error:
            problems.append(error)
    if problems:
        text = "; ".join(dict.fromkeys(map(str, problems)))
        raise type(problems[0])(text) from None


def _check_batch(train: Images, recipe: CompressionRecipe) -> None:
    sizes = [recipe.gating.batch_size, *([recipe.tuning.batch_size] if recipe.tuning else [])]
    check_batch(train, max(sizes))


def _check_held_out(goal: Goal, held_out: Images | None) -> None:
    if goal.kind == "loss" and held_out is None:
        raise DataError(
            "a loss of accuracy is measured on training images that are held out: hold some out"
        )


def _check_count(goal: Goal, network: Network) -> None:
    if goal.kind == "blocks" and not 1 <= goal.amount <= len(network.removable):
        raise PlanError(
            f"cannot remove {goal.amount:g} blocks: {network} has {len(network.removable)} "
            "removable ones"
        )


def _configuration(
    checkpoint: Checkpoint,
    train: Images,
    goal: Goal,
    recipe: CompressionRecipe,
    test: Images,
    normalization: Normalization,
) -> dict[str, Any]:
    """What has to be the same for a compression to be resumed; not the rates of learning gates."""
    gating, tuning = recipe.gating, recipe.tuning
    return {
        "network": str(checkpoint.network),
        "fingerprint": checkpoint.fingerprint,
        "goal": str(goal),
        "training images": f"{train.source}, {len(train)}",
        "test images": f"{test.source}, {len(test)}",
        "normalization": f"mean {normalization.mean}, deviation {normalization.std}",
        "gate images": min(recipe.gate_images, len(train)),
        "gate warmup": gating.warmup,
        "gate steps": gating.steps,
        "identity only": gating.identity_only,
        "recalibration images": min(recipe.recalibrate, len(train)),
        "epochs": tuning.epochs if tuning else 0,
        "learning rate": tuning.learning_rate if tuning else None,
        "batch size": gating.batch_size,
        "latency batch size": gating.latency_batch,
        "seed": gating.seed,
    }


def _conditions(request: Request, small: Checkpoint) -> dict[str, Any]:
    """The images that each step really used, and how latency was measured."""
    used = {
        f"images used, {verb.replace('_', ' ')}": f"{done['images']} of {done[verb]}"
        for done in small.notes["history"]
        for verb in ("gates_learned", "recalibrated", "finetuned")
        if verb in done
    }
    return {**used, "device": f"{request.device} ({description(request.device)})"}
