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

_ORDER, _WORDING, _TOP, _LEFT, _MIRROR, _OFFSET, _MIX = range(1, 8)  # what a number is drawn for
OFTENEST = 4.0  # times an epoch, that a picture of a rare caption is shown
_GOLDEN = 0x9E3779B97F4A7C15


class Batch(NamedTuple):
    """Examples of the global positions `indices`."""

    pictures: (
        Tensor  # uint8 (B, 3, H, W), channels last in memory; or float32 latents (B, C, h, w), where they are kept
    )
    captions: list[str]
    indices: Tensor  # int64 (B,), start, start + 1, …


def batches(
    split: Split, size: int, *, seed: int, start: int = 0, flips: bool = True, balance: float = 0.0
) -> Iterator[Batch]:
    """Batches of `size` examples without end, from global position `start` (the number of examples already seen).

    Each epoch shows every picture once, in an order of its own; with a balance, pictures of rare captions are shown
    more often and those of frequent ones less: see `rarity`. An example's picture, wording, crop and mirroring hang
    on (seed, position) alone, not on `size` or `start`. Half of the pictures are mirrored, never one of whose wordings
    says left, right or half; `flips=False` mirrors none. Raises InputError for an empty split or bad numbers.
    """
    if len(split) == 0:
        raise InputError("the corpus has no pictures to train on; give a folder with more pictures")
    if size < 1 or start < 0:
        raise InputError(f"batch of {size} from {start}: give a size of at least 1 and a start of at least 0")
    if not 0 <= balance <= 1:
        raise InputError(f"balance {balance}: must lie between 0 and 1")
    return _endless(split, size, seed, start, flips, balance)


def _endless(split: Split, size: int, seed: int, start: int, flips: bool, balance: float) -> Iterator[Batch]:
    import torch

    count = len(split)
    mirrorable = split.mirrorable() if flips else np.zeros(count, np.bool_)
    shares = rarity(split.wordings, balance) if balance else None

    @lru_cache(maxsize=2)
    def order(epoch: int) -> NDArray[np.int64]:
        return permutation(count, seed, epoch) if shares is None else balanced(shares, seed, epoch)

    while True:
        positions = np.arange(start, start + size, dtype=np.int64)
        chosen = shown(count, positions, order)
        tall, wide = split.spare(chosen)
        pictures = split.crops(
            chosen,
            _below(tall + 1, seed, _TOP, positions),
            _below(wide + 1, seed, _LEFT, positions),
            mirrorable[chosen] & (hashed(seed, _MIRROR, positions) >> np.uint64(63) == 0),
        )
        yield Batch(pictures, worded(split, seed, positions, chosen), torch.from_numpy(positions))
        start += size


def shown(count: int, positions: NDArray[np.int64], order: Callable[[int], NDArray[np.int64]]) -> NDArray[np.int64]:
    """Which of so many pictures is shown at each global position: (B,) -> (B,). order: of an epoch, (count,)."""
    chosen = np.empty(len(positions), np.int64)
    for epoch in np.unique(positions // count).tolist():
        mine = positions // count == epoch
        chosen[mine] = order(epoch)[positions[mine] % count]
    return chosen


def rarity(wordings: Sequence[tuple[str, ...]], balance: float) -> NDArray[np.float64]:
    """(N,) the share of an epoch that each picture is due: that of its caption, of n pictures, grows as
    n^(1 - balance), but no picture is shown much more than OFTENEST times, however rare its caption."""
    counts = Counter(wordings)
    weights = np.array([counts[words] ** -balance for words in wordings])
    shares = np.minimum(weights / weights.sum(), OFTENEST / len(weights))
    return np.asarray(shares / shares.sum(), np.float64)


def balanced(shares: NDArray[np.float64], seed: int, epoch: int) -> NDArray[np.int64]:
    """An order of as many pictures as there are shares (N,), each as often as its share of N says, rounded up or down
    (systematic sampling), that hangs on (seed, epoch) alone: (N,)."""
    count = len(shares)
    mixed = permutation(count, seed, epoch)
    ends = np.cumsum(shares[mixed])
    offset = float(hashed(seed, _OFFSET, np.array([epoch], np.int64))[0]) / 2**64
    due = mixed[np.searchsorted(ends / ends[-1], (np.arange(count) + offset) / count, side="right").clip(max=count - 1)]
    key = int(hashed(seed, _MIX, np.array([epoch], np.int64))[0])
    again = permutation(count, key, epoch)
    return np.asarray(due[again], np.int64)  # what is shown twice does not come in a row


def worded(split: Split, seed: int, positions: NDArray[np.int64], chosen: NDArray[np.int64]) -> list[str]:
    """With which of its wordings each of the pictures chosen (B,) is shown at its position."""
    variety = np.array([len(split.wordings[i]) for i in chosen.tolist()], np.int64)
    wording = _below(variety, seed, _WORDING, positions).tolist()
    return [split.wordings[i][w] for i, w in zip(chosen.tolist(), wording, strict=True)]


@lru_cache(maxsize=4)
def permutation(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """An order of range(count) that hangs on (seed, epoch) alone."""
    key = int(hashed(seed, _ORDER, np.array([epoch], np.int64))[0])
    return np.argsort(hashed(key, _ORDER, np.arange(count, dtype=np.int64)), kind="stable").astype(np.int64)


def hashed(seed: int, purpose: int, positions: NDArray[np.int64]) -> NDArray[np.uint64]:
    """64 random bits for each position: two rounds of SplitMix64 (Steele et al. 2014) on seed and purpose, one more
    on the position. (B,) -> (B,)"""
    key = _mix(np.array([seed % 2**64], np.uint64) + np.uint64(purpose * _GOLDEN % 2**64))
    key = _mix(key + np.uint64(_GOLDEN))
    return _mix(key + positions.astype(np.uint64) * np.uint64(_GOLDEN))


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _below(bounds: NDArray[np.int64], seed: int, purpose: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """A whole number in [0, bound) for each position: (B,), (B,) -> (B,)."""
    high = hashed(seed, purpose, positions) >> np.uint64(32)
    return (high * bounds.astype(np.uint64) >> np.uint64(32)).astype(np.int64)
