"""Checks of single options of a request: each gives the value in its own type, or an InputError that names it."""

import math
import sys
from collections.abc import Collection
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from unspeckle.errors import InputError
from unspeckle.generation.image_size import MAX_PIXELS
from unspeckle.model import Model
from unspeckle.prompts import LoraTag

DEFAULT_STRENGTHS = {"image": 0.8, "mask": 1.0, "hires": 0.5}  # where none is given; those of an image are diffusers'
MAX_SEED = 2**64 - 1


def check_loras(model: Model, tags: tuple[LoraTag, ...], name: str) -> None:
    """InputError where a prompt names LoRA that the model does not have in its weights."""
    if tags and name == "negative_prompt":
        raise InputError(f": {tags[0]}: a LoRA counts for the whole drawing; write it in the prompt", name)
    if tags and tags != model.loras:
        raise InputError(
            f": {' '.join(map(str, tags))}: is not in {model.card.name!r}; add it to a Stable Diffusion model by "
            "formats.stable_diffusion.add_ons.add_to_model(model, tags=…)",
            name,
        )


def check_integer(name: str, value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        most = f"to {high}" if high < 2**63 else "to 2^64 - 1"
        raise InputError(f" {value!r}: must be a whole number from {low} {most}", name)
    return value


def check_choice(name: str, value: Any, known: Collection[str]) -> str:
    if not isinstance(value, str) or value not in known:
        raise InputError(f" {value!r}: unknown; choose one of {', '.join(known)}", name)
    return value


def check_bool(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InputError(f" {value!r}: must be True or False", name)
    return value


def is_number(value: Any) -> bool:
    """Whether it is a finite number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def check_scale(value: Any) -> float:
    if not is_number(value):
        raise InputError(f" {value!r}: must be a finite number; 1 is no guidance, 3 to 7 is usual", "guidance_scale")
    return float(value)


def check_fraction(name: str, value: Any) -> float:
    if not is_number(value) or not 0 <= value <= 1:
        raise InputError(f" {value!r}: must be a number from 0 to 1", name)
    return float(value)


def check_interval(interval: Any) -> tuple[float, float] | None:
    name = "guidance_interval"
    if interval is None:
        return None
    if not isinstance(interval, tuple | list) or len(interval) != 2:
        raise InputError(f" {interval!r}: must be two times from 0 to 1, the lower first", name)
    low, high = (check_fraction(name, time) for time in interval)
    if low > high:
        raise InputError(f" {low:g} to {high:g}: the lower time comes first; 0 is the image, 1 noise", name)
    return low, high


def check_guide_model(model: Model, guide: Model | None, negative_prompt: str) -> Model | None:
    """The guide model, if it works on the same noisy images as the model."""
    if guide is None:
        return None
    if negative_prompt:
        raise InputError(": a guide model takes its place; write NOT in the prompt, or leave one of the two out",
                         "negative_prompt")  # fmt: skip
    if model.precision != guide.precision:
        raise InputError(
            f": draws in {guide.precision}, the model in {model.precision}; load both alike", "guide_model"
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
    """What decides how a noisy image looks to the network."""
    config: Any = model.autoencoder.config
    return model.denoiser.schedule, type(model.autoencoder), config, model.autoencoder.state_dict()


def check_threshold(model: Model, share: Any, size: tuple[int, int]) -> float | None:
    """size: (width, height) of the resulting image."""
    name = "dynamic_threshold"
    if share is None:
        return None
    if not is_number(share) or not 0 < share <= 1:
        raise InputError(f" {share!r}: must be over 0 and at most 1; 0.995 is usual", name)
    if model.autoencoder.latent_bounds is None or not model.card.clamp_denoised:
        raise InputError(": this model denoises latents, which have no bounds as pixels have; leave it out", name)
    if 3 * math.prod(size) > MAX_PIXELS:  # what torch.quantile takes
        raise InputError(f": works for images of at most {MAX_PIXELS // 3} pixels; leave it out", name)
    return float(share)


def check_strength(strength: Any, image: Image.Image | None, mask: Image.Image | None, hires_size: Any) -> float:
    """How far a drawing leaves what it starts from; 1 where it starts from noise."""
    if image is not None and hires_size is not None:
        raise InputError(": does not go with an image to start from; draw that at the size that you want", "hires_size")
    if image is None and hires_size is None:
        if not (strength is None or (is_number(strength) and strength == 1)):
            raise InputError(f" {strength!r}: says how far to leave an image; give image or hires_size too", "strength")
        return 1.0
    if strength is None:
        return DEFAULT_STRENGTHS["mask" if mask is not None else "image" if image is not None else "hires"]
    if not is_number(strength) or not 0 < strength <= 1:
        raise InputError(f" {strength!r}: must be over 0 (the image as it is) and at most 1 (all anew)", "strength")
    return float(strength)


def check_tile_size(model: Model, tile_size: Any) -> int:
    least = 16 * model.autoencoder.downsampling_factor
    if type(tile_size) is not int or not (tile_size == 0 or least <= tile_size <= MAX_PIXELS):
        raise InputError(
            f" {tile_size!r}: must be a side of at least {least} pixels, 512 is usual; 0 decodes the image as a whole",
            "tile_size",
        )
    return tile_size
