"""Following the `forward` of a module into a graph, with `torch.fx`.

Three things go beyond `torch.fx.Tracer`. Shapes, lengths and truth values that a module asks for
are answered from dry runs, if the answer does not depend on the number of images. A submodule
that cannot be followed is kept whole. Arguments of `forward` after the first one keep their
defaults.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import operator
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode, is_tensor_method_or_property

from gatepruner.errors import ArchitectureError, listed
from gatepruner.models import Shape
from gatepruner.networks.dry_run import DryRun
from gatepruner.networks.surroundings import (
    attributes_kept,
    autocast,
    functions_uncompiled,
    lengths_of_batches,
)
from gatepruner.networks.wrappers import compiled

STOCHASTIC = {"StochasticDepth", "DropPath", "DropBlock2d"}  # read `training` when they run
# Torch's own modules that contain residual blocks; all others are kept whole.
FOLLOWED = {
    *(nn.Transformer, nn.TransformerEncoder, nn.TransformerEncoderLayer),
    *(nn.TransformerDecoder, nn.TransformerDecoderLayer),
}
# Numbers of images in the dry runs. A batch norm of single pixels cannot be trained on one image.
BATCHES = {True: (2, 3), False: (1, 3)}
# They accept no proxy by themselves. In the graph they are calls, if an argument is a proxy.
FACTORIES = (
    *(torch.zeros, torch.ones, torch.empty, torch.full, torch.eye, torch.arange, torch.linspace),
    *(torch.rand, torch.randn, torch.randint, torch.randperm, torch.tensor, torch.as_tensor),
    *(torch.finfo, torch.iinfo),
)
VALUES = "its control flow depends on the values of a tensor"
IN_PLACE = ("add", "sub", "mul", "truediv", "floordiv", "pow", "mod", "and", "or", "xor", "matmul")


class UntraceableError(Exception):
    """Some modules cannot be part of a graph in pieces.

    Args:
        reasons: what they do, by path.
    """

    def __init__(self, reasons: Mapping[str, str]) -> None:
        super().__init__("; ".join(dict.fromkeys(reasons.values())))
        self.reasons = dict(reasons)


class _UnansweredError(Exception):
    """A question about a value has no answer that holds for all images."""


class Value(fx.Proxy):
    """A value of the graph; what Python asks about it is answered from dry runs."""

    tracer: Tracer

    def __getattr__(self, name: str) -> fx.proxy.Attribute:
        return _Attribute(self, name)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __len__(self) -> int:
        return int(self.tracer.answer(self, len))

    def length(self) -> Any:
        """The length as `len(x)` tells it; a value of the graph if the batch decides on it."""
        try:
            return len(self)
        except _UnansweredError:
            return self.tracer.create_proxy("call_function", len, (self,), {})

    def __index__(self) -> int:
        return int(self.tracer.answer(self, operator.index))

    def __int__(self) -> int:
        return int(self.tracer.answer(self, int))

    def __float__(self) -> float:
        return float(self.tracer.answer(self, float))

    def __contains__(self, item: Any) -> bool:
        return bool(self.tracer.answer(self, lambda value: item in value))


def _in_place(name: str) -> Callable[[Value, Any], Any]:
    """The method of `value += other` and its like, which `fx.Proxy` would take for `+`."""
    function = getattr(operator, f"i{name}")

    def method(self: Value, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


for _name in IN_PLACE:
    setattr(Value, f"__i{_name}__", _in_place(_name))


class _Attribute(fx.proxy.Attribute, Value):
    """An attribute or a method of a value."""


class _OnImagesDevice(TorchFunctionMode):
    """Tensors that a `forward` puts where its weights are will be where the images are."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        moved = any(map(_is_blank, (*args, *kwargs.values())))
        blank = bool(args) and isinstance(args[0], torch.Tensor) and args[0].is_meta
        if self.tracer.answering or not moved or blank:
            return func(*args, **kwargs)
        if is_tensor_method_or_property(func):
            return self.tracer.create_proxy("call_method", func.__name__, args, kwargs)
        return self.tracer.create_proxy("call_function", func, args, kwargs)


class Tracer(fx.Tracer):
    """Traces one module in the mode it is in.

    Attributes:
        assigned: the buffers to which `forward` assigns a new value, with their modules' paths.
    """

    proxy_buffer_attributes = True

    def __init__(
        self,
        blank: nn.Module,
        shape: Shape,
        kept: dict[str, str],
        leaf_functions: Iterable[Callable[..., Any]],
    ) -> None:
        """Prepare a trace.

        Args:
            blank: a copy of the module on the meta device, for dry runs.
            shape: `(C, H, W)` of one image.
            kept: the modules to keep whole, by path, with the reason; those found here are added.
            leaf_functions: functions to keep whole.
        """
        super().__init__(autowrap_functions=(*leaf_functions, *FACTORIES))
        self._autowrap_search.append(torch)  # where modules look up `torch.zeros`
        self.blank = blank
        self.shape = shape
        self.kept = kept
        self.paths: dict[nn.Module, str] = {}
        self.assigned: dict[str, str] = {}
        self.runs: list[DryRun] = []
        self.answering = False

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """The graph of a module, in the mode it is in."""
        self.autocast = autocast()
        try:
            with (
                attributes_kept(root, self.assigned),
                lengths_of_batches(root),
                functions_uncompiled(root),
                _OnImagesDevice(self),
            ):
                graph = super().trace(root, concrete_args)
        except ArchitectureError:
            raise
        except Exception as error:  # the module's own code may raise anything on a proxy
            raise UntraceableError({"": reason(error)}) from error
        for node in graph.nodes:
            if node.target in FACTORIES:  # else the generated code would wrap `torch.zeros`
                node.meta.pop("is_wrapped", None)
        return graph

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Call the module with its first argument alone, so that the others keep their defaults."""
        self.paths = {module: path for path, module in self.root.named_modules()}
        batches = BATCHES[self.blank.training]
        self.runs = [
            DryRun(self.blank, self.graph, batch, self.shape, self.root) for batch in batches
        ]
        name, by_keyword = images_argument(self.root)
        self.images = self.create_proxy("placeholder", name, (), {})
        if by_keyword:
            return lambda images: self.root(**{name: images}), [self.images]
        return self.root, [self.images]

    def create_arg(self, a: Any) -> Any:
        """An argument of a node; the device of the blank weights is that of the images."""
        if _is_blank(a):
            return self.create_proxy("call_function", getattr, (self.images, "device"), {}).node
        return super().create_arg(a)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """A node, unless a `forward` has entered autocast, which a graph does not hold."""
        if autocast() != self.autocast:
            raise RuntimeError("it enters autocast, which belongs around its call")
        return super().create_node(*args, **kwargs)

    def proxy(self, node: fx.Node) -> Value:
        return Value(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if not module_qualified_name:
            return False
        kept = module_qualified_name in self.kept
        if kept or type(m) in FOLLOWED:
            return kept
        stochastic = type(m).__name__ in STOCHASTIC
        return stochastic or bool(super().is_leaf_module(m, module_qualified_name))

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self.answering:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self.answering or not (m in self.paths or _owns_tensors(m)):
            return forward(*args, **kwargs)  # made inside `forward`: `nn.ReLU()`, `self.layers[:2]`
        if (inner := compiled(m)) is not None:
            return inner(*args, **kwargs)
        if m.__module__.startswith("torch.nn.") and not args and "input" in kwargs:
            args, kwargs = (kwargs["input"],), {k: v for k, v in kwargs.items() if k != "input"}
        path, before = self.path_of_module(m), next(iter(reversed(self.graph.nodes)))
        stack = copy.copy(self.module_stack)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:  # the module's own code may raise anything on a proxy
            if self.is_leaf_module(m, path) or not path:
                raise
            self.kept[path] = reason(error)
        self.module_stack = stack
        self._erase_after(before)
        return super().call_module(m, forward, args, kwargs)

    def _erase_after(self, last: fx.Node) -> None:
        """Take back all nodes after one; tensors stay, since later nodes may use them."""
        for node in reversed(self.graph.nodes):
            if node is last:
                return
            if node.op != "get_attr":
                self.graph.erase_node(node)

    def answer(self, proxy: fx.Proxy, question: Callable[[Any], Any]) -> Any:
        """The answer to a question about a value, if it holds for any number of images."""
        node = proxy.node
        with self._answering():
            values = [run.value(node) for run in self.runs]
            try:
                answers = [question(value) for value in values]
            except (RuntimeError, NotImplementedError):  # of a tensor without data
                raise _UnansweredError(VALUES) from None
        if any(answer != answers[0] for answer in answers):
            raise _UnansweredError("its control flow depends on the number of images")
        return answers[0]

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        """Let modules run as usual instead of being traced."""
        before, self.answering = self.answering, True
        try:
            yield
        finally:
            self.answering = before

    def to_bool(self, obj: fx.Proxy) -> bool:
        return bool(self.answer(obj, bool))

    def iter(self, obj: Any) -> Iterator[Any]:
        keys = self.answer(obj, lambda value: list(value) if _is_mapping(value) else None)
        if keys is not None:
            return iter(keys)
        return iter([obj[index] for index in range(self.answer(obj, len))])

    def keys(self, obj: fx.Proxy) -> Any:
        return self.answer(obj, lambda value: list(value.keys()))


def images_argument(module: nn.Module) -> tuple[str, bool]:
    """The name of the argument that takes the images, and whether it is a keyword.

    Raises:
        ArchitectureError: the module needs no argument, or several.
    """
    arguments = list(inspect.signature(module.forward).parameters.values())
    needed = [
        argument.name
        for argument in arguments
        if argument.default is argument.empty
        and argument.kind not in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD)
    ]
    if len(needed) > 1:
        raise ArchitectureError(
            f"{type(module).__name__}.forward needs {len(needed)} inputs ({listed(needed)}): "
            "expected one, the images; give the others a default, or wrap the module in one "
            "that passes them"
        )
    if not arguments:
        raise ArchitectureError(f"{type(module).__name__}.forward takes no input")
    first = next((each for each in arguments if each.name in needed), arguments[0])
    return first.name, first.kind is first.KEYWORD_ONLY


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _owns_tensors(module: nn.Module) -> bool:
    """Whether a module has tensors apart from those of its submodules."""
    return bool(module._parameters or module._buffers)


def _is_blank(value: Any) -> bool:
    """Whether a value is the device of weights without values."""
    return isinstance(value, torch.device) and value.type == "meta"


def reason(error: BaseException) -> str:
    """The first line of an error, and the line of the module's own code that raised it."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not _of_tool(frame)]
    return f"{reason} ({own[-1].filename.rpartition('/')[2]}:{own[-1].lineno})" if own else reason


def _of_tool(frame: traceback.FrameSummary) -> bool:
    name = frame.filename.replace("\\", "/")
    return "/torch/" in name or "/gatepruner/networks/" in name or name.startswith("<")
