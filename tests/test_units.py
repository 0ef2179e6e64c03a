"""Units: blocks and slices on one path, what they save, and their scores."""

from __future__ import annotations

import functools
import itertools
import math
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import draw, images_for, logits, random_images
from narrow_blocks import BLOCKS, READ, Basic, network_of
from torch import Tensor, nn

from gatepruner.compression.compress import compress
from gatepruner.compression.recipe import CompressionRecipe
from gatepruner.errors import CheckpointError, PlanError, TrainingError
from gatepruner.files.checkpoints import load, save
from gatepruner.images.images import Images
from gatepruner.learning import units as units_module
from gatepruner.learning.channel_gates import ChannelGates
from gatepruner.learning.gates import learn_gates
from gatepruner.learning.recipes import UNITS, GateRecipe
from gatepruner.learning.units import Units, every_unit
from gatepruner.measuring.cost import count
from gatepruner.measuring.latency import Latency
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.slices import Slice, slice_named, sorted_out, united
from gatepruner.pruning import meter as meter_module
from gatepruner.pruning.curve import sweep
from gatepruner.pruning.goals import Goal, blocks_for
from gatepruner.pruning.groups import reduced, widths_of
from gatepruner.pruning.latency_table import latency_table
from gatepruner.pruning.meter import Meter
from gatepruner.pruning.ranking import rank
from gatepruner.pruning.surgery import follow
from gatepruner.pruning.unit_costs import UnitCosts
from gatepruner.pruning.widths import closed

RECIPE = GateRecipe(units="both", warmup=2, steps=2, batch_size=8)


def pictures() -> Images:
    return random_images(32, (3, 8, 8), classes=10)


@pytest.fixture(scope="module")
def learned() -> Checkpoint:
    return learn_gates(draw("resnet14", input_shape=(3, 8, 8)), pictures(), RECIPE, device="cpu")


def test_a_path_of_units_ends_with_what_cannot_be_made_smaller(learned):
    blocks, slices = sorted_out(learned.path.blocks)
    network = reduced(learned.network, learned.path.blocks)
    assert slices
    assert not network.removable
    assert {*blocks} == {*learned.network.removable}
    assert len(set(learned.path.blocks)) == len(learned.path)


def test_no_slice_is_removed_from_a_block_that_is_gone(learned):
    widths, gone, cut = widths_of(learned.network).found, set(), set()
    for name in learned.path.blocks:
        one = slice_named(name)
        if one is None:
            gone.add(name)
            continue
        assert widths[one.width].home not in gone
        assert len(one.channels) == 8
        assert cut.isdisjoint((one.width, channel) for channel in one.channels)
        cut |= {(one.width, channel) for channel in one.channels}


def test_every_part_of_a_path_is_the_whole_network_with_those_gates_closed(learned):
    widths, images = widths_of(learned.network).found, images_for(learned.network)
    for number in range(1, len(learned.path) + 1):
        plan = learned.path.blocks[:number]
        blocks, slices = sorted_out(plan)
        later = [one.weights for one in learned.path.removals[number - 1 :] if one.weights]
        state = {**learned.weights, **later[0]}  # what the turn has ended with
        state |= {learned.network.gate_key(name): torch.zeros(()) for name in blocks}
        masked = learned.network.build(closed(state, widths, united(slices)))
        small = follow(learned, plan)
        assert small.network == reduced(learned.network, plan)
        expected = logits(masked, images)
        torch.testing.assert_close(logits(small.build(), images), expected, rtol=1e-4, atol=1e-4)


def test_weights_are_kept_once_for_what_is_removed_together(learned):
    turns = learned.path.turns
    assert turns[0] == 0
    assert turns[-1] == len(learned.path)
    with_weights = [at for at, one in enumerate(learned.path.removals, 1) if one.weights]
    assert with_weights == list(turns[1:])
    assert len(with_weights) <= len(learned.network.removable)


def test_a_path_of_units_is_saved_and_loaded(learned, tmp_path):
    read = load(save(learned, tmp_path / "path.safetensors"))
    assert read.path.records == learned.path.records
    plan = learned.path.blocks[:3]
    assert torch.equal(
        logits(follow(read, plan).build(), images_for(read.network)),
        logits(follow(learned, plan).build(), images_for(read.network)),
    )


MISFITS = {
    "layer1.0.conv1[16]": "layer1.0.conv1 has 16 channels, too few for the path",
    "layer1.0.conv1[0-15]": "layer1.0.conv1 has 16 channels, too few for the path",
    "layer1.0.conv1[0-99999999]": "layer1.0.conv1 has 16 channels, too few for the path",
    "layer9.conv1[0]": "there is no layer layer9.conv1, whose channels the path removes",
    "layer1.0[0]": "there is no layer layer1.0, whose channels the path removes",
    "layer1.0.conv1[3-1]": "expected ascending channels as in layer1",
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_file_whose_path_removes_what_there_is_not_is_refused(learned, name, tmp_path):
    first, *rest = learned.path.removals
    path = replace(learned.path, removals=(replace(first, block=name), *rest))
    file = save(replace(learned, path=path), tmp_path / "path.pt")
    with pytest.raises(CheckpointError, match=rf"path does not fit .*{re.escape(MISFITS[name])}"):
        load(file)


@pytest.mark.parametrize("key", ["gate", "score", "loss"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_file_whose_path_has_numbers_that_are_not_finite_is_refused(
    learned, key, value, tmp_path
):
    first, *rest = learned.path.removals
    path = replace(learned.path, removals=(replace(first, **{key: value}), *rest))
    file = save(replace(learned, path=path), tmp_path / "path.pt")
    with pytest.raises(CheckpointError, match=f"the {key} of {re.escape(first.block)} is not fin"):
        load(file)


def test_channels_alone_remove_no_block():
    recipe = replace(RECIPE, units="channels", blocks=2)
    path = learn_gates(draw("resnet14", input_shape=(3, 8, 8)), pictures(), recipe).path
    assert len(path.turns) == 3
    assert all(map(slice_named, path.blocks))


def test_an_interrupted_run_ends_as_an_uninterrupted_one(learned, tmp_path):
    class StopError(Exception):
        pass

    def stop(moment):
        if moment.gone == 2:
            raise StopError

    whole, state = draw("resnet14", input_shape=(3, 8, 8)), tmp_path / "state.pt"
    how = {"device": "cpu", "state": state}
    with pytest.raises(StopError):
        learn_gates(whole, pictures(), RECIPE, watch=stop, **how)
    resumed = learn_gates(whole, pictures(), RECIPE, resume=state.exists(), **how)
    assert resumed.path.records == learned.path.records


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("cost", ["macs", "params"])
def test_what_a_unit_saves_is_the_difference_of_two_counts(kind, cost):
    network = network_of(kind).network
    widths = widths_of(network).found
    name = f"blocks.0.{READ[kind][0]}"

    def counted(*units: str) -> int:
        return getattr(count(reduced(network, units)), cost)

    costs = UnitCosts(network, widths, cost)
    assert costs.saving(name, 1) == pytest.approx(counted() - counted(f"{name}[0]"))
    costs.left[name] = widths[name].size - 1
    assert costs.saving(name, 2) == pytest.approx(counted(f"{name}[0]") - counted(f"{name}[0-2]"))
    assert costs.cost("blocks.0") == pytest.approx(counted(f"{name}[0]") - counted("blocks.0"))


class Nested(nn.Module):
    """Widths within another home: of a block in a branch, and of a scale apart from blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.apart = nn.ModuleDict({"expand": nn.Conv2d(8, 20, 1), "project": nn.Conv2d(20, 8, 1)})
        self.apart["scale"] = nn.Sequential(nn.Conv2d(20, 6, 1), nn.ReLU(), nn.Conv2d(6, 20, 1))
        self.outer = nn.Sequential(nn.Conv2d(8, 12, 1), Basic12(), nn.Conv2d(12, 8, 1))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.apart["expand"](self.stem(x)).relu()
        scale = self.apart["scale"](inner.mean((2, 3), keepdim=True)).sigmoid()
        x = self.apart["project"](inner * scale)
        return self.head((x + self.outer(x)).mean((2, 3)))


class Basic12(nn.Module):
    """A block with another width than its input's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(12, 16, 3, padding=1), nn.Conv2d(16, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x).relu())


@pytest.mark.parametrize("cost", ["macs", "params"])
def test_what_homes_within_homes_cost_is_counted_once(cost):
    network = Checkpoint.of(Nested(), (3, 6, 6)).network
    widths = widths_of(network).found
    assert {width.home for width in widths.values()} == {"apart", "apart.scale", "outer.1", "root"}
    costs, whole = UnitCosts(network, widths, cost), getattr(count(network), cost)
    total = costs.total()
    costs.left = {name: width.size - 3 for name, width in widths.items()}
    small = getattr(count(reduced(network, [f"{name}[0-2]" for name in widths])), cost)
    assert total - costs.total() == pytest.approx(whole - small)
    for gone in (["outer.1"], ["root"], ["outer.1", "root"]):
        costs.left = {}
        small = getattr(count(network.without(gone)), cost)
        assert total - costs.total(gone) == pytest.approx(whole - small)


def test_a_path_of_units_saves_a_block_in_each_turn(learned):
    network, blocks = learned.network, learned.network.removable
    saved = [
        count(network).macs - count(reduced(network, learned.path.blocks[:number])).macs
        for number in range(len(learned.path) + 1)
    ]
    share = saved[-1] / len(blocks)
    turns = learned.path.turns
    assert len(turns) - 1 <= len(blocks)
    for turn, (before, after) in enumerate(itertools.pairwise(turns), 1):
        assert saved[after] >= turn * share * (1 - 1e-9)
        assert after == before + 1 or saved[after - 1] < turn * share


@pytest.mark.parametrize("kind", BLOCKS)
def test_the_slope_of_a_channel_is_a_difference_of_losses(kind):
    whole = network_of(kind)
    widths = widths_of(whole.network).found
    name = f"blocks.1.{READ[kind][0]}"
    images = images_for(whole.network, 4).double()

    def loss(gate: float) -> float:
        state = {key: tensor.double() for key, tensor in whole.weights.items()}
        for cut in widths[name].readers:
            weight = state[f"{cut.layer}.weight"] = state[f"{cut.layer}.weight"].clone()
            weight[:, list(cut.places[1])] *= gate
        with torch.no_grad():
            return float(whole.network.build(state)(images).square().sum())

    module = whole.build().double()
    gates = ChannelGates(module, widths, torch.device("cpu"))
    module(images).square().sum().backward()
    gates.record()
    slope = (loss(1 + 1e-5) - loss(1 - 1e-5)) / 2e-5
    assert float(gates.slopes[name][1]) == pytest.approx(0.05 * slope**2, rel=1e-3)


def test_the_weakest_channels_are_in_the_next_slice():
    whole = network_of("basic")
    widths = widths_of(whole.network).found
    gates = ChannelGates(whole.build(), widths, torch.device("cpu"))
    name = "blocks.0.conv1"
    gates.slopes[name].copy_(torch.arange(16).flip(0))
    costs = UnitCosts(whole.network, widths, "macs")
    for importance, expected in ((None, 0 + 1 + 2 + 3), (24.0, 24 * 6 / 120), (0.0, 0)):
        found = {unit: value for unit, value, _ in gates.slices(costs, {"blocks.0": importance}, 4)}
        assert found == {f"{name}[12-15]": pytest.approx(expected)}
    gates.close([Slice(name, (12, 13, 14, 15))])
    costs.left[name] = 12
    rest = gates.slices(costs, {"blocks.0": 24.0}, 5)
    assert rest[0][:2] == (f"{name}[10-11]", pytest.approx(24 * 9 / 114))  # 10 are left, 2 fives


@pytest.mark.parametrize("cost", ["macs", "params"])
def test_a_goal_takes_the_fewest_units_that_reach_it(learned, cost):
    ranking, meter = rank(learned), Meter(learned.network)
    reach = blocks_for(Goal(cost, 0.5, relative=True), learned.network, ranking, meter, list)
    costs = [
        getattr(count(reduced(learned.network, ranking.first(number))), cost)
        for number in range(len(ranking.names) + 1)
    ]
    whole = costs[0]
    assert reach.removed == next(at for at, each in enumerate(costs) if each <= whole / 2)


def test_a_sweep_stops_where_the_others_have_adapted(learned):
    points = list(sweep(learned, pictures(), rank(learned), device="cpu"))
    assert [point.removed for point in points] == list(learned.path.turns)
    assert [point.cost.macs for point in points] == sorted(
        (point.cost.macs for point in points), reverse=True
    )


class Apart(nn.Module):
    """A block between layers with an inner width that no block has."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 20, 3), nn.ReLU(), nn.Conv2d(20, 8, 1))
        self.block, self.head = Basic(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def apart() -> Checkpoint:
    torch.manual_seed(0)
    return Checkpoint.of(Apart(), (3, 6, 6), notes={"normalize": {"mean": [0] * 3, "std": [1] * 3}})


@pytest.mark.parametrize("cost", ["macs", "params"])
@pytest.mark.parametrize("units", UNITS)
def test_the_least_cost_is_that_at_the_end_of_a_path(apart, units, cost):
    recipe = replace(RECIPE, units=units, cost=cost, warmup=1, steps=1)
    path = learn_gates(apart, random_images(16, (3, 6, 6), 5), recipe, device="cpu").path
    end = reduced(apart.network, path.blocks)
    least = reduced(apart.network, every_unit(apart.network, recipe))
    assert count(least) == count(end)
    assert count(least).params < count(apart).params


@pytest.mark.parametrize("cost", ["macs", "params", "latency"])
@pytest.mark.parametrize("units", UNITS)
def test_compress_reaches_what_its_units_can_and_refuses_less(apart, units, cost, monkeypatch):
    monkeypatch.setattr(meter_module, "latency", by_parameters)
    recipe = CompressionRecipe(
        replace(RECIPE, units=units, warmup=1, steps=1), None, gate_images=16, recalibrate=0
    )
    least = reduced(apart.network, every_unit(apart.network, recipe.gating))
    images = random_images(32, (3, 6, 6), 5)
    limit = Meter(apart.network).cost(cost, least)

    def compressed(amount: float) -> Checkpoint:
        goal = Goal(cost, amount)
        return compress(apart, images, goal, recipe, test=images, device="cpu").checkpoint

    assert Meter(apart.network).cost(cost, compressed(limit).network) == limit
    with pytest.raises(PlanError, match=r"cannot reach .*; choose a target within") as told:
        compressed(limit * 0.99)
    assert ("by removing channels alone" in str(told.value)) is (units == "channels")


def by_parameters(modules, shape, *, batch=1, device="cpu", runs=30, **others):
    """Latencies of a microsecond for each parameter."""
    sizes = {name: sum(p.numel() for p in one.parameters()) for name, one in modules.items()}
    return {
        name: Latency(*(1e-6 * size for _ in range(3)), runs, batch, "cpu")
        for name, size in sizes.items()
    }


def test_what_cannot_be_learned_is_refused():
    whole = draw("resnet14", input_shape=(3, 8, 8))
    for multiple in (0, 33):
        with pytest.raises(TrainingError, match=rf"multiple is {multiple}: expected .* 1 to 32"):
            GateRecipe(multiple=multiple)
    with pytest.raises(PlanError, match="own class cannot hold a narrowed"):
        learn_gates(whole, pictures(), replace(RECIPE, identity_only=True))
    with pytest.raises(PlanError, match="no inner width above one slice of 16 channels"):
        learn_gates(
            network_of("basic"), random_images(32, (3, 6, 6), 5), replace(RECIPE, multiple=16)
        )


def test_a_goal_of_latency_times_narrowed_networks(learned):
    ranking, meter = rank(learned), Meter(learned.network, seconds=0.01)
    times = meter.costs("latency", [reduced(learned.network, ranking.first(3))])
    assert times[0] > 0


def test_a_path_by_latency_measures_a_table_once():
    recipe = replace(RECIPE, cost="latency", blocks=1)
    path = learn_gates(draw("resnet8", input_shape=(3, 8, 8)), pictures(), recipe).path
    assert path.turns[-1] == len(path) > 0


def by_stairs(modules, shape, *, batch=1, device="cpu", runs=100, spread=0.0, **others):
    """Latencies: a second for each block, and one for every 8 channels of its width, or fewer."""
    times = {
        name: sum(
            1 - -layer.out_channels // 8
            for path, layer in one.named_modules()
            if path.endswith("conv1")
        )
        for name, one in modules.items()
    }
    return {
        name: Latency(time, time - spread, time + spread, runs, batch, "cpu")
        for name, time in times.items()
    }


def test_what_a_slice_saves_in_time_is_the_difference_of_two_latencies(monkeypatch):
    monkeypatch.setattr(meter_module, "latency", by_stairs)
    network = network_of("basic").network  # two blocks of 16 channels
    widths, meter = widths_of(network).found, Meter(network)
    costs = UnitCosts(network, widths, "latency", latency_table(meter, widths, 2))
    name, whole = "blocks.0.conv1", meter.cost("latency", network)
    for gone in range(2, 16, 2):
        costs.left = {}
        small = reduced(network, [str(Slice(name, tuple(range(gone))))])
        assert costs.saving(name, gone) == pytest.approx(whole - meter.cost("latency", small))
    assert (
        costs.cost("blocks.0") == 3 == whole - meter.cost("latency", network.without(["blocks.0"]))
    )


@pytest.mark.parametrize("spread", [0.0, 1.0, 10.0])
def test_only_what_stands_out_of_the_noise_is_saved(spread, monkeypatch):
    monkeypatch.setattr(meter_module, "latency", functools.partial(by_stairs, spread=spread))
    network = network_of("basic").network
    widths = widths_of(network).found
    costs = UnitCosts(network, widths, "latency", latency_table(Meter(network), widths, 4))
    sure = 1 - 2 * math.sqrt(2) * 0.93 * 2 * spread / math.sqrt(100)
    assert costs.saving("blocks.0.conv1", 8) == pytest.approx(max(sure, 0))
    assert costs.cost("blocks.0") == 3


@pytest.mark.parametrize(("cost", "channels"), [("latency", 8), ("macs", 2)])
def test_a_slice_has_as_many_channels_as_save_time(cost, channels, monkeypatch):
    monkeypatch.setattr(meter_module, "latency", by_stairs)
    whole = network_of("basic")
    recipe = replace(RECIPE, cost=cost, multiple=2)
    units = Units(whole.network, recipe, whole.build(), torch.device("cpu"), Meter(whole.network))
    for slopes in units.gates.slopes.values():
        slopes.copy_(torch.arange(16.0))
    found = units.slices({"blocks.0": 1.0, "blocks.1": 1.0}, ())
    gone = tuple(range(channels))
    assert [unit.name for unit in found] == [
        str(Slice(f"blocks.{at}.conv1", gone)) for at in (0, 1)
    ]
    share = sum(gone) / sum(range(16))
    assert [unit.importance for unit in found] == [pytest.approx(share)] * 2


def test_slices_that_save_no_time_go_after_the_blocks(apart, monkeypatch):
    def no_time(meter, widths, multiple):
        homes = [*meter.whole.removable, *(width.home for width in widths.values())]
        return {home: [(0.0, 0.0), (0.1, 1.0), (1.0, 1.0)] for home in homes}

    monkeypatch.setattr(units_module, "latency_table", no_time)
    recipe = replace(RECIPE, units="both", cost="latency", warmup=1, steps=1)
    path = learn_gates(apart, random_images(16, (3, 6, 6), 5), recipe, device="cpu").path
    assert path.blocks[0] == "block"
    end = reduced(apart.network, every_unit(apart.network, recipe))
    assert count(reduced(apart.network, path.blocks)) == count(end)


def test_a_resumed_run_keeps_the_latencies_of_its_beginning(tmp_path, monkeypatch):
    recipe, whole = replace(RECIPE, cost="latency"), draw("resnet14", input_shape=(3, 8, 8))
    monkeypatch.setattr(meter_module, "latency", by_parameters)
    expected = learn_gates(whole, pictures(), recipe, device="cpu")

    def stop(moment):
        if moment.gone == 2:
            raise KeyboardInterrupt

    how = {"device": "cpu", "state": tmp_path / "state.pt"}
    with pytest.raises(KeyboardInterrupt):
        learn_gates(whole, pictures(), recipe, watch=stop, **how)
    monkeypatch.setattr(meter_module, "latency", None)  # nothing is measured again
    resumed = learn_gates(whole, pictures(), recipe, resume=True, **how)
    assert resumed.path.records == expected.path.records


class Keywords(Basic):
    """A block whose layers are called by keyword."""

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.bn1(input=self.conv1(input=x)))
        return F.relu(x + self.bn2(input=self.conv2(input=inner)))


def test_layers_that_are_called_by_keyword_are_as_any_others():
    paths = []
    for block in (Basic, Keywords):
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(3, 8, 1), block(), block(), nn.Flatten(), nn.Linear(288, 5)
        )
        notes = {"normalize": {"mean": [0] * 3, "std": [1] * 3}}
        whole = Checkpoint.of(module, (3, 6, 6), notes=notes)
        paths.append(learn_gates(whole, random_images(16, (3, 6, 6), 5), RECIPE, device="cpu").path)
    assert paths[0].records == paths[1].records
