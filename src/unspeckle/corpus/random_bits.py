"""Random numbers that are a pure function of seed, purpose and position, by the hash SplitMix64."""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

_GOLDEN_GAMMA = 0x9E3779B97F4A7C15


class Purpose(IntEnum):
    """What a number is drawn for; numbers for different purposes are independent. The values must not change: every
    run that is resumed depends on them."""

    SHUFFLE = 1
    CAPTION = 2
    TOP = 3
    LEFT = 4
    FLIP = 5
    EPOCH_OFFSET = 6
    RESHUFFLE = 7
    WORDING = 8


def random_bits(seed: int, purpose: int, counters: NDArray[np.int64]) -> NDArray[np.uint64]:
    """64 random bits for each counter: (B,) -> (B,).

    Two rounds of SplitMix64 (Steele, Lea & Flood 2014) on seed and purpose, one more on the counter.
    """
    key = splitmix64(np.array([seed % 2**64], np.uint64) + np.uint64(int(purpose) * _GOLDEN_GAMMA % 2**64))
    key = splitmix64(key + np.uint64(_GOLDEN_GAMMA))
    return splitmix64(key + counters.astype(np.uint64) * np.uint64(_GOLDEN_GAMMA))


def random_integers(
    bounds: NDArray[np.int64], seed: int, purpose: int, counters: NDArray[np.int64]
) -> NDArray[np.int64]:
    """A random integer in [0, bound) for each counter: (B,), (B,) -> (B,)."""
    high_bits = random_bits(seed, purpose, counters) >> np.uint64(32)
    return (high_bits * bounds.astype(np.uint64) >> np.uint64(32)).astype(np.int64)


def splitmix64(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of SplitMix64 (Steele, Lea & Flood 2014, fig. 17)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
