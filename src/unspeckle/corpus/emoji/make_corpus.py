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

from unspeckle.corpus.emoji.captions import wordings
from unspeckle.corpus.emoji.held_out import allowed, held_out_rows
from unspeckle.corpus.emoji.nouns import plural_of
from unspeckle.corpus.emoji.painter import Box, Painter
from unspeckle.corpus.emoji.scenes import SHARES, Palette, Scene, choose_scene
from unspeckle.corpus.emoji.sprites import Library, open_library
from unspeckle.corpus.emoji.tints import BACKGROUNDS, TINTS
from unspeckle.errors import InputError

OWN = 0.2  # a colour with this share of a sprite is its own: never its tint
MATCHING = 0.3  # nor, with this share, the background behind it
BLOCK = 250  # scenes that a worker draws at a time
FOLDER = 1000  # pictures in a sub-folder

Progress = Callable[[int, int], None]


def make_emoji(
    out: Path,
    *,
    scenes: int,
    seed: int,
    nouns: Sequence[str] | None = None,
    size: int = 64,
    sprites: Path | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Draw `scenes` captioned scenes of `size` px into the new folder `out`; returns a summary.

    Scene i depends only on (seed, i), the nouns and the size. Beside the pictures lie metadata.jsonl (file_name,
    text), truth.jsonl (objects, relation, background), held-out.jsonl (what never occurs, with prompts) and
    about.json. The folder appears whole or not at all. `workers` processes draw (None = one a core, in this process
    where the scenes are few); a script that calls this needs the usual `if __name__ == "__main__"`.
    """
    out = Path(out)
    if scenes < 1:
        raise InputError(f"--scenes {scenes}: it takes 1 or more")
    if not 16 <= size <= 1024:
        raise InputError(f"--size {size}: scenes are drawn at 16 to 1024 px")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not empty: name a new folder")
    library = open_library(nouns, sprites)
    partial = out.parent / f".{out.name}.unfinished"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        summary = _fill(partial, library, scenes, seed, size, progress, workers)
        if out.exists():
            out.rmdir()
        partial.replace(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return summary


def palette_of(library: Library) -> Palette:
    """What may be combined: no noun in its own colours, garments only on faces, hybrids only of animals' faces."""
    sprites = list(library.sprites.values())
    grounds = {
        s.noun.name: [name for name in BACKGROUNDS if s.colours.get(name, 0) < MATCHING] or ["white"] for s in sprites
    }
    return Palette(
        nouns=library.nouns,
        tints={s.noun.name: [tint for tint in TINTS if s.colours.get(tint, 0) < OWN] for s in sprites},
        backgrounds={"": list(BACKGROUNDS)} | grounds,
        plurals={s.noun.name: plural_of(s.noun) for s in sprites},
        synonyms={s.noun.name: s.noun.synonyms for s in sprites},
        wearers=[s.noun.name for s in sprites if s.noun.face],
        garments=list(library.garments),
        hybrids=[s.noun.name for s in sprites if s.noun.face and s.noun.face.seam],
    )


def scene_of(seed: int, index: int, palette: Palette) -> tuple[Scene, list[str]]:
    """Scene `index` of a corpus and its captions."""
    rng = Random(f"unspeckle scene {seed} {index}")
    scene = choose_scene(rng, palette, allowed)
    return scene, wordings(rng, scene, palette)


def file_name(index: int) -> str:
    """Where scene `index` lies in the corpus."""
    return f"{index // FOLDER:04d}/{index:07d}.png"


def _fill(
    folder: Path, library: Library, scenes: int, seed: int, size: int, progress: Progress | None, workers: int | None
) -> dict[str, Any]:
    done, kinds = 0, dict.fromkeys(SHARES, 0)
    blocks = [(folder, seed, start, min(start + BLOCK, scenes)) for start in range(0, scenes, BLOCK)]
    with (
        (folder / "metadata.jsonl").open("w", encoding="utf-8") as metadata,
        (folder / "truth.jsonl").open("w", encoding="utf-8") as truth,
    ):
        for rows in _drawn(blocks, library, size, workers):
            for caption_row, truth_row in rows:
                metadata.write(_line(caption_row))
                truth.write(_line(truth_row))
                kinds[truth_row["kind"]] += 1
            done += len(rows)
            if progress is not None:
                progress(done, scenes)
    palette = palette_of(library)
    kept = 0
    with (folder / "held-out.jsonl").open("w", encoding="utf-8") as file:
        for row in held_out_rows(palette):
            file.write(_line(row))
            kept += 1
    summary = {"kind": "emoji scenes", "scenes": scenes, "seed": seed, "size": size, "nouns": library.nouns}
    summary |= {"kinds": kinds, "held_out": kept, "sprites": library.source}
    (folder / "about.json").write_text(json.dumps(summary, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return summary


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


Rows = list[tuple[dict[str, Any], dict[str, Any]]]
Block = tuple[Path, int, int, int]


def _drawn(blocks: list[Block], library: Library, size: int, workers: int | None) -> Iterator[Rows]:
    workers = workers or (1 if len(blocks) < 4 else min(len(blocks), os.cpu_count() or 1))
    if workers == 1:
        artist = Artist(library, size)
        yield from map(artist.draw, blocks)
        return
    with multiprocessing.get_context("spawn").Pool(workers, _hire, (library, size)) as pool:
        yield from pool.imap(_work, islice(blocks, None))


class Artist:
    """Draws blocks of scenes into a folder."""

    def __init__(self, library: Library, size: int) -> None:
        self._palette, self._painter = palette_of(library), Painter(library, size)

    def draw(self, block: Block) -> Rows:
        folder, seed, start, stop = block
        rows = []
        for index in range(start, stop):
            scene, captions = scene_of(seed, index, self._palette)
            pixels, boxes = self._painter.paint(scene)
            path = folder / file_name(index)
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(pixels).save(path, compress_level=1)
            rows.append(({"file_name": file_name(index), "text": captions}, _truth(index, scene, boxes)))
        return rows


_artist: Artist | None = None


def _hire(library: Library, size: int) -> None:
    global _artist
    _artist = Artist(library, size)


def _work(block: Block) -> Rows:
    assert _artist is not None
    return _artist.draw(block)


def _truth(index: int, scene: Scene, boxes: Sequence[Box]) -> dict[str, Any]:
    objects = [
        {
            "noun": thing.noun,
            "box": list(box),
            "tint": thing.tint or None,
            "size": thing.size or None,
            "wearing": thing.wearing or None,
            "stilts": thing.stilts,
            "hybrid_of": list(thing.hybrid_of) if thing.hybrid_of else None,
        }
        for thing, box in zip(scene.things, boxes, strict=True)
    ]
    whole = {"file_name": file_name(index), "kind": scene.kind, "objects": objects}
    return whole | {"relation": scene.relation or None, "background": scene.background}
