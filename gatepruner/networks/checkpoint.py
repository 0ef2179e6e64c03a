"""Checkpoints: a network with its weights, notes and learned path."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Annotated, Any, Literal

import msgspec
import torch
from torch import Tensor, fx, nn
from typing_extensions import NotRequired, TypedDict

from gatepruner.errors import CheckpointError, listed
from gatepruner.models import Shape
from gatepruner.networks.graph import remarks_on
from gatepruner.networks.network import Network
from gatepruner.networks.path import NO_PATH, Path
from gatepruner.networks.weights import cast, refuse_unusable
from gatepruner.networks.wrappers import unwrapped

MEASURED = "measured"  # the note of an accuracy, which other weights do not have
EXTRA_STATE = "_extra_state"  # of modules that save more than tensors
EMPTY: Mapping[str, Any] = MappingProxyType({})


Positive = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
Finite = Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)]
Size = Annotated[int, msgspec.Meta(gt=0, le=2**16)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class NormalizationNote(TypedDict):
    """The normalisation of pixels."""

    mean: list[Finite]
    std: list[Positive]


class ScalingNote(TypedDict):
    """The scaling of pictures."""

    side: Size
    interpolation: NotRequired[
        Literal["bilinear", "bicubic", "lanczos", "nearest", "box", "hamming"]
    ]
    squash: NotRequired[bool]


class MeasuredNote(TypedDict):
    """An accuracy, of how many images and which."""

    accuracy: Share
    low: Share
    high: Share
    images: Annotated[int, msgspec.Meta(gt=0, le=2**40)]
    source: str


class Notes(TypedDict, total=False):
    """The notes that have a meaning; any other JSON may stand beside them."""

    normalize: NormalizationNote
    scaling: ScalingNote
    classes: list[str]
    gates: dict[str, float]
    history: list[dict[str, Any]]
    epochs: list[dict[str, Any]]
    source: str
    weights: str
    remarks: list[str]
    measured: MeasuredNote


@dataclass(frozen=True)
class Checkpoint:
    """A network with its weights.

    Attributes:
        network: base and edits.
        weights: tensors by state-dict key; do not modify them.
        notes: plain JSON: `normalize` (`mean` and `std` per channel), `classes` (names),
            `history` (what was done, oldest first) and anything else worth recording.
        path: the removals learned with the gates; see `learn_gates`.
    """

    network: Network
    weights: Mapping[str, Tensor]
    notes: Mapping[str, Any] = field(default_factory=dict)
    path: Path = NO_PATH

    @classmethod
    def of(
        cls,
        module: nn.Module,
        input_shape: Shape,
        notes: Mapping[str, Any] = EMPTY,
        leaves: Iterable[type[nn.Module] | str] = (),
    ) -> Checkpoint:
        """A checkpoint of the caller's module, which is not changed.

        Weights of another precision are cast to float32. The notes say so under `remarks`, and name
        the modules that were kept whole.

        Args:
            module: any residual network that `torch.fx` can trace, on any device.
            input_shape: `(C, H, W)` of one image.
            notes: plain JSON to record.
            leaves: module classes, or names of them, to keep whole because they cannot be traced.

        Raises:
            ArchitectureError: the module cannot be traced, has no residual addition, or computes
                something other than its traced graph.
            CheckpointError: weights are not finite, are sparse or have no values; all are named.
        """
        state = {
            key: value
            for key, value in unwrapped(module).state_dict().items()
            if not key.endswith(EXTRA_STATE)
        }
        refuse_unusable(state)
        network = Network.of(module, input_shape, leaves)
        expected = network.state()
        weights, casts = cast({key: state[key].cpu().clone() for key in expected}, expected)
        said = [*casts, *remarks_on(network.kept)]
        remarks = {"remarks": [*notes.get("remarks", ()), *said]} if said else {}
        return cls(network, MappingProxyType(weights), {**notes, **remarks})

    def build(self) -> fx.GraphModule:
        """An `nn.Module` with copies of the weights, in evaluation mode.

        It has the types that the network computes with, float32 for real numbers, whatever those
        of the weights are.
        """
        weights, _ = cast(self.weights, {**self.weights, **self.network.state()})
        return self.network.build({key: tensor.clone() for key, tensor in weights.items()})

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the checkpoint; those of its path as `path/INDEX/KEY`."""
        path = {f"path/{key}": tensor for key, tensor in self.path.tensors.items()}
        return {**self.weights, **path}

    @property
    def fingerprint(self) -> str:
        """A hash of the network and all tensors."""
        digest = hashlib.sha256(json.dumps(self.network.to_json()).encode())
        for key, tensor in sorted(self.tensors.items()):
            digest.update(key.encode())
            flat = tensor.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @property
    def gates(self) -> dict[str, float]:
        """The gate `g = relu(k)` of every gated block, in the order of depth.

        Raises:
            CheckpointError: a gate is not a finite number.
        """
        network = self.network
        gates = {name: float(self.weights[network.gate_key(name)]) for name in network.edits.gated}
        bad = [f"{name} (k = {k})" for name, k in gates.items() if not math.isfinite(k)]
        if bad:
            raise CheckpointError(
                f"gates are not finite: {listed(bad)}; learn them again with a lower gate "
                "learning rate"
            )
        return {name: max(k, 0.0) for name, k in gates.items()}

    @property
    def known_gates(self) -> dict[str, float]:
        """The gate of every block that has or had one.

        The notes hold folded gates. On a learned path, the gate of a removed block is the one it
        had when it was removed, and the gate of any other block its last one.
        """
        learned = self.path.learned(self.path.blocks)
        last = replace(self, weights={**self.weights, **learned}).gates
        return {**self.notes.get("gates", {}), **last, **self.path.gates}

    def noting(self, **done: Any) -> dict[str, Any]:
        """The notes of other weights, with `done` appended to their history."""
        kept = {key: value for key, value in self.notes.items() if key != MEASURED}
        return {**kept, "history": [*self.notes.get("history", ()), done]}
