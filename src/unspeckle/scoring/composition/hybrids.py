"""Two nouns in one prompt: every way to ask for one subject that is both, and "A AND B", to be two subjects, judged.

The pairs are those of faces whose hybrid training never showed; the judge is the detector of the words score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unspeckle.corpus.english import with_article
from unspeckle.generation.pipeline import draw_prompts
from unspeckle.generation.request import Request
from unspeckle.model import Model
from unspeckle.prompts import HYBRID_METHODS
from unspeckle.scoring.composition.detector import Detector
from unspeckle.scoring.composition.questions import CompositionPrompt
from unspeckle.scoring.composition.score import wilson_interval
from unspeckle.scoring.composition.verdicts import judge_images

AND_METHOD = "AND"  # the way that is to give two subjects
SCORED_METHODS = (*HYBRID_METHODS, AND_METHOD)
SECOND_NOUN_SHARE = 0.5  # of the second noun
NounPair = tuple[str, str]


@dataclass(frozen=True)
class HybridMethodScore:
    """One way to ask: its prompt of the first pair; of each pair how many pictures are right, and the share of all that
    are, with its 95 % interval."""

    method: str
    prompt: str
    correct_per_pair: tuple[int, ...]
    correct_count: int
    image_count: int
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class HybridsScore:
    """Of `held_out` pairs those that were drawn, each with so many seeds in every way."""

    held_out_count: int
    pairs: tuple[NounPair, ...]
    seed_count: int
    methods: tuple[HybridMethodScore, ...]


def score_hybrids(
    model: Model, pairs: Sequence[NounPair], max_pairs: int, seed_count: int, request: Request, detector: Detector,
    advance: Callable[[int], None] = lambda count: None,
) -> tuple[HybridsScore, list[Tensor]]:  # fmt: skip
    """Up to `most` of the pairs, at even distances, in all WAYS; and of each way the first picture of every pair, uint8
    (pairs, 3, H, W). tell hears how many pictures more are done."""
    selected_pairs = (
        [pairs[i * len(pairs) // max_pairs] for i in range(max_pairs)] if max_pairs < len(pairs) else list(pairs)
    )
    method_scores, first_images = [], []
    for method in SCORED_METHODS:
        images = generate_hybrids(model, method, selected_pairs, seed_count, request)
        method_scores.append(judge_hybrids(method, selected_pairs, images, detector))
        first_images.append(images[:, 0])
        advance(len(selected_pairs) * seed_count)
    return HybridsScore(len(pairs), tuple(selected_pairs), seed_count, tuple(method_scores)), first_images


def hybrid_prompt(method: str, pair: NounPair, share: float = SECOND_NOUN_SHARE) -> str:
    """What is said of a pair: way is one of WAYS."""
    first, second = pair
    if method == AND_METHOD:
        return f"{with_article(first)} AND {with_article(second)}"
    return f"{with_article(first).removesuffix(first)}hybrid({first}, {second}, {share}, {method})"


def generate_hybrids(
    model: Model,
    method: str,
    pairs: Sequence[NounPair],
    seed_count: int,
    request: Request,
    share: float = SECOND_NOUN_SHARE,
) -> Tensor:
    """uint8 (pairs, seeds, 3, H, W), each pair with the same seeds, from the ask's on."""
    prompts = [hybrid_prompt(method, pair, share) for pair in pairs for _ in range(seed_count)]
    image_seeds = [seed for _ in pairs for seed in range(request.seed, request.seed + seed_count)]
    pixels = np.stack([np.asarray(image) for image in draw_prompts(model, prompts, image_seeds, request)])
    return torch.from_numpy(pixels).view(len(pairs), seed_count, *pixels.shape[1:]).permute(0, 1, 4, 2, 3)


def judge_hybrids(method: str, pairs: Sequence[NounPair], images: Tensor, detector: Detector) -> HybridMethodScore:
    """How many of the pictures (pairs, seeds, 3, H, W) show one subject that is both; by AND, both subjects."""
    category = "two objects" if method == AND_METHOD else "hybrids"
    correct_per_pair = tuple(
        sum(
            verdict.is_correct for verdict in judge_images(pair_images, CompositionPrompt(category, "", pair), detector)
        )
        for pair, pair_images in zip(pairs, images, strict=True)
    )
    correct_count, image_count = sum(correct_per_pair), len(pairs) * images.shape[1]
    return HybridMethodScore(
        method,
        hybrid_prompt(method, pairs[0]),
        correct_per_pair,
        correct_count,
        image_count,
        correct_count / image_count,
        *wilson_interval(correct_count, image_count),
    )
