"""A network as a value: its base and the edits made to it.

It contains no tensors, so it can be compared, hashed, printed and written as JSON, and a removal
can be checked before anything is computed.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from gatepruner.errors import ArchitectureError, PlanError, first_line, listed, nearest
from gatepruner.models import Shape
from gatepruner.networks.base import REFUSALS, SOURCES, Base, refusal, traced, without_weights
from gatepruner.networks.dry_run import DryRun, NeedsDataError
from gatepruner.networks.edits import GATES, Edited, Edits, assemble, edited, state_keys
from gatepruner.networks.folding import fold_targets
from gatepruner.networks.importing import imported
from gatepruner.networks.names import parse
from gatepruner.networks.narrowing import Sizes, check_sizes, is_used, norms_that_misfit
from gatepruner.networks.verification import verify
from gatepruner.networks.wrappers import unwrapped


@dataclass(frozen=True)
class Block:
    """One residual block.

    Attributes:
        name: path of its module; numbered, as in `path:2`, if the module has several blocks.
        stage: its stage: the path without its last part.
        identity: whether its shortcut is the identity, so that it vanishes without its branch.
        branch: whether it has its branch.
        shortcut: whether it has its shortcut.
        gated: whether it has a gate.
        layers: class names of the modules in its branch.
    """

    name: str
    stage: str
    identity: bool
    branch: bool
    shortcut: bool
    gated: bool
    layers: tuple[str, ...]

    @property
    def removable(self) -> bool:
        """Whether its branch or its shortcut can be removed: only if it has both."""
        return self.branch and self.shortcut


NO_EDITS = Edits()


def listed_names(names: str | Iterable[str]) -> tuple[str, ...]:
    """One block name or several, as a tuple."""
    return (names,) if isinstance(names, str) else tuple(names)


@dataclass(frozen=True)
class Network:
    """A base, which says who constructs the network, and the edits made to it."""

    base: Base
    edits: Edits = NO_EDITS

    @classmethod
    def named(
        cls, text: str, *, num_classes: int | None = None, input_shape: Shape | None = None
    ) -> Network:
        """A network from a name such as `gated-resnet56` or `torchvision:vit_b_32`.

        Args:
            text: see `gatepruner.networks.names.parse`.
            num_classes: number of logits; by default the source's.
            input_shape: `(C, H, W)` of one image; by default the network's usual one.

        Raises:
            ArchitectureError: the source, the name or an argument is unknown.
        """
        base, gate, shortcuts = parse(text, num_classes=num_classes, input_shape=input_shape)
        traced(base)  # raises if the source does not know the name or an argument
        if input_shape is not None:
            _first_pass(base)  # raises if images of this size are too small, for example
        network = cls(base)
        if gate:
            return network.with_gates(gate)
        return network if shortcuts else network.without_shortcuts(network.removable)

    @classmethod
    def of(
        cls, module: nn.Module, input_shape: Shape, leaves: Iterable[type[nn.Module] | str] = ()
    ) -> Network:
        """The network of the caller's module, which is not changed.

        Its logits are compared with the module's on random images.

        Args:
            module: any residual network that `torch.fx` can trace, on any device.
            input_shape: `(C, H, W)` of one image.
            leaves: module classes, or names of them, to keep whole because they cannot be traced.

        Raises:
            ArchitectureError: the module cannot be traced, has no residual addition, or computes
                something other than its graph.
        """
        module = unwrapped(module)
        blank, name = without_weights(module), type(module).__name__
        network = cls(Base("caller", name, input_shape, (), blank, tuple(leaves)))
        network._verify(module)
        return network

    @classmethod
    def imported(
        cls, name: str, input_shape: Shape, leaves: Iterable[type[nn.Module] | str] = ()
    ) -> Network:
        """The network of a module that is imported by its name.

        Its initial weights are those with which the module is built.

        Args:
            name: `FILE.py:CALLABLE` or `package.module:callable`.
            input_shape, leaves: see `Network.of`.

        Raises:
            ArchitectureError: it cannot be imported, or see `Network.of`.
        """
        network = cls.of(imported(name), input_shape, leaves)
        return cls(replace(network.base, make=functools.partial(imported, name)))

    def _verify(self, module: nn.Module) -> None:
        """Check that the network computes what the caller's module computes."""
        verify(
            module,
            self.base.input_shape,
            lambda weights: self.build({key: weights[key] for key in self.state()}),
        )

    @classmethod
    def from_json(
        cls,
        data: Mapping[str, Any],
        module: nn.Module | None = None,
        leaves: Iterable[type[nn.Module] | str] = (),
    ) -> Network:
        """The network that `to_json` wrote.

        Args:
            data: what `to_json` returned.
            module: the caller's module, which the JSON does not contain.
            leaves: its leaves, which the JSON does not contain.

        Raises:
            ArchitectureError: the base is unknown, or the module is missing, cannot be traced or
                computes something other than its graph.
            KeyError, TypeError, ValueError: `data` does not describe a network.
        """
        fields, edits = dict(data["base"]), dict(data["edits"])
        shape = tuple(fields.pop("input_shape"))
        pairs = fields.pop("arguments").items()
        arguments = tuple(sorted((key, _frozen(value)) for key, value in pairs))
        base = Base(**fields, input_shape=shape, arguments=arguments)
        module = unwrapped(module) if module is not None else None
        blank = without_weights(module) if module is not None else None
        gate = edits.pop("gate")
        sizes = sorted(edits.pop("narrowed", {}).items())
        narrowed = tuple((layer, tuple(each)) for layer, each in sizes)
        blocks = {edit: tuple(names) for edit, names in edits.items()}
        base = replace(base, module=blank, leaves=tuple(leaves))
        network = cls(base, Edits(gate, **blocks, narrowed=narrowed))
        if base.source not in SOURCES:
            raise ValueError(f"unknown source {base.source!r}")
        if gate not in ("", *GATES):
            raise ValueError(f"unknown gate {gate!r}")
        if module is not None:
            cls(network.base)._verify(module)
        known = traced(network.base).additions
        unknown = sorted({name for names in blocks.values() for name in names} - known.keys())
        if unknown:
            raise ValueError(f"{network.base} has no block {listed(unknown)}")
        if contradictions := network.edits.contradictions():
            raise ValueError(listed(contradictions))
        if narrowed:
            network._check_narrowed()
        return network

    def _check_narrowed(self) -> None:
        """Raise a `ValueError` if narrowed layers do not exist or do not fit each other."""
        check_sizes(traced(self.base), self.graph(), self.edits.narrowed)
        module = self.build_blank().to("meta")
        run = DryRun(module, module.graph, 2, self.base.input_shape)
        try:
            run.value(next(iter(reversed(module.graph.nodes))))
        except (*REFUSALS, NeedsDataError) as error:
            raise ValueError(
                f"narrowed layers do not fit each other: {first_line(error)}"
            ) from None
        shapes = {node: getattr(value, "shape", ()) for node, value in run.values.items()}
        if misfits := norms_that_misfit(module, shapes):
            raise ValueError(f"narrowed layers do not fit what they take: {listed(misfits)}")

    def to_json(self) -> dict[str, Any]:
        """Base and edits as plain JSON."""
        base = {
            "source": self.base.source,
            "name": self.base.name,
            "input_shape": list(self.base.input_shape),
            "arguments": dict(self.base.arguments),
        }
        edits: dict[str, Any] = {
            key: value if isinstance(value, str) else list(value)
            for key, value in asdict(replace(self.edits, narrowed=())).items()
        }
        del edits["narrowed"]
        if narrowed := {layer: list(sizes) for layer, sizes in self.edits.narrowed}:
            edits["narrowed"] = narrowed
        return {"base": base, "edits": edits}

    def __str__(self) -> str:
        name, edits = str(self.base), self.edits
        without_any = len(edits.shortcuts_removed) == len(traced(self.base).additions)
        if edits.gate == "plain" or without_any:
            name = name.replace("residual-fc", "plain-fc")
        return f"gated-{name}" if edits.gated else name

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The residual blocks in the order of depth, without those that have vanished."""
        edits, used = self.edits, self.joins
        blocks = (
            Block(
                name=addition.name,
                stage=addition.path.rpartition(".")[0] or addition.path,
                identity=addition.identity,
                branch=addition.name not in edits.removed,
                shortcut=addition.name not in edits.shortcuts_removed,
                gated=addition.name in edits.gated,
                layers=addition.layers,
            )
            for addition in traced(self.base).additions.values()
            if addition.name in used
        )
        return tuple(block for block in blocks if block.branch or not block.identity)

    @property
    def removable(self) -> tuple[str, ...]:
        """Names of the blocks that have both their branch and their shortcut."""
        return tuple(block.name for block in self.blocks if block.removable)

    @property
    def stock_removable(self) -> tuple[str, ...]:
        """The removable blocks that a library's own class can do without.

        They have an identity shortcut, and one block stays in every stage.
        """
        blocks = self.blocks
        first = {block.stage: block.name for block in reversed(blocks)}
        inner = [block for block in blocks if block.identity and block.name != first[block.stage]]
        return tuple(block.name for block in inner if block.removable)

    @property
    def depth(self) -> int:
        """Number of blocks that have their branch."""
        return sum(block.branch for block in self.blocks)

    @property
    def kept(self) -> Mapping[str, str]:
        """The modules that are kept whole, with any blocks inside, by path; and why."""
        return traced(self.base).kept

    @property
    def num_classes(self) -> int:
        """Number of logits for one image.

        Raises:
            ArchitectureError: the network returns something other than logits.
        """
        return _classes(self.base)

    def _checked(self, names: str | Iterable[str], operand: str) -> tuple[str, ...]:
        """The names, if each is that of a removable block; `operand` is what will be removed."""
        names = listed_names(names)
        blocks = {block.name: block for block in self.blocks}
        unknown = [f"{name}{nearest(name, list(blocks))}" for name in names if name not in blocks]
        if unknown:
            raise PlanError(
                f"cannot remove {listed(unknown)}: {self} has no such block; "
                f"its {len(blocks)} blocks are {_span(list(blocks))}"
            )
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        if twice:
            raise PlanError(f"cannot remove {listed(twice)} twice: name each block once")
        halves = [
            f"{name}: only its {'shortcut' if blocks[name].shortcut else 'branch'} is left"
            for name in names
            if not blocks[name].removable
        ]
        if halves:
            raise PlanError(
                f"cannot remove the {operand} of {'; of '.join(halves)}; choose blocks that have "
                "both"
            )
        return names

    def without(self, names: str | Iterable[str]) -> Network:
        """The network without these blocks; a shortcut that changes shape stays.

        Args:
            names: of blocks that have both their branch and their shortcut.

        Raises:
            PlanError: there is no such block, or it has only its branch or its shortcut left.
        """
        removed = {*self._checked(names, "branch"), *self.edits.removed}
        return self._with(replace(self.edits.forgetting(removed), removed=self.in_order(removed)))

    def without_shortcuts(self, names: str | Iterable[str]) -> Network:
        """The network without the shortcuts of these blocks; their branches stay.

        Args:
            names: of blocks that have both their branch and their shortcut.

        Raises:
            PlanError: there is no such block, or it has only its branch or its shortcut left.
        """
        removed = {*self._checked(names, "shortcut"), *self.edits.shortcuts_removed}
        scaled = tuple(name for name in self.edits.scaled_shortcuts if name not in removed)
        edits = replace(
            self.edits, scaled_shortcuts=scaled, shortcuts_removed=self.in_order(removed)
        )
        return self._with(edits)

    def narrowed_to(self, sizes: Mapping[str, Sizes]) -> Network:
        """The network with these sizes of layers; they have to fit each other.

        Args:
            sizes: by the path of a layer; see `gatepruner.networks.narrowing`.
        """
        narrowed = tuple(sorted({**dict(self.edits.narrowed), **sizes}.items()))
        return self._with(replace(self.edits, narrowed=narrowed))

    def _with(self, edits: Edits) -> Network:
        """The network with these edits, without those of blocks and layers that are gone."""
        unused = traced(self.base).additions.keys() - _edited(self.base, edits).joins.keys()
        edits = edits.forgetting(unused)
        if edits.narrowed:
            graph = _edited(self.base, edits).graph
            left = tuple(pair for pair in edits.narrowed if is_used(pair[0], graph))
            edits = replace(edits, narrowed=left)
        return replace(self, edits=edits)

    def with_gates(self, gate: str = "residual") -> Network:
        """The network with a gate in every removable block.

        Args:
            gate: `"residual"` or `"plain"`.

        Raises:
            PlanError: there is no such kind of gate, or the network has gates of the other kind.
        """
        if gate not in GATES:
            raise PlanError(f"unknown gate {gate!r}: expected {' or '.join(GATES)}")
        if self.edits.gate and self.edits.gate != gate and self.edits.gated:
            raise PlanError(
                f"cannot add {gate} gates: {self} already has {self.edits.gate} gates; fold them "
                "first"
            )
        gated = self.in_order({*self.edits.gated, *self.removable})
        return replace(self, edits=replace(self.edits, gate=gate, gated=gated))

    def without_gates(self) -> Network:
        """The network with its gates folded into the last affine layer of each branch.

        A constant factor replaces the gate of a branch that does not end in an affine layer, and
        scales the shortcut of a plain gate.
        """
        edits, targets = self.edits, self.fold_targets()
        branches = {name for name in edits.gated if not targets[name]}
        plain = set(edits.gated if edits.gate == "plain" else ())
        folded = replace(
            edits,
            gate="",
            gated=(),
            scaled_branches=self.in_order(branches | {*edits.scaled_branches}),
            scaled_shortcuts=self.in_order(
                (plain - {*edits.shortcuts_removed}) | {*edits.scaled_shortcuts}
            ),
        )
        return replace(self, edits=folded)

    def in_order(self, names: Iterable[str]) -> tuple[str, ...]:
        """Block names in the order of depth."""
        order = {name: index for index, name in enumerate(traced(self.base).additions)}
        return tuple(sorted(names, key=order.__getitem__))

    def gate_key(self, name: str) -> str:
        """The state-dict key of a block's gate parameter k."""
        return f"{traced(self.base).additions[name].gate}.k"

    def scale_key(self, name: str, operand: str) -> str:
        """The state-dict key of the constant factor of a block's `"branch"` or `"shortcut"`."""
        return f"{traced(self.base).additions[name].gate}_{operand}.c"

    def fold_targets(self) -> dict[str, tuple[str, ...]]:
        """Keys of the weights that each gate folds into; see `networks.folding.fold_targets`."""
        return fold_targets(traced(self.base), self.graph(), self.edits.gated)

    def unused_keys(self) -> frozenset[str]:
        """Keys of the base's state dict that its graph does not use."""
        return traced(self.base).keys - Network(self.base).state().keys()

    def graph(self) -> fx.Graph:
        """The edited graph; `node.meta["base"]` is the name of the base's node."""
        return _edited(self.base, self.edits).graph

    @property
    def joins(self) -> dict[str, tuple[str, str]]:
        """The names of the nodes of `graph()` whose values enter and leave each block."""
        return _edited(self.base, self.edits).joins

    @property
    def values(self) -> dict[str, str]:
        """The names of the nodes of `graph()` that have the places of the base's nodes."""
        return _edited(self.base, self.edits).values

    def state(self) -> dict[str, Tensor]:
        """The network's state dict on the meta device."""
        return state_keys(traced(self.base), _edited(self.base, self.edits), self.edits.narrowed)

    def build_blank(self) -> fx.GraphModule:
        """A module on the meta device, in evaluation mode."""
        return assemble(traced(self.base), self.edits, str(self))

    def build(self, weights: Mapping[str, Tensor]) -> fx.GraphModule:
        """A module that shares these tensors, in evaluation mode."""
        module, state = self.build_blank(), dict(weights)
        parameters: dict[int, nn.Parameter] = {}
        for key, blank in self.state().items():  # a weight with two keys stays one parameter
            if isinstance(blank, nn.Parameter) and key in state:
                state[key] = parameters.setdefault(id(blank), nn.Parameter(state[key]))
        module.load_state_dict(state, strict=True, assign=True)
        return module

    def initial_weights(self, seed: int = 0, gate: float = 1.0) -> dict[str, Tensor]:
        """Weights initialised by the base's constructor.

        A narrowed layer has the first channels of the base's.

        Args:
            seed: of the random initialisation.
            gate: initial k of every gate; constant factors are 1.
        """
        gates = {self.gate_key(name) for name in self.edits.gated}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            state = self.base.construct().state_dict()
        return {
            key: state[key][tuple(map(slice, tensor.shape))]
            if key in state
            else torch.full(tensor.shape, gate if key in gates else 1.0)
            for key, tensor in self.state().items()
        }


@functools.lru_cache(maxsize=32)
def _first_pass(base: Base) -> Any:
    """What a base returns for two images, on the meta device.

    Raises:
        ArchitectureError: it refuses images of this size.
    """
    module = Network(base).build_blank()
    run = DryRun(module.to("meta"), module.graph, 2, base.input_shape)
    try:
        return run.value(next(iter(reversed(module.graph.nodes))))
    except REFUSALS as error:
        raise refusal(base, error) from None


@functools.lru_cache(maxsize=32)
def _classes(base: Base) -> int:
    """The number of logits, which no edit changes."""
    logits = _first_pass(base)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits)
        raise ArchitectureError(
            f"{base} returns {found} for two images: expected one tensor of logits (images, "
            "classes); wrap it in a module that returns that"
        )
    return int(logits.shape[1])


@functools.lru_cache(maxsize=64)
def _edited(base: Base, edits: Edits) -> Edited:
    """The edited graph; cached, so it must not be changed."""
    return edited(traced(base), edits)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _span(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) < 4 else f"{names[0]} … {names[-1]}"
