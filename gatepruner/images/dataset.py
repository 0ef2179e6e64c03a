"""A caller's data set of inputs and targets, read by a `DataLoader` where `Images` would do."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import random
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from gatepruner.errors import DataError
from gatepruner.images.examples import Examples, mixed
from gatepruner.images.task import CLASSIFICATION, Task
from gatepruner.models import Shape

CPU = torch.device("cpu")


def examples_of(
    dataset: Dataset[Any],
    *,
    task: Task = CLASSIFICATION,
    classes: Sequence[str] | int | None = None,
    workers: int = 0,
    source: str | None = None,
) -> Examples:
    """Make a map-style data set serve wherever `Images` do.

    Inputs of a floating type go into the network as they are: the data set normalises and augments
    them itself. Inputs of type uint8 are pixels, which are treated like those of `Images`. What is
    random in the data set (torch's, NumPy's or Python's generator) depends only on the seed of the
    run, the epoch and the index of the example, so a resumed run continues exactly.

    Args:
        dataset: has a length, and for every index an input `(C, H, W)` with its target, or the
            input alone.
        task: what the targets are; by default indices of classes.
        classes: names of the classes, or how many there are; by default `dataset.classes`.
        workers: processes that read examples; 0 reads them in this one.
        source: what to call the data set in messages and reports; by default its class.

    Raises:
        DataError: the data set is empty, or an example is something else.
    """
    source = source or type(dataset).__name__
    count = _length(dataset, source)
    example, labelled = _split(_seeded_item(dataset, 0, 0), source)
    named = getattr(dataset, "classes", ()) if classes is None else classes
    names = range(named) if isinstance(named, int) else named
    return DatasetExamples(
        dataset=dataset,
        indices=torch.arange(count),
        shape=_shape(example, source),
        source=source,
        classes=tuple(map(str, names)) if task.classes and labelled else (),
        task=task,
        labelled=labelled,
        prepared=example.is_floating_point(),
        workers=workers,
    )


@dataclass(frozen=True, eq=False)
class DatasetExamples(Examples):
    """See `examples_of`; `indices` `(N,)` are those of the examples in the data set."""

    dataset: Dataset[Any]
    indices: Tensor
    shape: Shape
    source: str
    workers: int = 0
    classes: tuple[str, ...] = ()
    task: Task = CLASSIFICATION
    labelled: bool = True
    prepared: bool = True
    device: torch.device = CPU
    in_memory: bool = False

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the indices and of three examples."""
        about = (self.source, self.shape, self.classes, self.task.name, self.prepared)
        digest = hashlib.sha256(repr(about).encode())
        digest.update(self.indices.numpy().tobytes())
        at = self.indices[torch.tensor([0, len(self) // 2, len(self) - 1])]
        for index in at.tolist():
            for part in default_collate([_seeded_item(self.dataset, index, 0)]):
                digest.update(torch.as_tensor(part).double().numpy().tobytes())
        return digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, indices: Tensor) -> DatasetExamples:
        return replace(self, indices=self.indices[indices])

    def to(self, device: torch.device) -> DatasetExamples:
        return replace(self, device=device)

    def batches(self, indices: Tensor, size: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        chosen = self.indices[indices].tolist()
        parts = [chosen[start : start + size] for start in range(0, len(chosen), size)]
        loader = DataLoader(
            _Seeded(self.dataset, seed, self.labelled),
            batch_sampler=parts,
            num_workers=self.workers if parts else 0,
            worker_init_fn=_ignore_interrupts,
            generator=torch.Generator(),  # not the caller's
        )
        for inputs, targets in loader:
            self._check(inputs, targets)
            targets = targets.float() if targets.is_floating_point() else targets
            inputs = inputs.float() if self.prepared else inputs
            yield (
                inputs.to(self.device, non_blocking=True),
                targets.to(self.device, non_blocking=True),
            )

    def _check(self, inputs: Tensor, targets: Tensor) -> None:
        """Raise a `DataError` if a batch is not like the first example, or has other classes."""
        if tuple(inputs.shape[1:]) != self.shape or inputs.is_floating_point() != self.prepared:
            raise DataError(
                f"{self.source} gives an input of {inputs.dtype} and shape "
                f"{tuple(inputs.shape[1:])}, and first gave one of shape {self.shape}: expected "
                "equal ones"
            )
        if self.classes and (targets.ndim != 1 or targets.is_floating_point()):
            raise DataError(
                f"{self.source} gives targets of {targets.dtype} and shape "
                f"{tuple(targets.shape[1:])}: expected the index of a class; another task needs "
                "its own Task"
            )
        if self.classes and not 0 <= int(targets.min()) <= int(targets.max()) < len(self.classes):
            raise DataError(
                f"{self.source} gives targets from {int(targets.min())} to {int(targets.max())}: "
                f"expected 0 to {len(self.classes) - 1} for {len(self.classes)} classes"
            )


class _Seeded(Dataset[Any]):
    """Examples with random numbers that depend on the seed and the index alone."""

    def __init__(self, dataset: Dataset[Any], seed: int, labelled: bool) -> None:
        self.dataset, self.seed, self.labelled = dataset, seed, labelled

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        example = _seeded_item(self.dataset, index, self.seed)
        return (example[0], example[1]) if self.labelled else (_split(example, "")[0], -1)


def _seeded_item(dataset: Dataset[Any], index: int, seed: int) -> Any:
    with _random_numbers(mixed(seed, index)):
        return dataset[index]


@contextlib.contextmanager
def _random_numbers(seed: int) -> Iterator[None]:
    """Random numbers of a seed, and afterwards those that would have come before."""
    pythons, numpys, torchs = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # leaves those of other devices alone
    try:
        yield
    finally:
        random.setstate(pythons)
        np.random.set_state(numpys)
        torch.set_rng_state(torchs)


def _ignore_interrupts(worker: int) -> None:
    """Leave Ctrl-C to the process that learns, which finishes its step first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _length(dataset: Any, source: str) -> int:
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise DataError(
            f"{source} has no length or no index: expected a map-style data set, which has "
            "__len__ and __getitem__"
        )
    if not len(dataset):
        raise DataError(f"{source} has no examples: expected at least one")
    return len(dataset)


def _split(example: Any, source: str) -> tuple[Tensor, bool]:
    """The input of an example, and whether it has a target."""
    pair = isinstance(example, (tuple, list)) and len(example) == 2
    given = example[0] if pair else example
    if isinstance(given, Tensor):
        return given, pair
    what = type(given).__name__
    if isinstance(example, (tuple, list)) and not pair:
        what = f"{type(example).__name__} of {len(example)}"
    raise DataError(
        f"{source} gives {what}: expected a pair of input and target, or only the input, a tensor "
        "(C, H, W); add a transform such as torchvision's ToTensor"
    )


def _shape(example: Tensor, source: str) -> Shape:
    usable = example.is_floating_point() or example.dtype == torch.uint8
    if example.ndim != 3 or not usable:
        raise DataError(
            f"{source} gives an input of {example.dtype} and shape {tuple(example.shape)}: "
            "expected (C, H, W) of a floating type, or of uint8 for pixels"
        )
    return example.shape[0], example.shape[1], example.shape[2]
