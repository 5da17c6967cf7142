"""Which images and which captions are read from a folder."""

import json
import os
import re
import unicodedata
from pathlib import Path

import pytest
from corpus_images import write_blanks
from PIL import Image

from tiny_models import random_model
from unspeckle.cli import main
from unspeckle.corpus.captions import read_folder
from unspeckle.corpus.names_to_captions import (
    MAX_CAPTION_LENGTH,
    class_from_folders,
    clean_caption,
    fill_template,
    words_from_file_name,
)
from unspeckle.errors import InputError
from unspeckle.generation.request import Request
from unspeckle.generation.resolve import resolve
from unspeckle.prompts import escape_prompt


def read_captions(folder: Path, **options: str) -> dict[str, tuple[str, ...]]:
    """Captions by image path."""
    return {image.path: image.captions for image in read_folder(folder, **options).images}


def test_an_endless_caption_is_cut(tmp_path: Path) -> None:
    """So that it is a valid prompt too: a prompt has at most 100,000 characters, counting an escape for each."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("(frog) " * 300_000)
    (caption,) = read_folder(tmp_path).all_captions()
    assert caption.startswith("(frog) (frog)") and len(caption) <= MAX_CAPTION_LENGTH
    resolve(random_model(), Request(escape_prompt(caption)))


def test_each_line_of_a_txt_file_is_a_caption(tmp_path: Path) -> None:
    write_blanks(tmp_path, "a.jpg", "deep/b.PNG", "c.webp")
    (tmp_path / "a.txt").write_text("\ufeffa frog\n\n  a  green\tfrog \r\na frog\n", encoding="utf-8")
    (tmp_path / "deep/b.txt").write_bytes("ein Frösch".encode("cp1252"))
    (tmp_path / "c.txt").write_text(" \n")
    (tmp_path / "readme.txt").write_text("not a caption")
    listing = read_folder(tmp_path)
    assert read_captions(tmp_path) == {"a.jpg": ("a frog", "a green frog"), "deep/b.PNG": ("ein Frösch",)}
    assert listing.uncaptioned == ("c.webp",)
    assert any("Windows-1252" in line and "deep/b.txt" in line for line in listing.describe())
    assert list(listing.all_captions()) == ["a frog", "a green frog", "ein Frösch"]


def test_metadata_jsonl_in_every_form(tmp_path: Path) -> None:
    write_blanks(tmp_path, "a.jpg", "b.jpg", "sub/c.jpg", "sub/d.jpg", "e.jpg")
    rows = [
        {"file_name": "a.jpg", "text": "one"},
        {"file_name": "a.jpg", "text": "two"},
        {"file_name": "./b.jpg", "text": ["three", "four"], "captions": ["five"]},
        {"file_name": "sub\\d.jpg", "texts": ["six"]},
        {"file_name": "gone.jpg", "text": "seven"},
        {"file_name": "e.jpg", "text": None},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n\n".join(map(json.dumps, rows)), encoding="utf-16")
    (tmp_path / "sub/metadata.csv").write_text('file_name,text\nc.jpg,"a frog, and ""quoted"""\nc.jpg,plain\n')
    listing = read_folder(tmp_path)
    assert read_captions(tmp_path) == {
        "a.jpg": ("one", "two"),
        "b.jpg": ("three", "four", "five"),
        "sub/c.jpg": ('a frog, and "quoted"', "plain"),
        "sub/d.jpg": ("six",),
    }
    assert listing.missing_files == ("gone.jpg",) and listing.uncaptioned == ("e.jpg",)
    description = "\n".join(listing.describe())
    assert "gone.jpg" in description and "e.jpg" in description and "8 captions" in description


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("metadata.jsonl", '{"file_name": "a.jpg", "text": "x"}\n{"file_name": ', 2),
        ("metadata.jsonl", '\n["a.jpg", "x"]', 2),
        ("metadata.jsonl", '{"text": "x"}', 1),
        ("metadata.jsonl", '{"file_name": "a.jpg", "text": 3}', 1),
        ("metadata.jsonl", '{"file_name": "../outside.jpg", "text": "x"}', 1),
        ("metadata.jsonl", '{"file_name": "/etc/a.jpg", "text": "x"}', 1),
        ("metadata.jsonl", '{"file_name": "C:\\\\a.jpg", "text": "x"}', 1),
        ("metadata.jsonl", "[" * 100_000, 1),
        ("metadata.csv", "file_name,text\na.jpg,one\na.jpg,a frog, not quoted\n", 3),
        ("metadata.csv", "name,text\na.jpg,one\n", 2),
        ("metadata.csv", 'file_name,text\na.jpg,one\na.jpg,"never closed\n', 3),
    ],
)
def test_malformed_metadata_names_file_and_line(tmp_path: Path, name: str, text: str, line: int) -> None:
    write_blanks(tmp_path, "a.jpg")
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as error:
        read_folder(tmp_path)
    assert str(error.value).startswith(f"{name} line {line}: ") and "\n" not in str(error.value)


def test_a_metadata_path_may_climb_inside_the_folder(tmp_path: Path) -> None:
    write_blanks(tmp_path, "images/a.jpg")
    (tmp_path / "words").mkdir()
    (tmp_path / "words/metadata.jsonl").write_text('{"file_name": "../images/a.jpg", "text": "x"}')
    assert read_captions(tmp_path) == {"images/a.jpg": ("x",)}


@pytest.mark.parametrize("command", ["train", "check"])
def test_the_template_in_the_help_is_valid(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_blanks(tmp_path, "owl/0.jpg")
    assert main([command, "--help"]) == 0
    help_text = " ".join(capsys.readouterr().out.split())
    example = re.search(r"\[default: ([^\]]*\{name\}[^\]]*)\]", help_text)
    assert example and read_captions(tmp_path, captions="folders", template=example[1]) == {
        "owl/0.jpg": ("a photo of an owl",)
    }


def test_auto_prefers_metadata_then_txt_then_folders(tmp_path: Path) -> None:
    write_blanks(tmp_path, *(f"{kind}/{i}.jpg" for kind in ("red_fox", "owls", "t-shirt") for i in range(4)))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "owls/0.jpg", "text": "by metadata"}')
    (tmp_path / "owls/0.txt").write_text("by txt")
    (tmp_path / "owls/1.txt").write_text("by txt")
    captions = read_captions(tmp_path)
    assert captions["owls/0.jpg"] == ("by metadata",) and captions["owls/1.jpg"] == ("by txt",)
    assert captions["owls/2.jpg"] == ("a photo of owls",)
    assert captions["red_fox/0.jpg"] == ("a photo of a red fox",) and captions["t-shirt/3.jpg"] == (
        "a photo of a t-shirt",
    )
    assert read_folder(tmp_path).source_counts == {"folders": 10, "metadata": 1, "txt": 1}
    assert set(read_captions(tmp_path, captions="txt")) == {"owls/0.jpg", "owls/1.jpg"}
    assert set(read_captions(tmp_path, captions="metadata")) == {"owls/0.jpg"}
    assert read_captions(tmp_path, captions="folders", template="an {name}, drawn")["owls/0.jpg"] == ("owls, drawn",)


def test_folder_names_are_not_used_if_most_images_have_captions_or_there_is_one_class(tmp_path: Path) -> None:
    write_blanks(tmp_path / "most", "cat/a.jpg", "dog/b.jpg", "dog/c.jpg")
    for name in ("cat/a.txt", "dog/b.txt"):
        (tmp_path / "most" / name).write_text("words")
    assert set(read_captions(tmp_path / "most")) == {"cat/a.jpg", "dog/b.jpg"}
    write_blanks(tmp_path / "one", "holiday/a.jpg", "b.jpg")
    with pytest.raises(InputError, match="2 images but no captions"):
        read_folder(tmp_path / "one")


def test_file_names_are_used_only_on_request(tmp_path: Path) -> None:
    write_blanks(tmp_path, "red_frog (3).jpg", "blue-frog_012.jpg", "0001.jpg")
    with pytest.raises(InputError, match="no captions"):
        read_folder(tmp_path)
    listing = read_folder(tmp_path, captions="names", template="{name}")
    assert [image.captions for image in listing.images] == [("blue frog",), ("red frog",)]
    assert listing.uncaptioned == ("0001.jpg",)


def test_one_caption_for_all(tmp_path: Path) -> None:
    write_blanks(tmp_path, "a.jpg", "cat/b.jpg")
    (tmp_path / "a.txt").write_text("other words")
    assert read_captions(tmp_path, caption=" my  dog ") == {"a.jpg": ("my dog",), "cat/b.jpg": ("my dog",)}


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("dress", "a photo of a dress"),
        ("owl", "a photo of an owl"),
        ("hour glass", "a photo of an hour glass"),
        ("unicorn", "a photo of a unicorn"),
        ("uninhabited island", "a photo of an uninhabited island"),
        ("umbrella", "a photo of an umbrella"),
        ("user", "a photo of a user"),
        ("UFO", "a photo of a UFO"),
        ("SUV", "a photo of an SUV"),
        ("x-ray", "a photo of an x-ray"),
        ("t-shirt", "a photo of a t-shirt"),
        ("running shoes", "a photo of running shoes"),
        ("bus", "a photo of a bus"),
        ("octopus", "a photo of an octopus"),
        ("Österreicher", "a photo of a Österreicher"),
    ],
)
def test_articles(name: str, caption: str) -> None:
    assert fill_template("a photo of a {name}", name) == caption


def test_names_become_words() -> None:
    assert class_from_folders("004.Black_footed-Albatross/images/7/x.jpg") == "Black footed Albatross"
    assert class_from_folders("train/0/x.jpg") == "" and class_from_folders("x.jpg") == ""
    assert class_from_folders("dog/train/x.jpg") == "dog"
    assert words_from_file_name("a/IMG_2041.jpg") == "IMG" and words_from_file_name("a/2041.jpg") == ""
    assert fill_template("An {name}. {name}!", "cat") == "A cat. cat!"
    assert clean_caption("a\x00b\x1b[31m\ud83d\n c") == "ab[31m\ufffd c"


def test_hidden_files_links_loops_suffixes_and_pipes(tmp_path: Path) -> None:
    names = [f"x/{i}{suffix}" for i, suffix in enumerate([".png", ".JPG", ".jpeg", ".webp", ".bmp", ".gif", ".TIFF"])]
    write_blanks(tmp_path, *names, ".hidden.png", ".git/a.png", "__MACOSX/a.png")
    (tmp_path / "notes.md").write_text("not an image")
    (tmp_path / "x/loop").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "x")
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "linked.png").symlink_to(tmp_path / "x/0.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    listing = read_folder(tmp_path, caption="c")
    assert [image.path for image in listing.images] == ["linked.png", *names]
    assert listing.skipped == (("broken.png", "broken link"), ("pipe.png", "not a regular file"))


def test_names_in_any_unicode_normalization_and_not_utf8(tmp_path: Path) -> None:
    write_blanks(tmp_path, unicodedata.normalize("NFD", "grün/Vögel 🐸.png"))
    name = unicodedata.normalize("NFC", "grün/Vögel 🐸.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": name, "text": "ein Vogel"}))
    not_utf8 = os.fsdecode(b"\xff\x1b[31m.png")
    write_blanks(tmp_path, not_utf8)
    listing = read_folder(tmp_path)
    assert [image.captions for image in listing.images] == [("ein Vogel",)] and listing.uncaptioned == (not_utf8,)
    "\n".join(listing.describe()).encode()
    assert "\x1b" not in "\n".join(listing.describe())


def test_bad_input_is_named_in_one_line(tmp_path: Path) -> None:
    write_blanks(tmp_path / "full", "a.jpg")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    cases: list[tuple[str, dict[str, str], str]] = [
        ("nowhere", {}, "nowhere: no such folder"),
        ("file", {}, "file is a file"),
        ("empty", {}, "empty: contains no images"),
        ("full", {}, "full: 1 image but no captions"),
        ("full", {"captions": "magic"}, "captions magic: unknown"),
        ("full", {"template": "a photo"}, 'template "a photo": does not contain {name}'),
        ("full", {"caption": " \n"}, "caption: is empty"),
        ("full", {"caption": "a", "captions": "txt"}, "caption: cannot be combined with --captions txt"),
    ]
    for folder, options, start in cases:
        with pytest.raises(InputError) as error:
            read_folder(tmp_path / folder, **options)
        assert start in str(error.value) and "\n" not in str(error.value)


def test_metadata_without_captions_is_noted_and_auto_goes_on(tmp_path: Path) -> None:
    write_blanks(tmp_path, "cat/a.jpg", "dog/b.jpg")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "cat/a.jpg", "label": 3}')
    listing = read_folder(tmp_path)
    assert listing.source_counts == {"folders": 2}
    assert any("metadata.jsonl: no captions" in line for line in listing.describe())
