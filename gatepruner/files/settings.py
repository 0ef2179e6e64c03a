"""Settings of pickled layers that their weights do not tell, such as strides and epsilons.

A file with a whole module has them, so they are compared with those of the network recognised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from gatepruner.files.stand_ins import StandIn
from gatepruner.networks.network import Network

# They change nothing in evaluation, or only how it is computed.
IGNORED = frozenset(("training", "inplace", "momentum", "p", "track_running_stats"))
IDENTITIES = frozenset(("Identity", "Dropout", "Dropout2d", "DropPath", "StochasticDepth"))
SAME = {"SyncBatchNorm": "BatchNorm2d", **dict.fromkeys(IDENTITIES, "Identity")}


def differing(network: Network, modules: Mapping[str, StandIn]) -> list[str]:
    """The settings in which pickled layers differ from those of a network.

    Args:
        network: the network.
        modules: pickled layers by the paths that the network gives them.
    """
    built = network.build_blank()
    return [
        f"{path}{problem}"
        for path, module in built.named_modules()
        if path in modules and not any(module.children())
        for problem in _problems(module, modules[path])
    ]


def _problems(module: nn.Module, pickled: StandIn) -> Iterator[str]:
    kind = type(module).__name__
    home, _, other = pickled.name.rpartition(".")
    if home.startswith("torch.nn.modules") and SAME.get(other, other) != SAME.get(kind, kind):
        yield f" is {other}, not {kind}"
        return
    state = pickled.state if isinstance(pickled.state, dict) else {}
    for name, value in vars(module).items():
        if name.startswith("_") or name in IGNORED or not _is_plain(value):
            continue
        theirs = state.get(name, value)
        if _is_plain(theirs) and _single(theirs) != _single(value):
            yield f".{name} is {theirs}, not {value}"


def _is_plain(value: Any) -> bool:
    items = value if isinstance(value, tuple) else (value,)
    return all(isinstance(item, (bool, int, float, str)) for item in items)


def _single(value: Any) -> Any:
    """`2` for `(2, 2)`, as layers take both."""
    return value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value
