"""Adding gates to a trained network and learning them along a path of removals.

The network's own weights are frozen. Learning changes the gates (Savarese, Mazza, Figueiredo,
2016, https://arxiv.org/abs/1611.01260) and, unless they are frozen too, the scales and shifts of
normalisation layers. Blocks are removed one by one, the least important first, and the others
adapt after each removal. The path keeps what they have learned by then, which is small.
"""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path as FilePath
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from gatepruner import processes
from gatepruner.errors import PlanError, TrainingError
from gatepruner.images.examples import Examples
from gatepruner.images.normalization import Normalization
from gatepruner.images.views import mirrored
from gatepruner.learning.channel_gates import Unit
from gatepruner.learning.gate_state import GateState, of_removals, removals_in
from gatepruner.learning.learner import Learner
from gatepruner.learning.moments import GateMoment
from gatepruner.learning.recipes import GateRecipe
from gatepruner.learning.running import carry_out
from gatepruner.learning.teaching import KeptAnswers, worth_keeping
from gatepruner.learning.units import Units, candidates, choose, least, meter_of, slicable
from gatepruner.measuring.agreement import Answers, answering
from gatepruner.measuring.device import pick_device
from gatepruner.measuring.inputs import check_fit, check_size
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.features import features_of
from gatepruner.networks.network import Network
from gatepruner.networks.norms import scales_and_shifts, statistics, use_batch_statistics
from gatepruner.networks.packing import NOTHING, pack
from gatepruner.networks.path import Path, Removal
from gatepruner.networks.slices import sorted_out
from gatepruner.pruning.meter import Meter
from gatepruner.pruning.surgery import add_gates


def learn_gates(
    checkpoint: Checkpoint,
    data: Examples,
    recipe: GateRecipe | None = None,
    *,
    normalization: Normalization | None = None,
    meter: Meter | None = None,
    device: str | torch.device = "auto",
    state: str | FilePath | None = None,
    resume: bool = False,
    watch: Callable[[GateMoment], None] = lambda moment: None,
    on_stop: Callable[[], None] = lambda: None,
) -> Checkpoint:
    """Learn the gates of a network and the order in which to remove its blocks.

    Several processes share the images: each passes all of them, and takes its part.

    Args:
        checkpoint: a trained network; gates are added if it has none.
        data: training images of the network's size; labels are used only if the recipe says so.
        recipe: how to learn.
        normalization: replaces the one that the checkpoint records.
        meter: measures the costs of blocks, and knows those that are measured already; by default
            one as the recipe says.
        device: where to compute.
        state: file for the run's state, so that the run can be resumed.
        resume: whether to continue from that state; learning rates, `amp` and `micro_batch_size`
            may differ.
        watch: called after every removal, and regularly in between.
        on_stop: called as soon as a signal that asks to stop arrives; the run finishes its step and
            raises `KeyboardInterrupt`.

    Returns:
        The network with gates, unchanged weights and a path: `rank` returns the blocks in the
        order of their removal, and `follow` removes them with the weights learned after it.

    Raises:
        DataError: the images do not fit the network.
        DeviceError: the recipe asks for bf16, which the device does not have.
        OutOfMemoryError: a step does not fit into memory.
        ProcessError: the processes do different things, or one of them has ended.
        PlanError: the recipe removes more blocks than the network can lose.
        TrainingError: the loss or a gate is not finite, every gate has closed, or there is no
            such run to resume.
    """
    recipe = recipe or GateRecipe()
    gated = add_gates(checkpoint)
    (check_fit(gated, data) if recipe.labels else check_size(gated.network, data))
    check_plan(gated.network, recipe, device)
    meter = meter or meter_of(checkpoint.network, recipe, pick_device(device))
    blocks = recipe.blocks or len(candidates(gated.network, recipe))
    recipe = replace(recipe, blocks=blocks)
    run = _Run(gated, data, recipe, meter, normalization=normalization, device=device)
    carry_out(run, state=state, resume=resume, watch=watch, on_stop=on_stop)
    return run.result()


def check_plan(network: Network, recipe: GateRecipe, device: str | torch.device) -> None:
    """Refuse to learn a path that a network cannot have, or whose costs cannot be measured.

    Args:
        network: with gates.
        recipe: how to learn.
        device: where to compute.

    Raises:
        EngineError: the engine, or Torch-Pruning, is missing.
        PlanError: the network has fewer removable blocks, or no channels that can go.
    """
    removable = len(candidates(network, recipe))
    if not removable or (recipe.blocks is not None and recipe.blocks > removable):
        kind = " for the library's own class" if recipe.identity_only else ""
        raise PlanError(
            f"cannot remove {recipe.blocks or 'any'} blocks: {network} has only {removable} "
            f"removable ones{kind}"
        )
    if recipe.units != "blocks":
        slicable(network, recipe)
    if recipe.cost == "latency":
        meter_of(network, recipe, device).check()


class _Run(Learner[GateMoment]):
    """A run that learns gates."""

    state = GateState
    recipe: GateRecipe

    def __init__(
        self, start: Checkpoint, data: Examples, recipe: GateRecipe, meter: Meter, **options: Any
    ) -> None:
        options = {**options, "teacher": None if recipe.labels else start}
        super().__init__(start, data, recipe, mirrored if recipe.mirror else None, **options)
        self.meter = meter
        self.removals: list[Removal] = []
        self.packed = NOTHING  # the weights learned after each removal
        self.good: dict[str, Any] = {}  # the snapshot to restore if a number is not finite
        named = dict(self.root.named_parameters(remove_duplicate=False))
        for parameter in named.values():
            parameter.requires_grad_(False)
        keys = {name: start.network.gate_key(name) for name in start.network.edits.gated}
        self.gates = {name: named[key].requires_grad_() for name, key in keys.items()}
        norm_keys = scales_and_shifts(self.root) if recipe.norm_learning_rate else ()
        norms = {key: named[key].requires_grad_() for key in norm_keys}
        buffers = dict(self.root.named_buffers())
        running = {key: buffers[key] for pair in statistics(self.root).values() for key in pair}
        self.running = list(running.values())
        self.tensors = {**{key: named[key] for key in keys.values()}, **norms, **running}
        groups = [list(self.gates.values()), list(norms.values())]
        self.optimizer = torch.optim.Adam(
            [{"params": group} for group in groups if group], betas=(0.9, 0.99)
        )
        self.slopes = torch.zeros(len(self.gates), device=self.device)
        self.kept = self._kept()
        self.units = Units(start.network, recipe, self.root, self.device, meter)
        self._rebuild()

    def _kept(self) -> KeptAnswers | None:
        """The teacher's answers, if they are kept."""
        recipe, network = self.recipe, self.start.network
        fixed = self.teacher_module is not None and self.data.in_memory and not self.data.prepared
        features = features_of(network) if self.matches else None
        mirror = self.view is not None and self.data.shape[0] == 3
        steps = recipe.warmup + (recipe.blocks or 0) * recipe.steps
        seen = steps * recipe.batch_size // processes.count()
        shape = features.shape if features else None
        logits = max(network.num_classes, 2)
        if not fixed or not worth_keeping(len(self.data), 1 + mirror, seen, logits, shape):
            return None
        groups = torch.split(self._order(0), recipe.batch_size)  # the first steps need one each
        return KeptAnswers(self.data, groups, super()._taught, mirror=mirror)

    def _taught(self, pixels: Tensor) -> Answers:
        if self.kept is None:
            return super()._taught(pixels)
        size = self.recipe.batch_size
        epoch, number = divmod(self.done, len(self.data) // size)
        return self.kept(self._order(epoch)[number * size :][:size][self.mine], pixels)

    @cached_property
    def costs(self) -> dict[str, float]:
        """The cost of each gated block, relative to the mean."""
        network, recipe = self.start.network, self.recipe
        if recipe.cost == "none":
            return dict.fromkeys(network.edits.gated, 1.0)
        saved = self.meter.savings(recipe.cost)
        mean = sum(max(saving, 0.0) for saving in saved.values()) / max(len(saved), 1)
        return {
            name: max(saved.get(name, mean) / mean, 0.05) if mean else 1.0
            for name in network.edits.gated
        }

    @property
    def turns(self) -> int:
        """How often units have been removed: one block, or several units."""
        return len({removal.step for removal in self.removals})

    @property
    def next_removal(self) -> int:
        """The step at which the others have adapted to the last removal and the next one is due."""
        return self.recipe.warmup + self.turns * self.recipe.steps

    @property
    def finished(self) -> bool:
        if self.done != self.next_removal:
            return False
        left = self.candidates or self._slices(self._importances())
        return self.turns == self.recipe.blocks or not left

    def step(self) -> GateMoment | None:
        if self.done == self.next_removal or not self.good:
            # Later steps change what is copied; removals never change.
            self.good = {
                **copy.deepcopy(self._changing()),
                **of_removals(self.removals, self.packed),
            }
        if self.done == self.next_removal:
            (self._remove_next if self.recipe.units == "blocks" else self._remove_several)()
        self.compute_gradients()
        self._record_slopes()
        self.units.gates.record()
        share = self.turns / len(self.gates)
        rates = (self.recipe.learning_rate, self.recipe.norm_learning_rate * share)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=False):
            group["lr"] = rate
        self.update()
        return self._completed() if self.done == self.next_removal else None

    def _remove_next(self) -> None:
        """Remove the block that is least important per cost."""
        gates = torch.stack([self.gates[name].detach() for name in self.candidates]).relu()
        if len(self.candidates) > 1 and not gates.any():
            raise TrainingError(
                f"every gate has closed after {len(self.removals)} blocks: lower the penalty "
                f"({self.recipe.penalty}) or the learning rate ({self.recipe.learning_rate})"
            )
        names = list(self.gates)
        slopes = self.slopes[[names.index(name) for name in self.candidates]]
        costs = [self.costs[name] for name in self.candidates]
        index, score = processes.agreed(lambda: choose(gates, slopes, costs))
        gate, loss = gates[index].item(), math.nan  # known when the other blocks have adapted
        self.removals.append(Removal(self.candidates[index], gate, score, loss, self.done, {}))
        self.sums.zero_()
        self._rebuild()

    @property
    def shared(self) -> list[Tensor]:
        """Gradients of gates and norms, and the statistics of batch norm."""
        learned = (
            parameter for group in self.optimizer.param_groups for parameter in group["params"]
        )
        every = [*learned, *self.units.gates.gates.values()]
        gradients = [parameter.grad for parameter in every if parameter.grad is not None]
        return [*gradients, *self.running]

    def _remove_several(self) -> None:
        """Remove the units that are least important per cost, until they save a block's worth.

        What a turn saves beyond that counts for the next one, so that a path has as many turns as
        there are blocks.
        """
        values, aim = self._importances(), (self.turns + 1) * self.units.share
        while units := [*self._blocks(values), *self._slices(values)]:
            unit = processes.agreed(functools.partial(least, units))
            gated = unit.name in self.gates
            gate = self.gates[unit.name].detach().relu().item() if gated else 1.0
            self.removals.append(Removal(unit.name, gate, unit.price, math.nan, self.done, {}))
            self._settle()
            if self.units.saved(self._gone()) >= aim:
                break
        self.sums.zero_()
        self._rebuild()

    def _blocks(self, values: Mapping[str, float]) -> list[Unit]:
        """The blocks that may be removed, their importances and what they save now."""
        if self.recipe.units == "channels":
            return []
        costs = self.units.costs
        return [Unit(name, values[name], costs.cost(name)) for name in self.candidates]

    def _importances(self) -> dict[str, float]:
        """The importance of every gated block."""
        gates = torch.stack([gate.detach().relu() for gate in self.gates.values()])
        return dict(zip(self.gates, (gates.square() * self.slopes).tolist(), strict=True))

    def _slices(self, values: Mapping[str, float]) -> list[Unit]:
        """The slices that may be removed, their importances and what they save now."""
        return self.units.slices(values, self._gone())

    def _gone(self) -> list[str]:
        """The blocks removed so far."""
        blocks, _ = sorted_out(removal.block for removal in self.removals)
        return list(blocks)

    def _settle(self) -> Network:
        """Close the channels removed so far; returns the network without the blocks removed."""
        blocks, slices = sorted_out(removal.block for removal in self.removals)
        self.units.close(slices)
        network = self.start.network.without(blocks)
        self.keys, self.candidates = network.state().keys(), candidates(network, self.recipe)
        if self.recipe.units == "channels":
            self.candidates = ()
        return network

    def _rebuild(self) -> None:
        """Build the module without the units removed so far."""
        network = self._settle()
        self.module = answering(self.root, network, self.matches)
        use_batch_statistics(self.module)

    def _record_slopes(self) -> None:
        """Update the mean squared gradient of every gate, then add the penalty's gradient."""
        for index, (name, gate) in enumerate(self.gates.items()):
            if gate.grad is not None:
                self.slopes[index].lerp_(gate.grad.square(), 0.05)
                gate.grad += self.recipe.penalty * self.costs[name] * (gate > 0)

    def _completed(self) -> GateMoment | None:
        """Record the weights learned after the last removal, if there was one."""
        if not self.sound():
            removed = max(len(self.removals) - 1, 0)
            self.restore(self.good)
            raise TrainingError(
                f"the loss or a gate is NaN or infinite after {removed} blocks: resume with a "
                f"lower learning rate ({self.recipe.learning_rate}) or norm learning rate "
                f"({self.recipe.norm_learning_rate})"
            )
        if not self.removals:
            return None
        tensors = {key: tensor for key, tensor in self.tensors.items() if key in self.keys}
        weights = {key: tensor.detach().cpu().clone() for key, tensor in tensors.items()}
        moment = self.moment()
        turn = [removal for removal in self.removals if removal.step == self.removals[-1].step]
        turn = [replace(removal, loss=moment.loss) for removal in turn]
        self.removals[-len(turn) :] = [*turn[:-1], replace(turn[-1], weights=weights)]
        self.packed = pack([*({} for _ in turn[1:]), weights], self.packed)
        return moment

    def moment(self) -> GateMoment:
        adapting, seconds = self.done < self.next_removal, time.monotonic() - self.started
        last = None if adapting or not self.removals else self.removals[-1]
        removed, blocks = max(self.turns - adapting, 0), self.recipe.blocks or 0
        steps = self.recipe.warmup + blocks * self.recipe.steps
        total, _, count = self.sums.tolist()
        moment = GateMoment(self.done, steps, removed, blocks, total / count, seconds)
        return replace(moment, block=last.block, gate=last.gate) if last else moment

    def identity(self) -> dict[str, Any]:
        """See `Learner.identity`; learning rates may differ."""
        return {
            "network": self.start.fingerprint,
            "recipe": replace(self.recipe, learning_rate=1.0, norm_learning_rate=1.0).lasting,
            "learning of norms": self.recipe.norm_learning_rate > 0,
            **super().identity(),
        }

    def snapshot(self) -> dict[str, Any]:
        return {**self._changing(), **of_removals(self.removals, self.packed)}

    def _changing(self) -> dict[str, Any]:
        """What of a snapshot later steps change."""
        own = {"slopes": self.slopes, "costs": self.costs, "table": self.units.table}
        return {**super().snapshot(), **own, "channel_slopes": self.units.gates.slopes}

    def restore(self, snapshot: dict[str, Any]) -> None:
        super().restore(snapshot)
        self.slopes.copy_(snapshot["slopes"])
        self.units.gates.restore(snapshot["channel_slopes"])
        self.costs, self.units.table = snapshot["costs"], snapshot["table"]
        self.removals, self.packed = removals_in(snapshot)
        self._rebuild()

    def result(self) -> Checkpoint:
        """The whole network with the learned path."""
        notes = self.start.noting(
            gates_learned=self.data.source,
            images=len(self.data),
            recipe=asdict(self.recipe),
            precision=self.precision,
        )
        path = Path(
            tuple(
                replace(removal, weights=MappingProxyType(dict(removal.weights)))
                for removal in self.removals
            )
        )
        return replace(self.start, path=path, notes={**notes, **self.preprocessing})
