"""Emoji scenes as a corpus: same arguments, same bytes; the truth is true; the folder is whole or absent."""

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from unspeckle.corpus.emoji import sprites
from unspeckle.corpus.emoji.make_corpus import build_vocabulary, generate_scene, make_emoji_corpus
from unspeckle.corpus.emoji.nouns import CURATED_NOUNS, GARMENT_GLYPHS, all_nouns
from unspeckle.corpus.emoji.painter import ScenePainter
from unspeckle.corpus.emoji.sprites import open_sprite_library
from unspeckle.errors import InputError

NOUNS = ["frog", "airplane", "rabbit", "cat", "pizza", "sun"]
SHAPES = {  # colour and shape of each sprite; the names are curated, so faces have their anchors
    "frog": ((120, 190, 40), "ellipse"),
    "rabbit": ((170, 175, 180), "tall"),
    "panda": ((240, 240, 240), "ellipse"),
    "pig": ((250, 160, 190), "ellipse"),
    "cat": ((250, 190, 20), "ellipse"),
    "car": ((220, 40, 30), "wide"),
    "tree": ((30, 130, 40), "tall"),
    "book": ((40, 90, 220), "square"),
    "crown": ((250, 200, 40), "wide"),
    "top hat": ((30, 30, 34), "square"),
}
BOXES = {
    "ellipse": (10, 20, 150, 140),
    "tall": (50, 5, 110, 155),
    "wide": (5, 40, 155, 110),
    "square": (20, 20, 140, 140),
}


@pytest.fixture(scope="module")
def drawn_sprites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_sprites(tmp_path_factory.mktemp("sprites"))


def draw_sprites(folder: Path) -> Path:
    for name, (colour, shape) in SHAPES.items():
        picture = Image.new("RGBA", (160, 160))
        pen = ImageDraw.Draw(picture)
        (pen.ellipse if shape in {"ellipse", "tall"} else pen.rectangle)(BOXES[shape], fill=(*colour, 255))
        pen.ellipse((60, 60, 70, 70), fill=(20, 20, 20, 255))
        picture.save(folder / f"{name}.png")
    return folder


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_same_arguments_give_the_same_bytes_however_many_work(drawn_sprites: Path, tmp_path: Path) -> None:
    for name, workers in (("alone", 1), ("together", 2)):
        make_emoji_corpus(tmp_path / name, scene_count=300, seed=5, sprite_folder=drawn_sprites, worker_count=workers)
    assert contents(tmp_path / "alone") == contents(tmp_path / "together")
    assert len(contents(tmp_path / "alone")) == 300 + 4
    assert not multiprocessing.active_children()


def test_a_scene_depends_on_the_seed_and_its_number_alone(drawn_sprites: Path, tmp_path: Path) -> None:
    make_emoji_corpus(tmp_path / "few", scene_count=30, seed=5, sprite_folder=drawn_sprites)
    make_emoji_corpus(tmp_path / "many", scene_count=90, seed=5, sprite_folder=drawn_sprites)
    make_emoji_corpus(tmp_path / "other", scene_count=30, seed=6, sprite_folder=drawn_sprites)
    few, many, other = (contents(tmp_path / name) for name in ("few", "many", "other"))
    pictures = [name for name in few if name.endswith(".png")]
    assert len(pictures) == 30 and all(few[name] == many[name] for name in pictures)
    for listing in ("metadata.jsonl", "truth.jsonl"):
        assert many[listing].startswith(few[listing])
    assert few["held-out.jsonl"] == many["held-out.jsonl"] == other["held-out.jsonl"]
    assert sum(few[name] == other[name] for name in pictures) < 3


def test_boxes_hold_exactly_what_is_drawn(drawn_sprites: Path, tmp_path: Path) -> None:
    make_emoji_corpus(tmp_path / "out", scene_count=250, seed=1, sprite_folder=drawn_sprites)
    for truth in rows(tmp_path / "out/truth.jsonl"):
        pixels = np.asarray(Image.open(tmp_path / "out" / truth["file_name"])).astype(int)
        outside = np.ones(pixels.shape[:2], dtype=bool)
        for thing in truth["objects"]:
            x0, y0, x1, y1 = thing["box"]
            assert 0 <= x0 < x1 <= 64 and 0 <= y0 < y1 <= 64
            outside[y0:y1, x0:x1] = False
        ground = np.array(
            [
                np.median(row[clear], axis=0) if clear.any() else [-1] * 3
                for row, clear in zip(pixels, outside, strict=True)
            ]
        )
        unlike = np.abs(pixels - ground[:, None]).max(2) > 12
        assert not (unlike & outside).any(), truth
        for thing in truth["objects"]:
            x0, y0, x1, y1 = thing["box"]
            within = unlike[y0:y1, x0:x1]
            if not (ground[y0:y1] < 0).any():
                assert within[:3].any() and within[-3:].any() and within[:, :3].any() and within[:, -3:].any(), truth


def test_relations_are_true_of_the_boxes(drawn_sprites: Path, tmp_path: Path) -> None:
    make_emoji_corpus(tmp_path / "out", scene_count=600, seed=2, sprite_folder=drawn_sprites)
    seen = set()
    for truth in rows(tmp_path / "out/truth.jsonl"):
        if truth["relation"] is None:
            continue
        seen.add(truth["relation"])
        a, b = (thing["box"] for thing in truth["objects"])
        apart = {"left of": a[2] <= b[0], "right of": b[2] <= a[0], "above": a[3] <= b[1], "below": b[3] <= a[1]}
        assert apart.get(truth["relation"], apart["left of"] or apart["right of"]), truth
        big = {thing["size"]: thing["box"] for thing in truth["objects"]}
        if "big" in big:
            longest = {size: max(x1 - x0, y1 - y0) for size, (x0, y0, x1, y1) in big.items()}
            assert longest["big"] >= 1.5 * longest["small"]
    assert seen == {"left of", "right of", "above", "below", "next to"}


def test_nothing_is_left_of_a_corpus_that_was_stopped(drawn_sprites: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_emoji_corpus(tmp_path / "out", scene_count=10, seed=0, sprite_folder=drawn_sprites, progress=stop)
    assert list(tmp_path.iterdir()) == []
    killed = tmp_path / ".out.unfinished"
    (killed / "0000").mkdir(parents=True)
    (killed / "0000/0000099.png").write_bytes(b"left by a killed run")
    said: list[tuple[int, int]] = []
    make_emoji_corpus(
        tmp_path / "out", scene_count=10, seed=0, sprite_folder=drawn_sprites, progress=lambda *at: said.append(at)
    )
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and said == [(10, 10)]
    assert not (tmp_path / "out/0000/0000099.png").exists()


def test_bad_input_is_named(drawn_sprites: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="'froog'; did you mean frog"):
        make_emoji_corpus(out, scene_count=1, seed=0, nouns=["froog"], sprite_folder=drawn_sprites)
    with pytest.raises(InputError, match="--scenes 0"):
        make_emoji_corpus(out, scene_count=0, seed=0, sprite_folder=drawn_sprites)
    with pytest.raises(InputError, match="--size 3"):
        make_emoji_corpus(out, scene_count=1, seed=0, image_size=3, sprite_folder=drawn_sprites)
    with pytest.raises(InputError, match="no such folder"):
        make_emoji_corpus(out, scene_count=1, seed=0, sprite_folder=tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no pictures there"):
        make_emoji_corpus(out, scene_count=1, seed=0, sprite_folder=tmp_path / "empty")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/frog.png").write_bytes((drawn_sprites / "frog.png").read_bytes()[:90])
    with pytest.raises(InputError, match=r"frog\.png cannot be read"):
        make_emoji_corpus(out, scene_count=1, seed=0, sprite_folder=tmp_path / "broken")
    (tmp_path / "broken/sprites.jsonl").write_text('{"file_name": "frog.png"}\n')
    with pytest.raises(InputError, match="line 1"):
        make_emoji_corpus(out, scene_count=1, seed=0, sprite_folder=tmp_path / "broken")
    with pytest.raises(InputError, match="not empty"):
        make_emoji_corpus(drawn_sprites, scene_count=1, seed=0, sprite_folder=drawn_sprites)
    monkeypatch.setattr(sprites, "FONTS", ())
    monkeypatch.setattr(sprites.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"fonts-noto-color-emoji.*--sprites"):
        make_emoji_corpus(out, scene_count=1, seed=0)
    assert not out.exists()


def test_synonyms_choose_and_plain_folders_bring_words_of_their_own(drawn_sprites: Path, tmp_path: Path) -> None:
    assert open_sprite_library(["bunny", " Frog "], drawn_sprites).nouns == ["rabbit", "frog"]
    (tmp_path / "my_gadget.png").write_bytes((drawn_sprites / "book.png").read_bytes())
    (tmp_path / "cafe.png").write_bytes((drawn_sprites / "car.png").read_bytes())
    assert sorted(open_sprite_library(None, tmp_path).nouns) == ["cafe", "my gadget"]


def test_the_systems_font_draws_every_curated_noun_and_its_scenes_are_the_same_from_files(tmp_path: Path) -> None:
    try:
        library = open_sprite_library(None, None)
    except InputError as problem:
        pytest.skip(str(problem))
    assert library.nouns == [noun.name for noun in CURATED_NOUNS] and len(library.garments) == 4
    everything = open_sprite_library(("all",), None)
    assert len(everything.nouns) > 550 and len({noun.name for noun in all_nouns()}) == len(all_nouns())
    for noun in CURATED_NOUNS:
        library.sprites[noun.name].image.save(tmp_path / f"{ord(noun.glyph):x}.png")
    for name, garment in library.garments.items():
        garment.save(tmp_path / f"{ord(GARMENT_GLYPHS[name]):x}.png")
    copied, chosen = open_sprite_library(NOUNS, tmp_path), open_sprite_library(NOUNS, None)
    assert build_vocabulary(copied) == build_vocabulary(chosen)
    for index in range(60):
        scene, _ = generate_scene(0, index, build_vocabulary(copied))
        (one, boxes), (other, same) = (ScenePainter(shelf, 64).paint(scene) for shelf in (copied, chosen))
        assert boxes == same and np.array_equal(one, other)
