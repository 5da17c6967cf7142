"""What the detector is trained on: scenes painted in memory, including those that are held out of the corpus."""

from __future__ import annotations

import multiprocessing
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from itertools import count
from random import Random
from typing import NamedTuple

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

MAX_OBJECTS = 6  # objects in a scene
BLOCK_SIZE = 256  # scenes painted at a time
DISTRACTORS_PER_NOUN = 0.25  # distractors in a block, for each noun of the library
SCATTERED_SHARE = 0.3  # fraction of the scenes whose objects may be anywhere
KEEP_PROBABILITIES = {"single": 0.3, "two": 0.4, "count": 0.6}  # of the corpus's kinds of scenes; 1 for other kinds
HYBRID_SHARE = 0.2  # fraction of scattered objects that are hybrids
DRESSED_SHARE = 0.2  # fraction of scattered objects that wear something
STILTS_HEIGHT = 122  # pixels that stilts add to a sprite's height; see corpus/emoji/accessories.py

# The columns of ExampleBlock.labels
NOUN, SECOND_NOUN, X0, Y0, X1, Y1, TINT, GARMENT, STILTS = range(9)
LABEL_COLUMNS = 9


class ExampleBlock(NamedTuple):
    """Painted scenes and the objects in them."""

    images: NDArray[np.uint8]  # (N, size, size, 3)
    # (N, MAX_OBJECTS, LABEL_COLUMNS) float32: the object's noun and a hybrid's second noun as indices (-1 for none),
    # its box in pixels without stilts (x0, y0, x1, y1), tint (0 for none), garment (0 for none), stilts (0 or 1)
    labels: NDArray[np.float32]


class ExamplePainter:
    """Paints blocks of examples; a block depends on the seed and its index alone."""

    def __init__(self, library: SpriteLibrary, image_size: int, seed: int) -> None:
        self._seed, self._image_size = seed, image_size
        self._library = SpriteLibrary(dict(library.sprites), library.garments, library.source)
        self._vocabulary, self._painter = build_vocabulary(library), ScenePainter(self._library, image_size)
        self._noun_index = {noun: index for index, noun in enumerate(library.nouns)}
        self._tint_index = {tint: index for index, tint in enumerate(("", *TINTS))}
        self._garment_index = {garment: index for index, garment in enumerate(("", *library.garments))}

    def paint_block(self, block_index: int) -> ExampleBlock:
        """The block of that index."""
        rng = Random(f"unspeckle example {self._seed} {block_index}")
        vocabulary = self._with_distractors(rng, block_index)
        images = np.empty((BLOCK_SIZE, self._image_size, self._image_size, 3), dtype=np.uint8)
        labels = np.full((BLOCK_SIZE, MAX_OBJECTS, LABEL_COLUMNS), -1, dtype=np.float32)
        for row in range(BLOCK_SIZE):
            scene = _sample_scene(rng, vocabulary)
            images[row], boxes = self._painter.paint(scene)
            row_labels = [self._label_object(one, box) for one, box in zip(scene.objects, boxes, strict=True)]
            for slot, label in enumerate(filter(None, row_labels)):
                labels[row, slot] = label
        return ExampleBlock(images, labels)

    def _with_distractors(self, rng: Random, block_index: int) -> SceneVocabulary:
        """The vocabulary with new distractors, whose sprites stay in the library until the next block."""
        for name in [name for name in self._library.sprites if name not in self._noun_index]:
            del self._library.sprites[name]
        distractor_count = max(1, round(DISTRACTORS_PER_NOUN * len(self._noun_index)))
        names = [f"distractor {block_index} {i}" for i in range(distractor_count)]
        for name in names:
            self._library.sprites[name] = make_distractor(rng, self._library, name)
        vocabulary = self._vocabulary
        return replace(
            vocabulary,
            nouns=[*vocabulary.nouns, *names],
            tints=vocabulary.tints | {name: list(TINTS) for name in names},
            backgrounds=vocabulary.backgrounds | {name: list(BACKGROUNDS) for name in names},
        )

    def _label_object(self, one: SceneObject, box: tuple[int, int, int, int]) -> tuple[float, ...] | None:
        """The object's row of labels; None for a distractor."""
        names = one.hybrid_of or (one.noun,)
        if names[0] not in self._noun_index:
            return None
        first, second = self._noun_index[names[0]], self._noun_index[names[-1]] if one.hybrid_of else -1
        if one.on_stilts:
            box = _box_without_stilts(box, self._library.sprites[one.noun].image.size)
        return (first, second, *box, self._tint_index[one.tint], self._garment_index[one.wearing], one.on_stilts)


def _box_without_stilts(box: tuple[int, int, int, int], sprite_size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box of an object on stilts, without them."""
    height = SPRITE_SIZE * sprite_size[1] / max(sprite_size)
    x0, y0, x1, y1 = box
    return x0, y0, x1, y0 + round((y1 - y0) * height / (height + STILTS_HEIGHT))


def _sample_scene(rng: Random, vocabulary: SceneVocabulary) -> Scene:
    """A scene like the corpus's, held out or not, or one of scattered objects."""
    while True:
        scene = sample_scene(rng, vocabulary, lambda _: True)
        if rng.random() < SCATTERED_SHARE:
            return _scatter_objects(rng, vocabulary, scene.background_variation)
        if rng.random() < KEEP_PROBABILITIES.get(scene.kind, 1.0):
            return scene


def _scatter_objects(rng: Random, vocabulary: SceneVocabulary, background_variation: tuple[float, float]) -> Scene:
    """One to MAX_OBJECTS objects wherever there is room, in no arrangement that a detector could learn."""
    objects: list[SceneObject] = []
    object_count, is_one_noun = 1 + int(rng.random() * MAX_OBJECTS), rng.random() < 0.4
    for _ in range(4 * object_count):
        side = 0.26 + 0.3 * rng.random() ** 2
        x, y = (side / 2 + (1 - side) * rng.random() for _ in range(2))
        template = objects[0] if objects and is_one_noun else _sample_object(rng, vocabulary)
        if all(max(abs(x - other.x), abs(y - other.y)) > 0.45 * (side + other.side) for other in objects):
            objects.append(replace(template, x=x, y=y, side=side))
        if len(objects) == object_count:
            break
    background = _sample_background(rng, vocabulary, objects)
    return Scene("scattered", tuple(objects), background, background_variation=background_variation)


def _sample_background(rng: Random, vocabulary: SceneVocabulary, objects: list[SceneObject]) -> str:
    """A background that all objects can be seen on."""
    nouns = [noun for one in objects for noun in one.hybrid_of or (one.noun,)]
    tints = {one.tint for one in objects}
    backgrounds = [
        background
        for background in BACKGROUNDS
        if background not in tints and all(background in vocabulary.backgrounds[noun] for noun in nouns)
    ] or ["white"]
    return backgrounds[int(rng.random() * len(backgrounds))]


def _sample_object(rng: Random, vocabulary: SceneVocabulary) -> SceneObject:
    """Any noun, hybrid or dressed face, perhaps tinted."""
    kind = rng.random()
    if kind < HYBRID_SHARE and len(vocabulary.hybrid_nouns) > 1:
        first, second = rng.sample(list(vocabulary.hybrid_nouns), 2)
        splice = "top" if rng.random() < TOP_SPLICE_PROBABILITY else "side"
        return SceneObject("", hybrid_of=(first, second), splice=splice)
    wearers = vocabulary.wearer_nouns if vocabulary.garments and kind > 1 - DRESSED_SHARE else []
    noun = rng.choice(wearers or vocabulary.nouns)
    tints = vocabulary.tints[noun] if rng.random() < 0.5 else []
    tint = rng.choice(tints) if tints else ""
    return SceneObject(noun, tint=tint, wearing=rng.choice(vocabulary.garments) if wearers else "")


def paint_blocks(library: SpriteLibrary, image_size: int, seed: int, workers: int = 1) -> Generator[ExampleBlock]:
    """Blocks without end, painted ahead by `workers` processes, or by this one if that is 0."""
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


def _init_worker(library: SpriteLibrary, image_size: int, seed: int) -> None:
    global _worker_painter
    _worker_painter = ExamplePainter(library, image_size, seed)


def _paint_in_worker(block_index: int) -> ExampleBlock:
    assert _worker_painter is not None
    return _worker_painter.paint_block(block_index)
