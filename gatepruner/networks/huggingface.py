"""Image classifiers of transformers, constructed from checked options.

Only transformers' own classes are constructed, and only with options that their own configurations
have: no code, no path and no address gets there. See https://huggingface.co/docs/transformers.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gatepruner.errors import ArchitectureError, listed, nearest

INSTALL = "pip install 'gatepruner[transformers]'"
MOST_WEIGHTS = 2**33
IMAGES = "pixel_values"
CLASSES, CLASS, VISION = "num_classes", "architecture", "vision_config"
# Classifiers that are none of images alone, and timm's, whose options would reach it unchecked.
LEFT_OUT = ("siglip2", "shieldgemma2", "timm_wrapper")
# Options of networks that return feature maps, without use for a classifier.
UNUSED = frozenset(("out_features", "out_indices", "_out_features", "_out_indices", "num_labels"))


@dataclass(frozen=True)
class Restored:
    """A classifier with the weights of a file, as transformers itself reads them.

    Attributes:
        module: the classifier in evaluation mode.
        missing: keys that the file lacks.
        misshapen: keys, each with both shapes.
        unused: keys of the file that the classifier does not use.
    """

    module: nn.Module
    missing: tuple[str, ...]
    misshapen: tuple[str, ...]
    unused: tuple[str, ...]


def options_of(name: str) -> frozenset[str]:
    """The options that the configuration of a type of model has of its own.

    Those of the part that sees, where there is another for text, are written `vision_config.KEY`.

    Raises:
        ArchitectureError: transformers is missing, or has no image classifier of this type.
    """
    kind = _configuration_class(name)
    vision = getattr(kind, "sub_configs", {}).get(VISION)
    parts = {f"{VISION}.{key}" for key in _own_options(vision)} if vision else set()
    return frozenset(_own_options(kind) | parts)


def construct_classifier(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """A classifier with fresh weights on torch's default device.

    Args:
        name: the type of model, such as `vit`.
        arguments: options, `num_classes`, and as `architecture` the class if there are several.

    Raises:
        ArchitectureError: transformers is missing or does not know the type, an option or a value.
    """
    from transformers import AutoModelForImageClassification

    with quietly(), _refusing(name):
        config = configuration(name, arguments)
        module: nn.Module = AutoModelForImageClassification.from_config(
            config, trust_remote_code=False
        )
        if module.main_input_name != IMAGES:
            raise ArchitectureError(
                f"transformers:{name} takes {module.main_input_name}: expected a model of {IMAGES}"
            )
    count = sum(parameter.numel() for parameter in module.parameters())
    if count > MOST_WEIGHTS:
        raise ArchitectureError(
            f"transformers:{name} would have {count:,} weights: expected at most {MOST_WEIGHTS:,}"
        )
    return module


def restored(name: str, arguments: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Restored:
    """A classifier with weights in single precision, whose names may be of an earlier version.

    transformers' own loader translates the names. It is given tensors, no place to look for any.

    Args:
        name: the type of model, such as `vit`.
        arguments: as for `construct_classifier`.
        weights: tensors by the keys of the file.

    Raises:
        ArchitectureError: as `construct_classifier` does.
    """
    with torch.device("meta"):
        kind = type(construct_classifier(name, arguments))
    with quietly(), _refusing(name):
        module, found = kind.from_pretrained(  # type: ignore[attr-defined]
            None,
            config=configuration(name, arguments),
            state_dict=dict(weights),
            dtype=torch.float32,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    return Restored(
        module,
        tuple(sorted(found["missing_keys"])),
        tuple(
            f"{key} is {tuple(theirs)}, not {tuple(ours)}"
            for key, theirs, ours in sorted(found["mismatched_keys"])
        ),
        tuple(sorted(found["unexpected_keys"])),
    )


def _classifiers() -> dict[str, tuple[str, ...]]:
    """The classes of transformers' own image classifiers by type of model."""
    try:
        from transformers.models.auto.modeling_auto import (
            MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as NAMES,
        )
    except ImportError as error:
        raise ArchitectureError(f"a model of transformers needs it: {INSTALL}") from error
    pairs = {kind: (one,) if isinstance(one, str) else tuple(one) for kind, one in NAMES.items()}
    return {kind: classes for kind, classes in pairs.items() if kind not in LEFT_OUT}


def class_of(name: str, architecture: str | None = None) -> str:
    """The name of the class of a type of model.

    Args:
        name: the type of model, such as `vit`.
        architecture: the class, if the type has several.

    Raises:
        ArchitectureError: transformers has no such class for image classification.
    """
    known = _classifiers()
    if name not in known:
        raise ArchitectureError(
            f"transformers has no image classifier of type {name!r}{nearest(name, list(known))}"
        )
    if architecture is not None and architecture not in known[name]:
        raise ArchitectureError(
            f"{architecture!r} is no image classifier of type {name!r} in transformers: expected "
            f"{listed(known[name])}"
        )
    return architecture or known[name][0]


def _configuration_class(name: str) -> Any:
    class_of(name)
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING[name]


def _own_options(kind: Any) -> set[str]:
    """The options of a class of configurations that not every configuration has."""
    from transformers import PretrainedConfig

    general, own = (
        {field.name for field in dataclasses.fields(c)} for c in (PretrainedConfig, kind)
    )
    parts = getattr(kind, "sub_configs", {}).keys()
    named = {alias for alias, key in getattr(kind, "attribute_map", {}).items() if key in own}
    return (own | named) - general - parts - UNUSED


def configuration(name: str, arguments: Mapping[str, Any]) -> Any:
    """The configuration of a classifier; the arguments are those of `construct_classifier`.

    Raises:
        ArchitectureError: transformers does not know the type or an option.
    """
    kind, known = _configuration_class(name), options_of(name)
    options = {key: value for key, value in arguments.items() if key not in (CLASSES, CLASS)}
    unknown = sorted(options.keys() - known)
    if unknown:
        raise ArchitectureError(
            f"transformers:{name} has no option {listed(unknown)}"
            f"{nearest(unknown[0], sorted(known))}: expected those of {kind.__name__}"
        )
    given = {key: _lists(value) for key, value in options.items() if "." not in key}
    inner = {key.partition(".")[2]: _lists(value) for key, value in options.items() if "." in key}
    if inner:
        given[VISION] = inner
    if CLASSES in arguments:
        given["num_labels"] = arguments[CLASSES]
    return kind(architectures=[class_of(name, arguments.get(CLASS))], **given)


def _lists(value: Any) -> Any:
    """Lists for tuples, as JSON has them."""
    return [_lists(item) for item in value] if isinstance(value, tuple) else value


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep transformers from writing to the terminal."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Turn what transformers raises for options that do not fit together into one error."""
    try:
        yield
    except (ArchitectureError, NotImplementedError):  # the latter of tensors without data
        raise
    except Exception as error:  # of many kinds: its classes check little themselves
        reason = " ".join(str(error).split())[:200] or "no reason given"
        raise ArchitectureError(
            f"transformers:{name} cannot be constructed from its configuration "
            f"({type(error).__name__}: {reason})"
        ) from None
