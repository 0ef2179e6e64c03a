"""States of a path are packed into few tensors, and read as the documentation says."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_checkpoint import with_path

from gatepruner.errors import CheckpointError
from gatepruner.files.checkpoints import load, save
from gatepruner.networks.packing import Packed, pack, unpack


def test_the_states_of_a_path_are_read_as_the_format_says(tmp_path):
    before = with_path()
    content = torch.load(save(before, tmp_path / "net.pt"), weights_only=True)
    header, weights = json.loads(content["gatepruner"]), content["weights"]
    assert {key for key in weights if key.startswith("path/")} == {
        f"path/{number}/{kind}" for number in range(2) for kind in ("float32", "int64")
    }
    for number, removal in enumerate(before.path.removals):
        at = {"float32": 0, "int64": 0}
        seen = []
        for start, stop in header["path"][number]["state"]:
            for key, kind, shape in header["states"][start:stop]:
                flat = weights[f"path/{number}/{kind}"].numpy()
                found = flat[at[kind] : at[kind] + int(np.prod(shape))].reshape(shape)
                assert np.array_equal(found, removal.weights[key].numpy())
                at[kind] += int(np.prod(shape))
                seen.append(key)
        assert at == {kind: len(weights[f"path/{number}/{kind}"]) for kind in at}
        assert sorted(seen) == sorted(removal.weights)


def _set(place, value):
    def change(header, weights):
        *outer, last = place
        for step in outer:
            header = header[step]
        header[last] = value

    return change


def _tensor(key, value):
    return lambda header, weights: weights.__setitem__(key, value)


def _without(key):
    return lambda header, weights: weights.pop(key)


ILL_PACKED = {
    "an unknown block": (_set(("path", 0, "block"), "layer9.0"), "layer9.0"),
    "a block twice": (_set(("path", 0, "block"), "layer1.0"), "layer1.0"),
    "no states": (lambda header, weights: header.pop("states"), "states"),
    "states that are none": (_set(("states",), 3), "states"),
    "a state that is none": (_set(("path", 0, "state"), "all"), "state"),
    "an unknown key": (_set(("states", 0, 0), "bn7.weight"), "path/bn7.weight is unknown"),
    "another shape": (_set(("states", 0, 2), [15]), "is (15,), not (16,)"),
    "a shape below 0": (_set(("states", 0, 2), [-16]), "is (-16,), not (16,)"),
    "an unknown type": (_set(("states", 0, 1), "float99"), "is of float99, not torch.float32"),
    "a key twice": (
        lambda header, weights: header["states"].append(header["states"][0]),
        "a tensor is listed twice",
    ),
    "too many entries": (_set(("path", 1, "state"), [[0, 999]]), "entries, not 999"),
    "entries below 0": (_set(("path", 1, "state"), [[-2, 1]]), "entries"),
    "falling entries": (_set(("path", 1, "state"), [[4, 6], [0, 2]]), "expected rising ones"),
    "fewer entries": (_set(("path", 1, "state"), [[0, 2]]), "path/1/float32 is"),
    "no tensor": (_without("path/1/float32"), "path/1/float32 is missing"),
    "another type": (_tensor("path/1/float32", torch.ones(1).half()), "path/1/float32 is"),
    "a tensor of two dimensions": (_tensor("path/1/float32", torch.ones(2, 2)), "is (2, 2)"),
    "a tensor of no state": (_tensor("path/2/float32", torch.ones(1)), "path/2/float32"),
    "a tensor of no type": (_tensor("path/0/float16", torch.ones(1)), "path/0/float16"),
    "a tensor of no name": (_tensor("path/", torch.ones(1)), "path/"),
    "a number that is none": (
        lambda header, weights: weights["path/1/float32"][3].fill_(float("nan")),
        "path/1/float32 is not finite",
    ),
}


@pytest.mark.parametrize(("change", "said"), ILL_PACKED.values(), ids=ILL_PACKED.keys())
def test_packed_states_that_do_not_fit_are_refused(change, said, tmp_path):
    path = save(with_path(), tmp_path / "net.pt")
    content = torch.load(path, weights_only=True)
    header = json.loads(content["gatepruner"])
    change(header, content["weights"])
    torch.save({**content, "gatepruner": json.dumps(header)}, path)
    with pytest.raises(CheckpointError) as caught:
        load(path)
    message = str(caught.value)
    assert str(path) in message
    assert said in message
    assert "\n" not in message


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_states_that_are_packed_and_unpacked_are_the_same(data):
    shapes = st.sampled_from([(), (3,), (2, 2), (0,)])
    kinds = st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int64])
    tensors = st.tuples(shapes, kinds).map(lambda one: torch.rand(one[0]).mul(99).to(one[1]))
    states = data.draw(st.lists(st.dictionaries(st.sampled_from("abcdef"), tensors), max_size=4))
    packed = pack(states)
    again = unpack(Packed(json.loads(json.dumps(packed.entries)), packed.spans, packed.tensors))
    assert len(again) == len(states)
    for mine, theirs in zip(again, states, strict=True):
        assert mine.keys() == theirs.keys()
        for key, tensor in theirs.items():
            assert torch.equal(mine[key], tensor)
            assert mine[key].dtype == tensor.dtype
            assert mine[key].untyped_storage().nbytes() == tensor.nbytes
