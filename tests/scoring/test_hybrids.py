"""Hybrids and "A AND B": what is drawn, what is judged right, how many pairs are asked."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import unspeckle
from tiny_models import random_model
from unspeckle.generation.request import Request
from unspeckle.prompts import SCORED_METHODS, parse_prompt
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
from unspeckle.scoring.composition.score import wilson_interval

PAIR = ("owl", "frog")
BOX = (0.1, 0.1, 0.4, 0.4)


class Told:
    """A detector that finds what the first pixel's red is the number of."""

    found = (
        [Detection(PAIR, BOX)],
        [Detection(("owl",), BOX), Detection(("frog",), BOX)],
        [Detection(("owl",), BOX)],
        [],
    )

    def detect(self, pictures: Tensor) -> list[list[Detection]]:
        return [self.found[int(picture[0, 0, 0]) % 4] for picture in pictures]


def test_prompts_name_their_way() -> None:
    assert (*SCORED_METHODS, AND_METHOD) == SCORED_METHODS
    for method in SCORED_METHODS:
        ((words, hybrid),) = [guess.content for guess in parse_prompt(hybrid_prompt(method, PAIR, 0.25)).subprompts]
        assert words.content == "an " and isinstance(hybrid, Hybrid)
        assert (hybrid.ratio, hybrid.method) == (0.25, method)
    assert str(parse_prompt(hybrid_prompt(AND_METHOD, PAIR))) == "an owl AND a frog"


@pytest.mark.parametrize(
    ("way", "counts"),
    [*((method, (2, 1)) for method in SCORED_METHODS), (AND_METHOD, (0, 1))],
    ids=lambda value: str(value),
)
def test_a_hybrid_is_one_subject_that_is_both_and_AND_is_two(way: str, counts: tuple[int, int]) -> None:
    pictures = torch.zeros(2, 3, 3, 8, 8, dtype=torch.uint8)
    pictures[:, :, 0, 0, 0] = torch.tensor([[0, 2, 0], [3, 1, 0]])
    found = judge_hybrids(way, [PAIR, PAIR], pictures, Told())  # type: ignore[arg-type]
    right = sum(counts)
    assert (found.correct_per_pair, found.correct_count, found.image_count, found.accuracy) == (
        counts,
        right,
        6,
        right / 6,
    )
    assert (found.low, found.high) == wilson_interval(right, 6)


def test_pictures_are_those_of_draw_with_the_same_seeds_for_every_pair() -> None:
    model, pairs, ask = random_model(steps=3), [("frog", "rabbit"), ("pizza", "frog")], Request(seed=5)
    for way in SCORED_METHODS:
        pictures = generate_hybrids(model, way, pairs, 2, ask)
        assert pictures.shape == (2, 2, 3, 16, 16)
        for pair, some in zip(pairs, pictures, strict=True):
            expected = unspeckle.draw(model, replace(ask, prompt=hybrid_prompt(way, pair), count=2))
            for one, shown in zip(expected, some, strict=True):
                assert np.abs(np.asarray(one).astype(int) - shown.permute(1, 2, 0).numpy()).max() <= 1


def test_some_pairs_are_taken_from_all_over() -> None:
    model = random_model(steps=1)
    pairs = [(f"frog {i}", "rabbit") for i in range(7)]
    told: list[int] = []
    found, shown = score_hybrids(model, pairs, 3, 2, Request(), Told(), told.append)  # type: ignore[arg-type]
    assert found.held_out_count == 7 and found.pairs == (pairs[0], pairs[2], pairs[4]) and found.seed_count == 2
    assert [way.method for way in found.methods] == list(SCORED_METHODS) and all(
        way.image_count == 6 for way in found.methods
    )
    assert told == [6] * len(SCORED_METHODS)
    for way, first in zip(SCORED_METHODS, shown, strict=True):
        assert torch.equal(first, generate_hybrids(model, way, found.pairs, 2, Request())[:, 0])
    assert score_hybrids(model, pairs, 9, 1, Request(), Told())[0].pairs == tuple(pairs)  # type: ignore[arg-type]
