"""State dicts in files of others: where they lie, and which of their tensors can be used.

A file may hold several: the trained weights, their running average (EMA), a teacher. Each is known
by its place, the keys that lead to it, such as `state_dict_ema` or `checkpoint.model`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn

from gatepruner.errors import CheckpointError
from gatepruner.files.stand_ins import StandIn
from gatepruner.files.unpickling import LARGEST
from gatepruner.networks.weights import Unusable

# Places in the order in which they are preferred; averaged weights first, for they are better.
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "model_averaged", "ema")
PLAIN = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights")
COPIES = ("teacher", "student", "teacher_model", "student_model", "momentum_encoder", "target")
WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# Tensors that profilers, losses and wrappers leave in a state dict; no network computes with them.
BESIDE = re.compile(
    r"(^|\.)(total_ops|total_params|n_averaged)$|^(loss|loss_fn|loss_func|criterion)\."
)
NUMPY = {"f2": torch.float16, "f4": torch.float32, "f8": torch.float64, "i8": torch.int64}
COUNTER = "num_batches_tracked"  # of batch norm; missing in files of PyTorch before 0.4.1
DEEPEST, MOST = 64, 200_000  # nested values in a file, and all of them
LONGEST = 500  # letters of a place, or of a key


def state_dicts(content: Any) -> dict[str, dict[str, Tensor]]:
    """The tensors in a file by their place, preferred places first; a bare state dict is at `""`.

    The tensors of a pickled module have the keys that its state dict would have. Arrays of numpy
    are tensors in a file that has no others.

    Raises:
        CheckpointError: values are nested deeper, or are more, than in any file of weights.
    """
    found = _dicts(content, lambda value: value if isinstance(value, Tensor) else None)
    found = found or _dicts(content, array)
    return dict(sorted(found.items(), key=lambda item: rank(item[0])))


def _dicts(content: Any, tensor_of: Callable[[Any], Tensor | None]) -> dict[str, dict[str, Tensor]]:
    """The tensors in a file by their place; the function tells what is one."""
    found: dict[str, dict[str, Tensor]] = {}
    copied = 0
    for count, (place, key, value) in enumerate(_values(content, "", 0)):
        if count > MOST:
            raise CheckpointError(f"holds more than {MOST:,} values: expected weights")
        tensor = tensor_of(value)
        if tensor is None:
            continue
        copied += tensor.nbytes if tensor is not value else 0
        if copied > LARGEST:
            raise CheckpointError("has arrays that share their values: expected tensors")
        plain = type(tensor) in (Tensor, nn.Parameter)  # a file may give it attributes
        tensor = Tensor.detach(tensor) if plain else tensor
        place_of = found.setdefault(place, {})
        same = key not in place_of or place_of[key] is tensor
        place_of[key] = tensor if same else Unusable.of("given twice", tuple(tensor.shape))
    return found


def array(value: Any) -> Tensor | None:
    """The tensor of the same numbers as the numpy array of a stand-in; `None` if it is of none."""
    match value:
        case StandIn(state=(_, tuple(shape), StandIn() as dtype, fortran, bytes(data))):
            kind = _little_endian(dtype)
            sides = len(shape) <= DEEPEST and all(type(side) is int and side >= 0 for side in shape)
        case _:
            return None
    if kind not in NUMPY or not sides or math.prod(shape) * NUMPY[kind].itemsize != len(data):
        return None
    flat = torch.frombuffer(bytearray(data), dtype=NUMPY[kind]) if data else torch.empty(0)
    return (
        flat.reshape(shape[::-1]).permute(*range(len(shape))[::-1])
        if fortran
        else flat.reshape(shape)
    )


def _little_endian(dtype: StandIn) -> str:
    """What numpy calls a type of numbers of several bytes, the lowest first; empty for others."""
    match dtype:
        case StandIn(arguments=(str(kind), *_), state=(_, "<", *_)):
            return kind
    return ""


def pickled_modules(content: Any) -> dict[str, dict[str, StandIn]]:
    """The parts of the pickled modules in a file, by their place and path without wrappers."""
    found: dict[str, dict[str, StandIn]] = {}
    for place, path, value in _values(content, "", 0):
        if _module_of(value) is not None:
            found.setdefault(place, {})[_without_wrappers(path)] = value
    return found


def rank(place: str) -> int:
    """The position of a place among those that are preferred."""
    order = [*AVERAGED, "", *PLAIN]
    ranks = [order.index(word) for word in place.split(".") if word in order]
    return min(ranks, default=len(order))


def is_averaged(place: str) -> bool:
    """Whether a place holds averaged weights."""
    return not set(AVERAGED).isdisjoint(place.split("."))


def is_copy(place: str) -> bool:
    """Whether a place holds another state of a network that the file also has."""
    return not {*AVERAGED, *COPIES}.isdisjoint(place.split("."))


def is_usual(place: str) -> bool:
    """Whether a place is where weights usually are."""
    return rank(place) < rank("?")


def _values(value: Any, place: str, depth: int) -> Iterator[tuple[str, str, Any]]:
    """Place, key and value of all tensors and stand-ins; `None` for every other value."""
    _refuse_deep(depth, place)
    module = _module_of(value)
    if module is not None:
        for key, part in _module_values(module, "", depth):
            yield place, key, part
        return
    for key, item in _items(value):
        yield place, key, item if isinstance(item, (Tensor, StandIn)) else None
        if not isinstance(item, Tensor):
            yield from _values(item, f"{place}.{key}" if place else key, depth + 1)


def _refuse_deep(depth: int, place: str) -> None:
    """Raise a `CheckpointError` if no weights can be so deep in a file."""
    if depth > DEEPEST or len(place) > LONGEST:
        raise CheckpointError(
            f"is nested more than {DEEPEST} levels deep, or has names of more than {LONGEST} "
            "letters: expected weights"
        )


def word(key: Any) -> str:
    """A key of a dictionary as text; of a key that no weight has, only its type."""
    plain = key is None or type(key) in (str, int, float, bool)
    return str(key)[:LONGEST] if plain else f"({type(key).__name__})"


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """The values in a container or a stand-in, by name."""
    if isinstance(value, StandIn):
        for part in (*value.arguments, value.state, value.entries, value.elements):
            if isinstance(part, (dict, tuple)) or part is value.elements:
                yield from _items(part)
    elif isinstance(value, dict):
        yield from ((word(key), item) for key, item in value.items())
    elif isinstance(value, (list, tuple)):
        yield from ((str(index), item) for index, item in enumerate(value))


def _module_of(value: Any) -> dict[Any, Any] | None:
    """The attributes of a pickled module, which a graph module is made from."""
    state = value.state if isinstance(value, StandIn) else None
    if is_built(value):
        state = next(iter(value.arguments), None)
    return state if isinstance(state, dict) and isinstance(state.get("_modules"), dict) else None


def is_built(value: Any) -> bool:
    """Whether a value is a pickled graph module, as networks are that gatepruner has built."""
    return isinstance(value, StandIn) and value.name.endswith(".reduce_graph_module")


def has_built(content: Any) -> bool:
    """Whether a file has a pickled graph module."""
    return is_built(content) or any(is_built(value) for _, _, value in _values(content, "", 0))


def _module_values(state: Mapping[Any, Any], prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    """The tensors in the state dict of a pickled module, and the modules in it."""
    _refuse_deep(depth, prefix)
    passing = state.get("_non_persistent_buffers_set")
    for kind in ("_parameters", "_buffers"):
        own = state.get(kind)
        for name, tensor in own.items() if isinstance(own, dict) else ():
            kept = kind == "_parameters" or not isinstance(passing, set) or name not in passing
            yield f"{prefix}{word(name)}", tensor if isinstance(tensor, Tensor) and kept else None
    for name, child in state["_modules"].items():
        module = _module_of(child)
        yield f"{prefix}{word(name)}", child
        if module is not None:
            yield from _module_values(module, f"{prefix}{word(name)}.", depth + 1)


def unwrapped(state: Mapping[str, Tensor], known: Set[str] = frozenset()) -> dict[str, Tensor]:
    """A state dict without the names of wrappers in its keys, wherever in them.

    Args:
        state: tensors by key.
        known: keys of the network, if known, in which nothing is taken for a wrapper.
    """
    if known and known & state.keys():
        return dict(state)
    inner = {_without_wrappers(key): tensor for key, tensor in state.items()}
    return inner if len(inner) == len(state) else dict(state)


def _without_wrappers(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in WRAPPERS)


def prefixes(state: Mapping[str, Tensor], key: str) -> list[str]:
    """What comes before `key` in the keys of a state dict that end in it, shortest first."""
    ends = f".{key}"
    found = ["" if key in state else None, *(k[: -len(key)] for k in state if k.endswith(ends))]
    return sorted((prefix for prefix in found if prefix is not None), key=len)


def below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose keys begin with a prefix, without it."""
    size = len(prefix)
    return {key[size:]: tensor for key, tensor in state.items() if key.startswith(prefix)}


def left_over(
    state: Mapping[str, Tensor], names: Mapping[str, str], used: Set[str], head: Tensor | None
) -> tuple[list[str], list[str]]:
    """Which of the unused keys of a complete network may be left out, and which may not.

    A head of another task may: a module that takes as many features as the network's head, and
    gives another number. What lies within the network's own modules may not.

    Args:
        state: tensors by key.
        names: in the network, of the keys that could be in it.
        used: keys of the network's weights.
        head: the weight `(K, F)` of the network's head.
    """
    own = {names[key].partition(".")[0] for key in used if key in names}
    out: list[str] = []
    heads: dict[str, list[str]] = {}
    unused = [key for key in state if key not in used and not key.endswith(COUNTER)]
    for key in unused:
        top = names.get(key, key).partition(".")[0]
        if BESIDE.search(names.get(key, key)):
            out.append(key)
        elif top not in own:
            heads.setdefault(top, []).append(key)
    for keys in heads.values():
        if _is_head([state[key] for key in keys], head):
            out += keys
    known = set(out)
    return out, [key for key in unused if key not in known]


def _is_head(tensors: Sequence[Tensor], head: Tensor | None) -> bool:
    """Whether these weights map the features of a head to something else."""
    matrices = [tensor for tensor in tensors if tensor.ndim == 2]
    if head is None or not matrices or any(tensor.ndim > 2 for tensor in tensors):
        return False
    classes, features = head.shape
    return (
        features != classes
        and matrices[0].shape[1] == features
        and matrices[-1].shape[0] != features
    )
