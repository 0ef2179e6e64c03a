"""JSON of any form in the place of a document of ours is read rightly or refused in one line."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from conftest import draw
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from gatepruner.compression.folder import Folder
from gatepruner.documents import checked, parsed
from gatepruner.errors import CheckpointError, GatePrunerError, TrainingError
from gatepruner.files.checkpoints import load, save
from gatepruner.learning.gate_state import GateState
from gatepruner.learning.training import TrainingState

WHOLE = draw("gated-residual-fc6,width=4")
HEADER = {
    "format": 4,
    "network": WHOLE.network.to_json(),
    "notes": {
        "normalize": {"mean": [0.5], "std": [0.25]},
        "scaling": {"side": 40, "interpolation": "bicubic", "squash": False},
        "classes": ["a", "b"],
        "gates": {"blocks.0": 1.0},
        "history": [{"trained": "here", "images": 3}],
        "remarks": ["one"],
    },
    "path": [],
    "states": [["blocks.0.gate.k", "float32", []]],
}
LATENCY = {"median": 1.0, "low": 0.5, "high": 2.0, "runs": 3, "batch": 1, "device": "cpu"}
STEP = {
    "name": "whole",
    "accuracy": 0.5,
    "agreement": 1.0,
    "distance": 0.0,
    "low": 0.4,
    "high": 0.6,
    "images": 100,
    "blocks": 3,
    "params": 10,
    "macs": 10,
    "seconds": 1.0,
}
STEPS = {"configuration": {"goal": 1}, "facts": {"latencies": {"a": LATENCY}}, "steps": [STEP]}
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value, path=()):
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield (*path, key)
            yield from places(value[key], (*path, key))


def with_value(document, path, value):
    document = copy.deepcopy(document)
    holder = document
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return document


def written(path, document):
    save_file(dict(WHOLE.weights), path, {"gatepruner": json.dumps(document)})
    return path


def refusal(act) -> str:
    """What is said in a typed error, or nothing; anything else is raised."""
    said = ""
    try:
        act()
    except GatePrunerError as error:
        said = str(error)
    assert not said or (said.isprintable() and "\n" not in said)
    return said


QUICK = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@QUICK
@given(place=st.sampled_from([*places(HEADER)]), value=ANY)
def test_a_header_with_any_value_anywhere(tmp_path, place, value):
    path = written(tmp_path / "a.safetensors", with_value(HEADER, place, value))
    found = []
    said = refusal(lambda: found.append(load(path)))
    if not said:
        again = load(save(found[0], tmp_path / "again.pt", force=True))
        assert again.fingerprint == found[0].fingerprint


@QUICK
@given(place=st.sampled_from([*places(STEPS)]), value=ANY)
def test_a_steps_json_with_any_value_anywhere(tmp_path, place, value):
    (tmp_path / "steps.json").write_text(json.dumps(with_value(STEPS, place, value)))
    steps = Folder(tmp_path, STEPS["configuration"])
    if not refusal(lambda: steps.begin(["whole", "gated"], resume=True, force=False)):
        steps.write()


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("network", "base", "input_shape", 1), "8", "network.base.input_shape[1]: expected 'int'"),
        (("network", "base", "module"), {}, "network.base: object contains unknown field 'module'"),
        (("network", "edits", "gated"), "blocks.0", "network.edits.gated: expected 'array'"),
        (("network", "edits", "removed"), ["blocks.0"], "blocks.0 is both removed and gated"),
        (("network", "edits", "gated"), ["blocks.0"] * 2, "blocks.0 is gated twice"),
        (("network", "edits", "gate"), "", "gates of no kind"),
        (("notes", "normalize", "std", 0), 0, "notes.normalize.std[0]: expected 'float' > 0"),
        (("notes", "normalize", "std", 0), float("nan"), "notes.normalize.std[0]"),
        (("notes", "scaling", "interpolation"), "x", "notes.scaling.interpolation: invalid"),
        (("notes", "history"), {}, "notes.history: expected 'array', got 'object'"),
        (("notes", "classes"), [1], "notes.classes[0]: expected 'str', got 'int'"),
        (("path",), None, "path: expected 'array', got 'null'"),
        (("format",), "4", "format '4'"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(tmp_path, place, value, said):
    path = written(tmp_path / "a.safetensors", with_value(HEADER, place, value))
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_the_documents_that_are_changed_here_are_right(tmp_path):
    assert load(written(tmp_path / "a.safetensors", HEADER)).notes == HEADER["notes"]
    (tmp_path / "steps.json").write_text(json.dumps(STEPS))
    steps = Folder(tmp_path, STEPS["configuration"])
    steps.begin(["whole", "gated"], resume=True, force=False)
    assert [record.name for record in steps.records] == ["whole"]


@pytest.mark.parametrize("names", [["gated"], ["whole", "whole"], ["x"], ["whole", "gated", "x"]])
def test_steps_that_are_not_the_first_ones_are_refused(names, tmp_path):
    steps = [{**STEP, "name": name} for name in names]
    (tmp_path / "steps.json").write_text(json.dumps({**STEPS, "steps": steps}))
    with pytest.raises(CheckpointError, match="expected the first of whole, gated"):
        Folder(tmp_path, STEPS["configuration"]).begin(["whole", "gated"], resume=True, force=False)


def test_another_network_as_the_whole_one_is_refused(tmp_path):
    (tmp_path / "steps.json").write_text(json.dumps(STEPS))
    steps = Folder(tmp_path, STEPS["configuration"])
    steps.begin(["whole"], resume=True, force=False)
    save(WHOLE, tmp_path / "whole.pt")
    assert steps.done("whole", WHOLE).fingerprint == WHOLE.fingerprint
    for other in (draw("gated-residual-fc6,width=4", seed=1), draw("gated-residual-fc8,width=4")):
        with pytest.raises(CheckpointError, match="has another network"):
            steps.done("whole", other)


STATE = {
    "identity": {},
    "done": 3,
    "sums": torch.zeros(3),
    "tensors": {"a": torch.zeros(1)},
    "optimizer": {"state": {0: {}}, "param_groups": [{}]},
}
REMOVAL = {"block": "a", "gate": 1.0, "score": 1.0, "loss": 1.0, "step": 1, "spans": [[0, 1]]}
STATES = {
    "gates": (
        GateState,
        {
            **STATE,
            "channel_slopes": {"a": torch.zeros(1)},
            "table": {"a": [(0.0, 0.0), (1.0, 1.0)]},
            "slopes": torch.zeros(1),
            "costs": {},
            "removals": [REMOVAL],
            "entries": [("k", "float32", [])],
            "learned": {"0/float32": torch.zeros(1)},
        },
    ),
    "training": (TrainingState, {**STATE, "history": [{}], "scheduler": {}, "best": {}}),
}


@pytest.mark.parametrize(("schema", "state"), STATES.values(), ids=STATES.keys())
@QUICK
@given(data=st.data())
def test_a_state_of_a_run_with_any_value_anywhere(schema, state, data):
    checked(state, schema, "a.state", TrainingError)
    place = data.draw(st.sampled_from([*places(state)]))
    value = data.draw(ANY)
    refusal(lambda: checked(with_value(state, place, value), schema, "a.state", TrainingError))
    assert refusal(lambda: checked({**state, "done": "3"}, schema, "a.state")).endswith(
        "done: expected 'int', got 'str'"
    )


@pytest.mark.parametrize("text", ["[" * 65 + "]" * 65, "[" * 10**6, '{"a":' * 99 + "1" + "}" * 99])
def test_a_deep_document_is_refused(text):
    assert "levels" in refusal(lambda: parsed(text, "a.json"))
    assert parsed("[" * 64 + "]" * 64, "a.json") is not None


def test_a_large_document_is_refused():
    assert "characters" in refusal(lambda: parsed(" " * (2**22 + 1), "a.json"))
