"""Latencies along an order: measured where they have to be, or modelled where that is as good."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from conftest import data_in, draw, random_images, write_folder

from gatepruner.files.checkpoints import save
from gatepruner.measuring.cost import count
from gatepruner.measuring.engines import ENGINES, Eager
from gatepruner.measuring.latency import Latency
from gatepruner.networks.network import Network
from gatepruner.pruning import meter as meter_module
from gatepruner.pruning import orders as orders_module
from gatepruner.pruning.block_times import block_times
from gatepruner.pruning.meter import Meter
from gatepruner.pruning.orders import compare
from gatepruner.pruning.ranking import Ranking
from gatepruner.report.curve_page import curve_page
from gatepruner.report.html.page import readings

NETWORK = Network.named("resnet20", input_shape=(3, 8, 8))
RANKING = Ranking("depth", tuple((name, 0.0) for name in NETWORK.removable))


@pytest.fixture
def clock(monkeypatch) -> Callable[[Callable[[int], float]], list[int]]:
    """Makes latency a function of parameters; returns how many networks were measured."""

    def start(seconds: Callable[[int], float]) -> list[int]:
        measured: list[int] = []

        def timed(modules, shape, *, batch=1, device="cpu", engine="eager", threads=None, **others):
            measured.append(len(modules))
            sizes = {
                name: seconds(sum(one.numel() for one in module.parameters()))
                for name, module in modules.items()
            }
            return {
                name: Latency(it, 0.9 * it, 1.1 * it, 9, batch, str(device), engine, threads)
                for name, it in sizes.items()
            }

        monkeypatch.setattr(meter_module, "latency", timed)
        return measured

    return start


def params(removed: int) -> int:
    return count(NETWORK.without(RANKING.first(removed))).params


def test_where_savings_add_up_a_few_networks_are_measured_and_the_rest_follows(clock):
    measured = clock(float)
    times = block_times(Meter(NETWORK, engine="openvino"), RANKING, range(10))
    assert sorted(map(len, times.measured)) == [0, 2, 4, 7, 9]
    assert sum(measured) <= 1 + 5 + 1 + 4
    assert times.error == pytest.approx(0, abs=1e-9)
    for removed in range(10):
        assert times.modelled(RANKING.first(removed)) == pytest.approx(params(removed))
    assert str(times).startswith("latency (openvino, batch size 1, cpu): measured with 0, 2, 4, 7,")
    assert "off by at most 0.0% of" in str(times)


def test_where_they_do_not_all_are_measured_and_nothing_is_modelled(clock):
    clock(lambda size: size**0.5)
    times = block_times(Meter(NETWORK), RANKING, range(10))
    assert sorted(map(len, times.measured)) == list(range(10))
    for removed in range(10):
        one = times.measured[frozenset(RANKING.first(removed))]
        assert one.median == pytest.approx(params(removed) ** 0.5)
    off = max(
        abs(
            params(0) ** 0.5
            - sum(times.saved[name] for name in RANKING.first(n))
            - params(n) ** 0.5
        )
        for n in range(10)
    )
    assert times.error == pytest.approx(off / params(0) ** 0.5)
    assert times.modelled(RANKING.first(1)) is None
    assert f"off by up to {times.error:.1%}" in str(times)


def test_the_page_says_of_every_latency_how_it_is_known(clock):
    checkpoint = draw("gated-residual-fc12,width=8", input_shape=(1, 8, 8))
    checkpoint = replace(checkpoint, notes={"normalize": {"mean": [0.5], "std": [0.5]}})
    orders = list(compare(checkpoint, random_images(20, (1, 8, 8)), ("depth", "random")))
    clock(lambda size: 1e-6 * size)
    meter = Meter(checkpoint.network.without_gates(), engine="onnxruntime")
    times = block_times(meter, orders[0].rankings[0], range(7))
    page = curve_page(checkpoint, orders, times=[times], conditions={})
    name = f"latency ({times.conditions})"
    for curve in page.curves:
        for state in curve.states:
            text = dict(readings(page, curve, state))[name]
            size = sum(
                one.numel()
                for one in meter.whole.without(curve.order[: state.removed])
                .build_blank()
                .parameters()
            )
            assert text.startswith(f"{1e-3 * size:.2f} ms (")
            known = frozenset(curve.order[: state.removed]) in times.measured
            assert text.endswith(", measured)" if known else "(modelled)")
    assert page.conditions[name] == times.account
    assert {"measured", "modelled"} <= {
        word
        for state in page.curves[1].states
        for word in (["modelled"] if state.modelled else [])
        + (["measured"] if state.latency else [])
    }


class Failing(Eager):
    """An engine that cannot run a network."""

    def __init__(self, program, images, threads):
        raise RuntimeError("No Op registered for Frob")


def test_sweep_measures_on_engines_that_are_there(run, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    checkpoint = draw("gated-resnet8", input_shape=(3, 8, 8))
    notes = {"normalize": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    save(replace(checkpoint, notes=notes), tmp_path / "gated.pt")
    write_folder(tmp_path / "images", random_images(20, (3, 8, 8), 10), "test")
    command = ("sweep", tmp_path / "gated.pt", "--data", data_in(tmp_path), "--by", "gate")
    engine = ("--engine", "eager,onnxruntime", "--threads", 1, "--recalibrate", 0)
    document = run(*command, *engine, "--device", "cpu", "-o", tmp_path / "out", "--json").document
    first, second = document["block_times"]
    assert (first["whole"]["engine"], second["whole"]["engine"]) == ("eager", "onnxruntime")
    assert second["whole"]["threads"] == 1
    assert set(second["saved"]) == set(checkpoint.network.removable)
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["block_times"] == document["block_times"]
    text = (tmp_path / "out" / "report.html").read_text()
    assert "onnxruntime, batch size 1, cpu, 1 thread" in text
    monkeypatch.setattr(orders_module, "compare", None)  # would fail if it were called
    monkeypatch.setitem(ENGINES, "compile", Failing)
    lacking = run(*command, "--engine", "eager,compile", "-o", tmp_path / "other")
    assert lacking.code == 1
    assert "it does not have the operation Frob" in lacking.err
    wrong = run(*command, "--engine", "eager,tflite", "-o", tmp_path / "other")
    assert wrong.code == 1
    assert "unknown engine 'tflite'" in wrong.err
    assert not (tmp_path / "other").exists()
