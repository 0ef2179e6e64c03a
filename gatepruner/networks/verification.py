"""Verification: whether a network computes what its author's module computes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from gatepruner.errors import ArchitectureError, listed
from gatepruner.models import Shape
from gatepruner.networks.logits import logits_of
from gatepruner.networks.nodes import path_of
from gatepruner.networks.tracer import images_argument

TOLERANCE = 1e-4  # of the largest logit; on a CPU, the difference is usually 0
BATCH = 3  # images
Run = Callable[[], Any]
Build = Callable[[Mapping[str, Tensor]], fx.GraphModule]


class _EqualDraws(TorchFunctionMode):
    """Every operation draws the same random numbers, in whichever order they come."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.generators = [torch.default_generator]
        if device.type == "cuda":
            self.generators.append(torch.cuda.default_generators[device.index])

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for generator in self.generators:
            generator.manual_seed(0)
        return func(*args, **(kwargs or {}))


def verify(author: nn.Module, shape: Shape, build: Build) -> None:
    """Compare a network with its author's module on random images.

    In evaluation, and in training if the module computes anything there. Weights that are all 0, as
    the last scale of a new branch may be, get other values, since they would hide a difference. The
    module keeps its mode, weights and buffers.

    Args:
        author: the module, on any device.
        shape: `(C, H, W)` of one image.
        build: builds the network from weights, by the module's names for them.

    Raises:
        ArchitectureError: the module cannot compute such images, or the network computes something
            else; names the first layer that differs.
    """
    comparison = _Comparison(author, shape, build)
    for training in (False, True):
        with _in_mode(author, training):
            comparison.check(training)


class _Comparison:
    """A network and its author's module, with the same weights and images."""

    def __init__(self, author: nn.Module, shape: Shape, build: Build) -> None:
        self.author, self.shape, self.build = author, shape, build
        self.name = type(author).__name__
        tensors = [*author.parameters(), *author.buffers()]
        devices = [tensor.device for tensor in tensors if not tensor.is_meta]
        self.device = devices[0] if devices else torch.device("cpu")
        images = torch.randn(BATCH, *shape, generator=torch.Generator().manual_seed(0))
        self.images = images.to(self.device)

    def author_run(self) -> Run:
        """A run of the author's module, with copies of its weights, since it may change them."""
        author = self.author
        tensors = self._copies({**dict(author.named_parameters()), **dict(author.named_buffers())})
        name, by_keyword = images_argument(author)
        args, kwargs = ((), {name: self.images}) if by_keyword else ((self.images,), {})
        return lambda: self._repeatable(lambda: functional_call(author, tensors, args, kwargs))

    def built_run(self, built: nn.Module) -> Run:
        """A run of the network that was built."""
        return lambda: self._repeatable(lambda: built(self.images))

    def built(self, training: bool) -> fx.GraphModule:
        """The network, built from copies of the weights."""
        author = self.author
        tensors = {
            **dict(author.named_parameters(remove_duplicate=False)),
            **dict(author.named_buffers(remove_duplicate=False)),
        }
        module = self.build(self._copies(tensors)).to(self.device)
        module.train(training)
        return module

    def _copies(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key: _telling(tensor.detach()).to(self.device) for key, tensor in tensors.items()}

    def _repeatable(self, run: Run) -> Tensor:
        devices = [self.device] if self.device.type == "cuda" else []
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices=devices),
            torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
            _EqualDraws(self.device),
        ):
            return logits_of(run(), self.name)

    def check(self, training: bool) -> None:
        """Compare in one mode, that of the author's module."""
        try:
            expected = self.author_run()()
        except Exception as error:  # the module's own code may raise anything
            if training:
                return
            if isinstance(error, ArchitectureError):
                raise
            raise ArchitectureError(
                f"{self.name} cannot compute images of {'x'.join(map(str, self.shape))}: "
                f"{_first_line(error)}; name the size that it expects",
                input_shape="(C, H, W)",
            ) from error
        mode = "training" if training else "evaluation"
        built = self.built(training)
        try:
            difference = _difference(self.built_run(built)(), expected)
        except Exception as error:
            raise ArchitectureError(
                f"{self.name} runs in {mode}, but its traced graph does not: {_first_line(error)}"
            ) from error
        if difference <= TOLERANCE:
            return
        frozen = [path for path, part in self.author.named_modules() if training > part.training]
        if frozen:
            raise ArchitectureError(
                f"{self.name}.train() leaves {listed(frozen, 4)} in evaluation, which a network "
                "built here does not: bring the module without that, and freeze when you train"
            )
        where, leaves = self._origin(training)
        raise ArchitectureError(
            f"{self.name} is not traced as it computes: in {mode}, the logits of its graph differ "
            f"from the module's by {difference:.2g} of the largest, {where}",
            **leaves,
        )

    def _origin(self, training: bool) -> tuple[str, dict[str, Any]]:
        """Where the two begin to differ, and what to keep whole, for the message."""
        built = self.built(training)
        leaves = [node for node in built.graph.nodes if node.op == "call_module"]
        known = {path for path, _ in self.author.named_modules()}
        leaves = [node for node in leaves if node.target in known]
        targets = {str(node.target) for node in leaves}
        theirs = _calls(self.author, targets, self.author_run())
        ours = _calls(built, targets, self.built_run(built))
        (last,) = (node for node in built.graph.nodes if node.op == "output")
        for node, mine, other in zip(leaves, ours, theirs, strict=False):
            if mine[0] != other[0] or _difference(mine[1], other[1]) > TOLERANCE:
                return _begins(self.author, path_of(_above(node)), f"before {node.target}")
            if _difference(mine[2], other[2]) > TOLERANCE:
                return _begins(self.author, path_of(node), f"in what {node.target} returns")
        return _begins(self.author, path_of(_above(last)), "after its last layer")


def _begins(author: nn.Module, path: str, where: str) -> tuple[str, dict[str, Any]]:
    """Where a difference begins, and what to keep whole, for the message."""
    kind = type(author.get_submodule(path)).__name__
    if path:
        return f"first in {path}, {where}; keep that module whole", {"leaves": (kind,)}
    told = f"first in {kind}.forward, {where}; move that part of it into a module of its own"
    return f"{told}, and keep this whole", {"leaves": ("ThatModule",)}


def _above(node: fx.Node) -> fx.Node:
    """The node whose value a node takes."""
    return node.all_input_nodes[0]


def _calls(
    module: nn.Module, targets: set[str], run: Run
) -> list[tuple[str, list[Tensor], list[Tensor]]]:
    """Target, inputs and outputs of every call of a submodule, in order."""
    calls: list[tuple[str, list[Tensor], list[Tensor]]] = []

    def record(target: str) -> tuple[Callable[..., None], Callable[..., None]]:
        def before(layer: nn.Module, args: Any) -> None:
            calls.append((target, [tensor.clone() for tensor in _tensors(args)], []))

        def after(layer: nn.Module, args: Any, output: Any) -> None:
            call = next(call for call in reversed(calls) if call[0] == target)
            call[2].extend(tensor.clone() for tensor in _tensors(output))

        return before, after

    with contextlib.ExitStack() as hooks:
        for target in targets:
            before, after = record(target)
            layer = module.get_submodule(target)
            hooks.enter_context(layer.register_forward_pre_hook(before))
            hooks.enter_context(layer.register_forward_hook(after))
        run()
    return calls


@contextlib.contextmanager
def _in_mode(module: nn.Module, training: bool) -> Iterator[None]:
    """A module in training or evaluation, whose parts then get back the modes they had."""
    modes = {part: part.training for part in module.modules()}
    module.train(training)
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def _telling(tensor: Tensor) -> Tensor:
    """A copy in float32, with other values if all are 0 or there are none."""
    if not tensor.is_floating_point():
        return torch.zeros_like(tensor, device="cpu") if tensor.is_meta else tensor.clone()
    if tensor.is_meta or not bool(tensor.any()):
        generator = torch.Generator().manual_seed(0)  # equal values for a tensor with two keys
        return 0.2 * torch.rand(tensor.shape, generator=generator)
    return tensor.to(torch.float32, copy=True)


def _difference(one: Any, other: Any) -> float:
    """The largest difference of the tensors in two values, relative to the largest number."""
    pairs = list(zip(_tensors(one), _tensors(other), strict=True))
    return max((_relative(a.double(), b.double()) for a, b in pairs), default=0.0)


def _relative(one: Tensor, other: Tensor) -> float:
    if one.shape != other.shape:
        return float("inf")
    differs = ~torch.isclose(one, other, rtol=0.0, atol=0.0, equal_nan=True)
    if not bool(differs.any()):
        return 0.0
    difference = (one - other)[differs].abs().nan_to_num(float("inf"), float("inf"))
    largest = other.abs().nan_to_num(0.0, 0.0).max()
    return float(difference.max() / largest)


def _tensors(value: Any) -> list[Tensor]:
    """The tensors in a value, which may be nested."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
