"""Tasks: what the targets of examples are, and how a network's outputs compare with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Task:
    """What a network's outputs are for.

    Attributes:
        name: name of the task, for messages and reports.
        loss: a loss of `torch.nn.functional`, or one that takes the same arguments: outputs
            `(N, ...)`, targets, and `reduction`, "mean" by default or "none".
        score: how right each output is, `(N,)` from 0 (or False) to 1 (or True).
        decide: turns outputs into targets; the agreement of two networks is the score of the
            outputs of one by the decisions of the other.
        distance: maps outputs, those of a teacher, and a temperature to their mean distance; the
            temperature softens both where that makes sense.
        classes: whether targets are indices of classes, `(N,)` int64.
    """

    name: str
    loss: Callable[..., Tensor]
    score: Callable[[Tensor, Tensor], Tensor]
    decide: Callable[[Tensor], Tensor]
    distance: Callable[[Tensor, Tensor, float], Tensor]
    classes: bool = False

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each example, `(N,)`."""
        losses = self.loss(outputs, targets, reduction="none")
        return losses.flatten(1).mean(1) if losses.ndim > 1 else losses


def distance(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Mean Kullback-Leibler divergence of softened logits `(N, K)` from the teacher's.

    Multiplied by the squared temperature, so that gradients have the same size at every
    temperature (Hinton, Vinyals, Dean, 2015, https://arxiv.org/abs/1503.02531).
    """
    softened = F.log_softmax(logits / temperature, 1)
    teachers = F.log_softmax(target / temperature, 1)
    return temperature**2 * F.kl_div(softened, teachers, log_target=True, reduction="batchmean")


CLASSIFICATION = Task(
    "classification",
    loss=F.cross_entropy,
    score=lambda logits, labels: logits.argmax(1) == labels,
    decide=lambda logits: logits.argmax(1),
    distance=distance,
    classes=True,
)
"""One class for each input: cross-entropy, top-1, and the divergence of softened logits."""
