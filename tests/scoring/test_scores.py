"""Scores: JSON and back, and when they deserve a warning."""

import json
from dataclasses import replace

import pytest
from scoring_examples import example_bits, example_composition, example_scores

from unspeckle import configuration
from unspeckle.errors import InputError
from unspeckle.scoring.scores import CorpusInfo, Scores, find_warnings


def test_scores_are_json_and_back() -> None:
    before = replace(example_scores(), composition=example_composition(), warnings=("few",))
    text = json.dumps(configuration.to_json(before), allow_nan=False)
    after = configuration.from_json(Scores, json.loads(text), "scores")
    assert after == before
    with pytest.raises(InputError, match="nonsense"):
        configuration.from_json(Scores, {**json.loads(text), "nonsense": 1}, "scores")


def test_there_is_no_warning_if_the_counts_suffice() -> None:
    assert find_warnings(example_scores()) == ()


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ({"corpus": CorpusInfo("c", "f", 4000, 400, False)}, "another corpus"),
        ({"validation_count": 100}, "Fréchet distance: 100 images are few for 128"),
        ({"images_per_seed": 150}, "150 images are few"),
        ({"images_per_floor": 40}, "only 40 training images"),
        ({"corpus": CorpusInfo("c", "f", 1500, 400, True)}, "floors share training images"),
        ({"seeds": (0, 1)}, "fewer than three seeds"),
        ({"bits_per_dim": replace(example_bits(), image_count=20)}, "20 images only"),
    ],
)
def test_small_counts_are_warned_about(change: dict[str, object], warning: str) -> None:
    scores = replace(example_scores(), **change)  # type: ignore[arg-type]
    assert any(warning in line for line in find_warnings(scores))
