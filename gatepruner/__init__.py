"""Remove the residual blocks that a trained network can live without, as its gates tell.

    import gatepruner

    whole = gatepruner.load("resnet56.th")
    images = gatepruner.load_images("imagefolder:DIR", (3, 32, 32), split="train", limit=10_000)
    gated = gatepruner.learn_gates(whole, images)  # leaves its weights unchanged
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
    from gatepruner.files.formats import FORMATS as FORMATS
    from gatepruner.files.formats import export as export
    from gatepruner.files.onnx_files import load_onnx as load_onnx
    from gatepruner.files.quantization import Calibration as Calibration
    from gatepruner.images.classes import map_classes as map_classes
    from gatepruner.images.dataset import examples_of as examples_of
    from gatepruner.images.examples import Examples as Examples
    from gatepruner.images.images import Images as Images
    from gatepruner.images.preprocessing import Preprocessing as Preprocessing
    from gatepruner.images.preprocessing import preprocessing_of as preprocessing_of
    from gatepruner.images.readers import load_images as load_images
    from gatepruner.images.scaling import Scaling as Scaling
    from gatepruner.images.task import CLASSIFICATION as CLASSIFICATION
    from gatepruner.images.task import Task as Task
    from gatepruner.learning.gates import learn_gates as learn_gates
    from gatepruner.learning.recipes import FINE_TUNING as FINE_TUNING
    from gatepruner.learning.recipes import GateRecipe as GateRecipe
    from gatepruner.learning.recipes import Recipe as Recipe
    from gatepruner.learning.training import finetune as finetune
    from gatepruner.learning.training import train as train
    from gatepruner.measuring.accuracy import Accuracy as Accuracy
    from gatepruner.measuring.accuracy import accuracy as accuracy
    from gatepruner.measuring.agreement import Agreement as Agreement
    from gatepruner.measuring.agreement import agreement as agreement
    from gatepruner.measuring.bench import Measured as Measured
    from gatepruner.measuring.bench import bench as bench
    from gatepruner.measuring.cost import Cost as Cost
    from gatepruner.measuring.cost import count as count
    from gatepruner.measuring.engines import ENGINES as ENGINES
    from gatepruner.measuring.latency import latency as latency
    from gatepruner.measuring.recalibration import recalibrate as recalibrate
    from gatepruner.measuring.statistics import StatisticsFit as StatisticsFit
    from gatepruner.measuring.statistics import compare_statistics as compare_statistics
    from gatepruner.networks.checkpoint import Checkpoint as Checkpoint
    from gatepruner.networks.network import Block as Block
    from gatepruner.networks.network import Network as Network
    from gatepruner.networks.onnx_file import OnnxFile as OnnxFile
    from gatepruner.networks.path import Path as Path
    from gatepruner.networks.path import Removal as Removal
    from gatepruner.pruning.criteria import CRITERIA as CRITERIA
    from gatepruner.pruning.criteria.criterion import Criterion as Criterion
    from gatepruner.pruning.criteria.criterion import Evidence as Evidence
    from gatepruner.pruning.curve import Point as Point
    from gatepruner.pruning.curve import accuracies as accuracies
    from gatepruner.pruning.curve import sweep as sweep
    from gatepruner.pruning.goals import Goal as Goal
    from gatepruner.pruning.groups import widths_of as widths_of
    from gatepruner.pruning.meter import Meter as Meter
    from gatepruner.pruning.meter import savings as savings
    from gatepruner.pruning.orders import Order as Order
    from gatepruner.pruning.orders import compare as compare
    from gatepruner.pruning.ranking import Ranking as Ranking
    from gatepruner.pruning.ranking import rank as rank
    from gatepruner.pruning.surgery import add_gates as add_gates
    from gatepruner.pruning.surgery import fold_gates as fold_gates
    from gatepruner.pruning.surgery import follow as follow
    from gatepruner.pruning.surgery import narrow as narrow
    from gatepruner.pruning.surgery import prune as prune
    from gatepruner.pruning.surgery import remove as remove
    from gatepruner.pruning.surgery import remove_shortcuts as remove_shortcuts
    from gatepruner.report.files import Report as Report
    from gatepruner.report.files import write_report as write_report

# The public names by module. A module is imported when one of its names is first used, so that
# `import gatepruner` and `gatepruner --help` do not wait for torch.
_PUBLIC = {
    "compression.compress": "compress",
    "compression.recipe": "CompressionRecipe",
    "compression.record": "Compressed StepRecord",
    "errors": "GatePrunerError",
    "files.checkpoints": "load save",
    "files.export": "to_torchvision",
    "files.formats": "FORMATS export",
    "files.onnx_files": "load_onnx",
    "files.quantization": "Calibration",
    "images.classes": "map_classes",
    "images.dataset": "examples_of",
    "images.examples": "Examples",
    "images.images": "Images",
    "images.preprocessing": "Preprocessing preprocessing_of",
    "images.readers": "load_images",
    "images.scaling": "Scaling",
    "images.task": "CLASSIFICATION Task",
    "learning.gates": "learn_gates",
    "learning.recipes": "FINE_TUNING GateRecipe Recipe",
    "learning.training": "finetune train",
    "measuring.accuracy": "Accuracy accuracy",
    "measuring.agreement": "Agreement agreement",
    "measuring.cost": "Cost count",
    "measuring.bench": "bench Measured",
    "measuring.engines": "ENGINES",
    "measuring.latency": "latency",
    "measuring.recalibration": "recalibrate",
    "measuring.statistics": "compare_statistics StatisticsFit",
    "networks.checkpoint": "Checkpoint",
    "networks.network": "Block Network",
    "networks.onnx_file": "OnnxFile",
    "networks.path": "Path Removal",
    "pruning.criteria": "CRITERIA",
    "pruning.criteria.criterion": "Criterion Evidence",
    "pruning.curve": "accuracies Point sweep",
    "pruning.goals": "Goal",
    "pruning.meter": "Meter savings",
    "pruning.orders": "compare Order",
    "pruning.ranking": "rank Ranking",
    "pruning.groups": "widths_of",
    "pruning.surgery": "add_gates fold_gates follow narrow prune remove remove_shortcuts",
    "report.files": "Report write_report",
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names.split()}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'gatepruner' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"gatepruner.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
