"""Small residual blocks of every kind whose inner width can be narrowed, and what reads it."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatepruner.networks.checkpoint import Checkpoint


class Basic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Sigmoid(nn.Module):
    """What a closed channel would be without its gate is not 0, also beside the border."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(8, 12, 1)
        self.conv2 = nn.Conv2d(12, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(torch.sigmoid(self.conv1(x)))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 24, 1, bias=False), nn.BatchNorm2d(24)
        self.conv2, self.bn2 = nn.Conv2d(24, 12, 3, padding=1, groups=6), nn.BatchNorm2d(12)
        self.conv3 = nn.Conv2d(12, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return x + self.conv3(inner)


class Inverted(nn.Module):
    """A depthwise convolution and squeeze-and-excitation within the width."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.bn1 = nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.project, self.bn3 = nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.hardswish(self.bn2(self.depthwise(F.relu6(self.bn1(self.expand(x))))))
        scale = self.excite(F.relu(self.squeeze(inner.mean((2, 3), keepdim=True)))).sigmoid()
        return x + self.bn3(self.project(inner * scale))


class Multiplier(nn.Module):
    """A depthwise convolution that makes two channels from each, and slopes of a PReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.bn1 = nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16, affine=False)
        self.depthwise = nn.Conv2d(16, 32, 3, padding=1, groups=16)
        self.bn2, self.project = nn.BatchNorm2d(32), nn.Conv2d(32, 8, 1)
        self.each, self.all = nn.PReLU(32), nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.depthwise(self.all(self.bn1(self.expand(x)))))
        return x + self.project(torch.sigmoid(self.each(inner)))


class Concatenated(nn.Module):
    """Three widths of which two are read by one layer, beside the block's own input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 6, 3, padding=1)
        self.norm, self.conv3 = nn.BatchNorm2d(26), nn.Conv2d(26, 10, 1)
        self.conv4 = nn.Conv2d(10, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.tanh(self.conv1(x))
        every = self.norm(torch.cat([first, self.conv2(first), x], 1))
        return x + self.conv4(F.relu(self.conv3(torch.sigmoid(every))))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(8), nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x.permute(0, 2, 3, 1))
        return x + self.fc2(F.gelu(self.fc1(tokens))).permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Written as timm's: the code counts the heads."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj, self.heads, self.width = nn.Linear(8, 48), nn.Linear(16, 8), 4, 4

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        qkv = self.qkv(x).reshape(n, t, 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(n, t, self.heads * self.width))


class Separate(nn.Module):
    """Written as transformers': the code leaves the number of heads to PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 16) for _ in range(3))
        self.out = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        form = (*x.shape[:-1], -1, 4)
        q, k, v = (layer(x).view(form).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.out(x.reshape(*form[:-2], -1))


class Tokens(nn.Module):
    """A block around an attention over the positions of an image."""

    def __init__(self, attention: type[nn.Module]) -> None:
        super().__init__()
        self.attn = attention()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attn(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)


BLOCKS = {
    "basic": Basic,
    "sigmoid": Sigmoid,
    "grouped": Grouped,
    "inverted": Inverted,
    "multiplier": Multiplier,
    "concatenated": Concatenated,
    "mlp": Mlp,
    "attention": lambda: Tokens(Attention),
    "separate": lambda: Tokens(Separate),
}
# For each kind of block: the layer that makes its width, the number of its channels, heads or
# groups, the layers that read it, and how many numbers of theirs each of these has.
READ = {
    "basic": ("conv1", 16, ("conv2",), 1),
    "sigmoid": ("conv1", 12, ("conv2",), 1),
    "grouped": ("conv1", 6, ("conv3",), 2),
    "inverted": ("expand", 16, ("squeeze", "project"), 1),
    "multiplier": ("expand", 16, ("project",), 2),
    "concatenated": ("conv1", 12, ("conv2", "conv3"), 1),
    "mlp": ("fc1", 32, ("fc2",), 1),
    "attention": ("attn.qkv", 4, ("attn.proj",), 4),
    "separate": ("attn.q", 4, ("attn.out",), 4),
}


class Net(nn.Module):
    """Two blocks of a kind between a stem and a head."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(BLOCKS[kind](), BLOCKS[kind]())
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


@functools.cache
def network_of(kind: str) -> Checkpoint:
    """A network of a kind of blocks, with weights of which none is 0 or 1 by chance."""
    torch.manual_seed(3)
    module = Net(kind).eval()
    with torch.no_grad():
        for key, tensor in module.state_dict().items():
            if tensor.is_floating_point() and tensor.ndim == 1:
                tensor.add_(torch.rand(tensor.shape) * (1 if key.endswith("var") else 0.5))
    return Checkpoint.of(module, (3, 6, 6))


def masked(checkpoint: Checkpoint, kind: str, gone: dict[str, tuple[int, ...]]) -> nn.Module:
    """The whole network in which nothing reads these channels of these blocks."""
    _, _, readers, each = READ[kind]
    module = checkpoint.build()
    with torch.no_grad():
        for block, channels in gone.items():
            for reader in readers:
                weight = module.get_parameter(f"{block}.{reader}.weight")
                for channel in channels:
                    weight[:, channel * each : (channel + 1) * each] = 0
    return module
