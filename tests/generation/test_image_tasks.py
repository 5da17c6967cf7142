"""img2img, inpainting and clip skip against the pipelines of diffusers: float32, the same seed, 20 steps."""

from functools import partial
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from test_stable_diffusion_images import NEGATIVE, PEERS, PROMPT, SEED, SIZE, assert_same, kept, ours, theirs

from unspeckle.errors import InputError
from unspeckle.generation.request import Request, resolve

GUIDED = {"negative_prompt": NEGATIVE, "guidance_scale": 4.0}


def make_image(width: int = SIZE, height: int = SIZE) -> Image.Image:
    """Smooth colors under some grain."""
    rng, (y, x) = np.random.default_rng(0), np.mgrid[:height, :width] / max(width, height)
    colors = np.stack([x, y, 1 - x * y], -1) * 200 + rng.uniform(0, 55, (height, width, 3))
    return Image.fromarray(colors.astype(np.uint8))


def make_mask(width: int = SIZE, height: int = SIZE) -> Image.Image:
    """Its right half is to be painted."""
    return Image.fromarray(np.where(np.arange(width) < width // 2, 0, 255).astype(np.uint8)[None].repeat(height, 0))


class Late(diffusers.LMSDiscreteScheduler):
    """Theirs weighs what it remembers as though it had come all the way from noise; with the memory that it has."""

    def get_lms_coefficient(self, resolved: int, t: int, current_order: int) -> float:
        resolved = min(resolved, len(self.derivatives))
        return super().get_lms_coefficient(resolved, t, current_order) if current_order < resolved else 0.0


def late(scheduler: Any, num_inference_steps: int, strength: float, device: str) -> tuple[torch.Tensor, int]:
    """Theirs for PLMS starts within the pair of calls that its first step makes; this begins as a whole drawing does:
    with one entry, and the next twice."""
    later = int(num_inference_steps * strength)
    entries = torch.cat([scheduler.timesteps[:1], scheduler.timesteps[2:]])[num_inference_steps - later :]
    return torch.cat([entries[:2], entries[1:]]), later


def from_image(pipe: Any, kind: str, sampler: str, karras: bool = False, **options: Any) -> torch.Tensor:
    """Their latents, by another pipeline of the same parts."""
    parts = {name: part for name, part in pipe.components.items() if name != "safety_checker"}
    large = {"add_watermarker": False, "requires_aesthetics_score": pipe.config.get("requires_aesthetics_score", False)}
    made = getattr(diffusers, kind)(**parts, **(large if "XL" in kind else {"safety_checker": None}),
                                    **({} if "XL" in kind else {"requires_safety_checker": False}))  # fmt: skip
    made.set_progress_bar_config(disable=True)
    more = {"use_karras_sigmas": True} if karras else {"skip_prk_steps": True} if sampler == "plms" else {}
    made.scheduler = {**PEERS, "lms": Late}[sampler].from_config({**pipe.settings, **more})
    if sampler == "plms":
        made.get_timesteps = partial(late, made.scheduler)
    told = {"prompt": PROMPT, "image": make_image(), "num_inference_steps": 20, "output_type": "latent", **GUIDED}
    return made(**{**told, "generator": torch.Generator().manual_seed(SEED), **options}).images


@pytest.mark.parametrize(
    ("sampler", "karras"),
    [*((name, False) for name in PEERS if name != "lcm"), ("euler", True), ("dpmpp_2m", True)],
)
def test_a_later_start(sampler: str, karras: bool, tmp_path_factory: Any) -> None:
    pipe, model = kept("1", tmp_path_factory)
    for strength in (0.55, 1.0) if sampler in ("ddim", "euler") else (0.55,):
        expected = from_image(pipe, "StableDiffusionImg2ImgPipeline", sampler, karras, strength=strength)
        found = ours(
            model, sampler, karras, negative_prompt=NEGATIVE, guidance_scale=4.0, image=make_image(), strength=strength
        )
        assert_same(pipe, model, found, expected)


@pytest.mark.parametrize("family", ["xl", "xl-refiner"])
def test_a_later_start_of_xl(family: str, tmp_path_factory: Any) -> None:
    options = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}
    pipe, model = kept(family, tmp_path_factory, **options)
    expected = from_image(pipe, "StableDiffusionXLImg2ImgPipeline", "euler", strength=0.3)
    assert_same(
        pipe,
        model,
        ours(model, "euler", negative_prompt=NEGATIVE, guidance_scale=4.0, image=make_image(), strength=0.3),
        expected,
    )


def test_each_image_of_a_batch_starts_by_its_own_generator(tmp_path_factory: Any) -> None:
    pipe, model = kept("1", tmp_path_factory)
    generators = [torch.Generator().manual_seed(SEED + i) for i in range(2)]
    options = {"num_images_per_prompt": 2, "generator": generators, "strength": 0.5}
    expected = from_image(pipe, "StableDiffusionImg2ImgPipeline", "euler_ancestral", **options)
    found = ours(
        model,
        "euler_ancestral",
        negative_prompt=NEGATIVE,
        guidance_scale=4.0,
        image=make_image(),
        strength=0.5,
        count=2,
    )
    assert_same(pipe, model, found, expected)


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("sampler", [name for name in PEERS if name not in ("lcm", "euler_ancestral")])
def test_a_mask_for_any_model(sampler: str, strength: float, tmp_path_factory: Any) -> None:
    pipe, model = kept("1", tmp_path_factory)
    painted = {"mask_image": make_mask(), "strength": strength, "height": SIZE, "width": SIZE}
    expected = from_image(pipe, "StableDiffusionInpaintPipeline", sampler, **painted)
    options = {"image": make_image(), "mask": make_mask(), "strength": strength}
    found = ours(model, sampler, negative_prompt=NEGATIVE, guidance_scale=4.0, **options)
    assert_same(pipe, model, found, expected)


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral", "dpmpp_2m", "unipc"])
def test_a_mask_for_models_that_know_masks(sampler: str, strength: float, tmp_path_factory: Any) -> None:
    pipe, model = kept("1-inpaint", tmp_path_factory)
    painted = {"mask_image": make_mask(), "strength": strength, "height": SIZE, "width": SIZE}
    expected = from_image(pipe, "StableDiffusionInpaintPipeline", sampler, **painted)
    options = {"image": make_image(), "mask": make_mask(), "strength": strength}
    found = ours(model, sampler, negative_prompt=NEGATIVE, guidance_scale=4.0, **options)
    assert_same(pipe, model, found, expected)


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("family", ["xl", "xl-inpaint"])
def test_a_mask_for_xl(family: str, strength: float, tmp_path_factory: Any) -> None:
    options = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}
    pipe, model = kept(family, tmp_path_factory, **options)
    painted = {"mask_image": make_mask(), "strength": strength, "height": SIZE, "width": SIZE}
    expected = from_image(pipe, "StableDiffusionXLInpaintPipeline", "euler", **painted)
    asked = {"image": make_image(), "mask": make_mask(), "strength": strength}
    assert_same(pipe, model, ours(model, "euler", negative_prompt=NEGATIVE, guidance_scale=4.0, **asked), expected)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_later_start_of_lcm(strength: float, tmp_path_factory: Any) -> None:
    """The last steps of a whole drawing; theirs takes them where it is told the times. Left alone it takes as many
    as without a picture, all of them later."""
    pipe, model = kept("1-lcm", tmp_path_factory, _class_name="LCMScheduler")
    told = {"timesteps": [999, 759, 499, 259], "negative_prompt": None, "guidance_scale": 8.0, "strength": strength}
    expected = from_image(pipe, "LatentConsistencyModelImg2ImgPipeline", "lcm", **told)
    found = ours(model, "lcm", steps=4, guidance_scale=8.0, image=make_image(), strength=strength)
    assert_same(pipe, model, found, expected)


@pytest.mark.parametrize("family", ["1", "2", "xl"])
def test_clip_skip_counts_one_more_than_diffusers(family: str, tmp_path_factory: Any) -> None:
    """And the negative prompt is read alike, where theirs is read whole: they are conditioning what their reader makes."""
    pipe, model = kept(family, tmp_path_factory)
    pipe.text_encoder.__dict__["text_model"] = pipe.text_encoder  # where transformers < 5 had the layers
    read, *others = (pipe.encode_prompt(options, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False,
                                        clip_skip=1) for options in (PROMPT, NEGATIVE))  # fmt: skip
    told = {"prompt": None, "prompt_embeds": read[0], "negative_prompt_embeds": others[0][0]}
    if family == "xl":
        told |= {"pooled_prompt_embeds": read[2], "negative_pooled_prompt_embeds": others[0][2]}
    expected = theirs(pipe, "ddim", guidance_scale=4.0, **told)
    found = ours(model, "ddim", negative_prompt=NEGATIVE, guidance_scale=4.0, clip_skip=2)
    assert_same(pipe, model, found, expected)
    plain = ours(model, "ddim", negative_prompt=NEGATIVE, guidance_scale=4.0)
    assert (found - plain).norm() > 0.1 * plain.norm()
    with pytest.raises(InputError, match="clip_skip 4"):
        resolve(model, Request(clip_skip=4))
