"""The criteria by which blocks are ranked; each is a function in this folder and an entry below."""

from __future__ import annotations

from gatepruner.pruning.criteria.criterion import Criterion, late

CRITERIA: dict[str, Criterion] = {
    "gate": Criterion(
        late("gate.gate"),
        "gates",
        "Savarese, Mazza, Figueiredo, 2016, https://arxiv.org/abs/1611.01260",
    ),
    "taylor": Criterion(
        late("taylor.taylor"),
        "images",
        "Molchanov, Tyree, Karras, Aila, Kautz, 2017, https://arxiv.org/abs/1611.06440",
        passes=lambda blocks: 3,
        labels=True,
    ),
    "leave-one-out": Criterion(
        late("leave_one_out.leave_one_out"),
        "images",
        "Veit, Wilber, Belongie, 2016, https://arxiv.org/abs/1605.06431",
        passes=lambda blocks: blocks / 2,
        labels=True,
    ),
    "greedy": Criterion(
        late("leave_one_out.greedy"),
        "images",
        "leave-one-out (Veit, Wilber, Belongie, 2016, https://arxiv.org/abs/1605.06431), repeated",
        ordered=True,
        passes=lambda blocks: blocks**2 / 6 + blocks,
        labels=True,
    ),
    "cosine": Criterion(
        late("cosine.cosine"),
        "images",
        "Men et al., 2024, https://arxiv.org/abs/2403.03853",
        passes=lambda blocks: 1,
    ),
    "cka": Criterion(
        late("cka.cka"),
        "images",
        "Kornblith, Norouzi, Lee, Hinton, 2019, https://arxiv.org/abs/1905.00414; for layers "
        "Pons et al., 2024, https://arxiv.org/abs/2405.17081",
        passes=lambda blocks: blocks / 2,
    ),
    "magnitude": Criterion(
        late("magnitude.magnitude"),
        "nothing",
        "Li, Kadav, Durdanovic, Samet, Graf, 2017, https://arxiv.org/abs/1608.08710",
    ),
    "random": Criterion(
        late("baselines.at_random"), "nothing", "a baseline", ordered=True, random=True
    ),
    "depth": Criterion(late("baselines.by_depth"), "nothing", "a baseline", ordered=True),
}
"""The criteria by name, for `rank`; each says what it needs and its source."""
