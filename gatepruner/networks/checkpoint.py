"""Checkpoints: a network, its weights and notes, loaded and saved.

The project's own file holds a format number, the network and the notes as JSON, and the
weights; see `docs/format.md`. It needs no class and no code to be read. Files of others are
state dicts; `gatepruner.recognition` tells their architecture.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn

from gatepruner.errors import CheckpointError, listed
from gatepruner.models import Shape
from gatepruner.networks.network import Network
from gatepruner.networks.path import NO_PATH, Path

EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Checkpoint:
    """A network with its weights.

    Attributes:
        network: base and edits.
        weights: tensors by their state-dict keys; not to be written to.
        notes: plain JSON: `normalize` (`mean` and `std` of each channel), `classes` (names),
            `history` (what was done, oldest first) and what else a writer cares to record.
        path: the blocks that were removed while the gates were learned, with what was learned;
            see `gatepruner.learning.gates`.
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
        leaves: Iterable[type[nn.Module]] = (),
    ) -> Checkpoint:
        """A checkpoint of a module that the caller brings; the module is left as it is.

        Args:
            module: any residual network that `torch.fx` can trace.
            input_shape: `(C, H, W)` of one image.
            notes: what to record.
            leaves: module classes that tracing keeps whole, since it cannot follow their code.
        """
        network = Network.of(module, input_shape, leaves)
        state, wanted = module.state_dict(), network.state()
        weights = {key: state[key].detach().clone() for key in wanted}
        return cls(network, MappingProxyType(weights), dict(notes))

    def build(self) -> fx.GraphModule:
        """An `nn.Module` with copies of the weights, in evaluation mode."""
        return self.network.build({key: value.clone() for key, value in self.weights.items()})

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors of a checkpoint, those of its path as `path/INDEX/KEY`."""
        path = {f"path/{key}": tensor for key, tensor in self.path.tensors.items()}
        return {**self.weights, **path}

    @property
    def fingerprint(self) -> str:
        """A hash of network and weights: whether two checkpoints are the same."""
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
        values = {name: float(self.weights[network.gate_key(name)]) for name in network.edits.gated}
        bad = [f"{name} (k = {k})" for name, k in values.items() if k - k != 0]
        if bad:
            raise CheckpointError(
                f"{listed(bad)}: a gate has to be a finite number; train it again, "
                "with a lower gate learning rate"
            )
        return {name: max(k, 0.0) for name, k in values.items()}

    @property
    def known_gates(self) -> dict[str, float]:
        """The gate of every block that has or had one.

        Folded ones are in the notes; those of a path are as they were when their block was
        removed, or else as the path left them.
        """
        learned = self.path.learned(self.path.blocks)
        left = replace(self, weights={**self.weights, **learned}).gates
        return {**self.notes.get("gates", {}), **left, **self.path.gates}

    def noting(self, **done: Any) -> dict[str, Any]:
        """The notes with one more entry in their history."""
        return {**self.notes, "history": [*self.notes.get("history", ()), done]}
