"""What is measured: images, sweeps and distances whose numbers are those of what was drawn."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import unspeckle
from tiny_models import model_with_student, random_model
from unspeckle.corpus.captions import read_folder
from unspeckle.corpus.splits import open_corpus
from unspeckle.generation.conditioning import build_prompt_denoise
from unspeckle.generation.few_step import select_network
from unspeckle.generation.request import Request
from unspeckle.generation.resolve import resolve
from unspeckle.model import Model, SamplingSetup
from unspeckle.prompts import escape_prompt, parse_prompt
from unspeckle.rng import ExampleRNG
from unspeckle.scoring.distances import compute_prdc, kid
from unspeckle.scoring.features import ScatteringFeatures
from unspeckle.scoring.image_generation import generate_images
from unspeckle.scoring.measure import count_network_calls, measure_scores
from unspeckle.scoring.scoring_run import ScoreSettings
from unspeckle.scoring.sweeps import (
    ReferenceFeatures,
    SweepSetup,
    guidance_scale_variants,
    run_sweep,
    step_count_variants,
)


class ProgressRecorder:
    """Remembers everything that a measurement reports."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.advances: list[int] = []
        self.fractions: dict[str, list[float]] = {}

    def start_stage(self, name: str) -> None:
        self.stages.append(name)

    def advance(self, units: int) -> None:
        self.advances.append(units)

    def show_fraction(self, fraction: float) -> None:
        self.fractions.setdefault(self.stages[-1], []).append(fraction)


def setup_of(model: Model, request: Request) -> SweepSetup:
    return SweepSetup.of_request(resolve(model, request))


def test_images_of_many_captions_are_those_that_draw_draws() -> None:
    model = random_model(steps=3)
    captions, seeds = ["a frog", "two red frogs", "a blue rabbit left of a pizza"], [7, 3, 11]
    for request in (
        Request(),
        Request(sampler="euler_ancestral", guidance_scale=1.0),
        Request(sampler="heun", timestep_spacing="karras", steps=4),
    ):
        advances: list[int] = []
        generated = generate_images(model, captions, seeds, request, advances.append)
        assert sum(advances) == 3 and generated.seconds_per_image > 0
        for image, caption, seed in zip(generated.images, captions, seeds, strict=True):
            (expected,) = unspeckle.draw(model, replace(request, prompt=caption, seed=seed))
            difference = np.abs(np.asarray(expected).astype(int) - image.permute(1, 2, 0).numpy())
            assert difference.max() <= 1


def test_a_setup_counts_the_calls_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row of a batch is one call."""
    model = random_model()
    batch_sizes: list[int] = []
    forward = model.network.forward
    monkeypatch.setattr(model.network, "forward", lambda x, *rest: batch_sizes.append(len(x)) or forward(x, *rest))
    for sampler, scale, steps in (("dpmpp_2m", 3.0, 4), ("ddim", 1.0, 3), ("heun", 2.0, 3)):
        batch_sizes.clear()
        request = Request(sampler=sampler, guidance_scale=scale, steps=steps)
        generate_images(model, ["a frog"] * 5, range(5), request)
        # Heun's method needs one call only in its first step, from pure noise, and in its last one, to the image
        saved = 5 * (1 if scale == 1 else 2) * (2 if sampler == "heun" else 0)
        assert sum(batch_sizes) == 5 * setup_of(model, request).network_calls_per_image - saved


def test_sweeps_contain_the_models_own_setup_once() -> None:
    model = random_model(steps=24)
    own = setup_of(model, Request(guidance_scale=4.0))
    by_steps, by_guidance_scale = step_count_variants(model, own), guidance_scale_variants(model, own)
    assert by_steps.count(own) == by_guidance_scale.count(own) == 1
    heun_setups = {(setup.sampler, setup.steps) for setup in by_steps if setup.sampler == "heun"}
    assert heun_setups == {("heun", n) for n in (2, 4, 8, 12, 24)}
    assert [setup.guidance_scale for setup in by_guidance_scale] == [1, 2, 3, 4, 5, 7]
    of_one_step = random_model(steps=1)
    assert {s.steps for s in step_count_variants(of_one_step, setup_of(of_one_step, Request()))} == {1, 2}


@pytest.mark.parametrize("alone", [False, True])
def test_sweeps_never_mix_a_student_with_its_teacher(alone: bool) -> None:
    teacher = model_with_student()
    model = teacher.student if alone else teacher
    assert model is not None
    for request in (Request(steps=2), Request(steps=4)):
        setup = setup_of(model, request)
        assert step_count_variants(model, setup) == [replace(setup, steps=count) for count in (1, 2, 4)]
        assert guidance_scale_variants(model, setup) == []
    for request in (
        Request(),
        Request(steps=4, guidance_scale=3.0, sampler="ddim", timestep_spacing="shifted"),
        Request(steps=6, sampler="ddim"),
    ):
        setup = setup_of(teacher, request)
        variants = [*step_count_variants(teacher, setup), *guidance_scale_variants(teacher, setup)]
        assert setup in variants
        assert not any(select_network(teacher, variant.request()).card.step_counts for variant in variants)


def test_a_sweeps_numbers_are_those_of_its_images() -> None:
    model, extractor = random_model(), ScatteringFeatures()
    real_features = extractor(torch.randint(0, 256, (30, 3, 16, 16), dtype=torch.uint8))
    setup, captions, seeds = setup_of(model, Request(steps=2)), ["a frog"] * 16, range(16)
    reference = ReferenceFeatures(extractor, real_features)
    sweep = run_sweep(model, [setup], captions, seeds, reference=reference, advance=lambda units: None)
    ((point, images),) = sweep
    features = extractor(generate_images(model, captions, seeds, Request(steps=2)).images)
    prdc = compute_prdc(real_features, features)
    expected = (kid(real_features, features), prdc.precision, prdc.recall)
    assert (point.kid, point.precision, point.recall) == pytest.approx(expected)
    assert len(images) == 8 and point.kid_standard_error is not None and point.kid_standard_error > 0


def test_distances_are_those_of_the_generated_images(square_corpus: Path, tmp_path: Path) -> None:
    model = random_model(steps=2)
    corpus = open_corpus(read_folder(square_corpus), 16, cache_dir=tmp_path)
    progress, settings = ProgressRecorder(), ScoreSettings(images_per_seed=16, seed_count=2)
    scores, report_images = measure_scores(model, corpus, "squares", settings, progress)
    assert sum(progress.advances) == count_network_calls(model, corpus, settings)
    assert len(progress.stages) == len(set(progress.stages)) == 9 and scores.corpus is not None
    assert list(progress.fractions) == ["distances", "nearest training images"]
    assert all(fractions == sorted(fractions) and fractions[-1] == 1 for fractions in progress.fractions.values())
    validation_images = corpus.validation.center_crops(range(len(corpus.validation)))
    assert report_images.generated_images is not None and report_images.validation_images is not None
    assert len(report_images.generated_images) == 16
    indices = torch.arange(16) * len(validation_images) // 16
    assert torch.equal(report_images.validation_images, validation_images[indices])
    for caption, index in zip(report_images.captions, indices.tolist(), strict=True):
        assert caption in corpus.validation.captions[index]
    expected = generate_images(model, report_images.captions, range(16), Request()).images
    assert (expected.int() - report_images.generated_images.int()).abs().max() <= 1
    assert report_images.nearest_pairs == sorted(report_images.nearest_pairs, key=lambda pair: pair.distance)
    own = next(p for p in scores.by_steps if (p.sampler, p.steps) == (scores.sampler, scores.steps))
    same = next(p for p in scores.by_guidance_scale if p.guidance_scale == scores.guidance_scale)
    assert own.kid == pytest.approx(same.kid, rel=1e-6)


@pytest.mark.parametrize("family", ["xl", "xl-refiner", "1-lcm", "1-inpaint"])
@torch.no_grad()
def test_stable_diffusion_models_with_further_inputs_are_scored(
    family: str, square_corpus: Path, tmp_path: Path, sd_folder: Callable[[str], Path]
) -> None:
    """Their validation loss is the error of the predictions that drawing the same captions would use."""
    pytest.importorskip("diffusers", reason="needs diffusers")
    model = unspeckle.load(sd_folder(family))
    corpus = open_corpus(read_folder(square_corpus), 16, cache_dir=tmp_path)
    settings = ScoreSettings(images_per_seed=8, seed_count=1, request=Request(steps=1, size=16))
    scores, _ = measure_scores(model, corpus, "squares", settings, ProgressRecorder())
    assert scores.loss is not None and scores.bits_per_dim is None and "latents" in scores.missing[0]
    split, resolved = corpus.validation, resolve(model, settings.request)
    x = model.autoencoder.encode(split.center_crops(range(len(split))).float() / 127.5 - 1)
    t = torch.tensor(scores.loss.times[5])
    (alpha, sigma), eps = model.denoiser.schedule(t), ExampleRNG(0, torch.arange(len(x))).normal(5, x.shape[1:])
    sampling_setup = SamplingSetup(torch.tensor([1.0, 0.0]), 1.0, model.denoiser)
    prompts = [parse_prompt(escape_prompt(caption)) for caption in split.first_captions(range(len(split)))]
    complete = partial(model.add_conditioning, guidance_scale=resolved.guidance_scale, size=resolved.size)
    denoise = build_prompt_denoise(model, prompts, parse_prompt(""), sampling_setup, None, complete)
    denoised = denoise(alpha * x + sigma * eps, t)
    relative_error = (denoised - x).square().mean() / x.square().mean()
    assert scores.loss.relative_errors[5] == pytest.approx(float(relative_error), rel=1e-4)
