"""`unspeckle replay`: is this picture what its ask gives?"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from unspeckle.commands.draw import NONE, Additions, alike, opened, place, source
from unspeckle.errors import InputError, naming
from unspeckle.generation.pipeline import asked, fingerprint, settle, signed, steps
from unspeckle.model import Model
from unspeckle.model import load as read_model
from unspeckle.output.png import difference, read, record
from unspeckle.output.terminal import Show
from unspeckle.prompts import parse

SAME, DIFFERENT = 0, 1


def run(
    path: Path, model: Path | None, guide: Path | None, quiet: bool, device: str | None,
    prediction: str | None = None, trust_pickle: bool = False,
    image: Path | None = None, mask: Path | None = None, additions: Additions = NONE,
) -> int:  # fmt: skip
    """Draw the picture again and print the largest difference of any pixel; returns the exit code."""
    picture = read(path)
    said = record(picture)
    if said.get("film"):
        raise InputError(f"{path}: is the film of a drawing; replay the picture itself")
    try:
        ask, at = asked(said)
    except InputError as e:
        raise InputError(f"{path}: {e}") from e
    precision = str(said.get("precision", "float32"))
    load = partial(
        read_model, device=place(device), prediction=prediction, trust_pickle=trust_pickle, precision=precision
    )
    additions = additions._replace(tags=parse(ask.prompt).loras)
    drawer = opened(model, place(device), prediction, trust_pickle, additions, precision)
    _same(path, said.get("model"), drawer, "model")
    if "guide" in said:
        if guide is None:
            raise InputError(f"{path}: was guided by a weaker model, {_named(said['guide'])}; name it with --guide")
        with naming("--guide", guide):
            weaker = load(guide)
        _same(path, said["guide"], weaker, "guide")
        ask = replace(ask, guide=alike(weaker, drawer, additions))
    ask = replace(ask, image=_source(path, said, "image", "RGB", image), mask=_source(path, said, "mask", "L", mask))
    order = settle(drawer, ask)
    with Show(quiet=quiet) as show:
        for done, step in enumerate(steps(drawer, order), 1):
            last = step
            show.show(done, order.moves + 1, ask.prompt, list)
    found = difference(picture, signed(drawer, order, last)[at])
    print(f"largest pixel difference: {found}")
    return DIFFERENT if found else SAME


def _named(model: Any) -> str:
    model = model if isinstance(model, dict) else {}
    return f"{model.get('name')!r} ({model.get('hash')})"


def _source(path: Path, said: dict[str, Any], name: str, mode: str, given: Path | None) -> Image.Image | None:
    """The picture that the drawing started from, if it is the one of the record."""
    if name not in said:
        return None
    if given is None:
        raise InputError(f"{path}: was drawn from another picture ({name} {said[name]}); name it with --{name}")
    picture = source(given, f"--{name}")
    found = picture and fingerprint(picture.convert(mode))
    if found != said[name]:
        raise InputError(f"--{name} {given}: is not the picture that {path} was drawn from ({found}, not {said[name]})")
    return picture


def _same(path: Path, wanted: Any, found: Model, role: str) -> None:
    """InputError unless the model found is the one that the picture's record names."""
    if not isinstance(wanted, dict) or wanted.get("hash") != found.hash:
        raise InputError(
            f"{path}: was drawn by the {role} {_named(wanted)}, not by {found.card.name!r} ({found.hash}); "
            f"name the right one with --{role}"
        )
