"""The residual additions that a module really computes, found while it runs.

An oracle outside the package: it has no graph, but watches every call of a torch function that
the module's own Python code makes, and which values each result was computed from.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

ADDS = {"add", "add_", "__add__", "__radd__", "__iadd__"}
OVERWRITE = {"__iadd__", "__isub__", "__imul__", "__itruediv__", "__setitem__"}
# Results that have the form of their argument, but none of its values.
FORMS = {
    *("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"),
    *("new_zeros", "new_ones", "new_empty", "new_full", "new_tensor"),
}
OF_FIRST = {"expand_as", "view_as", "reshape_as", "type_as", "to"}
IMAGES = 1  # the bit of the images among the ancestors of a value


@dataclass(frozen=True)
class Ran:
    """A residual addition that ran.

    Attributes:
        index: its number among all that ran.
        path: of the module whose `forward` adds.
        branch: which operand has more parameters of its own, 0 or 1; None where both have as many.
    """

    index: int
    path: str
    branch: int | None


class Watch(TorchFunctionMode):
    """Watches the additions of a module, and lets some of them do without their branch.

    Attributes:
        additions: those that ran, in order.
    """

    def __init__(self, module: nn.Module, images: Tensor, cut: Callable[[Ran], int | None]) -> None:
        """Prepare one run.

        Args:
            module: what runs.
            images: its input.
            cut: which operand of an addition is to be 0; None for neither.
        """
        super().__init__()
        self.cut = cut
        self.additions: list[Ran] = []
        self.sums: list[int] = []  # the bit of the result of each
        self.stack = [""]
        self.alive: list[Any] = []
        self.above: dict[int, int] = {}  # ancestors of what a storage holds, as bits
        self.latest: dict[int, int] = {}  # the bit of what a storage holds
        self.sizes: dict[int, int] = {}  # numbers in each parameter, by its storage
        self.weights: dict[int, int] = {}  # numbers in the parameters of each call, by its bit
        self.bits = 0
        self.constants = set[int]()
        self._hold(images, 0)
        for layer in module.modules():
            own = [value for value in tree_leaves(vars(layer)) if isinstance(value, Tensor)]
            for tensor in own:
                self.constants.add(id(tensor))
                self._hold(tensor, 0)
                if isinstance(tensor, nn.Parameter):
                    self.sizes[self._storage(tensor)] = tensor.numel()

    def _storage(self, tensor: Tensor) -> int:
        return int(tensor.untyped_storage()._cdata)

    def _hold(self, tensor: Tensor, ancestors: int) -> None:
        """Note what a storage holds from now on."""
        storage = self._storage(tensor)
        self.alive.append(tensor)
        self.latest[storage] = 1 << self.bits
        self.above[storage] = ancestors | 1 << self.bits
        self.bits += 1

    def of(self, tensor: Tensor) -> int:
        """The ancestors of a tensor; one of unknown origin comes from the images."""
        storage = self._storage(tensor)
        if storage not in self.above:
            self._hold(tensor, IMAGES)
        return self.above[storage]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        ancestors = 0
        for tensor in [] if name in FORMS else given[:1] if name in OF_FIRST else given:
            ancestors |= self.of(tensor)
        before = len(self.additions)
        if name in ADDS:
            args, kwargs = self._added(name, args, kwargs)
        result = func(*args, **kwargs)
        overwrites = name in OVERWRITE or (name.endswith("_") and not name.endswith("__"))
        overwrites |= bool(kwargs.get("inplace")) or "out" in kwargs
        held = {self._storage(tensor) for tensor in given}
        made = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
        if overwrites:
            made += [kwargs["out"]] if isinstance(kwargs.get("out"), Tensor) else given[:1]
        for tensor in made:
            if overwrites or self._storage(tensor) not in held:
                self._hold(tensor, ancestors)
                size = sum(self.sizes.get(storage, 0) for storage in held)
                self.weights[self.latest[self._storage(tensor)]] = size
        if len(self.additions) > before:
            self.sums.append(self.latest[self._storage(result)])
        return result

    def leading_to(self, result: Any) -> list[Ran]:
        """The additions without which a result would be another."""
        above = 0
        for tensor in tree_leaves(result):
            above |= self.of(tensor) if isinstance(tensor, Tensor) else 0
        pairs = zip(self.additions, self.sums, strict=True)
        return [ran for ran, bit in pairs if above & bit]

    def _added(self, name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The operands of an addition, one of them 0 if it is to be cut."""
        named = ("input", "other")
        pair = [args[i] if i < len(args) else kwargs.get(named[i]) for i in (0, 1)]
        if not all(isinstance(value, Tensor) for value in pair) or pair[0] is pair[1]:
            return args, kwargs
        if name == "__radd__":
            pair.reverse()
        if not self._residual(pair):
            return args, kwargs
        branch = self._branch(pair)
        whole = [
            value.shape == torch.broadcast_shapes(*(it.shape for it in pair)) for value in pair
        ]
        if not (any(whole) if branch is None else whole[1 - branch]):
            return args, kwargs
        ran = Ran(len(self.additions), self.stack[-1], branch)
        gone = self.cut(ran)
        self.additions.append(ran)
        if gone is None:
            return args, kwargs
        if name == "__radd__":
            pair.reverse()
            gone = 1 - gone
        if gone == 0 and name in ("add_", "__iadd__"):
            pair[0].zero_()
        else:
            pair[gone] = torch.zeros_like(pair[gone])
        rest = {key: value for key, value in kwargs.items() if key not in named}
        return (*pair, *args[2:]), rest

    def _residual(self, pair: Sequence[Tensor]) -> bool:
        """Whether both depend on the images, or one does and comes from the other, no constant."""
        ancestors = [self.of(value) for value in pair]
        dependent = [value for value, above in zip(pair, ancestors, strict=True) if above & IMAGES]
        if len(dependent) != 1:
            return len(dependent) == 2
        other = pair[1] if dependent[0] is pair[0] else pair[0]
        if id(other) in self.constants:
            return False
        return bool(self.of(dependent[0]) & self.latest[self._storage(other)])

    def _branch(self, pair: Sequence[Tensor]) -> int | None:
        first, second = (self.of(value) for value in pair)
        weights = [self._weight(first & ~second), self._weight(second & ~first)]
        return None if weights[0] == weights[1] else int(weights[1] > weights[0])

    def _weight(self, ancestors: int) -> int:
        return sum(size for bit, size in self.weights.items() if ancestors & bit)


@contextlib.contextmanager
def _paths(module: nn.Module, stack: list[str]) -> Iterator[None]:
    """Let the stack have the path of the module that runs on top."""
    with contextlib.ExitStack() as hooks:
        for path, layer in module.named_modules():
            if path and not isinstance(layer, torch.jit.ScriptModule):
                enter = layer.register_forward_pre_hook(
                    lambda *_, path=path, **__: stack.append(path)
                )
                leave = layer.register_forward_hook(lambda *_: (stack.pop(), None)[1])
                hooks.callback(enter.remove)
                hooks.callback(leave.remove)
        yield


def run(
    module: nn.Module,
    images: Tensor,
    cut: Callable[[Ran], int | None] = lambda ran: None,
) -> tuple[Tensor, list[Ran]]:
    """The logits of a module, and the residual additions that lead to them.

    Args:
        module: in evaluation.
        images: its input.
        cut: of an addition, the operand that is to be 0; None for neither.
    """
    watch = Watch(module, images, cut)
    with torch.no_grad(), _paths(module, watch.stack), watch:
        result = logits(module(images))
    return result, watch.leading_to(result)


def logits(result: Any) -> Tensor:
    """The logits in what a module returns."""
    if isinstance(result, Tensor):
        return result
    if isinstance(result, dict):
        return result["logits"] if "logits" in result else result["out"]
    return result.logits if hasattr(result, "logits") else result[0]
