"""The learner: what learning gates and training weights have in common.

The random numbers of a step depend only on the seed and the number of the step, so an interrupted
and resumed run ends with exactly the weights of an uninterrupted one.

Several processes share every batch. What a step tells (loss, gradients, statistics) is averaged
over them, so all of them take the same step.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import msgspec
import torch
from torch import Tensor, fx, nn
from typing_extensions import TypedDict

from gatepruner import processes
from gatepruner.errors import TrainingError, listed
from gatepruner.images.examples import Examples, mixed
from gatepruner.images.normalization import Normalization
from gatepruner.images.preprocessing import Preprocessing
from gatepruner.images.views import Part
from gatepruner.learning.accumulation import averaged, parts_of
from gatepruner.learning.recipes import GateRecipe, Recipe
from gatepruner.learning.teaching import Targets
from gatepruner.measuring.agreement import (
    Answers,
    answering,
    answers,
    feature_distance,
    joined,
    normalizations_of,
)
from gatepruner.measuring.cost import count
from gatepruner.measuring.device import (
    laid_out,
    learns_channels_last,
    learns_fast,
    pick_device,
    place,
)
from gatepruner.measuring.inputs import check_batch
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.features import features_of
from gatepruner.networks.network import Network

FORMAT = 4  # of snapshots
FEATURES = 25.0  # weight of the features' distance, so that one learning rate suits every loss
Shown = TypeVar("Shown")


class OptimizerState(TypedDict):
    """The state of an optimizer."""

    state: dict[Any, dict[str, Any]]
    param_groups: list[dict[str, Any]]


class State(TypedDict):
    """The state of a run."""

    identity: dict[str, Any]
    done: Annotated[int, msgspec.Meta(ge=0)]
    sums: Tensor
    tensors: dict[str, Tensor]
    optimizer: OptimizerState


class Learner(ABC, Generic[Shown]):
    """A run that trains a network on images, step by step.

    A subclass sets `module`, `optimizer`, and `tensors`: the tensors that steps change, by
    state-dict key.
    """

    state: ClassVar[type[Any]] = State
    recipe: GateRecipe | Recipe
    module: nn.Module
    tensors: dict[str, Tensor]
    optimizer: torch.optim.Optimizer

    def __init__(
        self,
        start: Checkpoint,
        data: Examples,
        recipe: GateRecipe | Recipe,
        view: Callable[[Tensor, Part], Tensor] | None,
        *,
        normalization: Normalization | None,
        device: str | torch.device,
        teacher: Checkpoint | None,
    ) -> None:
        check_batch(data, recipe.batch_size)
        self.mine = processes.slice_of(recipe.batch_size)  # of every batch
        self.parts = parts_of(recipe.batch_size, recipe.micro_batch_size)  # of that
        self.start, self.recipe, self.view, self.teacher = start, recipe, view, teacher
        if data.prepared:
            self.view = None  # the data set augments by itself
        for checkpoint in (start, teacher or start):
            check_learnable(checkpoint)
        self.normalizations = normalizations_of(start, teacher or start, data, normalization)
        self.device = pick_device(device)
        processes.meet("learning", self._request)
        macs = count(start.network).macs
        self.fast = processes.agreed(lambda: learns_fast(self.device, macs, recipe.amp))
        self.data = data.to(self.device)
        self.root = self._placed(start)
        self.matches = teacher is not None and matches(recipe.match, start.network, teacher)
        self.teacher_module = None
        if teacher is not None:
            root = self._placed(teacher)
            self.teacher_module = answering(root, teacher.network, self.matches).eval()
        # sums of loss, accuracy and 1 over the steps since they were last cleared
        self.sums = torch.zeros(3, device=self.device)
        self.done = 0
        self.batches = self._batches()
        self.started = time.monotonic()

    def _request(self) -> dict[str, Any]:
        """What must be equal in all processes before they can prepare a run, as plain JSON."""
        return {"network": self.start.fingerprint, "recipe": asdict(self.recipe)}

    def _placed(self, checkpoint: Checkpoint) -> fx.GraphModule:
        module = checkpoint.build()
        place(module, self.device, learns_channels_last(self.device))
        return module

    def close(self) -> None:
        """End the processes that read images, if there are any."""
        self.batches.close()

    def _batches(self) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Pixels and labels of all further steps, without end: of each, this process's part.

        Each epoch has its own random order; an incomplete last batch is dropped.
        """
        size, step = self.recipe.batch_size, self.done
        per_epoch = len(self.data) // size
        while True:
            epoch, first = divmod(step, per_epoch)
            seed = mixed(self.recipe.seed, epoch)
            own = self._order(epoch)[first * size : per_epoch * size].view(-1, size)[:, self.mine]
            yield from self.data.batches(own.flatten(), own.shape[1], seed)
            step = (epoch + 1) * per_epoch

    def _order(self, epoch: int) -> Tensor:
        """The indices `(N,)` of the images in the order of an epoch."""
        generator = torch.Generator().manual_seed(mixed(self.recipe.seed, epoch))
        return torch.randperm(len(self.data), generator=generator)

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether no step is left."""

    @abstractmethod
    def step(self) -> Shown | None:
        """Take one step; returns the moment if the step completes an epoch or a removal."""

    @abstractmethod
    def moment(self) -> Shown:
        """The progress of the run; waits for the device."""

    def compute_gradients(self, penalty: Tensor | float = 0.0) -> None:
        """Begin a step: compute the gradients of the next batch's loss plus a penalty.

        The batch passes in parts, whose gradients add up. It is varied, and its teacher is asked,
        as a whole before.
        """
        pixels, labels = next(self.batches)
        seed = mixed(self.recipe.seed, -1 - self.done)
        torch.manual_seed(seed)
        viewed = pixels if self.view is None else self.view(pixels, self._part)
        if processes.count() > 1:  # dropout differs from image to image
            torch.manual_seed(mixed(seed, processes.rank()))
        targets = self._targets(viewed)
        self.optimizer.zero_grad(set_to_none=True)
        told = torch.zeros_like(self.sums)
        for part in averaged(self.parts, self.root):
            last, taught = part is self.parts[-1], targets and targets.part(part)
            with self.passing(last):
                told[:2] += self._pass(viewed[part], labels[part], taught, penalty if last else 0.0)
        told[2] = 1.0
        processes.average([told, *self.shared])
        self.sums += told

    def _pass(
        self, pixels: Tensor, labels: Tensor, targets: Targets | None, penalty: Tensor | float
    ) -> Tensor:
        """Add the gradients of a part of the batch; returns its shares of loss and score."""
        given = self._answers(self.learning, self._normalized(pixels, 0))
        loss = self._loss(given, targets, labels)
        if loss.requires_grad:  # it does not if no gate is left and norms are frozen
            torch.autograd.backward(loss + penalty)
        score = torch.zeros((), device=self.device)
        if self.data.labelled:
            right = self.data.task.score(given[0].detach(), labels).float()
            score = self._weighted(right.mean(), len(right))
        return torch.stack([loss.detach(), score])

    def passing(self, last: bool) -> AbstractContextManager[object]:
        """Around the pass of a part; several processes average their gradients in the last one."""
        return nullcontext()

    @property
    def _part(self) -> Part:
        return Part(self.mine, self.recipe.batch_size)

    @property
    def learning(self) -> nn.Module:
        """What computes the answers of a step."""
        return self.module

    @property
    @abstractmethod
    def shared(self) -> list[Tensor]:
        """What the processes average after every step, besides the loss."""

    def _weighted(self, mean: Tensor, images: int) -> Tensor:
        """A mean over so many images of a batch as its share of the mean over all of them.

        The shares of a process's parts are added, and their sums averaged over the processes.
        """
        weight = processes.count() * images / self.recipe.batch_size
        return mean if weight == 1 else weight * mean

    def _normalized(self, pixels: Tensor, which: int) -> Tensor:
        """Images as the network, 0, or its teacher, 1, takes them."""
        images = self.normalizations[which](pixels)
        return laid_out(images, learns_channels_last(self.device))

    def _answers(self, module: nn.Module, images: Tensor) -> Answers:
        return answers(module, images, self.device, self.fast, classes=self.data.task.classes)

    @property
    def _share(self) -> float:
        """The share of the teacher's logits in the loss."""
        return self.recipe.distillation if self.data.labelled else 1.0

    def _loss(self, given: Answers, targets: Targets | None, labels: Tensor) -> Tensor:
        """The distance from the teacher's answers; that from the labels if there are none.

        Its sum over the parts, averaged over the processes, is that of the whole batch.
        """
        (logits, features), task, share = given, self.data.task, self._share
        if targets is None:
            return self._weighted(task.loss(logits, labels), len(logits))
        losses = []
        if features is not None and targets.features is not None:
            weight = FEATURES * processes.count()
            losses.append(weight * feature_distance(features, targets.features, targets.squares))
        if features is None or self.recipe.match == "both":
            loss = task.distance(logits, targets.logits, self.recipe.temperature)
            if share < 1:  # the labels need not fit the network otherwise
                loss = share * loss + (1 - share) * task.loss(logits, labels)
            losses.append(self._weighted(loss, len(logits)))
        return torch.stack(losses).mean()

    def _targets(self, pixels: Tensor) -> Targets | None:
        """What the network learns from its teacher, if that counts."""
        if self.teacher_module is None or not (self._share or self.matches):
            return None
        return Targets.of(self._taught(pixels))

    @torch.no_grad()
    def _taught(self, pixels: Tensor) -> Answers:
        """The teacher's answers."""
        assert self.teacher_module is not None  # asked only then
        parts = torch.split(pixels, self.recipe.at_once(len(pixels)))
        return joined([self._answers(self.teacher_module, self._normalized(p, 1)) for p in parts])

    def update(self) -> None:
        """End a step: let the optimizer change the tensors."""
        self.optimizer.step()
        self.done += 1

    def sound(self) -> bool:
        """Whether the losses, and all tensors that were finite at the start, are finite."""
        start = self.start.weights
        return _finite(self.sums) and all(
            _finite(tensor) or not _finite(start[key]) for key, tensor in self.tensors.items()
        )

    def identity(self) -> dict[str, Any]:
        """What must be equal for a run to be resumed, as plain JSON."""
        images = [self.data.source, len(self.data), self.data.fingerprint]
        normalization = self.preprocessing.get("normalize")
        return {"format": FORMAT, "images": images, "normalization": normalization}

    def premises(self) -> dict[str, Any]:
        """What must be equal in all processes of a run, as plain JSON."""
        return self.identity()

    def snapshot(self) -> dict[str, Any]:
        """The state of the run, as tensors, which later steps change, and plain values."""
        return {
            "done": self.done,
            "sums": self.sums,
            "tensors": {key: tensor.detach() for key, tensor in self.tensors.items()},
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Restore a snapshot of the same run.

        Raises:
            ValueError: its tensors have other names or shapes.
        """
        self.refuse_misfits(snapshot["tensors"])
        self.done = snapshot["done"]
        self.close()
        self.batches = self._batches()
        self.sums.copy_(snapshot["sums"])
        with torch.no_grad():
            for key, tensor in snapshot["tensors"].items():
                self.tensors[key].copy_(tensor)
        self.optimizer.load_state_dict(snapshot["optimizer"])

    def refuse_misfits(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise a `ValueError` unless tensors have the names and shapes of those of the run."""
        shapes, own = (
            {key: tuple(tensor.shape) for key, tensor in one.items()}
            for one in (tensors, self.tensors)
        )
        misfits = [key for key in {**shapes, **own} if shapes.get(key) != own.get(key)]
        if misfits:
            raise ValueError(f"{listed(misfits)} are missing, unknown or of another shape")

    @property
    def precision(self) -> str:
        """In what the network computes while it learns, for notes."""
        return "bf16" if self.fast else "float32"

    @property
    def normalization(self) -> Normalization:
        """The network's normalisation."""
        return self.normalizations[0]

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The preprocessing of the images as notes of a checkpoint."""
        return Preprocessing(self.normalization, self.data.resize).to_json()


def check_learnable(checkpoint: Checkpoint) -> None:
    """Raise an error if nothing can be learned with a network, or from it.

    Raises:
        ArchitectureError: it returns something else than logits.
        TrainingError: some of its weights are NaN.
    """
    network, weights = checkpoint.network, checkpoint.weights
    bad = [key for key, tensor in weights.items() if tensor.isnan().any()]
    if network.num_classes and bad:
        raise TrainingError(
            f"{network} has weights that are NaN, {listed(bad)}: nothing can be learned with it or "
            "from it; choose another checkpoint"
        )


def matches(match: str, network: Network, teacher: Checkpoint) -> bool:
    """Whether a network matches the features of its teacher, and not only the logits.

    Raises:
        TrainingError: their features have different shapes.
    """
    if match == "logits":
        return False
    own, others = features_of(network), features_of(teacher.network)
    if own is not None and others is not None and own.shape != others.shape:
        raise TrainingError(
            f"cannot match the features of the teacher {teacher.network}, {others}: those of "
            f"{network} are {own}; match its logits instead",
            match="logits",
        )
    return own is not None and others is not None


def matched(match: str, network: Network, teacher: Checkpoint) -> str:
    """What a network matches of its teacher, in words."""
    found = features_of(network)
    if not matches(match, network, teacher):
        return "logits" if match == "logits" else "logits, since there are no features"
    return f"{found} and logits" if match == "both" else str(found)


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())
