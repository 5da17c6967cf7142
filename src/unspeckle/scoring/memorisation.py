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

THUMBNAIL_SIDE = 16
BATCH_SIZE = 512  # training pictures at once
PERCENTILE = 1  # the percentile that decides: copies are few, so it is no mean
BOOTSTRAP_SAMPLES = 1000  # of the bootstrap
COPY_RATIO = 1 / 3  # of the held-out pictures' 1st percentile: what lies nearer is a training picture drawn again
MIN_RELIABLE_IMAGES = 300  # held-out pictures below which their 1st percentile is a matter of luck


@dataclass(frozen=True)
class NearestImages:
    """Of each picture (N,): the distance to its nearest training picture, and which of the split that is."""

    distance: Tensor
    index: Tensor


@dataclass(frozen=True)
class MemorizationScore:
    """percentiles 0 to 100 of the distance to the nearest training picture, in levels of 255."""

    training_count: int  # training pictures
    generated_count: int
    validation_count: int
    ratio: float  # of drawn to held-out pictures' distances, at the 1st percentile
    ratio_low: float  # the ratio's 95 % interval, by bootstrap over pictures
    ratio_high: float
    fraction_nearer: (
        float  # of drawn pictures nearer than the held-out ones' 1st percentile: .01 where nothing is copied
    )
    copy_count: int  # drawn pictures less than a third as far as that
    verdict: str  # what the numbers say, in words
    has_few_images: bool  # too few pictures to say much of a 1st percentile
    generated_percentiles: tuple[float, ...]
    validation_percentiles: tuple[float, ...]


def measure_memorization(generated: NearestImages, validation: NearestImages, training_count: int) -> MemorizationScore:
    """Both sets against the same training pictures."""
    generated_distances, validation_distances = generated.distance.double(), validation.distance.double()
    ratio, low, high = _distance_ratio(generated_distances, validation_distances)
    threshold = validation_distances.quantile(PERCENTILE / 100)
    copy_count = int((generated_distances < COPY_RATIO * threshold).sum())
    quantiles = torch.linspace(0, 1, 101, dtype=torch.float64)
    return MemorizationScore(
        training_count=training_count, generated_count=len(generated_distances), validation_count=len(validation_distances), ratio=ratio, ratio_low=low, ratio_high=high,
        fraction_nearer=float((generated_distances < threshold).double().mean()),
        copy_count=copy_count, verdict=_write_verdict(ratio, low, high, copy_count, len(generated_distances)), has_few_images=min(len(generated_distances), len(validation_distances)) < MIN_RELIABLE_IMAGES,
        generated_percentiles=tuple(generated_distances.quantile(quantiles).tolist()), validation_percentiles=tuple(validation_distances.quantile(quantiles).tolist()),
    )  # fmt: skip


def _write_verdict(ratio: float, low: float, high: float, copy_count: int, generated_count: int) -> str:
    summary = (
        f"At the {PERCENTILE}st percentile, drawn pictures lie {ratio:.2f} times as far from their nearest training "
        f"picture as held-out ones do (95 % interval {low:.2f} to {high:.2f})"
    )
    if copy_count:
        return f"{summary}; {copy_count} of {generated_count:,} are training pictures again. The model repeats."
    if high < 1:
        return f"{summary}: nearer than chance explains. Look at the pairs; what is blurred is near to everything."
    if ratio < 1:
        return f"{summary}: a little nearer, but no more than chance explains. No clear sign of memorisation."
    return f"{summary}: no nearer. No sign of memorisation."


def _distance_ratio(generated_distances: Tensor, validation_distances: Tensor) -> tuple[float, float, float]:
    """The ratio at the percentile that decides, and its 95 % interval."""
    quantile, generator = PERCENTILE / 100, torch.Generator().manual_seed(0)

    def bootstrap_quantiles(distances: Tensor) -> Tensor:
        indices = torch.randint(len(distances), (BOOTSTRAP_SAMPLES, len(distances)), generator=generator)
        return distances[indices].quantile(quantile, dim=1)

    tiny = 1e-9  # held-out pictures that are training pictures too
    ratios = bootstrap_quantiles(generated_distances) / bootstrap_quantiles(validation_distances).clamp(min=tiny)
    low, high = ratios.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return (
        float(generated_distances.quantile(quantile) / validation_distances.quantile(quantile).clamp(min=tiny)),
        low,
        high,
    )


@torch.no_grad()
def find_nearest_images(images: Tensor, training: Split, advance: Callable[[int], None] | None = None) -> NearestImages:
    """The nearest training picture of each picture (N, 3, H, W) uint8. tell: how many training pictures were seen."""
    count = len(images)
    queries = torch.cat((make_thumbnails(images), make_thumbnails(images.flip(3))))  # (2N, D)
    best_distance, best_index = torch.full((2 * count,), torch.inf), torch.zeros(2 * count, dtype=torch.int64)
    for first in range(0, len(training), BATCH_SIZE):
        indices = np.arange(first, min(first + BATCH_SIZE, len(training)))
        for crop in _crop_images(training, indices):
            crop_thumbnails = make_thumbnails(crop)
            squared_distance = (
                crop_thumbnails.square().sum(1) - 2 * queries @ crop_thumbnails.T
            )  # but for the query's own square
            minimum = squared_distance.min(1)
            is_nearer = minimum.values < best_distance
            best_distance = torch.where(is_nearer, minimum.values, best_distance)
            best_index = torch.where(is_nearer, minimum.indices + first, best_index)
        if advance is not None:
            advance(len(indices))
    distance = (best_distance + queries.square().sum(1)).clamp(min=0).div(queries.shape[1]).sqrt().view(2, count)
    orientation = distance.argmin(0, keepdim=True)
    return NearestImages(distance.gather(0, orientation)[0], best_index.view(2, count).gather(0, orientation)[0])


def make_thumbnails(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> (B, 768) float32: levels of the picture at 16 × 16, about the middle grey."""
    return F.adaptive_avg_pool2d(images.float() - 127.5, THUMBNAIL_SIDE).flatten(1)


def _crop_images(split: Split, indices: NDArray[np.int64]) -> list[Tensor]:
    """The middles of these pictures, and where some are longer than wide their beginnings and ends as well."""
    spare_height, spare_width = split.crop_margins(indices)
    no_flip = np.zeros(len(indices), np.bool_)
    center_crop = split.crop_images(indices, spare_height // 2, spare_width // 2, no_flip)
    if not (spare_height.any() or spare_width.any()):
        return [center_crop]
    return [
        center_crop,
        split.crop_images(indices, 0 * spare_height, 0 * spare_width, no_flip),
        split.crop_images(indices, spare_height, spare_width, no_flip),
    ]
