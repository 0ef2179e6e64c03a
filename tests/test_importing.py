"""A module of the caller's by its name, in the library and in every command that reads a file."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from conftest import bright_images, data_in, images_for, logits, write_folder

from gatepruner.errors import ArchitectureError, CheckpointError
from gatepruner.files.checkpoints import load, save
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.importing import EXPECTED, imported, recorded
from gatepruner.networks.network import Network

GREY = (1, 8, 8)
LAYERS = """
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x).relu()
"""
NET = """
from layers import Block
from torch import nn

class Net(nn.Module):
    def __init__(self, depth=3):
        super().__init__()
        print("building a module")
        self.stem = nn.Conv2d(1, 4, 3)
        self.blocks = nn.Sequential(*(Block(4) for _ in range(depth)))
        self.head = nn.Linear(4, 4)
        nn.init.constant_(self.head.bias, 0.25)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))

def deep(depth, *, width, more=1):
    return Net(depth)

def wrong():
    return {}, 1

def failing():
    raise ValueError("no such\\nthing")

class Nested:
    @staticmethod
    def small():
        return Net(2)

ready = Net(1)
number = 3
"""


@pytest.fixture(autouse=True)
def _forgotten(tmp_path):
    """What a test imports from its folder is not there for the next one."""
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def nets(tmp_path, monkeypatch) -> Path:
    """The current folder, with a module, its weights and images."""
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "net.py").write_text(NET)
    (tmp_path / "nets" / "layers.py").write_text(LAYERS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def weights(nets) -> Path:
    torch.save(imported("nets/net.py:Net").state_dict(), nets / "weights.pth")
    return nets / "weights.pth"


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("nets/net.py:Net", 3), ("nets/net.py:ready", 1), ("nets/net.py:Nested.small", 2)],
)
def test_a_class_a_function_and_a_module_are_brought_by_file(nets, name, blocks):
    before, state = list(sys.path), torch.get_rng_state()
    module = imported(name)
    assert len(module.blocks) == blocks
    assert sys.path == before
    assert torch.equal(torch.get_rng_state(), state)


def test_a_package_of_the_current_folder_is_found(nets):
    (nets / "nets" / "__init__.py").write_text("")
    (nets / "nets" / "relative.py").write_text("from .layers import Block\nfrom torch import nn\n")
    assert isinstance(imported("torchvision.models:resnet18"), torch.nn.Module)
    (nets / "nets" / "more.py").write_text(NET.replace("from layers", "from .layers"))
    assert len(imported("nets.more:Net").blocks) == 3
    with pytest.raises(ArchitectureError, match=r"relative import.*nets\.relative:callable"):
        imported("nets/relative.py:Block")
    with pytest.raises(ArchitectureError, match=r"relative import.*package\.module:callable"):
        imported(f"{nets}/nets/relative.py:Block")
    assert imported("nets/more.py:Net").__class__.__module__ == "nets.more"


def test_two_files_of_one_name_are_two_modules(nets):
    (nets / "net.py").write_text(LAYERS + "\n\ndef Net():\n    return Block(2)\n")
    other = imported("net.py:Net")
    assert type(other).__name__ == "Block"
    module = imported("nets/net.py:Net")
    assert type(module).__name__ == "Net"
    assert type(imported("nets/net.py:Net")) is type(module)
    assert type(imported("net.py:Net")) is type(other)


def test_a_file_does_not_take_the_place_of_a_library(nets, monkeypatch):
    (nets / "torch.py").write_text("class Net:\n    pass\n")
    with pytest.raises(ArchitectureError, match="returns a Net: expected an nn"):
        imported("torch.py:Net")
    assert sys.modules["torch"] is torch
    (nets / "antigravity.py").write_text("from torch import nn\nready = nn.Identity()\n")
    assert isinstance(imported("antigravity.py:ready"), torch.nn.Identity)
    assert "antigravity" not in sys.modules
    made = ModuleType("net")  # without a file, as some make
    monkeypatch.setitem(sys.modules, "net", made)
    assert len(imported("nets/net.py:Net").blocks) == 3
    assert sys.modules["net"] is made


REFUSED = {
    "Net": r"cannot read the module 'Net': expected FILE\.py:CALLABLE",
    "nets/net:Net": r"cannot read the module 'nets/net:Net'",
    "nets/ne.py:Net": r"there is no file nets/ne\.py; the folder has broken\.py, driver\.py, ",
    "nets/net.py:Nett": r"nets/net\.py has no Nett \(did you mean Net or Nested\?\); it has Net, ",
    "nets/net.py:deep": r"nets/net\.py:deep needs arguments \(depth, width\): ",
    "nets/net.py:wrong": r"nets/net\.py:wrong returns a tuple: expected an nn\.Module",
    "nets/net.py:number": r"nets/net\.py:number is of the type int",
    "nets/net.py:failing": r"cannot build .*: ValueError: no such \(net\.py:24\)",
    "nets/broken.py:Net": r"cannot import nets/broken\.py: SyntaxError: .*line 1",
    "nets/exits.py:Net": r"cannot import nets/exits\.py: SystemExit: 2 .*no command line",
    "nets/driver.py:Net": r"RuntimeError: Found no NVIDIA driver .*builds the module on the CPU",
    "nets/needs.py:Net": r"ModuleNotFoundError: No module named 'nowhere_to_be_found' \(needs",
    "nowhere.at.all:Net": r"there is no Python module nowhere: ",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_with_a_name_is_told_in_one_line(nets, name):
    (nets / "nets" / "broken.py").write_text("class Net(\n")
    (nets / "nets" / "exits.py").write_text("import sys\nsys.exit(2)\n")
    (nets / "nets" / "driver.py").write_text("raise RuntimeError('Found no NVIDIA driver')\n")
    (nets / "nets" / "needs.py").write_text("import nowhere_to_be_found\n")
    before = set(sys.modules)
    with pytest.raises(ArchitectureError, match=REFUSED[name]) as refused:
        imported(name)
    assert "\n" not in str(refused.value)
    assert not {"broken", "exits", "needs"} & (set(sys.modules) - before)


# --------------------------------------------------------------------------------- files


@pytest.mark.parametrize("pickled", [False, True])
def test_weights_and_whole_modules_are_read_with_the_module(nets, pickled):
    author = imported("nets/net.py:Net").eval()
    torch.save(author if pickled else author.state_dict(), nets / "theirs.pth")
    whole = load("theirs.pth", module="nets/net.py:Net", input_shape=GREY)
    images = images_for(whole.network)
    assert torch.equal(logits(whole.build(), images), logits(author, images))
    assert whole.notes["module"] == "nets/net.py:Net"
    small = save(replace(whole, network=whole.network.with_gates().without_gates()), "small.pt")
    again = load(small, module="nets/net.py:Net")
    assert torch.equal(logits(again.build(), images), logits(author, images))
    assert again.notes == whole.notes


def test_a_recorded_name_is_text_that_nothing_imports(nets, weights):
    whole = load(weights, module="nets/net.py:Net", input_shape=GREY)
    (nets / "canary.py").write_text("open('sung', 'w')\nfrom nets.net import Net\n")
    save(replace(whole, notes={"module": "canary.py:Net"}), "own.pt")
    with pytest.raises(ArchitectureError, match=r"module='canary\.py:Net'"):
        load("own.pt")
    assert not (nets / "sung").exists()
    assert load("own.pt", module="nets/net.py:Net").notes["module"] == "nets/net.py:Net"


@pytest.mark.parametrize(
    "name", ["a.py:b; rm -rf ~", "$(x).py:Net", "a b.py:Net", "a.py:Net\n", "-o.py:N", "", 7, None]
)
def test_a_recorded_name_that_a_shell_could_take_otherwise_is_not_shown(name):
    assert recorded({"module": name}) == EXPECTED
    assert recorded({"module": "nets/net.py:Net"}) == "nets/net.py:Net"


def test_a_module_that_is_not_needed_is_refused(nets, weights):
    network = Network.named("resnet8")
    save(Checkpoint(network, network.initial_weights()), "own.pt")
    with pytest.raises(CheckpointError, match="own architecture, resnet8: leave out the module"):
        load("own.pt", module="nets/net.py:Net")
    with pytest.raises(ArchitectureError, match="resnet8 and a module are two networks"):
        load(weights, module="nets/net.py:Net", arch="resnet8", input_shape=GREY)
    with pytest.raises(CheckpointError, match="is a folder: a module needs the file"):
        load("nets", module="nets/net.py:Net")


def test_initial_weights_are_those_that_the_module_is_built_with(nets):
    network = Network.imported("nets/net.py:Net", GREY)
    torch.manual_seed(5)
    state = imported("nets/net.py:Net").state_dict()
    drawn = network.with_gates().initial_weights(seed=5)
    assert all(torch.equal(drawn[key], tensor) for key, tensor in state.items())
    assert float(drawn["head.bias"][0]) == 0.25
    assert not torch.equal(drawn["head.weight"], network.initial_weights(6)["head.weight"])


# --------------------------------------------------------------------------------- commands

BROUGHT = ("--module", "nets/net.py:Net")
SIZED = (*BROUGHT, "--input-size", "1x8x8")


def test_the_commands_take_a_module_and_ask_for_it_again(run, nets, weights):
    done = run("prune", weights, *SIZED, "--blocks", "blocks.1", "-o", "small.pt", "--json")
    assert done.document["blocks_after"] == 2
    assert "building a module" in done.err
    for command in ("inspect", "rank", "prune", "export"):
        needed = {
            "prune": ("--drop", 1),
            "export": ("--to", "safetensors", "-o", "x.safetensors"),
        }.get(command, ())
        refused = run(command, "small.pt", *needed)
        assert refused.code == 1
        assert refused.err.startswith("error: small.pt has the weights of the module Net")
        assert refused.err.endswith("pass --module nets/net.py:Net\n")
    told = run("inspect", "small.pt", *BROUGHT)
    assert "module: nets/net.py:Net" in told.out
    assert "blocks.1" not in told.out.partition("history")[0]


def test_a_configuration_file_holds_the_module(run, nets, weights):
    run("prune", weights, *SIZED, "--drop", "1", "--by", "depth", "-o", "small.pt")
    configuration = yaml.safe_load((nets / "small.pt.yaml").read_text())
    assert configuration["module"] == "nets/net.py:Net"
    again = run("prune", "--config", "small.pt.yaml", "-o", "again.pt")
    assert again.code == 0, again.err
    assert "load('again.pt', module='nets/net.py:Net').build()" in again.out


def test_a_teacher_takes_the_module_where_it_needs_it(run, nets, weights):
    write_folder(nets / "images", bright_images(16, GREY), "train")
    data = ("--data", data_in(nets), "--normalize", "0.5/0.25", "--epochs", 1, "--batch-size", 8)
    run("prune", weights, *SIZED, "--blocks", "blocks.1", "-o", "small.pt")
    tuned = run("finetune", "small.pt", "--teacher", weights, *SIZED, *data)
    assert tuned.code == 0, tuned.err
    assert load("small-finetuned.pt", module="nets/net.py:Net").notes["module"] == BROUGHT[1]
    network = Network.named("gated-residual-fc4,width=8", num_classes=4, input_shape=GREY)
    save(Checkpoint(network, network.initial_weights()), "named.pt")
    other = run("finetune", "small.pt", "--teacher", "named.pt", *SIZED, *data, "--match", "logits",
                "-o", "other.pt")  # fmt: skip
    assert other.code == 0, other.err


def test_training_begins_with_a_module_too(run, nets):
    write_folder(nets / "images", bright_images(16, GREY), "train")
    data = ("--data", data_in(nets), "--normalize", "0.5/0.25", "--epochs", 2, "--batch-size", 8)
    done = run("train", *SIZED, *data, "--gates", "-o", "t.pt", "--json")
    assert done.document["name"] == "gated-Net"
    trained = load("t.pt", module="nets/net.py:Net")
    assert len(trained.gates) == 3
    assert run("inspect", "t.pt").err.endswith("pass --module nets/net.py:Net\n")
    for wrong in (
        (),
        ("resnet8", *BROUGHT),
        (*BROUGHT, "--num-classes", 4),
        ("resnet8", "--gates"),
    ):
        assert run("train", *wrong, *data, "-o", "u.pt").code == 2


def test_the_program_imports_from_where_it_is_called(nets, weights):
    command = [sys.executable, "-P", "-m", "gatepruner", "inspect", str(weights), *SIZED, "--json"]
    done = subprocess.run(command, cwd=nets, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"module": "nets/net.py:Net"' in done.stdout
    assert done.stdout.startswith("{")


SLY = """
from net import Net
from layers import Block
import torch

class Sly(Block):
    def forward(self, x):
        return super().forward(x) * (2 if type(x) is torch.Tensor else 1)

def sly():
    net = Net()
    net.blocks[1] = Sly(4)
    return net
"""


def test_the_advice_of_a_refusal_works_on_the_command_line(run, nets):
    (nets / "nets" / "sly.py").write_text(SLY)
    torch.save(imported("nets/sly.py:sly").state_dict(), "sly.pth")
    options = ("--module", "nets/sly.py:sly", "--input-size", "1x8x8")
    refused = run("inspect", "sly.pth", *options)
    assert refused.err.endswith("keep that module whole; pass --leaves Sly\n")
    told = run("inspect", "sly.pth", *options, "--leaves", "Sly", "--json")
    assert told.document["kept_whole"] == {"blocks.1": "its class is among the leaves"}
    remark = "kept blocks.1 whole, with any blocks inside: its class is among the leaves"
    assert told.document["notes"]["remarks"] == [remark]
    assert told.err.count(remark) == 1
    unknown = run("inspect", "sly.pth", *options, "--leaves", "Slie")
    assert unknown.err.endswith("no module of the class Slie (did you mean Sly?)\n")
    sized = run("inspect", "sly.pth", *options[:2])
    assert sized.err.endswith("pass --input-size CxHxW\n")
