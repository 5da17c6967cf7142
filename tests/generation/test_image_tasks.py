"""Image-to-image, inpainting and clip skip against the pipelines of diffusers: float32, the same seed, 20 steps."""

from functools import partial
from typing import Any

import diffusers
import pytest
import torch

from diffusers_drawings import (
    NEGATIVE_PROMPT,
    PROMPT,
    SCHEDULERS,
    SEED,
    SIZE,
    assert_same,
    our_latents,
    pipeline_and_model,
    scheduler_options,
    their_latents,
)
from sample_images import make_image, make_mask
from unspeckle.errors import InputError
from unspeckle.generation.request import Request
from unspeckle.generation.resolve import resolve

GUIDED = {"negative_prompt": NEGATIVE_PROMPT, "guidance_scale": 4.0}


class ResumedLMS(diffusers.LMSDiscreteScheduler):
    """Their LMS with weights for the derivatives that it has: theirs assumes a drawing that started at noise."""

    def get_lms_coefficient(self, order: int, t: int, current_order: int) -> float:
        order = min(order, len(self.derivatives))
        return super().get_lms_coefficient(order, t, current_order) if current_order < order else 0.0


def resumed_plms_timesteps(
    scheduler: Any, num_inference_steps: int, strength: float, device: str
) -> tuple[torch.Tensor, int]:
    """The timesteps of PLMS from a later start: the first, then the second twice, as in a drawing that starts at noise.
    Their own start between the two calls of that pair."""
    steps = int(num_inference_steps * strength)
    timesteps = torch.cat([scheduler.timesteps[:1], scheduler.timesteps[2:]])[num_inference_steps - steps :]
    return torch.cat([timesteps[:2], timesteps[1:]]), steps


def their_latents_from_image(pipe: Any, kind: str, sampler: str, karras: bool = False, **options: Any) -> torch.Tensor:
    """Their latents from another of their pipelines with the same parts."""
    parts = {name: part for name, part in pipe.components.items() if name != "safety_checker"}
    xl_options = {
        "add_watermarker": False,
        "requires_aesthetics_score": pipe.config.get("requires_aesthetics_score", False),
    }
    pipeline = getattr(diffusers, kind)(**parts, **(xl_options if "XL" in kind else {"safety_checker": None}),
                                    **({} if "XL" in kind else {"requires_safety_checker": False}))  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = {**SCHEDULERS, "lms": ResumedLMS}[sampler].from_config(
        {**pipe.settings, **scheduler_options(sampler, karras)}
    )
    if sampler == "plms":
        pipeline.get_timesteps = partial(resumed_plms_timesteps, pipeline.scheduler)
    arguments = {"prompt": PROMPT, "image": make_image(), "num_inference_steps": 20, "output_type": "latent", **GUIDED}
    return pipeline(**{**arguments, "generator": torch.Generator().manual_seed(SEED), **options}).images


@pytest.mark.parametrize(
    ("sampler", "karras"),
    [*((name, False) for name in SCHEDULERS if name != "lcm"), ("euler", True), ("dpmpp_2m", True)],
)
def test_image_to_image(sampler: str, karras: bool, tmp_path_factory: Any) -> None:
    pipe, model = pipeline_and_model("1", tmp_path_factory)
    for strength in (0.55, 1.0) if sampler in ("ddim", "euler") else (0.55,):
        expected = their_latents_from_image(pipe, "StableDiffusionImg2ImgPipeline", sampler, karras, strength=strength)
        found = our_latents(
            model,
            sampler,
            karras,
            negative_prompt=NEGATIVE_PROMPT,
            guidance_scale=4.0,
            image=make_image(),
            strength=strength,
        )
        assert_same(pipe, model, found, expected)


@pytest.mark.parametrize("family", ["xl", "xl-refiner"])
def test_image_to_image_of_xl(family: str, tmp_path_factory: Any) -> None:
    options = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}
    pipe, model = pipeline_and_model(family, tmp_path_factory, **options)
    expected = their_latents_from_image(pipe, "StableDiffusionXLImg2ImgPipeline", "euler", strength=0.3)
    assert_same(
        pipe,
        model,
        our_latents(
            model, "euler", negative_prompt=NEGATIVE_PROMPT, guidance_scale=4.0, image=make_image(), strength=0.3
        ),
        expected,
    )


def test_each_image_of_a_batch_starts_by_its_own_generator(tmp_path_factory: Any) -> None:
    pipe, model = pipeline_and_model("1", tmp_path_factory)
    generators = [torch.Generator().manual_seed(SEED + i) for i in range(2)]
    options = {"num_images_per_prompt": 2, "generator": generators, "strength": 0.5}
    expected = their_latents_from_image(pipe, "StableDiffusionImg2ImgPipeline", "euler_ancestral", **options)
    found = our_latents(
        model,
        "euler_ancestral",
        negative_prompt=NEGATIVE_PROMPT,
        guidance_scale=4.0,
        image=make_image(),
        strength=0.5,
        count=2,
    )
    assert_same(pipe, model, found, expected)


ANY_MODEL = [("1", name) for name in SCHEDULERS if name not in ("lcm", "euler_ancestral")]
TAKES_MASKS = [("1-inpaint", name) for name in ("ddim", "euler_ancestral", "dpmpp_2m", "unipc")]


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize(("family", "sampler"), [*ANY_MODEL, *TAKES_MASKS])
def test_a_mask(family: str, sampler: str, strength: float, tmp_path_factory: Any) -> None:
    """With any model, and with those that take the mask as an input."""
    pipe, model = pipeline_and_model(family, tmp_path_factory)
    painted = {"mask_image": make_mask(), "strength": strength, "height": SIZE, "width": SIZE}
    expected = their_latents_from_image(pipe, "StableDiffusionInpaintPipeline", sampler, **painted)
    options = {"image": make_image(), "mask": make_mask(), "strength": strength}
    found = our_latents(model, sampler, negative_prompt=NEGATIVE_PROMPT, guidance_scale=4.0, **options)
    assert_same(pipe, model, found, expected)


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("family", ["xl", "xl-inpaint"])
def test_a_mask_with_xl(family: str, strength: float, tmp_path_factory: Any) -> None:
    options = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}
    pipe, model = pipeline_and_model(family, tmp_path_factory, **options)
    painted = {"mask_image": make_mask(), "strength": strength, "height": SIZE, "width": SIZE}
    expected = their_latents_from_image(pipe, "StableDiffusionXLInpaintPipeline", "euler", **painted)
    options = {"image": make_image(), "mask": make_mask(), "strength": strength}
    assert_same(
        pipe,
        model,
        our_latents(model, "euler", negative_prompt=NEGATIVE_PROMPT, guidance_scale=4.0, **options),
        expected,
    )


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_image_to_image_of_lcm(strength: float, tmp_path_factory: Any) -> None:
    """The last steps of a whole drawing, whose timesteps theirs is given: by itself it would spread the whole number of
    steps over the later times."""
    pipe, model = pipeline_and_model("1-lcm", tmp_path_factory, _class_name="LCMScheduler")
    options = {"timesteps": [999, 759, 499, 259], "negative_prompt": None, "guidance_scale": 8.0, "strength": strength}
    expected = their_latents_from_image(pipe, "LatentConsistencyModelImg2ImgPipeline", "lcm", **options)
    found = our_latents(model, "lcm", steps=4, guidance_scale=8.0, image=make_image(), strength=strength)
    assert_same(pipe, model, found, expected)


@pytest.mark.parametrize("family", ["1", "2", "xl"])
def test_clip_skip_counts_one_more_than_diffusers(family: str, tmp_path_factory: Any) -> None:
    """The negative prompt is read alike, where theirs is read whole: their encoder makes both conditionings."""
    pipe, model = pipeline_and_model(family, tmp_path_factory)
    pipe.text_encoder.__dict__["text_model"] = pipe.text_encoder  # where transformers < 5 had the layers
    encode = partial(
        pipe.encode_prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False, clip_skip=1
    )
    positive, negative = encode(PROMPT), encode(NEGATIVE_PROMPT)
    embeddings = {"prompt": None, "prompt_embeds": positive[0], "negative_prompt_embeds": negative[0]}
    if family == "xl":
        embeddings |= {"pooled_prompt_embeds": positive[2], "negative_pooled_prompt_embeds": negative[2]}
    expected = their_latents(pipe, "ddim", guidance_scale=4.0, **embeddings)
    found = our_latents(model, "ddim", negative_prompt=NEGATIVE_PROMPT, guidance_scale=4.0, clip_skip=2)
    assert_same(pipe, model, found, expected)
    plain = our_latents(model, "ddim", negative_prompt=NEGATIVE_PROMPT, guidance_scale=4.0)
    assert (found - plain).norm() > 0.1 * plain.norm()
    with pytest.raises(InputError, match="clip_skip 4"):
        resolve(model, Request(clip_skip=4))
