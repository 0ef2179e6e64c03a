"""Modules as people write them: one small network for each way of writing a block or a network.

Each block is a `forward(self, x)` over the same layers; the author's module is the one that has it.
"""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from cases.case import Case, Row
from cases.networks import as_module
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

KIND = "modules as they are written"
Forward = Callable[[Any, Tensor], Tensor]


class Block(nn.Module):
    """The layers of a block, and a way of computing with them."""

    def __init__(self, way: Forward, width: int = 8) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.scale = nn.Parameter(torch.rand(width, 1, 1) + 0.5)
        self.linear = nn.Linear(width, width)
        self.drop, self.act = nn.Dropout(0.3), nn.ReLU(inplace=True)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mask", torch.rand(width, 1, 1), persistent=False)
        self.parts = nn.ModuleDict({"a": nn.Conv2d(width, width, 1), "b": nn.Identity()})
        self.lists = nn.ParameterList([nn.Parameter(torch.rand(())) for _ in range(2)])
        self.way = [way]  # in a list, so that it is no method of the class

    def f(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.way[0](self, x)


class Net(nn.Module):
    """A stem, three blocks and a head; the logits in the form that a function gives them."""

    def __init__(self, way: Forward, form: Callable[[Tensor], Any] = lambda y: y) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 4, padding=1)
        self.blocks = nn.ModuleList([Block(way) for _ in range(3)])
        self.head = nn.Linear(8, 5)
        self.form = form

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, x: Tensor) -> Any:
        return self.form(self.head(self.features(x).mean((2, 3))))


def plain(self: Any, x: Tensor) -> Tensor:
    return F.relu(x + self.f(x))


def in_place(self: Any, x: Tensor) -> Tensor:
    y = x.clone()
    y.add_(self.f(x), alpha=-0.5)
    return y


def halves(self: Any, x: Tensor) -> Tensor:
    y = self.f(x)
    y[:, :4] += x[:, :4]
    y[:, 4:] += x[:, 4:]
    return y


def view_in_place(self: Any, x: Tensor) -> Tensor:
    y = self.f(x)
    y.view(-1).relu_()
    y[:, :4].mul_(2)
    return x + y


def chunk_in_place(self: Any, x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    a += 1
    return x + self.f(torch.cat([a, b], 1))


def transposed_in_place(self: Any, x: Tensor) -> Tensor:
    x.transpose(1, 2).mul_(1.5)
    return x + self.f(x)


def alias(self: Any, x: Tensor) -> Tensor:
    y = x
    y += self.f(x)
    return y


def into(self: Any, x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    torch.add(x, self.f(x), out=out)
    return out


def copied(self: Any, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y.copy_(self.f(x))
    return x + y


def options(self: Any, x: Tensor, scale: Any = None, mask: Any = None, *, k: int = 2) -> Tensor:
    y = self.f(x)
    if scale is not None:
        y = y * scale
    return x + y * k if mask is None else x


def drop_path(self: Any, x: Tensor) -> Tensor:
    def dropped(y: Tensor, rate: float, training: bool) -> Tensor:
        if rate == 0 or not training:
            return y
        return y * y.new_empty(y.shape[0], 1, 1, 1).bernoulli_(1 - rate) / (1 - rate)

    return x + dropped(self.f(x), 0.2, self.training)


def layer_drop(self: Any, x: Tensor) -> Tensor:
    if self.training and random.random() < 0.1:
        return x
    return x + self.f(x)


def shapes(self: Any, x: Tensor) -> Tensor:
    _, c, h, _ = x.shape
    assert c == 8, "eight channels"
    pad = torch.zeros(x.size(0), c, h, 1, device=x.device, dtype=x.dtype)
    if h % 2:
        x = F.pad(x, (0, 1, 0, 1))
    return x + torch.cat([self.f(x)[..., :-1], pad], 3)


def loop(self: Any, x: Tensor) -> Tensor:
    for _ in range(x.shape[1] // 4):
        x = x + self.f(x)
    return x


def without_gradient(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = self.f(x)
    return x + y


def in_bfloat16(self: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y = self.f(x)
    return x + y


def in_float(self: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return x + self.f(x.float())


def counting(self: Any, x: Tensor) -> Tensor:
    self.count += 1
    return x + self.f(x)


def dictionary(self: Any, x: Tensor) -> Tensor:
    values = {"x": x}
    values["y"] = self.f(values["x"])
    return values["x"] + values.pop("y")


def by_value(self: Any, x: Tensor) -> Tensor:
    return x + self.f(x) if x.mean() > 0 else x


def item(self: Any, x: Tensor) -> Tensor:
    return x + self.f(x) * x.abs().max().item()


def attention(self: Any, x: Tensor) -> Tensor:
    y = x.flatten(2).transpose(1, 2)
    q, k, v = self.linear(y), y, y
    y = y + F.scaled_dot_product_attention(q, k, v, dropout_p=0.1 if self.training else 0.0)
    return y.transpose(1, 2).reshape(x.shape)


def stored(self: Any, x: Tensor) -> Tensor:
    self.last = self.f(x)
    return x + self.last


def masks(self: Any, x: Tensor) -> Tensor:
    inside = (x > -1) & (x < 1)
    return x + torch.where(inside | (x > 2), self.f(x), torch.zeros_like(x))


def guarded(self: Any, x: Tensor) -> Tensor:
    try:
        y = self.f(x)
    except RuntimeError:
        y = x
    return x + y


def scripting(self: Any, x: Tensor) -> Tensor:
    if torch.jit.is_scripting() or torch.jit.is_tracing():
        return x
    return x + self.f(x)


WAYS: dict[str, Forward] = {
    "x + f(x)": plain,
    "f(x) + x, then an activation in place": lambda self, x: self.act(self.f(x) + x),
    "x += f(x)": alias,
    "f(x).add_(x)": lambda self, x: self.f(x).add_(x),
    "f(x).__radd__(x)": lambda self, x: self.f(x).__radd__(x),
    "torch.add(input=, other=)": lambda self, x: torch.add(input=self.scale * self.f(x), other=x),
    "torch.add(alpha=0.2)": lambda self, x: torch.add(x, self.f(x), alpha=0.2),
    "x.add(alpha=)": lambda self, x: x.add(self.f(x), alpha=0.2),
    "x.add_(alpha=)": in_place,
    "torch.add(out=)": into,
    "sum([x, f(x)])": lambda self, x: sum([x, self.f(x)]),  # type: ignore[return-value]
    "x - f(x)": lambda self, x: x - self.f(x),
    "torch.lerp": lambda self, x: torch.lerp(x, self.f(x), 0.5),
    "torch.addcmul": lambda self, x: torch.addcmul(x, self.f(x), self.scale, value=2.0),
    "stack and sum": lambda self, x: torch.stack([x, self.f(x)]).sum(0),
    "index_add": lambda self, x: x.index_add(1, torch.arange(8), self.f(x)),
    "one half after the other": halves,
    "views in place": view_in_place,
    "chunks in place": chunk_in_place,
    "a transposed view in place": transposed_in_place,
    "copy_": copied,
    "clamp_": lambda self, x: (x + self.f(x)).clamp_(0, 6),
    "optional arguments": options,
    "drop path as a function": drop_path,
    "layers dropped by Python's random numbers": layer_drop,
    "noise in training": lambda self, x: (
        x + self.f(x) + (0.1 * torch.randn_like(x) if self.training else 0)
    ),
    "functional dropout": lambda self, x: x + F.dropout(self.f(x), 0.2, self.training),
    "asserts and tests of shapes": shapes,
    "a loop over a shape": loop,
    "activation made in forward": lambda self, x: nn.ReLU()(x + self.f(x)),
    "torch.utils.checkpoint": lambda self, x: x + checkpoint(self.f, x, use_reentrant=False),
    "no_grad": without_gradient,
    "autocast to bfloat16": in_bfloat16,
    "autocast off": in_float,
    "half and back": lambda self, x: x + self.f(x).half().float(),
    "a buffer that counts": counting,
    "an attribute stored in forward": stored,
    "a dictionary of values": dictionary,
    "where, isnan, masks": masks,
    "a test of a value": by_value,
    "item()": item,
    "attention as a function": attention,
    "einsum": lambda self, x: torch.einsum("nchw->nchw", x) + self.f(x),
    "a parameter and a buffer": lambda self, x: x + self.scale * self.f(x) + self.mask,
    "a constant tensor": lambda self, x: x + self.f(x) * torch.tensor([0.5]),
    "ModuleDict and ParameterList": lambda self, x: (
        x + self.parts["a"](self.parts["b"](x)) * self.lists[1]
    ),
    "try and except": guarded,
    "is_scripting": scripting,
}


class TwoInputs(Net):
    """Needs a second input."""

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return super().forward(x + other)


class Flag(Net):
    """Has defaults after its first input."""

    def forward(self, x: Tensor, pool: Any = None, *args: Any, logits: bool = True) -> Any:
        x = self.features(x)
        return self.head(x.mean((2, 3)) if pool is None else pool(x)) if logits else x


class Reserved(nn.Module):
    """Has submodules named as attributes of every graph module."""

    def __init__(self) -> None:
        super().__init__()
        self.graph, self.meta = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.code = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.code((x + self.meta(self.graph(x))).mean((2, 3)))


class Twice(Net):
    """Uses its first block twice."""

    def features(self, x: Tensor) -> Tensor:
        return self.blocks[0](super().features(x))


class Encoder(nn.Module):
    """torch's own transformer layers."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.patches = nn.Conv2d(3, 16, 16, 16)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def reparametrised(function: Callable[[nn.Module], Any]) -> nn.Module:
    net = Net(plain)
    for block in net.blocks:
        function(block.conv)
    return net


def hooked() -> nn.Module:
    net = Net(plain)
    net.blocks[1].register_forward_hook(lambda module, args, output: 2 * output)
    return net


def filled(value: float) -> nn.Module:
    net = Net(plain)
    with torch.no_grad():
        net.blocks[1].conv.weight[0, 0, 0, 0] = value
    return net


def tied() -> nn.Module:
    net = Net(plain)
    net.blocks[2].conv.weight = net.blocks[0].conv.weight
    return net


PLAIN = functools.partial(Net, plain)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "logits in a dict": lambda: Net(plain, lambda y: {"logits": y}),
    "logits in a tuple": lambda: Net(plain, lambda y: (y,)),
    "flags and defaults of forward": lambda: Flag(plain),
    "submodules named meta, graph and code": Reserved,
    "a block used twice": lambda: Twice(plain),
    "torch's TransformerEncoder": Encoder,
    "weight_norm": lambda: reparametrised(nn.utils.parametrizations.weight_norm),
    "weight_norm of old": lambda: reparametrised(nn.utils.weight_norm),
    "spectral_norm": lambda: reparametrised(nn.utils.parametrizations.spectral_norm),
    "a pruning mask": lambda: reparametrised(
        lambda layer: nn.utils.prune.l1_unstructured(layer, "weight", 0.5)
    ),
    "tied weights": tied,
    "a forward hook": hooked,
    "DataParallel": lambda: nn.DataParallel(PLAIN()),
    "torch.compile": lambda: torch.compile(PLAIN(), backend="eager"),  # type: ignore[return-value]
    "AveragedModel": lambda: torch.optim.swa_utils.AveragedModel(PLAIN()),
    "channels last": lambda: PLAIN().to(memory_format=torch.channels_last),
    "frozen weights": lambda: PLAIN().requires_grad_(False),
    "a deep copy": lambda: copy.deepcopy(PLAIN()),
}
REFUSED: dict[str, Callable[[], nn.Module]] = {
    "two inputs": lambda: TwoInputs(plain),
    "two results": lambda: Net(plain, lambda y: (y, y.softmax(1))),
    "logits as an attribute of no known class": lambda: Net(
        plain, lambda y: SimpleNamespace(logits=y)
    ),
    "NaN in the weights": lambda: filled(float("nan")),
    "an infinite weight": lambda: filled(float("inf")),
    "weights on the meta device": lambda: PLAIN().to("meta"),
    "a scripted module": lambda: torch.jit.script(nn.Sequential(nn.Conv2d(3, 3, 1))),
    "a traced module": lambda: torch.jit.trace(PLAIN().eval(), torch.randn(1, 3, 64, 64)),
    "lazy layers": lambda: nn.Sequential(nn.LazyConv2d(3, 1)),
    "dynamically quantised": lambda: torch.ao.quantization.quantize_dynamic(PLAIN()),
}


def _made(make: Callable[[], nn.Module], side: int) -> nn.Module:
    torch.manual_seed(0)
    return make()


def refused(make: Callable[[], nn.Module]) -> Row:
    """Something that `Checkpoint.of` has to refuse; the row of what it accepts."""
    import gatepruner

    gatepruner.Checkpoint.of(make(), (3, 64, 64))
    return {"outcome": "right"}


def _cases() -> Iterator[Case]:
    ways = {f"block: {name}": functools.partial(Net, way) for name, way in WAYS.items()}
    for name, make in {**ways, **NETWORKS}.items():
        yield Case(KIND, name, functools.partial(as_module, functools.partial(_made, make)))
    for name, make in REFUSED.items():
        yield Case(KIND, name, functools.partial(refused, make), refusable=True)


CASES = tuple(_cases())
