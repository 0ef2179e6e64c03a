"""Folders of pictures, and images in memory, as people have them.

A folder has one picture in each class; the network has ten classes, with names or without. What the
labels have to be is written down here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from cases.case import RIGHT, WRONG, Case, Row

import gatepruner

KIND = "folders of pictures, and images in memory"
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TEN = tuple("abcdefghij")
MOVED = ["truck", "airplane", *NAMES[2:9], "automobile"]
# Folders, whether the network knows the names of its classes, and their labels; None is refused.
FOLDERS: dict[str, tuple[Sequence[str], bool, list[int] | None]] = {
    "the names of the network": (NAMES, True, list(range(10))),
    "the names in another order": (MOVED, True, [0, 1, *range(2, 10)]),
    "some of the names": (["cat", "dog"], True, [3, 5]),
    "one of the names": (["ship"], True, [8]),
    "capital letters": (["Cat", "DOG"], True, [3, 5]),
    "numbers": (["3", "7"], False, [3, 7]),
    "numbers with zeros in front": (["03", "07"], False, [3, 7]),
    "numbers, of a network with names": (["3", "7"], True, [3, 7]),
    "numbers and names": (["3_cat", "5_dog"], True, [3, 5]),
    "numbers that contradict the names": (["3_dog", "5_cat"], True, [5, 3]),
    "a number beyond the classes": (["12"], False, None),
    "a number below 0": (["-1", "2"], False, None),
    "ten other names, by order": (TEN, False, list(range(10))),
    "ten other names, of a network with names": (TEN, True, list(range(10))),
    "eleven names": (tuple("abcdefghijk"), False, None),
    "one unknown name": (["x"], False, None),
    "one unknown name of two": (["cat", "zebra"], True, None),
    "a class without pictures": (["cat", "dog", "empty:ship"], True, [3, 5]),
}


def pictures(root: Path, classes: Sequence[str]) -> None:
    """A folder with one picture in each class; none where the name says so."""
    from PIL import Image

    for number, name in enumerate(classes):
        folder = root / name.removeprefix("empty:")
        folder.mkdir(parents=True)
        if not name.startswith("empty:"):
            Image.new("RGB", (32, 32), (9 * number, 1, 2)).save(folder / "1.png")


def network(named: bool) -> gatepruner.Checkpoint:
    """A network with ten classes."""
    whole = gatepruner.Network.named("resnet8")
    notes = {"classes": list(NAMES)} if named else {}
    return gatepruner.Checkpoint(whole, whole.initial_weights(0), notes)


def labelled(classes: Sequence[str], named: bool, expected: list[int] | None) -> Row:
    """The labels of a folder of pictures, as the network counts its classes."""
    pictures(Path("data"), classes)
    images = gatepruner.load_images("imagefolder:data", (3, 32, 32))
    mapped, how = gatepruner.map_classes(images, network(named))
    labels = mapped.labels.tolist()
    right = expected is None or labels == expected
    return {"outcome": RIGHT if right else WRONG, "text": how if right else f"{labels}, {how}"}


def unlabelled() -> Row:
    """Pictures in a nest of folders."""
    pictures(Path("data"), ["a/b", "c"])
    images = gatepruner.load_images("pictures:data", (3, 32, 32))
    colours = sorted(images.pixels[:, 0, 0, 0].tolist())
    return {"outcome": RIGHT if colours == [0, 9] and len(images) == 2 else WRONG}


def held(change: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]) -> Row:
    """Images in memory, measured."""
    pixels = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8)
    pixels, labels = change(pixels, torch.arange(20) % 10)
    images = gatepruner.Images(labels, NAMES, (3, 32, 32), "here", pixels)
    checkpoint = network(False)
    found = gatepruner.accuracy(checkpoint, images, device="cpu").accuracy
    mean, std = (torch.tensor([0.0]), torch.tensor([1.0]))
    if normalize := checkpoint.notes.get("normalize"):
        mean, std = torch.tensor(normalize["mean"]), torch.tensor(normalize["std"])
    x = (pixels.float() / 255 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    with torch.no_grad():
        expected = (checkpoint.build()(x).argmax(1) == labels).float().mean().item()
    right = abs(found - expected) < 1e-6
    return {"outcome": RIGHT if right else WRONG, "text": f"{found:.2f}, by hand {expected:.2f}"}


MEMORY = {
    "float pixels": lambda pixels, labels: (pixels.float() / 255, labels),
    "channels last": lambda pixels, labels: (pixels.permute(0, 2, 3, 1), labels),
    "fewer labels than images": lambda pixels, labels: (pixels, labels[:-1]),
    "a label beyond the classes": lambda pixels, labels: (pixels, labels + 5),
    "float labels": lambda pixels, labels: (pixels, labels.float()),
    "one-hot labels": lambda pixels, labels: (pixels, torch.eye(10)[labels]),
    "pixels of int64": lambda pixels, labels: (pixels.long(), labels),
}


def _cases() -> Iterator[Case]:
    for name, (classes, named, expected) in FOLDERS.items():
        work = functools.partial(labelled, classes, named, expected)
        yield Case(KIND, f"class folders: {name}", work, refusable=expected is None)
    yield Case(KIND, "a nest of pictures without labels", unlabelled)
    yield Case(KIND, "bytes", functools.partial(held, lambda pixels, labels: (pixels, labels)))
    for name, change in MEMORY.items():
        yield Case(KIND, name, functools.partial(held, change), refusable=True)


CASES = tuple(_cases())
