"""Two nouns in one prompt: every way to ask for one subject that is both, and "A AND B", to be two subjects, judged.

The pairs are those of faces whose hybrid training never showed; the judge is the detector of the words score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unspeckle.corpus.emoji.nouns import with_article
from unspeckle.generation.pipeline import Request, draw_prompts
from unspeckle.model import Model
from unspeckle.prompts import METHODS
from unspeckle.scoring.composition.detector import Detector
from unspeckle.scoring.composition.questions import Question
from unspeckle.scoring.composition.score import wilson
from unspeckle.scoring.composition.verdicts import judge

TOGETHER = "AND"  # the way that is to give two subjects
WAYS = (*METHODS, TOGETHER)
SHARE = 0.5  # of the second noun
Pair = tuple[str, str]


@dataclass(frozen=True)
class WayScore:
    """One way to ask: its prompt of the first pair; of each pair how many pictures are right, and the share of all that
    are, with its 95 % interval."""

    way: str
    prompt: str
    counts: tuple[int, ...]
    right: int
    pictures: int
    share: float
    low: float
    high: float


@dataclass(frozen=True)
class HybridsScore:
    """Of `held_out` pairs those that were drawn, each with so many seeds in every way."""

    held_out: int
    pairs: tuple[Pair, ...]
    seeds: int
    ways: tuple[WayScore, ...]


def hybrids_score(
    model: Model, pairs: Sequence[Pair], most: int, seeds: int, ask: Request, detector: Detector,
    tell: Callable[[int], None] = lambda count: None,
) -> tuple[HybridsScore, list[Tensor]]:  # fmt: skip
    """Up to `most` of the pairs, at even distances, in all WAYS; and of each way the first picture of every pair, uint8
    (pairs, 3, H, W). tell hears how many pictures more are done."""
    chosen = [pairs[i * len(pairs) // most] for i in range(most)] if most < len(pairs) else list(pairs)
    found, shown = [], []
    for way in WAYS:
        pictures = drawn(model, way, chosen, seeds, ask)
        found.append(judged(way, chosen, pictures, detector))
        shown.append(pictures[:, 0])
        tell(len(chosen) * seeds)
    return HybridsScore(len(pairs), tuple(chosen), seeds, tuple(found)), shown


def prompt(way: str, pair: Pair, share: float = SHARE) -> str:
    """What is said of a pair: way is one of WAYS."""
    one, other = pair
    if way == TOGETHER:
        return f"{with_article(one)} AND {with_article(other)}"
    return f"{with_article(one).removesuffix(one)}hybrid({one}, {other}, {share}, {way})"


def drawn(model: Model, way: str, pairs: Sequence[Pair], seeds: int, ask: Request, share: float = SHARE) -> Tensor:
    """uint8 (pairs, seeds, 3, H, W), each pair with the same seeds, from the ask's on."""
    prompts = [prompt(way, pair, share) for pair in pairs for _ in range(seeds)]
    numbers = [seed for _ in pairs for seed in range(ask.seed, ask.seed + seeds)]
    shown = np.stack([np.asarray(picture) for picture in draw_prompts(model, prompts, numbers, ask)])
    return torch.from_numpy(shown).view(len(pairs), seeds, *shown.shape[1:]).permute(0, 1, 4, 2, 3)


def judged(way: str, pairs: Sequence[Pair], pictures: Tensor, detector: Detector) -> WayScore:
    """How many of the pictures (pairs, seeds, 3, H, W) show one subject that is both; by AND, both subjects."""
    category = "two objects" if way == TOGETHER else "hybrids"
    counts = tuple(
        sum(verdict.right for verdict in judge(some, Question(category, "", pair), detector))
        for pair, some in zip(pairs, pictures, strict=True)
    )
    right, whole = sum(counts), len(pairs) * pictures.shape[1]
    return WayScore(way, prompt(way, pairs[0]), counts, right, whole, right / whole, *wilson(right, whole))
