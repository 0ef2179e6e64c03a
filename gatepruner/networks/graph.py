"""Tracing a network into a graph of pure operations."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from gatepruner.errors import ArchitectureError, listed, nearest
from gatepruner.models import Shape
from gatepruner.networks.additions import CALLS, Addition, find_additions
from gatepruner.networks.dry_run import NeedsDataError
from gatepruner.networks.logits import return_logits
from gatepruner.networks.modes import joined
from gatepruner.networks.mutations import Overwriting, without_mutations
from gatepruner.networks.nodes import erase_unused, function_name, kind, path_of
from gatepruner.networks.tracer import Tracer, UntraceableError, images_argument

PLAIN = {nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict}
CHOSEN = "its class is among the leaves"
# Functions of two values or more that may be meant as residual additions.
SUMS = {"lerp", "sub", "subtract", "rsub", "addcmul", "addcdiv", "stack", "index_add"}
ADVICE = "move what does so into a submodule of its own, which is then kept whole"


@dataclass(frozen=True)
class Trace:
    """A traced base.

    Attributes:
        module: its graph and its modules, on the meta device.
        additions: its residual additions by block name, in the order of depth.
        keys: of its state dict, including unused weights.
        kept: the modules, other than layers, that are kept whole, with any blocks in them, by path;
            and why.
    """

    module: fx.GraphModule
    additions: Mapping[str, Addition]
    keys: frozenset[str]
    kept: Mapping[str, str]


def trace(
    base: nn.Module,
    name: str,
    shape: Shape,
    leaf_modules: Iterable[type | str] = (),
    leaf_functions: Iterable[Callable[..., Any]] = (),
) -> Trace:
    """Trace a network and find its residual additions.

    Submodules that cannot be part of a graph in pieces are kept whole.

    Args:
        base: the network; it may be on the meta device, since only its structure matters.
        name: of the network, for error messages.
        shape: `(C, H, W)` of one image.
        leaf_modules: module classes, or names of them, to keep whole.
        leaf_functions: functions to keep whole.

    Raises:
        ArchitectureError: the network cannot be traced, or it has no residual addition.
    """
    keys = frozenset(base.state_dict())
    images_argument(base)
    _check_names(base, name, leaf_modules)
    tracing = _Tracing(base, name, shape, tuple(leaf_modules), tuple(leaf_functions))
    module = tracing.module()
    forget_constants(module, keys)
    lost = [key for key, buffer in module.named_buffers() if buffer.is_meta and key not in keys]
    if lost:
        raise ArchitectureError(
            f"{name} cannot be traced: it computes {listed(lost)} from its weights; keep the "
            "module that does so whole",
            leaves=("ThatModule",),
        )
    _skip_identities(module)
    additions = find_additions(module)
    if not additions:
        whole = "".join(f"; {remark}" for remark in remarks_on(tracing.outermost))
        raise ArchitectureError(
            f"{name} has no residual addition: there is no block to remove{_advice(module)}{whole}"
        )
    named = {addition.name: addition for addition in additions}
    kept = {path: why for path, why in tracing.outermost.items() if not _is_layer(base, path)}
    return Trace(module, named, keys, kept)


def _advice(module: fx.GraphModule) -> str:
    """How to write what may be meant as residual additions, for an error message."""
    names = [
        function_name(node.target) or str(node.target)
        for node in module.graph.nodes
        if node.op in CALLS and len(node.all_input_nodes) > 1
    ]
    names = [name for name in dict.fromkeys(names) if name in SUMS]
    return f"; it has {listed(names)}: write a block as x + f(x), if that is one" if names else ""


def _is_layer(base: nn.Module, path: str) -> bool:
    """Whether a module is one of PyTorch's layers, or of a class derived from one."""
    kinds = type(base.get_submodule(path)).__mro__
    return any(kind.__module__.startswith("torch.nn") and kind not in PLAIN for kind in kinds)


def remarks_on(kept: Mapping[str, str]) -> list[str]:
    """What the caller should know of the modules that are kept whole."""
    paths: dict[str, list[str]] = {}
    for path, why in kept.items():
        paths.setdefault(why, []).append(path)
    return [
        f"kept {listed(group)} whole, with any blocks inside: {why}" for why, group in paths.items()
    ]


def _check_names(base: nn.Module, name: str, leaf_modules: Iterable[type | str]) -> None:
    """Raise an `ArchitectureError` if a module to keep whole is named that there is not."""
    known = sorted({type(module).__name__ for module in base.modules()})
    unknown = [each for each in leaf_modules if isinstance(each, str) and each not in known]
    if unknown:
        near = nearest(unknown[0], known)
        raise ArchitectureError(f"{name} has no module of the class {listed(unknown)}{near}")


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
        leaf_modules: tuple[type | str, ...],
        leaf_functions: tuple[Callable[..., Any], ...],
    ) -> None:
        self.base = base
        self.name = name
        self.shape = shape
        self.leaf_functions = leaf_functions
        self.blank = copy.deepcopy(base).to("meta")
        self.kept = {
            path: CHOSEN for path, part in base.named_modules() if _is_any(part, leaf_modules)
        }
        self.kept.pop("", None)
        self.overwriting = Overwriting()
        self.assigned: dict[str, str] = {}

    @property
    def outermost(self) -> dict[str, str]:
        """The modules that are kept whole, without those that are part of another one."""
        return {
            path: why
            for path, why in self.kept.items()
            if not any(path.startswith(f"{other}.") for other in self.kept)
        }

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
                self._check_assigned(training, evaluation)
                return training, evaluation

    def _check_assigned(self, *graphs: fx.Graph) -> None:
        """Raise an `UntraceableError` if a buffer is used to which `forward` assigns."""
        nodes = [node for graph in graphs for node in graph.nodes]
        used = {node.target for node in nodes if node.op == "get_attr"}
        reasons = {
            path: f"its buffer {key.rpartition('.')[2]} gets another value"
            for key, path in self.assigned.items()
            if key in used
        }
        if reasons:
            raise UntraceableError(reasons)

    def _graph(self, training: bool) -> fx.Graph:
        """The graph in one mode, without mutations and unused nodes."""
        for constant in [key for key in vars(self.base) if key.startswith("_tensor_constant")]:
            delattr(self.base, constant)  # of the last trace, so that all use equal names
        self.blank.train(training)
        tracer = Tracer(self.blank, self.shape, self.kept, self.leaf_functions)
        graph = tracer.trace(self.base.train(training))
        self.assigned |= tracer.assigned
        run = tracer.runs[-1]
        try:
            return_logits(graph, run, f"{self.name} in training" if training else self.name)
            run.value(next(iter(reversed(graph.nodes))))
        except NeedsDataError as error:
            raise UntraceableError({path_of(error.node): str(error)}) from error
        for node, value in run.values.items():
            node.meta["shape"] = getattr(value, "shape", None)
        pure = without_mutations(self.base, graph, run, self.overwriting)
        erase_unused(pure)
        return pure


def _is_any(module: nn.Module, classes: Iterable[type | str]) -> bool:
    """Whether a module is of one of these classes, or its class has one of these names."""
    return any(
        type(module).__name__ == each if isinstance(each, str) else isinstance(module, each)
        for each in classes
    )


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
