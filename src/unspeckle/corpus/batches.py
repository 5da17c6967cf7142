"""Examples for training, each a pure function of (seed, position)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unspeckle.corpus.splits import Split
from unspeckle.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

_SHUFFLE, _CAPTION, _TOP, _LEFT, _FLIP, _OFFSET, _RESHUFFLE = range(1, 8)  # what a number is drawn for
MAX_REPEATS_PER_EPOCH = 4.0  # times an epoch, that a picture of a rare caption is shown
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15


class Batch(NamedTuple):
    """Examples of the global positions `indices`."""

    images: Tensor  # uint8 (B, 3, H, W), channels last in memory; or float32 latents (B, C, h, w), where they are kept
    captions: list[str]
    example_indices: Tensor  # int64 (B,), start, start + 1, …


def batches(
    split: Split, batch_size: int, *, seed: int, start: int = 0, flip: bool = True, balance: float = 0.0
) -> Iterator[Batch]:
    """Batches of `size` examples without end, from global position `start` (the number of examples already seen).

    Each epoch shows every picture once, in an order of its own; with a balance, pictures of rare captions are shown
    more often and those of frequent ones less: see `rarity`. An example's picture, wording, crop and mirroring hang
    on (seed, position) alone, not on `size` or `start`. Half of the pictures are mirrored, never one of whose wordings
    says left, right or half; `flips=False` mirrors none. Raises InputError for an empty split or bad numbers.
    """
    if len(split) == 0:
        raise InputError("the corpus has no pictures to train on; give a folder with more pictures")
    if batch_size < 1 or start < 0:
        raise InputError(f"batch of {batch_size} from {start}: give a size of at least 1 and a start of at least 0")
    if not 0 <= balance <= 1:
        raise InputError(f"balance {balance}: must lie between 0 and 1")
    return _generate_batches(split, batch_size, seed, start, flip, balance)


def _generate_batches(
    split: Split, batch_size: int, seed: int, start: int, flip: bool, balance: float
) -> Iterator[Batch]:
    import torch

    image_count = len(split)
    flippable = split.flippable() if flip else np.zeros(image_count, np.bool_)
    weights = sampling_probabilities(split.captions, balance) if balance else None

    @lru_cache(maxsize=2)
    def epoch_order(epoch: int) -> NDArray[np.int64]:
        return (
            epoch_permutation(image_count, seed, epoch)
            if weights is None
            else weighted_epoch_order(weights, seed, epoch)
        )

    while True:
        example_indices = np.arange(start, start + batch_size, dtype=np.int64)
        image_indices = select_images(image_count, example_indices, epoch_order)
        extra_heights, extra_widths = split.crop_margins(image_indices)
        images = split.crop_images(
            image_indices,
            _random_integers(extra_heights + 1, seed, _TOP, example_indices),
            _random_integers(extra_widths + 1, seed, _LEFT, example_indices),
            flippable[image_indices] & (random_bits(seed, _FLIP, example_indices) >> np.uint64(63) == 0),
        )
        yield Batch(
            images, select_captions(split, seed, example_indices, image_indices), torch.from_numpy(example_indices)
        )
        start += batch_size


def select_images(
    image_count: int, example_indices: NDArray[np.int64], epoch_order: Callable[[int], NDArray[np.int64]]
) -> NDArray[np.int64]:
    """Which of so many pictures is shown at each global position: (B,) -> (B,). order: of an epoch, (count,)."""
    image_indices = np.empty(len(example_indices), np.int64)
    for epoch in np.unique(example_indices // image_count).tolist():
        in_epoch = example_indices // image_count == epoch
        image_indices[in_epoch] = epoch_order(epoch)[example_indices[in_epoch] % image_count]
    return image_indices


def sampling_probabilities(captions: Sequence[tuple[str, ...]], balance: float) -> NDArray[np.float64]:
    """(N,) the share of an epoch that each picture is due: that of its caption, of n pictures, grows as
    n^(1 - balance), but no picture is shown much more than OFTENEST times, however rare its caption."""
    counts = Counter(captions)
    weights = np.array([counts[image_captions] ** -balance for image_captions in captions])
    probabilities = np.minimum(weights / weights.sum(), MAX_REPEATS_PER_EPOCH / len(weights))
    return np.asarray(probabilities / probabilities.sum(), np.float64)


def weighted_epoch_order(probabilities: NDArray[np.float64], seed: int, epoch: int) -> NDArray[np.int64]:
    """An order of as many pictures as there are shares (N,), each as often as its share of N says, rounded up or down
    (systematic sampling), that hangs on (seed, epoch) alone: (N,)."""
    image_count = len(probabilities)
    shuffled = epoch_permutation(image_count, seed, epoch)
    cumulative = np.cumsum(probabilities[shuffled])
    offset = float(random_bits(seed, _OFFSET, np.array([epoch], np.int64))[0]) / 2**64
    sampled = shuffled[
        np.searchsorted(
            cumulative / cumulative[-1], (np.arange(image_count) + offset) / image_count, side="right"
        ).clip(max=image_count - 1)
    ]
    reshuffle_seed = int(random_bits(seed, _RESHUFFLE, np.array([epoch], np.int64))[0])
    reshuffle = epoch_permutation(image_count, reshuffle_seed, epoch)
    return np.asarray(sampled[reshuffle], np.int64)  # what is shown twice does not come in a row


def select_captions(
    split: Split, seed: int, example_indices: NDArray[np.int64], image_indices: NDArray[np.int64]
) -> list[str]:
    """With which of its wordings each of the pictures chosen (B,) is shown at its position."""
    caption_counts = np.array([len(split.captions[image_index]) for image_index in image_indices.tolist()], np.int64)
    caption_indices = _random_integers(caption_counts, seed, _CAPTION, example_indices).tolist()
    return [
        split.captions[image_index][caption_index]
        for image_index, caption_index in zip(image_indices.tolist(), caption_indices, strict=True)
    ]


@lru_cache(maxsize=4)
def epoch_permutation(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """An order of range(count) that hangs on (seed, epoch) alone."""
    epoch_seed = int(random_bits(seed, _SHUFFLE, np.array([epoch], np.int64))[0])
    return np.argsort(random_bits(epoch_seed, _SHUFFLE, np.arange(count, dtype=np.int64)), kind="stable").astype(
        np.int64
    )


def random_bits(seed: int, purpose: int, counters: NDArray[np.int64]) -> NDArray[np.uint64]:
    """64 random bits for each position: two rounds of SplitMix64 (Steele et al. 2014) on seed and purpose, one more
    on the position. (B,) -> (B,)"""
    key = _splitmix64(np.array([seed % 2**64], np.uint64) + np.uint64(purpose * _GOLDEN_GAMMA % 2**64))
    key = _splitmix64(key + np.uint64(_GOLDEN_GAMMA))
    return _splitmix64(key + counters.astype(np.uint64) * np.uint64(_GOLDEN_GAMMA))


def _splitmix64(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _random_integers(
    bounds: NDArray[np.int64], seed: int, purpose: int, counters: NDArray[np.int64]
) -> NDArray[np.int64]:
    """A whole number in [0, bound) for each position: (B,), (B,) -> (B,)."""
    high_bits = random_bits(seed, purpose, counters) >> np.uint64(32)
    return (high_bits * bounds.astype(np.uint64) >> np.uint64(32)).astype(np.int64)
