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

from unspeckle.corpus.emoji.make_corpus import build_vocabulary
from unspeckle.corpus.emoji.painter import ScenePainter
from unspeckle.corpus.emoji.scene_kinds import TOP_SPLICE_PROBABILITY
from unspeckle.corpus.emoji.scene_sampling import sample_scene
from unspeckle.corpus.emoji.scenes import Scene, SceneObject, SceneVocabulary
from unspeckle.corpus.emoji.sprite_sources import SPRITE_SIZE
from unspeckle.corpus.emoji.sprites import SpriteLibrary
from unspeckle.corpus.emoji.tints import BACKGROUNDS, TINTS
from unspeckle.scoring.composition.distractors import make_distractor

MAX_THINGS = 6  # things in a scene
BLOCK_SIZE = 256  # scenes painted at a time
DISTRACTORS_PER_NOUN = 0.25  # of them for each noun
SCATTERED_SHARE = 0.3  # the share of scenes whose things lie anywhere
KEEP_PROBABILITIES = {
    "single": 0.3,
    "two": 0.4,
    "count": 0.6,
}  # the share of the corpus's scenes that is used, where not all
HYBRID_SHARE, DRESSED_SHARE = 0.2, 0.2  # the share of scattered things that are hybrids, or wear something
STILTS_HEIGHT = 122  # pixels that stilts add to a sprite's height (disguises.on_stilts)


class ExampleBlock(NamedTuple):
    """Pictures (N, size, size, 3) uint8, and their things (N, MOST, 9) float32: noun, and of a hybrid the second (−1 =
    none), box in pixels (x0, y0, x1, y1) without stilts, tint (0 = its own), garment (0 = none), stilts."""

    images: NDArray[np.uint8]
    labels: NDArray[np.float32]


class ExamplePainter:
    """Paints blocks of examples, each a function of the seed and its number alone."""

    def __init__(self, library: SpriteLibrary, image_size: int, seed: int) -> None:
        self._seed, self._image_size = seed, image_size
        self._library = SpriteLibrary(dict(library.sprites), library.garments, library.source)
        self._palette, self._painter = build_vocabulary(library), ScenePainter(self._library, image_size)
        self._noun_index = {noun: index for index, noun in enumerate(library.nouns)}
        self._tint_index = {tint: index for index, tint in enumerate(("", *TINTS))}
        self._garment_index = {garment: index for index, garment in enumerate(("", *library.garments))}

    def paint_block(self, block_index: int) -> ExampleBlock:
        rng = Random(f"unspeckle example {self._seed} {block_index}")
        palette = self._with_distractors(rng, block_index)
        images = np.empty((BLOCK_SIZE, self._image_size, self._image_size, 3), dtype=np.uint8)
        labels = np.full((BLOCK_SIZE, MAX_THINGS, 9), -1, dtype=np.float32)
        for row in range(BLOCK_SIZE):
            scene = _sample_scene(rng, palette)
            images[row], boxes = self._painter.paint(scene)
            thing_labels = [self._label_thing(thing, box) for thing, box in zip(scene.objects, boxes, strict=True)]
            for slot, label in enumerate(filter(None, thing_labels)):
                labels[row, slot] = label
        return ExampleBlock(images, labels)

    def _with_distractors(self, rng: Random, block_index: int) -> SceneVocabulary:
        """The palette and fresh decoys, which stand in the library until the next block."""
        for name in [name for name in self._library.sprites if name not in self._noun_index]:
            del self._library.sprites[name]
        names = [f"decoy {block_index} {i}" for i in range(max(1, round(DISTRACTORS_PER_NOUN * len(self._noun_index))))]
        for name in names:
            self._library.sprites[name] = make_distractor(rng, self._library, name)
        palette = self._palette
        return replace(
            palette,
            nouns=[*palette.nouns, *names],
            tints=palette.tints | {name: list(TINTS) for name in names},
            backgrounds=palette.backgrounds | {name: list(BACKGROUNDS) for name in names},
        )

    def _label_thing(self, thing: SceneObject, box: tuple[int, int, int, int]) -> tuple[float, ...] | None:
        names = thing.hybrid_of or (thing.noun,)
        if names[0] not in self._noun_index:
            return None
        first, second = self._noun_index[names[0]], self._noun_index[names[-1]] if thing.hybrid_of else -1
        if thing.on_stilts:
            box = _box_without_stilts(box, self._library.sprites[thing.noun].image.size)
        return (first, second, *box, self._tint_index[thing.tint], self._garment_index[thing.wearing], thing.on_stilts)


def _box_without_stilts(box: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Of a thing on stilts the box without them; `size` is its sprite's."""
    height = SPRITE_SIZE * size[1] / max(size)
    x0, y0, x1, y1 = box
    return x0, y0, x1, y0 + round((y1 - y0) * height / (height + STILTS_HEIGHT))


def _sample_scene(rng: Random, palette: SceneVocabulary) -> Scene:
    """A scene of the corpus's kinds, held out or not, or things anywhere."""
    while True:
        scene = sample_scene(rng, palette, lambda _: True)
        if rng.random() < SCATTERED_SHARE:
            return _scatter_things(rng, palette, scene)
        if rng.random() < KEEP_PROBABILITIES.get(scene.kind, 1.0):
            return scene


def _scatter_things(rng: Random, palette: SceneVocabulary, scene: Scene) -> Scene:
    """One to MOST things where there is room, partly one noun, in no order that a detector could learn."""
    things: list[SceneObject] = []
    thing_count, is_one_noun = 1 + int(rng.random() * MAX_THINGS), rng.random() < 0.4
    for _ in range(4 * thing_count):
        side = 0.26 + 0.3 * rng.random() ** 2
        x, y = (side / 2 + (1 - side) * rng.random() for _ in range(2))
        thing = replace(things[0] if things and is_one_noun else _sample_thing(rng, palette), x=x, y=y, side=side)
        if all(max(abs(x - other.x), abs(y - other.y)) > 0.45 * (side + other.side) for other in things):
            things.append(thing)
        if len(things) == thing_count:
            break
    nouns = [noun for thing in things for noun in thing.hybrid_of or (thing.noun,)]
    backgrounds = [
        background for background in BACKGROUNDS if all(background in palette.backgrounds[noun] for noun in nouns)
    ]
    backgrounds = [background for background in backgrounds if background not in {thing.tint for thing in things}] or [
        "white"
    ]
    return Scene(
        "scattered",
        tuple(things),
        backgrounds[int(rng.random() * len(backgrounds))],
        background_variation=scene.background_variation,
    )


def _sample_thing(rng: Random, palette: SceneVocabulary) -> SceneObject:
    """Any noun, hybrid or dressed face, perhaps tinted."""
    kind_draw = rng.random()
    if kind_draw < HYBRID_SHARE and len(palette.hybrid_nouns) > 1:
        first, second = rng.sample(list(palette.hybrid_nouns), 2)
        return SceneObject(
            "", hybrid_of=(first, second), splice="top" if rng.random() < TOP_SPLICE_PROBABILITY else "side"
        )
    wearers = palette.wearer_nouns if palette.garments and kind_draw > 1 - DRESSED_SHARE else []
    noun = rng.choice(wearers or palette.nouns)
    tints = palette.tints[noun] if rng.random() < 0.5 else []
    tint = rng.choice(tints) if tints else ""
    return SceneObject(noun, tint=tint, wearing=rng.choice(palette.garments) if wearers else "")


def paint_blocks(library: SpriteLibrary, image_size: int, seed: int, workers: int = 1) -> Generator[ExampleBlock]:
    """Examples without end, painted some blocks ahead by `workers` processes (0 = by this one)."""
    if workers == 0:
        yield from map(ExamplePainter(library, image_size, seed).paint_block, count())
        return
    pool = multiprocessing.get_context("spawn").Pool(workers, _init_worker, (library, image_size, seed))
    with closing(pool), pool:
        pending = [pool.apply_async(_paint_in_worker, (block_index,)) for block_index in range(2 * workers)]
        for block_index in count(len(pending)):
            yield pending.pop(0).get()
            pending.append(pool.apply_async(_paint_in_worker, (block_index,)))


_worker_painter: ExamplePainter | None = None


def _init_worker(*painter_args: Any) -> None:
    global _worker_painter
    _worker_painter = ExamplePainter(*painter_args)


def _paint_in_worker(block_index: int) -> ExampleBlock:
    assert _worker_painter is not None
    return _worker_painter.paint_block(block_index)
