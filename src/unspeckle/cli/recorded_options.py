"""`draw --image` without a prompt: the options that the PNG file of the image holds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unspeckle.errors import InputError
from unspeckle.generation.metadata import image_metadata, request_from_metadata
from unspeckle.generation.request import Request
from unspeckle.output.a1111_parameters import PARAMETERS_KEY, parse_parameters, request_options
from unspeckle.output.png import read_png


def options_of_image(image: Path | None, request: Request, seed: int | None) -> tuple[str, ...]:
    """The names of the options that are taken from the image's metadata where there is no prompt: those not given."""
    if image is None:
        raise InputError(": is missing; write what to draw", "prompt")
    given = {name: getattr(request, name) for name in ("steps", "sampler", "timestep_spacing", "guidance_scale")}
    given |= {"negative_prompt": request.negative_prompt or None, "seed": seed}
    return ("prompt", *(name for name, value in given.items() if value is None))


def recorded_options(path: Path | None, names: Sequence[str]) -> dict[str, Any]:
    """These options of the drawing that a PNG file holds, by our metadata or the parameters of A1111.

    InputError where there is no prompt in it."""
    if path is None or not names:
        return {}
    try:
        image = read_png(path)
        if metadata := image_metadata(image):
            request, index = request_from_metadata(metadata)
            seeds = {"seed": request.seed + (0 if "variation_seed" in metadata else index)}
            return {name: seeds.get(name, getattr(request, name)) for name in names}
        return request_options(parse_parameters(image.info[PARAMETERS_KEY]), names)
    except InputError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise InputError(
            f": is missing, and {path} does not give one ({reason}); write what to draw", "prompt"
        ) from error
