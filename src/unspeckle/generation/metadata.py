"""What an image's file says of how it was drawn, and the request that this makes again."""

import hashlib
from typing import Any

from PIL import Image

from unspeckle.errors import InputError
from unspeckle.generation.request import Request, ResolvedRequest
from unspeckle.old_names import rename_image_metadata
from unspeckle.version import installed_version

ALWAYS = ("prompt", "negative_prompt", "steps", "sampler", "timestep_spacing", "guidance_scale")
OPTIONAL = {  # recorded only where they differ from this
    "guidance_method": "cfg", "guidance_rescale": 0, "guidance_interval": None, "paste_original": True,
    "upscaler": "lanczos", "clip_skip": 1, "tile_size": 0, "dynamic_threshold": None,
}  # fmt: skip


def metadata_of(resolved: ResolvedRequest) -> list[dict[str, Any]]:
    """The metadata of each of the request's images, as JSON values: no path, no name of a machine, no time of day."""
    model, guide = resolved.model, resolved.guide_model
    common: dict[str, Any] = {
        **{name: getattr(resolved, name) for name in ALWAYS},
        "size": list(resolved.size),
        "model": {"name": model.card.name, "hash": model.hash},
        "batch": [resolved.first_seed, resolved.count],  # rounding differs a little with the neighbours
        "version": installed_version(),
    }
    common |= {name: value for name in OPTIONAL if (value := getattr(resolved, name)) != OPTIONAL[name]}
    if guide is not None:
        common["guide_model"] = {"name": guide.card.name, "hash": guide.hash}
    if resolved.image is not None or resolved.hires_size is not None:
        common["strength"] = resolved.strength
    if model.precision != "float32":
        common["precision"] = model.precision
    if resolved.hires_size is not None:
        common["hires_size"] = list(resolved.hires_size)
    if resolved.image is not None:
        common["image"] = image_fingerprint(resolved.image.convert("RGB"))
    if resolved.mask is not None:
        common["mask"] = image_fingerprint(resolved.mask.convert("L"))
    images = []
    for seed, variation_seed in zip(*resolved.seeds(), strict=True):
        metadata = {"seed": seed, **common}
        if variation_seed is not None:
            metadata |= {"variation_seed": variation_seed, "variation_strength": resolved.variation_strength}
        images.append(metadata)
    return images


def image_fingerprint(image: Image.Image) -> str:
    """16 hex digits of an image's pixels and size, whatever file they lie in."""
    return hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).hexdigest()[:16]


def request_from_metadata(metadata: dict[str, Any]) -> tuple[Request, int]:
    """The request that the metadata describe, and the image's place in its batch.

    A guide model, an image and a mask are not part of it: the metadata name them, whoever has them adds them.
    InputError where the metadata are incomplete or damaged."""
    metadata = rename_image_metadata(metadata)
    try:
        first, count = metadata["batch"]
        width, height = metadata["size"]
        varied = "variation_seed" in metadata
        counted = metadata["variation_seed" if varied else "seed"]
        options = {name: metadata[name] for name in ALWAYS}
        options |= {name: metadata[name] for name in (*OPTIONAL, "strength", "variation_strength") if name in metadata}
        options |= {"hires_size": tuple(metadata["hires_size"])} if "hires_size" in metadata else {}
        options |= {"seed": metadata["seed"], "variation_seed": first} if varied else {"seed": first}
        request = Request(count=count, size=(width, height), **options)
    except (KeyError, TypeError, ValueError) as e:
        raise InputError(
            f"its metadata are incomplete or damaged ({type(e).__name__}: {e}); give the original PNG"
        ) from e
    empty = next((name for name, value in metadata.items() if value is None), None)
    if empty is not None:  # which in a request is a choice that is left open
        raise InputError(f"its metadata are damaged ({empty} has no value); give the original PNG")
    if any(type(number) is not int for number in (first, count, counted)) or not 0 <= counted - first < count:
        raise InputError("its metadata are damaged (the seed lies outside its batch); give the original PNG")
    return request, counted - first
