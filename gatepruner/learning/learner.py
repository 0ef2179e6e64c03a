"""One learner for gates and weights alike: a network that follows the gradient of a loss.

All that is random in a step is drawn from the seed and the number of that step, so a run that
was interrupted and resumed ends with the very weights of one that was not.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from gatepruner.errors import TrainingError
from gatepruner.images.images import Images
from gatepruner.images.normalization import Normalization
from gatepruner.learning.recipes import GateRecipe, Recipe
from gatepruner.measuring.cost import count
from gatepruner.measuring.device import laid_out, learns_fast, pick_device, place, precision
from gatepruner.measuring.inputs import normalization_of
from gatepruner.networks.checkpoint import Checkpoint

FORMAT = 2  # of snapshots
Shown = TypeVar("Shown")


class Learner(ABC, Generic[Shown]):
    """A network that learns from images, step by step: what changes in a run changes here.

    A subclass sets the tensors that steps change, by their state-dict keys, and the optimizer.
    """

    recipe: GateRecipe | Recipe
    module: nn.Module
    tensors: dict[str, Tensor]
    optimizer: torch.optim.Optimizer

    def __init__(
        self,
        start: Checkpoint,
        data: Images,
        recipe: GateRecipe | Recipe,
        view: Callable[[Tensor], Tensor] | None,
        *,
        normalization: Normalization | None,
        device: str | torch.device,
        teacher: Checkpoint | None,
    ) -> None:
        if len(data) < recipe.batch_size:
            raise TrainingError(
                f"{data.source} has {len(data)} images, fewer than one batch of "
                f"{recipe.batch_size}: lower the batch size"
            )
        self.start, self.recipe, self.view, self.teacher = start, recipe, view, teacher
        self.normalization = normalization_of(start.notes, data.shape[0], normalization)
        self.device = pick_device(device) if isinstance(device, str) else device
        self.fast = learns_fast(self.device, count(start.network).macs)
        self.data = data.to(self.device)
        self.root = self._placed(start)
        self.teaching = None if teacher is None else self._placed(teacher)
        # loss, share of right answers and number of steps, since they were last cleared
        self.sums = torch.zeros(3, device=self.device)
        self.done = 0
        self.batches = self._batches()
        self.started = time.monotonic()

    def _placed(self, checkpoint: Checkpoint) -> fx.GraphModule:
        module = checkpoint.build()
        place(module, self.device, self.fast)
        return module

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels and labels of every step that is left, epoch after epoch, for ever.

        Each epoch has an order of its own; an incomplete last batch is dropped.
        """
        size, done = self.recipe.batch_size, self.done
        per_epoch = len(self.data) // size
        while True:
            epoch, first = divmod(done, per_epoch)
            generator = torch.Generator().manual_seed(_mixed(self.recipe.seed, epoch))
            order = torch.randperm(len(self.data), generator=generator)
            yield from self.data.batches(order[first * size : per_epoch * size], size)
            done = (epoch + 1) * per_epoch

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether no step is left."""

    @abstractmethod
    def step(self) -> Shown | None:
        """Take one step; returns the moment if it completes something: an epoch, a removal."""

    @abstractmethod
    def moment(self) -> Shown:
        """Where the run is; waits for the device."""

    def compute_gradients(self, penalty: Tensor | float = 0.0) -> None:
        """Begin a step: the gradients of the next batch's loss, and of a penalty."""
        pixels, labels = next(self.batches)
        torch.manual_seed(_mixed(self.recipe.seed, -1 - self.done))
        viewed = pixels if self.view is None else self.view(pixels)
        images = laid_out(self.normalization(viewed), self.fast)
        logits = self._logits(self.module, images)
        loss = self._loss(logits, images, labels)
        self.optimizer.zero_grad(set_to_none=True)
        if loss.requires_grad:  # not if every gate is gone and norms are frozen
            torch.autograd.backward(loss + penalty)
        right = (logits.detach().argmax(1) == labels).float().mean()
        self.sums += torch.stack([loss.detach(), right, torch.ones_like(right)])

    def _loss(self, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The loss by the labels, by the teacher's logits, or by both in shares."""
        share = self.recipe.distillation
        if self.teaching is None or not share:
            return F.cross_entropy(logits, labels)
        with torch.no_grad():
            taught = self._logits(self.teaching, images)
        apart = distance(logits, taught, self.recipe.temperature)
        if share == 1:  # the labels may be those of other classes
            return apart
        return share * apart + (1 - share) * F.cross_entropy(logits, labels)

    def _logits(self, module: nn.Module, images: Tensor) -> Tensor:
        with precision(self.device, self.fast):
            logits: Tensor = module(images)
        return logits.float()

    def update(self) -> None:
        """End a step: change the tensors by their gradients."""
        self.optimizer.step()
        self.done += 1

    def sound(self) -> bool:
        """Whether losses and all that was finite at the start are, so that learning can go on."""
        start = self.start.weights
        return _finite(self.sums) and all(
            _finite(tensor) or not _finite(start[key]) for key, tensor in self.tensors.items()
        )

    def identity(self) -> dict[str, Any]:
        """What has to be the same for a run to be resumed."""
        images = [self.data.source, len(self.data)]
        return {"format": FORMAT, "images": images, "normalization": self.normalize}

    def snapshot(self) -> dict[str, Any]:
        """The run as tensors and plain values; later steps change the tensors."""
        return {
            "done": self.done,
            "sums": self.sums,
            "tensors": {key: tensor.detach() for key, tensor in self.tensors.items()},
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Return to a snapshot of the same run."""
        self.done = snapshot["done"]
        self.batches = self._batches()
        self.sums.copy_(snapshot["sums"])
        with torch.no_grad():
            for key, tensor in snapshot["tensors"].items():
                self.tensors[key].copy_(tensor)
        self.optimizer.load_state_dict(snapshot["optimizer"])

    @property
    def normalize(self) -> dict[str, list[float]]:
        """The normalisation as checkpoints note it."""
        return {"mean": list(self.normalization.mean), "std": list(self.normalization.std)}


def distance(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """Mean Kullback-Leibler divergence of softened logits `(N, K)` from a teacher's.

    Times the temperature squared, so that its gradients have the same size at every temperature
    (Hinton, Vinyals, Dean, 2015, https://arxiv.org/abs/1503.02531).
    """
    ours, theirs = (F.log_softmax(it / temperature, 1) for it in (logits, taught))
    return temperature**2 * F.kl_div(ours, theirs, log_target=True, reduction="batchmean")


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _mixed(seed: int, index: int) -> int:
    """A seed for every index (numbers below 0 too), far from those of its neighbours."""
    return (seed * 0x9E3779B97F4A7C15 + index * 0xBF58476D1CE4E5B9) % 2**63
