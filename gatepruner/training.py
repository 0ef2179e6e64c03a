"""Training: weights and gates together, repeatable, and resumable at any step.

All that is random in a step is drawn from the seed and the number of that step, so a run that
was interrupted and resumed ends with the very weights of one that was not.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, OneCycleLR

from gatepruner.checkpoint import Checkpoint
from gatepruner.data import NORMALIZATIONS, Images, Normalization, normalization_of
from gatepruner.device import pick_device, place, precision
from gatepruner.errors import TrainingError
from gatepruner.evaluate import check_fit, tally
from gatepruner.network import Network
from gatepruner.storage import load_state, save_state

SAVE_EVERY = 60.0  # seconds between two states on the disk
LEARNING_RATES = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3}
SCHEDULES = ("onecycle", "step")


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        epochs: passes over the images.
        batch_size: images in one step; what is left at the end of an epoch is left out.
        optimizer: `"sgd"` (Nesterov momentum 0.9), `"adam"` or `"adamw"`.
        learning_rate: of the weights, at its peak; 0.1 for SGD, 0.001 for Adam by default.
        schedule: `"onecycle"` (Smith and Topin, 2017, https://arxiv.org/abs/1708.07120), or
            `"step"`: a tenth after half and again after three quarters of the steps.
        weight_decay: of the weights; gates are exempt.
        gate_learning_rate: of the gates, at its peak; at the weights' rate they hardly move.
        gate_penalty: weight of the sum of all gates in the loss.
        augment: shift by up to an eighth of the width, and mirror if in colour.
        seed: of initial weights, order, augmentation and dropout.
    """

    epochs: int = 10
    batch_size: int = 128
    optimizer: str = "sgd"
    learning_rate: float | None = None
    schedule: str = "onecycle"
    weight_decay: float = 5e-4
    gate_learning_rate: float = 0.05
    gate_penalty: float = 0.0
    augment: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.optimizer not in LEARNING_RATES:
            raise TrainingError(
                f"unknown optimizer {self.optimizer!r}: expected {', '.join(LEARNING_RATES)}"
            )
        if self.schedule not in SCHEDULES:
            raise TrainingError(
                f"unknown schedule {self.schedule!r}: expected {', '.join(SCHEDULES)}"
            )
        for name, least in (("epochs", 1), ("batch_size", 2)):  # batch norm needs two images
            if getattr(self, name) < least:
                raise TrainingError(f"{name} is {getattr(self, name)}: expected at least {least}")
        for name in ("learning_rate", "weight_decay", "gate_learning_rate", "gate_penalty"):
            value = getattr(self, name)
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise TrainingError(f"{name} is {value}: expected a number from 0 up")
        if self.learning_rate == 0:
            raise TrainingError("learning_rate is 0: expected a number above 0")

    @property
    def peak(self) -> float:
        """The learning rate of the weights at its peak."""
        return self.learning_rate or LEARNING_RATES[self.optimizer]


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
    for images in (data, validation) if validation is not None else (data,):
        check_fit(network, images)
    if len(data) < recipe.batch_size:
        raise TrainingError(
            f"{data.source} has {len(data)} images: a batch of {recipe.batch_size} was expected "
            "to fit; lower --batch-size"
        )
    kind = data.source.partition(":")[0]
    normalization = normalization or normalization_of({}, data.shape[0], NORMALIZATIONS.get(kind))
    device = pick_device(device) if isinstance(device, str) else device
    run = _Run(network, data.to(device), recipe, normalization, device, validation)
    if resume:
        if state is None or not Path(state).is_file():
            raise TrainingError(f"there is no run to resume: {state} is not there")
        run.restore(load_state(Path(state)), Path(state))
    cuda = [device] if device.type == "cuda" else []
    saved = time.monotonic()
    with torch.random.fork_rng(devices=cuda):
        try:
            for moment in run.steps():
                watch(moment)
                if state is not None and time.monotonic() - saved > SAVE_EVERY:
                    save_state(run.snapshot(), Path(state))
                    saved = time.monotonic()
        except KeyboardInterrupt:
            if state is not None:
                save_state(run.snapshot(), Path(state))
            raise
    if state is not None:
        save_state(run.snapshot(), Path(state))
    return run.checkpoint()


@contextlib.contextmanager
def _whole_step() -> Iterator[None]:
    """Let Ctrl-C wait for the end of a step: a state of half a step could not be gone on from."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread alone
        return
    caught: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: caught.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if caught:
        raise KeyboardInterrupt


@dataclass
class _Run:
    """A training run under way: the one thing in this package that changes."""

    network: Network
    data: Images
    recipe: Recipe
    normalization: Normalization
    device: torch.device
    validation: Images | None
    done: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        weights = self.network.initial_weights(self.recipe.seed)
        self.module = place(self.network.build(weights), self.device)
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
        while self.done < self.total:
            epoch, first = divmod(self.done, self.per_epoch)
            for pixels, labels in self._batches(epoch, first):
                with _whole_step():
                    self._step(pixels, labels)
                    now = time.monotonic()
                    due = self.done % self.per_epoch == 0 or now - shown > 0.5
                    moment = self._moment(epoch, now - started) if due else None
                if moment is not None:
                    shown = now
                    yield moment

    def _batches(self, epoch: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.Generator().manual_seed(_mixed(self.recipe.seed, epoch))
        size = self.recipe.batch_size
        indices = torch.randperm(len(self.data), generator=order)
        yield from self.data.batches(indices[first * size : self.per_epoch * size], size)

    def _step(self, pixels: Tensor, labels: Tensor) -> None:
        torch.manual_seed(_mixed(self.recipe.seed, -1 - self.done))
        if self.recipe.augment:
            pixels = augmented(pixels)
        images = self.normalization(pixels)
        if self.device.type == "cuda":
            images = images.contiguous(memory_format=torch.channels_last)
        self.module.train()
        with precision(self.device):
            logits = self.module(images)
        loss = F.cross_entropy(logits.float(), labels)
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

    def _identity(self) -> dict[str, Any]:
        """What has to be the same for a run to be resumed."""
        return {
            "network": self.network.to_json(),
            "recipe": asdict(self.recipe),
            "images": [self.data.source, len(self.data)],
            "normalization": [list(self.normalization.mean), list(self.normalization.std)],
        }

    def snapshot(self) -> dict[str, Any]:
        """The run as tensors and plain values."""
        return {
            "identity": self._identity(),
            "done": self.done,
            "history": self.history,
            "sums": self.sums,
            "weights": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }

    def restore(self, snapshot: dict[str, Any], path: Path) -> None:
        """Go back to a snapshot of the same run."""
        ours = self._identity()
        other = [key for key, value in ours.items() if snapshot["identity"].get(key) != value]
        if other:
            raise TrainingError(
                f"{path} is of another run, its {' and '.join(other)} differ: give the options "
                "of that run, or leave out --resume to begin anew"
            )
        self.done, self.history = snapshot["done"], snapshot["history"]
        self.sums.copy_(snapshot["sums"])
        self.module.load_state_dict(snapshot["weights"])
        self.optimizer.load_state_dict(snapshot["optimizer"])
        self.scheduler.load_state_dict(snapshot["scheduler"])

    def checkpoint(self) -> Checkpoint:
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
            "history": [{"trained": self.data.source, "images": len(self.data)}],
        }
        return Checkpoint(self.network, MappingProxyType(weights), notes)


def _mixed(seed: int, index: int) -> int:
    """A seed for every index (numbers below 0 too), far from those of its neighbours."""
    return (seed * 0x9E3779B97F4A7C15 + index * 0xBF58476D1CE4E5B9) % 2**63


def _optimizer(
    recipe: Recipe, weights: list[nn.Parameter], gates: list[nn.Parameter]
) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = [{"params": weights, "weight_decay": recipe.weight_decay}]
    if gates:
        groups.append({"params": gates, "lr": recipe.gate_learning_rate, "weight_decay": 0.0})
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, recipe.peak, momentum=0.9, nesterov=True, foreach=True)
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, recipe.peak, foreach=True)


def _scheduler(recipe: Recipe, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    if recipe.schedule == "onecycle":
        peaks = [group["lr"] for group in optimizer.param_groups]
        return OneCycleLR(optimizer, peaks, total_steps=steps + 1, cycle_momentum=False)
    return MultiStepLR(optimizer, [steps // 2, steps * 3 // 4])


def augmented(pixels: Tensor) -> Tensor:
    """Images shifted by up to an eighth of their width, and mirrored if they are in colour.

    Args:
        pixels: `(N, C, H, W)` of any type; what is shifted in is 0.
    """
    n, channels, height, width = pixels.shape
    reach = width // 8
    padded = F.pad(pixels, (reach,) * 4)
    down, right = torch.randint(2 * reach + 1, (2, n, 1), device=pixels.device)
    rows = down + torch.arange(height, device=pixels.device)
    columns = right + torch.arange(width, device=pixels.device)
    if channels == 3:
        mirror = torch.rand(n, 1, device=pixels.device) < 0.5
        columns = torch.where(mirror, columns.flip(1), columns)
    each = torch.arange(n, device=pixels.device)[:, None, None]
    return padded.movedim(1, 3)[each, rows[:, :, None], columns[:, None, :]].movedim(3, 1)
