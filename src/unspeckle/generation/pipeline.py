"""From a request to images, for the command line, scores, training's samples and notebooks alike:

resolve(model, request) -> ResolvedRequest -> sample_steps -> Step, Step, … -> images_with_metadata
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from unspeckle import guidance
from unspeckle.denoiser import Denoise, PreparedConditioning
from unspeckle.errors import InputError
from unspeckle.generation.checks import check_loras
from unspeckle.generation.codec import decode_to_images
from unspeckle.generation.conditioning import Weights, build_prompt_denoise, prediction_weights
from unspeckle.generation.image_prompts import embed_image_prompts, prior_seeds, upsampler_seeds
from unspeckle.generation.initial_latents import (
    SMALL_IMAGE,
    InitialLatents,
    fit_image,
    hires_latents,
    image_to_tensor,
    initial_latents,
)
from unspeckle.generation.inpainting import build_inpainting_denoise, paste_original, restore_unmasked
from unspeckle.generation.metadata import attach_metadata, build_metadata
from unspeckle.generation.request import Request, make_request
from unspeckle.generation.resolve import ResolvedRequest, resolve
from unspeckle.model import Model
from unspeckle.prompts import Prompt, parse_prompt
from unspeckle.samplers import SAMPLERS, Step
from unspeckle.unclip import UnCLIPModel
from unspeckle.upsampler import UpsamplerModel

# Pixels drawn in one batch: 16 images of 64 × 64 on a CPU, 4 of 512 × 512 on a GPU
BATCH_PIXELS = {"cpu": 1 << 16, "cuda": 1 << 20}


def draw(model: Model, request: Request | str, **options: Any) -> list[Image.Image]:
    """The request's images, RGB, in the order of their seeds; `output.png.write_png` saves one with its metadata.

    request: a Request, or a prompt. options: more fields of a Request, as in draw(model, "a frog", seed=7, steps=20).
    InputError, naming the option, where it cannot be drawn or is unknown."""
    images: list[Image.Image] = []
    for batch in split_into_batches(resolve(model, make_request(request, options))):
        for step in sample_steps(batch):
            last = step
        images += images_with_metadata(batch, last)
    return images


def steps(model: Model, request: Request | str, **options: Any) -> Iterator[Step]:
    """Draw all of the request's images as one batch, step by step; the last Step's x is the result, which
    `generation.codec.decode_to_images` turns into images. The arguments are those of `draw`.

    An image depends on its own seed alone, not on its place or its neighbors, but for the rounding of float32. With
    hires_size, the first pass's last Step is followed by those of the second pass, which are larger.
    InputError at once, before the first step, where the request cannot be drawn."""
    return sample_steps(resolve(model, make_request(request, options)))


def split_into_batches(resolved: ResolvedRequest) -> list[ResolvedRequest]:
    """The request in batches that fit in memory, each a request for `sample_steps`."""
    size = images_per_batch(resolved)
    return [resolved.slice(i, min(size, resolved.count - i)) for i in range(0, resolved.count, size)]


def images_per_batch(resolved: ResolvedRequest) -> int:
    """How many of the request's images are drawn together: its batch_size, or chosen by their size and the device."""
    pixels = BATCH_PIXELS.get(resolved.model.device.type, BATCH_PIXELS["cpu"])
    return max(1, pixels // math.prod(resolved.final_size)) if resolved.batch_size is None else resolved.batch_size


def sample_steps(resolved: ResolvedRequest) -> Iterator[Step]:
    """The steps of a resolved request, with all of its images in one batch."""
    return _sample_batch(resolved, [resolved.parsed_prompt] * resolved.count, *resolved.seeds())


@torch.no_grad()
def _sample_batch(
    resolved: ResolvedRequest, prompts: Sequence[Prompt], seeds: Sequence[int], variation_seeds: Sequence[int | None]
) -> Iterator[Step]:
    """One batch: row i is drawn from prompts[i] and the noise of seeds[i], turned toward that of variation_seeds[i].
    All else is the request's."""
    if isinstance(resolved.model, UpsamplerModel):
        raise InputError(": enlarges what another model draws; give that one, and this as `upsampler`", "model")
    embeddings = _image_embeddings(resolved, prompts, seeds)
    initial = initial_latents(resolved, seeds, variation_seeds)._replace(image_embeddings=embeddings)
    for step in _sample_pass(resolved, prompts, initial):
        yield step
    if resolved.hires_size is not None:
        initial = hires_latents(resolved, seeds, variation_seeds, step.x)._replace(image_embeddings=embeddings)
        yield from _sample_pass(resolved, prompts, initial)


def _image_embeddings(resolved: ResolvedRequest, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Tensor | None:
    """The unit vectors (B, D) from which an unCLIP model draws: of the images of the request, or else what its prior
    draws from the prompts; None for any other model."""
    model = resolved.model
    if not isinstance(model, UnCLIPModel):
        return None
    if resolved.like:
        return embed_image_prompts(model, resolved).expand(len(seeds), -1)
    prior = resolve(model.prior, Request(negative_prompt=resolved.negative_prompt))
    for step in _sample_batch(prior, prompts, prior_seeds(seeds), [None] * len(seeds)):
        last = step
    return model.embedding_space.to_embeddings(last.x)


def _sample_pass(resolved: ResolvedRequest, prompts: Sequence[Prompt], initial: InitialLatents) -> Iterator[Step]:
    schedule, times = initial.setup.denoiser.schedule, initial.setup.times
    denoise = build_denoise(resolved, prompts, initial)
    if initial.mask is None or initial.init_latents is None:
        return SAMPLERS[resolved.sampler](denoise, schedule, times, initial.x, initial.step_noise)
    mask, init_latents = initial.mask, initial.init_latents
    denoise = build_inpainting_denoise(denoise, schedule, init_latents, initial.noise, mask, first_time=float(times[0]))
    sampled = SAMPLERS[resolved.sampler](denoise, schedule, times, initial.x, initial.step_noise)
    return restore_unmasked(sampled, init_latents, mask)


def build_denoise(resolved: ResolvedRequest, prompts: Sequence[Prompt], initial: InitialLatents) -> Denoise:
    """The denoiser as the sampler sees it, with prompts, guidance and bounds."""
    model, guide = resolved.drawing_model, resolved.drawing_guide
    rule = guidance_rule(resolved)
    if guide is None or rule is None:
        denoise = _build_prompt_denoise(model, resolved, prompts, initial, rule)
    else:
        unguided, weaker = (_build_prompt_denoise(one, resolved, prompts, initial, None) for one in (model, guide))
        denoise = guidance.autoguidance(unguided, weaker, rule)
    bounds = model.autoencoder.latent_bounds if model.card.clamp_denoised else None
    if bounds is None:
        return denoise
    if resolved.dynamic_threshold is not None:
        return guidance.dynamic_threshold(denoise, *bounds, resolved.dynamic_threshold)
    return guidance.clamp_denoised(denoise, *bounds)


def _build_prompt_denoise(
    model: Model,
    resolved: ResolvedRequest,
    prompts: Sequence[Prompt],
    initial: InitialLatents,
    rule: guidance.GuidanceRule | None,
) -> Denoise:
    """x̂ of the prompts by that model, with what else it takes as an input: sizes, the guidance scale, a mask."""
    factor = model.autoencoder.downsampling_factor
    size = (initial.x.shape[3] * factor, initial.x.shape[2] * factor)

    def add_inputs(conditioning: PreparedConditioning, positive: bool) -> PreparedConditioning:
        if model.takes_mask and initial.mask_conditioning is not None:
            rows = len(conditioning.keys_values)
            conditioning = conditioning._replace(concat=initial.mask_conditioning.expand(rows, -1, -1, -1))
        if initial.small_images is not None:
            conditioning = conditioning._replace(concat=initial.small_images)
        if initial.image_embeddings is not None and isinstance(model, UnCLIPModel):
            conditioning = model.add_image_embeddings(conditioning, initial.image_embeddings, positive)
        return model.add_conditioning(conditioning, positive, resolved.guidance_scale, size)

    setup = initial.setup
    if model is not resolved.drawing_model:  # the guide model evaluates its own network, at the same times
        setup = model.sampling_setup(resolved.sampler, resolved.timestep_spacing, resolved.steps)
        setup = setup._replace(times=initial.setup.times)
    return build_prompt_denoise(model, prompts, resolved.parsed_negative_prompt, setup, rule, add_inputs)


def guidance_rule(resolved: ResolvedRequest) -> guidance.GuidanceRule | None:
    """The rule by which the request is guided; None where it is not."""
    scale = resolved.drawing_model.cfg_scale(resolved.guidance_scale)
    if scale == 1:
        return None
    rule = guidance.classifier_free_guidance(scale, resolved.guidance_rescale)
    if resolved.guidance_method == "apg":
        rule = guidance.adaptive_projected_guidance(rule)
    if resolved.guidance_interval is not None:
        rule = guidance.guidance_interval(rule, *resolved.guidance_interval)
    return rule


def draw_prompts(
    model: Model, prompts: Sequence[str], seeds: Sequence[int], request: Request | None = None
) -> list[Image.Image]:
    """prompts[i] drawn with seeds[i], many in a batch; all other options are the request's, or the model card's.

    Each image is that of `draw` but for the rounding of float32; it carries no metadata, as it cannot be replayed."""
    if len(prompts) != len(seeds):
        raise InputError(f"{len(prompts)} prompts and {len(seeds)} seeds: give one seed for each prompt")
    if not prompts:
        return []
    resolved = resolve(model, replace(request or Request(), prompt="", seed=0, count=1))
    parsed = {text: parse_prompt(text) for text in dict.fromkeys(prompts)}
    groups: dict[tuple[Weights, ...], list[int]] = {}  # indices of prompts, by their prediction_weights in each pass
    weights = {}
    for text, prompt in parsed.items():
        check_loras(model, prompt, resolved.parsed_negative_prompt)
        weights[text] = tuple(prediction_weights(resolved.drawing_model, prompt, n) for n in resolved.steps_per_pass)
    for index, text in enumerate(prompts):
        groups.setdefault(weights[text], []).append(index)
    images: dict[int, Image.Image] = {}
    size = images_per_batch(resolved)
    for group in groups.values():
        for batch in (group[i : i + size] for i in range(0, len(group), size)):
            rows = [parsed[prompts[index]] for index in batch]
            variation_seeds = [resolved.variation_seed] * len(batch)
            for step in _sample_batch(resolved, rows, [seeds[index] for index in batch], variation_seeds):
                last = step
            finished = _finish_images(resolved, last, rows, [seeds[index] for index in batch])
            images.update(zip(batch, finished, strict=True))
    return [images[index] for index in range(len(prompts))]


def images_with_metadata(resolved: ResolvedRequest, last: Step) -> list[Image.Image]:
    """The images of a request's last step, each with the metadata from which `unspeckle replay` draws it again."""
    images = _finish_images(resolved, last, [resolved.parsed_prompt] * resolved.count, resolved.seeds()[0])
    for image, metadata in zip(images, build_metadata(resolved), strict=True):
        attach_metadata(image, metadata)
    return images


def _finish_images(
    resolved: ResolvedRequest, last: Step, prompts: Sequence[Prompt], seeds: Sequence[int]
) -> list[Image.Image]:
    """The last step decoded; with a mask, the original pixels are put back outside of it, and with an upsampler the
    images are enlarged."""
    model = resolved.model
    if not last.x.isfinite().all():
        where, remedy = ("", "") if model.precision == "float32" else (f" in {model.precision}", "; draw in float32")
        logging.getLogger("unspeckle").warning("the network overflows%s: parts of the image are gray%s", where, remedy)
    images = decode_to_images(model, last.x, resolved.tile_size)
    if resolved.image is not None and resolved.mask is not None and resolved.paste_original:
        original = fit_image(resolved.image.convert("RGB"), resolved.size)
        mask = fit_image(resolved.mask.convert("L"), resolved.size)
        images = [paste_original(image, original, mask) for image in images]
    return images if resolved.upsampler is None else upsample(resolved.upsampler, images, prompts, seeds)


@torch.no_grad()
def upsample(
    model: UpsamplerModel, images: Sequence[Image.Image], prompts: Sequence[Prompt], seeds: Sequence[int]
) -> list[Image.Image]:
    """The images, all of one size, enlarged by the upsampler with these prompts and the noise of these seeds."""
    width, height = images[0].size
    resolved = resolve(model, Request(size=(width * model.factor, height * model.factor)))
    small = torch.cat([image_to_tensor(image.convert("RGB")) for image in images]).to(model.device)
    initial = initial_latents(resolved, upsampler_seeds(seeds), [None] * len(images))
    encoded = model.encode_small_images(small, initial.step_noise(*SMALL_IMAGE))
    for step in _sample_pass(resolved, prompts, initial._replace(small_images=encoded)):
        last = step
    return decode_to_images(model, last.x)
