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
    from gatepruner.compression.compress import compress as compress
    from gatepruner.compression.recipe import CompressionRecipe as CompressionRecipe
    from gatepruner.compression.record import Compressed as Compressed
    from gatepruner.compression.record import StepRecord as StepRecord
    from gatepruner.errors import GatePrunerError as GatePrunerError
    from gatepruner.files.checkpoints import load as load
    from gatepruner.files.checkpoints import save as save
    from gatepruner.files.export import to_torchvision as to_torchvision
    from gatepruner.images.images import Images as Images
    from gatepruner.images.readers import load_images as load_images
    from gatepruner.learning.gates import learn_gates as learn_gates
    from gatepruner.learning.recipes import FINE_TUNING as FINE_TUNING
    from gatepruner.learning.recipes import GateRecipe as GateRecipe
    from gatepruner.learning.recipes import Recipe as Recipe
    from gatepruner.learning.training import finetune as finetune
    from gatepruner.learning.training import train as train
    from gatepruner.measuring.accuracy import Accuracy as Accuracy
    from gatepruner.measuring.accuracy import accuracy as accuracy
    from gatepruner.measuring.cost import Cost as Cost
    from gatepruner.measuring.cost import count as count
    from gatepruner.measuring.latency import latency as latency
    from gatepruner.measuring.recalibration import recalibrate as recalibrate
    from gatepruner.networks.checkpoint import Checkpoint as Checkpoint
    from gatepruner.networks.network import Block as Block
    from gatepruner.networks.network import Network as Network
    from gatepruner.networks.path import Path as Path
    from gatepruner.networks.path import Removal as Removal
    from gatepruner.pruning.criteria import CRITERIA as CRITERIA
    from gatepruner.pruning.criteria.criterion import Criterion as Criterion
    from gatepruner.pruning.criteria.criterion import Evidence as Evidence
    from gatepruner.pruning.curve import Point as Point
    from gatepruner.pruning.curve import accuracies as accuracies
    from gatepruner.pruning.curve import sweep as sweep
    from gatepruner.pruning.goals import Goal as Goal
    from gatepruner.pruning.meter import Meter as Meter
    from gatepruner.pruning.meter import savings as savings
    from gatepruner.pruning.orders import Order as Order
    from gatepruner.pruning.orders import compare as compare
    from gatepruner.pruning.ranking import Ranking as Ranking
    from gatepruner.pruning.ranking import rank as rank
    from gatepruner.pruning.surgery import add_gates as add_gates
    from gatepruner.pruning.surgery import fold_gates as fold_gates
    from gatepruner.pruning.surgery import follow as follow
    from gatepruner.pruning.surgery import prune as prune
    from gatepruner.pruning.surgery import remove as remove
    from gatepruner.pruning.surgery import remove_shortcuts as remove_shortcuts
    from gatepruner.report.files import Report as Report
    from gatepruner.report.files import write_report as write_report

# Where each public name lives; imported when it is first asked for, so that `import gatepruner`
# and `gatepruner --help` do not wait for torch.
_HOME = {
    "compress": "compression.compress",
    "CompressionRecipe": "compression.recipe",
    "Compressed": "compression.record",
    "StepRecord": "compression.record",
    "GatePrunerError": "errors",
    "load": "files.checkpoints",
    "save": "files.checkpoints",
    "to_torchvision": "files.export",
    "Images": "images.images",
    "load_images": "images.readers",
    "GateRecipe": "learning.recipes",
    "add_gates": "pruning.surgery",
    "learn_gates": "learning.gates",
    "FINE_TUNING": "learning.recipes",
    "Recipe": "learning.recipes",
    "finetune": "learning.training",
    "train": "learning.training",
    "Accuracy": "measuring.accuracy",
    "accuracy": "measuring.accuracy",
    "Cost": "measuring.cost",
    "count": "measuring.cost",
    "latency": "measuring.latency",
    "Meter": "pruning.meter",
    "savings": "pruning.meter",
    "recalibrate": "measuring.recalibration",
    "Checkpoint": "networks.checkpoint",
    "Block": "networks.network",
    "Network": "networks.network",
    "Path": "networks.path",
    "Removal": "networks.path",
    "CRITERIA": "pruning.criteria",
    "Criterion": "pruning.criteria.criterion",
    "Evidence": "pruning.criteria.criterion",
    "Point": "pruning.curve",
    "accuracies": "pruning.curve",
    "sweep": "pruning.curve",
    "Goal": "pruning.goals",
    "Order": "pruning.orders",
    "compare": "pruning.orders",
    "Ranking": "pruning.ranking",
    "rank": "pruning.ranking",
    "fold_gates": "pruning.surgery",
    "follow": "pruning.surgery",
    "remove": "pruning.surgery",
    "remove_shortcuts": "pruning.surgery",
    "prune": "pruning.surgery",
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
