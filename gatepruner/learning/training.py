"""Training: weights and gates together, from fresh weights or from those that are there.

Repeatable, and resumable at any step; see `gatepruner.learning.running`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, OneCycleLR

from gatepruner.errors import TrainingError
from gatepruner.images.images import Images
from gatepruner.images.normalization import NORMALIZATIONS, Normalization
from gatepruner.images.views import augmented
from gatepruner.learning.recipes import FINE_TUNING, Recipe
from gatepruner.learning.running import carry_out, mixed, shuffled, whole_step
from gatepruner.measuring.accuracy import tally
from gatepruner.measuring.cost import count
from gatepruner.measuring.device import laid_out, learns_fast, pick_device, place, precision
from gatepruner.measuring.inputs import check_fit, normalization_of
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network


@dataclass(frozen=True)
class Moment:
    """Where a training run is: what a progress bar shows, and at the end of an epoch its record.

    Attributes:
        step: steps done.
        steps: steps in all.
        epoch: the epoch they belong to, from 1.
        loss: mean over the epoch so far, penalty left out.
        accuracy: of the training images of the epoch so far, as they were trained on.
        gate: mean of all gates; `None` where there are none.
        learning_rate: of the weights.
        seconds: since the run began, or was resumed.
        validation: accuracy on held-out images at the end of an epoch, if there are any.
        ends_epoch: whether the epoch is over.
    """

    step: int
    steps: int
    epoch: int
    loss: float
    accuracy: float
    gate: float | None
    learning_rate: float
    seconds: float
    validation: float | None = None
    ends_epoch: bool = False

    def record(self) -> dict[str, Any]:
        """What a history keeps of an epoch."""
        left_out = ("step", "steps", "ends_epoch")
        return {key: value for key, value in asdict(self).items() if key not in left_out}


def train(
    network: Network,
    data: Images,
    recipe: Recipe,
    *,
    validation: Images | None = None,
    normalization: Normalization | None = None,
    device: str | torch.device = "auto",
    state: str | Path | None = None,
    resume: bool = False,
    watch: Callable[[Moment], None] = lambda moment: None,
) -> Checkpoint:
    """Train a network from fresh weights.

    Args:
        network: what to train, gates included if it has any.
        data: training images of the network's size and classes.
        recipe: how.
        validation: held-out images; their accuracy is recorded after every epoch.
        normalization: of the images; the training set's own by default.
        device: where to compute.
        state: file to keep the run's state in, so that it can be resumed; at the end it holds the
            whole run, for the caller to remove once the result is safe.
        resume: whether to go on from that state.
        watch: called now and then, and after every epoch.

    Returns:
        The trained network; its notes hold recipe, normalisation, classes and every epoch.

    Raises:
        DataError: the images do not fit the network.
        TrainingError: the loss is no number any more, or there is no such run to resume.
    """
    weights = network.initial_weights(recipe.seed, recipe.initial_gate)
    start = Checkpoint(network, weights)
    run = _begun(start, data, recipe, normalization, device, validation, further=False)
    carry_out(run, device=run.device, state=state, resume=resume, watch=watch)
    return run.checkpoint("trained")


def finetune(
    checkpoint: Checkpoint,
    data: Images,
    recipe: Recipe = FINE_TUNING,
    *,
    teacher: Checkpoint | None = None,
    validation: Images | None = None,
    normalization: Normalization | None = None,
    device: str | torch.device = "auto",
    state: str | Path | None = None,
    resume: bool = False,
    watch: Callable[[Moment], None] = lambda moment: None,
) -> Checkpoint:
    """Train all weights of a network further, gates included if it has any.

    Args:
        checkpoint: where to start from.
        data: training images of the network's size and classes.
        recipe: how.
        teacher: a network whose softened logits are learned, too, the whole one as a rule
            (Hinton, Vinyals, Dean, 2015, https://arxiv.org/abs/1503.02531).
        validation: held-out images; their accuracy is recorded after every epoch.
        normalization: instead of the one that the checkpoint records.
        device: where to compute; in bf16 where that is faster.
        state: as for `train`.
        resume: as for `train`.
        watch: called now and then, and after every epoch.

    Returns:
        The network with its new weights; its path, if it had one, is gone.

    Raises:
        DataError: the images do not fit the network.
        TrainingError: the teacher tells other classes apart, the loss is no number any more, or
            there is no such run to resume.
    """
    if teacher is not None:
        check_teacher(checkpoint.network, teacher)
    normalization = normalization_of(checkpoint.notes, data.shape[0], normalization)
    run = _begun(checkpoint, data, recipe, normalization, device, validation, teacher)
    carry_out(run, device=run.device, state=state, resume=resume, watch=watch)
    return run.checkpoint("finetuned")


def check_teacher(network: Network, teacher: Checkpoint) -> None:
    """Raise a `TrainingError` if a network cannot learn from a teacher's logits."""
    ours, theirs = network, teacher.network
    if theirs.num_classes != ours.num_classes:
        raise TrainingError(
            f"the teacher {theirs} has {theirs.num_classes} classes: {ours} has "
            f"{ours.num_classes}; give a teacher of the same classes"
        )
    if theirs.base.input_shape != ours.base.input_shape:
        raise TrainingError(
            f"the teacher {theirs} takes images of {theirs.base.input_shape}: {ours} takes "
            f"{ours.base.input_shape}; give a teacher of the same images"
        )


def _begun(
    start: Checkpoint,
    data: Images,
    recipe: Recipe,
    normalization: Normalization | None,
    device: str | torch.device,
    validation: Images | None,
    teacher: Checkpoint | None = None,
    *,
    further: bool = True,
) -> _Run:
    """A run at its first step, if the images fit."""
    for images in (data, validation) if validation is not None else (data,):
        check_fit(start.network, images)
    if len(data) < recipe.batch_size:
        raise TrainingError(
            f"{data.source} has {len(data)} images: a batch of {recipe.batch_size} was expected "
            "to fit; lower --batch-size"
        )
    kind = data.source.partition(":")[0]
    normalization = normalization or normalization_of({}, data.shape[0], NORMALIZATIONS.get(kind))
    device = pick_device(device) if isinstance(device, str) else device
    return _Run(start, data.to(device), recipe, normalization, device, validation, teacher, further)


@dataclass
class _Run:
    """A training run under way: the one thing in this package that changes."""

    start: Checkpoint
    data: Images
    recipe: Recipe
    normalization: Normalization
    device: torch.device
    validation: Images | None
    teacher: Checkpoint | None
    further: bool  # whether the weights are not fresh
    done: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.network = self.start.network
        self.fast = learns_fast(self.device, count(self.network).macs)
        self.module = place(self.start.build(), self.device, self.fast)
        teacher = self.teacher.build() if self.teacher else None
        self.known = place(teacher, self.device, self.fast) if teacher else None
        gates = {self.network.gate_key(name) for name in self.network.edits.gated}
        named = dict(self.module.named_parameters())
        self.gates = [parameter for key, parameter in named.items() if key in gates]
        others = [parameter for key, parameter in named.items() if key not in gates]
        self.per_epoch = len(self.data) // self.recipe.batch_size
        self.total = self.per_epoch * self.recipe.epochs
        self.optimizer = _optimizer(self.recipe, others, self.gates)
        self.scheduler = _scheduler(self.recipe, self.optimizer, self.total)
        self.sums = torch.zeros(2, dtype=torch.float32, device=self.device)

    def steps(self) -> Iterator[Moment]:
        """Take the steps that are left; yields after every epoch, and now and then."""
        started = shown = time.monotonic()
        batches = shuffled(self.data, self.recipe.batch_size, self.recipe.seed, self.done)
        while self.done < self.total:
            with whole_step():
                self._step(*next(batches))
                now = time.monotonic()
                due = self.done % self.per_epoch == 0 or now - shown > 0.5
                epoch = (self.done - 1) // self.per_epoch
                moment = self._moment(epoch, now - started) if due else None
            if moment is not None:
                shown = now
                yield moment

    def _step(self, pixels: Tensor, labels: Tensor) -> None:
        torch.manual_seed(mixed(self.recipe.seed, -1 - self.done))
        if self.recipe.augment:
            pixels = augmented(pixels)
        images = laid_out(self.normalization(pixels), self.fast)
        self.module.train()
        with precision(self.device, self.fast):
            logits = self.module(images)
        logits = logits.float()
        loss = F.cross_entropy(logits, labels)
        if self.known is not None:
            with torch.no_grad(), precision(self.device, self.fast):
                known = self.known(images).float()
            share = self.recipe.distillation
            apart = distance(logits, known, self.recipe.temperature)
            loss = share * apart + (1 - share) * loss
        penalised = loss
        if self.gates and self.recipe.gate_penalty:
            penalised = loss + self.recipe.gate_penalty * self._open().sum()
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(penalised)
        self.optimizer.step()
        self.scheduler.step()
        self.done += 1
        right = (logits.detach().argmax(1) == labels).float().mean()
        self.sums += torch.stack([loss.detach(), right])

    def _open(self) -> Tensor:
        """The gates `(blocks,)`."""
        return torch.stack(tuple(self.gates)).relu()

    def _moment(self, epoch: int, seconds: float) -> Moment:
        """The run so far; waits for the device."""
        loss, right = (self.sums / (self.done - epoch * self.per_epoch)).tolist()
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} in epoch {epoch + 1}: lower the learning rate "
                f"({self.recipe.peak}) or the gates' ({self.recipe.gate_learning_rate})"
            )
        gate = self._open().mean().item() if self.gates else None
        ends = self.done % self.per_epoch == 0
        held_out = None
        if ends and self.validation is not None:
            args = (self.validation, self.normalization, self.device, 256)
            held_out = tally(self.module, *args)[0].accuracy
        rate = float(self.scheduler.get_last_lr()[0])
        moment = Moment(
            self.done, self.total, epoch + 1, loss, right, gate, rate, seconds, held_out, ends
        )
        if ends:
            self.history.append(moment.record())
            self.sums.zero_()
        return moment

    def identity(self) -> dict[str, Any]:
        """What has to be the same for the run to be resumed."""
        return {
            "network": self.network.to_json(),
            "recipe": asdict(self.recipe),
            "images": [self.data.source, len(self.data)],
            "normalization": [list(self.normalization.mean), list(self.normalization.std)],
            "start": self.start.fingerprint if self.further else "",
            "teacher": self.teacher.fingerprint if self.teacher else "",
        }

    def snapshot(self) -> dict[str, Any]:
        """The run as tensors and plain values."""
        return {
            "done": self.done,
            "history": self.history,
            "sums": self.sums,
            "weights": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }

    def sound(self) -> bool:
        """Whether the run can be gone on from where it is."""
        return bool(self.sums.isfinite().all())

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Go back to a snapshot of the same run."""
        self.done, self.history = snapshot["done"], snapshot["history"]
        self.sums.copy_(snapshot["sums"])
        self.module.load_state_dict(snapshot["weights"])
        self.optimizer.load_state_dict(snapshot["optimizer"])
        self.scheduler.load_state_dict(snapshot["scheduler"])

    def checkpoint(self, verb: str) -> Checkpoint:
        """What was learned, with what was done."""
        state = self.module.state_dict()
        weights = {key: state[key].detach().cpu().contiguous() for key in self.network.state()}
        notes = {
            "normalize": {
                "mean": list(self.normalization.mean),
                "std": list(self.normalization.std),
            },
            "classes": list(self.data.classes),
            "recipe": asdict(self.recipe),
            "epochs": self.history,
            "torch": torch.__version__,
            "device": str(self.device),
        }
        done = {verb: self.data.source, "images": len(self.data)}
        notes = {**self.start.noting(**done), **notes}
        return Checkpoint(self.network, MappingProxyType(weights), notes)


def distance(logits: Tensor, known: Tensor, temperature: float) -> Tensor:
    """Mean Kullback-Leibler divergence of softened logits `(N, K)` from the known ones.

    Times the temperature squared, so that its gradients have the same size at every temperature
    (Hinton, Vinyals, Dean, 2015, https://arxiv.org/abs/1503.02531).
    """
    said, known = (F.log_softmax(it / temperature, 1) for it in (logits, known))
    return temperature**2 * F.kl_div(said, known, log_target=True, reduction="batchmean")


def _optimizer(
    recipe: Recipe, weights: list[nn.Parameter], gates: list[nn.Parameter]
) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = [{"params": weights, "weight_decay": recipe.weight_decay}]
    if gates:
        groups.append({"params": gates, "lr": recipe.gate_learning_rate, "weight_decay": 0.0})
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, recipe.peak, momentum=0.9, nesterov=True, fused=True)
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, recipe.peak, fused=True)


def _scheduler(recipe: Recipe, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    if recipe.schedule == "onecycle":
        peaks = [group["lr"] for group in optimizer.param_groups]
        return OneCycleLR(optimizer, peaks, total_steps=steps + 1, cycle_momentum=False)
    if recipe.schedule == "cosine":
        return CosineAnnealingLR(optimizer, steps)
    return MultiStepLR(optimizer, [steps // 2, steps * 3 // 4])
