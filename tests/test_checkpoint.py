"""Checkpoints: what is written comes back, what others wrote is read, the rest is refused."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path as FilePath

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import gatepruner
from gatepruner.errors import ArchitectureError, CheckpointError, GatePrunerError
from gatepruner.files.checkpoints import load, save
from gatepruner.files.storage import write_tensors
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.networks.path import NO_PATH, Path, Removal
from gatepruner.pruning.surgery import fold_gates, follow, remove, remove_shortcuts

GOLDEN = FilePath(__file__).parent / "golden"
OWN_SUFFIXES = [".pt", ".safetensors"]
NOTES = {
    "normalize": {"mean": [0.1307], "std": [0.3081]},
    "classes": ["null", "größer", "三"],
    "history": [{"trained": 3, "loss": 0.1 + 0.2}],
}
TINY = "gated-residual-fc6,width=4"
MOBILE = "torchvision:mobilenet_v2,width_mult=0.25"


def checkpoint_of(name, seed=0, **arguments):
    """Random weights in which no gate, scale or statistic has the value it starts with."""
    network = Network.named(name, **arguments)
    draw = torch.Generator().manual_seed(seed)
    weights = {}
    for key, tensor in sorted(network.state().items()):
        if tensor.is_floating_point():
            weights[key] = torch.rand(tensor.shape, generator=draw) * 0.2 + 0.1
        else:
            weights[key] = torch.randint(1, 99, tensor.shape, generator=draw)
    return Checkpoint(network, weights, NOTES)


def assert_same_weights(found, expected):
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype, key
        assert torch.equal(found[key], tensor), key


def copied(weights):
    return {key: tensor.clone() for key, tensor in weights.items()}


def as_json(network):
    return json.loads(json.dumps(network.to_json()))


def in_folder(folder):
    return sorted(path.name for path in folder.iterdir())


class Caller(nn.Module):
    """A module that nobody else can construct, with a layer that it does not use."""

    def __init__(self, width=4):
        super().__init__()
        self.first = nn.Linear(3, width)
        self.second = nn.Linear(width, width)
        self.head = nn.Linear(width, 2)
        self.unused = nn.Linear(5, 5)

    def forward(self, x):
        x = self.first(x.mean((2, 3)))
        return self.head(x + torch.relu(self.second(x)))


class Wrapped(nn.Module):
    """A module all of whose names begin as the names of a wrapper's do."""

    def __init__(self):
        super().__init__()
        self.net = Caller()

    def forward(self, x):
        return self.net(x)


# ------------------------------------------------------------------- save, then load = identity


def pruned():
    return remove(checkpoint_of("gated-resnet20"), ["layer1.1", "layer2.0", "layer3.2"])


KINDS = {
    "plain": lambda: checkpoint_of("resnet8"),
    "residual gates": lambda: checkpoint_of(TINY),
    "plain gates": lambda: checkpoint_of("gated-plain-fc6,width=4"),
    "other classes and images": lambda: checkpoint_of(TINY, num_classes=3, input_shape=(1, 5, 7)),
    "pruned": pruned,
    "folded": lambda: fold_gates(pruned()),
    "folded to constants": lambda: fold_gates(checkpoint_of("gated-plain-fc6,width=4")),
    "without shortcuts": lambda: remove_shortcuts(checkpoint_of(TINY), ["blocks.1"]),
    "nothing left": lambda: remove(checkpoint_of(TINY), ["blocks.0", "blocks.1", "blocks.2"]),
    "truth value as argument": lambda: checkpoint_of("wrn-10-2,dropout=0.5"),
    "torchvision": lambda: checkpoint_of(MOBILE, num_classes=3),
    "torchvision, pruned": lambda: remove(checkpoint_of(f"gated-{MOBILE}"), ["features.3"]),
    "torchvision, folded": lambda: fold_gates(checkpoint_of(f"gated-{MOBILE}")),
}


@pytest.mark.parametrize("suffix", OWN_SUFFIXES)
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())
def test_what_is_saved_is_what_is_loaded(make, suffix, tmp_path):
    before = make()
    path = save(before, tmp_path / f"net{suffix}")
    after = load(path)
    assert after.network == before.network
    assert after.notes == before.notes
    assert after.gates == before.gates
    assert_same_weights(after.weights, before.weights)
    assert in_folder(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", OWN_SUFFIXES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_keep_their_precision(dtype, suffix, tmp_path):
    before = checkpoint_of(TINY)
    weights = {
        key: it.to(dtype) if it.is_floating_point() else it for key, it in before.weights.items()
    }
    path = save(Checkpoint(before.network, weights), tmp_path / f"net{suffix}")
    assert_same_weights(load(path).weights, weights)


@pytest.mark.parametrize("suffix", OWN_SUFFIXES)
@pytest.mark.parametrize("module", [Caller, Wrapped])
def test_callers_module_comes_back_when_it_is_given_again(module, suffix, tmp_path):
    original = module().eval()
    before = remove_shortcuts(
        Checkpoint.of(original, (3, 8, 8), NOTES), [Network.of(original, (3, 8, 8)).blocks[0].name]
    )
    path = save(before, tmp_path / f"net{suffix}")
    after = load(path, module=module())
    assert after.network.to_json() == before.network.to_json()
    assert after.notes == before.notes
    assert_same_weights(after.weights, before.weights)
    assert not [key for key in after.weights if "unused" in key]
    image = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(after.build()(image), before.build()(image))
        assert not torch.equal(after.build()(image), original(image))


@pytest.mark.parametrize("suffix", OWN_SUFFIXES)
def test_saved_file_may_take_the_place_of_the_one_it_was_read_from(suffix, tmp_path):
    path = save(checkpoint_of(TINY, seed=1), tmp_path / f"net{suffix}")
    first = load(path)
    kept = copied(first.weights)
    second = checkpoint_of(TINY, seed=2)
    save(second, path, force=True)
    assert_same_weights(first.weights, kept)  # whatever became of the file
    assert_same_weights(load(path).weights, second.weights)
    save(load(path), path, force=True)
    assert_same_weights(load(path).weights, second.weights)


@pytest.mark.parametrize("suffix", OWN_SUFFIXES)
def test_view_is_saved_without_the_storage_it_is_a_view_of(suffix, tmp_path):
    before = checkpoint_of(TINY)
    size = save(before, tmp_path / f"alone{suffix}").stat().st_size
    views = {}
    for key, tensor in before.weights.items():
        storage = torch.zeros(100_000, dtype=tensor.dtype)
        views[key] = storage[7 : 7 + tensor.numel()].view(tensor.shape)
        views[key].copy_(tensor)
    key = "blocks.0.branch.linear1.weight"
    views[key] = before.weights[key].T.contiguous().T
    path = save(Checkpoint(before.network, views, NOTES), tmp_path / f"views{suffix}")
    assert path.stat().st_size == size
    assert_same_weights(load(path).weights, before.weights)


@pytest.mark.parametrize("suffix", OWN_SUFFIXES)
def test_tensor_under_two_names_is_saved_under_both(suffix, tmp_path):
    before = checkpoint_of(TINY)
    tied = dict(before.weights)
    tied["blocks.1.branch.linear1.weight"] = tied["blocks.0.branch.linear1.weight"]
    tied["bn.bias"] = tied["bn.weight"].view(-1)
    path = save(Checkpoint(before.network, tied), tmp_path / f"net{suffix}")
    assert_same_weights(load(path).weights, tied)


def test_parameters_that_want_gradients_are_saved_without_them(tmp_path):
    before = checkpoint_of(TINY)
    learned = {
        key: nn.Parameter(it) if it.is_floating_point() else it
        for key, it in before.weights.items()
    }
    after = load(save(Checkpoint(before.network, learned), tmp_path / "net.pt"))
    assert_same_weights(after.weights, before.weights)
    assert not any(tensor.requires_grad for tensor in after.weights.values())


def test_weights_come_in_the_order_of_depth():
    for name in ("gated-residual-fc20", "resnet20"):
        network = Network.named(name)
        where = [
            next(i for i, key in enumerate(network.state()) if key.startswith(block.name + "."))
            for block in network.blocks
        ]
        assert where == sorted(where)


def test_file_can_be_read_by_those_who_may_read_new_files(tmp_path):
    before = os.umask(0o027)
    try:
        path = save(checkpoint_of(TINY), tmp_path / "net.pt")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_own_file_is_plain_to_everyone(tmp_path):
    before = checkpoint_of(TINY)
    content = torch.load(save(before, tmp_path / "net.pt"), weights_only=True)
    header = json.loads(content["gatepruner"])
    network = as_json(before.network)
    assert header == {
        "format": 4,
        "network": network,
        "notes": NOTES,
        "path": [],
        "states": [],
    }
    assert_same_weights(content["weights"], before.weights)


@pytest.mark.parametrize("suffix", OWN_SUFFIXES)
def test_bare_weights_are_written_for_everyone(suffix, tmp_path):
    before = checkpoint_of("resnet8")
    path = write_tensors(before.weights, tmp_path / f"bare{suffix}")
    after = load(path)
    assert after.network == replace(before.network, base=after.network.base)
    assert str(after.network) == "resnet8"
    assert after.notes["source"] == path.name
    assert_same_weights(after.weights, before.weights)


# ------------------------------------------------------------------------------- golden files


@pytest.mark.parametrize("suffix", OWN_SUFFIXES)
@pytest.mark.parametrize("name", ["format1-gated", "format1-folded"])
def test_file_of_format_1_loads_for_ever(name, suffix):
    expected = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    checkpoint = load(GOLDEN / f"{name}{suffix}")
    network = checkpoint.network
    assert as_json(network) == expected["network"]
    assert [block.name for block in network.blocks] == expected["blocks"]
    assert {key: list(it.shape) for key, it in checkpoint.weights.items()} == expected["names"]
    assert checkpoint.gates == pytest.approx(expected["gates"])
    assert checkpoint.notes == expected["notes"]
    shape = network.base.input_shape
    images = torch.linspace(-1, 1, 3 * torch.Size(shape).numel()).reshape(3, *shape)
    with torch.no_grad():
        logits = checkpoint.build()(images)
    torch.testing.assert_close(logits, torch.tensor(expected["logits"]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", OWN_SUFFIXES)
@pytest.mark.parametrize(
    "name", ["format2-path", "format3-path", "format4-path", "format4-narrowed"]
)
def test_file_with_a_path_loads_for_ever(name, suffix):
    expected = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    checkpoint = load(GOLDEN / f"{name}{suffix}")
    network = checkpoint.network
    assert as_json(network) == expected["network"]
    assert {key: list(it.shape) for key, it in checkpoint.weights.items()} == expected["names"]
    assert checkpoint.gates == pytest.approx(expected["gates"])
    expected["notes"].pop("path", None)  # where format 2 had the records
    assert checkpoint.notes == expected["notes"]
    shape = network.base.input_shape
    images = torch.linspace(-1, 1, 3 * torch.Size(shape).numel()).reshape(3, *shape)
    blocks = checkpoint.path.blocks
    assert list(blocks) == [state.get("block", state.get("gone")) for state in expected["path"]]
    for number, state in enumerate(expected["path"], start=1):
        removal = checkpoint.path.removals[number - 1]
        assert {key: list(it.shape) for key, it in removal.weights.items()} == state["names"]
        assert (removal.gate, removal.score, removal.loss, removal.step) == (0.25, 0.5, 1.5, 3)
        small = follow(checkpoint, blocks[:number])
        with torch.no_grad():
            logits = small.build()(images)
        torch.testing.assert_close(logits, torch.tensor(state["logits"]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["format1-gated", "format1-folded"])
def test_file_of_format_1_has_no_path(name):
    assert load(GOLDEN / f"{name}.pt").path == NO_PATH


# ------------------------------------------------------------------------------------- the path


def with_path(seed=0):
    """A network with a path of two blocks, of which every tensor is another one."""
    before = checkpoint_of("gated-resnet14", num_classes=3, input_shape=(3, 8, 8))
    gone, removals = ["layer2.1", "layer1.0"], []
    for index, name in enumerate(gone):
        left = before.network.without(gone[: index + 1]).state()
        learned = checkpoint_of(
            "gated-resnet14", seed=seed + index + 1, num_classes=3, input_shape=(3, 8, 8)
        ).weights
        small = {key: it for key, it in learned.items() if "bn" in key or key.endswith(".k")}
        small = {key: small[key] for key in left if key in small}
        removals.append(Removal(name, 0.5 + index, 0.1, 1.25, 3 * index, small))
    return replace(before, path=Path(tuple(removals)))


@pytest.mark.parametrize("suffix", OWN_SUFFIXES)
def test_path_that_is_saved_is_the_path_that_is_loaded(suffix, tmp_path):
    before = with_path()
    after = load(save(before, tmp_path / f"net{suffix}"))
    assert after.network == before.network
    assert after.notes == before.notes
    assert_same_weights(after.weights, before.weights)
    assert after.path.records == before.path.records
    for mine, theirs in zip(after.path.removals, before.path.removals, strict=True):
        assert_same_weights(mine.weights, theirs.weights)
    assert after.fingerprint == before.fingerprint
    again = load(save(after, tmp_path / f"again{suffix}"))
    assert again.fingerprint == before.fingerprint


def test_fingerprint_tells_checkpoints_apart():
    whole = with_path()
    key = whole.network.gate_key("layer3.0")
    nearly = torch.nextafter(whole.weights[key], torch.tensor(9.0))
    others = [
        replace(whole, path=NO_PATH),
        replace(whole, path=Path(whole.path.removals[:1])),
        replace(whole, weights={**whole.weights, key: nearly}),
        with_path(seed=5),
        checkpoint_of("gated-resnet14", num_classes=3, input_shape=(3, 8, 9)),
    ]
    prints = {whole.fingerprint, *(it.fingerprint for it in others)}
    assert len(prints) == len(others) + 1
    assert with_path().fingerprint == whole.fingerprint
    assert replace(whole, notes={}).fingerprint == whole.fingerprint


def record(name):
    """The record of a removal; what is no name is taken as it is."""
    values = {"gate": 0.5, "score": 0.1, "loss": 1.25, "step": 3}
    return {"block": name, **values} if isinstance(name, str) else name


def bent(path, names=None, **tensors):
    """A file of format 3 with a path whose header names these blocks, and with these tensors."""
    checkpoint = with_path()
    path = save(replace(checkpoint, path=NO_PATH), path)
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["gatepruner"])
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    else:
        content = torch.load(path, weights_only=True)
        header, weights = json.loads(content["gatepruner"]), content["weights"]
    assert header.pop("states") == []
    header["format"] = 3
    weights |= {f"path/{key}": it for key, it in checkpoint.path.tensors.items()}
    if names is None:
        header.pop("path")
    else:
        header["path"] = [record(name) for name in names] if isinstance(names, list) else names
    weights |= {f"path/{key.replace('|', '.')}": it for key, it in tensors.items()}
    if path.suffix == ".safetensors":
        save_file(weights, path, {"gatepruner": json.dumps(header)})
    else:
        torch.save({"gatepruner": json.dumps(header), "weights": weights}, path)
    return path


GONE = ["layer2.1", "layer1.0"]
BENT = {
    "an unknown block": ((["layer2.1", "layer9.0"], {}), "layer9.0"),
    "a block twice": ((["layer2.1", "layer2.1"], {}), "layer2.1"),
    "no names": ((None, {}), "'path'"),
    "fewer names than states": ((["layer2.1"], {}), "path/1/"),
    "a number for records": ((3, {}), "int"),
    "a record that is a word": (([3, 4], {}), "path[0]"),
    "an index out of range": (
        (GONE, {"2/bn1|weight": torch.ones(16)}),
        "path/2/bn1.weight",
    ),
    "an index below 0": ((GONE, {"-1/bn1|weight": torch.ones(16)}), "path/-1/bn1.weight"),
    "no index": ((GONE, {"bn1|weight": torch.ones(16)}), "path/bn1.weight"),
    "an unknown key": ((GONE, {"0/bn7|weight": torch.ones(16)}), "path/0/bn7.weight"),
    "another shape": (
        (GONE, {"1/bn1|weight": torch.ones(15)}),
        "path/1/bn1.weight is (15,), not (16,)",
    ),
    "a gate that is no number": (
        (GONE, {"0/layer3|0|gate|k": torch.tensor(float("nan"))}),
        "layer3.0",
    ),
}


@pytest.mark.parametrize("suffix", OWN_SUFFIXES)
@pytest.mark.parametrize(("how", "said"), BENT.values(), ids=BENT.keys())
def test_path_that_does_not_fit_is_refused(how, said, suffix, tmp_path):
    names, tensors = how
    path = bent(tmp_path / f"net{suffix}", names, **tensors)
    with pytest.raises(CheckpointError) as caught:
        load(path)
    message = str(caught.value)
    assert str(path) in message
    assert said in message
    assert "\n" not in message


def test_a_path_of_format_3_is_the_same(tmp_path):
    found = load(bent(tmp_path / "net.pt", GONE)).path
    assert found.blocks == with_path().path.blocks
    assert found.tensors.keys() == with_path().path.tensors.keys()
    for key, tensor in with_path().path.tensors.items():
        assert torch.equal(found.tensors[key], tensor)


# ------------------------------------------------------------------------------ files of others


@pytest.fixture(scope="module")
def foreign():
    return checkpoint_of("resnet8")


NESTS = ["", "state_dict_ema", "model_ema", "state_dict", "model"]
PREFIXES = [
    *("", "module.", "_orig_mod.", "model.", "net."),
    *("module._orig_mod.", "_orig_mod.module.", "model._orig_mod.", "net.module."),
    *("model.net.", "net.model.", "_orig_mod.model.module."),
]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("nest", NESTS)
def test_state_dict_is_found_under_any_key_and_prefix(nest, prefix, foreign, tmp_path):
    state = {prefix + key: tensor for key, tensor in foreign.weights.items()}
    content = {"epoch": 3, "best": 0.9, "optimizer": {"state": {}}, nest: state} if nest else state
    torch.save(content, tmp_path / "theirs.pt")
    found = load(tmp_path / "theirs.pt")
    assert str(found.network) == "resnet8"
    assert found.notes["source"] == "theirs.pt"
    assert len(found.notes["remarks"]) == 1
    assert_same_weights(found.weights, foreign.weights)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".ckpt", ".safetensors"])
def test_state_dict_is_read_whatever_its_suffix(suffix, foreign, tmp_path):
    path = tmp_path / f"theirs{suffix}"
    if suffix == ".safetensors":
        save_file(foreign.weights, path, {"format": "pt"})
    else:
        torch.save(foreign.weights, path)
    assert_same_weights(load(path).weights, foreign.weights)
    assert_same_weights(load(str(path), arch="resnet8").weights, foreign.weights)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_read_in_single(kind, foreign, tmp_path):
    state = {k: v.to(kind) if v.is_floating_point() else v for k, v in foreign.weights.items()}
    torch.save(state, tmp_path / "file.pt")
    found = load(tmp_path / "file.pt")
    assert found.weights.keys() == foreign.weights.keys()
    for key, tensor in found.weights.items():
        assert tensor.dtype == foreign.weights[key].dtype
        assert torch.equal(tensor, state[key].to(tensor.dtype))
    assert found.build()(torch.rand(2, *found.network.base.input_shape)).isfinite().all()


def test_file_of_pytorch_before_its_zip_format_is_read(foreign, tmp_path):
    path = tmp_path / "old.th"
    torch.save({"state_dict": foreign.weights}, path, _use_new_zipfile_serialization=False)
    assert_same_weights(load(path).weights, foreign.weights)


@pytest.mark.parametrize("arch", [None, "resnet8"])
def test_file_without_batch_counters_is_read_with_counters_of_zero(arch, foreign, tmp_path):
    counters = {key for key in foreign.weights if key.endswith("num_batches_tracked")}
    assert counters
    torch.save({k: v for k, v in foreign.weights.items() if k not in counters}, tmp_path / "old.pt")
    found = load(tmp_path / "old.pt", arch=arch)
    zero = {key: torch.tensor(0) for key in counters}
    assert_same_weights(found.weights, {**foreign.weights, **zero})


@pytest.mark.parametrize(
    ("first", "second"), [("state_dict_ema", "state_dict"), ("model_ema", "model")]
)
def test_averaged_weights_are_preferred(first, second, foreign, tmp_path):
    other = checkpoint_of("resnet8", seed=5).weights
    torch.save({second: other, first: foreign.weights}, tmp_path / "both.pt")
    assert_same_weights(load(tmp_path / "both.pt").weights, foreign.weights)


def test_pytorchs_averaged_model_is_read_without_its_own_counter(foreign, tmp_path):
    averaged = torch.optim.swa_utils.AveragedModel(foreign.build()).state_dict()
    assert "n_averaged" in averaged
    torch.save({"model_ema": averaged}, tmp_path / "ema.pt")
    assert_same_weights(load(tmp_path / "ema.pt").weights, foreign.weights)


def test_lightnings_file_is_read_without_what_its_module_holds_besides(foreign, tmp_path):
    state = {f"net.{key}": tensor for key, tensor in foreign.weights.items()}
    content = {"epoch": 1, "hyper_parameters": {"lr": 0.1}, "state_dict": state}
    torch.save({**content, "loops": {}, "callbacks": {}}, tmp_path / "last.ckpt")
    assert_same_weights(load(tmp_path / "last.ckpt").weights, foreign.weights)


@pytest.mark.parametrize("module", [Caller, Wrapped])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_for_a_callers_module_are_read_less_the_unused(module, prefix, tmp_path):
    original = module().eval()
    state = {prefix + key: tensor for key, tensor in original.state_dict().items()}
    torch.save(state, tmp_path / "theirs.pt")
    found = load(tmp_path / "theirs.pt", module=module(), input_shape=(3, 8, 8))
    unused = {key for key in original.state_dict() if "unused" in key}
    assert len(unused) == 2
    assert_same_weights(
        found.weights, {k: v for k, v in original.state_dict().items() if k not in unused}
    )
    image = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(found.build()(image), original(image))


# -------------------------------------------------------------------------------- what is refused


class Command:
    """Unpickled, it runs a command of the shell."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def cut(path, share=0.5):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    return path


def with_text(path, text="epoch 1: loss 0.3, accuracy 0.9\n"):
    path.write_text(text)
    return path


def with_header(path, change):
    """An own file whose header, as JSON or else as text, went through `change`."""
    before = checkpoint_of(TINY)
    header = {"format": 1, "network": before.network.to_json(), "notes": {}}
    header = change(json.loads(json.dumps(header)))
    text = header if isinstance(header, str) else json.dumps(header)
    if path.suffix == ".safetensors":
        save_file(dict(before.weights), path, {"gatepruner": text})
    else:
        torch.save({"gatepruner": text, "weights": before.weights}, path)
    return path


def changed(*keys, to):
    """A change of one entry of a header; to None, the entry goes."""

    def change(header):
        entry = header
        for key in keys[:-1]:
            entry = entry[key]
        if to is None:
            del entry[keys[-1]]
        else:
            entry[keys[-1]] = to
        return header

    return change


def with_gate(path, value):
    before = checkpoint_of(TINY)
    weights = {**before.weights, "blocks.1.gate.k": torch.tensor(value)}
    return save(Checkpoint(before.network, weights), path)


def foreign_gate(path, value):
    before = checkpoint_of("gated-resnet8")
    torch.save({**before.weights, "layer2.0.gate.k": torch.tensor(value)}, path)
    return path


def misfitting(path, own):
    before = checkpoint_of("resnet8")
    weights = dict(before.weights)
    del weights["conv1.weight"], weights["bn1.bias"]
    weights["spare.weight"], weights["other.bias"] = torch.zeros(1), torch.zeros(1)
    weights["linear.weight"] = torch.zeros(10, 63)
    weights["linear.bias"] = torch.zeros(11)
    return save(Checkpoint(before.network, weights), path) if own else write_tensors(weights, path)


def saved(path, content, **how):
    torch.save(content, path, **how)
    return path


def own(path):
    return save(checkpoint_of(TINY), path)


def callers(path):
    return save(Checkpoint.of(Caller(), (3, 8, 8)), path)


def near(path):
    for name in ("alpha.pt", "beta.pt", "gamma.pt", "delta.pt", "epsilon.pt", "zeta.pt", path.name):
        own(path.with_name(name))
    return path.with_stem("bset")


MISFITS = (
    *("missing", "conv1.weight", "bn1.bias", "extra", "spare.weight", "other.bias"),
    *("linear.weight is (10, 63), not (10, 64)", "linear.bias is (11,), not (10,)"),
)
# What it is: how the file at a path comes to be, how it is loaded, what the message says.
REFUSED = {
    "no file": (near, "best.pt", {}, ("there is no file", "bset.pt", "best.pt")),
    "no folder": (lambda p: p.parent / "no" / "x.pt", "x.pt", {}, ("there is no file",)),
    "a folder": (lambda p: p.mkdir() or p, "net.pt", {}, ("net.pt", "folder")),
    "empty .pt": (lambda p: p.touch() or p, "net.pt", {}, ("empty",)),
    "empty .safetensors": (lambda p: p.touch() or p, "net.safetensors", {}, ("empty",)),
    "text as .pt": (with_text, "net.pt", {}, ("not a checkpoint",)),
    "text as .safetensors": (with_text, "net.safetensors", {}, ("not a safetensors file",)),
    "web page as .pt": (lambda p: with_text(p, "<html>404"), "net.pt", {}, ("not a checkpoint",)),
    "one byte": (lambda p: with_text(p, "x"), "net.pt", {}, ("not a checkpoint",)),
    ".pt cut in half": (lambda p: cut(own(p)), "net.pt", {}, ("truncated",)),
    ".pt less its end": (lambda p: cut(own(p), 0.99), "net.pt", {}, ("truncated",)),
    ".pt of old cut in half": (
        lambda p: cut(saved(p, {"w": torch.ones(99)}, _use_new_zipfile_serialization=False)),
        *("net.th", {}, ("truncated",)),
    ),
    ".safetensors cut in half": (lambda p: cut(own(p)), "net.safetensors", {}, ("truncated",)),
    ".safetensors less its end": (
        lambda p: cut(own(p), 0.99),
        *("net.safetensors", {}, ("truncated",)),
    ),
    "pickled module of another kind": (
        lambda p: saved(p, nn.Sequential(nn.Linear(2, 2))),
        *("net.pt", {"arch": "resnet8"}, ("does not fit resnet8", "conv1.weight")),
    ),
    "a list": (lambda p: saved(p, [1, 2]), "net.pt", {}, ("contains a list", "state dict")),
    "a tensor": (lambda p: saved(p, torch.ones(2)), "net.pt", {}, ("Tensor", "state dict")),
    "no tensors": (
        lambda p: saved(p, {"epoch": 3, "loss": 0.1}),
        *("net.pt", {}, ("epoch, loss", "state dict")),
    ),
    "nested in vain": (
        lambda p: saved(p, {"state_dict": {"epoch": 3}}),
        *("net.pt", {}, ("without tensors (state_dict)", "state dict")),
    ),
    "gate nan": (lambda p: with_gate(p, float("nan")), "net.pt", {}, ("blocks.1", "nan")),
    "gate inf": (lambda p: with_gate(p, float("inf")), "net.safetensors", {}, ("blocks.1", "inf")),
    "gate -inf": (lambda p: with_gate(p, -float("inf")), "net.pt", {}, ("blocks.1", "-inf")),
    "gate of others nan": (
        lambda p: foreign_gate(p, float("nan")),
        *("net.pt", {}, ("layer2.0", "nan")),
    ),
    "gate of others inf": (
        lambda p: foreign_gate(p, float("inf")),
        *("net.pt", {"arch": "gated-resnet8"}, ("layer2.0", "inf")),
    ),
    "own weights do not fit": (lambda p: misfitting(p, True), "net.pt", {}, MISFITS),
    "own weights do not fit, .safetensors": (
        lambda p: misfitting(p, True),
        *("net.safetensors", {}, MISFITS),
    ),
    "weights of others do not fit": (
        lambda p: misfitting(p, False),
        *("net.pt", {"arch": "resnet8", "num_classes": 10}, (*MISFITS, "arch=")),
    ),
    "wrong architecture said": (
        lambda p: saved(p, checkpoint_of("resnet8").weights),
        *("net.pt", {"arch": "preresnet8"}, ("does not fit preresnet8", "bn.weight", "arch=")),
    ),
    "newer format": (
        lambda p: with_header(p, changed("format", to=5)),
        *("net.pt", {}, ("format 5", "formats 1 to 4")),
    ),
    "newer format, .safetensors": (
        lambda p: with_header(p, changed("format", to=5)),
        *("net.safetensors", {}, ("format 5", "formats 1 to 4")),
    ),
    "no format": (lambda p: with_header(p, changed("format", to=None)), "net.pt", {}, ("format",)),
    "own file, arch said": (
        own,
        "net.pt",
        {"arch": "resnet20"},
        ("leave out the architecture resnet20",),
    ),
    "header is no JSON": (lambda p: with_header(p, lambda _: "{"), "net.pt", {}, ("damaged",)),
    "header is no JSON, .safetensors": (
        lambda p: with_header(p, lambda _: "{"),
        *("net.safetensors", {}, ("damaged",)),
    ),
    "header is a list": (lambda p: with_header(p, lambda h: [h]), "net.pt", {}, ("damaged",)),
    **{
        f"header without {'.'.join(keys)}": (
            lambda p, keys=keys: with_header(p, changed(*keys, to=None)),
            *("net.pt", {}, ("damaged", keys[-1])),
        )
        for keys in (
            *(("network",), ("notes",), ("network", "base"), ("network", "edits")),
            *(("network", "base", "name"), ("network", "base", "input_shape")),
            *(("network", "base", "arguments"), ("network", "edits", "gate")),
        )
    },
    **{
        f"header with {'.'.join(keys)} = {value}": (
            lambda p, keys=keys, value=value: with_header(p, changed(*keys, to=value)),
            *("net.pt", {}, ("damaged", said)),
        )
        for keys, value, said in (
            (("network",), "resnet", "network"),
            (("notes",), [1], "notes"),
            (("network", "base", "source"), "nowhere", "nowhere"),
            (("network", "base", "colour"), "red", "colour"),
            (("network", "base", "input_shape"), 3, "int"),
            (("network", "edits", "painted"), ["blocks.0"], "painted"),
            (("network", "edits", "gate"), "golden", "golden"),
            (("network", "edits", "gated"), ["blocks.0", "blocks.9"], "blocks.9"),
            (("network", "edits", "removed"), ["blocks.77"], "blocks.77"),
        )
    },
    "own file without weights": (
        lambda p: saved(p, {"gatepruner": '{"format": 1}', "weights": 3}),
        *("net.pt", {}, ("damaged", "weights")),
    ),
    "own file, a weight is a number": (
        lambda p: saved(
            p,
            {
                "gatepruner": torch.load(own(p), weights_only=True)["gatepruner"],
                "weights": {**checkpoint_of(TINY).weights, "bn.weight": 3.0},
            },
        ),
        *("net.pt", {}, ("bn.weight",)),
    ),
    "another module of the caller's": (
        callers,
        *("net.pt", {"module": Caller(width=5)}, ("first.weight is (4, 3), not (5, 3)",)),
    ),
}


@pytest.mark.parametrize(("make", "name", "how", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_file_is_refused_in_one_line_that_names_it(make, name, how, said, tmp_path):
    path = make(tmp_path / name)
    with pytest.raises(CheckpointError) as caught:
        load(path, **how)
    message = str(caught.value)
    assert [part for part in (str(path), *said) if part not in message] == []
    assert "\n" not in message
    assert len(message) < 1500


def test_callers_module_has_to_be_given_again(tmp_path):
    path = callers(tmp_path / "net.pt")
    with pytest.raises(
        ArchitectureError, match=r"weights of the module Caller, .* module="
    ) as caught:
        load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arch", ["resnet21", "torchvision:nonet", "nowhere:resnet20", "?"])
def test_architecture_that_does_not_exist_is_refused(arch, tmp_path):
    path = saved(tmp_path / "net.pt", checkpoint_of("resnet8").weights)
    with pytest.raises(ArchitectureError, match=r"expected|no classification model") as caught:
        load(path, arch=arch)
    assert arch.rpartition(":")[2] in str(caught.value)
    assert "\n" not in str(caught.value)


def pickled(path, content, protocol):
    path.write_bytes(pickle.dumps(content, protocol))


WRITERS = {
    "zip": torch.save,
    "legacy": lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    "pickle protocol 2": lambda content, path: pickled(path, content, 2),
    "pickle protocol 4": lambda content, path: pickled(path, content, 4),
    "pickle protocol 5": lambda content, path: pickled(path, content, 5),
}


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS.keys())
def test_code_in_a_file_is_named_and_never_runs(writer, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "net.pt"
    writer({"state_dict": Command(f"touch {marker}"), "weight": torch.ones(1)}, path)
    if path.read_bytes()[:2] == b"PK":
        torch.load(path, weights_only=False)
    else:
        with path.open("rb") as file, contextlib.suppress(Exception):
            for _ in range(5):
                pickle.load(file)
    assert marker.exists(), "the file is harmless, so it shows nothing"
    marker.unlink()
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert not marker.exists()
    assert f"{os.system.__module__}.system" in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------- refusals of writing


def test_existing_file_is_left_alone_without_force(tmp_path):
    path = own(tmp_path / "net.pt")
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"net\.pt already exists: .*force=True"):
        save(checkpoint_of(TINY, seed=9), path)
    assert path.read_bytes() == before
    assert in_folder(tmp_path) == ["net.pt"]
    save(checkpoint_of(TINY, seed=9), path, force=True)
    assert path.read_bytes() != before


UNWRITABLE = {
    "no suffix": ("net", r"expected a name ending in \.pt or \.safetensors"),
    "unknown suffix": ("net.onnx", r"expected a name ending in \.pt or \.safetensors"),
    "no folder": ("no/net.pt", "there is no folder"),
    "a folder": ("folder.pt", "folder"),
    "in a file": ("file/net.pt", "there is no folder"),
}


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(("name", "said"), UNWRITABLE.values(), ids=UNWRITABLE.keys())
def test_place_that_cannot_be_written_is_refused(name, said, force, tmp_path):
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=said) as caught:
        save(checkpoint_of(TINY), tmp_path / name, force=force)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert in_folder(tmp_path) == ["file", "folder.pt"]
    assert in_folder(tmp_path / "folder.pt") == []


@pytest.mark.parametrize("notes", [{"model": torch.ones(1)}, {"at": FilePath("x")}, {"s": {1}}])
def test_notes_that_are_no_json_are_refused(notes, tmp_path):
    checkpoint = Checkpoint(checkpoint_of(TINY).network, checkpoint_of(TINY).weights, notes)
    with pytest.raises(GatePrunerError, match="notes") as caught:
        save(checkpoint, tmp_path / "net.pt")
    assert "\n" not in str(caught.value)
    assert in_folder(tmp_path) == []


# ---------------------------------------------------------------------- whole, or not at all


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory):
    """A disk of 64 KiB, emptied by whoever takes it."""
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if not shutil.which("mount"):
        pytest.skip("a full disk needs the mount command, which is not there")
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a full disk needs the right to mount one, which this user lacks")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def files_of_64_kib():
    """No file grows beyond 64 KiB, as on a disk with a quota."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def refusal(checkpoint, path):
    """What a failed save says; the error itself goes, for it keeps the half-written file open."""
    with pytest.raises(CheckpointError) as caught:
        save(checkpoint, path, force=True)
    message = str(caught.value)
    del caught
    gc.collect()
    return message


def refuse_to_grow(folder, suffix):
    """Save what is too large for the place, on a new name and on one that is taken."""
    for path in folder.iterdir():
        path.unlink()
    large = checkpoint_of("residual-fc10,width=100")
    new = refusal(large, folder / f"new{suffix}")
    assert in_folder(folder) == []
    path = own(folder / f"old{suffix}")
    before = path.read_bytes()
    old = refusal(large, path)
    assert in_folder(folder) == [path.name]
    assert path.read_bytes() == before
    assert_same_weights(load(path).weights, checkpoint_of(TINY).weights)
    assert str(path) in old
    for message in (new, old):
        assert "nothing was written" in message
        assert "\n" not in message
    return new, old


@pytest.mark.parametrize("suffix", OWN_SUFFIXES)
def test_full_disk_is_named_and_leaves_everything_as_it_was(suffix, small_disk):
    for message in refuse_to_grow(small_disk, suffix):
        assert "the disk is full" in message


@pytest.mark.parametrize("suffix", OWN_SUFFIXES)
def test_file_that_may_not_grow_leaves_everything_as_it_was(suffix, files_of_64_kib, tmp_path):
    for message in refuse_to_grow(tmp_path, suffix):
        assert f"{suffix}: File too large; nothing was written" in message


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_interrupted_save_leaves_no_file_behind(error, tmp_path, monkeypatch):
    path = own(tmp_path / "net.pt")
    before = path.read_bytes()

    def interrupted(content, file):
        file.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises((error, CheckpointError)):
        save(checkpoint_of(TINY, seed=9), path, force=True)
    assert in_folder(tmp_path) == ["net.pt"]
    assert path.read_bytes() == before


LARGE = "residual-fc24,width=1000"  # 99 MB


@pytest.fixture(scope="module")
def large_files(tmp_path_factory):
    """One network of 99 MB in both formats, all weights 0; removed afterwards."""
    folder = tmp_path_factory.mktemp("large")
    network = Network.named(LARGE)
    weights = {key: torch.zeros(it.shape, dtype=it.dtype) for key, it in network.state().items()}
    yield [save(Checkpoint(network, weights), folder / f"net{it}") for it in OWN_SUFFIXES]
    shutil.rmtree(folder)


def run(script, *arguments):
    """The JSON that a script prints, in a process of its own."""
    root = str(FilePath(gatepruner.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


KILLED = """
import json, os, random, signal, sys, time
import torch
from gatepruner.files.checkpoints import load, save
from gatepruner.networks.checkpoint import Checkpoint

random.seed(1)
torch.set_num_threads(1)
found = []
for path in sys.argv[1:]:
    first = load(path)
    whole = [
        Checkpoint(first.network, {
            key: torch.full(it.shape, value, dtype=it.dtype) for key, it in first.weights.items()
        })
        for value in (0, 1)
    ]
    for _ in range(3):
        child = os.fork()
        if not child:
            while True:
                for checkpoint in whole:
                    save(checkpoint, path, force=True)
        time.sleep(random.uniform(0.05, 0.4))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        tensors = load(path).weights.values()
        ends = [(tensor.min().item(), tensor.max().item()) for tensor in tensors]
        found.append(sorted({value for pair in ends for value in pair}))
print(json.dumps(found))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kill -9 needs a system with processes to fork")
def test_kill_during_save_leaves_the_old_file_or_the_new_one(large_files):
    found = run(KILLED, *large_files)
    assert len(found) == 6
    for values in found:  # every weight is 0 in one file and 1 in the other: no mixture
        assert values in ([0], [1])
    names = {path.name for path in large_files}
    left = [name for name in in_folder(large_files[0].parent) if name not in names]
    assert left, "no save was under way when the process was killed, so this shows nothing"
    assert all(name.startswith(".") for name in left)


MEASURED = """
import json, sys
from gatepruner.files.checkpoints import load

def peak():  # getrusage would tell the peak of the process that started this one, too
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

small, *files = sys.argv[1:]
load(small).network.build_blank()
for file in files[:2]:
    load(file)
grown = []
for file in files[2:]:
    before = peak()
    load(file)
    grown.append(peak() - before)
print(json.dumps(grown))
"""


@pytest.mark.skipif(
    not FilePath("/proc/self/status").exists(),
    reason="peak memory is read from /proc, as Linux has it",
)
def test_load_takes_the_memory_of_the_weights_once(large_files, tmp_path):
    warm = [own(tmp_path / f"warm{suffix}") for suffix in OWN_SUFFIXES]
    small = save(checkpoint_of(LARGE.replace("1000", "4")), tmp_path / "small.pt")
    first, second = run(MEASURED, small, *warm, *large_files)
    assert 60 * 1024 < first < 125 * 1024, f"{first} KiB more for a file of 99 MB"
    assert second < 30 * 1024, f"{second} KiB more for a second file, when the first is let go"
