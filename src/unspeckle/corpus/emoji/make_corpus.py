"""Captioned scenes of emoji: a corpus whose every picture is known, down to each object's box."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from unspeckle.corpus.emoji.captions import make_captions
from unspeckle.corpus.emoji.held_out import held_out_rows, is_allowed_in_training
from unspeckle.corpus.emoji.nouns import plural_name
from unspeckle.corpus.emoji.painter import Box, ScenePainter
from unspeckle.corpus.emoji.scenes import SCENE_KIND_WEIGHTS, Scene, SceneVocabulary, sample_scene
from unspeckle.corpus.emoji.sprites import SpriteLibrary, open_sprite_library
from unspeckle.corpus.emoji.tints import BACKGROUNDS, TINTS
from unspeckle.errors import InputError

OWN_COLOR_SHARE = 0.2  # a colour with this share of a sprite is its own: never its tint
BACKGROUND_COLOR_SHARE = 0.3  # nor, with this share, the background behind it
SCENES_PER_BLOCK = 250  # scenes that a worker draws at a time
IMAGES_PER_FOLDER = 1000  # pictures in a sub-folder

ProgressCallback = Callable[[int, int], None]


def make_emoji_corpus(
    output_folder: Path,
    *,
    scene_count: int,
    seed: int,
    nouns: Sequence[str] | None = None,
    image_size: int = 64,
    sprite_folder: Path | None = None,
    progress: ProgressCallback | None = None,
    worker_count: int | None = None,
) -> dict[str, Any]:
    """Draw `scenes` captioned scenes of `size` px into the new folder `out`; returns a summary.

    Scene i depends only on (seed, i), the nouns and the size. Beside the pictures lie metadata.jsonl (file_name,
    text), truth.jsonl (objects, relation, background), held-out.jsonl (what never occurs, with prompts) and
    about.json. The folder appears whole or not at all. `workers` processes draw (None = one a core, in this process
    where the scenes are few); a script that calls this needs the usual `if __name__ == "__main__"`.
    """
    output_folder = Path(output_folder)
    if scene_count < 1:
        raise InputError(f"--scenes {scene_count}: it takes 1 or more")
    if not 16 <= image_size <= 1024:
        raise InputError(f"--size {image_size}: scenes are drawn at 16 to 1024 px")
    if output_folder.exists() and (not output_folder.is_dir() or any(output_folder.iterdir())):
        raise InputError(f"{output_folder} exists and is not empty: name a new folder")
    sprite_library = open_sprite_library(nouns, sprite_folder)
    partial_folder = output_folder.parent / f".{output_folder.name}.unfinished"
    shutil.rmtree(partial_folder, ignore_errors=True)
    partial_folder.mkdir(parents=True)
    try:
        summary = _write_corpus(partial_folder, sprite_library, scene_count, seed, image_size, progress, worker_count)
        if output_folder.exists():
            output_folder.rmdir()
        partial_folder.replace(output_folder)
    except BaseException:
        shutil.rmtree(partial_folder, ignore_errors=True)
        raise
    return summary


def build_vocabulary(sprite_library: SpriteLibrary) -> SceneVocabulary:
    """What may be combined: no noun in its own colours, garments only on faces, hybrids only of animals' faces."""
    sprites = list(sprite_library.sprites.values())
    backgrounds = {
        sprite.noun.name: [color for color in BACKGROUNDS if sprite.color_shares.get(color, 0) < BACKGROUND_COLOR_SHARE]
        or ["white"]
        for sprite in sprites
    }
    return SceneVocabulary(
        nouns=sprite_library.nouns,
        tints={
            sprite.noun.name: [tint for tint in TINTS if sprite.color_shares.get(tint, 0) < OWN_COLOR_SHARE]
            for sprite in sprites
        },
        backgrounds={"": list(BACKGROUNDS)} | backgrounds,
        plurals={sprite.noun.name: plural_name(sprite.noun) for sprite in sprites},
        synonyms={sprite.noun.name: sprite.noun.synonyms for sprite in sprites},
        wearer_nouns=[sprite.noun.name for sprite in sprites if sprite.noun.face],
        garments=list(sprite_library.garments),
        hybrid_nouns=[sprite.noun.name for sprite in sprites if sprite.noun.face and sprite.noun.face.seam_y],
    )


def generate_scene(seed: int, index: int, vocabulary: SceneVocabulary) -> tuple[Scene, list[str]]:
    """Scene `index` of a corpus and its captions."""
    rng = Random(f"unspeckle scene {seed} {index}")
    scene = sample_scene(rng, vocabulary, is_allowed_in_training)
    return scene, make_captions(rng, scene, vocabulary)


def image_file_name(index: int) -> str:
    """Where scene `index` lies in the corpus."""
    return f"{index // IMAGES_PER_FOLDER:04d}/{index:07d}.png"


def _write_corpus(
    folder: Path,
    sprite_library: SpriteLibrary,
    scene_count: int,
    seed: int,
    image_size: int,
    progress: ProgressCallback | None,
    worker_count: int | None,
) -> dict[str, Any]:
    done_count, kind_counts = 0, dict.fromkeys(SCENE_KIND_WEIGHTS, 0)
    blocks = [
        (folder, seed, start, min(start + SCENES_PER_BLOCK, scene_count))
        for start in range(0, scene_count, SCENES_PER_BLOCK)
    ]
    with (
        (folder / "metadata.jsonl").open("w", encoding="utf-8") as metadata_file,
        (folder / "truth.jsonl").open("w", encoding="utf-8") as truth_file,
    ):
        for rows in _paint_blocks(blocks, sprite_library, image_size, worker_count):
            for caption_row, truth_row in rows:
                metadata_file.write(_json_line(caption_row))
                truth_file.write(_json_line(truth_row))
                kind_counts[truth_row["kind"]] += 1
            done_count += len(rows)
            if progress is not None:
                progress(done_count, scene_count)
    vocabulary = build_vocabulary(sprite_library)
    held_out_count = 0
    with (folder / "held-out.jsonl").open("w", encoding="utf-8") as file:
        for row in held_out_rows(vocabulary):
            file.write(_json_line(row))
            held_out_count += 1
    summary = {
        "kind": "emoji scenes",
        "scenes": scene_count,
        "seed": seed,
        "size": image_size,
        "nouns": sprite_library.nouns,
    }
    summary |= {"kinds": kind_counts, "held_out": held_out_count, "sprites": sprite_library.source}
    (folder / "about.json").write_text(json.dumps(summary, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return summary


def _json_line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


BlockRows = list[tuple[dict[str, Any], dict[str, Any]]]
SceneBlock = tuple[Path, int, int, int]


def _paint_blocks(
    blocks: list[SceneBlock], sprite_library: SpriteLibrary, image_size: int, worker_count: int | None
) -> Iterator[BlockRows]:
    worker_count = worker_count or (1 if len(blocks) < 4 else min(len(blocks), os.cpu_count() or 1))
    if worker_count == 1:
        block_painter = BlockPainter(sprite_library, image_size)
        yield from map(block_painter.paint_block, blocks)
        return
    with multiprocessing.get_context("spawn").Pool(
        worker_count, _initialize_worker, (sprite_library, image_size)
    ) as pool:
        yield from pool.imap(_paint_in_worker, islice(blocks, None))


class BlockPainter:
    """Draws blocks of scenes into a folder."""

    def __init__(self, sprite_library: SpriteLibrary, image_size: int) -> None:
        self._vocabulary, self._painter = build_vocabulary(sprite_library), ScenePainter(sprite_library, image_size)

    def paint_block(self, block: SceneBlock) -> BlockRows:
        folder, seed, start, stop = block
        rows = []
        for index in range(start, stop):
            scene, captions = generate_scene(seed, index, self._vocabulary)
            pixels, boxes = self._painter.paint(scene)
            path = folder / image_file_name(index)
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(pixels).save(path, compress_level=1)
            rows.append(({"file_name": image_file_name(index), "text": captions}, _truth_row(index, scene, boxes)))
        return rows


_block_painter: BlockPainter | None = None


def _initialize_worker(sprite_library: SpriteLibrary, image_size: int) -> None:
    global _block_painter
    _block_painter = BlockPainter(sprite_library, image_size)


def _paint_in_worker(block: SceneBlock) -> BlockRows:
    assert _block_painter is not None
    return _block_painter.paint_block(block)


def _truth_row(index: int, scene: Scene, boxes: Sequence[Box]) -> dict[str, Any]:
    objects = [
        {
            "noun": obj.noun,
            "box": list(box),
            "tint": obj.tint or None,
            "size": obj.size_word or None,
            "wearing": obj.wearing or None,
            "stilts": obj.on_stilts,
            "hybrid_of": list(obj.hybrid_of) if obj.hybrid_of else None,
        }
        for obj, box in zip(scene.objects, boxes, strict=True)
    ]
    row = {"file_name": image_file_name(index), "kind": scene.kind, "objects": objects}
    return row | {"relation": scene.relation or None, "background": scene.background}
