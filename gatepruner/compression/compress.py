"""`compress`: learn gates, remove blocks, fold gates, recalibrate and fine-tune."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from gatepruner import processes
from gatepruner.compression.folder import Folder
from gatepruner.compression.recipe import CompressionRecipe
from gatepruner.compression.record import Compressed, StepRecord
from gatepruner.compression.steps import STEPS, Request
from gatepruner.errors import DataError, GatePrunerError, PlanError
from gatepruner.files.locks import held_folder
from gatepruner.images.examples import Examples, Track
from gatepruner.images.normalization import Normalization
from gatepruner.learning.learner import check_learnable, matched
from gatepruner.learning.recipes import HOW, GateRecipe, Recipe
from gatepruner.learning.units import every_unit, meter_of
from gatepruner.measuring.accuracy import Accuracy, accuracy
from gatepruner.measuring.agreement import Agreement, agreement
from gatepruner.measuring.device import check_amp, description, pick_device
from gatepruner.measuring.inputs import (
    check_batch,
    check_fit,
    check_shared,
    check_size,
    normalization_of,
)
from gatepruner.measuring.latency import Latency
from gatepruner.measuring.recorded import Recorded
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.networks.norms import statistics
from gatepruner.pruning.goals import COSTS, Goal, check_count, check_reachable, remeasured
from gatepruner.pruning.meter import Meter

LEAST_IMAGES = 32
# What the goal gives, and what may differ when a compression is resumed.
FREE = {"blocks", "cost", "learning_rate", "norm_learning_rate", *HOW}
COMPARED = 1000  # most labelled test images on which agreement is measured beside accuracy


def compress(
    checkpoint: Checkpoint,
    train: Examples,
    goal: Goal,
    recipe: CompressionRecipe | None = None,
    *,
    test: Examples,
    held_out: Examples | None = None,
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

    The network of every step is evaluated on the test images. Invalid input is refused before
    anything is learned. Several processes share the images: each passes all of them, and takes its
    part.

    Args:
        checkpoint: the trained network.
        train: training images of the network's size, with its classes or without labels.
        goal: blocks to remove, a cost to reach, or a loss of accuracy to stay within.
        recipe: how to compress; by default with batches that fit the number of images.
        test: images to measure accuracy on, or agreement with the whole network if they have no
            labels; nothing is learned from them.
        held_out: training images that are not in `train`, for a goal of loss, for choices and to
            keep the best state of fine-tuning; by default some of `train`, see `CompressionRecipe`.
        normalization: replaces the one that the checkpoint records.
        device: where to compute and to measure latency.
        folder: where to keep the network of every step; by default none is kept.
        resume: whether to continue from the steps in that folder, if there are any.
        force: whether to replace what is in that folder.
        watch: called with every `GateMoment`, `Moment`, `Reach`, `Trial`, `Choice` and
            `StepRecord`.
        track: maps a description to a wrapper of an iterable that shows progress.
        on_stop: called when a signal asks a learning step to stop.

    Returns:
        The smaller network, with a record of every step and its latency.

    Raises:
        PlanError: the goal cannot be reached.
        DataError: images are missing or do not fit the network.
        DeviceError: a recipe asks for bf16, which the device does not have.
        TrainingError: there are too few training images, or learning failed.
        CheckpointError: the folder is not empty, belongs to another compression, cannot be
            written, or another compression is writing it.
        ProcessError: the processes do different things, or one of them has ended.
    """
    given, recipe = recipe, recipe or CompressionRecipe()
    if held_out is None:
        train, held_out = train.held_out(recipe.held_out_of(len(train)), recipe.gating.seed)
    recipe = recipe.fitted(len(train)) if given is None else recipe
    device = pick_device(device)
    same = {"goal": str(goal), "recipe": asdict(recipe), "normalization": normalization}
    check_shared("compress", checkpoint, train, held_out, test, **same)
    for stage in recipe.stages:
        check_amp(device, stage.amp)
    progress = track("measuring latencies")
    meter = meter_of(checkpoint.network, recipe.gating, device, progress)
    refuse(checkpoint, train, goal, recipe, test, held_out)
    normalization = normalization_of(checkpoint, train, normalization)
    configuration = {
        **_configuration(checkpoint, train, goal, recipe, normalization),
        **_sets({"training": train, "held-out": held_out, "test": test}),
    }
    steps = Folder(Path(folder) if folder is not None else None, configuration)
    request = Request(
        *(checkpoint, goal, recipe, train, held_out, normalization),
        *(device, meter, steps, watch, track, on_stop),
    )
    refuse_unreachable(goal, recipe, meter)
    names = [step.name for step in STEPS if step.wanted(recipe)]
    with contextlib.ExitStack() as stack:
        processes.agreed(lambda: stack.enter_context(held_folder(steps.path)))
        steps.begin(names, resume=resume, force=force)
        meter.known.update(_latencies(steps.facts))
        networks = _carry_out(request, test)
        records = _timed(request, networks)
    small = _noted(networks[records[-1].name], records[-1], test)
    removed = set(checkpoint.network.removable) - set(small.network.removable)
    return Compressed(
        checkpoint=small,
        steps=records,
        removed=small.network.in_order(removed),
        configuration={**configuration, **_conditions(request, small)},
        goal=goal,
        target=remeasured(goal, meter, small.network),
    )


def _noted(small: Checkpoint, last: StepRecord, test: Examples) -> Checkpoint:
    """The smaller network with its accuracy in its notes, if it is known."""
    if last.accuracy is None or not test.task.classes:
        return small
    return Recorded(last.accuracy, last.low, last.high, last.images, test.source).noted(small)


def _carry_out(request: Request, test: Examples) -> dict[str, Checkpoint]:
    """Take every step that is not done yet; returns the network of each by its name."""
    checkpoints, last = dict[str, Checkpoint](), request.whole
    for step in STEPS:
        if not step.wanted(request.recipe):
            continue
        checkpoint = request.folder.done(step.name, request.whole)
        if checkpoint is None:
            start = time.monotonic()
            checkpoint = step.make(request, last)
            seconds = time.monotonic() - start
            record = StepRecord.of(
                step.name,
                checkpoint.network,
                *_measured(request, checkpoint, test),
                seconds,
                shown=step.shown,
            )
            request.folder.facts["latencies"] = _plain(request.meter)
            request.folder.keep(record, checkpoint)
        checkpoints[step.name] = last = checkpoint
        records = {record.name: record for record in request.folder.records}
        request.watch(records[step.name])
    return checkpoints


def _measured(
    request: Request, checkpoint: Checkpoint, test: Examples
) -> tuple[Accuracy | None, Agreement]:
    """The accuracy on the test images, if they have labels, and the agreement on some of them."""
    how: Any = {
        "device": request.device,
        "normalization": request.normalization,
        "track": request.track("measuring the network"),
    }
    some = test.spread(COMPARED) if test.labelled else test
    at_once = request.recipe.at_once
    agreed = agreement(checkpoint, request.whole, some, batch_size=at_once(128), **how)
    if not test.labelled:
        return None, agreed
    return accuracy(checkpoint, test, batch_size=at_once(256), **how), agreed


def _timed(request: Request, checkpoints: Mapping[str, Checkpoint]) -> tuple[StepRecord, ...]:
    """The records with latencies; unknown ones are measured in turns."""
    networks = [checkpoint.network for checkpoint in checkpoints.values()]
    times = dict(zip(checkpoints, request.meter.latencies(networks), strict=True))
    records = request.folder.records
    records[:] = [record.timed(times[record.name]) for record in records]
    request.folder.facts["latencies"] = _plain(request.meter)
    request.folder.write()
    return tuple(records)


def _plain(meter: Meter) -> dict[str, Any]:
    return {key: asdict(latency) for key, latency in meter.known.items()}


def _latencies(facts: Mapping[str, Any]) -> dict[str, Latency]:
    return {key: Latency(**fields) for key, fields in facts.get("latencies", {}).items()}


def refuse(
    checkpoint: Checkpoint,
    train: Examples,
    goal: Goal,
    recipe: CompressionRecipe,
    test: Examples,
    held_out: Examples | None,
) -> None:
    """Raise one error that lists everything wrong with the request, before computing anything."""
    checks: list[Callable[[], object]] = [
        *(
            lambda images=images: _check_images(checkpoint, images)
            for images in (train, test, *([] if held_out is None else [held_out]))
        ),
        lambda: check_learnable(checkpoint),
        lambda: check_enough(train, held_out),
        lambda: check_batch(train, recipe.most_images),
        lambda: _check_numbers(recipe),
        lambda: _check_held_out(goal, held_out),
        *removal_checks(goal, checkpoint.network, recipe.gating),
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


def removal_checks(
    goal: Goal, network: Network, gating: GateRecipe
) -> tuple[Callable[[], object], ...]:
    """What refuses a removal that the network does not allow; none of it looks at an image.

    Args:
        goal: what to reach.
        network: the whole network.
        gating: says what may be removed, and how latency is measured.

    Returns:
        Functions, each of which raises a `GatePrunerError` for one kind of problem.
    """
    return (
        lambda: _check_count(goal, network, gating.units),
        lambda: every_unit(network, gating),
        meter_of(network, gating, "cpu").check,
    )


def refuse_unreachable(goal: Goal, recipe: CompressionRecipe, meter: Meter) -> None:
    """Raise a `PlanError` if the units that the recipe may remove cannot reach a cost.

    Args:
        goal: any; what is no cost is not looked at.
        recipe: how to compress.
        meter: measures the whole network, and the one without all these units.
    """
    if goal.kind in COSTS:
        check_reachable(goal, meter.whole, every_unit(meter.whole, recipe.gating), meter)


def check_enough(train: Examples, held_out: Examples | None) -> None:
    """Raise a `DataError` if there are too few images to learn from, or all are alike."""
    images = len(train) + (len(held_out) if held_out is not None else 0)
    if images < LEAST_IMAGES:
        raise DataError(
            f"cannot compress with {images} images of {train.source}: expected at least "
            f"{LEAST_IMAGES}; add some, they need no labels"
        )
    if train.alike:
        raise DataError(
            f"cannot learn from {train.source}: all its {len(train)} images are equal; expected "
            "different ones"
        )


def _check_images(checkpoint: Checkpoint, images: Examples) -> None:
    if images.labelled:
        check_fit(checkpoint, images)
    else:
        check_size(checkpoint.network, images)


def _check_numbers(recipe: CompressionRecipe) -> None:
    """Raise a `DataError` if a step would have too few of the images."""
    if recipe.gate_images < recipe.gating.batch_size:
        raise DataError(
            f"cannot learn gates from {recipe.gate_images} images: expected at least one batch of "
            f"{recipe.gating.batch_size}; use more images or smaller batches"
        )
    least = max(2, processes.count())
    if 0 < recipe.recalibrate < least:
        images = "1 image" if recipe.recalibrate == 1 else f"{recipe.recalibrate} images"
        each = ", one for each process" if least > 2 else ""
        raise DataError(
            f"cannot recalibrate on {images}: expected at least {least}{each}, or 0 to leave this "
            "out"
        )


def _check_held_out(goal: Goal, held_out: Examples | None) -> None:
    if goal.kind != "loss":
        return
    if held_out is None:
        raise DataError("a goal of loss is measured on held-out training images: pass some")
    if not held_out.labelled:
        raise DataError(
            f"{held_out.source} has no labels, and a goal of loss needs them: give the blocks to "
            "remove or a cost instead"
        )


def _check_count(goal: Goal, network: Network, units: str) -> None:
    """Raise a `PlanError` if a number of blocks cannot be removed, or channels are among them."""
    if goal.kind != "blocks":
        return
    if units != "blocks":
        raise PlanError(
            f"cannot remove {goal.amount:g} blocks where the units are {units}: slices of channels "
            "save less than blocks, so their number says little; choose a cost to reach, a loss to "
            "stay within, or blocks alone"
        )
    if goal.amount < 1:
        raise PlanError(f"cannot remove {goal.amount:g} blocks: choose at least 1")
    check_count(goal.amount, network, network.removable)


def _configuration(
    checkpoint: Checkpoint,
    train: Examples,
    goal: Goal,
    recipe: CompressionRecipe,
    normalization: Normalization,
) -> dict[str, Any]:
    """What must be equal for a compression to be resumed."""
    tuning = recipe.tuning
    tuned = _tuning(tuning, len(train)) if tuning else {"epochs": 0}
    return {
        "network": str(checkpoint.network),
        "fingerprint": checkpoint.fingerprint,
        "goal": str(goal),
        "normalization": f"mean {normalization.mean}, deviation {normalization.std}",
        "gate images": min(recipe.gate_images, len(train)),
        "recalibration images": min(recipe.recalibrate, len(train)),
        "trial steps": recipe.trial,
        "matched": matched(tuning.match, checkpoint.network, checkpoint) if tuning else None,
        **_settings("gates", asdict(recipe.gating), FREE),
        **_settings("fine-tuning", tuned, HOW),
    }


def _tuning(recipe: Recipe, images: int) -> dict[str, Any]:
    """The fields of a recipe of fine-tuning, with its defaults for so many training images."""
    chosen = {"epochs": recipe.passes(images), "learning_rate": recipe.peak(fresh=False)}
    return {**asdict(recipe), **chosen}


def _settings(
    stage: str, recipe: Mapping[str, Any], besides: Collection[str] = ()
) -> dict[str, Any]:
    """The fields of a recipe, named after the stage that it is for."""
    return {
        f"{stage}, {name.replace('_', ' ')}": value
        for name, value in recipe.items()
        if name not in besides
    }


def _sets(sets: Mapping[str, Examples | None]) -> dict[str, str | None]:
    """What identifies sets of images, by their kinds."""
    return {
        f"{kind} images": None
        if images is None
        else f"{images.source}, {len(images)}, {images.fingerprint}"
        for kind, images in sets.items()
    }


def _conditions(request: Request, small: Checkpoint) -> dict[str, Any]:
    """What every step used, and the conditions of latency measurements."""
    used = {
        f"images used, {verb.replace('_', ' ')}": f"{entry['images']} of {entry[verb]}"
        for entry in small.notes["history"]
        for verb in ("gates_learned", "recalibrated", "finetuned")
        if verb in entry
    }
    chosen = {
        f"chosen {what}": name for what, name in request.folder.facts.get("choices", {}).items()
    }
    how = asdict(request.recipe.gating)
    used |= _settings("gates", {name: how[name] for name in HOW})
    if not statistics(small.network.build_blank()):
        used["recalibration"] = "none: the network has no batch norm"
    if request.recipe.tuning is not None:  # a recipe that was chosen has other fields
        used |= _settings("fine-tuning", small.notes["recipe"], besides=("epochs",))
    (whole,) = request.meter.latencies([request.whole.network])
    hardware = f"{request.device} ({description(request.device)})"
    return {**used, **chosen, "device": hardware, "latency": whole.conditions}
