"""Caches in an author's code (`functools.lru_cache`), which must keep no tensor without data.

A function may keep a table of positions for the next call. If it was made in a dry run, the
author's own module would compute with it.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn


def caches_of(module: nn.Module) -> list[Any]:
    """The caches of functions and methods that belong to the classes of a module's parts."""
    kinds: dict[Any, None] = dict.fromkeys(type(part) for part in module.modules())
    return list(dict.fromkeys(cache for kind in kinds for cache in _of_class(kind)))


@contextlib.contextmanager
def emptied(caches: Sequence[Any]) -> Iterator[None]:
    """Empty caches that something is added to meanwhile."""
    misses = [cache.cache_info().misses for cache in caches]
    try:
        yield
    finally:
        for cache, before in zip(caches, misses, strict=True):
            if cache.cache_info().misses > before:
                cache.cache_clear()


@functools.lru_cache(maxsize=1024)
def _of_class(kind: Any) -> tuple[Any, ...]:
    """The caches of a class, and those in the file that defines it."""
    if kind.__module__.startswith("torch."):
        return ()
    values = list(vars(sys.modules.get(kind.__module__, kind)).values())
    for each in kind.__mro__:
        if not each.__module__.startswith("torch.") and each is not object:
            values += vars(each).values()
    return tuple(cache for value in values for cache in _in(value))


def _in(value: Any) -> Iterator[Any]:
    """The cache of a function, also if another one is wrapped around it."""
    function = getattr(value, "__func__", value)
    if isinstance(function, functools._lru_cache_wrapper):
        yield function
    for cell in getattr(function, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # of an empty cell
            if isinstance(cell.cell_contents, functools._lru_cache_wrapper):
                yield cell.cell_contents
