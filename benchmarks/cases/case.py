"""A case of the survey, and what can come of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gatepruner.errors import GatePrunerError

# In the order of the tables. Nothing may be wrong; a crash is an error that is not one line.
OUTCOMES = (*("right", "partly", "rightly refused", "refused", "not tried", "crash", "WRONG"),)
RIGHT, PARTLY, RIGHTLY_REFUSED, REFUSED, NOT_TRIED, CRASH, WRONG = OUTCOMES
TOLERANCE = 1e-5  # of the largest logit
LONGEST = 120  # characters of a message
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """Something that people bring.

    Attributes:
        kind: of source; there is a table for each.
        name: what is brought.
        work: tries it: the outcome and what was measured.
        refusable: whether the right thing to do is to refuse it.
    """

    kind: str
    name: str
    work: Callable[[], Row]
    refusable: bool = False

    @property
    def key(self) -> str:
        """Tells the case from all others."""
        return f"{self.kind}: {self.name}"

    def tried(self) -> Row:
        """What came of it, with messages as text."""
        try:
            row = self.work()
        except GatePrunerError as error:
            row = {"outcome": RIGHTLY_REFUSED if self.refusable else REFUSED, "text": str(error)}
        except (Exception, RecursionError) as error:  # what the survey is there to find
            row = {"outcome": CRASH, "text": f"{type(error).__name__}: {error}"}
        else:
            if self.refusable and row["outcome"] == RIGHT:
                row = {**row, "outcome": WRONG, "text": "accepted"}
        return {"kind": self.kind, "name": self.name, **shortened(row)}


def shortened(row: Mapping[str, Any]) -> Row:
    """A row whose text has one line of bounded length."""
    line = " ".join(str(row.get("text", "")).split())
    return {**row, "text": line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"}


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """A module in evaluation whose every weight counts.

    Statistics of batch norm are drawn; so are weights that are 0 or almost, as the scales of
    new branches are.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    with torch.no_grad():
        for tensor in module.parameters():
            if tensor.is_floating_point() and tensor.numel() and tensor.abs().max() < 1e-2:
                draw(tensor, -0.3, 0.3)
        for name, tensor in module.named_buffers():
            if name.endswith("running_mean"):
                draw(tensor, -0.2, 0.2)
            elif name.endswith("running_var"):
                draw(tensor, 0.7, 1.4)
    return module.eval()


def difference(one: Tensor, other: Tensor) -> float:
    """The largest difference of two tensors, relative to the largest number of the second."""
    if one.shape != other.shape:
        return float("inf")
    if torch.equal(one, other):
        return 0.0
    largest = other.abs().max().clamp_min(1e-12)
    return float(((one - other).abs().max() / largest).nan_to_num(float("inf")))
