"""Tracing a network into a graph of pure operations."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from gatepruner.errors import ArchitectureError, listed
from gatepruner.models import Shape
from gatepruner.networks.additions import Addition, find_additions
from gatepruner.networks.dry_run import NeedsDataError
from gatepruner.networks.logits import return_logits
from gatepruner.networks.modes import joined
from gatepruner.networks.mutations import Overwriting, without_mutations
from gatepruner.networks.nodes import erase_unused, kind, path_of
from gatepruner.networks.tracer import Tracer, UntraceableError, images_argument

ADVICE = "move what does so into a submodule of its own, which is then kept whole"


@dataclass(frozen=True)
class Trace:
    """A traced base.

    Attributes:
        module: its graph and its modules, on the meta device.
        additions: its residual additions by block name, in the order of depth.
        keys: of its state dict, including unused weights.
    """

    module: fx.GraphModule
    additions: Mapping[str, Addition]
    keys: frozenset[str]


def trace(
    base: nn.Module,
    name: str,
    shape: Shape,
    leaf_modules: Iterable[type] = (),
    leaf_functions: Iterable[Callable[..., Any]] = (),
) -> Trace:
    """Trace a network and find its residual additions.

    Submodules that cannot be part of a graph in pieces are kept whole.

    Args:
        base: the network; it may be on the meta device, since only its structure matters.
        name: of the network, for error messages.
        shape: `(C, H, W)` of one image.
        leaf_modules: module classes to keep whole.
        leaf_functions: functions to keep whole.

    Raises:
        ArchitectureError: the network cannot be traced, or it has no residual addition.
    """
    keys = frozenset(base.state_dict())
    images_argument(base)
    tracing = _Tracing(base, name, shape, tuple(leaf_modules), tuple(leaf_functions))
    module = tracing.module()
    forget_constants(module, keys)
    lost = [key for key, buffer in module.named_buffers() if buffer.is_meta and key not in keys]
    if lost:
        raise ArchitectureError(
            f"{name} cannot be traced: it computes {listed(lost)} from its weights; declare the "
            "class of the module that does so as a leaf, Checkpoint.of(..., leaves=(ThatModule,))"
        )
    _skip_identities(module)
    additions = find_additions(module)
    if not additions:
        whole = "".join(f"; kept {path} whole: {why}" for path, why in tracing.kept.items())
        raise ArchitectureError(
            f"{name} has no residual addition: there is no block to remove{whole}"
        )
    return Trace(module, {addition.name: addition for addition in additions}, keys)


class _Tracing:
    """The traces of one network, made again until nothing more has to be kept whole.

    Attributes:
        kept: the modules that are kept whole, by path, and why.
    """

    def __init__(
        self,
        base: nn.Module,
        name: str,
        shape: Shape,
        leaf_modules: tuple[type, ...],
        leaf_functions: tuple[Callable[..., Any], ...],
    ) -> None:
        self.base = base
        self.name = name
        self.shape = shape
        self.leaf_modules = leaf_modules
        self.leaf_functions = leaf_functions
        self.blank = copy.deepcopy(base).to("meta")
        self.kept: dict[str, str] = {}
        self.overwriting = Overwriting()

    def module(self) -> fx.GraphModule:
        """The network as a module with a graph that serves both modes."""
        while True:
            try:
                return self._joined(*self._graphs())
            except UntraceableError as error:
                if "" in error.reasons or error.reasons.keys() <= self.kept.keys():
                    raise ArchitectureError(
                        f"{self.name} cannot be traced: {error}; {ADVICE}"
                    ) from error
                self.kept |= error.reasons

    def _joined(self, training: fx.Graph, evaluation: fx.Graph) -> fx.GraphModule:
        """A module of both graphs; the modules that it needs are the base's only meanwhile."""
        modules = self.overwriting.modules_by_target()
        try:
            for target, module in modules.items():
                self.base.add_module(target, module)
            graph, switches = joined(self.base, training, evaluation)
            for target, switch in switches.items():
                self.base.add_module(target, switch)
            modules |= switches
            return fx.GraphModule(self.base, graph, class_name=identifier(self.name))
        finally:
            for target in modules:
                delattr(self.base, target)

    def _graphs(self) -> tuple[fx.Graph, fx.Graph]:
        """The graphs in training and in evaluation, with the same modules kept whole."""
        while True:
            training = self._graph(True)
            number = len(self.kept)
            evaluation = self._graph(False)
            if len(self.kept) == number:
                return training, evaluation

    def _graph(self, training: bool) -> fx.Graph:
        """The graph in one mode, without mutations and unused nodes."""
        for constant in [key for key in vars(self.base) if key.startswith("_tensor_constant")]:
            delattr(self.base, constant)  # of the last trace, so that all use equal names
        self.blank.train(training)
        tracer = Tracer(self.blank, self.shape, self.kept, self.leaf_modules, self.leaf_functions)
        graph = tracer.trace(self.base.train(training))
        run = tracer.runs[-1]
        try:
            return_logits(graph, run, self.name)
            run.value(next(reversed(graph.nodes)))
        except NeedsDataError as error:
            raise UntraceableError({path_of(error.node): str(error)}) from error
        for node, value in run.values.items():
            node.meta["shape"] = getattr(value, "shape", None)
        pure = without_mutations(self.base, graph, run, self.overwriting)
        erase_unused(pure)
        return pure


def identifier(name: str) -> str:
    """A name with underscores for all characters that a Python identifier cannot have."""
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def _skip_identities(module: fx.GraphModule) -> None:
    for node in list(module.graph.nodes):
        if kind(module, node) is nn.Identity:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)


def forget_constants(module: nn.Module, keys: Set[str]) -> None:
    """Make all buffers non-persistent that are not among the keys of the base's state dict."""
    for key, buffer in list(module.named_buffers()):
        if key not in keys:  # fx registers every buffer as a persistent one
            owner, _, last = key.rpartition(".")
            delattr(module.get_submodule(owner), last)
            module.get_submodule(owner).register_buffer(last, buffer, persistent=False)
