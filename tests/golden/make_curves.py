"""Makes the golden loss curves, one for every way of learning.

PYTHONPATH=.:tests python tests/golden/make_curves.py

On a CPU, in float32, on one thread. To be run again only after a change that is meant to change
what is learned: say in its commit which, and why. Each file says under which conditions it was
made; under the same ones the curve has to be the same, number for number.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from conftest import bright_images, drawn, removable

from gatepruner.learning.gates import GateRecipe, learn_gates
from gatepruner.learning.training import Recipe, finetune, train
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.pruning.surgery import remove

FOLDER = Path(__file__).parent / "curves"
SHAPE = (3, 8, 8)
NOTES = {"normalize": {"mean": [0.5] * 3, "std": [0.25] * 3}}
Curve = dict[str, list[Any]]


def conditions() -> dict[str, Any]:
    """On what the rounding of a sum depends."""
    return {
        "torch": torch.__version__,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor()
    first = info.read_text(encoding="utf-8").partition("\n\n")[0]
    told = dict(line.partition(":")[::2] for line in first.splitlines())
    told = {key.strip(): value.strip() for key, value in told.items()}
    return " ".join(told.get(key, "") for key in ("model name", "cpu family", "model"))


def read(records: Any, *fields: str) -> Curve:
    """What these fields of the records of a run are; a field with another name is renamed here."""
    return {field: [record[field] for record in records] for field in fields}


def whole(name: str) -> Checkpoint:
    network = Network.named(name, num_classes=4, input_shape=SHAPE)
    weights = drawn(network.initial_weights(0), 0)
    return Checkpoint(network, MappingProxyType(weights), NOTES)


def gates(**options: Any) -> Curve:
    """Twelve blocks that go one after the other, two steps each."""
    recipe = GateRecipe(warmup=4, steps=2, batch_size=16, cost="macs", seed=1)
    learned = learn_gates(
        whole("resnet26"), bright_images(50, SHAPE), replace(recipe, **options), device="cpu"
    )
    return read(learned.path.records, "block", "gate", "loss")


def gates_of_labels() -> Curve:
    """The same from labels, the norms left alone."""
    return gates(labels=True, norm_learning_rate=0.0)


def training() -> Curve:
    """Twelve epochs from fresh weights, with gates."""
    recipe = Recipe(epochs=12, batch_size=16, gate_penalty=0.01, seed=1)
    network = Network.named("gated-resnet8", num_classes=4, input_shape=SHAPE)
    trained = train(network, bright_images(50, SHAPE), recipe, device="cpu")
    return read(trained.notes["epochs"], "loss", "gate")


def fine_tuning(match: str = "logits") -> Curve:
    """Twelve epochs without one block, the whole network being the teacher."""
    recipe = Recipe(epochs=12, batch_size=16, schedule="cosine", learning_rate=0.02, seed=1)
    recipe = replace(recipe, match=match)
    teacher = whole("resnet8")
    smaller = remove(teacher, removable(teacher.network)[:1])
    data = bright_images(50, SHAPE)
    tuned = finetune(smaller, data, recipe, teacher=teacher, device="cpu")
    return read(tuned.notes["epochs"], "loss")


def features() -> Curve:
    """The same by the distance of features."""
    return fine_tuning("features")


CURVES: dict[str, Callable[[], Curve]] = {
    "gates": gates,
    "gates-of-labels": gates_of_labels,
    "training": training,
    "fine-tuning": fine_tuning,
    "features": features,
}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, compute in CURVES.items():
        found = {"conditions": conditions(), "curve": compute()}
        text = json.dumps(found, indent=1)
        (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
