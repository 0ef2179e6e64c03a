"""A step that learns gates, against one that learns all weights: time, and memory for backward.

A gated ResNet-56 with fresh weights and random images. The three steps are timed in turns, forward
and backward in the precision that learning uses on this machine. Memory is what autograd keeps
for the backward pass, parameters left out, each storage counted once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import record
import torch
import torch.nn.functional as F
from torch import nn

import gatepruner
from gatepruner.measuring.device import laid_out, learns_fast, place, precision
from gatepruner.networks.norms import scales_and_shifts

CPU = torch.device("cpu")
FAST = learns_fast(CPU, 10**8)


def modules() -> dict[str, nn.Module]:
    """The network three times, with gradients for more and more of it."""
    network = gatepruner.Network.named("gated-resnet56")
    whole = gatepruner.Checkpoint(network, network.initial_weights(0))
    gates = set(map(network.gate_key, network.edits.gated))
    learned = {
        "gates": gates,
        "gates, scales and shifts": gates | set(scales_and_shifts(whole.build())),
        "all weights": set(whole.weights),
    }
    found = {}
    for name, keys in learned.items():
        module = whole.build()
        for key, parameter in module.named_parameters():
            parameter.requires_grad_(key in keys)
        found[name] = place(module.train(), CPU, FAST)
    return found


def step(module: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Forward and backward."""
    with precision(CPU, FAST):
        logits = module(laid_out(images, FAST))
    F.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
    module.zero_grad(set_to_none=True)


def kept_bytes(module: nn.Module, step: Callable[[], None]) -> int:
    """What autograd keeps for one backward pass."""
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(kept.values())


def main() -> None:
    options = record.parser(__doc__)
    options.add_argument("--rounds", type=int, default=20, help="rounds, after two not counted")
    options.add_argument("--batch-size", type=int, default=128, help="images in a step")
    chosen = options.parse_args()
    rounds, batch = (2, 8) if chosen.quick else (chosen.rounds, chosen.batch_size)
    images = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ready, labels = modules(), torch.arange(batch) % 10
    steps = {name: partial(step, module, images, labels) for name, module in ready.items()}
    times = record.in_turns(steps, rounds, uncounted=2)
    rows = [
        {
            "learned": name,
            "parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
            "seconds": record.spread(times[name]),
            "kept_bytes": kept_bytes(module, steps[name]),
        }
        for name, module in ready.items()
    ]
    settings = {"network": "ResNet-56", "batch_size": batch, "bf16": FAST}
    record.write("gate_step", settings, rows, quick=chosen.quick)


if __name__ == "__main__":
    main()
