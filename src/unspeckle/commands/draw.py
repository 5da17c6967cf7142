"""`unspeckle draw`: words to PNG files, seen while they emerge."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from unspeckle.corpus.decoding import IMAGE_FORMATS, MAX_FILE_BYTES, ImageDecodeError, decode_full_size
from unspeckle.corpus.decoding import suppress_decoder_warnings as quiet_decoders
from unspeckle.errors import InputError, prefix_with_option
from unspeckle.generation.codec import decode_to_images
from unspeckle.generation.few_step import why_not_student
from unspeckle.generation.pipeline import images_with_metadata, split_into_batches, steps
from unspeckle.generation.request import Request, ignored_options, resolve
from unspeckle.model import Model
from unspeckle.model_io.loading import load
from unspeckle.model_io.precision import check_precision, keep_freed_memory, resolve_precision, set_precision
from unspeckle.networks.latent_preview import fit_latent_preview
from unspeckle.networks.vae import VAE
from unspeckle.output.film_strip import FilmStrip
from unspeckle.output.png import attach_metadata, image_metadata, save_new_png
from unspeckle.output.terminal import TerminalView
from unspeckle.prompts import LoraTag, parse_prompt, plain_text
from unspeckle.samplers import Step


class AddOns(NamedTuple):
    """To a Stable Diffusion: see formats/additions.py."""

    loras: Sequence[str] = ()
    embeddings: Sequence[Path] = ()
    vae: Path | None = None
    tags: Sequence[LoraTag] = ()  # of the prompt


NO_ADD_ONS = AddOns()


def run(
    request: Request, model: Path | None, guide_model: Path | None, out: Path, film_strip: bool, quiet: bool, device: str | None,
    prediction: str | None = None, trust_pickle: bool = False, image: Path | None = None, mask: Path | None = None,
    add_ons: AddOns = NO_ADD_ONS, preview: Path | None = None, precision: str = "auto",
) -> int:  # fmt: skip
    """Draw the ask into the folder `out`, path by path on standard output; returns the exit code."""
    check_output_folder(out)
    request = replace(request, image=open_input_image(image, "--image"), mask=open_input_image(mask, "--mask"))
    keep_freed_memory()
    add_ons = add_ons._replace(tags=parse_prompt(request.prompt).lora_tags)
    loaded = load_with_add_ons(model, resolve_device(device), prediction, trust_pickle, add_ons, precision)
    preview_model = None if preview is None else with_preview_decoder(loaded, preview)
    if guide_model is not None:
        with prefix_with_option("--guide", guide_model):
            weaker = load(
                guide_model,
                resolve_device(device),
                prediction=prediction,
                trust_pickle=trust_pickle,
                precision=loaded.precision,
            )
        request = replace(request, guide_model=guide_like_model(weaker, loaded, add_ons))
    batches = split_into_batches(resolve(loaded, request))
    total, done = sum(order.total_steps for order in batches), 0
    with TerminalView(quiet=quiet) as show:
        unknown_words = loaded.tokenizer.unknown_words(plain_text(parse_prompt(request.prompt)))
        if unknown_words:
            show.note(f"words the model never saw: {', '.join(unknown_words)}")
        if why := why_not_student(loaded, request):
            show.note(
                f"{why}: the student does without, so its teacher draws, badly in {request.steps} steps; leave it out"
            )
        if names := ignored_options(batches[0]):
            show.note(
                f"{' and '.join(names)}: nothing to do at scale {batches[0].guidance_scale:g}, which is no guidance"
            )
        if preview_model is None:
            preview_model = with_fitted_preview(loaded) if show.color_count else loaded
        for order in batches:
            film = FilmStrip(loaded, order.total_steps)
            for moves, step in enumerate(steps(loaded, order)):
                if film_strip:
                    film.record(step)
                if moves < order.total_steps:
                    show.update(done + moves, total, request.prompt, preview_frame(preview_model, step))
            drawn = images_with_metadata(order, step)
            done += order.total_steps
            show.update(done, total, request.prompt, drawn.copy)
            save_images(drawn, film if film_strip else None, out)
    return 0


def load_with_add_ons(
    path: Path | None, device: torch.device | str, prediction: str | None, trust_pickle: bool, add_ons: AddOns,
    precision: str,
) -> Model:  # fmt: skip
    """The model, to be drawn with in that precision. What is added to it is added in float32, before."""
    added = any(add_ons)
    check_precision(precision, str(device))
    with prefix_with_option("--model", path):
        made = load(
            path, device, prediction=prediction, trust_pickle=trust_pickle, precision="float32" if added else precision
        )
    if not added:
        return made
    from unspeckle.formats.stable_diffusion import add_ons as stable

    made = stable.apply_add_ons(made, *add_ons, model_path=path)
    return set_precision(made, resolve_precision(precision, str(device)))


def guide_like_model(guide: Model, model: Model, additions: AddOns) -> Model:
    """The guide, with the autoencoder that was added to the model; its hash stays that of its file."""
    if additions.vae is None:
        return guide
    return replace(guide, autoencoder=model.autoencoder, stored_hash=guide.weights_hash)


def with_preview_decoder(model: Model, path: Path) -> Model:
    """The model as it is shown on the way, decoded by the autoencoder at the path."""
    from unspeckle.formats.stable_diffusion import add_ons as stable

    return replace(model, autoencoder=stable.read_preview_autoencoder(model, path))


def with_fitted_preview(model: Model) -> Model:
    """The model as it is shown on the way by itself: Stable Diffusion's decoder is more work than a step."""
    coder = model.autoencoder
    return replace(model, autoencoder=fit_latent_preview(coder, model.device)) if isinstance(coder, VAE) else model


def open_input_image(path: Path | None, option: str) -> Image.Image | None:
    """The picture of a file, RGB, upright, on white. InputError where it is none."""
    if path is None:
        return None
    if not path.is_file():
        raise InputError(f"{option} {path}: no such picture; give one as {', '.join(IMAGE_FORMATS)}")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InputError(f"{option} {path}: is too large a file; save it smaller")
    try:
        with quiet_decoders():
            return decode_full_size(path.read_bytes())
    except ImageDecodeError as e:
        raise InputError(f"{option} {path}: cannot be read ({e}); give one as {', '.join(IMAGE_FORMATS)}") from e


def resolve_device(device: str | None) -> str:
    """The device that is meant: the one asked for, or a CUDA GPU where there is one. InputError where there is none."""
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.split(":")[0] not in ("cpu", "cuda"):
        raise InputError(f"--device {device!r}: unknown; choose cpu or cuda")
    index = device.partition(":")[2] or "0"
    if device != "cpu" and not (index.isdecimal() and int(index) < torch.cuda.device_count()):
        raise InputError(f"--device {device}: there is no such device here; choose cpu")
    return device


def check_output_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; give a folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise InputError(f"--out {out}: cannot be made ({e.strerror}); give a folder that can be written") from e
    if not os.access(out, os.W_OK | os.X_OK):
        raise InputError(f"--out {out}: cannot be written; give another folder")


def preview_frame(model: Model, step: Step) -> Callable[[], list[Image.Image]]:
    def frame() -> list[Image.Image]:
        alpha, sigma = (float(level) for level in model.denoiser.schedule(step.t))
        return decode_to_images(model, step.x * (alpha**2 + sigma**2) ** -0.5)  # at the contrast of a picture

    return frame


def save_images(drawn: list[Image.Image], film: FilmStrip | None, out: Path) -> None:
    for at, image in enumerate(drawn):
        paths = [save_new_png(image, out)]
        if film is not None:
            paths.append(
                save_new_png(attach_metadata(film.render(at), {**image_metadata(image), "film": True}), out, "-strip")
            )
        for path in paths:
            print(path.absolute())
        sys.stdout.flush()
