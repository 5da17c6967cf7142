"""`unspeckle replay`: is this picture what its ask gives?"""

from pathlib import Path

from unspeckle.commands.draw import place
from unspeckle.draw import asked, settle, signed, steps
from unspeckle.errors import InputError
from unspeckle.model import load
from unspeckle.picture import difference, read, record
from unspeckle.terminal import Show

SAME, DIFFERENT = 0, 1


def run(path: Path, model: Path | None, quiet: bool, device: str | None) -> int:
    """Draw the picture again and print the largest difference of any pixel; returns the exit code."""
    picture = read(path)
    said = record(picture)
    if said.get("film"):
        raise InputError(f"{path}: is the film of a drawing; replay the picture itself")
    try:
        ask, at = asked(said)
    except InputError as e:
        raise InputError(f"{path}: {e}") from e
    drawer = load(model, place(device))
    wanted = said.get("model") if isinstance(said.get("model"), dict) else {}
    assert isinstance(wanted, dict)
    if wanted.get("hash") != drawer.hash:
        raise InputError(
            f"{path}: was drawn by the model {wanted.get('name')!r} ({wanted.get('hash')}), not by "
            f"{drawer.card.name!r} ({drawer.hash}); name the right one with --model"
        )
    order = settle(drawer, ask)
    with Show(quiet=quiet) as show:
        for done, step in enumerate(steps(drawer, order), 1):
            last = step
            show.show(done, order.steps + 1, ask.prompt, list)
    found = difference(picture, signed(drawer, order, last)[at])
    print(f"largest pixel difference: {found}")
    return DIFFERENT if found else SAME
