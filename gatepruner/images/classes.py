"""The classes of images and those of a network: found by name, by number, or by their order."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import torch

from gatepruner.documents import text_of
from gatepruner.errors import DataError, listed, nearest
from gatepruner.images.images import Images
from gatepruner.images.readers import NUMBERED
from gatepruner.networks.onnx_file import Subject

NAMED = ("imagefolder", "hf", "parquet")  # kinds of data with classes of their own
IMAGENET_CLASSES = 1000
SYNSET = re.compile(r"(n\d{8})\b[\s,:]*(.*)")  # a WordNet id, and perhaps names after it
# What other lists than torchvision's call these classes, as they call a crane and a swimsuit.
OTHERS = {"n02012849": "crane", "n03710721": "maillot"}
EXACT = "="  # before a name as it is written; no name without differences has it


def map_classes(
    images: Images, checkpoint: Subject, classes: Sequence[str] | Path = ()
) -> tuple[Images, str]:
    """Map the labels of images to the network's classes, and say how these were found.

    A class of the images is the network's class of the same name; for ImageNet's thousand classes,
    WordNet ids are names, too. If the names do not match, the number that a name begins with is the
    index of the class. If there is no such number either, the classes are taken in their order,
    provided that there are as many as the network has.

    Args:
        images: labelled images, perhaps of some of the classes only.
        checkpoint: a network; its notes may contain the names of its classes.
        classes: names of the network's classes in the order of its logits, or a text file with
            one a line; they replace the recorded ones.

    Returns:
        The images with the network's classes, and in words how these were found.

    Raises:
        DataError: the classes of the images cannot be mapped to those of the network.
    """
    own, count = images.classes, checkpoint.network.num_classes
    known = _known(checkpoint, classes)
    ways: tuple[Callable[[], tuple[list[int], str] | None], ...] = (
        lambda: _by_name(own, known),
        lambda: _by_number(own, count),
        lambda: _by_order(own, known, count),
    )
    found = next((way for way in (make() for make in ways) if way is not None), None)
    if found is None:
        raise DataError(_refusal(images, checkpoint, known), classes="FILE")
    indices, how = found
    called = dict(zip(indices, own, strict=True))
    shown = [known[at] if known else called.get(at, str(at)) for at in range(count)]
    labels = torch.tensor(indices, dtype=torch.int64)[images.labels]
    return replace(images, labels=labels, classes=tuple(shown)), how


def _known(checkpoint: Subject, given: Sequence[str] | Path) -> Sequence[str]:
    """The names of a network's classes, as far as they are known."""
    names = read_classes(given) if isinstance(given, Path) else given
    network = checkpoint.network
    if names and len(names) != network.num_classes:
        raise DataError(
            f"expected {network.num_classes} names for the classes of {network}, got {len(names)}"
        )
    return names or class_names(checkpoint)


def class_names(checkpoint: Subject) -> list[str]:
    """Names of a network's classes in the order of its logits; none if they are not known.

    They are those that the checkpoint records, or ImageNet's if there are a thousand.
    """
    classes = checkpoint.network.num_classes
    recorded = list(map(str, checkpoint.notes.get("classes", ())))
    if len(recorded) == classes:
        return recorded
    return list(_imagenet()) if classes == IMAGENET_CLASSES else []


def read_classes(file: Path) -> tuple[str, ...]:
    """The names of classes in a text file, one a line.

    Raises:
        DataError: the file cannot be read, or is empty.
    """
    lines = text_of(file, kind=DataError).splitlines()
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise DataError(f"{file} has no names of classes: expected one a line")
    return names


@functools.cache
def _imagenet() -> tuple[str, ...]:
    """ImageNet's classes: WordNet id and name of each (Deng et al., 2009)."""
    from torchvision.models import ResNet18_Weights

    ids = (files("gatepruner.images") / "imagenet.txt").read_text().split()
    names = ResNet18_Weights.DEFAULT.meta["categories"]
    return tuple(f"{one} {name}" for one, name in zip(ids, names, strict=True))


def _by_name(own: Sequence[str], known: Sequence[str]) -> tuple[list[int], str] | None:
    if list(own) == list(known):  # in which two may be equal
        return list(range(len(own))), "by name"
    found = _found(own, known)
    indices = [index for one in found if len(one) == 1 for index in one]
    return (indices, "by name") if len(set(indices)) == len(own) else None


def _found(own: Sequence[str], known: Sequence[str]) -> list[set[int]]:
    """The classes of a network that each name means: several if they share it, and no other name.

    A class that another name means for certain is none of them.
    """
    table = _table(known)
    found = [_meant(name, table) or _meant(_rest(name), table) for name in own]
    certain = {index for indices in found if len(indices) == 1 for index in indices}
    return [indices - certain if len(indices) > 1 else indices for indices in found]


def _meant(name: str, table: Mapping[str, set[int]]) -> set[int]:
    """The classes of exactly this name, or else of one that differs in case or joints."""
    return table.get(EXACT + name, set()) or table.get(_plain(name), set())


def _table(known: Sequence[str]) -> Mapping[str, set[int]]:
    """The indices of every name; a WordNet id and what follows it are names, too."""
    table: dict[str, set[int]] = {}
    for index, name in enumerate(known):
        names = [name]
        if match := SYNSET.fullmatch(name):
            names += [match[1], match[2], match[2].partition(",")[0]]
            names += [OTHERS[match[1]]] if match[1] in OTHERS else []
        for one in names:
            for key in (EXACT + one, _plain(one)):
                table.setdefault(key, set()).add(index)
    return table


def _plain(name: str) -> str:
    """A name without the differences of case, of composed letters and of what joins its words."""
    return re.sub(r"[-_ .]+", " ", unicodedata.normalize("NFC", name)).strip().lower()


def _rest(name: str) -> str:
    """What follows the number that a name begins with; the name where it begins with none."""
    match = NUMBERED.match(name)
    return name[match.end() :] if match else name


def _by_number(own: Sequence[str], classes: int) -> tuple[list[int], str] | None:
    matches = [NUMBERED.match(name) for name in own]
    numbers = [int(match[1]) for match in matches if match]
    if len(numbers) < len(own) or len(set(numbers)) < len(own) or max(numbers) >= classes:
        return None
    if len(own) == classes and numbers != sorted(numbers):
        raise DataError(
            f"cannot tell which class is which: the alphabetical order of {listed(own, 4)}, which "
            "torchvision's ImageFolder takes, is not that of the numbers; give the names in the "
            "network's order",
            classes="FILE",
        )
    return numbers, "by the number before their names"


def _by_order(
    own: Sequence[str], known: Sequence[str], classes: int
) -> tuple[list[int], str] | None:
    table = _table(known)
    meant = [table.get(_plain(name), {index}) for index, name in enumerate(own)]
    moved = any(index not in indices for index, indices in enumerate(meant))
    if len(own) != classes or moved:
        return None
    if not known:
        return list(range(classes)), "by mere order: the network's classes have no names"
    pairs = [f"{one} as {other}" for one, other in zip(own, known, strict=True)]
    return list(range(classes)), f"by mere order, {listed(pairs, 3)}"


def _refusal(images: Images, checkpoint: Subject, known: Sequence[str]) -> str:
    """Why the classes of images are none of the network's."""
    own, network = images.classes, checkpoint.network
    if not known:
        return (
            f"{images.source} has {len(own)} classes: {network} has {network.num_classes}, whose "
            "names are not known; use the images without labels, pictures:DIR, or give the names "
            "in the network's order"
        )
    found = dict(zip(own, _found(own, known), strict=True))
    shared = [
        f"{name} ({listed(map(str, sorted(at)))})" for name, at in found.items() if len(at) > 1
    ]
    if shared:
        return (
            f"{images.source} has names that several classes of {network} share: "
            f"{listed(shared)}; put the number of the class or its WordNet id in place of each"
        )
    foreign = [name for name, indices in found.items() if not indices]
    near = nearest(foreign[0], known) if len(foreign) == 1 else ""
    return (
        f"{images.source} has {len(own)} classes, of which {network} does not know "
        f"{listed(foreign) or 'which is which'}{near}: rename them, use the images "
        "without labels, pictures:DIR, or give the names of the network's classes in its order"
    )
