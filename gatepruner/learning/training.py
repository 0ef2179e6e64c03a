"""Training and fine-tuning: weights and gates learn together.

Runs are deterministic and can be resumed at any step; see `gatepruner.learning.running`.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, OneCycleLR
from typing_extensions import TypedDict

from gatepruner import processes
from gatepruner.errors import TrainingError
from gatepruner.images.examples import Examples
from gatepruner.images.normalization import NORMALIZATIONS, Normalization
from gatepruner.images.views import varied
from gatepruner.learning.learner import Learner, State, check_learnable, matched, matches
from gatepruner.learning.moments import Moment
from gatepruner.learning.recipes import FINE_TUNING, Recipe
from gatepruner.learning.running import carry_out
from gatepruner.measuring.accuracy import tally
from gatepruner.measuring.agreement import Agreement, answering, compared
from gatepruner.measuring.inputs import check_fit, check_size
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.networks.norms import keep_statistics, statistics

PATIENCE = 5  # rounds without a better state, after which a run ends
KEPT = ("agreement", "divergence", "distance")  # what notes tell of the best state
ROUND = 25  # steps, at least, between two comparisons with the teacher


def train(
    network: Network,
    data: Examples,
    recipe: Recipe,
    *,
    validation: Examples | None = None,
    normalization: Normalization | None = None,
    device: str | torch.device = "auto",
    state: str | Path | None = None,
    resume: bool = False,
    watch: Callable[[Moment], None] = lambda moment: None,
    on_stop: Callable[[], None] = lambda: None,
) -> Checkpoint:
    """Train a network from scratch.

    Several processes share the images: each passes all of them, and takes its part.

    Args:
        network: the network, with or without gates.
        data: training images of the network's size and classes.
        recipe: how to train.
        validation: held-out images to measure accuracy on after every epoch.
        normalization: of the images; by default that of the training set.
        device: where to compute.
        state: file for the run's state, so that the run can be resumed; delete it when the result
            has been saved.
        resume: whether to continue from that state; `amp` and `micro_batch_size` may differ.
        watch: called after every epoch, and regularly in between.
        on_stop: called as soon as a signal that asks to stop arrives; the run finishes its step and
            raises `KeyboardInterrupt`.

    Returns:
        The trained network; its notes contain recipe, normalisation, classes and every epoch.

    Raises:
        DataError: the images do not fit the network.
        DeviceError: the recipe asks for bf16, which the device does not have.
        OutOfMemoryError: a step does not fit into memory.
        ProcessError: the processes do different things, or one of them has ended.
        TrainingError: the loss is not finite, or there is no such run to resume.
    """
    weights = network.initial_weights(recipe.seed, recipe.initial_gate)
    kind = data.source.partition(":")[0]
    run = _Run(
        Checkpoint(network, weights),
        data,
        recipe,
        validation=validation,
        fresh=True,
        normalization=normalization or NORMALIZATIONS.get(kind),
        device=device,
        teacher=None,
    )
    carry_out(run, state=state, resume=resume, watch=watch, on_stop=on_stop)
    return run.result()


def finetune(
    checkpoint: Checkpoint,
    data: Examples,
    recipe: Recipe = FINE_TUNING,
    *,
    teacher: Checkpoint | None = None,
    validation: Examples | None = None,
    normalization: Normalization | None = None,
    device: str | torch.device = "auto",
    state: str | Path | None = None,
    resume: bool = False,
    watch: Callable[[Moment], None] = lambda moment: None,
    on_stop: Callable[[], None] = lambda: None,
) -> Checkpoint:
    """Fine-tune all weights of a network, including its gates.

    Several processes share the images: each passes all of them, and takes its part.

    Args:
        checkpoint: a network with its weights.
        data: training images of the network's size and classes; with a teacher, labels are not
            needed.
        recipe: how to train.
        teacher: a network to learn from, usually the whole one: its features (Wang et al.,
            *Compressing Models with Few Samples: Mimicking then Replacing*, 2022), its logits
            (Hinton, Vinyals, Dean, 2015, https://arxiv.org/abs/1503.02531) or both.
        validation: held-out images. With a teacher, the state that agrees best with it on these
            images is kept, and the run ends when no better one comes; without, accuracy is
            measured on them after every epoch.
        normalization: replaces those that checkpoint and teacher record.
        device: where to compute.
        state: file for the run's state, so that the run can be resumed; delete it when the result
            has been saved.
        resume: whether to continue from that state; `amp` and `micro_batch_size` may differ.
        watch: called after every epoch, and regularly in between.
        on_stop: called as soon as a signal that asks to stop arrives; the run finishes its step and
            raises `KeyboardInterrupt`.

    Returns:
        The network with new weights and without a path; with a teacher and held-out images, its
        best state, which may be the one it began with.

    Raises:
        DataError: the images do not fit the network.
        DeviceError: the recipe asks for bf16, which the device does not have.
        OutOfMemoryError: a step does not fit into memory.
        ProcessError: the processes do different things, or one of them has ended.
        TrainingError: the teacher has other classes, takes images of another size, or has features
            of another shape that are to be matched; the loss is not finite and there is no state
            to keep; or there is no such run to resume.
    """
    if teacher is not None:
        check_teacher(checkpoint.network, teacher, recipe.match)
    run = _Run(
        checkpoint,
        data,
        recipe,
        validation=validation,
        normalization=normalization,
        device=device,
        teacher=teacher,
    )
    carry_out(run, state=state, resume=resume, watch=watch, on_stop=on_stop)
    return run.result()


def check_teacher(network: Network, teacher: Checkpoint, match: str) -> None:
    """Raise a `TrainingError` if a network cannot learn from a teacher.

    It cannot if the teacher has other classes, weights that are NaN or takes images of another
    size, or if its features are to be matched and have another shape.
    """
    classes, shape = teacher.network.num_classes, teacher.network.base.input_shape
    if classes != network.num_classes:
        raise TrainingError(
            f"the teacher {teacher.network} has {classes} classes, {network} has "
            f"{network.num_classes}: choose a teacher with the same classes"
        )
    if shape != network.base.input_shape:
        raise TrainingError(
            f"the teacher {teacher.network} takes images of {shape}, {network} of "
            f"{network.base.input_shape}: choose a teacher that takes the same images"
        )
    check_learnable(teacher)
    matches(match, network, teacher)


class BestState(TypedDict, total=False):
    """The best of the states that were compared with the teacher."""

    least: float
    gap: float
    rounds: int
    step: int
    tensors: dict[str, Tensor]


class TrainingState(State):
    """The state of a run that trains weights and gates."""

    history: list[dict[str, Any]]
    scheduler: dict[str, Any]
    best: BestState


class _Run(Learner[Moment]):
    """A run that trains weights and gates."""

    state = TrainingState
    recipe: Recipe
    module: fx.GraphModule

    def __init__(
        self,
        start: Checkpoint,
        data: Examples,
        recipe: Recipe,
        *,
        validation: Examples | None,
        fresh: bool = False,
        **options: Any,
    ) -> None:
        taught = options["teacher"] is not None
        for images in (data, validation) if validation is not None else (data,):
            if taught and not images.labelled:
                check_size(start.network, images)
            else:
                check_fit(start, images)
        super().__init__(start, data, recipe, varied if recipe.augment else None, **options)
        self.validation, self.fresh = validation, fresh
        self.peak = recipe.peak(fresh=fresh)
        self.history: list[dict[str, Any]] = []
        self.module = answering(self.root, start.network, self.matches)
        self._learn()
        headless = self.matches and recipe.match == "features"
        several = processes.count() > 1
        self.parallel = _parallel(self.module, self.device, headless) if several else None
        self.running = statistics(self.module).values()
        self.tensors = self.root.state_dict()
        keys = {start.network.gate_key(name) for name in start.network.edits.gated}
        named = dict(self.root.named_parameters())
        self.gates = [parameter for key, parameter in named.items() if key in keys]
        weights = [parameter for key, parameter in named.items() if key not in keys]
        self.per_epoch = len(data) // recipe.batch_size
        self.steps = self.per_epoch * recipe.passes(len(data))
        self.best: dict[str, Any] = {}  # of the states that were compared with the teacher
        self.optimizer = _optimizer(recipe, self.peak, weights, self.gates)
        self.scheduler = _scheduler(recipe, self.optimizer, self.steps)

    @property
    def learning(self) -> nn.Module:
        """The network, whose gradients the processes average while they are computed."""
        return self.module if self.parallel is None else self.parallel

    def passing(self, last: bool) -> AbstractContextManager[object]:
        return super().passing(last) if self.parallel is None or last else self.parallel.no_sync()

    @property
    def shared(self) -> list[Tensor]:
        """The statistics of batch norm, which every process has of its own images."""
        if self.recipe.statistics == "kept":
            return []
        return [self.root.get_buffer(key) for keys in self.running for key in keys]

    @property
    def settings(self) -> dict[str, Any]:
        """The fields of the recipe, with the learning rate that is its default."""
        return {**asdict(self.recipe), "learning_rate": self.peak}

    def _learn(self) -> None:
        """Put the module into the mode in which it learns."""
        self.module.train()
        if self.recipe.statistics == "kept":
            keep_statistics(self.module)

    @property
    def finished(self) -> bool:
        return self.done >= self.steps or self.best.get("rounds", 0) >= PATIENCE

    def step(self) -> Moment | None:
        if not self.best and self.validation is not None and self.teacher is not None:
            self._compare(self.validation)
        weight = self.recipe.gate_penalty
        penalty = weight * self._relu_gates().sum() if self.gates and weight else 0.0
        self.compute_gradients(penalty)
        self.update()
        self.scheduler.step()
        if self.done % self.per_epoch:
            return None
        moment = self._validated(replace(self.moment(), ends_epoch=True))
        if not all(map(math.isfinite, (moment.loss, moment.divergence or 0.0))):
            self.best["rounds"] = PATIENCE  # nothing better can follow
            return None
        self.history.append(moment.record())
        self.sums.zero_()
        return moment

    def _relu_gates(self) -> Tensor:
        """The gates g = relu(k), `(blocks,)`."""
        return torch.stack(tuple(self.gates)).relu()

    def moment(self) -> Moment:
        epoch = (self.done - 1) // self.per_epoch + 1
        loss, accuracy, _ = (self.sums / self.sums[2]).tolist()
        if not math.isfinite(loss) and not math.isfinite(self.best.get("gap", math.nan)):
            raise TrainingError(
                f"the loss is {loss} in epoch {epoch}: lower the learning rate "
                f"({self.peak}) or that of the gates ({self.recipe.gate_learning_rate})"
            )
        gate = self._relu_gates().mean().item() if self.gates else None
        rate, seconds = float(self.scheduler.get_last_lr()[0]), time.monotonic() - self.started
        known = accuracy if self.data.labelled else None
        return Moment(self.done, self.steps, epoch, loss, known, gate, rate, seconds)

    def _validated(self, moment: Moment) -> Moment:
        """The moment with what the held-out images tell, if it is time to look at them."""
        if self.validation is None:
            return moment
        if self.teacher is None:
            how = self.validation, self.normalization, self.device, self.recipe.at_once(256)
            (measured,) = tally(self.root, *how)
            self._learn()
            return replace(moment, validation=measured.accuracy)
        every = math.ceil(ROUND / self.per_epoch)
        if self.done < self.steps and moment.epoch % every:
            return moment
        now = self._compare(self.validation)
        return replace(
            moment,
            validation=now.accuracy,
            agreement=now.agreement,
            divergence=now.divergence,
            distance=now.distance,
        )

    def _compare(self, held_out: Examples) -> Agreement:
        """Compare the network with its teacher, and keep its state if it is the best so far.

        The best is nearest to the teacher, by `Agreement.gap`, of all that agree with it on at
        least as many images as the network did before the first step.
        """
        assert self.teacher_module is not None  # or nothing is compared
        found = compared(
            *(self.module, self.teacher_module, held_out, self.normalizations, self.device),
            batch_size=self.recipe.at_once(128),
            fast=self.fast,
        )
        self._learn()
        gap = found.gap if math.isfinite(found.gap) else math.inf  # any number is less
        best = self.best or {"least": found.agreeing, "gap": math.inf}
        better = found.agreeing >= best["least"] and gap < best["gap"]
        if better or not self.best:
            now = {**found.to_json(), "gap": gap, "rounds": 0}
            tensors = {key: tensor.detach().clone() for key, tensor in self.tensors.items()}
            self.best = {**best, **now, "step": self.done, "tensors": tensors}
        else:
            self.best["rounds"] += 1
        return found

    def identity(self) -> dict[str, Any]:
        held_out = self.validation if self.teacher is not None else None  # what is kept goes by it
        return {
            "network": self.start.network.to_json(),
            "recipe": {**self.recipe.lasting, "learning_rate": self.peak},
            **super().identity(),
            "start": "" if self.fresh else self.start.fingerprint,
            "teacher": self.teacher.fingerprint if self.teacher else "",
            "held-out images": held_out.fingerprint if held_out is not None else None,
        }

    def premises(self) -> dict[str, Any]:
        held_out = self.validation.fingerprint if self.validation is not None else None
        return {**super().premises(), "validation images": held_out}

    def snapshot(self) -> dict[str, Any]:
        own = {
            "history": self.history,
            "scheduler": self.scheduler.state_dict(),
            "best": self.best,
        }
        return {**super().snapshot(), **own}

    def restore(self, snapshot: dict[str, Any]) -> None:
        super().restore(snapshot)
        if "tensors" in snapshot["best"]:
            self.refuse_misfits(snapshot["best"]["tensors"])
        self.history, self.best = snapshot["history"], snapshot["best"]
        self.scheduler.load_state_dict(snapshot["scheduler"])

    def result(self) -> Checkpoint:
        """The network with its new weights and notes."""
        verb = "trained" if self.fresh else "finetuned"
        network, tensors = self.start.network, self.best.get("tensors", self.tensors)
        weights = {key: tensors[key].detach().cpu().contiguous() for key in network.state()}
        notes = {
            **self.start.noting(**{verb: self.data.source, "images": len(self.data)}),
            **self.preprocessing,
            **({"classes": list(self.data.classes)} if self.data.classes else {}),
            "recipe": self.settings,
            "epochs": self.history,
            "torch": torch.__version__,
            "device": str(self.device),
            "precision": self.precision,
            **({"processes": processes.count()} if processes.count() > 1 else {}),
        }
        if self.teacher is not None:
            notes["matched"] = matched(self.recipe.match, network, self.teacher)
        if self.best:
            notes["kept"] = {key: self.best[key] for key in ("step", *KEPT)}
        return Checkpoint(network, MappingProxyType(weights), notes)


class _Headless(nn.Module):
    """A module whose logits have no gradient, since only its features are matched."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, features = self.module(images)
        return logits.detach(), features


def _parallel(
    module: fx.GraphModule, device: torch.device, headless: bool
) -> DistributedDataParallel:
    """A module that averages its gradients over the processes; on CUDA batch norm sees all images.

    Args:
        module: computes logits, and features if these are matched.
        device: where it is.
        headless: whether only its features are matched, so that its head learns nothing.
    """
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
    known = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {buffers: False, "find_unused_parameters": headless}
    places = [device] if device.type == "cuda" else None
    return DistributedDataParallel(
        _Headless(module) if headless else module, device_ids=places, **options
    )


def _optimizer(
    recipe: Recipe, peak: float, weights: list[nn.Parameter], gates: list[nn.Parameter]
) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = [{"params": weights, "weight_decay": recipe.weight_decay}]
    if gates:
        groups.append({"params": gates, "lr": recipe.gate_learning_rate, "weight_decay": 0.0})
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, peak, momentum=0.9, nesterov=True, fused=True)
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, peak, fused=True)


def _scheduler(recipe: Recipe, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    if recipe.schedule == "onecycle":
        peaks = [group["lr"] for group in optimizer.param_groups]
        return OneCycleLR(optimizer, peaks, total_steps=steps + 1, cycle_momentum=False)
    if recipe.schedule == "cosine":
        return CosineAnnealingLR(optimizer, steps)
    return MultiStepLR(optimizer, [steps // 2, steps * 3 // 4])
