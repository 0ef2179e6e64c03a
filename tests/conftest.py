"""What several test files share: networks with random weights, images, and a fingerprint."""

from __future__ import annotations

import hashlib
import itertools
import json
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from gatepruner.cli import main
from gatepruner.images.images import Images
from gatepruner.learning import running
from gatepruner.models import Shape
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network

# A process that was started in the background may ignore them; here they are sent on purpose.
signal.signal(signal.SIGINT, signal.default_int_handler)
for _number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(_number, signal.SIG_DFL)
# Networks this small are quicker on one thread, most of all where several processes share a CPU.
torch.set_num_threads(1)

# One small network of every family of torchvision, and the smallest images it can do with.
LIBRARY: dict[str, Shape] = {
    "resnet18": (3, 64, 64),
    "resnext50_32x4d": (3, 64, 64),
    "regnet_y_400mf": (3, 64, 64),
    "mobilenet_v2": (3, 64, 64),
    "mobilenet_v3_small": (3, 64, 64),
    "mnasnet0_5": (3, 64, 64),
    "efficientnet_b0": (3, 64, 64),
    "efficientnet_v2_s": (3, 64, 64),
    "convnext_tiny": (3, 64, 64),
    "swin_t": (3, 64, 64),
    "swin_v2_t": (3, 64, 64),
    "vit_b_32": (3, 64, 64),
    "maxvit_t": (3, 224, 224),
}
# One small network of every family of our own, with each kind of gate.
GATED = (
    *("gated-resnet14", "gated-resnet14-b", "gated-preresnet14", "gated-wrn-10-2"),
    *("gated-residual-fc6", "gated-highway-fc6", "gated-plain-fc6"),
)


def draw(name: str, seed: int = 0, input_shape: Shape | None = None) -> Checkpoint:
    """A named network with ten classes and weights that are all different from each other."""
    network = Network.named(name, num_classes=10, input_shape=input_shape)
    return Checkpoint(network, MappingProxyType(drawn(network.initial_weights(seed), seed)))


def drawn(weights: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Weights without the constants of a new network, with which too much would be equal.

    Batch norm, gates and layer scales are then no identity, and heads that begin at zero let
    something through.
    """
    generator = torch.Generator().manual_seed(seed)
    random = {}
    for key, tensor in weights.items():
        random[key] = tensor
        if tensor.is_floating_point() and tensor.min() == tensor.max():
            factor = tensor.min() > 0.5 or key.endswith("layer_scale")
            noise = torch.rand(tensor.shape, generator=generator)
            random[key] = 0.5 + noise if factor else 0.4 * noise - 0.2
    return random


def load_into(module: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """The library's own module with copies of these weights, strictly all of them."""
    state = module.state_dict()  # with the versions of its layers, which MNASNet asks for
    assert state.keys() == weights.keys()
    state.update(weights)
    module.load_state_dict(state)
    return module.eval()


def images_for(network: Network, count: int = 2, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *network.base.input_shape, generator=generator)


def logits(module: nn.Module, images: Tensor) -> Tensor:
    """The logits as they are in the module's mode, the same whenever they are asked for."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return module(images)


def subsets(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    sizes = range(len(names) + 1)
    return itertools.chain.from_iterable(itertools.combinations(names, size) for size in sizes)


def removable(network: Network) -> list[str]:
    return [block.name for block in network.blocks if block.removable]


def with_gates_at(checkpoint: Checkpoint, k: float, names: Iterable[str]) -> Checkpoint:
    """The checkpoint with these gates at k."""
    keys = {checkpoint.network.gate_key(name) for name in names}
    weights = {
        key: torch.tensor(float(k)) if key in keys else tensor
        for key, tensor in checkpoint.weights.items()
    }
    return Checkpoint(checkpoint.network, weights, checkpoint.notes)


def fingerprint(checkpoint: Checkpoint) -> str:
    """A hash of everything that a checkpoint holds."""
    digest = hashlib.sha256()
    digest.update(json.dumps([checkpoint.network.to_json(), dict(checkpoint.notes)]).encode())
    for key, tensor in checkpoint.weights.items():
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


class CallersBlock(nn.Module):
    """A block as a user may write it, with a functional dropout."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = F.dropout(self.bn(self.conv(x)), 0.3, training=self.training)
        return F.relu(x + out)


class Callers(nn.Module):
    """A module that no library knows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.blocks = nn.Sequential(CallersBlock(8), CallersBlock(8), CallersBlock(8))
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """The same random numbers in each test, whichever ran before it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def callers() -> Callers:
    module = Callers()
    module.load_state_dict(drawn(module.state_dict()))
    return module.eval()


# Of the whole session, so that pytest runs all that asks for one network before the next one.
@pytest.fixture(scope="session", params=LIBRARY)
def library(request: pytest.FixtureRequest) -> Checkpoint:
    """A network of torchvision's, with random weights."""
    return draw(f"torchvision:{request.param}", input_shape=LIBRARY[request.param])


# ----------------------------------------------------------------------- images and their files


def random_images(
    count: int, shape: Shape = (3, 32, 32), classes: int = 10, seed: int = 3, **values
) -> Images:
    """Random pixels, labels that go round."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)
    names = tuple(f"class{index}" for index in range(classes))
    return Images(torch.arange(count) % classes, names, shape, "made up", pixels, **values)


def bright_images(count: int, shape: Shape = (1, 8, 8), classes: int = 4, seed: int = 4) -> Images:
    """Noise in which one row of pixels is bright: the one that the label says."""
    images = random_images(count, shape, classes, seed)
    pixels = images.pixels // 2
    for index, label in enumerate(images.labels.tolist()):
        pixels[index, :, 2 * label] = 255
    return replace(images, pixels=pixels)


def write_folder(root: Path, images: Images, split: str = "test") -> Path:
    """The images as torchvision's `ImageFolder` reads them, in the order of their classes."""
    for name in images.classes:
        (root / split / name).mkdir(parents=True, exist_ok=True)
    for index, (pixels, label) in enumerate(zip(images.pixels, images.labels, strict=True)):
        array = pixels.permute(1, 2, 0).squeeze(2).numpy()
        file = root / split / images.classes[label] / f"{index:05d}.png"
        Image.fromarray(array).save(file)
    return root


# ----------------------------------------------------------------------------- the command line


class Run(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def document(self) -> dict:
        """Stdout, which has to be one JSON document."""
        assert self.code == 0, self.err
        return json.loads(self.out, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command line as `gatepruner` does, in this process."""

    def call(*arguments: object) -> Run:
        monkeypatch.setattr(sys, "argv", ["gatepruner", *map(str, arguments)])
        capsys.readouterr()
        code: int | str | None = 0
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code
        told = capsys.readouterr()
        return Run(code or 0, told.out, told.err)

    return call


def signal_in_step(patch: pytest.MonkeyPatch, kind: type, at: int, number=signal.SIGINT) -> None:
    """A signal that comes in the middle of this step of an optimizer of this kind."""
    step, calls = kind.step, []

    def stepping(self, *rest):
        calls.append(1)
        if len(calls) == at:
            signal.raise_signal(number)
        return step(self, *rest)

    patch.setattr(kind, "step", stepping)


def files_in(root: Path) -> dict[str, bytes]:
    return {str(it.relative_to(root)): it.read_bytes() for it in root.rglob("*") if it.is_file()}


def data_in(root: Path) -> str:
    return f"imagefolder:{root / 'images'}"


def same(one: Checkpoint, other: Checkpoint) -> bool:
    return one.network == other.network and all(
        torch.equal(one.weights[key], other.weights[key]) for key in one.weights
    )


@pytest.fixture
def every_step(monkeypatch, tmp_path) -> Path:
    """Makes every step one that is shown, and whose state is on the disk; the state file."""
    clock = iter(range(0, 10**9, 100))
    monkeypatch.setattr(running, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    return tmp_path / "run.state"


class KilledError(BaseException):
    """Nothing catches it, as nothing catches a kill."""


def stopping(kind: str, stop: int) -> Callable[[Any], None]:
    """A watcher that interrupts or kills a run at a step."""

    def watch(moment: Any) -> None:
        if moment.step == stop:
            raise KeyboardInterrupt if kind == "interrupted" else KilledError

    return watch
