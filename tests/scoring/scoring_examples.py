"""Random images, and scores with every field filled, for the tests of scoring."""

import torch
from torch import Tensor

from unspeckle.scoring.bits_per_dim import BitsPerDim
from unspeckle.scoring.composition.hybrids import SCORED_METHODS, HybridMethodScore, HybridsScore, hybrid_prompt
from unspeckle.scoring.composition.score import CategoryScore, CompositionScore, NounScore
from unspeckle.scoring.intervals import confidence_interval
from unspeckle.scoring.memorization import NearestImages, measure_memorization
from unspeckle.scoring.scores import CorpusInfo, Distance, FeatureInfo, LossScore, Scores, SweepPoint
from unspeckle.scoring.scoring_run import NearestPair, ReportImages


def random_images(*shape: int, seed: int = 0) -> Tensor:
    """uint8 noise of that shape."""
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def example_bits() -> BitsPerDim:
    return BitsPerDim(
        total=3.1,
        standard_error=0.02,
        prior=0.0,
        reconstruction=0.7,
        diffusion=2.4,
        image_count=128,
        log_snr=(-2.0, 0.0, 2.0),
        bits_by_log_snr=(0.1, 0.3, 0.6),
    )


def example_composition() -> CompositionScore:
    category = CategoryScore(
        name="two <objects>",
        prompt_count=25,
        image_count=50,
        correct_count=21,
        accuracy=0.42,
        low=0.3,
        high=0.5,
        ceiling=0.97,
        floor=0.03,
        hard_negative_rate=0.1,
        render_count=50,
        extra_object_rate=0.2,
    )
    return CompositionScore(
        model="a <model>",
        hash="0123456789ab",
        steps=24,
        sampler="dpmpp_2m",
        guidance_scale=3.0,
        mean=0.42,
        low=0.37,
        high=0.47,
        ceiling=0.97,
        floor=0.03,
        hard_negative_rate=0.1,
        categories=(category,),
        nouns=(NounScore("frog", 50, 3, 7),),
    )


def _distance(name: str, generated: list[float], floor: list[float]) -> Distance:
    return Distance(name, confidence_interval(generated), confidence_interval(floor))


def _hybrid_method(method: str) -> HybridMethodScore:
    return HybridMethodScore(
        method=method,
        prompt=hybrid_prompt(method, ("cat", "panda")),
        correct_per_pair=(1, 2),
        correct_count=3,
        image_count=4,
        accuracy=0.75,
        low=0.3,
        high=0.95,
    )


def example_scores() -> Scores:
    """Every field is filled but the composition, and nothing deserves a warning."""
    far = NearestImages(torch.linspace(10, 40, 400), torch.zeros(400, dtype=torch.int64))
    distances = (
        _distance("kid", [0.0312, 0.0288, 0.0301, 0.0299], [0.001, -0.002, 0.0, 0.001]),
        _distance("frechet", [11.0, 12.0, 13.0, 12.0], [5.0, 5.1, 5.2, 4.9]),
        _distance("precision", [0.7, 0.72, 0.69, 0.71], [0.8, 0.81, 0.8, 0.79]),
        _distance("recall", [0.5, 0.52, 0.49, 0.51], [0.8, 0.81, 0.8, 0.79]),
    )

    def point(steps: int, guidance_scale: float, kid: float) -> SweepPoint:
        return SweepPoint("dpmpp_2m", steps, guidance_scale, steps / 600, kid, 0.01, 0.7, 0.5, 0.6)

    return Scores(
        model="a <model>",
        hash="0123456789ab",
        version="1",
        device="cpu",
        sampler="dpmpp_2m",
        timestep_spacing="uniform",
        steps=24,
        guidance_scale=3.0,
        size=(64, 64),
        images_per_seed=500,
        seeds=(0, 1, 2, 3),
        seconds_per_image=0.04,
        corpus=CorpusInfo("scenes & more", "f" * 32, 4000, 400, is_training_corpus=True),
        features=FeatureInfo("scattering", "ab" * 6, 128),
        validation_count=400,
        images_per_floor=500,
        distances=distances,
        loss=LossScore(0.08, 0.075, (0.2, 0.5, 0.8), (0.01, 0.1, 0.4), (0.009, 0.09, 0.39), 256),
        bits_per_dim=example_bits(),
        memorization=measure_memorization(far, far, 4000),
        by_steps=tuple(point(steps, 3.0, 1 / steps) for steps in (4, 8, 16, 24, 48)),
        by_guidance_scale=tuple(point(24, scale, 0.02 * scale) for scale in (1.0, 3.0, 7.0)),
        hybrids=HybridsScore(16, (("cat", "panda"), ("fox", "owl")), 2, tuple(map(_hybrid_method, SCORED_METHODS))),
    )


def example_report_images() -> ReportImages:
    """The images of example_scores."""
    some, scores = random_images(3, 3, 8, 8), example_scores()
    pair = NearestPair(some[0], some[1], "a frog & <b>two</b> hats", 12.34)
    return ReportImages(
        generated_images=some,
        captions=["a <frog>", "b", "c"],
        validation_images=some.flip(0),
        nearest_pairs=[pair] * 2,
        by_steps=[random_images(4, 3, 8, 8)] * len(scores.by_steps),
        by_guidance_scale=[random_images(4, 3, 8, 8)] * len(scores.by_guidance_scale),
        hybrids=[random_images(2, 3, 8, 8)] * len(SCORED_METHODS),
    )
