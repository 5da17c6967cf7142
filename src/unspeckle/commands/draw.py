"""`unspeckle draw`: words to PNG files, seen while they emerge."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from unspeckle.corpus.decoding import FORMATS, LARGEST_FILE, Undecodable, whole
from unspeckle.corpus.decoding import quiet as quiet_decoders
from unspeckle.errors import InputError, naming
from unspeckle.generation.few_step import passed_over
from unspeckle.generation.pipeline import Ask, parts, pictures, signed, steps
from unspeckle.generation.request import idle
from unspeckle.model import Model, load
from unspeckle.model_io.precision import chosen, keep_memory, known, lower
from unspeckle.networks.latent_preview import sketch
from unspeckle.networks.vae import Vae
from unspeckle.output.film_strip import Film
from unspeckle.output.png import keep, record, stamp
from unspeckle.output.terminal import Show
from unspeckle.prompts import Lora, parse, words
from unspeckle.samplers import Step


class Additions(NamedTuple):
    """To a Stable Diffusion: see formats/additions.py."""

    loras: Sequence[str] = ()
    embeddings: Sequence[Path] = ()
    vae: Path | None = None
    tags: Sequence[Lora] = ()  # of the prompt


NONE = Additions()


def run(
    ask: Ask, model: Path | None, guide: Path | None, out: Path, strip: bool, quiet: bool, device: str | None,
    prediction: str | None = None, trust_pickle: bool = False, image: Path | None = None, mask: Path | None = None,
    additions: Additions = NONE, preview: Path | None = None, precision: str = "auto",
) -> int:  # fmt: skip
    """Draw the ask into the folder `out`, path by path on standard output; returns the exit code."""
    _writable(out)
    ask = replace(ask, image=source(image, "--image"), mask=source(mask, "--mask"))
    keep_memory()
    additions = additions._replace(tags=parse(ask.prompt).loras)
    drawer = opened(model, place(device), prediction, trust_pickle, additions, precision)
    shown = None if preview is None else previewed(drawer, preview)
    if guide is not None:
        with naming("--guide", guide):
            weaker = load(
                guide, place(device), prediction=prediction, trust_pickle=trust_pickle, precision=drawer.precision
            )
        ask = replace(ask, guide=alike(weaker, drawer, additions))
    orders = parts(drawer, ask)
    total, done = sum(order.moves for order in orders), 0
    with Show(quiet=quiet) as show:
        strange = drawer.tokenizer.unknown(words(parse(ask.prompt)))
        if strange:
            show.say(f"words the model never saw: {', '.join(strange)}")
        if why := passed_over(drawer, ask):
            show.say(f"{why}: the student does without, so its teacher draws, badly in {ask.steps} steps; leave it out")
        if names := idle(drawer, orders[0]):
            show.say(f"{' and '.join(names)}: nothing to do at scale {orders[0].scale:g}, which is no guidance")
        if shown is None:
            shown = sketched(drawer) if show.colours else drawer
        for order in orders:
            film = Film(drawer, order.moves)
            for moves, step in enumerate(steps(drawer, order)):
                if strip:
                    film.see(step)
                if moves < order.moves:
                    show.show(done + moves, total, ask.prompt, _frame(shown, step))
            drawn = signed(drawer, order, step)
            done += order.moves
            show.show(done, total, ask.prompt, drawn.copy)
            _save(drawn, film if strip else None, out)
    return 0


def opened(
    path: Path | None, device: torch.device | str, prediction: str | None, trust_pickle: bool, additions: Additions,
    precision: str,
) -> Model:  # fmt: skip
    """The model, to be drawn with in that precision. What is added to it is added in float32, before."""
    added = any(additions)
    known(precision, str(device))
    with naming("--model", path):
        made = load(
            path, device, prediction=prediction, trust_pickle=trust_pickle, precision="float32" if added else precision
        )
    if not added:
        return made
    from unspeckle.formats.stable_diffusion import add_ons as stable

    made = stable.add(made, *additions, near=path)
    return lower(made, chosen(precision, str(device)))


def alike(guide: Model, model: Model, additions: Additions) -> Model:
    """The guide, with the autoencoder that was added to the model; its hash stays that of its file."""
    if additions.vae is None:
        return guide
    return replace(guide, autoencoder=model.autoencoder, known_hash=guide.weights_hash)


def previewed(model: Model, path: Path) -> Model:
    """The model as it is shown on the way, decoded by the autoencoder at the path."""
    from unspeckle.formats.stable_diffusion import add_ons as stable

    return replace(model, autoencoder=stable.preview(model, path))


def sketched(model: Model) -> Model:
    """The model as it is shown on the way by itself: Stable Diffusion's decoder is more work than a step."""
    coder = model.autoencoder
    return replace(model, autoencoder=sketch(coder, model.device)) if isinstance(coder, Vae) else model


def source(path: Path | None, option: str) -> Image.Image | None:
    """The picture of a file, RGB, upright, on white. InputError where it is none."""
    if path is None:
        return None
    if not path.is_file():
        raise InputError(f"{option} {path}: no such picture; give one as {', '.join(FORMATS)}")
    if path.stat().st_size > LARGEST_FILE:
        raise InputError(f"{option} {path}: is too large a file; save it smaller")
    try:
        with quiet_decoders():
            return whole(path.read_bytes())
    except Undecodable as e:
        raise InputError(f"{option} {path}: cannot be read ({e}); give one as {', '.join(FORMATS)}") from e


def place(device: str | None) -> str:
    """The device that is meant: the one asked for, or a CUDA GPU where there is one. InputError where there is none."""
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.split(":")[0] not in ("cpu", "cuda"):
        raise InputError(f"--device {device!r}: unknown; choose cpu or cuda")
    index = device.partition(":")[2] or "0"
    if device != "cpu" and not (index.isdecimal() and int(index) < torch.cuda.device_count()):
        raise InputError(f"--device {device}: there is no such device here; choose cpu")
    return device


def _writable(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; give a folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise InputError(f"--out {out}: cannot be made ({e.strerror}); give a folder that can be written") from e
    if not os.access(out, os.W_OK | os.X_OK):
        raise InputError(f"--out {out}: cannot be written; give another folder")


def _frame(model: Model, step: Step) -> Callable[[], list[Image.Image]]:
    def frame() -> list[Image.Image]:
        alpha, sigma = (float(level) for level in model.denoiser.schedule(step.t))
        return pictures(model, step.x * (alpha**2 + sigma**2) ** -0.5)  # at the contrast of a picture

    return frame


def _save(drawn: list[Image.Image], film: Film | None, out: Path) -> None:
    for at, image in enumerate(drawn):
        paths = [keep(image, out)]
        if film is not None:
            paths.append(keep(stamp(film.strip(at), {**record(image), "film": True}), out, "-strip"))
        for path in paths:
            print(path.absolute())
        sys.stdout.flush()
