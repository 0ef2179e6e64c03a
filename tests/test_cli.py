"""Every command: its exit code, its files, its JSON against the library, and what it refuses."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import (
    bright_images,
    data_in,
    draw,
    drawn,
    files_in,
    images_for,
    logits,
    random_images,
    removable,
    same,
    signal_in_step,
    write_folder,
)
from torchvision.models import ResNet, resnet18
from torchvision.models.resnet import BasicBlock

import gatepruner
from gatepruner.cli import app
from gatepruner.errors import CheckpointError
from gatepruner.files.checkpoints import load, save
from gatepruner.files.formats import FORMATS
from gatepruner.images.readers import load_images
from gatepruner.measuring.accuracy import accuracy
from gatepruner.measuring.cost import count
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.pruning.orders import compare
from gatepruner.pruning.ranking import rank
from gatepruner.pruning.surgery import fold_gates, remove, remove_shortcuts
from gatepruner.report.files import FILES

COMMANDS = (
    *("demo", "compress", "inspect", "rank", "gate", "prune", "sweep", "recalibrate", "finetune"),
    *("evaluate", "bench", "train", "export"),
)
GREY = (1, 8, 8)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with a gated network, `gated.pt`, and images for it, `images`."""
    notes = {"normalize": {"mean": [0.5], "std": [0.25]}, "classes": ["a", "b", "c", "d"]}
    network = Network.named("gated-residual-fc12,width=8", num_classes=4, input_shape=GREY)
    generator = torch.Generator().manual_seed(1)
    weights = {
        key: torch.rand((), generator=generator) if key.endswith(".k") else tensor
        for key, tensor in drawn(network.initial_weights()).items()
    }
    save(Checkpoint(network, weights, notes), tmp_path / "gated.pt")
    write_folder(tmp_path / "images", bright_images(24, GREY))
    write_folder(tmp_path / "images", bright_images(48, GREY, seed=8), "train")
    return tmp_path


# --------------------------------------------------------------------- commands, and the library


def test_inspect_tells_what_a_file_holds(run, folder):
    path = folder / "gated.pt"
    whole, document = load(path), run("inspect", path, "--json").document
    assert document["name"] == str(whole.network)
    assert document["network"] == json.loads(json.dumps(whole.network.to_json()))
    cost = count(whole.network)
    assert (document["params"], document["macs"]) == (cost.params, cost.macs)
    assert {block["name"]: block["gate"] for block in document["blocks"]} == whole.gates
    assert document["notes"] == whole.notes
    told = run("inspect", path)
    assert told.code == 0
    assert f"{cost.params:,} parameters" in told.out
    assert all(name in told.out for name in removable(whole.network))


@pytest.mark.parametrize("by", ["gate", "random", "depth"])
def test_rank_lists_what_the_library_ranks(run, folder, by):
    path = folder / "gated.pt"
    ranking = rank(load(path), by, seed=5)
    document = run("rank", path, "--by", by, "--seed", 5, "--json").document
    gates = load(path).gates
    assert document["blocks"] == [
        {"name": name, "gate": gates[name], "score": score} for name, score in ranking.scores
    ]
    told = run("rank", path, "--by", by, "--seed", 5).out
    found = [word for word in told.split() if word.startswith("blocks.")]
    assert found == list(ranking.names)


PRUNED = {
    "drop2": (("--drop", 2), lambda it: rank(it).first(2), "drop2"),
    "keep1": (("--keep", 1), lambda it: rank(it).first(5), "keep1"),
    "drop0": (("--drop", 0), lambda it: (), "drop0"),
    "threshold": (("--threshold", 0.5), lambda it: rank(it).up_to(0.5), "threshold0.5"),
    "blocks": (
        ("--blocks", "blocks.4, blocks.1"),
        lambda it: ("blocks.4", "blocks.1"),
        "blocks2",
    ),
    "random": (
        ("--drop", 3, "--by", "random", "--seed", 4),
        lambda it: rank(it, "random", seed=4).first(3),
        "drop3-random-seed4",
    ),
}


@pytest.mark.parametrize("case", PRUNED)
def test_prune_writes_what_the_library_removes(run, folder, case):
    options, plan, name = PRUNED[case]
    path = folder / "gated.pt"
    whole, before = load(path), files_in(folder)
    document = run("prune", path, *options, "--json").document
    small = fold_gates(remove(whole, plan(whole)))
    written = folder / f"gated-{name}.pt"
    assert files_in(folder).keys() - before.keys() == {written.name, f"{written.name}.yaml"}
    assert files_in(folder)["gated.pt"] == before["gated.pt"]
    assert same(load(written), small)
    costs = count(whole.network), count(small.network)
    expected = {
        "input": str(path),
        "output": str(written),
        "removed": list(plan(whole)),
        "shortcuts_removed": [],
        "blocks_before": 6,
        "blocks_after": 6 - len(plan(whole)),
        "params_before": costs[0].params,
        "params_after": costs[1].params,
        "macs_before": costs[0].macs,
        "macs_after": costs[1].macs,
    }
    assert {key: document[key] for key in expected} == expected
    assert "accuracy_before" not in document


def test_prune_with_data_measures_before_and_after(run, folder):
    path = folder / "gated.pt"
    document = run("prune", path, "--drop", 3, "--data", data_in(folder), "--json").document
    whole = load(path)
    images = load_images(data_in(folder), GREY)
    small = load(document["output"])
    assert document["images"] == 24
    assert document["accuracy_before"] == accuracy(whole, images).accuracy
    assert document["accuracy_after"] == accuracy(small, images).accuracy
    recorded = load(document["output"]).notes["measured"]
    assert recorded["accuracy"] == document["accuracy_after"]
    assert recorded["source"] == document["data"]


def test_prune_can_remove_shortcuts_and_keep_gates(run, folder):
    path = folder / "gated.pt"
    whole = load(path)
    document = run("prune", path, "--drop", 2, "--shortcuts", 1, "--no-fold", "--json").document
    small = remove(whole, rank(whole).first(2))
    loose = rank(small).last(1)
    assert document["shortcuts_removed"] == list(loose) == [rank(whole).names[-1]]
    assert document["output"] == str(folder / "gated-drop2-shortcuts1.pt")
    assert same(load(document["output"]), remove_shortcuts(small, loose))
    assert load(document["output"]).gates
    alone = run("prune", path, "--shortcuts", 2, "--json").document
    assert alone["removed"] == []
    assert alone["output"] == str(folder / "gated-shortcuts2.pt")


def test_prune_keeps_the_kind_of_file_and_writes_where_it_is_told(run, folder):
    path = folder / "gated.safetensors"
    save(load(folder / "gated.pt"), path)
    assert (
        run("prune", path, "--drop", 1, "--json").document["output"].endswith("drop1.safetensors")
    )
    other = folder / "elsewhere.pt"
    assert run("prune", path, "--drop", 1, "-o", other, "--json").document["output"] == str(other)
    assert same(load(other), load(folder / "gated-drop1.safetensors"))


def test_prune_measures_latency_if_it_is_asked_to(run, folder):
    arguments = ("prune", folder / "gated.pt", "--drop", 5, "--latency", "--latency-batch", 2)
    document = run(*arguments, "--json").document
    for name in ("whole", "pruned"):
        found = document["latency"][name]
        assert 0 < found["low"] <= found["median"] <= found["high"]
        assert (found["batch"], found["device"]) == (2, "cpu")


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--limit", 7, "--batch-size", 3),
        ("--split", "train"),
        ("--normalize", "mnist"),
        ("--resize", 9),
    ],
)
def test_evaluate_counts_what_the_library_counts(run, folder, more):
    path = folder / "gated.pt"
    document = run("evaluate", path, "--data", data_in(folder), *more, "--json").document
    options = dict(zip(more[::2], more[1::2], strict=True))
    images = load_images(
        data_in(folder),
        GREY,
        split=options.get("--split"),
        limit=options.get("--limit"),
        resize=options.get("--resize"),
    )
    chosen = gatepruner.images.normalization.NORMALIZATIONS.get(options.get("--normalize"))
    found = accuracy(load(path), images, normalization=chosen)
    expected = (found.accuracy, found.correct, found.images)
    assert (document["accuracy"], document["correct"], document["images"]) == expected
    assert document["loss"] == pytest.approx(found.loss, rel=1e-5)
    assert (document["low"], document["high"]) == found.interval
    told = run("evaluate", path, "--data", data_in(folder), *more)
    assert f"{found.correct} of {found.images}" in told.out
    assert ("MNIST's" if chosen else "the checkpoint's") in told.out


def test_sweep_writes_the_curves_that_the_library_measures(run, folder):
    path = folder / "gated.pt"
    by = ("--by", "gate,random,taylor", "--criterion-images", 20)
    arguments = ("sweep", path, "--data", data_in(folder), *by, "--random", 2, "--seed", 3)
    document = run(*arguments, "--recalibrate", 30, "--json").document
    whole, images = load(path), load_images(data_in(folder), GREY)
    train = load_images(data_in(folder), GREY, split="train")
    how = {"training": train.spread(20), "statistics": train.spread(30), "seeds": (3, 4)}
    expected = list(compare(whole, images, ("gate", "random", "taylor"), **how))
    assert [order["runs"] for order in document["orders"]] == [
        order.to_json()["runs"] for order in expected
    ]
    assert [len(order["runs"]) for order in document["orders"]] == [1, 2, 1]
    report = folder / "gated-sweep-gate-taylor-seed3"
    assert document["output"] == str(report)
    assert {file.name for file in report.iterdir()} == {*FILES, "config.yaml"}
    assert json.loads((report / "report.json").read_text())["orders"] == document["orders"]


def test_sweep_can_take_larger_steps(run, folder):
    output = folder / "there"
    arguments = ("sweep", folder / "gated.pt", "--data", data_in(folder), "--by", "depth")
    document = run(*arguments, "--step", 4, "-o", output, "--json").document
    (order,) = document["orders"]
    assert [point["removed"] for point in order["runs"][0]] == [0, 4, 6]
    assert (output / "report.md").is_file()


def training_command(folder: Path) -> tuple:
    arch = "gated-residual-fc4,width=8"
    shape = ("--num-classes", 4, "--input-size", "1x8x8", "--normalize", "0.5/0.5")
    rest = ("--data", data_in(folder), "--epochs", 3, "--batch-size", 12, "--device", "cpu")
    return ("train", arch, *rest, *shape, "-o", folder / "it.pt")


def records_in(history: Path) -> list[dict]:
    return [json.loads(line) for line in history.read_text().splitlines()]


def test_train_writes_a_network_its_history_and_no_state(run, folder):
    document = run(*training_command(folder), "--hold-out", 8, "--json").document
    trained = load(folder / "it.pt")
    records = records_in(folder / "it.pt.history.jsonl")
    assert records == trained.notes["epochs"]
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert {key: document[key] for key in records[-1]} == records[-1]
    assert document["output"] == str(folder / "it.pt")
    assert not (folder / "it.pt.state").exists()
    images = load_images(data_in(folder), GREY, split="train")
    recipe = gatepruner.Recipe(epochs=3, batch_size=12)
    grey = gatepruner.images.normalization.Normalization((0.5,), (0.5,))
    kept, _ = images.held_out(8, 0)
    assert same(trained, gatepruner.train(trained.network, kept, recipe, normalization=grey))


def test_train_shows_progress_on_stderr_unless_it_is_to_be_quiet(run, folder):
    loud = run(*training_command(folder), "--json")
    assert loud.err.count("mean gate") == 3
    assert loud.document["epoch"] == 3
    quiet = run(*training_command(folder), "--json", "--quiet", "--force")
    assert quiet.err == ""
    assert quiet.document["epoch"] == 3


def test_an_interrupted_training_says_how_to_go_on_and_does(run, folder, monkeypatch):
    command = training_command(folder)
    with monkeypatch.context() as patch:
        signal_in_step(patch, torch.optim.SGD, 5)
        stopped = run(*command)
    assert stopped.code == 130
    assert "--resume" in stopped.err
    state = folder / "it.pt.state"
    assert state.exists()
    assert not (folder / "it.pt").exists()
    refused = run(*command)
    assert refused.code == 1
    assert "pass --resume or --force" in refused.err
    assert state.exists()
    assert run(*command, "--resume").code == 0
    again = load(folder / "it.pt")
    assert run(*command, "--force").code == 0
    assert same(load(folder / "it.pt"), again)


def test_a_training_that_cannot_be_saved_is_not_lost(run, folder, monkeypatch):
    def full(*args, **options):
        raise CheckpointError("the disk is full")

    command = training_command(folder)
    with monkeypatch.context() as patch:
        patch.setattr(gatepruner.files.checkpoints, "save", full)
        assert run(*command).code == 1
    assert (folder / "it.pt.state").exists()
    document = run(*command, "--resume", "--json").document
    assert document["epoch"] == 3
    assert not (folder / "it.pt.state").exists()
    resumed = load(folder / "it.pt")
    assert run(*command, "--force").code == 0
    assert same(load(folder / "it.pt"), resumed)


def test_a_history_that_was_cut_while_it_was_written_does_not_stop_a_resumed_run(
    run, folder, monkeypatch
):
    command = training_command(folder)
    with monkeypatch.context() as patch:
        signal_in_step(patch, torch.optim.SGD, 5)
        run(*command)
    history = folder / "it.pt.history.jsonl"
    history.write_text(history.read_text()[:-20])
    resumed = run(*command, "--resume")
    assert resumed.code == 0, resumed.err
    assert [record["epoch"] for record in records_in(history)] == [1, 2, 3]


def test_a_refused_training_leaves_the_history_that_is_there(run, folder):
    command = training_command(folder)
    run(*command)
    before = files_in(folder)
    assert run(*command, "--force", "--batch-size", 1000).code == 1
    assert files_in(folder) == before


# ---------------------------------------------------------------------------- torchvision, whole


def test_a_torchvision_network_goes_through_the_command_line(run, tmp_path):
    torch.manual_seed(5)
    path = tmp_path / "mine.pth"
    module = resnet18(num_classes=10)
    torch.save(module.state_dict(), path)
    pruned = run("prune", path, "--by", "depth", "--drop", 2, "--input-size", 64, "--json").document
    assert pruned["removed"] == ["layer4.1", "layer4.0"]
    small = load(pruned["output"])
    assert small.network.base.input_shape == (3, 64, 64)
    images = images_for(small.network)
    for block in (module.layer4[0].bn2, module.layer4[1].bn2):
        block.register_forward_hook(lambda module, args, output: output * 0)
    assert torch.equal(logits(small.build(), images), logits(module.eval(), images))

    names = "layer1.1,layer3.1"
    whole = run("prune", path, "--blocks", names, "--input-size", 64, "--json").document["output"]
    target = tmp_path / "small.pth"
    told = run("export", whole, "--to", "torchvision", "-o", target, "--json").document
    assert (told["block"], told["layers"]) == ("BasicBlock", [1, 2, 1, 2])
    assert told["output"] == str(target)
    stock = ResNet(BasicBlock, [1, 2, 1, 2], num_classes=10)
    stock.load_state_dict(torch.load(target, weights_only=True), strict=True)
    expected = logits(load(whole).build(), images)
    torch.testing.assert_close(logits(stock.eval(), images), expected, rtol=1e-5, atol=1e-5)
    shown = run("export", whole, "--to", "torchvision", "-o", target, "--force")
    assert "model = ResNet(BasicBlock, [1, 2, 1, 2], num_classes=10)" in shown.out


def test_export_to_safetensors_folds_gates(run, folder):
    target = folder / "out.safetensors"
    document = run("export", folder / "gated.pt", "--to", "safetensors", "-o", target, "--json")
    assert document.document["output"] == str(target)
    assert same(load(target), fold_gates(load(folder / "gated.pt")))


# ----------------------------------------------------------------------------- what is not allowed

WRITING = {
    "prune": lambda it: ("prune", it / "gated.pt", "--drop", 2),
    "prune -o": lambda it: ("prune", it / "gated.pt", "--drop", 2, "-o", it / "mine.pt"),
    "sweep": lambda it: ("sweep", it / "gated.pt", "--data", data_in(it), "--by", "gate"),
    "train": training_command,
    "export": lambda it: (
        *("export", it / "gated.pt", "--to", "safetensors", "-o", it / "mine.safetensors"),
    ),
}


@pytest.mark.parametrize("case", WRITING)
def test_nothing_is_replaced_without_force(run, folder, case):
    command = WRITING[case](folder)
    before = files_in(folder)
    foretold = run(*command, "--dry-run", "--json").document["outputs"]
    assert files_in(folder) == before
    assert run(*command).code == 0
    after = files_in(folder)
    assert after.keys() > before.keys()
    assert all(Path(name).exists() for name in foretold)
    assert after.items() >= before.items()
    changed = {name: b"mine" if name not in before else content for name, content in after.items()}
    for name, content in changed.items():
        (folder / name).write_bytes(content)
    refused = run(*command)
    assert refused.code == 1
    assert "--force" in refused.err
    assert files_in(folder) == changed
    assert run(*command, "--force").code == 0
    assert files_in(folder).keys() == after.keys()
    assert b"mine" not in files_in(folder).values()


@pytest.mark.parametrize(
    "arguments",
    [
        ("prune", "gated.pt"),
        ("prune", "gated.pt", "--drop", 1, "--keep", 1),
        ("prune", "gated.pt", "--drop", 1, "--threshold", 0.1),
        ("prune", "gated.pt", "--threshold", 0.1, "--blocks", "blocks.1"),
        ("prune", "gated.pt", "--keep", 1, "--blocks", "blocks.1"),
        ("prune", "gated.pt", "--drop", -1),
        ("prune", "gated.pt", "--drop", "two"),
        ("prune", "--drop", 1),
        ("prune", "gated.pt", "--drop", 1, "--input-size", "small"),
        ("prune", "gated.pt", "--drop", 1, "--input-size", "3x8"),
        ("prune", "gated.pt", "--drop", 1, "--input-size", "0"),
        ("evaluate", "gated.pt"),
        ("evaluate", "gated.pt", "--data", "imagefolder:images", "--batch-size", 0),
        ("evaluate", "gated.pt", "--data", "imagefolder:images", "--limit", 0),
        ("sweep", "gated.pt"),
        ("train", "gated-resnet8", "--data", "imagefolder:images"),
        ("train", "-o", "it.pt", "--data", "imagefolder:images"),
        ("export", "gated.pt", "--to", "tflite", "-o", "it.tflite"),
        (
            "train",
            "gated-resnet8",
            "-o",
            "it.pt",
            "--data",
            "imagefolder:images",
            "--optimizer",
            "x",
        ),
        ("trian", "gated.pt"),
        ("rank", "gated.pt", "--byy", "gate"),
    ],
    ids=lambda it: " ".join(map(str, it)),
)
def test_wrong_usage_ends_with_2_and_writes_nothing(run, folder, monkeypatch, arguments):
    monkeypatch.chdir(folder)
    before = files_in(folder)
    told = run(*arguments)
    assert told.code == 2
    assert "Traceback" not in told.err
    assert told.out == ""
    assert files_in(folder) == before


class Evil:
    def __reduce__(self):
        return os.system, ("touch ran",)


def bad_files(root: Path) -> None:
    """Files that are no checkpoint, each in its own way."""
    whole = load(root / "gated.pt")
    content = (root / "gated.pt").read_bytes()
    (root / "text.pt").write_text("no checkpoint")
    (root / "empty.pt").write_bytes(b"")
    (root / "cut.pt").write_bytes(content[: len(content) // 2])
    save(whole, root / "whole.safetensors")
    (root / "cut.safetensors").write_bytes((root / "whole.safetensors").read_bytes()[:-9])
    (root / "evil.pt").write_bytes(pickle.dumps(Evil()))
    (root / "a.folder").mkdir()
    key = whole.network.gate_key("blocks.2")
    for name, value in (("nan", float("nan")), ("inf", float("inf"))):
        weights = {**whole.weights, key: torch.tensor(value)}
        save(Checkpoint(whole.network, weights, whole.notes), root / f"{name}.pt")
    state = draw("resnet8").weights
    torch.save({**state, "linear.bias": torch.zeros(3)}, root / "shape.pt")
    torch.save({key: state[key] for key in list(state)[4:]}, root / "missing.pt")
    torch.save({**state, "more.weight": torch.zeros(3)}, root / "extra.pt")
    torch.save(dict(state), root / "plain.pt")
    torch.save({"some.weight": torch.zeros(2, 2)}, root / "unknown.pt")
    torch.save([1, 2, 3], root / "list.pt")
    write_folder(root / "large", random_images(4, (1, 9, 9), 4))
    write_folder(root / "many", random_images(5, GREY, 5))
    (root / "nothing").mkdir()


BAD = {
    "no file": ("inspect gatd.pt", "there is no file gatd.pt.*gated.pt"),
    "a folder": ("inspect a.folder", "a.folder is a folder"),
    "text": ("inspect text.pt", "text.pt is not a checkpoint"),
    "empty": ("prune empty.pt --drop 1", "empty.pt is empty"),
    "cut short": ("prune cut.pt --drop 1", "cut.pt is damaged or truncated"),
    "cut safetensors": ("rank cut.safetensors", "cut.safetensors is not a safetensors file, or is"),
    "code": ("prune evil.pt --drop 1", "evil.pt contains .*system, which would run code"),
    "nan gate": ("prune nan.pt --drop 1", r"not finite: blocks\.2 \(k = nan\)"),
    "infinite gate": ("inspect inf.pt", r"not finite: blocks\.2 \(k = inf\)"),
    "wrong shape": ("inspect shape.pt --arch resnet8", r"linear\.bias is \(3,\), not \(10,\)"),
    "missing": ("inspect missing.pt --arch resnet8", r"missing: bn1\.(bias|running_mean)"),
    "extra": ("inspect extra.pt --arch resnet8", r"extra: more\.weight"),
    "unknown": ("inspect unknown.pt", "cannot recognise the architecture .*--arch"),
    "list": ("inspect list.pt", "list.pt contains a list: expected a state dict"),
    "arch": ("inspect plain.pt --arch resnt8", "unknown architecture 'resnt8'"),
    "arch given": ("inspect gated.pt --arch resnet8", "leave out the architecture resnet8"),
    "no gates": ("rank plain.pt", "has no gate .*learn gates first"),
    "criterion": ("rank gated.pt --by size", "unknown criterion 'size': expected gate, "),
    "too many": ("prune gated.pt --drop 7", "cannot remove 7 blocks: .* has only 6 removable"),
    "keep too many": ("prune gated.pt --keep 7", "cannot keep 7 blocks: .* has 6"),
    "no block": ("prune gated.pt --blocks blocks.9,block.3", r"blocks\.9.*did you mean blocks\."),
    "twice": ("prune gated.pt --blocks blocks.1,blocks.1", "twice"),
    "shortcuts": ("prune gated.pt --drop 4 --shortcuts 3", "cannot remove 3 blocks"),
    "no folder": ("evaluate gated.pt --data imagefolder:nowhere", "there is no folder nowhere"),
    "empty folder": (
        "evaluate gated.pt --data imagefolder:nothing",
        "has no folders of classes",
    ),
    "kind of data": (
        "evaluate gated.pt --data images",
        "unknown data 'images': .*for the folder images: imagefolder:images",
    ),
    "no split": ("sweep gated.pt --data imagefolder:images --split val", "no split 'val'"),
    "image size": (
        "prune gated.pt --drop 1 --data imagefolder:large",
        "has 9x9 pixels.*--resize 8",
    ),
    "classes": ("sweep gated.pt --data imagefolder:many", "has 5 classes, of which"),
    "mnist": ("evaluate gated.pt --data mnist:images", "cannot read mnist:images"),
    "channels": (
        "evaluate gated.pt --data imagefolder:images --normalize imagenet",
        "has 3 channels, the images have 1",
    ),
    "normalize": (
        "evaluate gated.pt --data imagefolder:images --normalize 1",
        "unknown normalisation '1'",
    ),
    "device": (
        "evaluate gated.pt --data imagefolder:images --device cuda:77",
        "no device 'cuda:77' here: this machine has .*cpu",
    ),
    "device of prune": (
        "prune gated.pt --drop 1 --data imagefolder:images --device gpu",
        "no device 'gpu' here",
    ),
    "device of latency": ("prune gated.pt --drop 1 --latency --device gpu", "no device 'gpu'"),
    "device of sweep": (
        "sweep gated.pt --data imagefolder:images --device gpu",
        "no device 'gpu' here",
    ),
    "device of demo": ("demo --device gpu", "no device 'gpu' here"),
    "suffix": ("prune gated.pt --drop 1 -o it.onnx", "it.onnx: expected a name ending in"),
    "no output folder": ("prune gated.pt --drop 1 -o nowhere/it.pt", "there is no folder nowhere"),
    "output folder": ("prune gated.pt --drop 1 -o nothing --force", "nothing is a folder"),
    "report": ("sweep gated.pt --data imagefolder:images -o text.pt", "text.pt is a file"),
    "export": ("export gated.pt --to torchvision -o it.pth", "cannot export .*ResNet family"),
    "export suffix": ("export gated.pt --to safetensors -o it.pt", "ending in .safetensors"),
    "train arch": ("train resnet9 --data imagefolder:images -o it.pt", "6n \\+ 2"),
    "train data": ("train resnet8 --data cifar10:nothing -o it.pt", "cannot read cifar10"),
    "train hold out": (
        "train residual-fc4 --input-size 1x8x8 --num-classes 4 --data imagefolder:images "
        "--hold-out 48 --batch-size 8 -o it.pt",
        "cannot hold out 48 images",
    ),
    "train device": (
        "train residual-fc4 --input-size 1x8x8 --num-classes 4 --data imagefolder:images "
        "--normalize mnist --batch-size 8 -o it.pt --device gpu",
        "no device 'gpu' here",
    ),
    "train rate": (
        "train residual-fc4 --input-size 1x8x8 --num-classes 4 --data imagefolder:images "
        "--normalize mnist --batch-size 8 -o it.pt --learning-rate -1",
        "learning.rate",
    ),
    "train folder": (
        "train residual-fc4 --input-size 1x8x8 --num-classes 4 --data imagefolder:images "
        "--normalize mnist --batch-size 8 --epochs 1 -o nowhere/it.pt",
        "there is no folder nowhere",
    ),
    "train suffix": (
        "train residual-fc4 --input-size 1x8x8 --num-classes 4 --data imagefolder:images "
        "--normalize mnist --batch-size 8 --epochs 1 -o it.onnx",
        "it.onnx: expected a name ending in",
    ),
    "train four channels": (
        "train residual-fc4 --input-size 4x8x8 --num-classes 4 --data imagefolder:images "
        "--normalize 0,0,0,0/1,1,1,1 --batch-size 8 --epochs 1 -o it.pt",
        "4x8x8",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_input_gives_one_line_and_nothing_else(run, folder, monkeypatch, case):
    monkeypatch.chdir(folder)
    bad_files(folder)
    before, folders = files_in(folder), sorted(it for it in folder.rglob("*") if it.is_dir())
    command, message = BAD[case]
    told = run(*command.split())
    assert told.code == 1
    lines = [line for line in told.err.splitlines() if ": recognised as " not in line]
    assert len(lines) == 1, told.err
    assert lines[0].startswith("error: ")
    assert re.search(message, lines[0]), lines[0]
    assert "Traceback" not in told.err
    assert files_in(folder) == before
    assert sorted(it for it in folder.rglob("*") if it.is_dir()) == folders


def test_with_json_a_failure_is_a_document_too(run, folder):
    told = run("prune", folder / "gated.pt", "--drop", 99, "--json")
    failure = json.loads(told.out)
    assert (told.code, failure["document"], failure["error"]["kind"]) == (1, 1, "plan")
    assert told.err == f"error: {failure['error']['message']}\n"
    wrong = run("prune", folder / "gated.pt", "--json")
    assert (wrong.code, json.loads(wrong.out)["error"]["kind"]) == (2, "usage")
    assert run("rank", folder / "gated.pt", "--json").document["document"] == 1


def test_losses_that_are_no_number_are_told_in_valid_json(run, folder):
    whole = load(folder / "gated.pt")
    weights = {**whole.weights, "head.bias": torch.full((4,), float("nan"))}
    save(Checkpoint(whole.network, weights, whole.notes), folder / "broken.pt")
    told = run("evaluate", folder / "broken.pt", "--data", data_in(folder), "--json")
    assert told.code == 1 or told.document["images"] == 24


# --------------------------------------------------------------------------- a process of its own


def gatepruner_process(*arguments: object, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "gatepruner", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, **options)


def test_a_process_ends_with_the_code_and_the_line(folder):
    refused = gatepruner_process("prune", folder / "gated.pt", "--drop", 99)
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert refused.stderr.startswith("error: cannot remove 99 blocks")
    assert refused.stderr.count("\n") == 1
    assert gatepruner_process("prune", folder / "gated.pt").returncode == 2
    done = gatepruner_process("rank", folder / "gated.pt", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)["blocks"]) == 6


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_has_an_example(run, command):
    told = run(command, "--help")
    assert told.code == 0
    assert f"gatepruner {command}" in told.out.split("Example", 1)[1]


def test_the_help_names_every_command_and_an_entry(run):
    told = run("--help")
    assert told.code == 0
    assert all(re.search(rf"\b{command}\b", told.out) for command in COMMANDS)
    assert "gatepruner demo" in told.out
    names = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert names == set(COMMANDS)


def test_the_version_is_told(run):
    assert run("--version").out.strip() == f"gatepruner {gatepruner.__version__}"


@pytest.mark.parametrize("arguments", [["--help"], ["prune", "--help"], ["--version"]])
def test_help_does_not_wait_for_torch(arguments):
    script = (
        f"import sys; sys.argv = ['gatepruner', *{arguments!r}]\n"
        "from gatepruner.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'torchvision', 'numpy', 'PIL', 'matplotlib'} & sys.modules.keys()\n"
        "print(sorted(heavy), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=100
    )
    assert done.stderr.strip() == "[]"
    assert "gatepruner" in done.stdout


def test_shell_completion_knows_the_commands():
    words = {"COMP_WORDS": "gatepruner ", "COMP_CWORD": "1"}
    script = "import sys; sys.argv = ['gatepruner']; from gatepruner.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, **words, "_GATEPRUNER_COMPLETE": "complete_bash"},
    )
    assert done.returncode == 0, done.stderr
    assert set(COMMANDS) <= set(done.stdout.split())


COMPLETED = {
    "rank gated.pt --by ": {"gate", "taylor", "random"},
    "sweep gated.pt --by gate,t": {"gate,taylor"},
    "export gated.pt --to ": set(FORMATS),
    "train resnet8 --optimizer ": {"sgd", "adam", "adamw"},
    "finetune gated.pt --schedule ": {"onecycle", "step", "cosine"},
    "gate gated.pt --cost ": {"none", "macs", "params", "latency"},
    "evaluate gated.pt --device ": {"auto", "cpu", "cuda", "mps"},
    "evaluate gated.pt --data ": {"imagefolder:", "cifar10:"},
}


def test_words_complete_in_the_shell():
    script = (
        "import os, sys; sys.argv = ['gatepruner']\n"
        "from gatepruner.cli import main\n"
        f"for words in {list(COMPLETED)!r}:\n"
        "    os.environ |= {'COMP_WORDS': 'gatepruner ' + words}\n"
        "    os.environ |= {'COMP_CWORD': str(words.count(' ') + 1)}\n"
        "    try:\n        main()\n    except SystemExit:\n        print('--')\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "_GATEPRUNER_COMPLETE": "complete_bash"},
    )
    assert done.returncode == 0, done.stderr
    told = [set(part.split()) for part in done.stdout.split("--\n")]
    for (words, expected), found in zip(COMPLETED.items(), told, strict=False):
        assert expected <= found, words


# ----------------------------------------------------------------- configuration, and what is said


def test_the_options_beside_an_output_repeat_it(run, folder):
    path, other = folder / "gated.pt", folder / "other.pt"
    command = ("prune", path, "--drop", 2, "--by", "random", "--seed", 4)
    first = run(*command, "--data", data_in(folder), "--json").document
    beside = Path(f"{first['output']}.yaml")
    again = run("prune", "--config", beside, "-o", other, "--json").document
    assert {**again, "output": ""} == {**first, "output": ""}
    assert same(load(other), load(first["output"]))


def test_a_file_sets_options_and_the_command_line_wins(run, folder):
    file = folder / "mine.yaml"
    file.write_text("by: random\nseed: 5\n")
    path, by_file = folder / "gated.pt", {"criterion": "random", "seed": 5}
    document = run("rank", path, "--config", file, "--json").document
    assert by_file.items() <= document.items()
    document = run("rank", path, "--config", file, "--seed", 6, "--json").document
    assert {**by_file, "seed": 6}.items() <= document.items()


def test_what_is_wrong_with_a_file_of_options_is_told_at_once(run, folder):
    file = folder / "mine.yaml"
    file.write_text("dropp: 2\nblocks: [a, b]\nforce: true\n")
    told = run("prune", folder / "gated.pt", "--config", file, "--json")
    message = json.loads(told.out)["error"]["message"]
    assert told.code == 2
    assert "unknown option dropp (did you mean drop" in message
    assert "unknown option force" in message
    assert "blocks: expected a single value" in message
    file.write_text("drop: [")
    assert run("prune", folder / "gated.pt", "--config", file).code == 2


def test_all_that_is_wrong_is_told_at_once(run, folder):
    (folder / "it.pt").write_bytes(b"mine")
    told = run(*training_command(folder)[:-2], "-o", folder / "it.pt", "--hold-out", 99)
    assert "already exists" in told.err
    arguments = ("--hold-out", 99, "--batch-size", 50, "--force", "--json")
    told = run(*training_command(folder), *arguments)
    assert told.code == 1
    holding, batch = json.loads(told.out)["error"]["messages"]
    assert "cannot hold out 99 images" in holding
    assert batch.endswith("pass --batch-size 48")
    assert told.err == f"error: {holding}\nerror: {batch}\n"


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_that_keeps_no_state(run, folder, monkeypatch, sent):
    def signalled(*args, **options):
        signal.raise_signal(sent)

    monkeypatch.setattr("gatepruner.measuring.accuracy.tally", signalled)
    told = run("evaluate", folder / "gated.pt", "--data", data_in(folder))
    assert (told.code, told.err) == (128 + sent, "interrupted\n")


def test_the_two_lines_that_a_removal_ends_with_load_its_network(run, folder, monkeypatch):
    monkeypatch.chdir(folder)
    told = run("prune", "gated.pt", "--drop", 2).out
    script = told[told.index("import gatepruner") :].replace("\n  ", "\n")
    names: dict = {}
    exec(script, names)
    assert isinstance(names["module"], torch.nn.Module)


README = Path(__file__).parents[1] / "README.md"


def test_the_examples_of_the_readme_run(folder, monkeypatch):
    """In a folder where the files that they name are."""
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    if not examples:
        pytest.skip("the README has no python example")
    monkeypatch.chdir(folder)
    found: dict = {}
    for example in examples:
        for name in re.findall(r"[\"']([\w.-]+\.(?:pt|safetensors))[\"']", example):
            if not (folder / name).exists() and f'save(small, "{name}"' not in example:
                save(load(folder / "gated.pt"), folder / name)
        exec(example, found)
    assert isinstance(found["module"], torch.nn.Module)
    assert (folder / "small.pt").is_file()


# ------------------------------------------------------------------- what strangers have tried


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("prune gated.pt --drop 1 --by height", "unknown criterion 'height'"),
        ("prune gated.pt --drop 1 --by gate,random", "unknown criterion 'gate,random'"),
        ("sweep gated.pt --by , --data {data}", "cannot compare 0 criteria"),
        ("sweep gated.pt --by height,gate --data {data}", "unknown criterion 'height'"),
        ("sweep plain.pt --data {data}", "has no gate"),
        ("compress plain.pt --drop 99 --dry-run -o it.pt --data {data}", "has only 6 removable"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_measured(run, folder, command, told):
    whole = load(folder / "gated.pt")
    plain = replace(whole.network, edits=replace(whole.network.edits, gate="", gated=()))
    weights = {key: whole.weights[key] for key in plain.state()}
    save(Checkpoint(plain, weights, whole.notes), folder / "plain.pt")
    before = files_in(folder)
    words = command.format(data=data_in(folder)).split()
    words = [str(folder / word) if word.endswith(".pt") else word for word in words]
    refused = run(*words, *(("--batch-size", 4, "--hold-out", 10) if "compress" in words else ()))
    assert refused.code == 1
    assert told in refused.err
    assert files_in(folder) == before


def test_a_goal_on_the_command_line_takes_the_place_of_a_files(run, folder):
    settings = folder / "it.yaml"
    settings.write_text("target-macs: 50%\nfold: false\n")
    command = ("prune", folder / "gated.pt", "--config", settings, "--json")
    assert len(run(*command, "--drop", 2).document["removed"]) == 2
    assert (
        run(*command, "--force").document["macs_after"]
        < 0.5 * (run(*command, "--force").document["macs_before"])
    )
    settings.write_text("drop: true\n")
    refused = run("prune", folder / "gated.pt", "--config", settings)
    assert refused.code == 2
    assert "valid integer" in refused.err


def test_a_file_in_the_place_of_the_configuration_is_left_alone(run, folder):
    written = folder / "it.pt.yaml"
    written.write_text("mine")
    command = ("prune", folder / "gated.pt", "--drop", 1, "-o", folder / "it.pt")
    refused = run(*command)
    assert refused.code == 1
    assert "it.pt.yaml already exists" in refused.err
    assert written.read_text() == "mine"
    assert run(*command, "--force").code == 0


def test_a_compression_that_begins_replaces_nothing_though_it_may_resume(run, folder):
    (folder / "it.pt").write_bytes(b"mine")
    command = ("compress", folder / "gated.pt", "--drop", 1, "--data", data_in(folder))
    refused = run(*command, "--batch-size", 8, "-o", folder / "it.pt", "--resume")
    assert refused.code == 1
    assert "it.pt already exists" in refused.err
    assert (folder / "it.pt").read_bytes() == b"mine"


def test_nothing_removed_is_nothing_recalibrated(run, folder):
    command = ("prune", folder / "gated.pt", "--drop", 0, "--data", data_in(folder), "--json")
    document = run(*command).document
    assert document["accuracy_after"] == document["accuracy_before"]
    history = load(Path(document["output"])).notes["history"]
    assert not [done for done in history if "recalibrated" in done]
