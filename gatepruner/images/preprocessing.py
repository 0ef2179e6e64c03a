"""The preprocessing that a network's author meant: how pictures are scaled and normalised."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gatepruner.images.normalization import IMAGENET, PREPARED, Normalization
from gatepruner.images.scaling import Scaling
from gatepruner.networks.base import Base
from gatepruner.networks.onnx_file import Subject


@dataclass(frozen=True)
class Preprocessing:
    """How pictures become what a network takes.

    Attributes:
        normalization: normalisation of the pixels.
        scaling: how pictures are scaled and cropped; `None` if it is not known.
        source: whose preprocessing it is.
    """

    normalization: Normalization
    scaling: Scaling | None = None
    source: str = "given"

    def to_json(self) -> dict[str, Any]:
        """The preprocessing as notes of a checkpoint."""
        notes: dict[str, Any] = {}
        if self.normalization != PREPARED:
            mean, std = list(self.normalization.mean), list(self.normalization.std)
            notes["normalize"] = {"mean": mean, "std": std}
        return notes if self.scaling is None else {**notes, "scaling": self.scaling.to_json()}


def preprocessing_of(checkpoint: Subject) -> Preprocessing:
    """The preprocessing of a checkpoint: the recorded one, or else that of its author.

    torchvision and timm know the preprocessing of the weights that they publish for a named
    architecture; nothing is downloaded. Their scaling is assumed only if the network has as many
    classes as these weights and takes images of their size.

    Where neither is known, it is ImageNet's normalisation without scaling.

    Args:
        checkpoint: a network with notes, or in an ONNX file.
    """
    base, notes = checkpoint.network.base, checkpoint.notes
    authors = AUTHORS.get(base.source)
    known = (authors and authors(base, notes.get("source", ""))) or Preprocessing(IMAGENET)
    if "normalize" in notes:
        mean, std = (tuple(notes["normalize"][key]) for key in ("mean", "std"))
        known = replace(known, normalization=Normalization(mean, std, "the checkpoint's"))
    if "scaling" in notes:
        scaling = Scaling.from_json(notes["scaling"])
        known = replace(known, scaling=scaling, source="the checkpoint's")
    return known


def _torchvisions(base: Base, file: str) -> Preprocessing | None:
    """What torchvision publishes with the weights of a file, or with the best ones."""
    from torchvision.models import get_model_weights

    published = list(get_model_weights(base.name))
    if not published:
        return None
    named = [one for one in published if one.url.rpartition("/")[2] == file]
    weights = (named or [type(published[0]).DEFAULT])[0]
    how, height, width = weights.transforms(), *base.input_shape[1:]
    side = how.resize_size[0] if [height, width] == how.crop_size * 2 else None
    return _published(
        base,
        (*how.mean, *how.std),
        None if side is None else Scaling(side, how.interpolation.value),
        len(weights.meta["categories"]),
        f"torchvision's {weights.name}{'' if named else ', assumed'}",
    )


def _timms(base: Base, file: str) -> Preprocessing | None:
    """What timm publishes with the weights of a name, or with its first ones."""
    import timm

    cfg = timm.get_pretrained_cfg(base.name)
    if cfg is None:
        return None
    scaling, (_, height, width) = None, cfg.input_size
    if base.input_shape[1:] == (height, width) and height == width and cfg.crop_mode in CROPS:
        side = math.floor(height / cfg.crop_pct)
        scaling = Scaling(side, cfg.interpolation, squash=cfg.crop_mode == "squash")
    name = ".".join(filter(None, (cfg.architecture, cfg.tag)))
    assumed = "" if base.name == name else ", assumed"
    return _published(
        base, (*cfg.mean, *cfg.std), scaling, cfg.num_classes, f"timm's {name}{assumed}"
    )


def _published(
    base: Base, values: tuple[float, ...], scaling: Scaling | None, classes: int, source: str
) -> Preprocessing | None:
    """The preprocessing of published weights, as far as a network may have such weights."""
    if base.input_shape[0] != 3:
        return None
    normalization = Normalization(values[:3], values[3:], source)
    if (values[:3], values[3:]) == (IMAGENET.mean, IMAGENET.std):
        normalization = IMAGENET
    if dict(base.arguments).get("num_classes", classes) != classes:
        scaling = None  # trained for other classes, on pictures of another kind
    return Preprocessing(normalization, scaling, source)


CROPS = ("center", "squash")  # of timm's; the third pads the image
AUTHORS: Mapping[str, Callable[[Base, str], Preprocessing | None]] = {
    "torchvision": _torchvisions,
    "timm": _timms,
}
