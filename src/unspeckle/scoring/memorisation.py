"""Does a model draw its training pictures again? How near drawn ones come to them, against how near held-out ones do.

The distance is that of the pictures shrunk to 16 × 16: the root mean square difference of colour levels, 0 to 255. A
picture and its mirror image count as one, and a training picture that is longer than wide is looked at in three crops,
as training may have seen it. Held-out pictures come from where training pictures come from, and were never seen: a
model that copies nothing draws no nearer than they lie. Blurred pictures lie nearer to everything, so a model that
blurs can raise a false alarm; the page of pairs settles it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from unspeckle.corpus import Split

SIDE = 16
SHARE = 512  # training pictures at once
PERCENT = 1  # the percentile that decides: copies are few, so it is no mean
DRAWS = 1000  # of the bootstrap
COPY = 1 / 3  # of the held-out pictures' 1st percentile: what lies nearer is a training picture drawn again
FEW = 300  # held-out pictures below which their 1st percentile is a matter of luck


@dataclass(frozen=True)
class Nearest:
    """Of each picture (N,): the distance to its nearest training picture, and which of the split that is."""

    distance: Tensor
    which: Tensor


@dataclass(frozen=True)
class Memorisation:
    """percentiles 0 to 100 of the distance to the nearest training picture, in levels of 255."""

    searched: int  # training pictures
    drawn: int
    held_out: int
    ratio: float  # of drawn to held-out pictures' distances, at the 1st percentile
    low: float  # the ratio's 95 % interval, by bootstrap over pictures
    high: float
    share: float  # of drawn pictures nearer than the held-out ones' 1st percentile: .01 where nothing is copied
    copies: int  # drawn pictures less than a third as far as that
    verdict: str  # what the numbers say, in words
    few: bool  # too few pictures to say much of a 1st percentile
    drawn_percentiles: tuple[float, ...]
    held_out_percentiles: tuple[float, ...]


def memorisation(drawn: Nearest, held_out: Nearest, searched: int) -> Memorisation:
    """Both sets against the same training pictures."""
    d, h = drawn.distance.double(), held_out.distance.double()
    ratio, low, high = _ratio(d, h)
    chance = h.quantile(PERCENT / 100)
    copies = int((d < COPY * chance).sum())
    points = torch.linspace(0, 1, 101, dtype=torch.float64)
    return Memorisation(
        searched=searched, drawn=len(d), held_out=len(h), ratio=ratio, low=low, high=high,
        share=float((d < chance).double().mean()),
        copies=copies, verdict=_verdict(ratio, low, high, copies, len(d)), few=min(len(d), len(h)) < FEW,
        drawn_percentiles=tuple(d.quantile(points).tolist()), held_out_percentiles=tuple(h.quantile(points).tolist()),
    )  # fmt: skip


def _verdict(ratio: float, low: float, high: float, copies: int, drawn: int) -> str:
    said = (
        f"At the {PERCENT}st percentile, drawn pictures lie {ratio:.2f} times as far from their nearest training "
        f"picture as held-out ones do (95 % interval {low:.2f} to {high:.2f})"
    )
    if copies:
        return f"{said}; {copies} of {drawn:,} are training pictures again. The model repeats."
    if high < 1:
        return f"{said}: nearer than chance explains. Look at the pairs; what is blurred is near to everything."
    if ratio < 1:
        return f"{said}: a little nearer, but no more than chance explains. No clear sign of memorisation."
    return f"{said}: no nearer. No sign of memorisation."


def _ratio(drawn: Tensor, held_out: Tensor) -> tuple[float, float, float]:
    """The ratio at the percentile that decides, and its 95 % interval."""
    level, generator = PERCENT / 100, torch.Generator().manual_seed(0)

    def again(distances: Tensor) -> Tensor:
        chosen = torch.randint(len(distances), (DRAWS, len(distances)), generator=generator)
        return distances[chosen].quantile(level, dim=1)

    tiny = 1e-9  # held-out pictures that are training pictures too
    ratios = again(drawn) / again(held_out).clamp(min=tiny)
    low, high = ratios.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return float(drawn.quantile(level) / held_out.quantile(level).clamp(min=tiny)), low, high


@torch.no_grad()
def nearest(pictures: Tensor, training: Split, tell: Callable[[int], None] | None = None) -> Nearest:
    """The nearest training picture of each picture (N, 3, H, W) uint8. tell: how many training pictures were seen."""
    count = len(pictures)
    queries = torch.cat((thumbnails(pictures), thumbnails(pictures.flip(3))))  # (2N, D)
    best, which = torch.full((2 * count,), torch.inf), torch.zeros(2 * count, dtype=torch.int64)
    for first in range(0, len(training), SHARE):
        chosen = np.arange(first, min(first + SHARE, len(training)))
        for crop in _crops(training, chosen):
            seen = thumbnails(crop)
            square = seen.square().sum(1) - 2 * queries @ seen.T  # but for the query's own square
            least = square.min(1)
            nearer = least.values < best
            best = torch.where(nearer, least.values, best)
            which = torch.where(nearer, least.indices + first, which)
        if tell is not None:
            tell(len(chosen))
    distance = (best + queries.square().sum(1)).clamp(min=0).div(queries.shape[1]).sqrt().view(2, count)
    side = distance.argmin(0, keepdim=True)
    return Nearest(distance.gather(0, side)[0], which.view(2, count).gather(0, side)[0])


def thumbnails(pictures: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> (B, 768) float32: levels of the picture at 16 × 16, about the middle grey."""
    return F.adaptive_avg_pool2d(pictures.float() - 127.5, SIDE).flatten(1)


def _crops(split: Split, chosen: NDArray[np.int64]) -> list[Tensor]:
    """The middles of these pictures, and where some are longer than wide their beginnings and ends as well."""
    tall, wide = split.spare(chosen)
    still = np.zeros(len(chosen), np.bool_)
    middle = split.crops(chosen, tall // 2, wide // 2, still)
    if not (tall.any() or wide.any()):
        return [middle]
    return [middle, split.crops(chosen, 0 * tall, 0 * wide, still), split.crops(chosen, tall, wide, still)]
