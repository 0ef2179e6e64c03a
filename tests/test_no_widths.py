"""What hangs together in a way that cutting channels out would change is no width, and says why."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatepruner.errors import PlanError
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.pruning.groups import widths_of
from gatepruner.pruning.surgery import narrow, remove


class Between(nn.Module):
    """A block whose branch does something between the layers that make and read its width."""

    size = 16

    def __init__(self) -> None:
        super().__init__()
        self.make, self.read = nn.Conv2d(4, self.size, 1), nn.Conv2d(self.size, 4, 1)

    def between(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return x + self.read(self.between(self.make(x)))


class Reversed(Between):
    """A set of channels that is its own mirror image would not show it."""

    def between(self, x: Tensor) -> Tensor:
        return torch.flip(F.relu(x), (1,))


class Rolled(Between):
    def between(self, x: Tensor) -> Tensor:
        return torch.roll(F.relu(x), 1, 1)


class Shuffled(Between):
    def between(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Chosen(Between):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.arange(self.size).flip(0))

    def between(self, x: Tensor) -> Tensor:
        return x[:, self.order]


class Softmax(Between):
    def between(self, x: Tensor) -> Tensor:
        return x.softmax(1)


class Centred(Between):
    def between(self, x: Tensor) -> Tensor:
        return x - x.mean(1, keepdim=True)


class Counted(Between):
    def between(self, x: Tensor) -> Tensor:
        return x / x.shape[1] ** 0.5


class Largest(Between):
    def between(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x.amax(1, keepdim=True))


class Least(Between):
    """Among many channels that ReLU closes at random, the least is 0 whichever are left."""

    def between(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        return x * torch.sigmoid(x.amin(1, keepdim=True))


class Median(Between):
    def between(self, x: Tensor) -> Tensor:
        x = F.relu(x - 1)
        return x * torch.sigmoid(x.median(1, keepdim=True).values)


class Third(Between):
    """The third greatest, which there is no more among two."""

    def between(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x.topk(3, 1).values[:, 2:])


class Neighbours(Between):
    """A normalisation that hardly shows in small values."""

    def between(self, x: Tensor) -> Tensor:
        return F.local_response_norm(F.relu(x), 5)


class Squeezed(Between):
    """A single channel would be squeezed away."""

    def between(self, x: Tensor) -> Tensor:
        means = F.adaptive_avg_pool2d(F.relu(x), 1).squeeze()
        return x * means.sigmoid()[:, :, None, None]


class Padded(Between):
    def between(self, x: Tensor) -> Tensor:
        return F.pad(F.relu(x)[:, :-1], (0, 0, 0, 0, 0, 1))


class OneHead(Between):
    """At random weights it hardly depends on its queries."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(4, self.size), nn.Linear(4, self.size)
        self.make, self.read = nn.Linear(4, self.size), nn.Linear(self.size, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        query, key = self.query(tokens), self.key(tokens)
        attention = (query @ key.transpose(1, 2) * query.shape[-1] ** -0.5).softmax(-1)
        return x + self.read(attention @ self.make(tokens)).transpose(1, 2).reshape(x.shape)


class WeightNorm(Between):
    def __init__(self) -> None:
        super().__init__()
        self.make = nn.utils.parametrizations.weight_norm(self.make)

    def between(self, x: Tensor) -> Tensor:
        return F.relu(x)


class SpectralNorm(Between):
    """The weight of the layer that reads the width is made from another tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.utils.parametrizations.spectral_norm(self.read)

    def between(self, x: Tensor) -> Tensor:
        return F.relu(x)


class OwnLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, 2 * self.weight, self.bias)


class OwnLayers(Between):
    """At each turn around the shortcut, Torch-Pruning's group would be 25 times as large."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.read = OwnLinear(4, self.size), OwnLinear(self.size, 4)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.read(F.relu(self.make(x.permute(0, 2, 3, 1))))
        return x + inner.permute(0, 3, 1, 2)


class Normalized(Between):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, self.size)

    def between(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(x))


class ByInstance(Normalized):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(self.size, affine=True)


class Scaled(Between):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(self.size, 1, 1))

    def between(self, x: Tensor) -> Tensor:
        return x * self.scale


class Twice(Between):
    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Conv2d(self.size, self.size, 1)

    def between(self, x: Tensor) -> Tensor:
        return self.again(F.relu(self.again(x)))


class TwoAttentions(Between):
    """Their module counts the heads of both at once, which is right if both lose as many."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.read = nn.Linear(4, 3 * self.size), nn.Linear(self.size, 4)
        self.other, self.last = nn.Linear(4, 3 * self.size), nn.Linear(self.size, 4)

    def attention(self, tokens: Tensor) -> Tensor:
        n, t, _ = tokens.shape
        query, key, value = tokens.reshape(n, t, 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return mixed.transpose(1, 2).reshape(n, t, self.size)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        one, other = self.attention(self.make(tokens)), self.attention(self.other(tokens))
        return x + (self.read(one) * self.last(other)).transpose(1, 2).reshape(x.shape)


class Alone(Between):
    size = 1

    def between(self, x: Tensor) -> Tensor:
        return F.relu(x)


COUNTED = "changes the logits: the code counts, mixes or permutes them"
WHY = {
    **dict.fromkeys((Reversed, Rolled, Shuffled, Chosen, Softmax, Centred), COUNTED),
    **dict.fromkeys((Counted, Largest, OneHead, Least, Median), COUNTED),
    **dict.fromkeys((Neighbours, Squeezed, Padded, TwoAttentions), COUNTED),
    WeightNorm: "block.make makes its weight from other tensors, as with a weight norm",
    SpectralNorm: "block.read makes its weight from other tensors, as with a weight norm",
    Third: "its channels multiply or move without end",
    OwnLayers: "its channels multiply or move without end",
    Normalized: "they pass block.norm (GroupNorm)",
    ByInstance: "they pass block.norm (InstanceNorm2d)",
    Scaled: "they pass a parameter outside of convolutions, linear layers and batch norms",
    Twice: "called several times: block.again",
    Alone: "there is only one, and one has to stay",
}


class Net(nn.Module):
    """A block of a kind between a stem and a head."""

    def __init__(self, kind: type[Between]) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, 4, 1), kind(), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x)).mean((2, 3)))


@pytest.mark.parametrize("kind", WHY)
def test_what_is_no_width_says_why_and_its_block_can_be_removed(kind):
    torch.manual_seed(0)
    whole = Checkpoint.of(Net(kind), (3, 5, 5))
    widths = widths_of(whole.network)
    assert not widths.found
    assert any(WHY[kind] in why for why in widths.others.values())
    with pytest.raises(PlanError, match=r"cannot narrow block\.make \("):
        narrow(whole, ["block.make[0]"])
    assert not remove(whole, "block").network.removable
