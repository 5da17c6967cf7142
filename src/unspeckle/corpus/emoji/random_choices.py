"""Random choices from a `random.Random`, each a fixed number of calls of `rng.random()`: the scenes of a corpus
depend on their sequence."""

from collections.abc import Mapping, Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


def choose_weighted(rng: Random, weights: Mapping[str, float]) -> str:
    """A key, with a probability in proportion to its weight."""
    remainder = rng.random() * sum(weights.values())
    for name, weight in weights.items():
        remainder -= weight
        if remainder < 0:
            return name
    return next(iter(weights))


def choose_one(rng: Random, options: Sequence[T]) -> T:
    """One of the options, each with the same probability."""
    return options[int(rng.random() * len(options))]


def choose_distinct(rng: Random, options: Sequence[T], count: int) -> list[T]:
    """`count` different options in random order, or all of them if they are fewer."""
    remaining = list(options)
    return [remaining.pop(int(rng.random() * len(remaining))) for _ in range(min(count, len(remaining)))]


def uniform(rng: Random, low: float, high: float) -> float:
    """A number between `low` and `high`."""
    return low + (high - low) * rng.random()
