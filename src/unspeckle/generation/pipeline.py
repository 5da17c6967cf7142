"""From an ask to pictures: the one door, for command line, scores, training's sample grids and notebooks alike."""

import hashlib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from PIL import Image

from unspeckle import guidance
from unspeckle.denoiser import Denoise, Conditioning
from unspeckle.errors import InputError
from unspeckle.generation import conditioning
from unspeckle.generation.codec import decode_to_images
from unspeckle.generation.few_step import select_network
from unspeckle.generation.initial_latents import InitialLatents, hires_latents, initial_latents, fit_image
from unspeckle.generation.inpainting import inpainting_denoise, paste_original, restore_unmasked
from unspeckle.generation.request import Request, ResolvedRequest, ignored_options, resolve
from unspeckle.model import Model
from unspeckle.output.png import attach_metadata
from unspeckle.prompts import Prompt, parse_prompt
from unspeckle.samplers import SAMPLERS, Step
from unspeckle.version import installed_version

__all__ = [
    "Request",
    "ResolvedRequest",
    "request_from_metadata",
    "draw",
    "image_fingerprint",
    "ignored_options",
    "draw_prompts",
    "batches_of_request",
    "decode_to_images",
    "resolve",
    "images_with_metadata",
    "steps",
    "images_per_batch",
]

BATCH_PIXELS = {"cpu": 1 << 16, "cuda": 1 << 20}  # pixels drawn in one batch: 16 pictures of 64 × 64; 4 of 512 × 512
RECORDED_DEFAULTS = {  # what a record tells of only where it is not so
    "guidance": "cfg", "rescale": 0, "interval": None, "paste": True, "upscaler": "lanczos", "clip_skip": 1, "tiles": 0,
    "threshold": None,
}  # fmt: skip


def batches_of_request(model: Model, request: Request) -> list[ResolvedRequest]:
    """The ask cut into batches that memory holds; each goes through `steps` on its own."""
    resolved = resolve(model, request)
    batch_size = images_per_batch(model, resolved)
    return [
        resolved.slice(first, min(batch_size, resolved.count - first)) for first in range(0, resolved.count, batch_size)
    ]


def images_per_batch(model: Model, resolved: ResolvedRequest) -> int:
    """How many of the order's pictures are drawn in one batch: as asked, or by their size and the device."""
    pixels = BATCH_PIXELS.get(model.device.type, BATCH_PIXELS["cpu"])
    return max(1, pixels // math.prod(resolved.final_size)) if resolved.batch_size is None else resolved.batch_size


def steps(model: Model, request: Request) -> Iterator[Step]:
    """Draw all of the ask's pictures as one batch, step by step; the last Step's x is the result (see `pictures`, and
    `parts` for batches of the size that it says).

    A picture depends on its own seed alone, not on its place or its neighbours, but for the rounding of float32. With
    hires, the first part's last Step is followed by those of the second part, which are larger.
    InputError at once, before the first step, where the ask cannot be drawn.
    """
    resolved = resolve(model, request)
    return batch_steps(model, resolved, [parse_prompt(resolved.prompt)] * resolved.count, *resolved.seeds())


@torch.no_grad()
def batch_steps(
    model: Model,
    resolved: ResolvedRequest,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    variation_seeds: Sequence[int | None],
) -> Iterator[Step]:
    """One batch: row i from prompts[i] and the noise of seeds[i] (turned to that of others[i]), the rest as ordered."""
    model = select_network(model, resolved).with_clip_skip(resolved.clip_skip)
    for step in sample(model, resolved, prompts, initial_latents(model, resolved, seeds, variation_seeds)):
        yield step
    if resolved.hires_size is not None:
        yield from sample(model, resolved, prompts, hires_latents(model, resolved, seeds, variation_seeds, step.x))


def sample(
    model: Model, resolved: ResolvedRequest, prompts: Sequence[Prompt], initial: InitialLatents
) -> Iterator[Step]:
    schedule, times = initial.setup.denoiser.schedule, initial.setup.times
    denoise = build_denoise(model, resolved, prompts, initial)
    if initial.mask is not None and initial.init_latents is not None:
        denoise = inpainting_denoise(
            denoise, schedule, initial.init_latents, initial.noise, initial.mask, float(times[0])
        )
    sampled = SAMPLERS[resolved.sampler](denoise, schedule, times, initial.x, initial.step_noise)
    return (
        sampled
        if initial.mask is None or initial.init_latents is None
        else restore_unmasked(sampled, initial.init_latents, initial.mask)
    )


def build_denoise(model: Model, resolved: ResolvedRequest, prompts: Sequence[Prompt], initial: InitialLatents) -> Denoise:
    rule, negative_prompt = guidance_rule(resolved, model.cfg_scale(resolved.guidance_scale)), parse_prompt(resolved.negative_prompt)
    size = (initial.x.shape[3] * model.autoencoder.downsampling_factor, initial.x.shape[2] * model.autoencoder.downsampling_factor)

    def complete(one: Model, given: Conditioning, wanted: bool) -> Conditioning:
        if one.takes_mask and initial.mask_conditioning is not None:
            given = given._replace(concat=initial.mask_conditioning.expand(len(given.tokens), -1, -1, -1))
        return one.add_conditioning(given, wanted, resolved.guidance_scale, size)

    def read(one: Model, rule: guidance.GuidanceRule | None) -> Denoise:
        way = one.sampling_setup(resolved.sampler, resolved.timestep_spacing, resolved.steps)._replace(
            times=initial.setup.times
        )
        return conditioning.denoise_prompts(one, prompts, negative_prompt, way, rule, partial(complete, one))

    if resolved.guide_model is None or rule is None:
        denoise = read(model, rule)
    else:
        denoise = guidance.autoguidance(read(model, None), read(resolved.guide_model.with_clip_skip(resolved.clip_skip), None), rule)
    bounds: Any = model.autoencoder.latent_bounds if model.card.clamp_denoised else None
    if resolved.dynamic_threshold is not None:
        return guidance.dynamic_threshold(denoise, bounds[0], bounds[1], resolved.dynamic_threshold)
    return denoise if bounds is None else guidance.clamp_denoised(denoise, *bounds)


def guidance_rule(resolved: ResolvedRequest, guidance_scale: float) -> guidance.GuidanceRule | None:
    """How the order is guided with that scale, None = not at all."""
    if guidance_scale == 1:
        return None
    rule = guidance.classifier_free_guidance(guidance_scale, resolved.guidance_rescale)
    rule = guidance.adaptive_projected_guidance(rule) if resolved.guidance_method == "apg" else rule
    return rule if resolved.guidance_interval is None else guidance.guidance_interval(rule, *resolved.guidance_interval)


def draw(model: Model, request: Request) -> list[Image.Image]:
    """The ask's pictures, RGB, in the order of their seeds; `picture.write` saves one with its ask."""
    images: list[Image.Image] = []
    for part in batches_of_request(model, request):
        for step in steps(model, part):
            last = step
        images += images_with_metadata(model, part, last)
    return images


def draw_prompts(
    model: Model, prompts: Sequence[str], seeds: Sequence[int], request: Request | None = None
) -> list[Image.Image]:
    """prompts[i] drawn with seeds[i], many to a batch; the ask (or the card) says the rest. Each picture is that of
    `draw` but for the rounding of float32, so it carries no record to be replayed by."""
    if len(prompts) != len(seeds):
        raise InputError(f"{len(prompts)} prompts and {len(seeds)} seeds: give one seed for each prompt")
    groups: dict[Any, list[tuple[int, Prompt]]] = {}
    for place, words in enumerate(prompts):
        resolved = resolve(model, replace(request or Request(), prompt=words, seed=seeds[place], count=1))
        prompt = parse_prompt(words)
        kind = tuple(conditioning.prediction_weights(model, prompt, count) for count in resolved.steps_per_pass)
        groups.setdefault(kind, []).append((place, prompt))
    images: dict[int, Image.Image] = {}
    for group in groups.values():
        batch_size = images_per_batch(model, resolved)
        for batch in (group[first : first + batch_size] for first in range(0, len(group), batch_size)):
            rows, variation_seeds = [seeds[place] for place, _ in batch], [resolved.variation_seed] * len(batch)
            for step in batch_steps(model, resolved, [prompt for _, prompt in batch], rows, variation_seeds):
                last = step
            images.update(zip((place for place, _ in batch), decode_to_images(model, last.x), strict=True))
    return [images[place] for place in range(len(prompts))]


def images_with_metadata(model: Model, resolved: ResolvedRequest, last: Step) -> list[Image.Image]:
    """The pictures of an order's last step, each with the record from which `unspeckle replay` draws it again."""
    common: dict[str, Any] = {
        "prompt": resolved.prompt,
        "negative": resolved.negative_prompt,
        "steps": resolved.steps,
        "sampler": resolved.sampler,
        "grid": resolved.timestep_spacing,
        "scale": resolved.guidance_scale,
        "size": list(resolved.size),
        "model": {"name": model.card.name, "hash": model.hash},
        "batch": [resolved.first_seed, resolved.count],  # rounding differs a little with the neighbours
        "version": installed_version(),
    }
    options = {
        name: getattr(resolved, name) for name, usual in RECORDED_DEFAULTS.items() if getattr(resolved, name) != usual
    }
    if resolved.guide_model is not None:
        options["guide"] = {"name": resolved.guide_model.card.name, "hash": resolved.guide_model.hash}
    if resolved.image is not None or resolved.hires_size is not None:
        options["strength"] = resolved.strength
    options |= {} if model.precision == "float32" else {"precision": model.precision}
    options |= {} if resolved.hires_size is None else {"hires": list(resolved.hires_size)}
    options |= {} if resolved.image is None else {"image": image_fingerprint(resolved.image.convert("RGB"))}
    options |= {} if resolved.mask is None else {"mask": image_fingerprint(resolved.mask.convert("L"))}
    if not last.x.isfinite().all():
        lower = "" if model.precision == "float32" else f" in {model.precision}; draw in float32"
        logging.getLogger("unspeckle").warning("the network overflows%s; what it drew is grey there", lower)
    images = decode_to_images(model, last.x, resolved.tile_size)
    if resolved.image is not None and resolved.mask is not None and resolved.paste_original:
        picture, mask = (
            fit_image(one, resolved.size) for one in (resolved.image.convert("RGB"), resolved.mask.convert("L"))
        )
        images = [paste_original(one, picture, mask) for one in images]
    for one, seed, other in zip(images, *resolved.seeds(), strict=True):
        varied = {} if other is None else {"variation": other, "variation_strength": resolved.variation_strength}
        attach_metadata(one, {"seed": seed, **common, **options, **varied})
    return images


def image_fingerprint(image: Image.Image) -> str:
    """16 hex digits of a picture's pixels and size, whatever file they lie in."""
    return hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).hexdigest()[:16]


def request_from_metadata(metadata: dict[str, Any]) -> tuple[Request, int]:
    """The ask that a record tells of, and its picture's place in the batch. InputError where it makes none. A guide,
    an image and a mask are not part of it: the record names them, whoever has them puts them in."""
    try:
        first, count = metadata["batch"]
        width, height = metadata["size"]
        varied = "variation" in metadata
        counted = metadata["variation" if varied else "seed"]
        names = ("prompt", "negative", "steps", "sampler", "grid", "scale")
        fields = {name: metadata[name] for name in names}
        fields |= {
            name: metadata[name] for name in (*RECORDED_DEFAULTS, "strength", "variation_strength") if name in metadata
        }
        fields |= {"hires": tuple(metadata["hires"])} if "hires" in metadata else {}
        fields |= {"seed": metadata["seed"], "variation": first} if varied else {"seed": first}
        request = Request(count=count, size=(width, height), **fields)
    except (KeyError, TypeError, ValueError) as e:
        raise InputError(f"its record is incomplete or damaged ({type(e).__name__}: {e}); give the original PNG") from e
    empty = next((name for name, value in metadata.items() if value is None), None)
    if empty is not None:  # which in an ask is a choice that is left open
        raise InputError(f"its record is damaged (it says nothing of {empty}); give the original PNG")
    if any(type(number) is not int for number in (first, count, counted)) or not 0 <= counted - first < count:
        raise InputError("its record is damaged (the seed lies outside its batch); give the original PNG")
    return request, counted - first
