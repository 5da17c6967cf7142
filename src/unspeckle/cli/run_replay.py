"""What `unspeckle replay` does: draw an image again by its metadata, and compare the pixels."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from unspeckle.cli.load_model import load_guide_model, load_model, load_upsampler
from unspeckle.cli.options import ModelOptions
from unspeckle.cli.run_draw import read_input_image
from unspeckle.errors import InputError
from unspeckle.generation.metadata import image_fingerprint, image_metadata, request_from_metadata
from unspeckle.generation.pipeline import images_with_metadata, sample_steps
from unspeckle.generation.request import Request
from unspeckle.generation.resolve import ResolvedRequest, resolve
from unspeckle.model import Model
from unspeckle.old_names import rename_image_metadata
from unspeckle.output.a1111_parameters import PARAMETERS_KEY, A1111Parameters, parse_parameters, request_options
from unspeckle.output.png import max_pixel_difference, read_png
from unspeckle.output.terminal import TerminalView
from unspeckle.prompts import Prompt, parse_prompt
from unspeckle.quantization.precision import PRECISIONS

EXIT_SAME, EXIT_DIFFERENT = 0, 1
# Options of `replay` that name what the metadata do not contain
_GIVEN_AGAIN = ("guide_model", "upsampler", "image", "mask", "like")


@dataclass(frozen=True)
class ReplayOptions:
    """The options of `unspeckle replay`."""

    # A PNG file with our metadata, or with the parameters of A1111.
    file: Path
    # The model that drew it; the precision is that of our metadata.
    model: ModelOptions
    # The weaker model that guided, the image that the drawing started from, and its mask.
    guide_model: Path | None = None
    image: Path | None = None
    mask: Path | None = None
    # The images that it was drawn like.
    like: tuple[Path, ...] | None = None
    # The model that enlarged it.
    upsampler: Path | None = None
    # Whether nothing but errors and the result is printed.
    quiet: bool = False


def run_replay(options: ReplayOptions) -> int:
    """Draw the image again and print the largest difference of any pixel; returns the exit code, 1 where there is one.

    InputError where the metadata are damaged, or a model or an image is not the one that was used."""
    image = read_png(options.file)
    metadata = rename_image_metadata(image_metadata(image))
    if metadata.get("film"):
        raise InputError(f"{options.file}: is the film strip of an image; replay the image itself")
    notes: list[str] = []
    if metadata:
        resolved, index = resolve_metadata(options, metadata)
    else:
        parameters = parse_parameters_of(options.file, image)
        resolved, index = resolve_parameters(options, parameters), 0
        notes = notes_on_parameters(parameters)
    with TerminalView(quiet=options.quiet) as view:
        for line in notes:
            view.note(line)
        for done, last_step in enumerate(sample_steps(resolved), 1):
            step = last_step
            view.update(done, resolved.total_steps + 1, resolved.prompt, list)
    difference = max_pixel_difference(image, images_with_metadata(resolved, step)[index])
    print(f"largest pixel difference: {difference}")
    return EXIT_DIFFERENT if difference else EXIT_SAME


def resolve_metadata(options: ReplayOptions, metadata: dict[str, Any]) -> tuple[ResolvedRequest, int]:
    """The request that the metadata describe, resolved, and the image's place in its batch."""
    try:
        request, index = request_from_metadata(metadata)
        prompt = parse_prompt(request.prompt)
    except InputError as error:
        raise InputError(f"{options.file}: {error}") from error
    refuse_unused_files(options, metadata)
    precision = metadata.get("precision", "float32")
    if not isinstance(precision, str) or precision not in PRECISIONS:
        raise InputError(f"{options.file}: its metadata are damaged (precision {precision!r}); give the original PNG")
    model_options = replace(options.model, precision=precision)
    model = load_model(model_options, prompt.lora_tags)
    check_same_model(options.file, metadata.get("model"), model, "--model")
    if "guide_model" in metadata:
        request = replace(request, guide_model=same_guide_model(options, model_options, metadata, model))
    if "upsampler" in metadata:
        if options.upsampler is None:
            label = model_label(metadata["upsampler"])
            raise InputError(f"{options.file}: was enlarged by the model {label}; give it by --upsampler")
        upsampler = load_upsampler(model_options, options.upsampler)
        check_same_model(options.file, metadata["upsampler"], upsampler, "--upsampler")
        request = replace(request, upsampler=upsampler)
    request = replace(
        request,
        image=original_image(options.file, metadata, "image", options.image),
        mask=original_image(options.file, metadata, "mask", options.mask),
        like=images_drawn_like(options, metadata),
    )
    return _resolve(options.file, model, request, prompt), index


def parse_parameters_of(file: Path, image: Image.Image) -> A1111Parameters:
    """The parameters that another program wrote into the image's file."""
    try:
        return parse_parameters(image.info[PARAMETERS_KEY])
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def resolve_parameters(options: ReplayOptions, parameters: A1111Parameters) -> ResolvedRequest:
    """The request that the parameters of another program describe, resolved for the model that is given."""
    file = options.file
    if options.model.path is None:
        raise InputError(f"{file}: was drawn by another program from {parameters.model_label}; give a model by --model")
    if options.guide_model is not None:
        raise InputError(f": {file} was drawn without one; leave it out", "guide_model")
    if parameters.starts_from_image and options.image is None:
        raise InputError(f"{file}: was drawn from another image; give it by --image")
    try:
        request = Request(**request_options(parameters))
        prompt = parse_prompt(request.prompt)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    request = replace(
        request,
        image=read_input_image(options.image, "--image"),
        mask=read_input_image(options.mask, "--mask"),
    )
    return _resolve(file, load_model(options.model, prompt.lora_tags), request, prompt)


def notes_on_parameters(parameters: A1111Parameters) -> list[str]:
    """What the user should know of an image that another program drew."""
    lines = ["the image was drawn by another program, whose pixels cannot be drawn exactly"]
    if names := parameters.unused_settings:
        lines.append(f"settings of that program without effect here: {', '.join(names)}")
    return lines


def refuse_unused_files(options: ReplayOptions, metadata: dict[str, Any]) -> None:
    """InputError where a model or an image is given that the metadata do not name."""
    for name in _GIVEN_AGAIN:
        if getattr(options, name) is not None and name not in metadata:
            raise InputError(f": {options.file} was drawn without one; leave it out", name)


def same_guide_model(
    options: ReplayOptions, model_options: ModelOptions, metadata: dict[str, Any], model: Model
) -> Model:
    """The guide model, if it is the one that the metadata name."""
    expected = metadata["guide_model"]
    if options.guide_model is None:
        raise InputError(
            f"{options.file}: was guided by a weaker model, {model_label(expected)}; give it by --guide-model"
        )
    guide = load_guide_model(model_options, options.guide_model, model)
    check_same_model(options.file, expected, guide, "--guide-model")
    return guide


def original_image(file: Path, metadata: dict[str, Any], name: str, path: Path | None) -> Image.Image | None:
    """The image or mask that the drawing started from, if it is the one that the metadata name; None where there is
    none. name: "image" or "mask"."""
    expected = metadata.get(name)
    if name not in metadata:
        return None
    if path is None:
        raise InputError(f"{file}: was drawn from another image ({name} {expected}); give it by --{name}")
    image = read_input_image(path, f"--{name}")
    assert image is not None
    fingerprint = image_fingerprint(image.convert("L" if name == "mask" else "RGB"))
    if fingerprint != expected:
        raise InputError(
            f"--{name} {path}: is not the image that {file} was drawn from ({fingerprint}, not {expected})"
        )
    return image


def images_drawn_like(options: ReplayOptions, metadata: dict[str, Any]) -> tuple[Image.Image, ...]:
    """The images that the drawing was to be like, if they are those that the metadata name."""
    expected = metadata.get("like", [])
    if not isinstance(expected, list):
        raise InputError(f"{options.file}: its metadata are damaged (like {expected!r}); give the original PNG")
    if len(options.like or ()) != len(expected):
        what = f"{len(expected)} images" if len(expected) > 1 else "an image"
        raise InputError(f"{options.file}: was drawn like {what} ({', '.join(map(str, expected))}); give it by --like")
    pairs = zip(expected, options.like or (), strict=True)
    images = (original_image(options.file, {"like": one}, "like", path) for one, path in pairs)
    return tuple(image for image in images if image is not None)


def check_same_model(file: Path, expected: object, model: Model, option: str) -> None:
    """InputError unless the model is the one that the image's metadata name."""
    if not isinstance(expected, dict) or expected.get("hash") != model.hash:
        verb = {"--guide-model": "guided", "--upsampler": "enlarged"}.get(option, "drawn")
        raise InputError(
            f"{file}: was {verb} by the model {model_label(expected)}, not by {model.card.name!r} ({model.hash}); give "
            f"the right one by {option}"
        )


def model_label(metadata: object) -> str:
    """A model's name and hash, from the metadata of an image."""
    fields = metadata if isinstance(metadata, dict) else {}
    return f"{fields.get('name')!r} ({fields.get('hash')})"


def _resolve(file: Path, model: Model, request: Request, prompt: Prompt) -> ResolvedRequest:
    """The request resolved; what is wrong with it is the fault of the file's metadata, or of a file given again."""
    try:
        return resolve(model, request, prompt)
    except InputError as error:
        if error.option in _GIVEN_AGAIN:
            raise
        raise InputError(f"{file}: {error}") from error
