"""Checks of single options of a request: each returns the value in its own type, or raises an InputError that names
the option."""

import math
import sys
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from unspeckle.errors import InputError
from unspeckle.generation.image_size import MAX_PIXELS
from unspeckle.generation.request import Request
from unspeckle.model import Model
from unspeckle.prompts import Prompt
from unspeckle.unclip import UnCLIPModel
from unspeckle.upsampler import UpsamplerModel

# Strengths where a request names none; those of an image and a mask are diffusers'
DEFAULT_STRENGTHS = {"image": 0.8, "mask": 1.0, "hires": 0.5}
MAX_SEED = 2**64 - 1


def check_loras(model: Model, prompt: Prompt, negative_prompt: Prompt) -> None:
    """InputError where a prompt names LoRA that are not in the model's weights."""
    if tags := negative_prompt.lora_tags:
        raise InputError(f": {tags[0]}: a LoRA counts for the whole drawing; write it in the prompt", "negative_prompt")
    if (tags := prompt.lora_tags) and tags != model.loras:
        raise InputError(
            f": {' '.join(map(str, tags))}: is not in {model.card.name!r}; add it to a Stable Diffusion model by "
            "formats.stable_diffusion.add_ons.apply_add_ons(model, lora_tags=…)",
            "prompt",
        )


def check_integer(name: str, value: object, low: int, high: int) -> int:
    """The value, if it is an int from low to high."""
    if type(value) is not int or not low <= value <= high:
        most = f"to {high}" if high < 2**63 else "to 2^64 - 1"
        raise InputError(f" {value!r}: must be a whole number from {low} {most}", name)
    return value


def check_choice(name: str, value: object, known: Collection[str]) -> str:
    """The value, if it is one of the known names."""
    if not isinstance(value, str) or value not in known:
        raise InputError(f" {value!r}: unknown; choose one of {', '.join(known)}", name)
    return value


def check_bool(name: str, value: object) -> bool:
    """The value, if it is True or False."""
    if not isinstance(value, bool):
        raise InputError(f" {value!r}: must be True or False", name)
    return value


def _as_number(value: object) -> float | None:
    """The value as a float, or None where it is no finite number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return float(value) if is_number else None  # type: ignore[arg-type]


def check_guidance_scale(value: object) -> float:
    """The value, if it is a finite number."""
    if (scale := _as_number(value)) is None:
        raise InputError(f" {value!r}: must be a finite number; 1 is no guidance, 3 to 7 is usual", "guidance_scale")
    return scale


def check_fraction(name: str, value: object) -> float:
    """The value, if it is a number from 0 to 1."""
    fraction = _as_number(value)
    if fraction is None or not 0 <= fraction <= 1:
        raise InputError(f" {value!r}: must be a number from 0 to 1", name)
    return fraction


def check_guidance_interval(interval: object) -> tuple[float, float] | None:
    """The two times, if they lie in [0, 1] and the first is not above the second."""
    name = "guidance_interval"
    if interval is None:
        return None
    if not isinstance(interval, tuple | list) or len(interval) != 2:
        raise InputError(f" {interval!r}: must be two times from 0 to 1, the lower first", name)
    low, high = (check_fraction(name, time) for time in interval)
    if low > high:
        raise InputError(f" {low:g} to {high:g}: the lower time comes first; 0 is the image, 1 noise", name)
    return low, high


def check_seeds(seed: object, variation_seed: object, count: int) -> None:
    """InputError where a seed is out of range, or where the seeds of so many images run past the last one."""
    first, name = check_integer("seed", seed, 0, MAX_SEED), "seed"
    if variation_seed is not None:
        first, name = check_integer("variation_seed", variation_seed, 0, MAX_SEED), "variation_seed"
    if first + count > 2**64:
        raise InputError(f" {first} with count {count}: seeds end at 2^64 - 1; take a smaller one", name)


def check_guide_model(model: Model, guide: Model | None, negative_prompt: str) -> Model | None:
    """The guide model, if it denoises the same noisy images as the model."""
    if guide is None:
        return None
    if negative_prompt:
        raise InputError(
            ": a guide model takes its place; write NOT in the prompt, or leave one of the two out", "negative_prompt"
        )
    if model.precision != guide.precision:
        raise InputError(
            f": draws in {guide.precision}, the model in {model.precision}; load both in the same precision",
            "guide_model",
        )
    (*ours, our_tensors), (*theirs, their_tensors) = _latent_space(model), _latent_space(guide)
    if ours != theirs or any(not torch.equal(tensor, their_tensors[name]) for name, tensor in our_tensors.items()):
        raise InputError(
            f" {guide.card.name!r}: was trained on another schedule or in another latent space than the model; "
            "give one of the same corpus",
            "guide_model",
        )
    return guide


def _latent_space(model: Model) -> tuple[Any, type, Any, dict[str, Tensor]]:
    """What decides how a noisy image looks to the network: the schedule and the autoencoder."""
    config: Any = model.autoencoder.config
    return model.denoiser.schedule, type(model.autoencoder), config, model.autoencoder.state_dict()


def check_dynamic_threshold(model: Model, value: object, size: tuple[int, int]) -> float | None:
    """The share, if it lies in (0, 1] and the model denoises pixels. size: (width, height) of the resulting image."""
    name = "dynamic_threshold"
    if value is None:
        return None
    share = _as_number(value)
    if share is None or not 0 < share <= 1:
        raise InputError(f" {value!r}: must be over 0 and at most 1; 0.995 is usual", name)
    if model.autoencoder.latent_bounds is None or not model.card.clamp_denoised:
        raise InputError(": this model denoises latents, which have no bounds as pixels have; leave it out", name)
    if 3 * math.prod(size) > MAX_PIXELS:  # the most values that torch.quantile takes
        raise InputError(f": works for images of at most {MAX_PIXELS // 3} pixels; leave it out", name)
    return share


def check_strength(request: Request) -> float:
    """How much of the image that a drawing starts from changes; 1 where it starts from noise."""
    value, from_image, from_hires = request.strength, request.image is not None, request.hires_size is not None
    if from_image and from_hires:
        raise InputError(": does not go with an image to start from; draw that at the size that you want", "hires_size")
    if not from_image and not from_hires:
        if value is not None and _as_number(value) != 1:
            raise InputError(
                f" {value!r}: says how much of an image changes; give `image` or `hires_size` too", "strength"
            )
        return 1.0
    if value is None:
        return DEFAULT_STRENGTHS["mask" if request.mask is not None else "image" if from_image else "hires"]
    strength = _as_number(value)
    if strength is None or not 0 < strength <= 1:
        raise InputError(f" {value!r}: must be over 0 (nothing changes) and at most 1 (everything does)", "strength")
    return strength


def check_upsampler(model: Model, request: Request) -> UpsamplerModel | None:
    """The request's upsampler, or the model's own, if it goes with the other options."""
    upsampler = request.upsampler
    if upsampler is None:
        upsampler = model.upsampler if isinstance(model, UnCLIPModel) else None
    elif not isinstance(upsampler, UpsamplerModel):
        raise InputError(": enlarges no images; give a model of `train --kind upsampler`", "upsampler")
    if upsampler is not None:
        for name in ("hires_size", "mask"):
            if getattr(request, name) is not None:
                raise InputError(": does not go with an upsampler, which enlarges the whole image; leave it out", name)
    return upsampler


def check_tile_size(model: Model, tile_size: object) -> int:
    """The side of a tile in pixels, if the autoencoder can work in such tiles; 0 where it takes the whole image."""
    least = 16 * model.autoencoder.downsampling_factor
    if type(tile_size) is not int or not (tile_size == 0 or least <= tile_size <= MAX_PIXELS):
        raise InputError(
            f" {tile_size!r}: must be a side of at least {least} pixels, 512 is usual; 0 decodes the image as a whole",
            "tile_size",
        )
    return tile_size
