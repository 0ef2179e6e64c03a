"""Words that the shell completes where the set of them is open."""

from __future__ import annotations

from pathlib import Path

from gatepruner.pruning.criteria import CRITERIA

KINDS = (
    *("imagefolder:", "pictures:", "hf:", "parquet:"),
    *("mnist:", "fashion-mnist:", "cifar10:", "cifar100:"),
)


def device_words(incomplete: str) -> list[str]:
    """Devices by name."""
    return [word for word in ("auto", "cpu", "cuda", "mps") if word.startswith(incomplete)]


def data_words(incomplete: str) -> list[str]:
    """Kinds of data, and after the colon folders."""
    kind, colon, start = incomplete.partition(":")
    if not colon:
        return [word for word in KINDS if word.startswith(incomplete)]
    folder = Path(start).expanduser()
    parent = folder if start.endswith("/") or not start else folder.parent
    there = sorted(parent.iterdir()) if parent.is_dir() else []
    names = [str(path) for path in there if path.is_dir()]
    return [f"{kind}:{name}" for name in names if name.startswith(str(folder).removesuffix("."))]


def criterion_words(incomplete: str) -> list[str]:
    """Criteria; after a comma the next one."""
    earlier, comma, last = incomplete.rpartition(",")
    return [f"{earlier}{comma}{word}" for word in CRITERIA if word.startswith(last)]
