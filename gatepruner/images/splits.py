"""The files of sets that are tables, and which of them belong to which split."""

from __future__ import annotations

import os
import re
from pathlib import Path

from gatepruner.documents import parsed, text_of
from gatepruner.errors import DataError, listed

STATE = "state.json"  # of every set that `datasets` has saved
WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def parquet_splits(root: Path) -> dict[str, list[Path]]:
    """The files of every split of a file or folder; `""` is the split of a set without any.

    A word of its name, or of its folder's, says which split a file belongs to, as in
    `train-00000-of-00002.parquet`.

    Raises:
        DataError: the files of a split lie in several folders, which are several sets.
    """
    if root.is_file():
        return {"": [root]}
    splits: dict[str, list[Path]] = {}
    for file in sorted(root.rglob("*.parquet")):
        inner = file.relative_to(root)
        if not any(part.startswith(".") for part in inner.parts):
            splits.setdefault(_split_in(inner), []).append(file)
    if len(splits) > 1:
        splits.pop("", None)
    for split, files in splits.items():
        homes = sorted({str(file.parent) for file in files})
        if len(homes) > 1:
            raise DataError(
                f"parquet:{root} has files of the split {split or 'train'!r} in several folders "
                f"({listed(homes, 4)}): choose one of the sets, parquet:{homes[0]}"
            )
    return splits


def saved_splits(root: Path) -> dict[str, list[Path]]:
    """The files of every split that `datasets` saved in a folder; `""` as for parquet.

    Raises:
        DataError: the files that a set names are not beside it.
    """
    if (root / STATE).exists():
        return {"": _saved_files(root)}
    folders = [file.parent for file in sorted(root.glob(f"*/{STATE}"))]
    if not folders:
        return parquet_splits(root)  # a copy of a set of the Hub
    return {WORDS.get(folder.name, folder.name): _saved_files(folder) for folder in folders}


def _split_in(file: Path) -> str:
    """The split that a path names, its last parts first."""
    for part in reversed(file.parts):
        words = re.split(r"[-_. ]", part.lower())
        split = next((WORDS[word] for word in words if word in WORDS), None)
        if split is not None:
            return split
    return ""


def _saved_files(folder: Path) -> list[Path]:
    """The files of a set, in their order."""
    file = folder / STATE
    state = parsed(text_of(file, kind=DataError), str(file), DataError)
    try:
        names = [one["filename"] for one in state["_data_files"]]
        if state.get("_indices_data_files"):
            raise DataError(
                f"{folder} has rows in another order than its files: call flatten_indices() and "
                "save it again"
            )
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(f"{file} is damaged ({type(error).__name__}: {error})") from None
    absent = [
        str(name)
        for name in names
        if not isinstance(name, str) or Path(name).name != name or not os.path.isfile(folder / name)
    ]
    if absent:
        raise DataError(f"{file} names {listed(absent)}: expected files beside it")
    return [folder / name for name in names]
