"""What stands in a scene and where: chosen at random, all lengths as fractions of the picture's side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

SHARES = {  # how often each kind of scene is chosen
    "single": 0.23,  # one object, plain or tinted, big or small
    "two": 0.38,  # two nouns, with or without a place
    "group": 0.02,  # three or four nouns
    "count": 0.12,  # two to four of a noun
    "stilts": 0.06,
    "wearing": 0.06,
    "hybrid": 0.13,
}
TINTED = {"single": 0.45, "two": 0.45, "group": 0.1, "count": 0.3, "stilts": 0.3, "wearing": 0.2, "hybrid": 0.0}
WHITE = 0.4  # the share of white backgrounds
TOP = 0.65  # the share of hybrids that are cut across, not down the middle
WORN_COLOURS = {"top hat": "black", "sunglasses": "black", "bow": "red", "crown": "yellow"}
RELATIONS = ("left of", "right of", "above", "below", "next to", "")


@dataclass(frozen=True)
class Palette:
    """What scenes are made of. The colours allowed for a noun leave out its own."""

    nouns: Sequence[str]
    tints: dict[str, list[str]]
    backgrounds: dict[str, list[str]]
    plurals: dict[str, str]
    synonyms: dict[str, tuple[str, ...]]
    wearers: Sequence[str]
    garments: Sequence[str]
    hybrids: Sequence[str]


@dataclass(frozen=True)
class Thing:
    """An object: its middle (x, y) and the side of the square that holds it."""

    noun: str
    x: float = 0.5
    y: float = 0.5
    side: float = 0.62
    size: str = ""  # "big", "small" or unsaid
    tint: str = ""
    wearing: str = ""
    stilts: bool = False
    hybrid_of: tuple[str, str] | None = None
    splice: str = ""  # "top": the first's upper part on the second's lower part; "side": left and right halves


@dataclass(frozen=True)
class Scene:
    """Things on a background; `relation` is the first thing's to the second."""

    kind: str
    things: tuple[Thing, ...]
    background: str = "white"
    relation: str = ""
    glow: tuple[float, float] = (0.0, 0.0)  # the background's brightness, and how it changes from top to bottom


def choose_scene(rng: Random, palette: Palette, allowed: Callable[[Scene], bool]) -> Scene:
    """A scene that is allowed; a combination that is not is drawn again."""
    kind = _weighted(rng, SHARES)
    for attempt in range(200):
        scene = _KINDS[kind if attempt < 100 else "single"](rng, palette)
        scene = _on_background(rng, palette, _coloured(rng, palette, scene))
        if _feasible(scene) and allowed(scene):
            return scene
    return Scene("single", (Thing(palette.nouns[int(rng.random() * len(palette.nouns))]),))


def _weighted(rng: Random, shares: dict[str, float]) -> str:
    place = rng.random() * sum(shares.values())
    for name, share in shares.items():
        place -= share
        if place < 0:
            return name
    return next(iter(shares))


def _pick(rng: Random, options: Sequence[str]) -> str:
    return options[int(rng.random() * len(options))]


def _picks(rng: Random, options: Sequence[str], count: int) -> list[str]:
    left = list(options)
    return [left.pop(int(rng.random() * len(left))) for _ in range(min(count, len(left)))]


def _between(rng: Random, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


def _anywhere(rng: Random, thing: Thing) -> Thing:
    """The thing moved to a place near the middle, wholly inside."""
    room = 0.5 - thing.side / 2 - 0.02
    reach = min(room, 0.12 if thing.size != "small" else 0.25)
    return replace(thing, x=0.5 + _between(rng, -reach, reach), y=0.5 + _between(rng, -reach, reach))


def _single(rng: Random, palette: Palette) -> Scene:
    size = _weighted(rng, {"": 0.76, "big": 0.12, "small": 0.12})
    low, high = {"": (0.56, 0.74), "big": (0.84, 0.94), "small": (0.30, 0.40)}[size]
    thing = Thing(_pick(rng, palette.nouns), side=_between(rng, low, high), size=size)
    return Scene("single", (_anywhere(rng, thing),))


def _two(rng: Random, palette: Palette) -> Scene:
    nouns = _picks(rng, palette.nouns, 2)
    if len(nouns) < 2:
        return _single(rng, palette)
    relation = _pick(rng, RELATIONS)
    sizes = ("", "")
    sides = (_between(rng, 0.40, 0.47), _between(rng, 0.40, 0.47))
    if rng.random() < 0.25:
        sizes, sides = ("big", "small"), (_between(rng, 0.54, 0.58), _between(rng, 0.27, 0.32))
        if rng.random() < 0.5:
            sizes, sides = (sizes[1], sizes[0]), (sides[1], sides[0])
    upright = relation in {"above", "below"} or (not relation and rng.random() < 0.25)
    turned = relation in {"right of", "below"}  # where no place is said, things are named in the order of reading
    first, second = (Thing(n, side=s, size=z) for n, s, z in zip(nouns, sides, sizes, strict=True))
    before, after = _row(rng, (second, first) if turned else (first, second), upright)
    return Scene("two", (after, before) if turned else (before, after), relation=relation)


def _row(rng: Random, things: tuple[Thing, Thing], upright: bool) -> tuple[Thing, Thing]:
    """Two things side by side, or one above the other, with a gap between and jitter across."""
    first, second = things
    spare = 1 - first.side - second.side
    gap = spare * _between(rng, 0.15, 0.6)
    start = (spare - gap) * _between(rng, 0.2, 0.8)
    along = (start + first.side / 2, start + first.side + gap + second.side / 2)
    jitter = 0.04 if upright else 0.07
    across = tuple(0.5 + _between(rng, -jitter, jitter) for _ in things)
    if upright:
        return replace(first, x=across[0], y=along[0]), replace(second, x=across[1], y=along[1])
    return replace(first, x=along[0], y=across[0]), replace(second, x=along[1], y=across[1])


# The commonest first: how often, the greatest side, middles in the order of reading.
_LAYOUTS: dict[int, tuple[tuple[float, float, tuple[tuple[float, float], ...]], ...]] = {
    2: (
        (0.6, 0.46, ((0.26, 0.5), (0.74, 0.5))),
        (0.2, 0.46, ((0.5, 0.26), (0.5, 0.74))),
        (0.1, 0.46, ((0.27, 0.27), (0.73, 0.73))),
        (0.1, 0.46, ((0.73, 0.27), (0.27, 0.73))),
    ),
    3: (
        (0.6, 0.44, ((0.5, 0.26), (0.26, 0.73), (0.74, 0.73))),
        (0.2, 0.44, ((0.26, 0.27), (0.74, 0.27), (0.5, 0.74))),
        (0.2, 0.31, ((0.175, 0.5), (0.5, 0.5), (0.825, 0.5))),
    ),
    4: ((1.0, 0.44, ((0.26, 0.26), (0.74, 0.26), (0.26, 0.74), (0.74, 0.74))),),
}


def _laid_out(rng: Random, nouns: Sequence[str]) -> tuple[Thing, ...]:
    layouts = _LAYOUTS[len(nouns)]
    greatest, middles = rng.choices([layout[1:] for layout in layouts], [layout[0] for layout in layouts])[0]
    side = greatest * _between(rng, 0.86, 1.0)
    free = (greatest - side) / 2 + 0.01
    return tuple(
        Thing(noun, x + _between(rng, -free, free), y + _between(rng, -free, free), side)
        for noun, (x, y) in zip(nouns, middles, strict=True)
    )


def _count(rng: Random, palette: Palette) -> Scene:
    number = int(_weighted(rng, {"2": 0.36, "3": 0.34, "4": 0.30}))
    return Scene("count", _laid_out(rng, [_pick(rng, palette.nouns)] * number))


def _group(rng: Random, palette: Palette) -> Scene:
    nouns = _picks(rng, palette.nouns, 3 if rng.random() < 0.7 else 4)
    return Scene("group", _laid_out(rng, nouns)) if len(nouns) > 2 else _single(rng, palette)


def _stilts(rng: Random, palette: Palette) -> Scene:
    side = _between(rng, 0.86, 0.96)
    x = 0.5 + _between(rng, -0.1, 0.1)
    thing = Thing(_pick(rng, palette.nouns), x, 0.98 - side / 2 - _between(rng, 0, 0.02), side, stilts=True)
    return Scene("stilts", (thing,))


def _wearing(rng: Random, palette: Palette) -> Scene:
    if not palette.wearers or not palette.garments:
        return _single(rng, palette)
    thing = Thing(_pick(rng, palette.wearers), side=_between(rng, 0.72, 0.88), wearing=_pick(rng, palette.garments))
    return Scene("wearing", (_anywhere(rng, thing),))


def _hybrid(rng: Random, palette: Palette) -> Scene:
    if len(palette.hybrids) < 2:
        return _single(rng, palette)
    first, second = _picks(rng, palette.hybrids, 2)
    thing = Thing(f"{first}-{second} hybrid", side=_between(rng, 0.68, 0.86), hybrid_of=(first, second))
    thing = replace(thing, splice="top" if rng.random() < TOP else "side")
    return Scene("hybrid", (_anywhere(rng, thing),))


_KINDS: dict[str, Callable[[Random, Palette], Scene]] = {
    "single": _single,
    "two": _two,
    "group": _group,
    "count": _count,
    "stilts": _stilts,
    "wearing": _wearing,
    "hybrid": _hybrid,
}


def _coloured(rng: Random, palette: Palette, scene: Scene) -> Scene:
    """Some things tinted; several of one noun all alike."""
    things: list[Thing] = []
    for thing in scene.things:
        if scene.kind == "count" and things:
            tint = things[0].tint
        else:
            options = palette.tints.get(thing.noun, [])
            tint = _pick(rng, options) if options and rng.random() < TINTED[scene.kind] else ""
        things.append(replace(thing, tint=tint))
    return replace(scene, things=tuple(things))


def _on_background(rng: Random, palette: Palette, scene: Scene) -> Scene:
    """A background that is the colour of none of the things."""
    taken = {thing.tint for thing in scene.things}
    suited = [set(palette.backgrounds[noun]) for thing in scene.things if not thing.tint for noun in _parts(thing)]
    options = [n for n in palette.backgrounds[""] if n not in taken and all(n in names for names in suited)]
    drawn = [WORN_COLOURS.get(thing.wearing, "brown" if thing.stilts else "") for thing in scene.things]
    options = [name for name in options if name not in drawn]
    glow = (_between(rng, -1, 1), _between(rng, -1, 1))
    if "white" in options and rng.random() < WHITE:
        return replace(scene, background="white", glow=glow)
    coloured = [name for name in options if name != "white"] or ["white"]
    return replace(scene, background=_pick(rng, coloured), glow=glow)


def _parts(thing: Thing) -> tuple[str, ...]:
    return thing.hybrid_of or (thing.noun,)


def _feasible(scene: Scene) -> bool:
    return all(thing.x - thing.side / 2 >= 0 and thing.x + thing.side / 2 <= 1 for thing in scene.things)
