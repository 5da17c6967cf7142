"""The metadata of an image: how it was drawn, as JSON values in image.info, and the request that they describe."""

import hashlib
import json
from typing import Any

from PIL import Image

from unspeckle.errors import InputError
from unspeckle.generation.request import Request
from unspeckle.generation.resolve import ResolvedRequest
from unspeckle.old_names import rename_image_metadata
from unspeckle.unclip import UnCLIPModel
from unspeckle.version import installed_version

# The key of image.info, and of the PNG chunk, that holds the metadata as JSON
IMAGE_METADATA_KEY = "unspeckle"
# Options that are always recorded
ALWAYS_RECORDED = ("prompt", "negative_prompt", "steps", "sampler", "timestep_spacing", "guidance_scale")
# Options that are recorded only where they differ from these values
DEFAULTS: dict[str, object] = {
    "guidance_method": "cfg", "guidance_rescale": 0, "guidance_interval": None, "paste_original": True,
    "upscaler": "lanczos", "clip_skip": 1, "tile_size": 0, "dynamic_threshold": None,
}  # fmt: skip


def build_metadata(resolved: ResolvedRequest) -> list[dict[str, Any]]:
    """The metadata of each of the request's images, as JSON values: no path, no name of a machine, no time of day."""
    model, guide = resolved.model, resolved.guide_model
    common: dict[str, Any] = {
        **{name: getattr(resolved, name) for name in ALWAYS_RECORDED},
        "size": list(resolved.size),
        "model": {"name": model.card.name, "hash": model.hash},
        "batch": [resolved.first_seed, resolved.count],  # the rounding of an image depends a little on its batch
        "version": installed_version(),
    }
    common |= {name: value for name in DEFAULTS if (value := getattr(resolved, name)) != DEFAULTS[name]}
    if guide is not None:
        common["guide_model"] = {"name": guide.card.name, "hash": guide.hash}
    if resolved.upsampler is not None and not isinstance(model, UnCLIPModel):
        common["upsampler"] = {"name": resolved.upsampler.card.name, "hash": resolved.upsampler.hash}
    if resolved.image is not None or resolved.hires_size is not None:
        common["strength"] = resolved.strength
    if model.precision != "float32":
        common["precision"] = model.precision
    if resolved.hires_size is not None:
        common["hires_size"] = list(resolved.hires_size)
    if resolved.image is not None:
        common["image"] = image_fingerprint(resolved.image.convert("RGB"))
    if resolved.like:
        common["like"] = [image_fingerprint(image.convert("RGB")) for image in resolved.images_like]
        options = {name: getattr(resolved, name) for name in ("mix", "from_words", "to_words")}
        common |= {name: value for name, value in options.items() if value not in (None, "")}
    if resolved.mask is not None:
        common["mask"] = image_fingerprint(resolved.mask.convert("L"))
    images = []
    for seed, variation_seed in zip(*resolved.seeds(), strict=True):
        metadata = {"seed": seed, **common}
        if variation_seed is not None:
            metadata |= {"variation_seed": variation_seed, "variation_strength": resolved.variation_strength}
        images.append(metadata)
    return images


def attach_metadata(image: Image.Image, metadata: dict[str, Any]) -> Image.Image:
    """Put the metadata into image.info, from where `output.png` writes them; returns the image."""
    image.info[IMAGE_METADATA_KEY] = json.dumps(metadata, ensure_ascii=True)
    return image


def image_metadata(image: Image.Image) -> dict[str, Any]:
    """The metadata in image.info; empty where there are none, or damaged ones."""
    try:
        metadata = json.loads(image.info.get(IMAGE_METADATA_KEY, "{}"))
    except (TypeError, ValueError, RecursionError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def image_fingerprint(image: Image.Image) -> str:
    """16 hex digits of an image's pixels and size, whatever file format it is stored in."""
    return hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).hexdigest()[:16]


def request_from_metadata(metadata: dict[str, Any]) -> tuple[Request, int]:
    """The request that the metadata describe, and the image's index in its batch.

    A guide model, an image and a mask are not part of it: the metadata hold only their hashes, so the caller adds them.
    InputError where the metadata are incomplete or damaged."""
    metadata = rename_image_metadata(metadata)
    try:
        first, count = metadata["batch"]
        width, height = metadata["size"]
        has_variation = "variation_seed" in metadata
        own_seed = metadata["variation_seed" if has_variation else "seed"]
        options = {name: metadata[name] for name in ALWAYS_RECORDED}
        options |= {name: metadata[name] for name in (*DEFAULTS, "strength", "variation_strength") if name in metadata}
        options |= {name: metadata[name] for name in ("mix", "from_words", "to_words") if name in metadata}
        options |= {"hires_size": tuple(metadata["hires_size"])} if "hires_size" in metadata else {}
        options |= {"seed": metadata["seed"], "variation_seed": first} if has_variation else {"seed": first}
        request = Request(count=count, size=(width, height), **options)
    except (KeyError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise InputError(f"its metadata are incomplete or damaged ({what}); give the original PNG") from error
    missing = next((name for name, value in metadata.items() if value is None), None)
    if missing is not None:  # None in a request leaves a choice open
        raise InputError(f"its metadata are damaged ({missing} has no value); give the original PNG")
    if any(type(number) is not int for number in (first, count, own_seed)) or not 0 <= own_seed - first < count:
        raise InputError("its metadata are damaged (the seed lies outside its batch); give the original PNG")
    return request, own_seed - first
