"""What the detector learns from: scenes painted in memory with all that is true of them, held-out ones included."""

from __future__ import annotations

import multiprocessing
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from itertools import count
from random import Random
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unspeckle.corpus.emoji.make_corpus import palette_of
from unspeckle.corpus.emoji.painter import Painter
from unspeckle.corpus.emoji.scenes import TOP, Palette, Scene, Thing, choose_scene
from unspeckle.corpus.emoji.sprites import MASTER, Library
from unspeckle.corpus.emoji.tints import BACKGROUNDS, TINTS
from unspeckle.scoring.composition.distractors import decoy

MOST = 6  # things in a scene
BLOCK = 256  # scenes painted at a time
DECOYS = 0.25  # of them for each noun
SCATTERED = 0.3  # the share of scenes whose things lie anywhere
KEPT = {"single": 0.3, "two": 0.4, "count": 0.6}  # the share of the corpus's scenes that is used, where not all
CROSSED, DRESSED = 0.2, 0.2  # the share of scattered things that are hybrids, or wear something
POLES = 122  # pixels that stilts add to a sprite's height (disguises.on_stilts)


class Block(NamedTuple):
    """Pictures (N, size, size, 3) uint8, and their things (N, MOST, 9) float32: noun, and of a hybrid the second (−1 =
    none), box in pixels (x0, y0, x1, y1) without stilts, tint (0 = its own), garment (0 = none), stilts."""

    pictures: NDArray[np.uint8]
    things: NDArray[np.float32]


class Easel:
    """Paints blocks of examples, each a function of the seed and its number alone."""

    def __init__(self, library: Library, size: int, seed: int) -> None:
        self._seed, self._size = seed, size
        self._library = Library(dict(library.sprites), library.garments, library.source)
        self._palette, self._painter = palette_of(library), Painter(self._library, size)
        self._nouns = {noun: place for place, noun in enumerate(library.nouns)}
        self._tints = {tint: place for place, tint in enumerate(("", *TINTS))}
        self._garments = {garment: place for place, garment in enumerate(("", *library.garments))}

    def paint(self, number: int) -> Block:
        rng = Random(f"unspeckle example {self._seed} {number}")
        palette = self._with_decoys(rng, number)
        pictures = np.empty((BLOCK, self._size, self._size, 3), dtype=np.uint8)
        things = np.full((BLOCK, MOST, 9), -1, dtype=np.float32)
        for row in range(BLOCK):
            scene = _scene(rng, palette)
            pictures[row], boxes = self._painter.paint(scene)
            told = [self._told(thing, box) for thing, box in zip(scene.things, boxes, strict=True)]
            for place, known in enumerate(filter(None, told)):
                things[row, place] = known
        return Block(pictures, things)

    def _with_decoys(self, rng: Random, number: int) -> Palette:
        """The palette and fresh decoys, which stand in the library until the next block."""
        for name in [name for name in self._library.sprites if name not in self._nouns]:
            del self._library.sprites[name]
        names = [f"decoy {number} {i}" for i in range(max(1, round(DECOYS * len(self._nouns))))]
        for name in names:
            self._library.sprites[name] = decoy(rng, self._library, name)
        palette = self._palette
        return replace(
            palette,
            nouns=[*palette.nouns, *names],
            tints=palette.tints | {name: list(TINTS) for name in names},
            backgrounds=palette.backgrounds | {name: list(BACKGROUNDS) for name in names},
        )

    def _told(self, thing: Thing, box: tuple[int, int, int, int]) -> tuple[float, ...] | None:
        names = thing.hybrid_of or (thing.noun,)
        if names[0] not in self._nouns:
            return None
        first, second = self._nouns[names[0]], self._nouns[names[-1]] if thing.hybrid_of else -1
        if thing.stilts:
            box = _body(box, self._library.sprites[thing.noun].picture.size)
        return (first, second, *box, self._tints[thing.tint], self._garments[thing.wearing], thing.stilts)


def _body(box: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Of a thing on stilts the box without them; `size` is its sprite's."""
    height = MASTER * size[1] / max(size)
    x0, y0, x1, y1 = box
    return x0, y0, x1, y0 + round((y1 - y0) * height / (height + POLES))


def _scene(rng: Random, palette: Palette) -> Scene:
    """A scene of the corpus's kinds, held out or not, or things anywhere."""
    while True:
        scene = choose_scene(rng, palette, lambda _: True)
        if rng.random() < SCATTERED:
            return _scattered(rng, palette, scene)
        if rng.random() < KEPT.get(scene.kind, 1.0):
            return scene


def _scattered(rng: Random, palette: Palette, scene: Scene) -> Scene:
    """One to MOST things where there is room, partly one noun, in no order that a detector could learn."""
    things: list[Thing] = []
    wanted, alike = 1 + int(rng.random() * MOST), rng.random() < 0.4
    for _ in range(4 * wanted):
        side = 0.26 + 0.3 * rng.random() ** 2
        x, y = (side / 2 + (1 - side) * rng.random() for _ in range(2))
        thing = replace(things[0] if things and alike else _thing(rng, palette), x=x, y=y, side=side)
        if all(max(abs(x - t.x), abs(y - t.y)) > 0.45 * (side + t.side) for t in things):
            things.append(thing)
        if len(things) == wanted:
            break
    nouns = [noun for thing in things for noun in thing.hybrid_of or (thing.noun,)]
    suited = [n for n in BACKGROUNDS if all(n in palette.backgrounds[noun] for noun in nouns)]
    suited = [n for n in suited if n not in {thing.tint for thing in things}] or ["white"]
    return Scene("scattered", tuple(things), suited[int(rng.random() * len(suited))], glow=scene.glow)


def _thing(rng: Random, palette: Palette) -> Thing:
    """Any noun, hybrid or dressed face, perhaps tinted."""
    kind = rng.random()
    if kind < CROSSED and len(palette.hybrids) > 1:
        first, second = rng.sample(list(palette.hybrids), 2)
        return Thing("", hybrid_of=(first, second), splice="top" if rng.random() < TOP else "side")
    wearers = palette.wearers if palette.garments and kind > 1 - DRESSED else []
    noun = rng.choice(wearers or palette.nouns)
    tints = palette.tints[noun] if rng.random() < 0.5 else []
    tint = rng.choice(tints) if tints else ""
    return Thing(noun, tint=tint, wearing=rng.choice(palette.garments) if wearers else "")


def blocks(library: Library, size: int, seed: int, workers: int = 1) -> Generator[Block]:
    """Examples without end, painted some blocks ahead by `workers` processes (0 = by this one)."""
    if workers == 0:
        yield from map(Easel(library, size, seed).paint, count())
        return
    pool = multiprocessing.get_context("spawn").Pool(workers, _hire, (library, size, seed))
    with closing(pool), pool:
        ahead = [pool.apply_async(_work, (number,)) for number in range(2 * workers)]
        for number in count(len(ahead)):
            yield ahead.pop(0).get()
            ahead.append(pool.apply_async(_work, (number,)))


_easel: Easel | None = None


def _hire(*materials: Any) -> None:
    global _easel
    _easel = Easel(*materials)


def _work(number: int) -> Block:
    assert _easel is not None
    return _easel.paint(number)
