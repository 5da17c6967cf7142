"""Batches of training examples, each example a pure function of seed and global index."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unspeckle.corpus.caption_augmentation import WORDINGS, CaptionAugmenter
from unspeckle.corpus.epoch_order import (
    epoch_permutation,
    sampling_probabilities,
    select_images,
    weighted_epoch_order,
)
from unspeckle.corpus.random_bits import Purpose, random_bits, random_integers
from unspeckle.corpus.splits import Split
from unspeckle.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


class Batch(NamedTuple):
    """Examples with consecutive global indices.

    images: uint8 (B, 3, H, W), channels last in memory; of an encoded split, float32 latents (B, C, h, w).
    captions: one caption for each image.
    example_indices: int64 (B,), start, start + 1, …
    original_captions: the captions before they were worded differently; those themselves if they were not.
    """

    images: Tensor
    captions: list[str]
    example_indices: Tensor
    original_captions: Sequence[str] = ()


def batches(
    split: Split,
    batch_size: int,
    *,
    seed: int,
    start: int = 0,
    flip: bool = True,
    balance: float = 0.0,
    augmenter: CaptionAugmenter | None = None,
) -> Iterator[Batch]:
    """Endless batches of `batch_size` examples.

    seed: the image, caption, wording, crop and flip of an example depend only on the seed and its global index, not on
        `batch_size` or `start`.
    start: the global index of the first example, which is the number of examples already seen.
    flip: flip half of the images horizontally, but never one that has a caption with left, right or half.
    balance: 0 shows each image once an epoch; up to 1, images with rare captions are shown more often and those with
        frequent ones less often: see `sampling_probabilities`.
    augmenter: gives captions in different wordings; None gives them as they are.

    Raises InputError if the split is empty or a number is out of range.
    """
    if len(split) == 0:
        raise InputError("the corpus contains no images to train on; give a folder with more images")
    if batch_size < 1:
        raise InputError(f" {batch_size}: must be at least 1", "batch_size")
    if start < 0:
        raise InputError(f" {start}: must be at least 0", "start")
    if not 0 <= balance <= 1:
        raise InputError(f" {balance}: must be between 0 and 1", "balance")
    return _generate_batches(split, batch_size, seed=seed, start=start, flip=flip, balance=balance, augmenter=augmenter)


def _generate_batches(
    split: Split,
    batch_size: int,
    *,
    seed: int,
    start: int,
    flip: bool,
    balance: float,
    augmenter: CaptionAugmenter | None,
) -> Iterator[Batch]:
    import torch

    image_count = len(split)
    is_flippable = split.flippable() if flip else np.zeros(image_count, np.bool_)
    probabilities = sampling_probabilities(split.captions, balance) if balance else None

    @lru_cache(maxsize=2)
    def epoch_order(epoch: int) -> NDArray[np.int64]:
        if probabilities is None:
            return epoch_permutation(image_count, seed, epoch)
        return weighted_epoch_order(probabilities, seed, epoch)

    while True:
        example_indices = np.arange(start, start + batch_size, dtype=np.int64)
        image_indices = select_images(image_count, example_indices, epoch_order)
        extra_heights, extra_widths = split.crop_margins(image_indices)
        is_flipped = random_bits(seed, Purpose.FLIP, example_indices) >> np.uint64(63) == 0
        images = split.crop_images(
            image_indices,
            tops=random_integers(extra_heights + 1, seed, Purpose.TOP, example_indices),
            lefts=random_integers(extra_widths + 1, seed, Purpose.LEFT, example_indices),
            flip=is_flippable[image_indices] & is_flipped,
        )
        captions = original_captions = select_captions(split, seed, example_indices, image_indices)
        if augmenter is not None:
            wording_count = np.full(batch_size, WORDINGS, np.int64)
            numbers = random_integers(wording_count, seed, Purpose.WORDING, example_indices).tolist()
            captions = [augmenter.reword(caption, n) for caption, n in zip(captions, numbers, strict=True)]
        yield Batch(images, captions, torch.from_numpy(example_indices), original_captions)
        start += batch_size


def select_captions(
    split: Split, seed: int, example_indices: NDArray[np.int64], image_indices: NDArray[np.int64]
) -> list[str]:
    """One of the captions of each image (B,), chosen at random by its example index (B,)."""
    caption_counts = np.array([len(split.captions[image_index]) for image_index in image_indices.tolist()], np.int64)
    caption_indices = random_integers(caption_counts, seed, Purpose.CAPTION, example_indices).tolist()
    return [
        split.captions[image_index][caption_index]
        for image_index, caption_index in zip(image_indices.tolist(), caption_indices, strict=True)
    ]
