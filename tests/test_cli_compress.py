"""From a plain network to a smaller one on the command line: gate, recover, targets, compress."""

from __future__ import annotations

import json
import re
import signal
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from conftest import (
    bright_images,
    data_in,
    drawn,
    files_in,
    random_images,
    removable,
    same,
    signal_in_step,
    write_folder,
)
from matplotlib.figure import Figure

import gatepruner
from gatepruner.compression.compress import compress
from gatepruner.compression.recipe import CompressionRecipe
from gatepruner.errors import EngineError
from gatepruner.files import quantization
from gatepruner.files.checkpoints import load, save
from gatepruner.files.formats import FORMATS
from gatepruner.images.images import Images
from gatepruner.images.normalization import Normalization
from gatepruner.images.readers import load_images
from gatepruner.learning.gates import learn_gates
from gatepruner.learning.recipes import FINE_TUNING, GateRecipe
from gatepruner.learning.training import finetune
from gatepruner.measuring import recalibration
from gatepruner.measuring.accuracy import accuracy
from gatepruner.measuring.cost import count
from gatepruner.measuring.latency import Latency
from gatepruner.measuring.recalibration import recalibrate
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.pruning.curve import sweep
from gatepruner.pruning.goals import Goal
from gatepruner.pruning.meter import savings
from gatepruner.pruning.ranking import rank
from gatepruner.pruning.surgery import fold_gates, follow

COLOUR = (3, 8, 8)
HALF = Normalization((0.5,) * 3, (0.25,) * 3)
FAST = ("--warmup", 2, "--steps", 2, "--batch-size", 16, "--hold-out", 12)
QUICK = GateRecipe(warmup=2, steps=2, batch_size=16)


def plain(name: str = "resnet14", classes: int = 4, size: int = 8) -> Checkpoint:
    network = Network.named(name, num_classes=classes, input_shape=(3, size, size))
    notes = {"normalize": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    return Checkpoint(network, MappingProxyType(drawn(network.initial_weights())), notes)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, bytes]:
    """The files of `folder`, made once."""
    root = tmp_path_factory.mktemp("made")
    save(plain(), root / "whole.pt")
    write_folder(root / "images", bright_images(24, COLOUR))
    write_folder(root / "images", bright_images(60, COLOUR, seed=8), "train")
    learn = load_images(data_in(root), COLOUR, split="train").held_out(12, 0)[0]
    with torch.random.fork_rng(devices=[]):
        gated = learn_gates(load(root / "whole.pt"), learn, replace(QUICK, blocks=4), device="cpu")
    save(gated, root / "gated.pt")
    return files_in(root)


def put(files: dict[str, bytes], root: Path) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.fixture
def folder(tmp_path, made) -> Path:
    """A plain network, the same with a path of four blocks of its six, and images for them."""
    return put(made, tmp_path)


@pytest.fixture
def shallow(folder) -> Path:
    """A network of three blocks instead, where it does not matter how many there are."""
    save(plain("resnet8"), folder / "whole.pt", force=True)
    return folder


def training_images(folder: Path) -> Images:
    return load_images(data_in(folder), COLOUR, split="train")


def with_data(*command: object, folder: Path) -> tuple:
    return (*command, "--data", data_in(folder), "--device", "cpu")


def new_files(folder: Path, before: dict[str, bytes]) -> set[str]:
    after = files_in(folder)
    assert after.items() >= before.items(), "a file that was there has changed"
    return after.keys() - before.keys()


def same_path(one: Checkpoint, other: Checkpoint) -> bool:
    return [it.block for it in one.path.removals] == [
        it.block for it in other.path.removals
    ] and all(
        torch.equal(it, yours.weights[key])
        for mine, yours in zip(one.path.removals, other.path.removals, strict=True)
        for key, it in mine.weights.items()
    )


# ------------------------------------------------------------------------------------------ gate


@pytest.mark.parametrize("blocks", [None, 2])
def test_gate_writes_what_the_library_learns(run, folder, blocks):
    path, before = folder / "whole.pt", files_in(folder)
    more = () if blocks is None else ("--blocks", blocks)
    command = with_data("gate", path, *FAST, *more, "--seed", 3, "--json", folder=folder)
    document = run(*command).document
    written = folder / "whole-gated-seed3.pt"
    assert new_files(folder, before) == {written.name, f"{written.name}.yaml"}
    gated = load(written)
    images = training_images(folder).held_out(12, 3)[0]
    expected = learn_gates(load(path), images, replace(QUICK, blocks=blocks, seed=3), device="cpu")
    assert same(gated, expected)
    assert same_path(gated, expected)
    assert gated.notes == expected.notes
    assert document == {
        "document": 1,
        "input": str(path),
        "output": str(written),
        "path": expected.path.records,
    }


def test_gate_takes_a_foreign_file_and_other_images(run, folder):
    path = folder / "whole.th"
    torch.save({"state_dict": dict(plain().weights)}, path)
    target = folder / "mine.safetensors"
    options = ("--input-size", 8, "--normalize", "0.5,0.5,0.5/0.25,0.25,0.25", "--split", "test")
    command = ("gate", path, *FAST, *options, "--limit", 16, "--hold-out", 0, "--labels")
    command = (*command, "--no-mirror", "--cost", "macs", "--norm-learning-rate", 0.01)
    document = run(*with_data(*command, "-o", target, "--json", folder=folder)).document
    recipe = replace(QUICK, labels=True, mirror=False, cost="macs", norm_learning_rate=0.01)
    images = load_images(data_in(folder), COLOUR).spread(16)
    expected = learn_gates(plain(), images, recipe, normalization=HALF, device="cpu")
    assert same_path(load(target), expected)
    assert document["path"] == expected.path.records


class AskedError(Exception):
    """What a command asks the library for."""


@pytest.fixture
def asked(run, monkeypatch):
    """The recipe that a command asks the library to carry out."""

    def ask(module: str, verb: str, *command: object):
        def asking(checkpoint, images, recipe, **options):
            raise AskedError(recipe)

        monkeypatch.setattr(f"gatepruner.{module}.{verb}", asking)
        with pytest.raises(AskedError) as told:
            run(*command)
        return told.value.args[0]

    return ask


def test_the_command_line_has_the_librarys_defaults(asked, folder, monkeypatch):
    batch = ("--batch-size", 16)
    command = with_data("gate", folder / "whole.pt", "--hold-out", 12, *batch, folder=folder)
    assert asked("learning.gates", "learn_gates", *command) == GateRecipe(batch_size=16)
    command = with_data("finetune", folder / "whole.pt", *batch, folder=folder)
    assert asked("learning.training", "finetune", *command) == replace(FINE_TUNING, batch_size=16)
    command = with_data("compress", folder / "whole.pt", "--hold-out", 12, folder=folder)
    command = (*command, "--drop", 1, "--batch-size", 16, "-o", folder / "small.pt")
    assert asked("compression.steps", "learn_gates", *command) == GateRecipe(
        blocks=1, batch_size=16
    )


def test_gate_shows_a_line_for_every_block_unless_it_is_to_be_quiet(run, folder):
    command = with_data("gate", folder / "whole.pt", *FAST, "--blocks", 2, folder=folder)
    loud = run(*command)
    gone = list(load(folder / "whole-gated.pt").path.blocks)
    assert re.findall(r"(\d of 2): (\S+),", loud.err) == [
        (f"{number} of 2", name) for number, name in enumerate(gone, start=1)
    ]
    assert "2 blocks can go without further learning" in loud.out
    assert run(*command, "--force", "--quiet").err == ""


def test_an_interrupted_gate_says_how_to_go_on_and_does(run, folder, monkeypatch):
    command = with_data("gate", folder / "whole.pt", *FAST, folder=folder)
    with monkeypatch.context() as patch:
        signal_in_step(patch, torch.optim.Adam, 7)
        stopped = run(*command)
    state = folder / "whole-gated.pt.state"
    assert stopped.code == 130
    assert f"{state} is kept" in stopped.err
    assert "--resume" in stopped.err
    assert not (folder / "whole-gated.pt").exists()
    refused = run(*command)
    assert refused.code == 1
    assert "pass --resume or --force" in refused.err
    assert run(*command, "--resume").code == 0
    assert not state.exists()
    again = load(folder / "whole-gated.pt")
    assert run(*command, "--force").code == 0
    assert same_path(load(folder / "whole-gated.pt"), again)


# --------------------------------------------------------------------- recalibrate and finetune


@pytest.mark.parametrize("augment", [None, True, False])
def test_recalibrate_writes_what_the_library_estimates(run, folder, augment):
    path, before = folder / "whole.pt", files_in(folder)
    shifted = {None: (), True: ("--augment",), False: ("--no-augment",)}[augment]
    command = with_data("recalibrate", path, "--images", 30, *shifted, "--json", folder=folder)
    document = run(*command).document
    assert new_files(folder, before) == {"whole-recalibrated.pt", "whole-recalibrated.pt.yaml"}
    images = training_images(folder).spread(30)
    expected = recalibrate(load(path), images, device="cpu", augment=augment)
    assert same(load(folder / "whole-recalibrated.pt"), expected)
    assert document == {
        "document": 1,
        "input": str(path),
        "output": str(folder / "whole-recalibrated.pt"),
        **expected.notes["history"][-1],
    }
    assert document["images"] == 30
    assert augment in (None, document["augmented"])


def test_what_has_no_batch_norm_is_written_as_it_is_or_refused(run, folder, monkeypatch):
    monkeypatch.setattr(gatepruner.measuring.recalibration, "statistics", lambda module: {})
    told = run(*with_data("recalibrate", folder / "whole.pt", "--json", folder=folder))
    assert told.code == 1 or same(load(told.document["output"]), load(folder / "whole.pt"))


def test_finetune_writes_what_the_library_learns(run, folder):
    small = save(fold_gates(follow(load(folder / "gated.pt"), [])), folder / "small.pt")
    before = files_in(folder)
    options = ("--teacher", folder / "whole.pt", "--epochs", 2, "--batch-size", 16, "--seed", 2)
    options += ("--hold-out", 12, "--distillation", 0.5, "--temperature", 2, "--no-augment")
    command = with_data("finetune", small, *options, "--json", folder=folder)
    document = run(*command).document
    written = "small-finetuned-seed2.pt"
    assert new_files(folder, before) == {written, f"{written}.history.jsonl", f"{written}.yaml"}
    recipe = replace(
        FINE_TUNING,
        epochs=2,
        batch_size=16,
        seed=2,
        distillation=0.5,
        temperature=2.0,
        augment=False,
    )
    images, held_out = training_images(folder).held_out(12, 2)
    teacher = load(folder / "whole.pt")
    expected = finetune(
        load(small), images, recipe, teacher=teacher, validation=held_out, device="cpu"
    )
    assert same(load(folder / written), expected)
    records = [
        json.loads(line) for line in (folder / f"{written}.history.jsonl").read_text().splitlines()
    ]
    assert records == load(folder / written).notes["epochs"]
    assert {key: document[key] for key in records[-1]} == records[-1]
    assert document["validation"] == expected.notes["epochs"][-1]["validation"]
    assert document["history"] == str(folder / f"{written}.history.jsonl")


@pytest.mark.parametrize("student", ["gated.pt", "plain.pth"])
def test_arch_says_what_a_teacher_is_whose_file_does_not(run, folder, student):
    torch.save(dict(plain("resnet14").weights), folder / "plain.pth")
    options = ("--teacher", folder / "plain.pth", "--arch", "resnet14", "--input-size", 8)
    options += ("--epochs", 1, "--batch-size", 16, "--normalize", "0.5,0.5,0.5/0.25,0.25,0.25")
    command = with_data("finetune", folder / student, *options, "--json", folder=folder)
    assert run(*command).document["epoch"] == 1
    options = ("--arch", "resnet14", "--batch-size", 16, "-o", folder / "other.pt")
    own = with_data("finetune", folder / "gated.pt", *options, folder=folder)
    assert "leave out the architecture" in run(*own, "--teacher", folder / "whole.pt").err


def test_an_interrupted_finetune_is_resumed_to_the_same_weights(run, folder, monkeypatch):
    options = ("--epochs", 3, "--batch-size", 16, "--teacher", folder / "whole.pt")
    command = with_data("finetune", folder / "whole.pt", *options, folder=folder)
    with monkeypatch.context() as patch:
        signal_in_step(patch, torch.optim.SGD, 5)
        stopped = run(*command)
    written = folder / "whole-finetuned.pt"
    assert stopped.code == 130
    assert f"{written}.state is kept" in stopped.err
    assert run(*command, "--resume").code == 0
    again = load(written)
    assert run(*command, "--force").code == 0
    assert same(load(written), again)
    assert [it["epoch"] for it in again.notes["epochs"]] == [1, 2, 3]


# -------------------------------------------------------------------------- prune, and its targets


def fake_latency(monkeypatch, drift=lambda: 1.0) -> None:
    """A clock that tells a network by its parameters, apart from a drift that all share."""

    def latency(modules, shape, *, batch=1, device="cpu", runs=30, **others):
        scale = drift()
        times = {
            name: scale * sum(it.numel() for it in module.parameters()) * 1e-6
            for name, module in modules.items()
        }
        return {name: Latency(it, it, it, runs, batch, str(device)) for name, it in times.items()}

    monkeypatch.setattr(gatepruner.pruning.meter, "latency", latency)


@pytest.fixture(scope="module")
def every_block(made, tmp_path_factory) -> Checkpoint:
    """The network with a path of all its blocks."""
    root = put(made, tmp_path_factory.mktemp("every"))
    with torch.random.fork_rng(devices=[]):
        return learn_gates(load(root / "whole.pt"), training_images(root), QUICK, device="cpu")


@pytest.mark.parametrize(
    ("option", "text", "cost"),
    [
        ("--target-macs", "70%", "macs"),
        ("--target-params", "50%", "params"),
        ("--target-latency", "60%", "params"),
        ("--target-params", "100K", "params"),
        ("--target-macs", "100%", "macs"),
    ],
)
@pytest.mark.parametrize("file", ["gated.pt", "all.pt"])
def test_prune_removes_as_few_as_a_target_needs(
    run, folder, monkeypatch, every_block, option, text, cost, file
):
    """Against trying every number; `all.pt` has a path of all its blocks."""
    fake_latency(monkeypatch)
    whole = load(folder / "gated.pt") if file == "gated.pt" else every_block
    if file == "all.pt":
        save(whole, folder / file)
    before = files_in(folder)
    document = run("prune", folder / file, option, text, "--device", "cpu", "--json").document
    saved = savings(whole.network, cost)
    ranking = rank(whole, saved=None if file == "all.pt" else saved)
    full = getattr(count(whole.network), cost)
    limit = float(text[:-1]) / 100 * full if "%" in text else 1e5
    left = [getattr(count(whole.network.without(ranking.first(n))), cost) for n in range(7)]
    needed = next(number for number, it in enumerate(left) if it <= limit)
    assert document["removed"] == list(ranking.first(needed))
    name = f"{file[:-3]}-{Goal.parse(option[9:], text)}.pt"
    assert new_files(folder, before) == {name, f"{name}.yaml"}
    assert same(load(folder / name), fold_gates(follow(whole, ranking.first(needed))))
    assert (
        load(folder / name).notes["history"]
        == (fold_gates(follow(whole, ranking.first(needed))).notes["history"])
    )
    told = run("prune", folder / file, option, text, "--device", "cpu", "--force").out
    assert re.search(r"reachable: .* to .*\(100\.0%\)", told)


def test_prune_measures_real_latency(run, folder):
    command = ("prune", folder / "gated.pt", "--target-latency", "70%", "--device", "cpu", "--json")
    assert 1 <= len(run(*command).document["removed"]) <= 6


@pytest.mark.parametrize("loss", [0, 8, 100])
def test_prune_removes_as_many_as_a_loss_allows(run, folder, loss):
    path = folder / "gated.pt"
    command = with_data("prune", path, "--max-loss", loss, "--hold-out", 30, folder=folder)
    document = run(*command, "--recalibrate", 0, "--json").document
    whole = load(path)
    held_out = training_images(folder).held_out(30, 0)[1]
    points = list(sweep(whole, held_out, rank(whole), device="cpu"))
    within = [
        point.removed
        for point in points
        if point.accuracy.accuracy >= points[0].accuracy.accuracy - loss / 100 - 1e-9
    ]
    plan = rank(whole).first(max(within))
    assert document["removed"] == list(plan)
    assert document["output"] == str(folder / f"gated-loss{loss}.pt")
    small = follow(whole, plan)
    small = fold_gates(small) if small.network.edits.gated else small
    assert same(load(document["output"]), small)


@pytest.mark.parametrize("command", [("recalibrate",), ("prune", "--drop", 1, "--by", "depth")])
def test_it_is_said_how_many_images_had_memory_for_their_activations(
    run, folder, monkeypatch, command
):
    monkeypatch.setattr(recalibration, "peak", lambda module, shape: recalibration.MEMORY // 8)
    told = run(*with_data(command[0], folder / "whole.pt", *command[1:], folder=folder))
    expected = "recalibrated on 8 of [0-9]+ images: the activations of more exceed 2 GiB"
    assert re.search(expected, " ".join((told.out + told.err).split()))


def test_prune_with_data_recalibrates_what_has_changed(run, folder):
    path = folder / "gated.pt"
    command = with_data("prune", path, "--drop", 2, "--recalibrate", 40, "--json", folder=folder)
    document = run(*command).document
    whole = load(path)
    small = fold_gates(follow(whole, rank(whole).first(2)))
    expected = recalibrate(small, training_images(folder).spread(40), device="cpu")
    assert same(load(document["output"]), expected)
    test = load_images(data_in(folder), COLOUR)
    assert document["accuracy_after"] == accuracy(expected, test, device="cpu").accuracy
    kept = run(*command, "--recalibrate", 0, "--force").document
    assert same(load(kept["output"]), small)


# -------------------------------------------------------------------------------------- compress


def compress_command(folder: Path, *more: object) -> tuple:
    command = ("compress", folder / "whole.pt", "-o", folder / "small.pt")
    gates = ("--gate-warmup", 2, "--gate-steps", 2)
    rest = ("--batch-size", 16, "--hold-out", 12, "--recalibrate", 30)
    return with_data(*command, *gates, *rest, *more, folder=folder)


STEPS = ["whole", "gated", "removed", "folded", "chosen", "fine-tuned"]
REPORT = {"report.html", "report.json", "report.md", "steps.csv", "steps.json"}
REPORT |= {f"tradeoff.{kind}" for kind in ("png", "svg", "pdf")}


@pytest.fixture
def quick(monkeypatch) -> None:
    """Neither measured times nor drawn figures, where other things than these are looked at."""
    fake_latency(monkeypatch)
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **options: None)


@pytest.mark.usefixtures("quick")
def test_compress_exports_8_bits_calibrated_on_training_images(run, folder):
    pytest.importorskip("onnxruntime")
    export = folder / "small.onnx"
    command = compress_command(folder, "--drop", 1, "--epochs", 0, "--export", export)
    document = run(*command, "--int8", "--least-agreement", 0, "--json").document
    int8 = json.loads((folder / "small.onnx.config.json").read_text())["int8"]
    assert document["export"]["int8"] == int8
    assert int8["images"] == 48  # of 60, without those held out
    assert "train" in int8["source"]
    alone = run(*compress_command(folder, "--drop", 1, "--force"), "--int8")
    assert alone.code == 2
    assert "give --export, too" in alone.err


def test_compress_refuses_an_operation_that_the_format_lacks_before_the_work(
    run, folder, monkeypatch
):
    def lacking(checkpoint):
        raise EngineError(f"cannot export {checkpoint.network}: it does not have the operation x")

    monkeypatch.setitem(FORMATS, "torch", replace(FORMATS["torch"], rehearse=lacking))
    before = files_in(folder)
    told = run(*compress_command(folder, "--drop", 1, "--export", folder / "it.pt2"))
    assert told.code == 1
    assert "cannot export resnet14: it does not have the operation x" in told.err
    assert files_in(folder) == before


@pytest.mark.usefixtures("quick")
def test_compress_keeps_what_it_wrote_if_8_bits_are_refused(run, folder, monkeypatch):
    pytest.importorskip("onnxruntime")
    others = iter([torch.eye(4)[:1].repeat(48, 1), torch.eye(4)[1:2].repeat(48, 1)])
    monkeypatch.setattr(quantization, "_logits", lambda model, *rest: next(others))
    export = folder / "small.onnx"
    command = compress_command(folder, "--drop", 1, "--epochs", 0, "--export", export)
    told = run(*command, "--int8", "--least-agreement", 1)
    assert told.code == 1
    assert "of the 48 calibration images to another class" in told.err
    assert not export.exists()
    assert (folder / "small.pt").exists()
    assert (folder / "small-compress" / "report.html").exists()


@pytest.mark.parametrize("epochs", [0, 2])
def test_compress_does_what_the_verb_does(run, folder, epochs):
    before = files_in(folder)
    export = folder / "small.safetensors"
    command = compress_command(folder, "--drop", 2, "--epochs", epochs, "--export", export)
    told = run(*command, "--json")
    train, held_out = training_images(folder).held_out(12, 0)
    tuning = replace(FINE_TUNING, epochs=epochs, batch_size=16) if epochs else None
    expected = compress(
        load(folder / "whole.pt"),
        train,
        Goal("blocks", 2),
        CompressionRecipe(QUICK, tuning, recalibrate=30),
        test=load_images(data_in(folder), COLOUR),
        held_out=held_out,
        device="cpu",
    )
    names = STEPS[: 6 if epochs else 5]
    assert new_files(folder, before) == {
        *("small.pt", "small.pt.yaml", "small.safetensors", "small.safetensors.config.json"),
        *(f"small-compress/{name}" for name in {f"{name}.pt" for name in names} | REPORT),
    }
    assert same(load(folder / "small.pt"), expected.checkpoint)
    assert same(load(export), expected.checkpoint)
    document = told.document
    assert document["removed"] == list(expected.removed)
    for step, record in zip(document["steps"], expected.steps, strict=True):
        measured = {"seconds", *(key for key in step if key.startswith("latency"))}
        known = {key: value for key, value in asdict(record).items() if key not in measured}
        assert known.items() <= step.items()
    report = json.loads((folder / "small-compress" / "report.json").read_text())
    assert report["steps"] == document["steps"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_compression_that_a_signal_stopped_is_resumed(
    run, shallow, monkeypatch, quick, number, code
):
    command = compress_command(shallow, "--drop", 2, "--epochs", 0)
    with monkeypatch.context() as patch:
        signal_in_step(patch, torch.optim.Adam, 4, number)
        stopped = run(*command)
    assert stopped.code == code
    assert stopped.err.index("stopping after this step") < stopped.err.index("--resume")
    before = files_in(shallow)
    refused = run(*command)
    assert (refused.code, files_in(shallow)) == (1, before)
    assert "--resume or --force" in refused.err
    assert run(*command, "--resume").code == 0
    resumed = load(shallow / "small.pt")
    assert run(*command, "--force").code == 0
    assert same(load(shallow / "small.pt"), resumed)


def test_another_compression_is_not_resumed(run, shallow, quick):
    assert run(*compress_command(shallow, "--drop", 2, "--epochs", 0)).code == 0
    before = files_in(shallow)
    others = [
        (("--drop", 2, "--seed", 1), "seed was 0, is now 1"),
        (("--drop", 3), "goal was drop2, is now drop3"),
        (("--drop", 2, "--gate-steps", 3), "gates, steps was 2, is now 3"),
    ]
    for options, named in others:
        told = run(*compress_command(shallow, *options, "--epochs", 0, "--resume"))
        assert told.code == 1
        assert named in told.err
        assert files_in(shallow) == before


# ---------------------------------------------------------------------------- what is not allowed

WRITING = {
    "gate": lambda it: with_data("gate", it / "whole.pt", *FAST, "--blocks", 1, folder=it),
    "recalibrate": lambda it: with_data("recalibrate", it / "whole.pt", folder=it),
    "finetune": lambda it: with_data(
        *("finetune", it / "whole.pt", "--epochs", 1, "--batch-size", 16), folder=it
    ),
    "prune": lambda it: ("prune", it / "gated.pt", "--target-macs", "70%"),
    "compress": lambda it: compress_command(
        it, "--drop", 1, "--epochs", 0, "--export", it / "x.safetensors"
    ),
}


@pytest.mark.parametrize("case", WRITING)
def test_nothing_is_replaced_without_force(run, folder, case):
    command = WRITING[case](folder)
    before = files_in(folder)
    foretold = run(*command, "--dry-run", "--json").document["outputs"]
    assert files_in(folder) == before
    assert run(*command).code == 0
    written = new_files(folder, before)
    assert all(Path(name).exists() for name in foretold)
    for name in written:
        (folder / name).write_bytes(b"mine")
    changed = files_in(folder)
    refused = run(*command)
    assert refused.code == 1
    assert all("--force" in line for line in refused.err.splitlines())
    assert files_in(folder) == changed
    assert run(*command, "--force").code == 0
    assert files_in(folder).keys() == changed.keys()
    assert b"mine" not in files_in(folder).values()


def test_an_export_that_is_there_is_not_replaced(run, folder):
    (folder / "x.safetensors").write_bytes(b"mine")
    before = files_in(folder)
    told = run(*compress_command(folder, "--drop", 1, "--export", folder / "x.safetensors"))
    assert told.code == 1
    assert "x.safetensors already exists" in told.err
    assert files_in(folder) == before


@pytest.mark.parametrize(
    "arguments",
    [
        "prune gated.pt --target-macs 50% --target-params 50%",
        "prune gated.pt --target-latency 50% --max-loss 1 --data imagefolder:images",
        "prune gated.pt --drop 1 --target-macs 50%",
        "prune gated.pt --max-loss 1",
        "prune gated.pt --max-loss -1 --data imagefolder:images",
        "compress whole.pt --data imagefolder:images -o it.pt",
        "compress whole.pt --data imagefolder:images -o it.pt --drop 1 --max-loss 1",
        "compress whole.pt --data imagefolder:images -o it.pt --target-macs 5% --target-params 5%",
        "compress whole.pt --data imagefolder:images -o it.pt --max-loss 1 --hold-out 0",
        "compress whole.pt --data imagefolder:images --drop 1",
        "compress whole.pt -o it.pt --drop 1",
        "gate whole.pt",
        "recalibrate whole.pt --data imagefolder:images --images 1",
        "finetune whole.pt",
        "gate whole.pt --data imagefolder:images --cost energy",
    ],
)
def test_wrong_usage_ends_with_2_and_writes_nothing(run, folder, monkeypatch, arguments):
    monkeypatch.chdir(folder)
    before = files_in(folder)
    told = run(*arguments.split())
    assert (told.code, told.out) == (2, "")
    assert "Traceback" not in told.err
    assert files_in(folder) == before


def test_wrong_usage_names_what_to_give(run, folder, monkeypatch):
    monkeypatch.chdir(folder)

    def told(text: str) -> str:
        return " ".join(re.sub(r"[│╭╮╰╯─]", " ", run(*text.split()).err).split())

    assert "give one of --drop, --target-macs, --target-params, --target-latency and" in told(
        "prune gated.pt --target-macs 50% --target-params 50%"
    )
    assert "held-out training images: give --data" in told("prune gated.pt --max-loss 1")
    assert "give one of --drop, --target-macs" in told(
        "compress whole.pt --data imagefolder:images -o it.pt"
    )


@pytest.fixture(scope="module")
def bad(tmp_path_factory) -> dict[str, bytes]:
    """Data and networks that do not fit, each in its own way."""
    root = tmp_path_factory.mktemp("bad")
    for split in ("train", "test"):
        write_folder(root / "large", random_images(8, (3, 9, 9), 4), split)
        write_folder(root / "many", random_images(40, COLOUR, 5), split)
        write_folder(root / "few", random_images(20, COLOUR, 4), split)
    write_folder(root / "untaught", bright_images(24, COLOUR))
    save(plain("resnet8", classes=5), root / "five.pt")
    save(plain("resnet8", size=16), root / "sixteen.pt")
    return files_in(root)


GATE = "gate whole.pt --batch-size 16 --hold-out 0"
COMPRESS = "compress whole.pt -o it.pt --batch-size 16 --hold-out 12 --gate-steps 2"
BAD = {
    "gate, image size": (f"{GATE} --data imagefolder:large", "has 9x9 pixels.*--resize 8"),
    "gate, labels": (f"{GATE} --data imagefolder:many --labels", "has 5 classes: .* has 4"),
    "gate, no split": (f"{GATE} --data imagefolder:untaught", "no split 'train'"),
    "gate, few images": (
        "gate whole.pt --data imagefolder:images --hold-out 0",
        "has 60 images, fewer than one batch of 64; pass --batch-size 60",
    ),
    "finetune, hold out": (
        "finetune whole.pt --data imagefolder:images --hold-out 60 --batch-size 16",
        "cannot hold out 60 images",
    ),
    "gate, too many": (
        f"{GATE} --data imagefolder:images --blocks 7",
        "cannot remove 7 blocks: .* only 6",
    ),
    "gate, no blocks": (f"{GATE} --data imagefolder:images --blocks 0", "blocks is 0"),
    "gate, rate": (f"{GATE} --data imagefolder:images --learning-rate 0", "learning_rate is 0"),
    "gate, device": (f"{GATE} --data imagefolder:images --device gpu", "no device 'gpu' here"),
    "gate, suffix": (f"{GATE} --data imagefolder:images -o it.onnx", "it.onnx: expected a name"),
    "recalibrate, image size": (
        "recalibrate whole.pt --data imagefolder:large",
        "has 9x9 pixels.*--resize 8",
    ),
    "recalibrate, no split": (
        "recalibrate whole.pt --data imagefolder:untaught",
        "train",
    ),
    "recalibrate, suffix": (
        "recalibrate whole.pt --data imagefolder:images -o it.onnx",
        "it.onnx: expected a name",
    ),
    "finetune, teacher's classes": (
        "finetune whole.pt --data imagefolder:images --teacher five.pt --batch-size 16",
        "the teacher resnet8 has 5 classes, resnet14 has 4: choose a teacher",
    ),
    "finetune, teacher's images": (
        "finetune whole.pt --data imagefolder:images --teacher sixteen.pt --batch-size 16",
        r"takes images of \(3, 16, 16\).*choose a teacher",
    ),
    "finetune, no teacher": (
        "finetune whole.pt --data imagefolder:images --teacher whle.pt",
        "there is no file whle.pt.*whole.pt",
    ),
    "finetune, classes": (
        "finetune whole.pt --data imagefolder:many --batch-size 16",
        "has 5 classes: .* has 4",
    ),
    "finetune, no split": ("finetune whole.pt --data imagefolder:untaught", "no split 'train'"),
    "finetune, few images": (
        "finetune whole.pt --data imagefolder:images",
        "has 60 images, fewer than one batch of 64; pass --batch-size 60",
    ),
    "prune, target": ("prune gated.pt --target-macs half", "cannot read 'half' as MACs: .*60%"),
    "prune, out of reach": (
        "prune gated.pt --target-macs 1%",
        r"cannot reach .*: resnet14 can cost .* MACs .* to .*\(100\.0%\); choose a target",
    ),
    "prune, above reach": (
        "prune gated.pt --target-params 10G",
        "can cost .* parameters .* to ",
    ),
    "prune, no gates": (
        "prune whole.pt --target-macs 70%",
        "has no gate .*learn gates first, or rank by",
    ),
    "prune, no train split": (
        "prune gated.pt --max-loss 1 --data imagefolder:untaught",
        "--max-loss is measured on held-out training images: .*train split",
    ),
    "prune, nothing held out": (
        "prune gated.pt --max-loss 1 --data imagefolder:images --hold-out 0",
        "--hold-out to be above 0",
    ),
    "compress, classes": (
        f"{COMPRESS} --drop 1 --data imagefolder:many --batch-size 4 --hold-out 0",
        "has 5 classes: .* has 4",
    ),
    "compress, image size": (
        f"{COMPRESS} --drop 1 --data imagefolder:large",
        "has 9x9 pixels.*--resize 8",
    ),
    "compress, no train split": (
        f"{COMPRESS} --drop 1 --data imagefolder:untaught",
        "has no train split: compress learns from training images",
    ),
    "compress, out of reach": (
        f"{COMPRESS} --target-macs 1% --data imagefolder:images",
        "cannot reach .* can cost .* to .*choose a target within this range",
    ),
    "compress, too many": (f"{COMPRESS} --drop 7 --data imagefolder:images", "7 blocks"),
    "compress, few images": (
        f"{COMPRESS} --drop 1 --data imagefolder:few",
        "cannot compress with 20 images of .*: expected at least 32; add some, they need no labels",
    ),
    "compress, suffix": (
        "compress whole.pt -o it.onnx --drop 1 --data imagefolder:images",
        "it.onnx: expected a name",
    ),
    "compress, suffix of the export": (
        f"{COMPRESS} --drop 1 --data imagefolder:images --epochs 0 --export it.tflite",
        "it.tflite: expected a name",
    ),
    "compress, export": (
        f"{COMPRESS} --drop 1 --data imagefolder:images --epochs 0 --export it.pth",
        "cannot export .*ResNet family",
    ),
    "compress, 8 bits": (
        f"{COMPRESS} --drop 1 --data imagefolder:images --export it.pt2 --int8",
        "cannot quantise a torch export to 8 bits: expected onnx",
    ),
    "compress, rate": (
        f"{COMPRESS} --drop 1 --data imagefolder:images --learning-rate -1",
        "learning.rate is -1",
    ),
    "compress, device": (
        f"{COMPRESS} --drop 1 --data imagefolder:images --device gpu",
        "no device 'gpu' here",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_input_gives_one_line_and_nothing_else(run, folder, bad, monkeypatch, case):
    monkeypatch.chdir(put(bad, folder))
    before, folders = files_in(folder), sorted(it for it in folder.rglob("*") if it.is_dir())
    command, message = BAD[case]
    told = run(*command.split(), "--quiet")
    assert told.code == 1
    lines = told.err.splitlines()
    assert len(lines) == 1, told.err
    assert lines[0].startswith("error: ")
    assert re.search(message, lines[0]), lines[0]
    assert files_in(folder) == before
    assert sorted(it for it in folder.rglob("*") if it.is_dir()) == folders


def test_a_plan_that_names_no_gate_needs_none(run, folder):
    """A network without gates can be pruned for a target by depth, and at random."""
    whole = load(folder / "whole.pt")
    command = ("prune", folder / "whole.pt", "--by", "depth", "--target-macs", "70%", "--json")
    document = run(*command).document
    gone = rank(whole, "depth").first(len(document["removed"]))
    assert document["removed"] == list(gone)
    assert removable(load(document["output"]).network) == [
        name for name in removable(whole.network) if name not in gone
    ]
