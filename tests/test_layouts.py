"""Files of well-known repositories: logits equal those of the author's module, written again here.

Each module has random weights and statistics, and is written as its repository writes it, shortened
but with the same names and the same order of computation.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import drawn
from torch import nn
from torchvision.models import get_model

from gatepruner.errors import ArchitectureError, PlanError
from gatepruner.files.candidates import EFFICIENTNETS
from gatepruner.files.checkpoints import load
from gatepruner.files.export import to_torchvision
from gatepruner.networks.network import Network

SMALL = (2, 3, 32, 32)


def conv(channels, width, size=3, stride=1):
    return nn.Conv2d(channels, width, size, stride, size // 2, bias=False)


class Kuangliu(nn.Module):
    """https://github.com/kuangliu/pytorch-cifar/blob/master/models/resnet.py"""

    class BasicBlock(nn.Module):
        expansion = 1

        def __init__(self, channels, width, stride):
            super().__init__()
            self.conv1, self.bn1 = conv(channels, width, 3, stride), nn.BatchNorm2d(width)
            self.conv2, self.bn2 = conv(width, width), nn.BatchNorm2d(width)
            self.shortcut = Kuangliu.shortcut(channels, width, stride)

        def forward(self, x):
            out = F.relu(self.bn1(self.conv1(x)))
            out = self.bn2(self.conv2(out))
            out += self.shortcut(x)
            return F.relu(out)

    class Bottleneck(nn.Module):
        expansion = 4

        def __init__(self, channels, width, stride):
            super().__init__()
            self.conv1, self.bn1 = conv(channels, width, 1), nn.BatchNorm2d(width)
            self.conv2, self.bn2 = conv(width, width, 3, stride), nn.BatchNorm2d(width)
            self.conv3, self.bn3 = conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
            self.shortcut = Kuangliu.shortcut(channels, 4 * width, stride)

        def forward(self, x):
            out = F.relu(self.bn1(self.conv1(x)))
            out = F.relu(self.bn2(self.conv2(out)))
            out = self.bn3(self.conv3(out))
            out += self.shortcut(x)
            return F.relu(out)

    @staticmethod
    def shortcut(channels, width, stride):
        if stride == 1 and channels == width:
            return nn.Sequential()
        return nn.Sequential(conv(channels, width, 1, stride), nn.BatchNorm2d(width))

    def __init__(self, block, counts, classes=10):
        super().__init__()
        self.conv1, self.bn1 = conv(3, 64), nn.BatchNorm2d(64)
        channels = 64
        for stage, count in enumerate(counts):
            width, blocks = 64 * 2**stage, []
            for index in range(count):
                blocks.append(block(channels, width, 2 if stage and not index else 1))
                channels = width * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(channels, classes)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return self.linear(F.avg_pool2d(out, 4).flatten(1))


class KuangliuPre(nn.Module):
    """https://github.com/kuangliu/pytorch-cifar/blob/master/models/preact_resnet.py"""

    class PreActBlock(nn.Module):
        expansion = 1

        def __init__(self, channels, width, stride):
            super().__init__()
            self.bn1, self.conv1 = nn.BatchNorm2d(channels), conv(channels, width, 3, stride)
            self.bn2, self.conv2 = nn.BatchNorm2d(width), conv(width, width)
            if stride != 1 or channels != width:
                self.shortcut = nn.Sequential(conv(channels, width, 1, stride))

        def forward(self, x):
            out = F.relu(self.bn1(x))
            shortcut = self.shortcut(out) if hasattr(self, "shortcut") else x
            out = self.conv1(out)
            out = self.conv2(F.relu(self.bn2(out)))
            out += shortcut
            return out

    class PreActBottleneck(nn.Module):
        expansion = 4

        def __init__(self, channels, width, stride):
            super().__init__()
            self.bn1, self.conv1 = nn.BatchNorm2d(channels), conv(channels, width, 1)
            self.bn2, self.conv2 = nn.BatchNorm2d(width), conv(width, width, 3, stride)
            self.bn3, self.conv3 = nn.BatchNorm2d(width), conv(width, 4 * width, 1)
            if stride != 1 or channels != 4 * width:
                self.shortcut = nn.Sequential(conv(channels, 4 * width, 1, stride))

        def forward(self, x):
            out = F.relu(self.bn1(x))
            shortcut = self.shortcut(out) if hasattr(self, "shortcut") else x
            out = self.conv1(out)
            out = self.conv2(F.relu(self.bn2(out)))
            out = self.conv3(F.relu(self.bn3(out)))
            out += shortcut
            return out

    def __init__(self, block, counts, classes=10):
        super().__init__()
        self.conv1, channels = conv(3, 64), 64
        for stage, count in enumerate(counts):
            width, blocks = 64 * 2**stage, []
            for index in range(count):
                blocks.append(block(channels, width, 2 if stage and not index else 1))
                channels = width * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(channels, classes)

    def forward(self, x):
        out = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        out = F.avg_pool2d(out, 4)
        return self.linear(out.view(out.size(0), -1))


class Weiaicunzai(nn.Module):
    """https://github.com/weiaicunzai/pytorch-cifar100/blob/master/models/resnet.py"""

    class Block(nn.Module):
        def __init__(self, channels, width, stride, expansion):
            super().__init__()
            wide = width * expansion
            if expansion == 1:
                layers = [conv(channels, width, 3, stride), nn.BatchNorm2d(width), nn.ReLU()]
                layers += [conv(width, width), nn.BatchNorm2d(width)]
            else:
                layers = [conv(channels, width, 1), nn.BatchNorm2d(width), nn.ReLU()]
                layers += [conv(width, width, 3, stride), nn.BatchNorm2d(width), nn.ReLU()]
                layers += [conv(width, wide, 1), nn.BatchNorm2d(wide)]
            self.residual_function = nn.Sequential(*layers)
            self.shortcut = nn.Sequential()
            if stride != 1 or channels != wide:
                self.shortcut = nn.Sequential(conv(channels, wide, 1, stride), nn.BatchNorm2d(wide))

        def forward(self, x):
            return nn.ReLU(inplace=True)(self.residual_function(x) + self.shortcut(x))

    def __init__(self, counts, expansion, classes=100):
        super().__init__()
        self.conv1 = nn.Sequential(conv(3, 64), nn.BatchNorm2d(64), nn.ReLU(inplace=True))
        channels = 64
        for stage, count in enumerate(counts):
            blocks = []
            for index in range(count):
                stride = 2 if stage and not index else 1
                blocks.append(self.Block(channels, 64 * 2**stage, stride, expansion))
                channels = 64 * 2**stage * expansion
            setattr(self, f"conv{stage + 2}_x", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, classes)

    def forward(self, x):
        out = self.conv3_x(self.conv2_x(self.conv1(x)))
        out = F.adaptive_avg_pool2d(self.conv5_x(self.conv4_x(out)), 1)
        return self.fc(out.flatten(1))


class Chenyaofo(nn.Module):
    """https://github.com/chenyaofo/pytorch-cifar-models; bearpaw's basic ResNet has the same names.

    https://github.com/bearpaw/pytorch-classification/blob/master/models/cifar/resnet.py
    """

    class Block(nn.Module):
        def __init__(self, channels, width, stride):
            super().__init__()
            self.conv1, self.bn1 = conv(channels, width, 3, stride), nn.BatchNorm2d(width)
            self.conv2, self.bn2 = conv(width, width), nn.BatchNorm2d(width)
            self.downsample = None
            if channels != width:
                self.downsample = nn.Sequential(
                    conv(channels, width, 1, stride), nn.BatchNorm2d(width)
                )

        def forward(self, x):
            identity = x if self.downsample is None else self.downsample(x)
            out = F.relu(self.bn1(self.conv1(x)))
            out = self.bn2(self.conv2(out))
            out += identity
            return F.relu(out)

    def __init__(self, count, classes=10):
        super().__init__()
        self.conv1, self.bn1 = conv(3, 16), nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = stages(self.Block, count)
        self.fc = nn.Linear(64, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def stages(block, count, width=1):
    """Three stages of so many blocks."""
    widths, built = [16, 16 * width, 32 * width, 64 * width], []
    for stage in range(3):
        first = block(widths[stage], widths[stage + 1], 2 if stage else 1)
        rest = (block(widths[stage + 1], widths[stage + 1], 1) for _ in range(count - 1))
        built.append(nn.Sequential(first, *rest))
    return built


class Akamaster(nn.Module):
    """https://github.com/akamaster/pytorch_resnet_cifar10/blob/master/resnet.py"""

    class Block(nn.Module):
        def __init__(self, channels, width, stride):
            super().__init__()
            self.conv1, self.bn1 = conv(channels, width, 3, stride), nn.BatchNorm2d(width)
            self.conv2, self.bn2 = conv(width, width), nn.BatchNorm2d(width)
            self.padding = 0 if channels == width else width // 4

        def forward(self, x):
            out = F.relu(self.bn1(self.conv1(x)))
            out = self.bn2(self.conv2(out))
            if self.padding:
                x = F.pad(
                    x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding), "constant", 0
                )
            out += x
            return F.relu(out)

    def __init__(self, count, classes=10):
        super().__init__()
        self.conv1, self.bn1 = conv(3, 16), nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = stages(self.Block, count)
        self.linear = nn.Linear(64, classes)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(F.avg_pool2d(out, out.size()[3]).flatten(1))


class BearpawPre(nn.Module):
    """https://github.com/bearpaw/pytorch-classification/blob/master/models/cifar/preresnet.py"""

    class Block(nn.Module):
        def __init__(self, channels, width, stride):
            super().__init__()
            self.bn1, self.conv1 = nn.BatchNorm2d(channels), conv(channels, width, 3, stride)
            self.bn2, self.conv2 = nn.BatchNorm2d(width), conv(width, width)
            self.downsample = None
            if channels != width:
                self.downsample = nn.Sequential(conv(channels, width, 1, stride))

        def forward(self, x):
            residual = x if self.downsample is None else self.downsample(x)
            out = self.conv1(F.relu(self.bn1(x)))
            out = self.conv2(F.relu(self.bn2(out)))
            out += residual
            return out

    def __init__(self, count, classes=10):
        super().__init__()
        self.conv1 = conv(3, 16)
        self.layer1, self.layer2, self.layer3 = stages(self.Block, count)
        self.bn = nn.BatchNorm2d(64)
        self.fc = nn.Linear(64, classes)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.fc(F.avg_pool2d(F.relu(self.bn(x)), 8).flatten(1))


class BearpawBottleneck(nn.Module):
    """Both of https://github.com/bearpaw/pytorch-classification/blob/master/models/cifar, deep."""

    class After(nn.Module):
        expansion = 4

        def __init__(self, channels, width, stride, downsample):
            super().__init__()
            self.conv1, self.bn1 = conv(channels, width, 1), nn.BatchNorm2d(width)
            self.conv2, self.bn2 = conv(width, width, 3, stride), nn.BatchNorm2d(width)
            self.conv3, self.bn3 = conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
            self.relu, self.downsample = nn.ReLU(inplace=True), downsample

        def forward(self, x):
            residual = x
            out = self.relu(self.bn1(self.conv1(x)))
            out = self.relu(self.bn2(self.conv2(out)))
            out = self.bn3(self.conv3(out))
            if self.downsample is not None:
                residual = self.downsample(x)
            out += residual
            return self.relu(out)

    class Before(nn.Module):
        expansion = 4

        def __init__(self, channels, width, stride, downsample):
            super().__init__()
            self.bn1, self.conv1 = nn.BatchNorm2d(channels), conv(channels, width, 1)
            self.bn2, self.conv2 = nn.BatchNorm2d(width), conv(width, width, 3, stride)
            self.bn3, self.conv3 = nn.BatchNorm2d(width), conv(width, 4 * width, 1)
            self.relu, self.downsample = nn.ReLU(inplace=True), downsample

        def forward(self, x):
            residual = x
            out = self.conv1(self.relu(self.bn1(x)))
            out = self.conv2(self.relu(self.bn2(out)))
            out = self.conv3(self.relu(self.bn3(out)))
            if self.downsample is not None:
                residual = self.downsample(x)
            out += residual
            return out

    def __init__(self, block, count, classes=100):
        super().__init__()
        self.before = block is self.Before
        self.conv1, channels = conv(3, 16), 16
        if not self.before:
            self.bn1 = nn.BatchNorm2d(16)
        for stage in range(3):
            width, blocks = 16 * 2**stage, []
            for index in range(count):
                stride, downsample = 2 if stage and not index else 1, None
                if stride != 1 or channels != 4 * width:
                    norm = [] if self.before else [nn.BatchNorm2d(4 * width)]
                    downsample = nn.Sequential(conv(channels, 4 * width, 1, stride), *norm)
                blocks.append(block(channels, width, stride, downsample))
                channels = 4 * width
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        if self.before:
            self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x):
        x = self.conv1(x)
        if not self.before:
            x = F.relu(self.bn1(x))
        x = self.layer3(self.layer2(self.layer1(x)))
        if self.before:
            x = F.relu(self.bn(x))
        return self.fc(F.avg_pool2d(x, 8).flatten(1))


class Xternalz(nn.Module):
    """https://github.com/xternalz/WideResNet-pytorch/blob/master/wideresnet.py"""

    class Block(nn.Module):
        def __init__(self, channels, width, stride):
            super().__init__()
            self.bn1, self.conv1 = nn.BatchNorm2d(channels), conv(channels, width, 3, stride)
            self.bn2, self.conv2 = nn.BatchNorm2d(width), conv(width, width)
            self.equal = channels == width
            self.convShortcut = (not self.equal and conv(channels, width, 1, stride)) or None

        def forward(self, x):
            if not self.equal:
                x = F.relu(self.bn1(x))
            else:
                out = F.relu(self.bn1(x))
            out = F.relu(self.bn2(self.conv1(out if self.equal else x)))
            return torch.add(x if self.equal else self.convShortcut(x), self.conv2(out))

    class Stage(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x)

    def __init__(self, count, width, classes=10):
        super().__init__()
        self.conv1 = conv(3, 16)
        self.block1, self.block2, self.block3 = map(self.Stage, stages(self.Block, count, width))
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, classes)

    def forward(self, x):
        out = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.avg_pool2d(F.relu(self.bn1(out)), 8).flatten(1))


class Lukemelas(nn.Module):
    """https://github.com/lukemelas/EfficientNet-PyTorch/blob/master/efficientnet_pytorch/model.py"""

    # repeats, kernel, stride, expansion, channels in and out
    STAGES = (
        *((1, 3, 1, 1, 32, 16), (2, 3, 2, 6, 16, 24), (2, 5, 2, 6, 24, 40), (3, 3, 2, 6, 40, 80)),
        *((3, 5, 1, 6, 80, 112), (4, 5, 2, 6, 112, 192), (1, 3, 1, 6, 192, 320)),
    )

    class Same(nn.Conv2d):
        """A convolution padded as TensorFlow pads it."""

        def forward(self, x):
            pads = []
            for axis in (3, 2):
                size, stride, kernel = x.shape[axis], self.stride[0], self.kernel_size[0]
                pad = max((-(-size // stride) - 1) * stride + kernel - size, 0)
                pads += [pad // 2, pad - pad // 2]
            return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0, 1, self.groups)

    class Block(nn.Module):
        def __init__(self, kernel, stride, expansion, channels, width, squeeze):
            super().__init__()
            same, wide = Lukemelas.Same, channels * expansion
            self.skip = stride == 1 and channels == width
            self.expand = expansion != 1
            if self.expand:
                self._expand_conv = same(channels, wide, 1, bias=False)
                self._bn0 = nn.BatchNorm2d(wide, eps=1e-3)
            self._depthwise_conv = same(wide, wide, kernel, stride, groups=wide, bias=False)
            self._bn1 = nn.BatchNorm2d(wide, eps=1e-3)
            self.squeeze = squeeze
            if squeeze:
                self._se_reduce = same(wide, max(1, channels // 4), 1)
                self._se_expand = same(max(1, channels // 4), wide, 1)
            self._project_conv = same(wide, width, 1, bias=False)
            self._bn2 = nn.BatchNorm2d(width, eps=1e-3)
            self.act = F.silu if squeeze else F.relu6

        def forward(self, inputs):
            x = inputs
            if self.expand:
                x = self.act(self._bn0(self._expand_conv(inputs)))
            x = self.act(self._bn1(self._depthwise_conv(x)))
            if self.squeeze:
                squeezed = self.act(self._se_reduce(F.adaptive_avg_pool2d(x, 1)))
                x = torch.sigmoid(self._se_expand(squeezed)) * x
            x = self._bn2(self._project_conv(x))
            return x + inputs if self.skip else x

    def __init__(self, squeeze, classes=10):
        super().__init__()
        self._conv_stem = self.Same(3, 32, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, eps=1e-3)
        blocks = []
        for repeats, kernel, stride, expansion, channels, width in self.STAGES:
            for index in range(repeats):
                first = (stride, expansion, channels) if not index else (1, expansion, width)
                blocks.append(self.Block(kernel, *first, width, squeeze))
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = self.Same(320, 1280, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(1280, eps=1e-3)
        self._fc = nn.Linear(1280, classes)
        self.act = F.silu if squeeze else F.relu6

    def forward(self, x):
        x = self.act(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        x = self.act(self._bn1(self._conv_head(x)))
        return self._fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def with_stem(channels=3, small=True, name="resnet18"):
    """A torchvision ResNet as it is changed for small or grey images."""
    module = get_model(name, num_classes=10)
    if small:
        module.conv1, module.maxpool = conv(channels, 64), nn.Identity()
    else:
        module.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    return module


def with_head(*layers):
    """A torchvision ResNet with another head."""
    module = get_model("resnet18")
    module.fc = nn.Sequential(*layers)
    return module


# The author's module, the network it is, its images, and whose names it has.
FILES = {
    "kuangliu ResNet18": (
        lambda: Kuangliu(Kuangliu.BasicBlock, (2, 2, 2, 2)),
        *("torchvision:resnet18,stem=small", SMALL, "kuangliu"),
    ),
    "kuangliu ResNet50": (
        lambda: Kuangliu(Kuangliu.Bottleneck, (3, 4, 6, 3)),
        *("torchvision:resnet50,stem=small", SMALL, "kuangliu"),
    ),
    "kuangliu PreActResNet18": (
        lambda: KuangliuPre(KuangliuPre.PreActBlock, (2, 2, 2, 2)),
        *("preactresnet18", SMALL, "kuangliu/pytorch-cifar, pre-activation"),
    ),
    "kuangliu PreActResNet34": (
        lambda: KuangliuPre(KuangliuPre.PreActBlock, (3, 4, 6, 3), classes=100),
        *("preactresnet34", SMALL, "kuangliu/pytorch-cifar, pre-activation"),
    ),
    "kuangliu PreActResNet50": (
        lambda: KuangliuPre(KuangliuPre.PreActBottleneck, (3, 4, 6, 3)),
        *("preactresnet50", SMALL, "kuangliu/pytorch-cifar, pre-activation"),
    ),
    "weiaicunzai resnet18": (
        lambda: Weiaicunzai((2, 2, 2, 2), 1),
        *("torchvision:resnet18,stem=small", SMALL, "weiaicunzai"),
    ),
    "weiaicunzai resnet50": (
        lambda: Weiaicunzai((3, 4, 6, 3), 4),
        *("torchvision:resnet50,stem=small", SMALL, "weiaicunzai"),
    ),
    "chenyaofo resnet20": (lambda: Chenyaofo(3), "resnet20-b", SMALL, "chenyaofo"),
    "akamaster resnet20": (lambda: Akamaster(3), "resnet20", SMALL, ""),
    "bearpaw preresnet20": (
        lambda: BearpawPre(3),
        *("preresnet20,projection=raw", SMALL, "bearpaw"),
    ),
    "bearpaw preresnet29, bottlenecks": (
        lambda: BearpawBottleneck(BearpawBottleneck.Before, 3),
        *("preresnet29-bottleneck,projection=raw", SMALL, "bearpaw"),
    ),
    "bearpaw resnet29, bottlenecks": (
        lambda: BearpawBottleneck(BearpawBottleneck.After, 3),
        *("resnet29-bottleneck", SMALL, "bearpaw"),
    ),
    "xternalz WRN-16-2": (lambda: Xternalz(2, 2), "wrn-16-2", SMALL, "xternalz"),
    "xternalz WRN-10-1": (lambda: Xternalz(1, 1), "preresnet8", SMALL, "xternalz"),
    "lukemelas lite0": (
        lambda: Lukemelas(squeeze=False),
        *("timm:tf_efficientnet_lite0", (2, 3, 65, 48), "lukemelas"),
    ),
    "lukemelas b0": (
        lambda: Lukemelas(squeeze=True),
        *("timm:tf_efficientnet_b0", (2, 3, 64, 49), "lukemelas"),
    ),
    "torchvision, small stem": (with_stem, "torchvision:resnet18,stem=small", SMALL, ""),
    "torchvision, small grey stem": (
        lambda: with_stem(1),
        *("torchvision:resnet18,stem=small", (2, 1, 32, 32), ""),
    ),
    "torchvision, grey stem": (
        lambda: with_stem(1, small=False),
        *("torchvision:resnet18", (2, 1, 64, 64), ""),
    ),
    "torchvision, dropout before the head": (
        lambda: with_head(nn.Dropout(0.5), nn.Linear(512, 7)),
        *("torchvision:resnet18", (2, 3, 64, 64), "Sequential"),
    ),
}


@pytest.mark.parametrize(("make", "name", "shape", "layout"), FILES.values(), ids=FILES.keys())
def test_file_of_a_known_repository_computes_what_its_authors_module_computes(
    make, name, shape, layout, tmp_path
):
    module = make()
    module.load_state_dict(drawn(module.state_dict()))
    torch.save({"net": module.state_dict(), "acc": 95.0, "epoch": 3}, tmp_path / "ckpt.pth")
    found = load(tmp_path / "ckpt.pth")
    remarks = found.notes["remarks"]
    assert remarks[0].startswith(f"recognised as {name}, assuming ")
    assert [layout in remark for remark in remarks[1:]] == ([True] if layout else [])
    images = torch.randn(shape)
    with torch.no_grad():
        expected = module.eval()(images)
        torch.testing.assert_close(found.build()(images), expected, rtol=1e-5, atol=1e-5)
    assert found.network.base.input_shape[0] == shape[1]


def test_bottlenecks_of_the_first_version_are_offered(tmp_path):
    module = get_model("resnet50", num_classes=3)
    module.load_state_dict(drawn(module.state_dict()))
    torch.save(module.state_dict(), tmp_path / "net.pth")
    for stage in (module.layer2, module.layer3, module.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = module.eval()(images)
        found = load(tmp_path / "net.pth", arch="torchvision:resnet50,v1=true")
        assert torch.equal(found.build()(images), expected)
        assumed = load(tmp_path / "net.pth")
        assert not torch.allclose(assumed.build()(images), expected, rtol=1e-2)
    assert "v1=true" in assumed.notes["remarks"][0]
    with pytest.raises(PlanError, match="its v1 differ"):
        to_torchvision(found)


@pytest.mark.parametrize("name", sorted(EFFICIENTNETS))
def test_table_of_efficientnets_agrees_with_timm(name):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        keys = timm.create_model(name).state_dict().keys()
    blocks = {".".join(key.split(".")[:3]) for key in keys if key.startswith("blocks.")}
    side = timm.get_pretrained_cfg(name).input_size[1]
    assert EFFICIENTNETS[name] == (len(blocks), any(".se." in key for key in keys), side)


UNKNOWN = {
    "squeeze and excitation in its blocks": lambda it: {
        **it,
        "layer1.0.se.fc.weight": torch.ones(4, 64),
    },
    "a layer before the head": lambda it: {**it, "attention.weight": torch.ones(512, 512)},
    "a norm before the head": lambda it: {**it, "neck.weight": torch.ones(512)},
    "a second layer of the head": lambda it: {**it, "fc2.weight": torch.ones(5, 10)},
    "a second tower": lambda it: {
        **{f"one.{key}": tensor for key, tensor in it.items()},
        **{f"two.{key}": tensor for key, tensor in it.items()},
    },
    "two layers in the head": lambda it: {
        **{key: tensor for key, tensor in it.items() if not key.startswith("fc.")},
        "fc.0.weight": torch.ones(20, 512),
        "fc.2.weight": torch.ones(10, 20),
    },
}


@pytest.mark.parametrize("change", UNKNOWN.values(), ids=UNKNOWN.keys())
def test_network_with_more_than_a_known_one_is_not_taken_for_it(change, tmp_path):
    state = change(dict(Network.named("torchvision:resnet18", num_classes=10).initial_weights()))
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(ArchitectureError, match="cannot recognise the architecture"):
        load(tmp_path / "net.pth")
