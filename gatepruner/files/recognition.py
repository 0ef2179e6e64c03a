"""Recognition: which tensors of a file are the weights of which network.

The tensors under every prefix are compared with the state dicts of all candidates, in all layouts.
A network fits if the file has all of its weights in their shapes, and nothing else that its author
may have computed with.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from torch import Tensor

from gatepruner.errors import ArchitectureError, CheckpointError, listed
from gatepruner.files.candidates import Candidate, candidates
from gatepruner.files.foreign import (
    COUNTER,
    below,
    is_averaged,
    is_copy,
    is_usual,
    left_over,
    prefixes,
    rank,
    unwrapped,
)
from gatepruner.files.layouts import LAYOUTS, Layout
from gatepruner.files.stand_ins import StandIn
from gatepruner.models import Shape
from gatepruner.networks.network import Network

HEADS = frozenset(("linear", "head", "fc", "_fc", "classifier"))
HEAD = re.compile(r"(^|\.)(linear|head|fc|classifier(\.\d+)?)\.weight$")
MOST = 32  # prefixes that are tried


@dataclass(frozen=True)
class Wanted:
    """What the caller says about a file.

    Attributes:
        arch: the architecture; by default recognised.
        num_classes: number of logits; by default that of the weights.
        input_shape: `(C, H, W)` of one image; by default the architecture's usual one.
        network: the network, if it is known.
    """

    arch: str | None = None
    num_classes: int | None = None
    input_shape: Shape | None = None
    network: Network | None = None


@dataclass(frozen=True)
class Match:
    """A network and the tensors of a file that are its weights.

    Attributes:
        network: the network.
        candidate: what it was called, and what the weights do not tell about it.
        place: of the state dict in the file.
        prefix: of the weights in it.
        layout: whose names the file has; empty for the network's own.
        weights: tensors by the network's keys.
        origins: keys of the file by those of the network.
        keys: of the file.
        left_out: keys of the file that belong to nothing in the network.
        missing: keys that the file lacks.
        misshapen: keys, each with both shapes.
        extra: keys of the file with which its author may have computed.
        others: where else in the file are weights that fit.
    """

    network: Network
    candidate: Candidate
    place: str
    prefix: str
    layout: str
    weights: Mapping[str, Tensor]
    origins: Mapping[str, str]
    keys: frozenset[str]
    left_out: tuple[str, ...]
    missing: tuple[str, ...]
    misshapen: tuple[str, ...]
    extra: tuple[str, ...]
    others: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Place and prefix."""
        return f"{self.place}.{self.prefix}".strip(".")

    def layers(self, modules: Mapping[str, Mapping[str, StandIn]]) -> dict[str, StandIn]:
        """The layers of a pickled module by the paths of the network.

        Those without weights are known by their path alone, in the network's own layout.
        """
        parts = modules.get(self.place, {})
        size, found = len(self.prefix), {}
        if not self.layout:
            inside = (path for path in parts if path.startswith(self.prefix))
            found = {path[size:]: parts[path] for path in inside}
        for own, key in self.origins.items():
            if key.rpartition(".")[0] in parts:
                found[own.rpartition(".")[0]] = parts[key.rpartition(".")[0]]
        return found

    @property
    def complete(self) -> bool:
        """Whether the file has all weights of the network."""
        return not (self.missing or self.misshapen)

    @property
    def fits(self) -> bool:
        """Whether it has them, and no others with which its author may have computed."""
        return self.complete and not self.extra

    @property
    def distance(self) -> int:
        """How many weights do not fit."""
        return len(self.missing) + len(self.misshapen) + len(self.extra)

    @property
    def problems(self) -> str:
        """Which weights do not fit."""
        kinds = {"missing": self.missing, "extra": self.extra, "wrong shape": self.misshapen}
        return "; ".join(f"{kind}: {listed(keys, 20)}" for kind, keys in kinds.items() if keys)

    @property
    def remarks(self) -> list[str]:
        """What the caller should know about how the file was read."""
        said = []
        if self.candidate.assumed:
            said.append(f"recognised as {self.candidate.name}, assuming {self.candidate.assumed}")
        if self.layout:
            said.append(f"its weights are named as in {self.layout}")
        if self.others:
            kind = "averaged weights" if is_averaged(self.name) else "weights"
            others = listed(place or "the top level" for place in self.others)
            said.append(f"took the {kind} at {self.name or 'the top level'}, not at {others}")
        if self.left_out:
            said.append(f"left out what the network does not use: {listed(self.left_out)}")
        return said


def recognise(
    state: Mapping[str, Tensor],
    name: str,
    arch: str | None = None,
    num_classes: int | None = None,
    input_shape: Shape | None = None,
) -> Network:
    """The network to which a state dict belongs.

    Args:
        state: tensors by key.
        name: of the file, for error messages.
        arch: the architecture; by default recognised.
        num_classes: number of logits; by default that of the state dict.
        input_shape: `(C, H, W)` of one image; by default the architecture's usual one.

    Raises:
        ArchitectureError: no architecture fits, or several do.
    """
    return matched({"": state}, name, Wanted(arch, num_classes, input_shape)).network


def matched(
    dicts: Mapping[str, Mapping[str, Tensor]],
    name: str,
    wanted: Wanted,
    weights: str | None = None,
) -> Match:
    """The weights in a file, and their network.

    Args:
        dicts: state dicts by their place in the file, preferred ones first.
        name: of the file, for error messages.
        wanted: what the caller says about it.
        weights: place of the weights, where the file has several.

    Raises:
        ArchitectureError: no architecture fits, or several do.
        CheckpointError: the weights do not fit, or the file has several and none is preferred.
    """
    tried = [
        match
        for place, state in dicts.items()
        for match in _matches(place, state, wanted, weights is not None)
    ]
    fitting = sorted((match for match in tried if match.fits), key=lambda match: rank(match.name))
    places = list(dict.fromkeys(match.name for match in fitting))
    if not places:
        raise _misfit(name, dicts, tried, wanted)
    place = _chosen(name, places, weights)
    fitting = [match for match in fitting if match.name == place]
    if len(fitting) > 1:
        names = [_named(match) for match in fitting]
        raise ArchitectureError(f"{name} fits {' and '.join(names)}: choose one", arch=names[0])
    return replace(fitting[0], others=tuple(other for other in places if other != place))


def _chosen(name: str, places: Sequence[str], weights: str | None) -> str:
    """The place of the weights to take, from those that fit."""
    if weights is not None:
        under = [place for place in places if f"{place}.".startswith(f"{weights}.")]
        if not under:
            words = listed(place or "''" for place in places)
            raise CheckpointError(
                f"{name} has no weights at {weights!r} that fit: choose from {words}",
                weights=places[0],
            )
        return under[0]
    if len(places) > 1 and not is_usual(places[0]):
        raise CheckpointError(
            f"{name} has several networks, at {listed(places)}: choose one", weights=places[0]
        )
    return places[0]


def _matches(
    place: str, state: Mapping[str, Tensor], wanted: Wanted, chosen: bool
) -> Iterator[Match]:
    """All networks compared with a state dict, under every prefix and in every layout."""
    state = unwrapped(state, _own_keys(wanted.network))
    found: list[Match] = []
    for prefix in _prefixes(state, wanted):
        inner = below(state, prefix)
        for name, layout in LAYOUTS.items():
            names = layout.renamed(inner)
            if names is None:
                continue
            renamed = {new: inner[key] for new, key in names.items()}
            compared = [
                _compared(candidate, network, (name, layout), (place, prefix), (state, names))
                for candidate, network in _networks(renamed, wanted, layout)
            ]
            found += compared
            if any(match.complete for match in compared):
                break
    for match in found:
        copies = {
            key
            for other in found
            if other.name != match.name and other.complete
            if chosen or is_copy(other.name) or is_copy(match.name)
            for key in other.keys
        }
        yield replace(match, extra=tuple(key for key in match.extra if key not in copies))


def _own_keys(network: Network | None) -> Set[str]:
    """The keys of the whole state dict of a network."""
    return frozenset() if network is None else network.state().keys() | network.unused_keys()


def _prefixes(state: Mapping[str, Tensor], wanted: Wanted) -> list[str]:
    """What may come before the keys of a network: what comes before those of its head."""
    found = set()
    for key, tensor in state.items():
        parts = key.split(".")[:-1]
        if tensor.ndim == 2:
            for index in range(max(0, len(parts) - 2), len(parts)):
                if parts[index] in HEADS:
                    found.add("".join(f"{part}." for part in parts[:index]))
    if wanted.network is not None or wanted.arch is not None:
        network = wanted.network or Network.named(wanted.arch or "")
        found.update(prefixes(state, next(iter(network.state()), "")))
    return sorted(found or {""}, key=len)[:MOST]


def _networks(
    state: Mapping[str, Tensor], wanted: Wanted, layout: Layout
) -> Iterator[tuple[Candidate, Network]]:
    """The networks with which a state dict is compared."""
    if wanted.network is not None:
        yield Candidate("", ""), wanted.network
        return
    classes = wanted.num_classes or _classes(state)
    if wanted.arch is not None:
        named = [Candidate(wanted.arch, "")]
    else:
        named = list(candidates(_shapes(state), layout.arguments))
    for candidate in named:
        shape = wanted.input_shape or candidate.input_shape
        yield candidate, Network.named(candidate.name, num_classes=classes, input_shape=shape)


def _compared(
    candidate: Candidate,
    network: Network,
    layout: tuple[str, Layout],
    place: tuple[str, str],
    file: tuple[Mapping[str, Tensor], Mapping[str, str]],
) -> Match:
    """A network compared with the tensors under a prefix.

    Args:
        candidate: what the network was called, and what it assumes.
        network: the network.
        layout: a layout with its name.
        place: place of the state dict, and the prefix in it.
        file: tensors by key, and the keys below the prefix by their names in the layout.
    """
    (layout_name, how), (where, prefix), (state, names) = layout, place, file
    expected = network.state()
    keys = {
        own: f"{prefix}{names[new]}" for own, new in how.named(expected).items() if new in names
    }
    unused = {f"{prefix}{key}" for key in network.unused_keys()}
    inside = {f"{prefix}{key}": new for new, key in names.items()}
    used = {*keys.values(), *(unused & state.keys())}
    matrices = [state[key] for own, key in keys.items() if expected[own].ndim == 2]
    out, extra = left_over(state, inside, used, matrices[-1] if matrices else None)
    return Match(
        network=network,
        candidate=candidate,
        place=where,
        prefix=prefix,
        layout=layout_name,
        weights={own: state[key] for own, key in keys.items()},
        origins=keys,
        keys=frozenset(used),
        left_out=tuple(out),
        missing=tuple(sorted(k for k in expected if k not in keys and not k.endswith(COUNTER))),
        misshapen=tuple(
            f"{own} is {tuple(state[key].shape)}, not {tuple(expected[own].shape)}"
            for own, key in keys.items()
            if state[key].shape != expected[own].shape
        ),
        extra=tuple(sorted(extra)),
    )


def _misfit(
    name: str, dicts: Mapping[str, Mapping[str, Tensor]], tried: Sequence[Match], wanted: Wanted
) -> CheckpointError | ArchitectureError:
    """What is said of a file in which nothing fits."""
    nearest = sorted(tried, key=lambda match: match.distance)
    if wanted.network is not None:
        return CheckpointError(
            f"{name} does not fit {wanted.network}: {nearest[0].problems}; pass the module it was "
            "trained with"
        )
    if wanted.arch is not None:
        return CheckpointError(
            f"{name} does not fit {nearest[0].network}: {nearest[0].problems}; name the "
            "architecture it was trained with",
            arch="NAME",
        )
    shapes = _shapes(max(dicts.values(), key=len))
    names = listed(dict.fromkeys(map(_named, nearest)), 3)
    near = f"; {names} comes closest, but has other weights" if names else ""
    return ArchitectureError(
        f"cannot recognise the architecture of {name} from its {len(shapes)} weights "
        f"({listed(shapes, 4)}){near}: name it, as in torchvision:vit_b_16, or bring its module",
        arch="NAME",
    )


def _named(match: Match) -> str:
    """What a network was called."""
    return match.candidate.name


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes by key, without the counters that may be missing in old files."""
    return {key: tuple(tensor.shape) for key, tensor in state.items() if not key.endswith(COUNTER)}


def _classes(state: Mapping[str, Tensor]) -> int | None:
    """The number of rows of the outermost matrix that has the name of a head."""
    heads = [key for key, tensor in state.items() if HEAD.search(key) and tensor.ndim == 2]
    return state[min(heads, key=lambda key: key.count("."))].shape[0] if heads else None
