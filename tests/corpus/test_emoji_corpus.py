"""Corpora of emoji scenes: equal arguments give equal bytes, truth.jsonl is true, a folder is complete or absent."""

import json
import multiprocessing
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sprite_files import write_sprites

from unspeckle.corpus.emoji import sprite_sources
from unspeckle.corpus.emoji.make_corpus import build_vocabulary, generate_scene, make_emoji_corpus
from unspeckle.corpus.emoji.nouns import CURATED_NOUNS, GARMENT_GLYPHS, all_nouns
from unspeckle.corpus.emoji.painter import ScenePainter
from unspeckle.corpus.emoji.sprites import open_sprite_library
from unspeckle.errors import InputError

NOUNS = ["frog", "airplane", "rabbit", "cat", "pizza", "sun"]


@pytest.fixture(scope="module")
def sprite_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sprites(tmp_path_factory.mktemp("sprites"))


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_same_arguments_give_the_same_bytes_however_many_work(sprite_folder: Path, tmp_path: Path) -> None:
    for name, workers in (("alone", 1), ("together", 2)):
        make_emoji_corpus(tmp_path / name, scenes=300, seed=5, sprites=sprite_folder, workers=workers)
    assert read_files(tmp_path / "alone") == read_files(tmp_path / "together")
    assert len(read_files(tmp_path / "alone")) == 300 + 5
    assert not multiprocessing.active_children()


def test_a_scene_depends_on_the_seed_and_its_number_alone(sprite_folder: Path, tmp_path: Path) -> None:
    make_emoji_corpus(tmp_path / "few", scenes=30, seed=5, sprites=sprite_folder)
    make_emoji_corpus(tmp_path / "many", scenes=90, seed=5, sprites=sprite_folder)
    make_emoji_corpus(tmp_path / "other", scenes=30, seed=6, sprites=sprite_folder)
    few, many, other = (read_files(tmp_path / name) for name in ("few", "many", "other"))
    images = [name for name in few if name.endswith(".png")]
    assert len(images) == 30 and all(few[name] == many[name] for name in images)
    for name in ("metadata.jsonl", "truth.jsonl"):
        assert many[name].startswith(few[name])
    assert few["held-out.jsonl"] == many["held-out.jsonl"] == other["held-out.jsonl"]
    assert sum(few[name] == other[name] for name in images) < 3


def test_boxes_contain_exactly_what_is_painted(sprite_folder: Path, tmp_path: Path) -> None:
    make_emoji_corpus(tmp_path / "out", scenes=250, seed=1, sprites=sprite_folder)
    for truth in read_rows(tmp_path / "out/truth.jsonl"):
        pixels = np.asarray(Image.open(tmp_path / "out" / truth["file_name"])).astype(int)
        outside = np.ones(pixels.shape[:2], dtype=bool)
        for obj in truth["objects"]:
            x0, y0, x1, y1 = obj["box"]
            assert 0 <= x0 < x1 <= 64 and 0 <= y0 < y1 <= 64
            outside[y0:y1, x0:x1] = False
        background = np.array(
            [
                np.median(row[clear], axis=0) if clear.any() else [-1] * 3
                for row, clear in zip(pixels, outside, strict=True)
            ]
        )
        is_object = np.abs(pixels - background[:, None]).max(2) > 12
        assert not (is_object & outside).any(), truth
        for obj in truth["objects"]:
            x0, y0, x1, y1 = obj["box"]
            inside = is_object[y0:y1, x0:x1]
            if not (background[y0:y1] < 0).any():
                edges = (inside[:3], inside[-3:], inside[:, :3], inside[:, -3:])
                assert all(edge.any() for edge in edges), truth


def enclosing_box(boxes: Iterable[list[int]]) -> list[int]:
    """The box around all of them."""
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    return [min(x0), min(y0), max(x1), max(y1)]


def test_relations_are_true_of_the_boxes(sprite_folder: Path, tmp_path: Path) -> None:
    make_emoji_corpus(tmp_path / "out", scenes=600, seed=2, sprites=sprite_folder)
    relations = set()
    for truth in read_rows(tmp_path / "out/truth.jsonl"):
        if truth["relation"] is None:
            continue
        relations.add(truth["relation"])
        if truth["kind"] == "trio":  # the third object above or below the first two
            (*others, a) = (obj["box"] for obj in truth["objects"])
            assert others[0][2] <= others[1][0], truth
            b = (0, min(box[1] for box in others), 0, max(box[3] for box in others))
        else:
            nouns = list(dict.fromkeys(obj["noun"] for obj in truth["objects"]))
            a, b = (enclosing_box(obj["box"] for obj in truth["objects"] if obj["noun"] == noun) for noun in nouns)
        is_true = {"left of": a[2] <= b[0], "right of": b[2] <= a[0], "above": a[3] <= b[1], "below": b[3] <= a[1]}
        assert is_true.get(truth["relation"], is_true["left of"] or is_true["right of"]), truth
        boxes = {obj["size"]: obj["box"] for obj in truth["objects"]}
        if "big" in boxes:
            sides = {size: max(x1 - x0, y1 - y0) for size, (x0, y0, x1, y1) in boxes.items()}
            assert sides["big"] >= 1.5 * sides["small"]
    assert relations == {"left of", "right of", "above", "below", "next to"}


def test_nothing_is_left_of_a_corpus_that_was_interrupted(sprite_folder: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_emoji_corpus(tmp_path / "out", scenes=10, seed=0, sprites=sprite_folder, progress=stop)
    assert list(tmp_path.iterdir()) == []
    unfinished = tmp_path / ".out.unfinished"
    (unfinished / "0000").mkdir(parents=True)
    (unfinished / "0000/0000099.png").write_bytes(b"left by a killed run")
    progress: list[tuple[int, int]] = []
    make_emoji_corpus(
        tmp_path / "out", scenes=10, seed=0, sprites=sprite_folder, progress=lambda *counts: progress.append(counts)
    )
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and progress == [(10, 10)]
    assert not (tmp_path / "out/0000/0000099.png").exists()


def test_bad_input_is_named(sprite_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="'froog'; did you mean frog"):
        make_emoji_corpus(out, scenes=1, seed=0, nouns=["froog"], sprites=sprite_folder)
    with pytest.raises(InputError, match="scenes 0"):
        make_emoji_corpus(out, scenes=0, seed=0, sprites=sprite_folder)
    with pytest.raises(InputError, match="size 3"):
        make_emoji_corpus(out, scenes=1, seed=0, size=3, sprites=sprite_folder)
    with pytest.raises(InputError, match="no such folder"):
        make_emoji_corpus(out, scenes=1, seed=0, sprites=tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="contains no images"):
        make_emoji_corpus(out, scenes=1, seed=0, sprites=tmp_path / "empty")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/frog.png").write_bytes((sprite_folder / "frog.png").read_bytes()[:90])
    with pytest.raises(InputError, match=r"frog\.png cannot be read"):
        make_emoji_corpus(out, scenes=1, seed=0, sprites=tmp_path / "broken")
    (tmp_path / "broken/sprites.jsonl").write_text('{"file_name": "frog.png"}\n')
    with pytest.raises(InputError, match="line 1"):
        make_emoji_corpus(out, scenes=1, seed=0, sprites=tmp_path / "broken")
    with pytest.raises(InputError, match="not empty"):
        make_emoji_corpus(sprite_folder, scenes=1, seed=0, sprites=sprite_folder)
    monkeypatch.setattr(sprite_sources, "FONT_PATHS", ())
    monkeypatch.setattr(sprite_sources.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"fonts-noto-color-emoji.*--sprites"):
        make_emoji_corpus(out, scenes=1, seed=0)
    assert not out.exists()


def test_synonyms_select_nouns_and_plain_folders_have_nouns_of_their_own(sprite_folder: Path, tmp_path: Path) -> None:
    assert open_sprite_library(["bunny", " Frog "], sprite_folder).nouns == ["rabbit", "frog"]
    (tmp_path / "my_gadget.png").write_bytes((sprite_folder / "book.png").read_bytes())
    (tmp_path / "cafe.png").write_bytes((sprite_folder / "car.png").read_bytes())
    assert sorted(open_sprite_library(None, tmp_path).nouns) == ["cafe", "my gadget"]


def test_the_system_font_has_every_curated_noun_and_files_of_its_glyphs_give_the_same_scenes(tmp_path: Path) -> None:
    try:
        library = open_sprite_library(None, None)
    except InputError as error:
        pytest.skip(str(error))
    assert library.nouns == [noun.name for noun in CURATED_NOUNS] and len(library.garments) == 4
    full_library = open_sprite_library(("all",), None)
    assert len(full_library.nouns) > 550 and len({noun.name for noun in all_nouns()}) == len(all_nouns())
    for noun in CURATED_NOUNS:
        library.sprites[noun.name].image.save(tmp_path / f"{ord(noun.glyph):x}.png")
    for name, garment in library.garments.items():
        garment.save(tmp_path / f"{ord(GARMENT_GLYPHS[name]):x}.png")
    from_files, from_font = open_sprite_library(NOUNS, tmp_path), open_sprite_library(NOUNS, None)
    assert build_vocabulary(from_files) == build_vocabulary(from_font)
    for index in range(60):
        scene, _ = generate_scene(0, index, build_vocabulary(from_files))
        (image, boxes), (font_image, font_boxes) = (
            ScenePainter(library, 64).paint(scene) for library in (from_files, from_font)
        )
        assert boxes == font_boxes and np.array_equal(image, font_image)
