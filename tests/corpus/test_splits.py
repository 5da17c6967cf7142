"""Which images are for validation, and what distinguishes one corpus from another."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unspeckle.corpus.captions import read_folder
from unspeckle.corpus.splits import SIDE_WORDS, Corpus, open_corpus, validation_mask


def write_folder(folder: Path, colors: list[int], names: list[str] | None = None) -> Path:
    """Images of one color each, with two captions."""
    folder.mkdir(parents=True)
    for i, color in enumerate(colors):
        name = names[i] if names else f"{i:03}"
        Image.new("RGB", (10, 10), (color % 256, color // 256, 77)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"color {color}\nsecond caption of {color}")
    return folder


def open_folder(folder: Path, size: int | tuple[int, int] = 8) -> Corpus:
    return open_corpus(read_folder(folder), size, cache_dir=folder.parent / "cache")


def test_names_and_order_change_nothing(tmp_path: Path) -> None:
    colors = list(range(60))
    first = open_folder(write_folder(tmp_path / "a", colors))
    names = [f"{(i * 37) % 61:02}-renamed" for i in colors]
    second = open_folder(write_folder(tmp_path / "b", colors, names))
    assert (
        first.training.captions == second.training.captions and first.validation.captions == second.validation.captions
    )
    assert first.fingerprint == second.fingerprint
    reds = [split.center_crops([0, 1])[:, 0, 0, 0].tolist() for split in (first.training, second.training)]
    assert reds[0] == reds[1] == [int(captions[0].split()[1]) for captions in first.training.captions[:2]]
    assert first.training.first_captions([1, 0]) == [first.training.captions[1][0], first.training.captions[0][0]]


def test_more_images_leave_the_validation_images_where_they_are(tmp_path: Path) -> None:
    few, many = (
        open_folder(write_folder(tmp_path / "a", list(range(150)))),
        open_folder(write_folder(tmp_path / "b", list(range(300)))),
    )
    assert 0 < len(few.validation) < 20 and set(few.validation.captions) <= set(many.validation.captions)
    assert not set(many.validation.captions) & set(many.training.captions)


def test_copies_are_in_one_split(tmp_path: Path) -> None:
    corpus = open_folder(write_folder(tmp_path / "a", [i % 40 for i in range(80)]))
    first_captions = [{captions[0] for captions in split.captions} for split in (corpus.training, corpus.validation)]
    assert not first_captions[0] & first_captions[1]
    assert len(corpus.validation) == 2 * len(first_captions[1]) > 0
    same = open_folder(write_folder(tmp_path / "same", [5] * 12))
    assert len(same.training) == 12 and len(same.validation) == 0


@pytest.mark.parametrize("count", [1, 7, 8, 9, 40])
def test_small_folders(tmp_path: Path, count: int) -> None:
    corpus = open_folder(write_folder(tmp_path / "a", list(range(count))))
    assert (len(corpus.validation) >= 1) == (count >= 8)
    assert len(corpus.validation) <= count // 4 and len(corpus.training) + len(corpus.validation) == count


def test_five_percent_and_at_most_two_thousand_are_for_validation() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, 200_000, np.uint64)
    for count, expected in [(1_000, 50), (20_000, 1_000), (200_000, 2_000)]:
        assert abs(validation_mask(hashes[:count]).sum() - expected) < 4 * expected**0.5


def test_the_fingerprint_depends_on_captions_bytes_and_size(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", list(range(10)))
    first = open_folder(folder).fingerprint
    (folder / "003.png").touch()
    assert open_folder(folder).fingerprint == first
    assert len({first, open_folder(folder, 9).fingerprint, open_folder(folder, (8, 9)).fingerprint}) == 3
    (folder / "003.txt").write_text("another caption")
    assert open_folder(folder).fingerprint != first


def test_the_summary_has_counts_and_no_paths(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", list(range(10)))
    (folder / "003.txt").write_text("one caption")
    (folder / "004.txt").unlink()
    (folder / "005.png").write_text("broken")
    corpus = open_folder(folder, (12, 8))
    summary = json.loads(json.dumps(corpus.summary))
    assert str(tmp_path) not in json.dumps(summary) and ".png" not in json.dumps(summary)
    counts = {"images": 8, "captions": 15, "distinct_captions": 15, "unreadable": 1, "uncaptioned": 1, "enlarged": 8}
    assert {name: summary[name] for name in counts} == counts
    assert summary["captions_per_image"] == {"1": 1, "2": 7} and summary["size"] == [12, 8]
    assert summary["training"] + summary["validation"] == 8 and summary["sources"] == {"txt": 9}
    assert sorted(corpus.training_captions()) == sorted(c for captions in corpus.training.captions for c in captions)


def test_center_crops_show_the_center(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(100, dtype=np.uint8)[None, :, None], (64, 100, 3))
    (tmp_path / "in").mkdir()
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "in/ramp.png")
    corpus = open_corpus(read_folder(tmp_path / "in", caption="c"), 64, cache_dir=tmp_path / "cache")
    crops = corpus.training.center_crops([0])
    assert crops.shape == (1, 3, 64, 64)
    assert (crops[0].numpy() == np.arange(18, 82)).all()


def test_which_words_forbid_a_flip() -> None:
    sides = "left|the RIGHT eye|leftmost|right-hand|a left_hand glove|Left.|right's|on the (left)|righthand|leftwards"
    sides += "|half frog half rabbit"
    plain = "bright|upright|copyright|leftover|rightful|cleft|alright|aleft|straight|rights|left1eft|halfway|behalf"
    assert [words for words in sides.split("|") if not SIDE_WORDS.search(words)] == []
    assert [words for words in plain.split("|") if SIDE_WORDS.search(words)] == []
