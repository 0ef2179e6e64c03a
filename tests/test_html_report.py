"""`report.html` says what was measured, to everyone, and what comes from outside is text in it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import data_in, draw, random_images, write_folder

from gatepruner import GateRecipe, learn_gates, prune, rank, save
from gatepruner.compression.record import Compressed, StepRecord
from gatepruner.errors import visible
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.pruning.orders import Order, compare
from gatepruner.report.compression_page import compression_page
from gatepruner.report.curve_page import curve_page
from gatepruner.report.html.document import document
from gatepruner.report.html.page import Page
from gatepruner.report.shell import shell_text

HOSTILE = (
    "</script><script>canary = 1</script>",
    "<!--<script>",
    "--></style><img src=x onerror='canary = 1'>",
    "\"' onfocus='canary = 1' autofocus x='",
    "&lt;svg onload=canary=1&gt;</title></textarea></code>",
    "a\u202eb\u2066c\x00d\x1b[2Je\u2028f\ng\x85h",
    "${x} $title {{canary}} `canary = 1` \\u003cscript\\u003e",
)


@pytest.fixture(scope="module")
def orders() -> list[Order]:
    """One order by the gates and two random ones."""
    images = random_images(40, (1, 8, 8))
    return list(compare(whole(), images, ("gate", "random"), seeds=range(2)))


def whole() -> Checkpoint:
    checkpoint = draw("gated-residual-fc12,width=8", input_shape=(1, 8, 8))
    return replace(checkpoint, notes={"normalize": {"mean": [0.5], "std": [0.5]}})


@pytest.fixture(scope="module")
def page(orders) -> Page:
    return curve_page(
        whole(),
        orders,
        latency={0: {"batch size 1, cpu": (0.001, 0.002, 0.003)}},
        commands={"gate": ("gatepruner", "prune", "it's.pt"), "random": ("gatepruner", "x")},
        conditions={"seed": 0, "device": "cpu"},
    )


@pytest.fixture(scope="module")
def units() -> tuple[Checkpoint, Page]:
    """A network with a path of blocks and slices, and the page of its curve."""
    images = random_images(24, (1, 8, 8))
    start = draw("residual-fc12,width=8", input_shape=(1, 8, 8))
    recipe = GateRecipe(units="both", multiple=2, warmup=1, steps=1, batch_size=8)
    gated = learn_gates(replace(start, notes=whole().notes), images, recipe, device="cpu")
    return gated, curve_page(gated, list(compare(gated, images, ("gate",))), 8, conditions={})


def hostile_page(page: Page) -> Page:
    """The page with a hostile text in every place that a text from outside reaches."""
    texts = dict(zip([block.name for block in page.blocks], HOSTILE, strict=False))
    curves = [
        replace(
            curve,
            name=f"{HOSTILE[index]}{curve.name}",
            label=HOSTILE[index + 2],
            spread=HOSTILE[index + 4],
            order=[texts[name] for name in curve.order],
            states=[
                replace(
                    state,
                    title=HOSTILE[at % len(HOSTILE)],
                    command=shell_text(HOSTILE),
                    latency={HOSTILE[at % len(HOSTILE)]: (1.0, 2.0, 3.0)},
                    left={key: {HOSTILE[at % len(HOSTILE)]: (1, 2)} for key in ("", *HOSTILE)},
                )
                for at, state in enumerate(curve.states)
            ],
        )
        for index, curve in enumerate(page.curves)
    ]
    return replace(
        page,
        title=HOSTILE[0],
        lead=HOSTILE,
        measure=HOSTILE[1],
        axis=HOSTILE[2],
        ticks=dict(enumerate(HOSTILE)),
        blocks=[
            replace(block, name=texts[block.name], stage=HOSTILE[at % 3])
            for at, block in enumerate(page.blocks)
        ],
        gates={texts[name]: gate for name, gate in page.gates.items()},
        curves=curves,
        how=HOSTILE[3],
        conditions=dict(zip(HOSTILE, reversed(HOSTILE), strict=True)),
    )


class Reader(HTMLParser):
    """Tags with their attributes, and all text, as a browser reads them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.comments: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        self.texts.setdefault(self.inside, []).append(data)

    def handle_comment(self, data):
        self.comments.append(data)

    def data(self) -> dict:
        """The JSON that the script reads."""
        return json.loads(next(text for text in self.texts["script"] if text.startswith("{")))


# ---------------------------------------------------------------------------------- what it says


def test_the_numbers_are_those_of_the_curves(page):
    states = Reader(document(page)).data()["curves"]
    for curve, written in zip(page.curves, states, strict=True):
        whole = curve.states[0]
        assert [page.blocks[index].name for index in written["order"]] == list(curve.order)
        for state, shown in zip(curve.states, written["states"], strict=True):
            accuracy, interval, macs, params, latency = shown["values"]
            assert accuracy == f"{100 * state.share:.2f} %"
            assert interval.startswith(f"{100 * state.low:.2f} to {100 * state.high:.2f} (")
            assert macs == f"{state.macs:,} ({state.macs / whole.macs:.1%})"
            assert params.startswith(f"{state.params:,} (")
            assert latency == ("2.00 ms (1.00 to 3.00)" if state.latency else "not measured")
            assert shown["removed"] == state.removed


def test_the_states_are_the_points_of_the_orders(page, orders):
    for curve, order in zip(page.curves, orders, strict=True):
        assert tuple(curve.order) == order.rankings[0].names
        for index, (state, point) in enumerate(zip(curve.states, order.points, strict=True)):
            shares = order.accuracies(index)
            assert (state.removed, state.macs) == (point.removed, point.cost.macs)
            assert state.share == pytest.approx(sum(shares) / len(shares))
            spread = (min(shares), max(shares)) if len(shares) > 1 else point.accuracy.interval
            assert (state.low, state.high) == spread


def test_it_starts_at_the_most_removals_that_stay_within_the_interval_of_the_whole(page):
    states = page.curves[0].states
    good = [index for index, state in enumerate(states) if state.share >= states[0].low]
    assert page.start == max(good)


def test_every_state_and_block_is_there_without_the_script(page):
    text = re.sub(r"<script.*?</script>", "", document(page), flags=re.DOTALL)
    read = Reader(text)
    for curve in page.curves:
        for state in curve.states:
            assert f"{100 * state.share:.2f}\u00a0% (" in text
    blocks = [values for _, values in read.tags if "data-block" in values]
    assert len(blocks) == len(page.blocks)
    removed = set(page.curves[0].order[: page.curves[0].states[page.start].removed])
    for block, values in zip(page.blocks, blocks, strict=True):
        assert values["aria-label"].startswith(f"{block.name}: gate {page.gates[block.name]:.4f}")
        assert values["aria-label"].endswith("removed") == (block.name in removed)
        assert ("gone" in values["class"]) == (block.name in removed)
    hidden = [values for _, values in read.tags if "hidden" in values]
    assert {"choose", "copy"} <= {values.get("id") for values in hidden}  # nothing without it
    assert "radio" in {values.get("type") for values in hidden}


def test_a_network_without_gates_and_with_one_order_has_a_page():
    checkpoint = draw("resnet8")
    order = compare(checkpoint, random_images(20), "depth")
    text = document(curve_page(checkpoint, list(order), conditions={}))
    tags = Reader(text).tags
    assert not [values for tag, values in tags if tag == "input" and values["type"] != "range"]
    assert "Bars are gates" not in text


def test_it_says_for_each_block_what_is_left_of_its_width(units):
    gated, page = units
    text = document(page)
    read = Reader(text)
    (curve,), blocks = read.data()["curves"], gated.network.blocks
    for state in curve["states"]:
        small = prune(gated, rank(gated), state["removed"]).build()
        for index, block in enumerate(blocks):
            gone = index in curve["order"][: state["removed"]]
            layer = None if gone else small.get_submodule(f"{block.name}.branch.linear1")
            share, channels = state["left"].get(str(index), (1, ""))
            assert share == (1 if gone else layer.out_features / 8)
            expected = f"channels left: linear1 {8 * share:.0f} of 8"
            assert channels == (expected if share < 1 else "")
            if state["removed"] == 8:
                button = next(it for _, it in read.tags if it.get("data-block") == str(index))
                assert button["title"].endswith("removed" if gone else channels)
    assert any(state["left"] for state in curve["states"])
    assert "units removed" in text
    assert "narrower where channels are gone" in text


# --------------------------------------------------------------------------- one file that is safe


@pytest.mark.parametrize("make", [lambda page: page, hostile_page], ids=["plain", "hostile"])
def test_the_policy_lets_only_its_own_style_and_script_through(page, make):
    read = Reader(document(make(page)))
    policy = next(
        values["content"]
        for tag, values in read.tags
        if values.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    scripts = [text for text in read.texts["script"] if not text.startswith("{")]
    for kind, texts in (("style", read.texts["style"]), ("script", scripts)):
        (text,) = texts
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert [values.get("type") for tag, values in read.tags if tag == "script"] == [
        "application/json",
        None,
    ]


def test_hostile_names_add_no_tag_attribute_or_comment(page):
    plain, hostile = (Reader(document(each)) for each in (page, hostile_page(page)))
    known = {(tag, name) for tag, values in plain.tags for name in values}
    assert {(tag, name) for tag, values in hostile.tags for name in values} == known
    assert {tag for tag, _ in hostile.tags} == {tag for tag, _ in plain.tags}
    assert hostile.comments == []
    blocks = [values for _, values in hostile.tags if "data-block" in values]
    for text, values in zip(HOSTILE, blocks, strict=False):
        assert values["data-about"].startswith(f"{visible(text)}: ")
    text = document(hostile_page(page))
    assert visible(text.replace("\n", "")) == text.replace("\n", "")
    for curve in hostile.data()["curves"]:
        for state in curve["states"]:
            shown = [state["title"], state["command"], *state["values"]]
            assert [visible(text) for text in shown] == shown
    assert plain.texts["title"] == [page.title]
    assert hostile.texts["title"] == [visible(HOSTILE[0])]


def test_nothing_outside_is_asked_for(page):
    for tag, values in Reader(document(page)).tags:
        assert tag not in {"link", "img", "iframe", "object", "a"}
        assert not {"src", "href", "style", "action"} & values.keys()


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_a_shell_finds_the_words_of_a_command_again_and_a_terminal_sees_no_control_character():
    words = [text.replace("\0", "") for text in HOSTILE]
    words += ["", "it's", "a b", "-x", "$HOME", "é漢", "\udcff"]
    command = shell_text(["printf", r"%s\0", *words])
    assert visible(command) == command
    told = subprocess.run(["bash", "-c", command], capture_output=True, check=True).stdout
    assert told.decode("utf-8", "surrogateescape").split("\0")[:-1] == words


# ------------------------------------------------------------------------------- the command line


def test_the_command_of_a_state_makes_the_network_that_was_measured(run, tmp_path):
    save(draw("gated-resnet8"), tmp_path / "it's.pt")
    write_folder(tmp_path / "images", random_images(60))
    write_folder(tmp_path / "images", random_images(40, seed=8), "train")
    run("sweep", tmp_path / "it's.pt", "--data", data_in(tmp_path), "--by", "gate,random",
        *("--random", 2, "--seed", 3, "--recalibrate", 30, "--limit", 50),
        *("--normalize", "cifar10", "-o", tmp_path / "report"))  # fmt: skip
    read = Reader((tmp_path / "report" / "report.html").read_text())
    document = json.loads((tmp_path / "report" / "report.json").read_text())
    for curve, order in zip(read.data()["curves"], document["orders"], strict=True):
        assert curve["states"][0]["command"] == ""
        words = shlex.split(curve["states"][2]["command"])
        assert words[0] == "gatepruner"
        done = run(*words[1:], "--json", "-o", tmp_path / f"{order['criterion']}.pt").document
        point = order["runs"][0][2]
        assert done["accuracy_after"] == point["accuracy"]
        assert done["macs_after"] == point["macs"]
        assert set(done["removed"]) == {name for name, _ in order["rankings"][0][:2]}


def compressed(tmp_path: Path) -> Compressed:
    checkpoint = draw("gated-resnet8")
    names = checkpoint.network.removable
    small = replace(checkpoint, network=Network(checkpoint.network.base).without(names[1:]))
    common = {"agreement": 0.9, "distance": 0.1, "low": 0.4, "high": 0.6, "images": 50}
    timed = {"latency": 0.002, "latency_low": 0.001, "latency_high": 0.003, "latency_rounds": 9}
    steps = [
        StepRecord("whole", 0.5, **common, blocks=3, params=9, macs=90, seconds=0.0, **timed),
        StepRecord("removed", 0.5, **common, blocks=1, params=5, macs=30, seconds=0.0, **timed),
    ]
    save(checkpoint, tmp_path / "whole.pt")
    return Compressed(small, tuple(steps), names[1:], {"network": "gated-resnet8"})


def test_a_compression_has_a_state_for_every_step(tmp_path):
    result = compressed(tmp_path)
    page = compression_page(result, tmp_path, {"network": "gated-resnet8", "device": "cpu"})
    (curve,) = page.curves
    assert [state.title for state in curve.states] == ["whole", "removed"]
    assert [state.removed for state in curve.states] == [0, 2]
    assert [block.name for block in page.blocks] == list(draw("gated-resnet8").network.removable)
    assert page.start == 1
    kept, gone = (state.command for state in curve.states)
    assert gone == ""  # no file of it was kept
    told = subprocess.run(
        [sys.executable, "-c", f"{kept}; print(len(list(module.parameters())))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert int(told) == len(list(draw("gated-resnet8").build().parameters()))
    assert "latency (cpu)" in document(page)
