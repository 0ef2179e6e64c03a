"""Gates for a network that was trained without them: added, and learned along a path of removals.

The network's own weights stay as they are. What is learned are the gates (Savarese, Mazza,
Figueiredo, 2016, https://arxiv.org/abs/1611.01260) and, where wanted, the scales and shifts of
its normalisation layers. Block after block goes, the one whose gate matters least first, and what
is left adapts before the next one goes. Every state on that path is kept: it is small.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path as FilePath
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from gatepruner.errors import PlanError, TrainingError
from gatepruner.images.images import Images
from gatepruner.images.normalization import Normalization
from gatepruner.learning.running import carry_out, mixed, shuffled, whole_step
from gatepruner.learning.training import distance
from gatepruner.measuring.cost import count
from gatepruner.measuring.device import laid_out, learns_fast, pick_device, place, precision
from gatepruner.measuring.inputs import check_fit, check_size, normalization_of
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.edits import settle_in_place
from gatepruner.networks.graph import Mode, kind
from gatepruner.networks.network import Network
from gatepruner.networks.norms import BATCH_NORM, scales_and_shifts, statistics
from gatepruner.networks.path import Path, Removal
from gatepruner.pruning.meter import savings

COSTS = ("none", "params", "macs", "latency")


@dataclass(frozen=True)
class GateRecipe:
    """How gates are learned.

    Attributes:
        blocks: how many are to go; all that can by default.
        identity_only: whether only blocks with an identity shortcut may go: they vanish whole, and
            torchvision's stock ResNet can load what is left.
        warmup: steps before the first one goes.
        steps: steps in which the others adapt after each.
        batch_size: images in one step.
        learning_rate: of the gates (Adam).
        norm_learning_rate: of the scales and shifts of normalisation layers, times the share of
            the blocks that are gone; 0 leaves them.
        penalty: of every open gate, in the loss.
        cost: what a block costs, `"macs"`, `"params"`, `"latency"` or `"none"`: penalty and order
            are weighted by it.
        latency_batch: images in one pass when latency is measured.
        labels: whether to learn from labels; else from the whole network's own logits, so that
            images without labels will do.
        temperature: that logits are divided by when they are compared.
        mirror: whether images in colour are mirrored at random.
        seed: of all that is random.
    """

    blocks: int | None = None
    identity_only: bool = False
    warmup: int = 60
    steps: int = 50
    batch_size: int = 128
    learning_rate: float = 0.02
    norm_learning_rate: float = 0.02
    penalty: float = 0.01
    cost: str = "none"
    latency_batch: int = 1
    labels: bool = False
    temperature: float = 4.0
    mirror: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.cost not in COSTS:
            raise TrainingError(f"unknown cost {self.cost!r}: expected {', '.join(COSTS)}")
        least = {"blocks": 1, "warmup": 0, "steps": 1, "batch_size": 2, "latency_batch": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise TrainingError(f"{name} is {value}: expected at least {low}")
        for name in ("learning_rate", "norm_learning_rate", "penalty", "temperature"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise TrainingError(f"{name} is {value}: expected a number from 0 up")
        for name in ("learning_rate", "temperature"):
            if getattr(self, name) == 0:
                raise TrainingError(f"{name} is 0: expected a number above 0")


@dataclass(frozen=True)
class GateMoment:
    """Where the learning of gates is.

    Attributes:
        step: steps done.
        steps: steps in all.
        gone: blocks that have gone so far.
        blocks: blocks that are to go.
        loss: mean since the last block went, penalty left out.
        seconds: since the run began, or was resumed.
        block: the block whose state has just been recorded, if one has.
        gate: what its gate was when it went.
    """

    step: int
    steps: int
    gone: int
    blocks: int
    loss: float
    seconds: float
    block: str | None = None
    gate: float | None = None


def add_gates(checkpoint: Checkpoint) -> Checkpoint:
    """Put a residual gate of k = 1 into every block: the same function, bit for bit.

    Args:
        checkpoint: a network with its weights; one that has gates stays as it is.

    Raises:
        PlanError: the network has no block for a gate.
    """
    if checkpoint.network.edits.gated:
        return checkpoint
    network = checkpoint.network.with_gates()
    if not network.edits.gated:
        raise PlanError(f"{network} has no block with both branch and shortcut: nothing to gate")
    ones = {key: torch.ones(()) for key in map(network.gate_key, network.edits.gated)}
    weights = {**ones, **checkpoint.weights}
    weights = {key: weights[key] for key in network.state()}
    notes = checkpoint.noting(gates_added=len(ones))
    return replace(checkpoint, network=network, weights=MappingProxyType(weights), notes=notes)


def learn_gates(
    checkpoint: Checkpoint,
    data: Images,
    recipe: GateRecipe | None = None,
    *,
    normalization: Normalization | None = None,
    device: str | torch.device = "auto",
    state: str | FilePath | None = None,
    resume: bool = False,
    watch: Callable[[GateMoment], None] = lambda moment: None,
) -> Checkpoint:
    """Learn the gates of a network with its weights frozen, and the order in which blocks go.

    Args:
        checkpoint: a trained network; gates are added where it has none.
        data: training images of the network's size; labels are used where the recipe says so.
        recipe: how.
        normalization: instead of the one that the checkpoint records.
        device: where to compute; in bf16 where that is faster.
        state: file to keep the run's state in, so that it can be resumed.
        resume: whether to go on from that state; the learning rates may be others.
        watch: called now and then, and whenever a block's state has been recorded.

    Returns:
        The same network, its own weights unchanged, with the path: `rank` orders its blocks as
        they went, and `follow` removes them with what was learned meanwhile.

    Raises:
        DataError: the images do not fit the network.
        PlanError: fewer blocks can go than are to.
        TrainingError: the loss is no number any more, every gate has closed, or there is no
            such run to resume.
    """
    recipe = recipe or GateRecipe()
    gated = add_gates(checkpoint)
    (check_fit if recipe.labels else check_size)(gated.network, data)
    there = len(_candidates(gated.network, recipe))
    if not there or (recipe.blocks is not None and recipe.blocks > there):
        raise PlanError(
            f"{recipe.blocks or 'all'} blocks are to go: {gated.network} has {there} that can"
        )
    if len(data) < recipe.batch_size:
        raise TrainingError(
            f"{data.source} has {len(data)} images: a batch of {recipe.batch_size} was expected "
            "to fit; lower --batch-size"
        )
    recipe = replace(recipe, blocks=recipe.blocks or there)
    chosen = normalization_of(gated.notes, data.shape[0], normalization)
    device = pick_device(device) if isinstance(device, str) else device
    run = _Run(gated, data.to(device), recipe, chosen, device)
    carry_out(run, device=device, state=state, resume=resume, watch=watch)
    return run.result()


@dataclass
class _Run:
    """The learning of gates under way."""

    whole: Checkpoint
    data: Images
    recipe: GateRecipe
    normalization: Normalization
    device: torch.device
    done: int = 0
    records: list[dict[str, Any]] = field(default_factory=list)
    states: list[dict[str, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.network = self.whole.network
        self.fast = learns_fast(self.device, count(self.network).macs)
        self.root = self.whole.build()
        place(self.root, self.device, self.fast)
        self.keys = {name: self.network.gate_key(name) for name in self.network.edits.gated}
        gates, norms = self._learned()
        buffers = dict(self.root.named_buffers())
        kept = [key for keys in statistics(self.root).values() for key in keys]
        self.small = {**gates, **norms, **{key: buffers[key] for key in kept}}
        groups = [{"params": list(it.values())} for it in (gates, norms) if it]
        self.optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
        self.slopes = torch.zeros(len(self.keys), device=self.device)
        self.sums = torch.zeros(2, device=self.device)
        self.cost = _relative_cost(self.network, self.recipe, self.device)
        teacher = None if self.recipe.labels else self.whole.build()
        self.teacher = place(teacher, self.device, self.fast) if teacher else None
        self._leave()
        self.good = copy.deepcopy(self.snapshot())

    def _learned(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Gates, and scales and shifts if they are learned; no other gradient is computed."""
        every = dict(self.root.named_parameters(remove_duplicate=False))
        for parameter in every.values():
            parameter.requires_grad_(False)
        keys = scales_and_shifts(self.root) if self.recipe.norm_learning_rate else ()
        gates = {key: every[key].requires_grad_() for key in self.keys.values()}
        return gates, {key: every[key].requires_grad_() for key in keys}

    @property
    def until(self) -> int:
        """Steps until the next block goes, or the last one's state is recorded."""
        return self.recipe.warmup + len(self.records) * self.recipe.steps

    def identity(self) -> dict[str, Any]:
        """What has to be the same for the run to be resumed: all but the learning rates."""
        return {
            "network": self.whole.fingerprint,
            "recipe": asdict(replace(self.recipe, learning_rate=1.0, norm_learning_rate=1.0)),
            "learning of norms": self.recipe.norm_learning_rate > 0,
            "images": [self.data.source, len(self.data)],
            "normalization": [list(self.normalization.mean), list(self.normalization.std)],
        }

    def steps(self) -> Iterator[GateMoment]:
        """Take the steps that are left; yields after every block, and now and then."""
        started = shown = time.monotonic()
        batches = shuffled(self.data, self.recipe.batch_size, self.recipe.seed, self.done)
        while True:
            with whole_step():
                recorded = self.done == self.until and self._record()
                now = time.monotonic()
                moment = None
                if recorded or now - shown > 0.5:
                    moment, shown = self._moment(now - started, recorded), now
                if not self.finished:
                    if self.done == self.until:
                        self._remove_next()
                    self._step(*next(batches))
            if moment is not None:
                yield moment
            if self.finished:
                return

    @property
    def finished(self) -> bool:
        """Whether all blocks that are to go have gone, and the state of each is recorded."""
        enough = len(self.states) == self.recipe.blocks or not self.live
        return enough and len(self.states) == len(self.records)

    def _step(self, pixels: Tensor, labels: Tensor) -> None:
        torch.manual_seed(mixed(self.recipe.seed, -1 - self.done))
        images = laid_out(self._views(pixels), self.fast)
        with precision(self.device, self.fast):
            logits = self.module(images).float()
        if self.teacher is None:
            loss = F.cross_entropy(logits, labels)
        else:
            with torch.no_grad(), precision(self.device, self.fast):
                known = self.teacher(images).float()
            loss = distance(logits, known, self.recipe.temperature)
        self.optimizer.zero_grad(set_to_none=True)
        if loss.requires_grad:  # else every gate has gone, and norms are left alone
            torch.autograd.backward(loss)
        self._weigh()
        share = len(self.records) / len(self.keys)
        rates = (self.recipe.learning_rate, self.recipe.norm_learning_rate * share)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=False):
            group["lr"] = rate
        self.optimizer.step()
        self.done += 1
        self.sums += torch.stack([loss.detach(), torch.ones_like(self.sums[0])])

    def _views(self, pixels: Tensor) -> Tensor:
        """Images as they are learned from."""
        if self.recipe.mirror and pixels.shape[1] == 3:
            flipped = torch.rand(len(pixels), 1, 1, 1, device=pixels.device) < 0.5
            pixels = torch.where(flipped, pixels.flip(3), pixels)
        return self.normalization(pixels)

    def _weigh(self) -> None:
        """Note how steep the loss is in every gate, then add the penalty's slope."""
        for index, name in enumerate(self.keys):
            gate = self.gate(name)
            if gate.grad is not None:
                self.slopes[index].lerp_(gate.grad.square(), 0.05)
                gate.grad += self.recipe.penalty * self.cost[name] * (gate > 0)

    def gate(self, name: str) -> Tensor:
        """The parameter k of a block's gate."""
        return self.small[self.keys[name]]

    def _train_mode(self) -> None:
        """Batch norm on batch statistics, but nothing dropped at random."""
        self.module.eval()
        for layer in self.module.modules():
            if isinstance(layer, BATCH_NORM):
                layer.train()
        for node in self.module.graph.nodes:
            if getattr(node.target, "__name__", "") == "batch_norm":
                for used in node.all_input_nodes:
                    if kind(self.module, used) is Mode:
                        self.module.get_submodule(str(used.target)).train()

    def _remove_next(self) -> None:
        """Remove the block whose gate matters least for what it costs."""
        live = self.live
        gates = torch.stack([self.gate(name).detach() for name in live]).relu()
        slopes = torch.stack([self.slopes[list(self.keys).index(name)] for name in live])
        scores = (gates.square() * slopes).tolist()
        costs = [self.cost[name] for name in live]
        score, _, name = min(
            (score / cost, index, name)
            for index, (score, cost, name) in enumerate(zip(scores, costs, live, strict=True))
        )
        if len(live) > 1 and not float(gates.max()):
            raise TrainingError(
                f"every gate has closed after {len(self.records)} blocks: lower the penalty "
                f"({self.recipe.penalty}) or the learning rate ({self.recipe.learning_rate})"
            )
        gate = max(self.gate(name).item(), 0.0)
        self.records.append({"block": name, "gate": gate, "score": score, "step": self.done})
        self.sums.zero_()
        self._leave()

    def _leave(self) -> None:
        """Let the blocks that have gone be gone."""
        self.network = self.whole.network.without([record["block"] for record in self.records])
        self.module = fx.GraphModule(self.root, self.network.graph())
        settle_in_place(self.module)
        self._train_mode()
        self.live = _candidates(self.network, self.recipe)

    def _record(self) -> bool:
        """Keep the state in which the last block's going has left the others, if it is sound."""
        loss, steps = self.sums.tolist()
        small = {key: it.detach().cpu().clone() for key, it in self.small.items()}
        if not (math.isfinite(loss) and all(bool(it.isfinite().all()) for it in small.values())):
            self.restore(self.good)
            raise TrainingError(
                f"the loss is no number any more after {len(self.states)} blocks: the path so far "
                f"is kept; go on with --resume and a lower --learning-rate "
                f"({self.recipe.learning_rate}) or --norm-learning-rate "
                f"({self.recipe.norm_learning_rate})"
            )
        new = len(self.states) < len(self.records)
        if new:
            left = self.network.state()
            self.records[-1]["loss"] = loss / steps
            self.states.append({key: it for key, it in small.items() if key in left})
        self.good = copy.deepcopy(self.snapshot())
        return new

    def _moment(self, seconds: float, recorded: bool) -> GateMoment:
        """The run so far; waits for the device."""
        loss, steps = self.sums.tolist()
        last = self.records[-1] if recorded else {}
        return GateMoment(
            self.done,
            self.recipe.warmup + (self.recipe.blocks or 0) * self.recipe.steps,
            len(self.states),
            self.recipe.blocks or 0,
            loss / max(steps, 1),
            seconds,
            last.get("block"),
            last.get("gate"),
        )

    def snapshot(self) -> dict[str, Any]:
        """The run as tensors and plain values."""
        return {
            "done": self.done,
            "records": self.records,
            "states": self.states,
            "small": {key: tensor.detach() for key, tensor in self.small.items()},
            "optimizer": self.optimizer.state_dict(),
            "cost": self.cost,
            "slopes": self.slopes,
            "sums": self.sums,
        }

    def sound(self) -> bool:
        """Whether the run can be gone on from where it is."""
        return all(bool(it.isfinite().all()) for it in (self.sums, *self.small.values()))

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Go back to a snapshot of the same run."""
        snapshot = copy.deepcopy(snapshot)
        self.done, self.records = snapshot["done"], snapshot["records"]
        self.states, self.cost = snapshot["states"], snapshot["cost"]
        with torch.no_grad():
            for key, tensor in snapshot["small"].items():
                self.small[key].copy_(tensor)
        self.optimizer.load_state_dict(snapshot["optimizer"])
        self.slopes.copy_(snapshot["slopes"])
        self.sums.copy_(snapshot["sums"])
        self._leave()
        self.good = snapshot

    def result(self) -> Checkpoint:
        """The whole network with the path that was learned."""
        removals = (
            Removal(**record, weights=MappingProxyType(state))
            for record, state in zip(self.records, self.states, strict=True)
        )
        done = {"gates_learned": self.data.source, "images": len(self.data)}
        notes = self.whole.noting(**done, recipe=asdict(self.recipe))
        used = {"mean": list(self.normalization.mean), "std": list(self.normalization.std)}
        notes = {**notes, "normalize": used}
        return replace(self.whole, path=Path(tuple(removals)), notes=notes)


def _candidates(network: Network, recipe: GateRecipe) -> tuple[str, ...]:
    """The gated blocks that may go."""
    blocks = [block for block in network.blocks if block.gated and block.removable]
    return tuple(it.name for it in blocks if it.identity or not recipe.identity_only)


def _relative_cost(network: Network, recipe: GateRecipe, device: torch.device) -> dict[str, float]:
    """What each gated block costs, 1 on average."""
    names = network.edits.gated
    if recipe.cost == "none":
        return dict.fromkeys(names, 1.0)
    saved = savings(network, recipe.cost, device, recipe.latency_batch)
    mean = sum(max(one, 0.0) for one in saved.values()) / max(len(saved), 1)
    if not mean:
        return dict.fromkeys(names, 1.0)
    return {name: max(saved.get(name, mean) / mean, 0.05) for name in names}
