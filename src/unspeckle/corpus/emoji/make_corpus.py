"""Make a corpus of captioned emoji scenes in which every object and its box are known."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from PIL import Image

from unspeckle.corpus.emoji.held_out import held_out_rows, is_allowed_in_training
from unspeckle.corpus.emoji.nouns import plural_name, related_words
from unspeckle.corpus.emoji.painter import Box, ScenePainter
from unspeckle.corpus.emoji.scene_captions import make_captions
from unspeckle.corpus.emoji.scene_sampling import SCENE_KIND_WEIGHTS, sample_scene
from unspeckle.corpus.emoji.scenes import Scene, SceneVocabulary
from unspeckle.corpus.emoji.sprites import SpriteLibrary, open_sprite_library
from unspeckle.corpus.emoji.tints import BACKGROUNDS, TINTS
from unspeckle.corpus.keywords import write_keywords
from unspeckle.corpus.parallel import ProgressCallback
from unspeckle.errors import InputError

OWN_COLOR_SHARE = 0.2
"""A color that covers this share of a sprite is its own, and is never used as its tint."""
BACKGROUND_COLOR_SHARE = 0.3
"""A color that covers this share of a sprite is never used as the background behind it."""
SCENES_PER_BLOCK = 250
"""Scenes that a worker paints at a time."""
IMAGES_PER_FOLDER = 1000
"""Images in each subfolder of a corpus."""
MIN_BLOCKS_FOR_WORKERS = 4
"""Fewer blocks are painted in this process."""


def make_emoji_corpus(
    output_folder: Path,
    *,
    scenes: int,
    seed: int,
    nouns: Sequence[str] | None = None,
    size: int = 64,
    sprites: Path | None = None,
    progress: ProgressCallback | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Paint captioned scenes into the new folder `output_folder`, and return the summary that about.json holds.

    scenes: how many. Scene i depends only on the seed, i, the nouns and the size.
    nouns, sprites: see `open_sprite_library`; `sprites` is its folder.
    size: pixels of an image's side, 16 to 1024.
    progress: called with (done, total).
    workers: processes that paint; None for one a core, or for this process alone if the scenes are few. A script that
        calls this function needs the usual `if __name__ == "__main__"`.

    The folder also gets metadata.jsonl (file_name, text), truth.jsonl (objects, relation, background), held-out.jsonl
    (combinations that never occur, with prompts), keywords.json (words of nearly the same meaning) and about.json. It
    appears complete or not at all. Raises InputError if an option is out of range or the folder is not empty.
    """
    output_folder = Path(output_folder)
    if scenes < 1:
        raise InputError(f" {scenes}: must be at least 1", "scenes")
    if not 16 <= size <= 1024:
        raise InputError(f" {size}: must be 16 to 1024 pixels", "size")
    if output_folder.exists() and (not output_folder.is_dir() or any(output_folder.iterdir())):
        raise InputError(f"{output_folder}: exists and is not empty; give a new folder")
    sprite_library = open_sprite_library(nouns, sprites)
    partial_folder = output_folder.parent / f".{output_folder.name}.unfinished"
    shutil.rmtree(partial_folder, ignore_errors=True)
    partial_folder.mkdir(parents=True)
    try:
        block_rows = _paint_blocks(_divide_into_blocks(partial_folder, scenes, seed), sprite_library, size, workers)
        kind_counts = _write_scene_rows(partial_folder, block_rows, scenes, progress)
        held_out_count = _write_held_out_rows(partial_folder, build_vocabulary(sprite_library))
        write_keywords(partial_folder, related_words(sprite_library.nouns))
        summary = {
            "kind": "emoji scenes",
            "scenes": scenes,
            "seed": seed,
            "size": size,
            "nouns": sprite_library.nouns,
            "kinds": kind_counts,
            "held_out": held_out_count,
            "sprites": sprite_library.source,
        }
        summary_text = json.dumps(summary, ensure_ascii=False, indent=1) + "\n"
        (partial_folder / "about.json").write_text(summary_text, encoding="utf-8")
        if output_folder.exists():
            output_folder.rmdir()
        partial_folder.replace(output_folder)
    except BaseException:
        shutil.rmtree(partial_folder, ignore_errors=True)
        raise
    return summary


def build_vocabulary(sprite_library: SpriteLibrary) -> SceneVocabulary:
    """What may be combined: no noun is tinted in its own color or on a background of that color, only faces wear
    garments, and only faces with a seam become hybrids."""
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
    """Scene number `index` of a corpus, and its captions."""
    rng = Random(f"unspeckle scene {seed} {index}")
    scene = sample_scene(rng, vocabulary, is_allowed_in_training)
    return scene, make_captions(rng, scene, vocabulary)


def image_file_name(index: int) -> str:
    """The path of a scene's image in the corpus."""
    return f"{index // IMAGES_PER_FOLDER:04d}/{index:07d}.png"


class _SceneBlock(NamedTuple):
    """Consecutive scenes that are painted together."""

    folder: Path
    seed: int
    start: int
    stop: int


BlockRows = list[tuple[dict[str, Any], dict[str, Any]]]
"""Of each scene of a block, its row of metadata.jsonl and its row of truth.jsonl."""


def _divide_into_blocks(folder: Path, scene_count: int, seed: int) -> list[_SceneBlock]:
    starts = range(0, scene_count, SCENES_PER_BLOCK)
    return [_SceneBlock(folder, seed, start, min(start + SCENES_PER_BLOCK, scene_count)) for start in starts]


def _paint_blocks(
    blocks: list[_SceneBlock], sprite_library: SpriteLibrary, image_size: int, worker_count: int | None
) -> Iterator[BlockRows]:
    if worker_count is None:
        worker_count = 1 if len(blocks) < MIN_BLOCKS_FOR_WORKERS else min(len(blocks), os.cpu_count() or 1)
    if worker_count == 1:
        block_painter = _BlockPainter(sprite_library, image_size)
        yield from map(block_painter.paint_block, blocks)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(worker_count, _initialize_worker, (sprite_library, image_size)) as pool:
        yield from pool.imap(_paint_in_worker, blocks)


class _BlockPainter:
    """Paints blocks of scenes into a folder."""

    def __init__(self, sprite_library: SpriteLibrary, image_size: int) -> None:
        self._vocabulary, self._painter = build_vocabulary(sprite_library), ScenePainter(sprite_library, image_size)

    def paint_block(self, block: _SceneBlock) -> BlockRows:
        """Save the images of a block, and return their rows."""
        rows = []
        for index in range(block.start, block.stop):
            scene, captions = generate_scene(block.seed, index, self._vocabulary)
            pixels, boxes = self._painter.paint(scene)
            path = block.folder / image_file_name(index)
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(pixels).save(path, compress_level=1)
            rows.append(({"file_name": image_file_name(index), "text": captions}, _truth_row(index, scene, boxes)))
        return rows


_block_painter: _BlockPainter | None = None


def _initialize_worker(sprite_library: SpriteLibrary, image_size: int) -> None:
    global _block_painter
    _block_painter = _BlockPainter(sprite_library, image_size)


def _paint_in_worker(block: _SceneBlock) -> BlockRows:
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
    return {
        "file_name": image_file_name(index),
        "kind": scene.kind,
        "objects": objects,
        "relation": scene.relation or None,
        "background": scene.background,
    }


def _write_scene_rows(
    folder: Path, block_rows: Iterator[BlockRows], scene_count: int, progress: ProgressCallback | None
) -> dict[str, int]:
    """Write metadata.jsonl and truth.jsonl, and return the number of scenes of each kind."""
    done_count, kind_counts = 0, dict.fromkeys(SCENE_KIND_WEIGHTS, 0)
    with (
        (folder / "metadata.jsonl").open("w", encoding="utf-8") as metadata_file,
        (folder / "truth.jsonl").open("w", encoding="utf-8") as truth_file,
    ):
        for rows in block_rows:
            for caption_row, truth_row in rows:
                metadata_file.write(_json_line(caption_row))
                truth_file.write(_json_line(truth_row))
                kind_counts[truth_row["kind"]] += 1
            done_count += len(rows)
            if progress is not None:
                progress(done_count, scene_count)
    return kind_counts


def _write_held_out_rows(folder: Path, vocabulary: SceneVocabulary) -> int:
    """Write held-out.jsonl, and return the number of its rows."""
    lines = [_json_line(row) for row in held_out_rows(vocabulary)]
    (folder / "held-out.jsonl").write_text("".join(lines), encoding="utf-8")
    return len(lines)


def _json_line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
