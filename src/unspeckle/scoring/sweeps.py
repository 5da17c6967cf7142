"""The same captions and seeds drawn in many ways: how quality goes with steps, guidance scale and time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unspeckle.generation.few_step import select_network
from unspeckle.generation.pipeline import Request, ResolvedRequest
from unspeckle.model import Model
from unspeckle.scoring.distances import kid, neighbours
from unspeckle.scoring.drawing import drawn
from unspeckle.scoring.features import Features
from unspeckle.scoring.scores import Point

SHARES = (1 / 6, 1 / 3, 2 / 3, 1, 2)  # of the model's steps
SAMPLERS = ("ddim", "heun")  # beside the model's own
SCALES = (1.0, 2.0, 3.0, 5.0, 7.0)  # beside the model's own
SHOWN = 8  # pictures of each way that are kept
BLOCKS = 8  # of the jackknife
TWICE = ("heun", "dpmpp_sde")  # two calls of the network a step


@dataclass(frozen=True)
class Real:
    """What sweeps are measured against: features of held-out pictures (N, D), by the same features."""

    features: Features
    held_out: Tensor


def calls(order: ResolvedRequest) -> int:
    """Of the network, for one picture; the two halves of guidance count as two."""
    return order.steps * (2 if order.sampler in TWICE else 1) * (1 if order.guidance_scale == 1 else 2)


def steps_of(model: Model, order: ResolvedRequest) -> list[ResolvedRequest]:
    """The model's sampler and two others at fewer and more steps; a sampler of two calls a step takes half of them.
    Of a student, the counts of steps that it knows; of its teacher, none that the student would draw."""
    if few := select_network(model, order).card.step_counts:
        return [replace(order, steps=steps) for steps in few]
    counts = sorted({min(1000, max(1, round(order.steps * share))) for share in SHARES})
    found = []
    for sampler in dict.fromkeys((order.sampler, *SAMPLERS)):
        for count in counts:
            half = sampler in TWICE and order.sampler not in TWICE
            found.append(replace(order, sampler=sampler, steps=max(1, count // 2) if half else count))
    return _alike(model, dict.fromkeys(found))


def scales_of(model: Model, order: ResolvedRequest) -> list[ResolvedRequest]:
    """The same with other guidance scales; none for a student, which has but the one that it learnt."""
    if select_network(model, order).card.step_counts:
        return []
    return _alike(model, [replace(order, scale=scale) for scale in sorted({*SCALES, order.guidance_scale})])


def _alike(model: Model, orders: Iterable[ResolvedRequest]) -> list[ResolvedRequest]:
    """Those that the model draws itself."""
    return [order for order in orders if not select_network(model, order).card.step_counts]


def sweep(
    model: Model, orders: Sequence[ResolvedRequest], captions: Sequence[str], numbers: Sequence[int], real: Real | None,
    tell: Callable[[int], None],
) -> Iterator[tuple[Point, Tensor]]:  # fmt: skip
    """Each order's point, and its first pictures. tell: how many calls of the network were made."""
    for order in orders:
        ask = Request(**{name: getattr(order, name) for name in ("sampler", "grid", "steps", "scale", "size", "negative")})
        cost = calls(order)
        found = drawn(model, captions, numbers, ask, lambda count, cost=cost: tell(count * cost))  # type: ignore[misc]
        point = Point(order.sampler, order.steps, order.guidance_scale, found.seconds)
        if real is not None:
            point = _judged(point, real.held_out, real.features(found.pictures))
        yield point, found.pictures[:SHOWN]


def _judged(point: Point, held_out: Tensor, features: Tensor) -> Point:
    near = neighbours(held_out, features)
    return replace(
        point, kid=kid(held_out, features), kid_error=_error(held_out, features), precision=near.precision,
        recall=near.recall, coverage=near.coverage,
    )  # fmt: skip


def _error(held_out: Tensor, features: Tensor) -> float:
    """The standard error of KID over the drawn pictures: the jackknife over blocks of them (Efron & Stein 1981)."""
    places = torch.arange(len(features)) % BLOCKS
    without = torch.tensor([kid(held_out, features[places != block]) for block in range(BLOCKS)], dtype=torch.float64)
    return float(((BLOCKS - 1) / BLOCKS * (without - without.mean()).square().sum()).sqrt())
