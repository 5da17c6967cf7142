"""Scores: intervals, warnings, JSON and back."""

import json
import math
from dataclasses import replace

import pytest
import torch

from unspeckle import configuration
from unspeckle.errors import InputError
from unspeckle.scoring.composition.hybrids import SCORED_METHODS, HybridMethodScore, HybridsScore, hybrid_prompt
from unspeckle.scoring.likelihood import BitsPerDim
from unspeckle.scoring.memorisation import NearestImages, measure_memorization
from unspeckle.scoring.scores import (
    ConfidenceInterval,
    CorpusInfo,
    Distance,
    FeatureInfo,
    LossScore,
    Scores,
    SweepPoint,
    confidence_interval,
    find_warnings,
)


def scores() -> Scores:
    """Every field filled."""
    nothing, far = torch.zeros(400, dtype=torch.int64), torch.linspace(10, 40, 400)
    return Scores(
        model="a <model>", hash="0123456789ab", version="1", device="cpu", sampler="dpmpp_2m", timestep_spacing="uniform", steps=24,
        guidance_scale=3.0, size=(64, 64), images_per_seed=500, seeds=(0, 1, 2, 3), seconds_per_image=0.04,
        corpus=CorpusInfo("scenes & more", "f" * 32, 4000, 400, True),
        features=FeatureInfo("scattering", "ab" * 6, 128),
        validation_count=400, images_per_floor=500, distances=(
            Distance("kid", confidence_interval([0.0312, 0.0288, 0.0301, 0.0299]), confidence_interval([0.001, -0.002, 0.0, 0.001])),
            Distance("frechet", confidence_interval([11.0, 12.0, 13.0, 12.0]), confidence_interval([5.0, 5.1, 5.2, 4.9])),
            Distance("precision", confidence_interval([0.7, 0.72, 0.69, 0.71]), confidence_interval([0.8, 0.81, 0.8, 0.79])),
            Distance("recall", confidence_interval([0.5, 0.52, 0.49, 0.51]), confidence_interval([0.8, 0.81, 0.8, 0.79])),
        ),
        loss=LossScore(0.08, 0.075, (0.2, 0.5, 0.8), (0.01, 0.1, 0.4), (0.009, 0.09, 0.39), 256),
        bits_per_dim=BitsPerDim(3.1, 0.02, 0.0, 0.7, 2.4, 128, (-2.0, 0.0, 2.0), (0.1, 0.3, 0.6)),
        memorization=measure_memorization(NearestImages(far, nothing), NearestImages(far, nothing), 4000),
        by_steps=tuple(SweepPoint("dpmpp_2m", n, 3.0, n / 600, 1 / n, 0.01, 0.7, 0.5, 0.6) for n in (4, 8, 16, 24, 48)),
        by_guidance_scale=tuple(SweepPoint("dpmpp_2m", 24, s, 0.04, 0.02 * s, 0.01, 0.7, 0.5, 0.6) for s in (1.0, 3.0, 7.0)),
        hybrids=HybridsScore(16, (("cat", "panda"), ("fox", "owl")), 2, tuple(
            HybridMethodScore(way, hybrid_prompt(way, ("cat", "panda")), (1, 2), 3, 4, 0.75, 0.3, 0.95) for way in SCORED_METHODS
        )),
    )  # fmt: skip


def test_intervals_are_student_s() -> None:
    found = confidence_interval([1.0, 2.0, 3.0, 4.0])
    half = 3.182 * math.sqrt(5 / 3) / 2  # t for three degrees of freedom
    assert (found.mean, found.low, found.high) == pytest.approx((2.5, 2.5 - half, 2.5 + half))
    assert confidence_interval([1.0]) == ConfidenceInterval(1.0, None, None, (1.0,))
    assert confidence_interval([0.9, 1.0, 0.95], 0.0, 1.0).high == 1.0


def test_intervals_cover_what_they_promise() -> None:
    """95 of 100 intervals over four seeds hold the truth."""
    values = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 7
    found = [confidence_interval(row) for row in values.tolist()]
    held = sum(f.low <= 7 <= f.high for f in found if f.low is not None and f.high is not None)
    assert 0.935 < held / 2000 < 0.965


def test_scores_are_json_and_back() -> None:
    before = replace(scores(), words={"mean": 0.4, "low": 0.35, "high": 0.45, "categories": []}, warnings=("few",))
    text = json.dumps(configuration.to_json(before), allow_nan=False)
    after = configuration.from_json(Scores, json.loads(text), "scores")
    assert after == before
    with pytest.raises(InputError, match="nonsense"):
        configuration.from_json(Scores, {**json.loads(text), "nonsense": 1}, "scores")


def test_nothing_is_warned_of_where_counts_suffice() -> None:
    assert find_warnings(scores()) == ()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"corpus": CorpusInfo("c", "f", 4000, 400, False)}, "another corpus"),
        ({"compared": 100}, "Fréchet distance: 100 pictures are few for 128"),
        ({"pictures": 150}, "150 pictures are few"),
        ({"floor_pictures": 40}, "only 40 training pictures"),
        ({"corpus": CorpusInfo("c", "f", 1500, 400, True)}, "floors share training pictures"),
        ({"seeds": (0, 1)}, "fewer than three seeds"),
        (
            {"bits": replace(scores().bits_per_dim or BitsPerDim(0, 0, 0, 0, 0, 0, (), ()), pictures=20)},
            "20 pictures only",
        ),
    ],
)
def test_counts_that_are_too_small_are_said_to_be(change: dict[str, object], said: str) -> None:
    assert any(said in line for line in find_warnings(replace(scores(), **change)))  # type: ignore[arg-type]
