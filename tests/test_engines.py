"""Engines compute what the network computes, say what they cannot run, and are measured alike."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from conftest import draw, images_for, logits
from torch import nn

from gatepruner.errors import DeviceError, EngineError, PlanError
from gatepruner.learning.recipes import GateRecipe
from gatepruner.measuring import engines as engines_module
from gatepruner.measuring.cost import alike, count
from gatepruner.measuring.engines import (
    ENGINES,
    device_of,
    engine_named,
    processors,
    ready,
    threads_of,
    torch_threads,
)
from gatepruner.measuring.latency import Latency, in_turns, latency
from gatepruner.measuring.programs import Program, check_same, refusing, tolerance
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.pruning import meter as meter_module
from gatepruner.pruning.goals import Goal, blocks_for, check_reachable, remeasured
from gatepruner.pruning.meter import Meter
from gatepruner.pruning.ranking import Ranking

SHAPE, SHAPE_1 = (3, 8, 8), (1, 8, 8)


@pytest.fixture(scope="module")
def small() -> Checkpoint:
    return draw("gated-resnet8", input_shape=SHAPE)


@pytest.fixture(scope="module")
def program(small) -> Program:
    """Exported once for all tests."""
    return Program(small.build(), SHAPE, "it")


def installed(name: str) -> None:
    for package in ENGINES[name].packages:
        pytest.importorskip(package)


@pytest.mark.parametrize("name", ["eager", "onnxruntime", "openvino"])
@pytest.mark.parametrize("batch", [1, 3])
def test_an_engine_gives_the_logits_of_the_network(small, program, name, batch):
    installed(name)
    images = images_for(small.network, batch)
    with torch.inference_mode():
        found = ready(name, program, images, 1)(images)
    assert found.shape == (batch, 10)
    torch.testing.assert_close(found, logits(small.build(), images), rtol=1e-5, atol=1e-5)


def test_compile_is_torchs_and_is_done_before_the_clock_runs(small, monkeypatch):
    calls = []

    def compiled(module, *, dynamic):
        calls.append(dynamic)
        return lambda images: calls.append(tuple(images.shape)) or module(images)

    monkeypatch.setattr(torch, "compile", compiled)
    images = images_for(small.network, 2)
    engine = ENGINES["compile"](Program(small.build(), SHAPE), images, 1)
    assert calls == [False, (2, *SHAPE)]
    assert torch.equal(logits(engine, images), logits(small.build(), images))


def test_a_program_leaves_its_module_as_it_is(small):
    module = small.build().train()
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    exported = Program(module, SHAPE).exported
    assert module.training
    assert all(torch.equal(before[key], tensor) for key, tensor in module.state_dict().items())
    images = images_for(small.network, 5)  # of another size than the example
    expected = logits(small.build(), images)
    torch.testing.assert_close(logits(exported.module(), images), expected)


def test_a_program_goes_to_another_device_as_a_copy():
    program = Program(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Dropout()), SHAPE_1)
    there = program.on(torch.device("meta"))
    assert program.module[0].weight.device.type == "cpu"
    assert there[0].weight.device.type == "meta"
    assert program.on(torch.device("meta")) is there
    assert program.on(torch.device("cpu")) is program.module
    assert not there.training
    assert not program.module.training


def test_a_network_is_compiled_for_every_batch_size(small, monkeypatch):
    compiled = []

    def counting(graph, examples):
        compiled.append(tuple(graph.graph.nodes))
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counting))
    program = Program(torch.fx.symbolic_trace(nn.ReLU()), SHAPE_1)
    sizes = range(1, 11)  # torch compiles a function eight times, then runs it as it is
    for size in sizes:
        ready("compile", program, torch.zeros(size, *SHAPE_1), 1)
    assert len(compiled) == len(sizes)


@pytest.mark.parametrize("name", ["cuda:0", "cuda:1"])
def test_the_clock_waits_for_the_gpu_that_computes(name, monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: waited.append(device))
    in_turns({"it": lambda: waited.append("pass")}, 2, torch.device(name))
    assert waited == ["pass", torch.device(name)] * (3 + 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["eager", "compile"])
def test_an_engine_on_a_gpu_gives_the_logits_of_the_network(small, program, name):
    images = images_for(small.network, 3)
    with torch.inference_mode():
        found = ready(name, program, images.to("cuda:0"), 1)(images.to("cuda:0"))
    assert found.device == torch.device("cuda:0")
    expected = logits(small.build(), images)
    most = tolerance(found.device) * float(expected.abs().max())
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=most)


def test_a_latency_says_its_engine_and_threads():
    installed("onnxruntime")
    module = nn.Conv2d(1, 2, 3)
    measured = latency({"it": module}, SHAPE_1, engine="onnxruntime", threads=1, batch=2, runs=3)
    found = measured["it"]
    assert (found.engine, found.threads, found.batch) == ("onnxruntime", 1, 2)
    assert found.conditions == "onnxruntime, batch size 2, cpu, 1 thread"
    assert found.runs == 3
    assert found.median > 0


def test_threads_are_pytorchs_for_as_long_as_it_is_measured(monkeypatch):
    monkeypatch.setattr(engines_module, "processors", lambda: 4)
    seen = []

    class Counting(nn.Module):
        def forward(self, x):
            seen.append(torch.get_num_threads())
            return x

    measured = latency({"it": Counting()}, (1, 1, 1), threads=2, runs=2)["it"]
    assert set(seen) == {2}
    assert measured.threads == 2
    assert torch.get_num_threads() == 1
    assert latency({"it": Counting()}, (1, 1, 1), runs=1)["it"].threads == 1
    with pytest.raises(ValueError, match="it"), torch_threads(3):
        raise ValueError("it")
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("threads", [0, -1, 10_000])
def test_threads_that_the_machine_does_not_have_are_refused(threads):
    most = processors()
    message = f"cannot use {threads} threads: this machine has {most} .*choose 1 to {most}"
    with pytest.raises(DeviceError, match=message):
        threads_of(threads)
    with pytest.raises(DeviceError, match=message):
        latency({"it": nn.Identity()}, (1, 1, 1), threads=threads)
    assert 1 <= most <= os.cpu_count()


def test_an_unknown_engine_is_refused():
    with pytest.raises(EngineError, match=r"unknown engine 'onnx' \(did you mean onnxruntime"):
        engine_named("onnx")


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "tensorrt"])
def test_an_engine_that_is_missing_is_refused_with_its_install_line(name, monkeypatch):
    def nothing(package, *rest):
        return None if package == name else object()

    monkeypatch.setattr(importlib.util, "find_spec", nothing)
    extra = "onnx" if name == "onnxruntime" else name
    message = rf"the engine {name} needs {name}: pip install 'gatepruner\[{extra}\]'"
    with pytest.raises(EngineError, match=message):
        latency({"it": nn.Identity()}, (1, 1, 1), engine=name)
    with pytest.raises(EngineError, match=message):
        Meter(Network.named("resnet8"), engine=name).check()


def test_engines_of_the_cpu_are_measured_there_whatever_computes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    installed("onnxruntime")
    assert str(device_of("onnxruntime", "cuda:0")) == "cpu"
    assert str(device_of("eager", "cuda:0")) == "cuda:0"


class Bessel(nn.Module):
    """A residual block with an operation that no engine but PyTorch has."""

    def forward(self, x):
        return (x + torch.special.i1(x)).mean((2, 3))


class Parser:
    """As of a TensorRT that does not know an operation."""

    def __init__(self, network, logger):
        pass

    def parse(self, model):
        return False

    def get_error(self, index):
        return SimpleNamespace(desc=lambda: "No importer registered for op: Bessel\nmore")


@pytest.mark.parametrize(
    ("parser", "reason"),
    [
        (Parser, "it does not have the operation Bessel"),
        (lambda *rest: SimpleNamespace(parse=lambda model: True), "cannot build it; its log"),
    ],
)
def test_a_network_that_tensorrt_cannot_run_is_refused(monkeypatch, parser, reason):
    fake = MagicMock(OnnxParser=parser)
    fake.Builder.return_value.build_serialized_network.return_value = None
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: object())
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    program = MagicMock(spec=Program, onnx=MagicMock())
    program.name = "it"
    with pytest.raises(EngineError, match=f"^tensorrt cannot run it: .*{reason}"):
        ready("tensorrt", program, torch.zeros(1, *SHAPE_1), 1)


def test_an_engine_names_the_operation_that_it_does_not_have():
    installed("onnxruntime")
    with pytest.raises(EngineError, match=r"the Bessel .*the operation prims\.bessel_i1; choose"):
        latency({"it": Bessel()}, (1, 2, 2), engine="onnxruntime", runs=1)


@pytest.mark.parametrize(
    ("text", "operation"),
    [
        ("No ONNX function found for <OpOverload(op='prims.i1', overload='default')>", "prims.i1"),
        ("NOT_IMPLEMENTED : Could not find an implementation for Cosh(22) node", "Cosh(22)"),
        ("Fatal error: Frob(-1) is not a registered function/op", "Frob"),
        ("-- No conversion rule found for operations: aten.special_i1.default", "aten.special_i1"),
    ],
)
def test_the_operation_is_found_in_what_each_software_says(text, operation):
    error = RuntimeError("something failed")
    error.__cause__ = ValueError(text)
    with pytest.raises(EngineError) as told, refusing("it cannot run"):
        raise error
    assert f"it cannot run: it does not have the operation {operation}" in str(told.value)


def test_other_reasons_are_told_in_one_line_and_memory_is_not_blamed_on_an_engine():
    with pytest.raises(EngineError, match=r"^it: first$"), refusing("it"):
        raise RuntimeError("\nfirst\nsecond")
    with pytest.raises(RuntimeError, match="out of memory"), refusing("it"):
        raise RuntimeError("CUDA out of memory")


def test_a_recipe_knows_the_engines():
    assert GateRecipe(engine="openvino", threads=2).engine == "openvino"
    with pytest.raises(Exception, match="unknown engine 'tflite': expected eager, compile"):
        GateRecipe(engine="tflite")


# ----------------------------------------------------------------- blocks that take the same time


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("gated-resnet20", [3, 1, 2, 1, 2]),
        ("torchvision:resnet50", [1, 2, 1, 3, 1, 5, 1, 2]),
        ("torchvision:vit_b_32", [12, 12]),
    ],
)
def test_blocks_are_alike_if_their_branches_are(name, sizes):
    network = Network.named(name, input_shape=(3, 64, 64) if ":" in name else SHAPE)
    groups = alike(network)
    assert [len(group) for group in groups] == sizes
    assert sorted(name for group in groups for name in group) == sorted(network.removable)
    for group in groups:
        assert len({count(network.without([name])) for name in group}) == 1


def timed_by_parameters(monkeypatch, overhead: float = 0.0) -> list[int]:
    """A clock that tells a network by its parameters; how many networks were measured."""
    measured: list[int] = []

    def timed(modules, shape, *, batch=1, device="cpu", engine="eager", threads=None, **others):
        measured.append(len(modules))
        sizes = {
            name: overhead + sum(p.numel() for p in module.parameters())
            for name, module in modules.items()
        }
        return {
            name: Latency(size, size, size, 1, batch, str(device), engine, threads)
            for name, size in sizes.items()
        }

    monkeypatch.setattr(meter_module, "latency", timed)
    return measured


def test_savings_take_a_network_for_each_kind_of_block(monkeypatch):
    measured = timed_by_parameters(monkeypatch)
    network = Network.named("resnet20", input_shape=SHAPE)
    saved = Meter(network, engine="onnxruntime").savings("latency")
    assert measured == [1 + 5]  # of 9 blocks
    whole = count(network).params
    assert saved == {
        name: pytest.approx(whole - count(network.without([name])).params)
        for name in network.removable
    }
    assert list(saved) == list(network.removable)


def test_a_target_takes_two_measurements_where_the_savings_add_up(monkeypatch):
    network = Network.named("resnet20", input_shape=SHAPE)
    ranking = Ranking("depth", tuple((name, 0.0) for name in network.removable))
    measured = timed_by_parameters(monkeypatch)
    meter = Meter(network)
    meter.savings("latency")
    measured.clear()
    for percent in (90, 60, 30):
        goal = Goal("latency", percent / 100, True)
        reach = blocks_for(goal, network, ranking, meter, list)
        whole = count(network).params
        left = [count(network.without(ranking.first(n))).params for n in range(10)]
        assert reach.removed == next(n for n, cost in enumerate(left) if cost <= goal.limit(whole))
    assert sum(measured) <= 1 + 1 + 3 * (2 + 1)  # with the least one, and the whole one each time


def test_a_target_below_what_the_engine_takes_without_blocks_is_refused(monkeypatch):
    timed_by_parameters(monkeypatch, overhead=1e6)
    network = Network.named("resnet8", input_shape=SHAPE)
    meter = Meter(network, engine="openvino")
    with pytest.raises(PlanError, match="since openvino takes the rest without any of its remov"):
        check_reachable(Goal("latency", 0.5, True), network, network.removable, meter)


@pytest.mark.parametrize(("slower", "met"), [(1.0, True), (1.029, True), (1.05, False)])
def test_what_was_asked_for_is_measured_again(monkeypatch, slower, met):
    network = Network.named("resnet8", input_shape=SHAPE)
    fewer = network.without(network.removable[:1])
    timed_by_parameters(monkeypatch)
    sizes = [count(one).params for one in (network, fewer)]
    goal = Goal("latency", sizes[1] / sizes[0] / slower, True)
    again = remeasured(goal, Meter(network), fewer)
    assert again.excess == pytest.approx(slower - 1)
    assert again.met is met
    assert ("is met within 3%" in str(again)) is met
    assert (f"is missed by {slower - 1:.1%}" in str(again)) is not met
    assert again.to_json()["measured"] == sizes[1]
    assert remeasured(Goal("blocks", 1), Meter(network), fewer) is None


def test_measuring_again_does_not_take_what_is_known(monkeypatch):
    network = Network.named("resnet8", input_shape=SHAPE)
    measured, meter = timed_by_parameters(monkeypatch), Meter(network)
    meter.latencies([network])
    meter.again([network, network.without(network.removable)])
    assert measured == [1, 2]


def test_logits_of_zero_equal_themselves():
    zeros = torch.zeros(2, 10)
    assert check_same("a network with a fresh head", zeros, zeros) == 0
    with pytest.raises(EngineError, match="computes something else"):
        check_same("a network with a fresh head", zeros + 1e-6, zeros)
