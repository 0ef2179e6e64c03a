"""Reading images: torchvision's layouts, folders of pictures, and tables of encoded ones."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from gatepruner.errors import DataError, listed
from gatepruner.images.examples import Track
from gatepruner.images.images import Images
from gatepruner.images.scaling import Scaling
from gatepruner.images.splits import WORDS, parquet_splits, saved_splits
from gatepruner.images.tables import read_table
from gatepruner.models import Shape

NUMBERED = re.compile(r"(\d{1,18})([-_. ]|$)")  # a name that begins with the index of a class


def load_images(
    spec: str,
    shape: Shape,
    *,
    split: str | None = None,
    resize: int | Scaling | None = None,
    limit: int | None = None,
    decode: bool = True,
    cache: str | Path | None = None,
    track: Track = iter,
) -> Images:
    """Read images from a folder or a data set on the disk; nothing is downloaded.

    Args:
        spec: `mnist:DIR`, `fashion-mnist:DIR`, `cifar10:DIR` or `cifar100:DIR` (torchvision's
            layouts), `imagefolder:DIR` (`DIR/SPLIT/CLASS/*.png`, or
            `DIR/SPLIT/INDEX-*.png` with the index of the class before the name),
            `pictures:DIR` (images without labels, at any depth of `DIR/SPLIT`), `hf:DIR` (what
            `save_to_disk` of `datasets` wrote), or `parquet:DIR` or `parquet:FILE` (encoded images
            with or without labels; the names of files say which split they belong to).
        shape: `(C, H, W)` of the network's input.
        split: `train`, `val`, `test` or another folder of `DIR`; by default `test`, or `val` if
            there is no `test`. A folder without splits is read as a whole, also as `train`.
        resize: pixels to scale the shorter side to, or another scaling, before the centre `(H, W)`
            is cropped; not for the sets of torchvision, whose images have one size.
        limit: most images to read, evenly spaced over the set.
        decode: whether to decode pictures now, if they fit in memory; otherwise some can be taken
            first, which `Images.kept` decodes.
        cache: folder in which decoded pictures are kept: they are decoded once, and read from there
            by later calls and other processes; it may be larger than memory.
        track: wraps the decoding of files, to show progress.

    Raises:
        DataError: the set is unknown, missing or empty, or its images have another size.
    """
    kind, root = located(spec)
    scaling = Scaling(resize) if isinstance(resize, int) else resize
    if scaling is not None:
        scaling.check(*shape[1:])
    images = READERS[kind](root, split, shape, scaling, limit)
    _check_channels(images)
    if cache is not None and not images.in_memory:
        images = replace(images, cache=Path(cache).expanduser())
    if not len(images):
        raise DataError(f"{images.source} has no images: expected {LAYOUTS[kind]}")
    if images.shape != shape:
        raise DataError(
            f"{spec} has images of {_size(images.shape)}: the network takes {_size(shape)}"
        )
    return images.kept(track) if decode else images


def located(spec: str) -> tuple[str, Path]:
    """The layout and the folder of a set of images, or its file.

    Raises:
        DataError: the layout is unknown, or there is no such folder or file.
    """
    kind, _, directory = spec.partition(":")
    if kind not in READERS or not directory:
        known = ", ".join(f"{name}:DIR" for name in READERS)
        hint = ""
        if Path(spec).is_dir():
            hint = f"; for the folder {spec}: imagefolder:{spec}, or without labels pictures:{spec}"
        raise DataError(f"unknown data {spec!r}: expected {known}{hint}")
    root = Path(directory).expanduser()
    if not (root.is_dir() or (kind == "parquet" and root.is_file())):
        raise DataError(f"there is no folder {root} for {spec!r}: expected {LAYOUTS[kind]}")
    return kind, root


def has_split(spec: str, split: str) -> bool:
    """Whether a set has a split: torchvision's sets have train and test, others their own.

    The images of a set without splits count as training images.
    """
    kind, _, directory = spec.partition(":")
    if kind in SETS:
        return split in ("train", "test")
    splits = SPLITS[kind](Path(directory).expanduser())
    return split in splits or (split == "train" and not splits)


def _splits(root: Path) -> list[str]:
    return [name for name in ("train", "val", "test") if (root / name).is_dir()]


def _size(shape: Shape) -> str:
    return f"{shape[0]}x{shape[1]}x{shape[2]} (channels, height, width)"


LAYOUTS = {
    "mnist": "DIR/MNIST/raw/*-ubyte, as torchvision lays it out",
    "fashion-mnist": "DIR/FashionMNIST/raw/*-ubyte, as torchvision lays it out",
    "cifar10": "DIR/cifar-10-batches-py, as torchvision lays it out",
    "cifar100": "DIR/cifar-100-python, as torchvision lays it out",
    "imagefolder": "DIR, or DIR/train, DIR/val or DIR/test, with a folder of images for each class",
    "pictures": "DIR, or DIR/train, DIR/val or DIR/test, with images at any depth",
    "hf": "DIR as save_to_disk of datasets writes it, with state.json or a folder for each split",
    "parquet": "a file, or DIR with files such as train-00000-of-00001.parquet",
}


SETS = {
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
}


def _set_reader(kind: str) -> Callable[..., Images]:
    def read(
        root: Path,
        split: str | None,
        shape: Shape,
        resize: Scaling | None,
        limit: int | None,
    ) -> Images:
        import torchvision.datasets

        split = split or "test"
        if split not in ("train", "test"):
            raise DataError(f"{kind} has no split {split!r}: expected train or test")
        if resize is not None:
            raise DataError(
                f"cannot resize {kind}: only pictures of any size can be, as in an imagefolder"
            )
        try:
            dataset = getattr(torchvision.datasets, SETS[kind])(root, train=split == "train")
        except Exception as error:  # torchvision raises many kinds for damaged files
            reason = (str(error).strip() or "damaged").splitlines()[0].rstrip(".")
            raise DataError(
                f"cannot read {kind}:{root} ({reason}): expected {LAYOUTS[kind]}"
            ) from None
        pixels = torch.as_tensor(dataset.data)
        pixels = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
        labels = torch.as_tensor(dataset.targets, dtype=torch.int64)
        source = f"{kind}:{root} {split}"
        if len(labels) != len(pixels):
            raise DataError(
                f"{source} has {len(pixels)} images and {len(labels)} labels: expected one label "
                "per image; unpack it again"
            )
        size = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
        images = Images(labels, tuple(dataset.classes), size, source, pixels.contiguous())
        return images.spread(limit)

    return read


def _read_folder(
    root: Path,
    split: str | None,
    shape: Shape,
    resize: Scaling | None,
    limit: int | None,
) -> Images:
    folder, source = _split_folder("imagefolder", root, split)
    names = sorted(
        entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != "."
    )
    if names:
        samples = [
            (file, index)
            for index, name in enumerate(names)
            for file in _image_files(folder / name, below=True)
        ]
    else:
        names, samples = _numbered(folder, source, root)
    labels = torch.tensor([label for _, label in samples], dtype=torch.int64)
    files = tuple(file for file, _ in samples)
    images = Images(labels, tuple(names), shape, source, None, files, resize)
    return images.spread(limit)


def _numbered(folder: Path, source: str, root: Path) -> tuple[list[str], list[tuple[str, int]]]:
    """The classes and the files of a folder whose file names begin with the index of a class."""
    files = _image_files(folder, below=False)
    matches = [NUMBERED.match(Path(file).stem) for file in files]
    if not files or not all(matches):
        hint = f"; to read its images without labels: pictures:{root}" if files else ""
        raise DataError(
            f"{source} has no folders of classes: expected {LAYOUTS['imagefolder']}{hint}"
        )
    numbers = [int(match[1]) for match in matches if match]
    classes = sorted(set(numbers))
    labels = {number: index for index, number in enumerate(classes)}
    pairs = zip(files, numbers, strict=True)
    return list(map(str, classes)), [(file, labels[number]) for file, number in pairs]


def _read_pictures(
    root: Path,
    split: str | None,
    shape: Shape,
    resize: Scaling | None,
    limit: int | None,
) -> Images:
    folder, source = _split_folder("pictures", root, split)
    files = tuple(sorted(_image_files(folder, below=True)))
    labels = torch.full((len(files),), -1)
    return Images(labels, (), shape, source, None, files, resize).spread(limit)


TABLES = {"hf": saved_splits, "parquet": parquet_splits}


def _table_splits(kind: str) -> Callable[[Path], list[str]]:
    return lambda root: [name for name in TABLES[kind](root) if name]


def _table_reader(kind: str) -> Callable[..., Images]:
    def read(
        root: Path,
        split: str | None,
        shape: Shape,
        resize: Scaling | None,
        limit: int | None,
    ) -> Images:
        splits = TABLES[kind](root)
        asked = split or next((name for name in ("test", "val", "") if name in splits), "test")
        asked = "" if asked == "train" and "" in splits else WORDS.get(asked, asked)
        source = f"{kind}:{root} {asked}".strip()
        if asked not in splits:
            known = listed(name for name in splits if name) or "none"
            raise DataError(
                f"{kind}:{root} has no split {asked!r}: found {known}, expected {LAYOUTS[kind]}"
            )
        table = read_table(splits[asked], source, limit)
        return Images(table.labels, table.classes, shape, source, None, table.pictures, resize)

    return read


def _image_files(folder: Path, *, below: bool) -> list[str]:
    """The image files of a folder and of those below it, in the order of `ImageFolder`.

    Hidden files and folders are left out, and a folder that links lead to again is read once.
    """
    from torchvision.datasets.folder import is_image_file

    read, files = {os.path.realpath(folder)}, list[tuple[str, str]]()
    for place, folders, names in os.walk(folder, followlinks=True):
        shown = (name for name in names if name[0] != "." and is_image_file(name))
        files += [(place, name) for name in shown]
        found = {os.path.realpath(os.path.join(place, name)): name for name in sorted(folders)}
        folders[:] = [
            name for path, name in found.items() if below and name[0] != "." and path not in read
        ]
        read.update(found)
    return [os.path.join(place, name) for place, name in sorted(files)]


def _split_folder(kind: str, root: Path, split: str | None) -> tuple[Path, str]:
    """The folder of a split, and what to call it; a folder without splits is one itself."""
    splits = _splits(root)
    asked = split or next((name for name in ("test", "val") if name in splits), None)
    if asked is None and splits and kind == "imagefolder":
        asked = "test"  # or train would be taken for a class
    if asked == "train" and not splits:
        asked = None
    if asked is None:
        return root, f"{kind}:{root}"
    if not (root / asked).is_dir():
        content = LAYOUTS[kind].rpartition(", with ")[2]
        raise DataError(
            f"{kind}:{root} has no split {asked!r}: found {listed(splits) or 'none'}, expected "
            f"{root / asked} with {content}"
        )
    return root / asked, f"{kind}:{root} {asked}"


def _check_channels(images: Images) -> None:
    """Raise a `DataError` if pictures cannot have as many channels as the network takes."""
    if images.pixels is None and images.shape[0] not in (1, 3):
        raise DataError(
            f"{images.source} has images of 1 or 3 channels: the network takes "
            f"{_size(images.shape)}"
        )


# Kinds whose pictures have any size.
PICTURES: dict[str, Callable[..., Images]] = {
    "imagefolder": _read_folder,
    "pictures": _read_pictures,
    **{kind: _table_reader(kind) for kind in TABLES},
}
SPLITS: dict[str, Callable[[Path], list[str]]] = {
    "imagefolder": _splits,
    "pictures": _splits,
    **{kind: _table_splits(kind) for kind in TABLES},
}
READERS: dict[str, Callable[..., Images]] = {
    **{kind: _set_reader(kind) for kind in SETS},
    **PICTURES,
}
