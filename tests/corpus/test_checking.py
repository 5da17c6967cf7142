"""Faults put into a folder are the faults that are found."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unspeckle.corpus import check_corpus, checking, read_folder


def picture(path: Path, width: int, height: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).save(path)
    path.with_suffix(".txt").write_text(f"picture {seed}")


def test_finds_what_was_put_there_and_nothing_else(tmp_path: Path) -> None:
    for i in range(12):
        picture(tmp_path / f"good{i}.jpg", 40 + i, 40, i)
    clean = check_corpus(read_folder(tmp_path), 32)
    assert not clean and clean.describe() == ["12 pictures with captions checked", "nothing wrong was found"]
    picture(tmp_path / "small.png", 20, 90, 20)
    picture(tmp_path / "narrow.png", 200, 50, 21)
    picture(tmp_path / "cut.jpg", 60, 60, 22)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:-400])
    shutil.copy(tmp_path / "good3.jpg", tmp_path / "copy.jpg")
    (tmp_path / "copy.txt").write_text("a copy")
    (tmp_path / "good5.txt").write_text("word " * 61)
    (tmp_path / "good6.txt").write_text("word " * 60)
    (tmp_path / "good7.txt").write_text("\n")
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "gone.jpg", "text": "x"}')
    findings = check_corpus(read_folder(tmp_path), 32)
    assert {item.kind: item.examples for item in findings.issues} == {
        "unreadable": ("cut.jpg: truncated",),
        "small": ("small.png",),
        "narrow": ("narrow.png", "small.png"),
        "duplicates": ("good3.jpg = copy.jpg",),
        "uncaptioned": ("good7.jpg",),
        "missing": ("gone.jpg",),
        "skipped": ("broken.png: a link that leads nowhere",),
        "long captions": ("good5.jpg",),
    }
    told = json.loads(json.dumps(findings.to_json()))
    assert told["pictures"] == 15 and [item["count"] for item in told["found"]] == [1, 1, 2, 1, 1, 1, 1, 1]
    assert str(tmp_path) not in json.dumps(told) and len(findings.describe()) == 9
    wide = {item.kind: item.count for item in check_corpus(read_folder(tmp_path), (45, 32)).issues}
    assert wide["small"] == 7  # good0 to good4, the copy of good3, and small; what cannot be read is not counted twice


def test_the_same_words_for_all_are_told_unless_they_were_given(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / f"{i}.png", 40, 40, i)
        (tmp_path / f"{i}.txt").write_text("a thing")
    (finding,) = check_corpus(read_folder(tmp_path), 32).issues
    assert finding.kind == "same caption" and finding.count == 3
    assert not check_corpus(read_folder(tmp_path, caption="a thing"), 32)


def test_of_a_large_folder_a_spread_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(9):
        picture(tmp_path / f"{i}.jpg", 40 + i, 40, i)
        (tmp_path / f"{i}.jpg").write_bytes((tmp_path / f"{i}.jpg").read_bytes()[:-400])
    listing = read_folder(tmp_path)
    monkeypatch.setattr(checking, "DECODED_MOST", 3)
    seen: list[tuple[int, int]] = []
    findings = check_corpus(listing, 32, progress=lambda done, total: seen.append((done, total)))
    assert findings.decoded_count == 3 and findings.issues[0].count == 3
    assert seen == [(i, 9) for i in range(1, 10)]
    assert "3 of them decoded whole" in findings.describe()[0]
