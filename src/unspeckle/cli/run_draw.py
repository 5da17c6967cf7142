"""What `unspeckle draw` does: from a request to PNG files, shown in the terminal while they are drawn."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from unspeckle.cli.load_model import load_guide_model, load_model, load_upsampler
from unspeckle.cli.options import ModelOptions
from unspeckle.cli.recorded_options import recorded_options
from unspeckle.corpus.decoding import (
    IMAGE_FORMATS,
    MAX_FILE_BYTES,
    ImageDecodeError,
    decode_full_size,
    suppress_decoder_warnings,
)
from unspeckle.errors import InputError, option_name
from unspeckle.formats.stable_diffusion.add_ons import read_preview_autoencoder
from unspeckle.generation.codec import decode_to_images
from unspeckle.generation.few_step import why_not_student
from unspeckle.generation.metadata import attach_metadata, image_metadata
from unspeckle.generation.pipeline import images_with_metadata, sample_steps, split_into_batches
from unspeckle.generation.request import Request
from unspeckle.generation.resolve import ResolvedRequest, ignored_options, resolve
from unspeckle.model import Model
from unspeckle.model_io.process_memory import keep_freed_memory
from unspeckle.networks.latent_preview import fit_latent_preview
from unspeckle.networks.vae import VAE
from unspeckle.output.film_strip import FilmStrip
from unspeckle.output.png import save_new_png
from unspeckle.output.terminal import TerminalView
from unspeckle.prompts import parse_prompt, plain_text
from unspeckle.samplers import Step
from unspeckle.text.tokenizer import UnknownWord


@dataclass(frozen=True)
class DrawOptions:
    """The options of `unspeckle draw`."""

    # What to draw; its images and its guide model are read from the files below.
    request: Request
    model: ModelOptions
    # The folder for the PNG files.
    out: Path
    # A weaker model for autoguidance.
    guide_model: Path | None = None
    # Image to start from, and mask of the part that is redrawn.
    image: Path | None = None
    mask: Path | None = None
    # Images to draw like.
    like: tuple[Path, ...] = ()
    # A model that enlarges the images.
    upsampler: Path | None = None
    # Options that the command line does not have, and that the metadata of `image` give.
    options_of_image: tuple[str, ...] = ()
    # Whether a film strip of each image is saved as well.
    film_strip: bool = False
    # An autoencoder that decodes what the terminal shows.
    preview: Path | None = None
    # Whether nothing but errors and paths is printed.
    quiet: bool = False


def run_draw(options: DrawOptions) -> int:
    """Draw the images and print the path of each on standard output; returns the exit code.

    InputError where the options do not allow it."""
    create_output_folder(options.out)
    request = replace(
        options.request,
        **recorded_options(options.image, options.options_of_image),
        image=read_input_image(options.image, "--image"),
        mask=read_input_image(options.mask, "--mask"),
        like=read_images(options.like, "--like"),
    )
    keep_freed_memory()
    prompt = parse_prompt(request.prompt)
    model = load_model(options.model, prompt.lora_tags)
    preview_model = None
    if options.preview is not None:
        preview_model = replace(model, autoencoder=read_preview_autoencoder(model, options.preview))
    if options.guide_model is not None:
        request = replace(request, guide_model=load_guide_model(options.model, options.guide_model, model))
    if options.upsampler is not None:
        request = replace(request, upsampler=load_upsampler(options.model, options.upsampler))
    resolved = resolve(model, request, prompt)
    with TerminalView(quiet=options.quiet) as view:
        for line in notes(resolved, request, options, view):
            view.note(line)
        if preview_model is None:
            preview_model = with_latent_preview(model) if view.color_count else model
        batches = split_into_batches(resolved)
        total, done = sum(batch.total_steps for batch in batches), 0
        for batch in batches:
            film = FilmStrip(model, batch.total_steps) if options.film_strip else None
            for taken, step in enumerate(sample_steps(batch)):
                if film is not None:
                    film.record(step)
                if taken < batch.total_steps:
                    view.update(done + taken, total, request.prompt, preview_frame(preview_model, step))
            images = images_with_metadata(batch, step)
            done += batch.total_steps
            view.update(done, total, request.prompt, images.copy)
            save_images(images, film, options.out)
    return 0


def unknown_word_notes(words: Sequence[UnknownWord]) -> list[str]:
    """Which words the model does not know: with the nearest known one, a line each, and the others in one line."""
    lines = [f"{word}: not known; nearest: {nearest}" for word, nearest in words if nearest]
    others = [word for word, nearest in words if not nearest]
    return lines + ([f"the model does not know these words: {', '.join(others)}"] if others else [])


def notes(resolved: ResolvedRequest, request: Request, options: DrawOptions, view: TerminalView) -> list[str]:
    """What the user should know before the drawing starts: unknown words, and options that have no effect."""
    model, lines = resolved.model, []
    lines += unknown_word_notes(model.tokenizer.unknown_words(plain_text(resolved.parsed_prompt)))
    if reason := why_not_student(model, request):
        name, value = reason
        lines.append(
            f"{option_name(name)}{value}: the few-step student cannot follow it, so the full model draws, which needs "
            f"more than {resolved.steps} steps; leave it out"
        )
    if names := ignored_options(resolved):
        typed = " and ".join(map(option_name, names))
        lines.append(f"{typed}: no effect at guidance scale {resolved.guidance_scale:g}, which disables guidance")
    if resolved.tile_size and model.autoencoder.downsampling_factor == 1:
        lines.append("--tile-size: no effect, as this model draws pixels, which need no decoding")
    if options.preview is not None and not view.color_count:
        lines.append("--preview: no effect, as images cannot be shown here (it needs a terminal with colors)")
    return lines


def with_latent_preview(model: Model) -> Model:
    """The model as the terminal shows its steps: in place of the decoder of Stable Diffusion, which takes longer than a
    step, a linear map from latents to colors."""
    autoencoder = model.autoencoder
    if not isinstance(autoencoder, VAE):
        return model
    return replace(model, autoencoder=fit_latent_preview(autoencoder, model.device))


def preview_frame(model: Model, step: Step) -> Callable[[], list[Image.Image]]:
    """A function that decodes the step's noisy images, at the contrast of finished ones."""

    def frame() -> list[Image.Image]:
        alpha, sigma = (float(level) for level in model.denoiser.schedule(step.t))
        return decode_to_images(model, step.x * (alpha**2 + sigma**2) ** -0.5)

    return frame


def read_input_image(path: Path | None, option: str) -> Image.Image | None:
    """The image of a file: RGB, upright, on white where it is transparent; None without a path.

    InputError, naming the option, where it cannot be read."""
    return None if path is None else read_image(path, option)


def read_images(paths: Sequence[Path], option: str) -> tuple[Image.Image, ...]:
    """The images of files."""
    return tuple(read_image(path, option) for path in paths)


def read_image(path: Path, option: str) -> Image.Image:
    """The image of a file, as `read_input_image` gives it."""
    if not path.is_file():
        raise InputError(f"{option} {path}: no such image file; give one in {', '.join(IMAGE_FORMATS)} format")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InputError(f"{option} {path}: the file is too large; save it with fewer pixels")
    try:
        with suppress_decoder_warnings():
            return decode_full_size(path.read_bytes())
    except ImageDecodeError as error:
        formats = ", ".join(IMAGE_FORMATS)
        raise InputError(f"{option} {path}: cannot be read ({error}); give an image in {formats} format") from error


def create_output_folder(out: Path) -> None:
    """InputError where the folder cannot be created, or no file in it."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; give a folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be created ({error.strerror}); give another folder") from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise InputError(f"--out {out}: is not writable; give another folder")


def save_images(images: list[Image.Image], film: FilmStrip | None, out: Path) -> None:
    """Save the images, and their film strips, and print the path of each."""
    for index, image in enumerate(images):
        paths = [save_new_png(image, out)]
        if film is not None:
            strip = attach_metadata(film.render(index), {**image_metadata(image), "film": True})
            paths.append(save_new_png(strip, out, "-strip"))
        for path in paths:
            print(path.absolute())
        sys.stdout.flush()
