"""Remove the residual blocks that a trained network can live without, as its gates tell.

    import gatepruner

    whole = gatepruner.load("resnet56.th")
    images = gatepruner.load_images("imagefolder:DIR", (3, 32, 32), split="train", limit=10_000)
    gated = gatepruner.learn_gates(whole, images)  # its own weights stay as they are
    small = gatepruner.follow(gated, gatepruner.rank(gated).first(10))
    small = gatepruner.recalibrate(gatepruner.fold_gates(small), images)
    gatepruner.save(small, "small.pt")
    module = small.build()  # an ordinary nn.Module

Every verb takes values and returns new ones; nothing is changed in place, printed or seeded.
Source: Savarese, Mazza, Figueiredo, *Learning Identity Mappings with Residual Gates*, 2016,
https://arxiv.org/abs/1611.01260.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gatepruner.checkpoint import Checkpoint as Checkpoint
    from gatepruner.checkpoint import State as State
    from gatepruner.checkpoint import load as load
    from gatepruner.checkpoint import save as save
    from gatepruner.cost import Cost as Cost
    from gatepruner.cost import count as count
    from gatepruner.cost import latency as latency
    from gatepruner.cost import savings as savings
    from gatepruner.curve import Point as Point
    from gatepruner.curve import accuracies as accuracies
    from gatepruner.curve import sweep as sweep
    from gatepruner.data import Images as Images
    from gatepruner.data import load_images as load_images
    from gatepruner.errors import GatePrunerError as GatePrunerError
    from gatepruner.evaluate import Accuracy as Accuracy
    from gatepruner.evaluate import accuracy as accuracy
    from gatepruner.export import to_torchvision as to_torchvision
    from gatepruner.gates import GateRecipe as GateRecipe
    from gatepruner.gates import add_gates as add_gates
    from gatepruner.gates import learn_gates as learn_gates
    from gatepruner.network import Block as Block
    from gatepruner.network import Network as Network
    from gatepruner.ranking import Ranking as Ranking
    from gatepruner.ranking import rank as rank
    from gatepruner.recalibration import recalibrate as recalibrate
    from gatepruner.report.files import Report as Report
    from gatepruner.report.files import write_report as write_report
    from gatepruner.surgery import fold_gates as fold_gates
    from gatepruner.surgery import follow as follow
    from gatepruner.surgery import remove as remove
    from gatepruner.surgery import remove_shortcuts as remove_shortcuts
    from gatepruner.targets import Target as Target
    from gatepruner.training import FINE_TUNING as FINE_TUNING
    from gatepruner.training import Recipe as Recipe
    from gatepruner.training import finetune as finetune
    from gatepruner.training import train as train

# Where each public name lives; imported when it is first asked for, so that `import gatepruner`
# and `gatepruner --help` do not wait for torch.
_HOME = {
    "Accuracy": "evaluate",
    "Block": "network",
    "Checkpoint": "checkpoint",
    "Cost": "cost",
    "GatePrunerError": "errors",
    "Images": "data",
    "Network": "network",
    "Point": "curve",
    "Ranking": "ranking",
    "Recipe": "training",
    "accuracies": "curve",
    "accuracy": "evaluate",
    "count": "cost",
    "fold_gates": "surgery",
    "latency": "cost",
    "load": "checkpoint",
    "load_images": "data",
    "rank": "ranking",
    "remove": "surgery",
    "remove_shortcuts": "surgery",
    "save": "checkpoint",
    "sweep": "curve",
    "to_torchvision": "export",
    "train": "training",
    "State": "checkpoint",
    "savings": "cost",
    "Target": "targets",
    "FINE_TUNING": "training",
    "finetune": "training",
    "recalibrate": "recalibration",
    "follow": "surgery",
    "GateRecipe": "gates",
    "learn_gates": "gates",
    "add_gates": "gates",
    "Report": "report.files",
    "write_report": "report.files",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'gatepruner' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"gatepruner.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
