"""Layouts: the names that well-known repositories give to the weights of networks known here.

A layout is data: regular expressions that turn the keys of a file into those of a network, and, if
needed, others for the keys of the network. It is tried if its first expression is in some key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gatepruner.networks.wrappers import RESERVED

NUMBER = "#"  # in a key of a file: the number of the block, counted through all stages


@dataclass(frozen=True)
class Layout:
    """How the keys of a file become those of a network.

    Attributes:
        keys: expressions in the keys of the file, and what takes their place, one after another.
        own: expressions in the keys of the network, and what takes their place.
        arguments: arguments of the network that go with the layout.
    """

    keys: Mapping[str, str] = field(default_factory=dict)
    own: Mapping[str, str] = field(default_factory=dict)
    arguments: str = ""

    def renamed(self, keys: Iterable[str]) -> dict[str, str] | None:
        """The keys of a file by their new names; `None` if it is not of this layout."""
        keys = list(keys)
        first = next(iter(self.keys), "")
        if not any(re.search(first, key) for key in keys):
            return None
        names = {_replaced(key, self.keys): key for key in keys}
        return names if len(names) == len(keys) else None

    def named(self, keys: Iterable[str]) -> dict[str, str]:
        """The new names of a file's keys by the keys of the network."""
        blocks: dict[str, int] = {}
        names = {}
        for key in keys:
            name = _replaced(key, self.own)
            if NUMBER in name:
                block = ".".join(key.split(".")[:3])
                name = name.replace(NUMBER, str(blocks.setdefault(block, len(blocks))))
            names[key] = name
        return names


def _replaced(key: str, replacements: Mapping[str, str]) -> str:
    for pattern, replacement in replacements.items():
        key = re.sub(pattern, replacement, key)
    return key


LAYOUTS: dict[str, Layout] = {
    "": Layout(),  # the network's own
    "a module with submodules of names that torch.fx reserves": Layout(
        {rf"^({'|'.join(sorted(RESERVED))})\.": r"\1_."}
    ),
    "a head in a Sequential": Layout({r"^fc\.\d+\.": "fc."}),
    "kuangliu/pytorch-cifar": Layout({r"^linear\.": "fc.", r"\.shortcut\.": ".downsample."}),
    "kuangliu/pytorch-cifar, pre-activation": Layout({r"\.shortcut\.0\.": ".shortcut."}),
    "weiaicunzai/pytorch-cifar100": Layout(
        {
            r"\.residual_function\.0\.": ".conv1.",
            r"\.residual_function\.1\.": ".bn1.",
            r"\.residual_function\.3\.": ".conv2.",
            r"\.residual_function\.4\.": ".bn2.",
            r"\.residual_function\.6\.": ".conv3.",
            r"\.residual_function\.7\.": ".bn3.",
            r"\.shortcut\.": ".downsample.",
            r"^conv1\.0\.": "conv1.",
            r"^conv1\.1\.": "bn1.",
            r"^conv2_x\.": "layer1.",
            r"^conv3_x\.": "layer2.",
            r"^conv4_x\.": "layer3.",
            r"^conv5_x\.": "layer4.",
        }
    ),
    "chenyaofo/pytorch-cifar-models or bearpaw/pytorch-classification": Layout(
        {r"^fc\.": "linear.", r"\.downsample\.": ".shortcut."}
    ),
    "bearpaw/pytorch-classification, pre-activation": Layout(
        {r"\.downsample\.0\.": ".shortcut.", r"^fc\.": "linear."}, arguments=",projection=raw"
    ),
    "xternalz/WideResNet-pytorch": Layout(
        {
            r"^block(\d)\.layer\.": r"layer\1.",
            r"\.convShortcut\.": ".shortcut.",
            r"^bn1\.": "bn.",
            r"^fc\.": "linear.",
        }
    ),
    "lukemelas/EfficientNet-PyTorch": Layout(
        {r"^_(?=blocks\.|conv_stem|conv_head|fc\b|bn\d)": ""},
        own={
            r"^bn1\.": "bn0.",
            r"^bn2\.": "bn1.",
            r"^classifier\.": "fc.",
            r"^blocks\.0\.\d+\.conv_pw\.": f"blocks.{NUMBER}._project_conv.",
            r"^blocks\.0\.\d+\.bn(\d)\.": rf"blocks.{NUMBER}._bn\1.",
            r"^blocks\.\d+\.\d+\.conv_pw\.": f"blocks.{NUMBER}._expand_conv.",
            r"^blocks\.\d+\.\d+\.conv_dw\.": f"blocks.{NUMBER}._depthwise_conv.",
            r"^blocks\.\d+\.\d+\.conv_pwl\.": f"blocks.{NUMBER}._project_conv.",
            r"^blocks\.\d+\.\d+\.se\.conv_": f"blocks.{NUMBER}._se_",
            r"^blocks\.\d+\.\d+\.bn1\.": f"blocks.{NUMBER}._bn0.",
            r"^blocks\.\d+\.\d+\.bn2\.": f"blocks.{NUMBER}._bn1.",
            r"^blocks\.\d+\.\d+\.bn3\.": f"blocks.{NUMBER}._bn2.",
        },
    ),
}
