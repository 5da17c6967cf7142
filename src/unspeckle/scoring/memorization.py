"""Whether a model repeats its training images: how near generated images come to them, compared with validation images.

The distance of two images is the root mean square difference of their color levels, 0 to 255, when shrunk to 16 × 16
pixels. An image and its mirror image count as one, and a training image that is not square is compared in three crops,
as training may have seen it. Validation images come from the same source as training images, but were never seen: a
model that copies nothing generates images that are no nearer. Blurred images are nearer to everything, so a model whose
images are blurred can raise a false alarm; looking at the pairs in the report decides.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from unspeckle.corpus.splits import Split

THUMBNAIL_SIDE = 16  # pixels
BATCH_SIZE = 512  # training images compared at once
PERCENTILE = 1  # the percentile of the distances that decides; copies are few, so the mean would not show them
BOOTSTRAP_SAMPLES = 1000
COPY_RATIO = 1 / 3  # an image is a copy if it is nearer than this fraction of the validation images' 1st percentile
MIN_RELIABLE_IMAGES = 300  # with fewer images their 1st percentile depends on luck


@dataclass(frozen=True)
class NearestImages:
    """For each of N images the nearest training image."""

    distance: Tensor  # (N,), in color levels, 0 to 255
    index: Tensor  # (N,), which image of the training split it is


@dataclass(frozen=True)
class MemorizationScore:
    """How near generated images come to training images. Distances are in color levels, 0 to 255."""

    training_count: int  # training images
    generated_count: int  # generated images
    validation_count: int  # validation images
    ratio: float  # the 1st percentile of the generated images' distances, divided by that of the validation images'
    ratio_low: float  # lower end of the ratio's 95 % interval, by bootstrap over the images
    ratio_high: float  # upper end of it
    # Generated images that are nearer than the validation images' 1st percentile; 0.01 if nothing is copied.
    fraction_nearer: float
    copy_count: int  # generated images that are nearer than a third of it
    verdict: str  # what the numbers mean, as a sentence
    has_few_images: bool  # whether there are too few images for a reliable 1st percentile
    generated_percentiles: tuple[float, ...]  # percentiles 0 to 100 of the generated images' distances
    validation_percentiles: tuple[float, ...]  # percentiles 0 to 100 of the validation images' distances


def measure_memorization(generated: NearestImages, validation: NearestImages, training_count: int) -> MemorizationScore:
    """The score of two sets of images that were compared with the same training images."""
    generated_distances, validation_distances = generated.distance.double(), validation.distance.double()
    generated_count, validation_count = len(generated_distances), len(validation_distances)
    ratio, low, high = _distance_ratio(generated_distances, validation_distances)
    threshold = validation_distances.quantile(PERCENTILE / 100)
    copy_count = int((generated_distances < COPY_RATIO * threshold).sum())
    quantiles = torch.linspace(0, 1, 101, dtype=torch.float64)
    return MemorizationScore(
        training_count=training_count,
        generated_count=generated_count,
        validation_count=validation_count,
        ratio=ratio,
        ratio_low=low,
        ratio_high=high,
        fraction_nearer=float((generated_distances < threshold).double().mean()),
        copy_count=copy_count,
        verdict=_write_verdict(ratio, low, high, copy_count, generated_count),
        has_few_images=min(generated_count, validation_count) < MIN_RELIABLE_IMAGES,
        generated_percentiles=tuple(generated_distances.quantile(quantiles).tolist()),
        validation_percentiles=tuple(validation_distances.quantile(quantiles).tolist()),
    )


def _write_verdict(ratio: float, low: float, high: float, copy_count: int, generated_count: int) -> str:
    summary = (
        f"At the {PERCENTILE}st percentile, generated images are {ratio:.2f} times as far from their nearest training "
        f"image as validation images are (95 % interval {low:.2f} to {high:.2f})"
    )
    if copy_count:
        return f"{summary}; {copy_count} of {generated_count:,} are copies of training images. The model memorizes."
    if high < 1:
        return (
            f"{summary}: nearer than chance explains. Look at the pairs below; blurred images are near to everything."
        )
    if ratio < 1:
        return f"{summary}: a little nearer, but no more than chance explains. No clear sign of memorization."
    return f"{summary}: no nearer. No sign of memorization."


def _distance_ratio(generated_distances: Tensor, validation_distances: Tensor) -> tuple[float, float, float]:
    """The ratio at the deciding percentile, and the ends of its 95 % interval."""
    quantile, generator = PERCENTILE / 100, torch.Generator().manual_seed(0)

    def bootstrap_quantiles(distances: Tensor) -> Tensor:
        indices = torch.randint(len(distances), (BOOTSTRAP_SAMPLES, len(distances)), generator=generator)
        return distances[indices].quantile(quantile, dim=1)

    tiny = 1e-9  # the distances are 0 if validation images are in the training split too
    ratios = bootstrap_quantiles(generated_distances) / bootstrap_quantiles(validation_distances).clamp(min=tiny)
    low, high = ratios.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    ratio = generated_distances.quantile(quantile) / validation_distances.quantile(quantile).clamp(min=tiny)
    return float(ratio), low, high


@torch.no_grad()
def find_nearest_images(images: Tensor, training: Split, advance: Callable[[int], None] | None = None) -> NearestImages:
    """The nearest training image of each image (N, 3, H, W) uint8.

    advance is called with the number of further training images that have been compared.
    """
    count = len(images)
    queries = torch.cat((make_thumbnails(images), make_thumbnails(images.flip(3))))  # (2N, D)
    best_distance, best_index = torch.full((2 * count,), torch.inf), torch.zeros(2 * count, dtype=torch.int64)
    best_thumbnails = torch.zeros_like(queries)
    for first in range(0, len(training), BATCH_SIZE):
        indices = np.arange(first, min(first + BATCH_SIZE, len(training)))
        for crop in _crop_images(training, indices):
            thumbnails = make_thumbnails(crop)
            # |a - b|² without |a|², which is the same for all training images
            squared_distance = thumbnails.square().sum(1) - 2 * queries @ thumbnails.T
            minimum = squared_distance.min(1)
            is_nearer = minimum.values < best_distance
            best_distance = torch.where(is_nearer, minimum.values, best_distance)
            best_index = torch.where(is_nearer, minimum.indices + first, best_index)
            best_thumbnails[is_nearer] = thumbnails[minimum.indices[is_nearer]]
        if advance is not None:
            advance(len(indices))
    # Of the nearest ones alone, without the rounding of large squares that nearly cancel: 0 for a copy
    distance = (queries - best_thumbnails).square().mean(1).sqrt().view(2, count)
    orientation = distance.argmin(0, keepdim=True)  # as it is, or mirrored
    return NearestImages(distance.gather(0, orientation)[0], best_index.view(2, count).gather(0, orientation)[0])


def make_thumbnails(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> (B, 768) float32: the color levels at 16 × 16 pixels, minus 127.5."""
    return F.adaptive_avg_pool2d(images.float() - 127.5, THUMBNAIL_SIDE).flatten(1)


def _crop_images(split: Split, indices: NDArray[np.int64]) -> list[Tensor]:
    """Center crops of these images; if some are not square, also crops of their two ends."""
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
