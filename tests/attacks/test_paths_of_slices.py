"""Narrowed layers and paths of slices: a few letters that name millions of channels, and others."""

from __future__ import annotations

import json
import random
import time
import tracemalloc

import pytest
import torch
from conftest import draw
from safetensors import safe_open
from safetensors.torch import save_file

from gatepruner.errors import CheckpointError, GatePrunerError, PlanError
from gatepruner.files.checkpoints import load, save
from gatepruner.networks.path import Path as LearnedPath
from gatepruner.networks.path import Removal
from gatepruner.networks.slices import extent, slice_named
from gatepruner.pruning.surgery import narrow

RECORD = {"gate": 1.0, "score": 1.0, "loss": 1.0, "step": 1, "state": []}
VALUES = (
    *(None, True, 0, -1, 2**31, 10**30, 0.5, float("nan"), "", "a", [], {}, [[]], [0, 0], [[0, 0]]),
    *("layer1.0", "layer1.0.conv1[0]", "layer1.0.conv1[9-1]", "layer9.0.conv1[0]", [[-1, 2]]),
    *([16, 16, 3, 3], [0, 16, 3, 3], [-1, 16, 3, 3], [10**9, 16, 3, 3], [1] * 65, [[0, 10**9]]),
)


@pytest.fixture(scope="module")
def narrowed(tmp_path_factory):
    """A file of a narrowed network with a path of a block and slices; its weights and header."""
    whole = draw("resnet14", input_shape=(3, 8, 8))
    small = narrow(whole, ["layer1.0.conv1[1,3]"])
    learned = {"layer2.0.bn1.bias": small.weights["layer2.0.bn1.bias"] + 1}
    names = ("layer1.1", "layer2.0.conv1[0-3]", "layer2.0.conv1[5]")
    path = LearnedPath(tuple(Removal(name, 0.5, 0.1, 1.5, 3, learned) for name in names))
    file = tmp_path_factory.mktemp("narrowed") / "a.safetensors"
    save(type(whole)(small.network, small.weights, small.notes, path), file)
    assert load(file).path.records == path.records
    with safe_open(file, framework="pt") as opened:
        weights = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        return weights, json.loads(opened.metadata()["gatepruner"])


def refused(path, weights, header) -> str:
    save_file(weights, path, {"gatepruner": json.dumps(header)})
    tracemalloc.start()
    begin = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**26
    assert time.process_time() - begin < 30
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "layer1.0.conv1[0-1048575]",
        "layer1.0.conv1[0-99999999]",
        f"layer1.0.conv1[{','.join(['0-13'] * 20_000)}]",
        f"layer1.0.conv1[{','.join(['13'] * 20_000)}]",
        "layer1.0.conv1[14]",
        "layer9.0.conv1[0-1048575]",
        "fc[0-9]",
    ],
    ids=lambda name: name[:30],
)
def test_a_path_that_removes_more_than_there_is(name, narrowed, tmp_path):
    weights, header = narrowed
    paths = [{"block": name, **RECORD}] * min(1000, 10**6 // len(name))
    said = refused(tmp_path / "a.safetensors", weights, {**header, "path": paths, "states": []})
    assert "a.safetensors is damaged: its path does not fit" in said


def test_a_name_is_measured_without_making_its_slice():
    assert extent("layer1.0.conv1[0-3,6]") == ("layer1.0.conv1", 6, 5)
    assert extent("layer1.0") is None
    assert slice_named("a[0-3,6]").channels == (0, 1, 2, 3, 6)
    for name in ("a[3-1]", "a[0-99999999]", f"a[{','.join(['0-999999'] * 2)}]"):
        with pytest.raises(PlanError, match=r"expected (ascending|at most 1,048,576) channels"):
            slice_named(name)


def places(value):
    if isinstance(value, (dict, list)):
        for key in [*value] if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


def test_any_value_anywhere_in_edits_path_and_states(narrowed, tmp_path):
    weights, header = narrowed
    dice, refusals = random.Random(0), list[str]()
    for _ in range(150):
        document = json.loads(json.dumps(header))
        parts = {
            key: document[key] if key in document else document["network"][key]
            for key in ("edits", "path", "states")
        }
        holder, key = dice.choice([*places(parts)])
        holder[key] = json.loads(json.dumps(dice.choice(VALUES)))
        for name in ("path", "states"):
            document[name] = parts[name]
        document["network"]["edits"] = parts["edits"]
        path = tmp_path / "a.safetensors"
        save_file(weights, path, {"gatepruner": json.dumps(document)})
        try:
            found = load(path)
        except GatePrunerError as error:
            refusals.append(str(error))
        else:
            with torch.no_grad():
                found.build()(torch.zeros(1, 3, 8, 8))
            assert load(save(found, tmp_path / "b.pt", force=True)).fingerprint == found.fingerprint
    assert all(map(str.isprintable, refusals))
    assert 75 < len(refusals) < 150
