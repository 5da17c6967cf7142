"""What is held out, and what tells one corpus from another."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unspeckle.corpus import Corpus, open_corpus, read_folder
from unspeckle.corpus.splits import _SIDE_WORDS, validation_mask


def folder_of(folder: Path, colours: list[int], names: list[str] | None = None) -> Path:
    folder.mkdir(parents=True)
    for i, colour in enumerate(colours):
        name = names[i] if names else f"{i:03}"
        Image.new("RGB", (10, 10), (colour % 256, colour // 256, 77)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"colour {colour}\nsecond wording of {colour}")
    return folder


def opened(folder: Path, size: int | tuple[int, int] = 8) -> Corpus:
    return open_corpus(read_folder(folder), size, cache_dir=folder.parent / "cache")


def test_names_and_order_change_nothing(tmp_path: Path) -> None:
    colours = list(range(60))
    first = opened(folder_of(tmp_path / "a", colours))
    names = [f"{(i * 37) % 61:02}-renamed" for i in colours]
    second = opened(folder_of(tmp_path / "b", colours, names))
    assert (
        first.training.captions == second.training.captions and first.validation.captions == second.validation.captions
    )
    assert first.fingerprint == second.fingerprint
    shown = [split.center_crops([0, 1])[:, 0, 0, 0].tolist() for split in (first.training, second.training)]
    assert shown[0] == shown[1] == [int(words[0].split()[1]) for words in first.training.captions[:2]]
    assert first.training.first_captions([1, 0]) == [first.training.captions[1][0], first.training.captions[0][0]]


def test_more_pictures_leave_the_held_out_ones_held_out(tmp_path: Path) -> None:
    few, many = opened(folder_of(tmp_path / "a", list(range(150)))), opened(folder_of(tmp_path / "b", list(range(300))))
    assert 0 < len(few.validation) < 20 and set(few.validation.captions) <= set(many.validation.captions)
    assert not set(many.validation.captions) & set(many.training.captions)


def test_copies_are_on_one_side(tmp_path: Path) -> None:
    corpus = opened(folder_of(tmp_path / "a", [i % 40 for i in range(80)]))
    sides = [{words[0] for words in split.captions} for split in (corpus.training, corpus.validation)]
    assert not sides[0] & sides[1] and len(corpus.validation) == 2 * len(sides[1]) > 0
    same = opened(folder_of(tmp_path / "same", [5] * 12))
    assert len(same.training) == 12 and len(same.validation) == 0


@pytest.mark.parametrize("count", [1, 7, 8, 9, 40])
def test_small_folders(tmp_path: Path, count: int) -> None:
    corpus = opened(folder_of(tmp_path / "a", list(range(count))))
    assert (len(corpus.validation) >= 1) == (count >= 8)
    assert len(corpus.validation) <= count // 4 and len(corpus.training) + len(corpus.validation) == count


def test_the_share_is_five_percent_and_two_thousand_at_most() -> None:
    keys = np.random.default_rng(0).integers(0, 2**64, 200_000, np.uint64)
    for count, expected in [(1_000, 50), (20_000, 1_000), (200_000, 2_000)]:
        assert abs(validation_mask(keys[:count]).sum() - expected) < 4 * expected**0.5


def test_the_fingerprint_follows_words_bytes_and_size(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a", list(range(10)))
    first = opened(folder).fingerprint
    (folder / "003.png").touch()
    assert opened(folder).fingerprint == first
    assert len({first, opened(folder, 9).fingerprint, opened(folder, (8, 9)).fingerprint}) == 3
    (folder / "003.txt").write_text("other words")
    assert opened(folder).fingerprint != first


def test_the_summary_counts_and_tells_no_path(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a", list(range(10)))
    (folder / "003.txt").write_text("one wording")
    (folder / "004.txt").unlink()
    (folder / "005.png").write_text("broken")
    corpus = opened(folder, (12, 8))
    summary = json.loads(json.dumps(corpus.summary))
    assert str(tmp_path) not in json.dumps(summary) and ".png" not in json.dumps(summary)
    counts = {"pictures": 8, "captions": 15, "different_captions": 15, "unreadable": 1, "uncaptioned": 1, "enlarged": 8}
    assert {name: summary[name] for name in counts} == counts
    assert summary["captions_per_picture"] == {"1": 1, "2": 7} and summary["size"] == [12, 8]
    assert summary["training"] + summary["held_out"] == 8 and summary["sources"] == {"txt": 9}
    assert sorted(corpus.training_captions()) == sorted(c for words in corpus.training.captions for c in words)


def test_the_middle_is_shown(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(100, dtype=np.uint8)[None, :, None], (64, 100, 3))
    (tmp_path / "in").mkdir()
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "in/ramp.png")
    corpus = open_corpus(read_folder(tmp_path / "in", caption="c"), 64, cache_dir=tmp_path / "cache")
    picture = corpus.training.center_crops([0])
    assert picture.shape == (1, 3, 64, 64)
    assert (picture[0].numpy() == np.arange(18, 82)).all()


def test_which_words_mean_a_side() -> None:
    sided = "left|the RIGHT eye|leftmost|right-hand|a left_hand glove|Left.|right's|on the (left)|righthand|leftwards"
    sided += "|half frog half rabbit"
    plain = "bright|upright|copyright|leftover|rightful|cleft|alright|aleft|straight|rights|left1eft|halfway|behalf"
    assert [words for words in sided.split("|") if not _SIDE_WORDS.search(words)] == []
    assert [words for words in plain.split("|") if _SIDE_WORDS.search(words)] == []
