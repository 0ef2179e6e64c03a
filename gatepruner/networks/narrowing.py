"""Narrowed layers: layers with fewer channels than those of the base, as sizes by their paths.

The sizes of a layer are those of its weight: `(O, I / groups, height, width)` of a convolution,
`(O, I)` of a linear layer, `(C,)` of a batch norm or a PReLU. A convolution with groups loses whole
groups.
The sizes of an attention are `(heads, channels of a head)`, and concern the reshapes in its code.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn

from gatepruner.networks.graph import Trace
from gatepruner.networks.nodes import OWNS_TENSORS, path_of

Sizes = tuple[int, ...]
Narrowed = tuple[tuple[str, Sizes], ...]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORM: Any = nn.modules.batchnorm._BatchNorm
PASSING = (BATCH_NORM, nn.PReLU)  # layers that pass on each channel by itself
LAYERS = (*CONVOLUTIONS, nn.Linear, *PASSING)
RESHAPES = ("reshape", "view")


def owns_weight(layer: nn.Module) -> bool:
    """Whether a layer has its weight itself, and does not make it, as with a weight norm."""
    return "weight" in layer._parameters


def narrowed_tensor(key: str, tensor: Tensor, sizes: Mapping[str, Sizes]) -> Tensor:
    """A tensor of a state dict with the sizes of its layer, without values; else itself."""
    layer, _, name = key.rpartition(".")
    return _resized(name, tensor, sizes[layer]) if layer in sizes else tensor


def _resized(name: str, tensor: Tensor, sizes: Sizes) -> Tensor:
    """A layer's tensor of that name in the sizes of the layer."""
    if not tensor.ndim:  # a counter
        return tensor
    blank = tensor.new_empty(sizes if name == "weight" else sizes[:1])
    return nn.Parameter(blank, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else blank


def narrow_layers(owners: Mapping[str, Any], narrowed: Narrowed) -> None:
    """Give layers their sizes.

    Args:
        owners: modules by the targets of a graph; those that contain a narrowed layer are changed.
        narrowed: layers and their sizes.
    """
    for path, sizes in narrowed:
        for target, owner in owners.items():
            if path == target or path.startswith(f"{target}."):
                _narrow(owner.get_submodule(path[len(target) + 1 :]), sizes)


def _narrow(layer: nn.Module, sizes: Sizes) -> None:
    changed: Any = layer
    if isinstance(layer, CONVOLUTIONS):
        changed.groups = groups_left(layer, sizes)
        changed.out_channels, changed.in_channels = sizes[0], sizes[1] * changed.groups
    elif isinstance(layer, nn.Linear):
        changed.out_features, changed.in_features = sizes
    elif isinstance(layer, nn.PReLU):
        changed.num_parameters = sizes[0]
    else:
        changed.num_features = sizes[0]
    for tensors in (layer._parameters, layer._buffers):
        for name, tensor in tensors.items():
            if tensor is not None:
                tensors[name] = _resized(name, tensor, sizes)  # type: ignore[assignment]


def groups_left(layer: Any, sizes: Sizes) -> int:
    """The number of groups of a convolution with these sizes."""
    return 1 if layer.groups == 1 else sizes[0] * layer.groups // layer.out_channels


def narrow_heads(node: fx.Node, copied: fx.Node, sizes: Mapping[str, Sizes]) -> None:
    """Let the reshape of an attention with fewer heads count these.

    Args:
        node: of the base's graph.
        copied: its copy, which is changed.
        sizes: by path, of attentions among others.
    """
    heads = sizes.get(path_of(node), ())
    if not is_reshape(node) or len(heads) != 2:
        return
    place = heads_counted(node, heads[1])
    if place is not None and copied.args[place] != -1:
        total = heads[0] if place == len(node.args) - 2 else heads[0] * heads[1]
        copied.update_arg(place, total)


def is_reshape(node: fx.Node) -> bool:
    """Whether a node reshapes a value, with its sizes as arguments."""
    return node.op == "call_method" and node.target in RESHAPES


def heads_counted(node: fx.Node, width: int) -> int | None:
    """Which argument of a reshape counts the heads of an attention, perhaps times their width.

    The last but one if heads are split off, as in `(N, T, 3, heads, width)`, and the last one if
    they are joined, as in `(N, T, heads * width)`; `None` if the reshape does neither.
    """
    before, after = (value.meta.get("shape") for value in (node.args[0], node))  # type: ignore
    if before is None or after is None or not isinstance(node.args[-1], int):
        return None
    if after[-1] == width and before[-1] % (width * after[-2]) == 0 and before[-1] > width:
        return len(node.args) - 2
    if before[-1] == width and after[-1] == width * before[-2]:
        return len(node.args) - 1
    return None


def is_used(path: str, graph: fx.Graph) -> bool:
    """Whether a graph calls a layer or anything of the module at a path."""
    targets = {str(node.target) for node in graph.nodes if node.op in OWNS_TENSORS}
    return any(
        path == target or path.startswith(f"{target}.") or target.startswith(f"{path}.")
        for target in targets
    )


def check_sizes(trace: Trace, graph: fx.Graph, narrowed: Narrowed) -> None:
    """Raise a `ValueError` if a layer does not exist or cannot have its sizes."""
    for path, sizes in narrowed:
        whole = _whole_sizes(trace.module, path, sizes)
        if whole is None or not is_used(path, graph):
            raise ValueError(f"there is no layer {path} that can be narrowed")
        if not _narrower(trace.module, path, sizes, whole):
            raise ValueError(f"{path} cannot have the sizes {sizes}: the base's are {whole}")


def _whole_sizes(module: fx.GraphModule, path: str, sizes: Sizes) -> Sizes | None:
    """The sizes of a layer or attention of the base."""
    try:
        layer = module.get_submodule(path)
    except AttributeError:
        layer = nn.Module()
    if isinstance(layer, LAYERS) and owns_weight(layer):
        tensors: dict[str, Any] = {**layer._parameters, **layer._buffers}
        weight = tensors.get("weight")  # a batch norm may have none
        return tuple((tensors["running_mean"] if weight is None else weight).shape)
    for node in module.graph.nodes:
        if is_reshape(node) and path_of(node) == path and len(sizes) == 2:
            place = heads_counted(node, sizes[1])
            if place == len(node.args) - 2:
                return int(node.meta["shape"][-2]), sizes[1]
    return None


def _narrower(module: fx.GraphModule, path: str, sizes: Sizes, whole: Sizes) -> bool:
    """Whether sizes are at most those of the base, with kernels and groups as they are."""
    if len(sizes) != len(whole) or any(map(operator.gt, sizes, whole)) or sizes[2:] != whole[2:]:
        return False
    layer = module.get_submodule(path) if len(whole) > 2 else None
    groups = getattr(layer, "groups", 1)
    return groups == 1 or (sizes[1] == whole[1] and sizes[0] * groups % whole[0] == 0)


def norms_that_misfit(module: fx.GraphModule, shapes: Mapping[fx.Node, Sizes]) -> list[str]:
    """Batch norms of a module that take another number of channels than they have.

    Args:
        module: a network.
        shapes: of what its nodes compute.
    """
    norms = {
        node: module.get_submodule(str(node.target))
        for node in module.graph.nodes
        if node.op == "call_module"
    }
    return [
        str(node.target)
        for node, norm in norms.items()
        if isinstance(norm, BATCH_NORM) and shapes[node.args[0]][1] != norm.num_features
    ]
