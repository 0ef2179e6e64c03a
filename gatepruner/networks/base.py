"""The base of a network: the data from which its source constructs a module, and its trace."""

from __future__ import annotations

import copy
import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gatepruner import models as own
from gatepruner.errors import ArchitectureError, first_line, nearest
from gatepruner.models import Shape
from gatepruner.models.variants import VARIANTS, vary
from gatepruner.networks.arguments import check_arguments, check_name, check_shape
from gatepruner.networks.caches import caches_of
from gatepruner.networks.graph import Trace, trace
from gatepruner.networks.huggingface import class_of, construct_classifier
from gatepruner.networks.wrappers import unwrapped


class BaseDocument(msgspec.Struct, forbid_unknown_fields=True):
    """A base as JSON."""

    source: Literal["gatepruner", "torchvision", "timm", "transformers", "caller"]
    name: str
    input_shape: list[int]
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Base:
    """What constructs a network, and from which arguments.

    Attributes:
        source: `"gatepruner"`, `"torchvision"`, `"timm"`, `"transformers"`, or `"caller"` for a
            caller's module.
        name: the source's name for the network; transformers' type of model, such as `vit`; for a
            caller's module, the name of its class.
        input_shape: `(C, H, W)` of one image.
        arguments: other arguments of the constructor, such as `num_classes`.
        module: a caller's module without its weights; not part of the JSON.
        leaves: the caller's module classes, or names of them, that tracing keeps whole; not part of
            the JSON.
        make: makes a caller's module anew, with fresh weights; not part of the JSON.
    """

    source: str
    name: str
    input_shape: Shape
    arguments: tuple[tuple[str, Any], ...] = ()
    module: nn.Module | None = field(default=None, repr=False)
    leaves: tuple[type[nn.Module] | str, ...] = field(default=(), repr=False)
    make: Callable[[], nn.Module] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse what may not reach a constructor; see `gatepruner.networks.arguments`.

        Raises:
            ArchitectureError: the name, the shape or an argument is none that is known.
        """
        check_name(self.source, self.name)
        check_shape(self.source, self.name, self.input_shape)
        check_arguments(self.source, self.name, self.arguments)

    def __str__(self) -> str:
        prefix = "" if self.source in ("gatepruner", "caller") else f"{self.source}:"
        return f"{prefix}{self.name}"

    def construct(self) -> nn.Module:
        """A module with fresh weights on torch's default device."""
        return SOURCES[self.source](self)


def _construct_own(base: Base) -> nn.Module:
    return own.construct(base.name, base.input_shape, **dict(base.arguments))


# What constructors and layers raise on arguments and images that they cannot take.
REFUSALS = (
    *(ArithmeticError, AssertionError, AttributeError, IndexError, KeyError),
    *(RuntimeError, TypeError, ValueError),
)
LIBRARIES = {"torchvision": "torchvision.models", "timm": "timm"}


def _library(base: Base) -> Any:
    """The package that constructs a base."""
    try:
        return importlib.import_module(LIBRARIES[base.source])
    except ImportError as error:
        package = LIBRARIES[base.source].partition(".")[0]
        raise ArchitectureError(f"{base} needs {package}: pip install {package}") from error


# torchvision constructors that need the image size: prefix of the name, argument, number of axes.
SIZED = {"vit_": ("image_size", 1), "maxvit": ("input_size", 2)}


def _construct_torchvision(base: Base) -> nn.Module:
    models = _library(base)
    names = [name for group in (models, models.video) for name in models.list_models(group)]
    if base.name not in names:
        near = nearest(base.name, names)
        raise ArchitectureError(f"torchvision has no classification model {base.name!r}{near}")
    arguments = dict(base.arguments)
    for prefix, (argument, axes) in SIZED.items():
        if base.name.startswith(prefix):
            size = base.input_shape[1:]
            arguments[argument] = size if axes == 2 else size[0]
    varied = {key: arguments.pop(key) for key in VARIANTS if key in arguments}
    try:
        module: nn.Module = models.get_model(base.name, weights=None, **arguments)
        channels = base.input_shape[0]
        return vary(module, channels, **varied) if varied or channels != 3 else module
    except NotImplementedError:  # of a constructor that computes with tensors; see `blank`
        raise
    except REFUSALS as error:
        raise ArchitectureError(f"{base}: {first_line(error)}") from None


def published_shape(name: str) -> Shape:
    """`(C, H, W)` of one image as timm publishes it for a name; 3 x 224 x 224 if it does not."""
    try:
        timm = importlib.import_module("timm")
    except ImportError:
        return 3, 224, 224
    cfg = timm.get_pretrained_cfg(name)
    return (3, 224, 224) if cfg is None else cfg.input_size


def _construct_timm(base: Base) -> nn.Module:
    timm = _library(base)
    channels, *size = base.input_shape
    given = dict(base.arguments) | ({} if channels == 3 else {"in_chans": channels})
    # Transformers need the image size; other networks do not accept the argument.
    usual = size == [*published_shape(base.name)[1:]]
    attempts = [given] if usual else [{"img_size": tuple(size), **given}, given]
    for arguments in attempts:
        try:
            module: nn.Module = timm.create_model(base.name, pretrained=False, **arguments)
            return module
        except TypeError as error:
            reason: Exception = error
        except REFUSALS as error:
            reason = error
            break
    raise ArchitectureError(f"{base}: {first_line(reason)}{nearest(base.name, timm.list_models())}")


def _construct_transformers(base: Base) -> nn.Module:
    return construct_classifier(base.name, dict(base.arguments))


def _construct_caller(base: Base) -> nn.Module:
    if base.module is None:
        raise ArchitectureError(
            f"the file does not contain the code of the module {base.name}: pass a module of the "
            "same architecture, load(path, module=...)"
        )
    if base.make is not None:
        return copy.deepcopy(unwrapped(base.make())).cpu().float()
    module = copy.deepcopy(base.module)
    if torch.get_default_device().type != "meta":
        _initialise(module)
    return module


def _initialise(module: nn.Module) -> None:
    """Give a module without weights new ones, as its layers initialise themselves."""
    for layer in module.modules():
        own = {
            **dict(layer.named_parameters(recurse=False)),
            **dict(layer.named_buffers("", False)),
        }
        if not any(tensor.is_meta for tensor in own.values()):
            continue
        kept = {key: value for key, value in layer.named_buffers("", False) if not value.is_meta}
        layer.to_empty(device=torch.get_default_device(), recurse=False)
        reset = getattr(layer, "reset_parameters", None)
        if reset is not None:
            reset()
        else:
            for parameter in layer.parameters(recurse=False):
                nn.init.normal_(parameter, std=0.02)
            for buffer in layer.buffers(recurse=False):
                buffer.zero_()
        layer._buffers.update(kept)  # no file contains them


SOURCES: dict[str, Callable[[Base], nn.Module]] = {
    "gatepruner": _construct_own,
    "torchvision": _construct_torchvision,
    "timm": _construct_timm,
    "transformers": _construct_transformers,
    "caller": _construct_caller,
}


class _WithoutInitialising(TorchFunctionMode):
    """Skips the random initialisation of weights that are not used."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in {"normal_", "uniform_", "erfinv_"}:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


class _ParametersOnMeta(TorchFunctionMode):
    """Makes without memory what layers allocate for their weights, by `torch.empty`."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def blank(base: Base) -> nn.Module:
    """The base's module with its parameters and buffers on the meta device.

    Non-persistent buffers keep their values, since no file contains them.
    """
    if base.module is not None:
        return copy.deepcopy(base.module)
    if base.source in LIBRARIES:
        _library(base)  # import it before the modes below are active
    if base.source == "transformers":
        class_of(base.name)  # the same
    with _WithoutInitialising():
        try:
            with torch.device("meta"):
                module = base.construct()
            for cache in caches_of(module):
                cache.cache_clear()
        except NotImplementedError:  # the constructor computes with tensors, as regnet's does
            return without_weights(_with_values(base))
        if {key for key, _ in module.named_buffers()} <= set(module.state_dict()):
            return module
        return without_weights(base.construct())


def _with_values(base: Base) -> nn.Module:
    """The base's module with real buffers; its parameters take no memory where that is possible."""
    try:
        with _ParametersOnMeta():
            module = base.construct()
    except (NotImplementedError, RuntimeError):  # it computes with what it has allocated
        return base.construct()
    others = [value for layer in module.modules() for value in vars(layer).values()]
    lost = [*module.buffers(), *(value for value in others if isinstance(value, Tensor))]
    return base.construct() if any(tensor.is_meta for tensor in lost) else module


def without_weights(module: nn.Module) -> nn.Module:
    """A copy of a module with the tensors of its state dict on the meta device.

    Other buffers keep their values, on the CPU. All numbers are of float32, whatever they were.
    """
    memo: dict[int, Any] = {}
    for buffer in module.buffers():
        if buffer.is_meta:
            continue
        memo[id(buffer)] = buffer.detach().to("cpu", _single(buffer.dtype), copy=True)
    for layer in module.modules():  # what old hooks compute, such as those of weight_norm
        computed = [value for value in vars(layer).values() if isinstance(value, Tensor)]
        memo |= {id(value): value.detach().to("meta") for value in computed if not value.is_leaf}
    for tensor in module.state_dict(keep_vars=True).values():
        if not isinstance(tensor, Tensor):
            continue
        blank = torch.empty(tensor.shape, dtype=_single(tensor.dtype), device="meta")
        if isinstance(tensor, nn.Parameter):
            blank = nn.Parameter(blank, tensor.requires_grad)
        memo[id(tensor)] = blank
    return copy.deepcopy(module, memo)


def _single(dtype: torch.dtype) -> torch.dtype:
    """The type that numbers of a type are computed in."""
    return torch.float32 if dtype.is_floating_point else dtype


@functools.lru_cache(maxsize=32)
def traced(base: Base) -> Trace:
    """The base's trace; cached, so it must not be changed."""
    try:
        return trace(blank(base), str(base), base.input_shape, base.leaves)
    except REFUSALS as error:
        raise refusal(base, error) from None


def refusal(base: Base, error: BaseException) -> ArchitectureError:
    """What is said of a base that does not take images of its size."""
    size = "x".join(map(str, base.input_shape))
    return ArchitectureError(
        f"{base} cannot take images of {size} (channels, height, width): {first_line(error)}"
    )
