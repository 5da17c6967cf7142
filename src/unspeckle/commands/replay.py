"""`unspeckle replay`: is this picture what its ask gives?"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from unspeckle.commands.draw import place
from unspeckle.draw import asked, settle, signed, steps
from unspeckle.errors import InputError
from unspeckle.model import Model, load
from unspeckle.picture import difference, read, record
from unspeckle.terminal import Show

SAME, DIFFERENT = 0, 1


def run(path: Path, model: Path | None, guide: Path | None, quiet: bool, device: str | None) -> int:
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
    drawer = load(model, place(device), precision=precision)
    _same(path, said.get("model"), drawer, "model")
    if "guide" in said:
        if guide is None:
            raise InputError(f"{path}: was guided by a weaker model, {_named(said['guide'])}; name it with --guide")
        weaker = load(guide, place(device), precision=precision)
        _same(path, said["guide"], weaker, "guide")
        ask = replace(ask, guide=weaker)
    order = settle(drawer, ask)
    with Show(quiet=quiet) as show:
        for done, step in enumerate(steps(drawer, order), 1):
            last = step
            show.show(done, order.steps + 1, ask.prompt, list)
    found = difference(picture, signed(drawer, order, last)[at])
    print(f"largest pixel difference: {found}")
    return DIFFERENT if found else SAME


def _named(model: Any) -> str:
    model = model if isinstance(model, dict) else {}
    return f"{model.get('name')!r} ({model.get('hash')})"


def _same(path: Path, wanted: Any, found: Model, role: str) -> None:
    """InputError unless the model found is the one that the picture's record names."""
    if not isinstance(wanted, dict) or wanted.get("hash") != found.hash:
        raise InputError(
            f"{path}: was drawn by the {role} {_named(wanted)}, not by {found.card.name!r} ({found.hash}); "
            f"name the right one with --{role}"
        )
