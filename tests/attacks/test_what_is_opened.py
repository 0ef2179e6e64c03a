"""All commands open what they were told to, and nothing that a file or `--arch` names.

Python tells of every file that it opens (`sys.addaudithook`), and of every socket and program. It
does not tell of files that pyarrow maps: `tests/test_tables.py` sees to those.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import draw
from PIL import Image
from safetensors.torch import save_file

from gatepruner import Checkpoint, Network, save

# What belongs to the installation, to Linux, or is no path; and what matplotlib and torch keep.
INSTALLED = tuple(
    {
        *map(os.path.realpath, (sys.prefix, sys.base_prefix, *filter(None, sys.path))),
        *("/proc", "/sys", "/dev", "/etc", "/usr", "/lib"),
        *(str(Path.home() / name) for name in (".cache", ".config", ".local", ".triton")),
    }
)
REACHING = ("socket.", "subprocess.", "os.system", "os.exec", "os.spawn", "os.posix_spawn")
seen: list[tuple[str, str]] | None = None  # events while a test listens


def hook(event, arguments):
    if seen is not None and (event == "open" or event.startswith(REACHING)):
        seen.append((event, str(arguments[0]) if arguments else ""))


sys.addaudithook(hook)  # for ever: there is no way to take one away


@pytest.fixture
def opened(monkeypatch):
    """Runs something, and returns the files that it opened outside the installation."""

    def listen(act):
        global seen
        seen = []
        try:
            act()
        finally:
            found, seen = seen, None
        places = {
            os.path.realpath(name)
            for event, name in found
            if event == "open" and not name.isdigit()
        }
        assert [one for one in found if one[0] != "open"] == []
        return {Path(place) for place in places if not place.startswith(INSTALLED)}

    return listen


CLASSES = 4
COMMON = "--data imagefolder:images --device cpu --batch-size 16 --quiet"
COMMANDS = {
    "inspect": "inspect gated.pt",
    "rank": f"rank gated.pt {COMMON} --by taylor",
    "evaluate": f"evaluate gated.pt {COMMON}",
    "bench": "bench gated.pt whole.pt --device cpu --batch 1 -o out/bench",
    "prune": "prune gated.pt --drop 1 -o out/a.pt",
    "export": "export gated.pt --to safetensors -o out/b.safetensors",
    "recalibrate": f"recalibrate gated.pt {COMMON} -o out/c.pt",
    "sweep": f"sweep gated.pt {COMMON} --random 1 -o out/report",
    "gate": f"gate whole.pt {COMMON} --warmup 1 --steps 2 --hold-out 0 -o out/d.pt",
    "train": "train gated-resnet8 --num-classes 4 --input-size 8 --epochs 1 -o out/e.pt " + COMMON,
    "finetune": f"finetune gated.pt --teacher whole.pt {COMMON} --epochs 1 -o out/f.pt",
    "compress": f"compress whole.pt {COMMON} --drop 1 --gate-images 16 --gate-warmup 1 "
    "--gate-steps 2 --hold-out 8 --epochs 1 --latency-batch 1 -o out/g.pt",
    "demo": "demo -o out/demo --quiet",
}


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """Two networks whose notes name other files, images, and these other files."""
    monkeypatch.chdir(tmp_path)
    named = {
        "module": "canary.py:make",
        "source": "canary.pt",
        "classes": ["canary.py", "canary.pt", str(tmp_path / "canary.py"), "canary"],
        "history": [{"trained": "canary.pt", "images": 3}],
        "remarks": ["canary.py"],
    }
    for name, file in (("resnet8", "whole.pt"), ("gated-resnet8", "gated.pt")):
        network = Network.named(name, num_classes=CLASSES, input_shape=(3, 8, 8))
        save(Checkpoint(network, network.initial_weights(0), named), tmp_path / file)
    for index in range(80):
        folder = tmp_path / "images" / ("train" if index % 3 else "test") / f"{index % 4}-x"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (index, 0, 255 - index)).save(folder / f"{index}.png")
    (tmp_path / "canary.py").write_text("raise SystemExit('imported')")
    save(draw("resnet8"), tmp_path / "canary.pt")
    (tmp_path / "canary").mkdir()
    (tmp_path / "canary" / "config.json").write_text("{}")
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "out"))
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_opens_its_inputs_and_outputs(name, inputs, opened, run):
    done = []
    places = opened(lambda: done.append(run(*COMMANDS[name].split())))
    assert done[0].code == 0, done[0].err
    own = {place for place in places if not place.is_relative_to(inputs / "out")}
    given = {inputs / f"{file}.pt" for file in ("gated", "whole")}
    images = {place for place in own if place.is_relative_to(inputs / "images")}
    assert own - images <= given
    assert bool(images) == ("--data" in COMMANDS[name])


@pytest.mark.parametrize(
    "arch",
    [
        *("timm:local-dir:canary", "timm:hf-hub:canary", "timm:canary.pt", "canary.pt"),
        *("timm:resnet18,checkpoint_path=canary.pt", "timm:resnet18,pretrained_cfg=canary"),
        *("torchvision:resnet18,weights=canary.pt", "transformers:canary", "canary.py:make"),
        *("caller:canary.py:make", "resnet8", "gatepruner:resnet8,width=canary.pt"),
    ],
)
def test_an_architecture_opens_nothing(arch, inputs, opened, run):
    torch.save(dict(draw("resnet8").weights), inputs / "bare.pt")
    assert opened(lambda: run("inspect", "bare.pt", "--arch", arch)) <= {inputs / "bare.pt"}


@pytest.mark.parametrize("config", ["config.json", "preprocessor_config.json"])
def test_the_folder_in_an_architecture_is_read_for_its_configuration_alone(
    config, inputs, opened, run
):
    torch.save(dict(draw("resnet8").weights), inputs / "bare.pt")
    names = {"model_type": "resnet", "_name_or_path": "../canary.pt", "auto_map": "canary.py"}
    (inputs / "canary" / config).write_text(json.dumps(names))
    (inputs / "canary" / "config.json").write_text(json.dumps(names))
    save_file(dict(draw("resnet8").weights), inputs / "canary" / "model.safetensors")
    found = opened(lambda: run("inspect", "bare.pt", "--arch", "hf:canary"))
    known = {inputs / "canary" / name for name in ("config.json", "preprocessor_config.json")}
    assert found <= {inputs / "bare.pt", *known}


CANARIES = ("canary.pt", "../canary.pt", "canary.py", "canary")
BASES = [
    {"source": "caller", "name": "canary.py:make", "arguments": {"path": "canary.py"}},
    {"source": "timm", "name": "resnet18", "arguments": {"checkpoint_path": "canary.pt"}},
    {"source": "timm", "name": "local-dir:canary", "arguments": {}},
    {"source": "torchvision", "name": "canary.pt", "arguments": {"weights": "canary.pt"}},
    {"source": "transformers", "name": "canary", "arguments": {"_name_or_path": "canary"}},
]


@pytest.mark.parametrize("base", BASES, ids=lambda base: base["source"])
def test_a_header_opens_nothing(base, inputs, opened, run):
    content = torch.load(inputs / "gated.pt", weights_only=True)
    header = json.loads(content["gatepruner"])
    header["network"]["base"].update(base)
    torch.save({**content, "gatepruner": json.dumps(header)}, inputs / "forged.pt")
    assert opened(lambda: run("inspect", "forged.pt")) <= {inputs / "forged.pt"}


@pytest.mark.parametrize("name", CANARIES)
def test_an_index_of_shards_opens_files_beside_it_alone(name, inputs, opened, run):
    (inputs / "deep").mkdir()
    index = inputs / "deep" / "a.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv1.weight": name}}))
    assert opened(lambda: run("inspect", index)) <= {index}


@pytest.mark.parametrize("name", CANARIES)
def test_a_set_of_datasets_opens_files_beside_it_alone(name, inputs, opened, run):
    (inputs / "deep").mkdir()
    state = inputs / "deep" / "state.json"
    state.write_text(json.dumps({"_data_files": [{"filename": name}]}))
    found = opened(lambda: run("evaluate", "gated.pt", "--data", "hf:deep", "--device", "cpu"))
    assert found <= {inputs / "gated.pt", state}


def test_a_picture_in_a_table_that_is_a_path_is_not_opened(inputs, opened, run):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    rows = [{"bytes": None, "path": str(inputs / "images" / "train" / "1-x" / "1.png")}]
    table = pyarrow.table({"image": pyarrow.array(rows, kind), "label": pyarrow.array([0])})
    parquet.write_table(table, inputs / "a.parquet")
    found = opened(lambda: run("evaluate", "gated.pt", "--data", "parquet:a.parquet"))
    assert found <= {inputs / "gated.pt", inputs / "a.parquet"}


def test_a_resumed_compression_opens_the_files_of_its_steps_alone(inputs, opened, run):
    assert run(*COMMANDS["compress"].split()).code == 0
    steps = inputs / "out" / "g-compress" / "steps.json"
    document = json.loads(steps.read_text())
    document["steps"].append({**document["steps"][-1], "name": "../../canary"})
    steps.write_text(json.dumps(document))
    done = []
    found = opened(lambda: done.append(run(*COMMANDS["compress"].split(), "--resume")))
    assert done[0].code == 1
    assert inputs / "canary.pt" not in found


def test_what_is_opened_is_seen(inputs, opened):
    assert opened(lambda: Path("canary.pt").read_bytes()) == {inputs / "canary.pt"}
    with pytest.raises(AssertionError, match="posix_spawn"):
        opened(lambda: os.posix_spawn("/bin/true", ["true"], {}) and os.wait())
