"""Hybrids and "A AND B": which prompts are drawn, what is judged correct, how many pairs are drawn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import unspeckle
from tiny_models import random_model
from unspeckle.generation.request import Request
from unspeckle.prompts import HYBRID_METHODS, parse_prompt
from unspeckle.prompts.syntax_tree import Hybrid
from unspeckle.scoring.composition.detector import Detection
from unspeckle.scoring.composition.hybrids import (
    AND_METHOD,
    SCORED_METHODS,
    generate_hybrids,
    hybrid_prompt,
    judge_hybrids,
    score_hybrids,
)
from unspeckle.scoring.intervals import wilson_interval

PAIR = ("owl", "frog")
BOX = (0.1, 0.1, 0.4, 0.4)


class FirstPixelDetector:
    """Finds what the red value of an image's first pixel is the number of."""

    results = (
        [Detection(PAIR, BOX)],
        [Detection(("owl",), BOX), Detection(("frog",), BOX)],
        [Detection(("owl",), BOX)],
        [],
    )

    def detect(self, images: Tensor) -> list[list[Detection]]:
        return [self.results[int(image[0, 0, 0]) % 4] for image in images]


def test_prompts_name_their_method() -> None:
    assert (*HYBRID_METHODS, AND_METHOD) == SCORED_METHODS
    for method in HYBRID_METHODS:
        ((text, hybrid),) = [part.content for part in parse_prompt(hybrid_prompt(method, PAIR, 0.25)).subprompts]
        assert text.text == "an " and isinstance(hybrid, Hybrid)
        assert (hybrid.ratio, hybrid.method) == (0.25, method)
    assert str(parse_prompt(hybrid_prompt(AND_METHOD, PAIR))) == "an owl AND a frog"


@pytest.mark.parametrize(
    ("method", "counts"), [*((method, (2, 1)) for method in HYBRID_METHODS), (AND_METHOD, (0, 1))], ids=str
)
def test_a_hybrid_is_one_subject_that_is_both_and_AND_is_two(method: str, counts: tuple[int, int]) -> None:
    images = torch.zeros(2, 3, 3, 8, 8, dtype=torch.uint8)
    images[:, :, 0, 0, 0] = torch.tensor([[0, 2, 0], [3, 1, 0]])
    score = judge_hybrids(method, [PAIR, PAIR], images, FirstPixelDetector())  # type: ignore[arg-type]
    correct = sum(counts)
    assert (score.correct_per_pair, score.correct_count, score.image_count) == (counts, correct, 6)
    assert score.accuracy == correct / 6 and (score.low, score.high) == wilson_interval(correct, 6)


def test_images_are_those_of_draw_with_the_same_seeds_for_every_pair() -> None:
    model, pairs, request = random_model(steps=3), [("frog", "rabbit"), ("pizza", "frog")], Request(seed=5)
    for method in SCORED_METHODS:
        images = generate_hybrids(model, method, pairs, 2, request)
        assert images.shape == (2, 2, 3, 16, 16)
        for pair, pair_images in zip(pairs, images, strict=True):
            expected = unspeckle.draw(model, replace(request, prompt=hybrid_prompt(method, pair), count=2))
            for one, image in zip(expected, pair_images, strict=True):
                assert np.abs(np.asarray(one).astype(int) - image.permute(1, 2, 0).numpy()).max() <= 1


def test_the_pairs_are_evenly_spaced() -> None:
    model, detector = random_model(steps=1), FirstPixelDetector()
    pairs = [(f"frog {i}", "rabbit") for i in range(7)]
    advances: list[int] = []
    score, images = score_hybrids(
        model, pairs, detector, Request(), max_pairs=3, seed_count=2, advance=advances.append,  # type: ignore[arg-type]
    )  # fmt: skip
    assert score.held_out_count == 7 and score.pairs == (pairs[0], pairs[2], pairs[4]) and score.seed_count == 2
    assert [method.method for method in score.methods] == list(SCORED_METHODS)
    assert all(method.image_count == 6 for method in score.methods)
    assert advances == [6] * len(SCORED_METHODS)
    for method, first_images in zip(SCORED_METHODS, images, strict=True):
        assert torch.equal(first_images, generate_hybrids(model, method, score.pairs, 2, Request())[:, 0])
    all_pairs, _ = score_hybrids(model, pairs, detector, Request(), max_pairs=9, seed_count=1)  # type: ignore[arg-type]
    assert all_pairs.pairs == tuple(pairs)
