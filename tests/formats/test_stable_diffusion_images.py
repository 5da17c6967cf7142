"""Whole drawings from Stable Diffusion checkpoints against the pipelines of diffusers: float32, same seed, 20 steps."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import schedulers as peers

from diffusers_drawings import (
    NEGATIVE_PROMPT,
    PROMPT,
    SCHEDULERS,
    SEED,
    SIZE,
    assert_same,
    our_latents,
    pipeline_and_model,
    their_latents,
)
from unspeckle.denoiser import TIME_CONDITIONINGS
from unspeckle.generation.pipeline import steps
from unspeckle.generation.request import Request
from unspeckle.generation.resolve import resolve
from unspeckle.samplers import SAMPLERS
from unspeckle.timesteps import TIMESTEP_SPACINGS


@pytest.mark.parametrize("timestep_spacing", TIMESTEP_SPACINGS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_with_every_spacing(sampler: str, timestep_spacing: str, tmp_path_factory: Any) -> None:
    """With a schedule that ends with some signal, and with one that ends in pure noise."""
    pure = {"prediction": "v_prediction", "rescale_betas_zero_snr": True}
    for family, more in (("1", {}), ("2", pure)):
        _, model = pipeline_and_model(family, tmp_path_factory, **more)
        drawn = list(
            steps(model, Request(PROMPT, sampler=sampler, timestep_spacing=timestep_spacing, steps=3, size=SIZE))
        )
        assert len(drawn) == 4 and all(step.x.isfinite().all() for step in drawn)
        assert [float(step.t) for step in drawn] == sorted({float(step.t) for step in drawn}, reverse=True)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "lms", "heun"])
def test_all_spacings_lead_to_the_same_image(sampler: str, tmp_path_factory: Any) -> None:
    _, model = pipeline_and_model("1", tmp_path_factory)
    many = Request(
        PROMPT, seed=SEED, sampler=sampler, timestep_spacing="uniform", steps=160, size=SIZE, guidance_scale=1.0
    )
    *_, expected = steps(model, many)
    for timestep_spacing in ("shifted", "exponential", "trailing"):
        *_, found = steps(model, replace(many, timestep_spacing=timestep_spacing))
        assert (found.x - expected.x).norm() <= 0.05 * expected.x.norm(), timestep_spacing


def test_shifted_times_between_training_timesteps(tmp_path_factory: Any) -> None:
    setup = pipeline_and_model("1", tmp_path_factory)[1].sampling_setup("dpmpp_2m", "shifted", 4)
    assert torch.allclose(setup.times, torch.tensor([1, 0.9, 0.75, 0.5, 0], dtype=torch.float64))
    named = setup.denoiser.time_conditioning
    c_noise = TIME_CONDITIONINGS[named] if isinstance(named, str) else named
    timesteps = c_noise(setup.times[:-1], setup.denoiser.schedule)
    assert torch.allclose(timesteps, torch.tensor([999.0, 899, 749, 499]).double())


@pytest.mark.parametrize(
    ("sampler", "karras"),
    [*((name, False) for name in SCHEDULERS if name != "lcm"),
     *((name, True) for name in ("euler", "lms", "heun", "dpmpp_2m", "unipc"))],
)  # fmt: skip
def test_every_sampler(sampler: str, karras: bool, tmp_path_factory: Any) -> None:
    pipe, model = pipeline_and_model("1", tmp_path_factory)
    expected = their_latents(pipe, sampler, karras, negative_prompt=NEGATIVE_PROMPT, guidance_scale=4.0)
    assert_same(
        pipe, model, our_latents(model, sampler, karras, negative_prompt=NEGATIVE_PROMPT, guidance_scale=4.0), expected
    )


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral", "dpmpp_2m"])
def test_two(sampler: str, prediction: str, tmp_path_factory: Any) -> None:
    pipe, model = pipeline_and_model("2", tmp_path_factory, prediction)
    expected = their_latents(pipe, sampler, negative_prompt=NEGATIVE_PROMPT, guidance_scale=4.0)
    assert_same(pipe, model, our_latents(model, sampler, negative_prompt=NEGATIVE_PROMPT, guidance_scale=4.0), expected)


@pytest.mark.parametrize("negative_prompt", ["", NEGATIVE_PROMPT])
@pytest.mark.parametrize("sampler", ["euler", "unipc"])
def test_xl(sampler: str, negative_prompt: str, tmp_path_factory: Any) -> None:
    pipe, model = pipeline_and_model(
        "xl", tmp_path_factory, _class_name="EulerDiscreteScheduler", timestep_spacing="leading"
    )
    said = {"height": 24, "width": SIZE, "guidance_scale": 4.0}
    expected = their_latents(pipe, sampler, negative_prompt=negative_prompt or None, **said)
    found = our_latents(model, sampler, negative_prompt=negative_prompt, guidance_scale=4.0, size=(SIZE, 24))
    assert_same(pipe, model, found, expected)


def test_xl_refiner(tmp_path_factory: Any) -> None:
    """From pure noise, which its pipeline makes of an empty image."""
    pipe, model = pipeline_and_model("xl-refiner", tmp_path_factory, timestep_spacing="trailing")
    pipe.scheduler = peers.EulerDiscreteScheduler.from_config(pipe.settings)
    expected = pipe(
        PROMPT, image=torch.zeros(1, 4, SIZE // 2, SIZE // 2), strength=1.0, num_inference_steps=20, guidance_scale=4.0,
        negative_prompt=NEGATIVE_PROMPT, generator=torch.Generator().manual_seed(SEED), output_type="latent",
        original_size=(SIZE, SIZE), target_size=(SIZE, SIZE),
    ).images  # fmt: skip
    assert_same(pipe, model, our_latents(model, "euler", negative_prompt=NEGATIVE_PROMPT, guidance_scale=4.0), expected)


def test_inpainting_models_draw_where_nothing_is_kept(tmp_path_factory: Any) -> None:
    pipe, model = pipeline_and_model("1-inpaint", tmp_path_factory)
    empty = {"image": torch.zeros(1, 3, SIZE, SIZE), "mask_image": torch.ones(1, 1, SIZE, SIZE), "strength": 1.0}
    expected = their_latents(pipe, "ddim", guidance_scale=4.0, negative_prompt=NEGATIVE_PROMPT, **empty)
    assert_same(pipe, model, our_latents(model, "ddim", negative_prompt=NEGATIVE_PROMPT, guidance_scale=4.0), expected)


@pytest.mark.parametrize("guidance_scale", [1.0, 8.0])
def test_lcm(guidance_scale: float, tmp_path_factory: Any) -> None:
    pipe, model = pipeline_and_model("1-lcm", tmp_path_factory, _class_name="LCMScheduler")
    assert resolve(model, Request()).sampler == "lcm"
    expected = their_latents(pipe, "lcm", num_inference_steps=4, guidance_scale=guidance_scale)
    assert_same(pipe, model, our_latents(model, "lcm", steps=4, guidance_scale=guidance_scale), expected)


def test_each_image_of_a_batch_has_its_own_generator(tmp_path_factory: Any) -> None:
    pipe, model = pipeline_and_model("1", tmp_path_factory)
    generators = [torch.Generator().manual_seed(SEED + i) for i in range(2)]
    expected = their_latents(pipe, "euler_ancestral", num_images_per_prompt=2, generator=generators, guidance_scale=1.0)
    assert_same(pipe, model, our_latents(model, "euler_ancestral", guidance_scale=1.0, count=2), expected)
