"""Gates for a network that was trained without them: added, and learned along a path of removals.

The network's own weights stay as they are. What is learned are the gates (Savarese, Mazza,
Figueiredo, 2016, https://arxiv.org/abs/1611.01260) and, unless they are frozen, the scales and
shifts of its normalisation layers. Block after block is removed, the one whose gate matters least
first, and the others adapt before the next removal. What they have learned by then is kept: it is
small.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path as FilePath
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx

from gatepruner.errors import PlanError, TrainingError
from gatepruner.images.images import Images
from gatepruner.images.normalization import Normalization
from gatepruner.images.views import mirrored
from gatepruner.learning.learner import Learner
from gatepruner.learning.moments import GateMoment
from gatepruner.learning.recipes import GateRecipe
from gatepruner.learning.running import carry_out
from gatepruner.measuring.inputs import check_fit, check_size
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.edits import settle_in_place
from gatepruner.networks.network import Network
from gatepruner.networks.norms import scales_and_shifts, statistics, use_batch_statistics
from gatepruner.networks.path import Path, Removal
from gatepruner.pruning.meter import savings
from gatepruner.pruning.surgery import add_gates

Savings = Mapping[str, float] | None


def learn_gates(
    checkpoint: Checkpoint,
    data: Images,
    recipe: GateRecipe | None = None,
    *,
    normalization: Normalization | None = None,
    savings: Savings = None,
    device: str | torch.device = "auto",
    state: str | FilePath | None = None,
    resume: bool = False,
    watch: Callable[[GateMoment], None] = lambda moment: None,
    on_stop: Callable[[], None] = lambda: None,
) -> Checkpoint:
    """Learn the gates of a network with its weights frozen, and the order of removals.

    Args:
        checkpoint: a trained network; gates are added where it has none.
        data: training images of the network's size; labels are used only if the recipe says so.
        recipe: how to learn.
        normalization: instead of the one that the checkpoint records.
        savings: what the removal of each block saves, in the recipe's cost, if it has been
            measured already; see `gatepruner.savings`.
        device: where to compute; in bf16 where that is faster.
        state: file to keep the run's state in, so that it can be resumed.
        resume: whether to continue from that state; the learning rates may be changed.
        watch: called now and then, and whenever a removal has been recorded.
        on_stop: called as soon as SIGINT or SIGTERM asks the run to stop; it stops after the step
            under way, with `KeyboardInterrupt`.

    Returns:
        The same network, its own weights unchanged, with the path: `rank` orders its blocks as
        they were removed, and `follow` removes them with what was learned by then.

    Raises:
        DataError: the images do not fit the network.
        PlanError: the network has fewer removable blocks than the recipe removes.
        TrainingError: loss or gates are not finite, every gate has closed, or there is no such
            run to resume.
    """
    recipe = recipe or GateRecipe()
    gated = add_gates(checkpoint)
    (check_fit if recipe.labels else check_size)(gated.network, data)
    there = len(_candidates(gated.network, recipe))
    if not there or (recipe.blocks is not None and recipe.blocks > there):
        only = " with an identity shortcut" if recipe.identity_only else ""
        raise PlanError(
            f"cannot remove {recipe.blocks or 'any'} blocks: {gated.network} has only {there} "
            f"removable ones{only}"
        )
    recipe = replace(recipe, blocks=recipe.blocks or there)
    run = _Run(gated, data, recipe, savings, normalization=normalization, device=device)
    carry_out(run, state=state, resume=resume, watch=watch, on_stop=on_stop)
    return run.result()


def choose(gates: Tensor, slopes: Tensor, costs: Sequence[float]) -> tuple[int, float]:
    """The index and score of the block that matters least for what it costs; of equals the first.

    It matters by the square of what closing its gate changes in the loss, to first order.

    Args:
        gates: `(B,)`, g = relu(k) of every block.
        slopes: `(B,)`, the squared slopes of the loss in them.
        costs: what every block costs.
    """
    matters = (gates.square() * slopes).tolist()
    scores = [one / cost for one, cost in zip(matters, costs, strict=True)]
    index = min(range(len(scores)), key=scores.__getitem__)
    return index, scores[index]


class _Run(Learner[GateMoment]):
    """The learning of gates under way."""

    recipe: GateRecipe

    def __init__(
        self, start: Checkpoint, data: Images, recipe: GateRecipe, saved: Savings, **options: Any
    ) -> None:
        options = {**options, "teacher": None if recipe.labels else start}
        super().__init__(start, data, recipe, mirrored if recipe.mirror else None, **options)
        self.saved = saved
        self.removals: list[Removal] = []
        self.good: dict[str, Any] = {}  # the snapshot to return to if numbers become infinite
        named = dict(self.root.named_parameters(remove_duplicate=False))
        for parameter in named.values():
            parameter.requires_grad_(False)
        keys = {name: start.network.gate_key(name) for name in start.network.edits.gated}
        self.gates = {name: named[key].requires_grad_() for name, key in keys.items()}
        learned = scales_and_shifts(self.root) if recipe.norm_learning_rate else ()
        norms = {key: named[key].requires_grad_() for key in learned}
        buffers = dict(self.root.named_buffers())
        kept = {key: buffers[key] for pair in statistics(self.root).values() for key in pair}
        self.tensors = {**{key: named[key] for key in keys.values()}, **norms, **kept}
        groups = [{"params": list(it)} for it in (self.gates.values(), norms.values()) if it]
        self.optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
        self.slopes = torch.zeros(len(self.gates), device=self.device)
        self._rebuild()

    @cached_property
    def costs(self) -> dict[str, float]:
        """What each gated block costs, 1 on average."""
        network, recipe = self.start.network, self.recipe
        if recipe.cost == "none":
            return dict.fromkeys(network.edits.gated, 1.0)
        saved = self.saved or savings(network, recipe.cost, self.device, recipe.latency_batch)
        mean = sum(max(one, 0.0) for one in saved.values()) / max(len(saved), 1)
        return {
            name: max(saved.get(name, mean) / mean, 0.05) if mean else 1.0
            for name in network.edits.gated
        }

    @property
    def until(self) -> int:
        """Steps until the next block is removed, or what was learned without the last is kept."""
        return self.recipe.warmup + len(self.removals) * self.recipe.steps

    @property
    def finished(self) -> bool:
        """Whether all removals are done, and what is left has adapted."""
        enough = len(self.removals) == self.recipe.blocks or not self.live
        return enough and self.done == self.until

    def step(self) -> GateMoment | None:
        """Take one step, after a removal if one is due."""
        if self.done == self.until or not self.good:
            self.good = self._copy()
        if self.done == self.until:
            self._remove_next()
        self.compute_gradients()
        self._weigh()
        share = len(self.removals) / len(self.gates)
        rates = (self.recipe.learning_rate, self.recipe.norm_learning_rate * share)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=False):
            group["lr"] = rate
        self.update()
        return self._completed() if self.done == self.until else None

    def _remove_next(self) -> None:
        """Remove the block whose gate matters least for what it costs."""
        gates = torch.stack([self.gates[name].detach() for name in self.live]).relu()
        if len(self.live) > 1 and not gates.any():
            raise TrainingError(
                f"every gate has closed after {len(self.removals)} blocks: lower the penalty "
                f"({self.recipe.penalty}) or the learning rate ({self.recipe.learning_rate})"
            )
        names = list(self.gates)
        slopes = self.slopes[[names.index(name) for name in self.live]]
        index, score = choose(gates, slopes, [self.costs[name] for name in self.live])
        gate, loss = gates[index].item(), math.nan  # which is known once the others have adapted
        self.removals.append(Removal(self.live[index], gate, score, loss, self.done, {}))
        self.sums.zero_()
        self._rebuild()

    def _rebuild(self) -> None:
        """Learn on the network without the blocks removed so far."""
        network = self.start.network.without([removal.block for removal in self.removals])
        self.left, self.live = network.state().keys(), _candidates(network, self.recipe)
        self.module = module = fx.GraphModule(self.root, network.graph())
        settle_in_place(module)
        use_batch_statistics(module)

    def _weigh(self) -> None:
        """Note how steep the loss is in every gate, then add the penalty's slope."""
        for index, (name, gate) in enumerate(self.gates.items()):
            if gate.grad is not None:
                self.slopes[index].lerp_(gate.grad.square(), 0.05)
                gate.grad += self.recipe.penalty * self.costs[name] * (gate > 0)

    def _completed(self) -> GateMoment | None:
        """Keep what was learned without the block removed last, if there is one."""
        if not self.sound():
            done = max(len(self.removals) - 1, 0)
            self.restore(self.good)
            raise TrainingError(
                f"the loss or a gate is NaN or infinite after {done} blocks: resume with a lower "
                f"learning rate ({self.recipe.learning_rate}) or norm learning rate "
                f"({self.recipe.norm_learning_rate})"
            )
        if not self.removals:
            return None
        tensors = {key: self.tensors[key] for key in self.tensors if key in self.left}
        weights = {key: tensor.detach().cpu().clone() for key, tensor in tensors.items()}
        moment = self.moment()
        self.removals[-1] = replace(self.removals[-1], loss=moment.loss, weights=weights)
        return moment

    def moment(self) -> GateMoment:
        """Where the run is; waits for the device."""
        adapting, seconds = self.done < self.until, time.monotonic() - self.started
        last = None if adapting or not self.removals else self.removals[-1]
        gone, blocks = max(len(self.removals) - adapting, 0), self.recipe.blocks or 0
        steps = self.recipe.warmup + blocks * self.recipe.steps
        total, _, count = self.sums.tolist()
        moment = GateMoment(self.done, steps, gone, blocks, total / count, seconds)
        return replace(moment, block=last.block, gate=last.gate) if last else moment

    def identity(self) -> dict[str, Any]:
        """What has to be the same for the run to be resumed: all but the learning rates."""
        return {
            "network": self.start.fingerprint,
            "recipe": asdict(replace(self.recipe, learning_rate=1.0, norm_learning_rate=1.0)),
            "learning of norms": self.recipe.norm_learning_rate > 0,
            **super().identity(),
        }

    def snapshot(self) -> dict[str, Any]:
        """The run as tensors and plain values; later steps change the tensors."""
        removals = [{**it.record(), "weights": dict(it.weights)} for it in self.removals]
        own = {"slopes": self.slopes, "costs": self.costs, "removals": removals}
        return {**super().snapshot(), **own}

    def _copy(self) -> dict[str, Any]:
        """A snapshot that no step changes; the removals, which none can, are not copied."""
        snapshot = self.snapshot()
        removals = snapshot.pop("removals")
        return {**copy.deepcopy(snapshot), "removals": removals}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Return to a snapshot of the same run."""
        super().restore(snapshot)
        self.slopes.copy_(snapshot["slopes"])
        self.costs = snapshot["costs"]
        self.removals = [Removal(**record) for record in snapshot["removals"]]
        self._rebuild()

    def result(self) -> Checkpoint:
        """The whole network with the path that was learned."""
        done = {"gates_learned": self.data.source, "images": len(self.data)}
        notes = self.start.noting(**done, recipe=asdict(self.recipe))
        notes = {**notes, "normalize": self.normalize}
        path = [replace(it, weights=MappingProxyType(dict(it.weights))) for it in self.removals]
        return replace(self.start, path=Path(tuple(path)), notes=notes)


def _candidates(network: Network, recipe: GateRecipe) -> tuple[str, ...]:
    """The gated blocks that may be removed."""
    blocks = [block for block in network.blocks if block.gated and block.removable]
    return tuple(block.name for block in blocks if block.identity or not recipe.identity_only)
