"""`unspeckle replay`: is this picture what its ask gives?"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from unspeckle.commands.draw import (
    NO_ADD_ONS,
    AddOns,
    guide_like_model,
    load_with_add_ons,
    open_input_image,
    resolve_device,
)
from unspeckle.errors import InputError, prefix_with_option
from unspeckle.generation.metadata import image_fingerprint, request_from_metadata
from unspeckle.generation.pipeline import images_with_metadata, steps
from unspeckle.generation.request import resolve
from unspeckle.model import Model
from unspeckle.model_io.loading import load as read_model
from unspeckle.output.png import image_metadata, max_pixel_difference, read_png
from unspeckle.output.terminal import TerminalView
from unspeckle.prompts import parse_prompt

SAME, DIFFERENT = 0, 1


def run(
    path: Path, model: Path | None, guide: Path | None, quiet: bool, device: str | None,
    prediction: str | None = None, trust_pickle: bool = False,
    image: Path | None = None, mask: Path | None = None, add_ons: AddOns = NO_ADD_ONS,
) -> int:  # fmt: skip
    """Draw the picture again and print the largest difference of any pixel; returns the exit code."""
    picture = read_png(path)
    metadata = image_metadata(picture)
    if metadata.get("film"):
        raise InputError(f"{path}: is the film of a drawing; replay the picture itself")
    try:
        request, index = request_from_metadata(metadata)
    except InputError as e:
        raise InputError(f"{path}: {e}") from e
    precision = str(metadata.get("precision", "float32"))
    load = partial(
        read_model, device=resolve_device(device), prediction=prediction, trust_pickle=trust_pickle, precision=precision
    )
    add_ons = add_ons._replace(tags=parse_prompt(request.prompt).lora_tags)
    loaded = load_with_add_ons(model, resolve_device(device), prediction, trust_pickle, add_ons, precision)
    check_same_model(path, metadata.get("model"), loaded, "model")
    if "guide" in metadata:
        if guide is None:
            raise InputError(
                f"{path}: was guided by a weaker model, {model_label(metadata['guide'])}; name it with --guide"
            )
        with prefix_with_option("--guide", guide):
            weaker = load(guide)
        check_same_model(path, metadata["guide"], weaker, "guide")
        request = replace(request, guide_model=guide_like_model(weaker, loaded, add_ons))
    request = replace(
        request,
        image=original_image(path, metadata, "image", "RGB", image),
        mask=original_image(path, metadata, "mask", "L", mask),
    )
    resolved = resolve(loaded, request)
    with TerminalView(quiet=quiet) as show:
        for done, step in enumerate(steps(loaded, resolved), 1):
            last = step
            show.update(done, resolved.total_steps + 1, request.prompt, list)
    difference = max_pixel_difference(picture, images_with_metadata(resolved, last)[index])
    print(f"largest pixel difference: {difference}")
    return DIFFERENT if difference else SAME


def model_label(model: Any) -> str:
    model = model if isinstance(model, dict) else {}
    return f"{model.get('name')!r} ({model.get('hash')})"


def original_image(
    path: Path, metadata: dict[str, Any], name: str, mode: str, path_given: Path | None
) -> Image.Image | None:
    """The picture that the drawing started from, if it is the one of the record."""
    if name not in metadata:
        return None
    if path_given is None:
        raise InputError(f"{path}: was drawn from another picture ({name} {metadata[name]}); name it with --{name}")
    picture = open_input_image(path_given, f"--{name}")
    found = picture and image_fingerprint(picture.convert(mode))
    if found != metadata[name]:
        raise InputError(
            f"--{name} {path_given}: is not the picture that {path} was drawn from ({found}, not {metadata[name]})"
        )
    return picture


def check_same_model(path: Path, expected: Any, found: Model, role: str) -> None:
    """InputError unless the model found is the one that the picture's record names."""
    if not isinstance(expected, dict) or expected.get("hash") != found.hash:
        raise InputError(
            f"{path}: was drawn by the {role} {model_label(expected)}, not by {found.card.name!r} ({found.hash}); "
            f"name the right one with --{role}"
        )
