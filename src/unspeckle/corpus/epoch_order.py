"""In which order an epoch shows the images of a split: each once, or those with rare captions more often."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from unspeckle.corpus.random_bits import Purpose, random_bits

MAX_REPEATS_PER_EPOCH = 4.0
"""How often an epoch shows an image at most, however rare its caption."""

EpochOrder = Callable[[int], NDArray[np.int64]]
"""From the number of an epoch to the image indices in the order in which it shows them, (N,)."""


def select_images(image_count: int, example_indices: NDArray[np.int64], epoch_order: EpochOrder) -> NDArray[np.int64]:
    """The image at each global example index, of `image_count` images: (B,) -> (B,)."""
    image_indices = np.empty(len(example_indices), np.int64)
    for epoch in np.unique(example_indices // image_count).tolist():
        in_epoch = example_indices // image_count == epoch
        image_indices[in_epoch] = epoch_order(epoch)[example_indices[in_epoch] % image_count]
    return image_indices


@lru_cache(maxsize=4)
def epoch_permutation(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation of range(count), (count,), that depends only on seed and epoch."""
    epoch_seed = int(random_bits(seed, Purpose.SHUFFLE, np.array([epoch], np.int64))[0])
    bits = random_bits(epoch_seed, Purpose.SHUFFLE, np.arange(count, dtype=np.int64))
    return np.argsort(bits, kind="stable").astype(np.int64)


def sampling_probabilities(captions: Sequence[tuple[str, ...]], balance: float) -> NDArray[np.float64]:
    """(N,) the share of an epoch that each image gets.

    The images of a caption that n images have get together a share that grows as n^(1 - balance); no image is shown
    much more than MAX_REPEATS_PER_EPOCH times.
    """
    counts = Counter(captions)
    weights = np.array([counts[image_captions] ** -balance for image_captions in captions])
    probabilities = np.minimum(weights / weights.sum(), MAX_REPEATS_PER_EPOCH / len(weights))
    return np.asarray(probabilities / probabilities.sum(), np.float64)


def weighted_epoch_order(probabilities: NDArray[np.float64], seed: int, epoch: int) -> NDArray[np.int64]:
    """N image indices in an order that depends only on seed and epoch, each as often as its probability (N,) times N
    says, rounded up or down (systematic sampling): (N,) -> (N,)."""
    image_count = len(probabilities)
    epoch_counter = np.array([epoch], np.int64)
    shuffled = epoch_permutation(image_count, seed, epoch)
    cumulative = np.cumsum(probabilities[shuffled])
    offset = float(random_bits(seed, Purpose.EPOCH_OFFSET, epoch_counter)[0]) / 2**64
    positions = (np.arange(image_count) + offset) / image_count
    indices = np.searchsorted(cumulative / cumulative[-1], positions, side="right").clip(max=image_count - 1)
    # Shuffled again, so that the repetitions of an image do not follow each other.
    reshuffle_seed = int(random_bits(seed, Purpose.RESHUFFLE, epoch_counter)[0])
    return np.asarray(shuffled[indices][epoch_permutation(image_count, reshuffle_seed, epoch)], np.int64)
