"""One subject out of two nouns: every method of the prompt language, and "A AND B", which should give two subjects.

The pairs are faces whose hybrid training never showed; the images are judged by the detector of the composition score.
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
from unspeckle.scoring.composition.prompts import CompositionPrompt
from unspeckle.scoring.composition.verdicts import judge_images
from unspeckle.scoring.intervals import wilson_interval

AND_METHOD = "AND"  # should give two subjects
SCORED_METHODS = (*HYBRID_METHODS, AND_METHOD)
SECOND_NOUN_SHARE = 0.5  # how much of the second noun a hybrid has
NounPair = tuple[str, str]


@dataclass(frozen=True)
class HybridMethodScore:
    """How often one method works."""

    method: str  # one of SCORED_METHODS
    prompt: str  # of the first pair, as an example
    correct_per_pair: tuple[int, ...]  # correct images of each pair
    correct_count: int
    image_count: int
    accuracy: float  # correct_count / image_count
    low: float  # lower end of the accuracy's 95 % interval
    high: float  # upper end of it


@dataclass(frozen=True)
class HybridsScore:
    """How often each method makes one subject out of two nouns."""

    held_out_count: int  # pairs that the corpus holds out
    pairs: tuple[NounPair, ...]  # those that were drawn
    seed_count: int  # images of each pair with each method
    methods: tuple[HybridMethodScore, ...]


def score_hybrids(
    model: Model,
    pairs: Sequence[NounPair],
    detector: Detector,
    request: Request,
    *,
    max_pairs: int,
    seed_count: int,
    advance: Callable[[int], None] = lambda count: None,
) -> tuple[HybridsScore, list[Tensor]]:
    """The score of up to max_pairs evenly spaced pairs, and for each method the first image of every pair.

    These are uint8 (pairs, 3, H, W). advance is called with the number of further images that are done.
    """
    selected_pairs = list(pairs)
    if max_pairs < len(pairs):
        selected_pairs = [pairs[i * len(pairs) // max_pairs] for i in range(max_pairs)]
    method_scores, first_images = [], []
    for method in SCORED_METHODS:
        images = generate_hybrids(model, method, selected_pairs, seed_count, request)
        method_scores.append(judge_hybrids(method, selected_pairs, images, detector))
        first_images.append(images[:, 0])
        advance(len(selected_pairs) * seed_count)
    return HybridsScore(len(pairs), tuple(selected_pairs), seed_count, tuple(method_scores)), first_images


def hybrid_prompt(method: str, pair: NounPair, share: float = SECOND_NOUN_SHARE) -> str:
    """The prompt of a pair for one of SCORED_METHODS."""
    first, second = pair
    if method == AND_METHOD:
        return f"{with_article(first)} AND {with_article(second)}"
    article = with_article(first).removesuffix(first)
    return f"{article}hybrid({first}, {second}, {share}, {method})"


def generate_hybrids(
    model: Model,
    method: str,
    pairs: Sequence[NounPair],
    seed_count: int,
    request: Request,
    share: float = SECOND_NOUN_SHARE,
) -> Tensor:
    """uint8 (pairs, seeds, 3, H, W); every pair has the same seeds, counted from the request's."""
    prompts = [hybrid_prompt(method, pair, share) for pair in pairs for _ in range(seed_count)]
    image_seeds = [seed for _ in pairs for seed in range(request.seed, request.seed + seed_count)]
    pixels = np.stack([np.asarray(image) for image in draw_prompts(model, prompts, image_seeds, request)])
    return torch.from_numpy(pixels).view(len(pairs), seed_count, *pixels.shape[1:]).permute(0, 1, 4, 2, 3)


def judge_hybrids(method: str, pairs: Sequence[NounPair], images: Tensor, detector: Detector) -> HybridMethodScore:
    """How many of the images (pairs, seeds, 3, H, W) show one subject that is both; for "AND", both subjects."""
    category = "two objects" if method == AND_METHOD else "hybrids"
    correct_per_pair = []
    for pair, pair_images in zip(pairs, images, strict=True):
        verdicts = judge_images(pair_images, CompositionPrompt(category, "", pair), detector)
        correct_per_pair.append(sum(verdict.is_correct for verdict in verdicts))
    correct_count, image_count = sum(correct_per_pair), len(pairs) * images.shape[1]
    low, high = wilson_interval(correct_count, image_count)
    return HybridMethodScore(
        method=method,
        prompt=hybrid_prompt(method, pairs[0]),
        correct_per_pair=tuple(correct_per_pair),
        correct_count=correct_count,
        image_count=image_count,
        accuracy=correct_count / image_count,
        low=low,
        high=high,
    )
