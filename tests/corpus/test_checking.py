"""`check_corpus` finds the problems that were put into a folder, and no others."""

import json
import shutil
from pathlib import Path

import pytest
from corpus_images import write_noise

from unspeckle.corpus import checking
from unspeckle.corpus.captions import read_folder
from unspeckle.corpus.checking import check_corpus


def write_captioned(path: Path, width: int, height: int, seed: int) -> None:
    write_noise(path, width, height, seed)
    path.with_suffix(".txt").write_text(f"image {seed}")


def test_finds_what_was_put_there_and_nothing_else(tmp_path: Path) -> None:
    for i in range(12):
        write_captioned(tmp_path / f"good{i}.jpg", 40 + i, 40, i)
    clean = check_corpus(read_folder(tmp_path), 32)
    assert not clean and clean.describe() == ["checked 12 images with captions", "no problems found"]
    write_captioned(tmp_path / "small.png", 20, 90, 20)
    write_captioned(tmp_path / "narrow.png", 200, 50, 21)
    write_captioned(tmp_path / "cut.jpg", 60, 60, 22)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:-400])
    shutil.copy(tmp_path / "good3.jpg", tmp_path / "copy.jpg")
    (tmp_path / "copy.txt").write_text("a copy")
    (tmp_path / "good5.txt").write_text("word " * 61)
    (tmp_path / "good6.txt").write_text("word " * 60)
    (tmp_path / "good7.txt").write_text("\n")
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "gone.jpg", "text": "x"}')
    report = check_corpus(read_folder(tmp_path), 32)
    assert {issue.kind: issue.examples for issue in report.issues} == {
        "unreadable": ("cut.jpg: truncated",),
        "small": ("small.png",),
        "narrow": ("narrow.png", "small.png"),
        "duplicates": ("good3.jpg = copy.jpg",),
        "uncaptioned": ("good7.jpg",),
        "missing": ("gone.jpg",),
        "skipped": ("broken.png: broken link",),
        "long captions": ("good5.jpg",),
    }
    json_report = json.loads(json.dumps(report.to_json()))
    assert json_report.keys() == {"image_count", "decoded_count", "issues"} and json_report["image_count"] == 15
    assert [issue["count"] for issue in json_report["issues"]] == [1, 1, 2, 1, 1, 1, 1, 1]
    assert json_report["issues"][0].keys() == {"kind", "count", "description", "examples"}
    assert str(tmp_path) not in json.dumps(json_report) and len(report.describe()) == 9
    wide = {issue.kind: issue.count for issue in check_corpus(read_folder(tmp_path), (45, 32)).issues}
    # good0 to good4, the copy of good3, and small.png; the unreadable one is not counted twice
    assert wide["small"] == 7


def test_one_caption_for_all_images_is_reported_unless_it_was_requested(tmp_path: Path) -> None:
    for i in range(3):
        write_captioned(tmp_path / f"{i}.png", 40, 40, i)
        (tmp_path / f"{i}.txt").write_text("a thing")
    (issue,) = check_corpus(read_folder(tmp_path), 32).issues
    assert issue.kind == "same caption" and issue.count == 3
    assert not check_corpus(read_folder(tmp_path, caption="a thing"), 32)


def test_of_a_large_folder_some_images_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(9):
        write_captioned(tmp_path / f"{i}.jpg", 40 + i, 40, i)
        (tmp_path / f"{i}.jpg").write_bytes((tmp_path / f"{i}.jpg").read_bytes()[:-400])
    listing = read_folder(tmp_path)
    monkeypatch.setattr(checking, "MAX_DECODED", 3)
    seen: list[tuple[int, int]] = []
    report = check_corpus(listing, 32, progress=lambda done, total: seen.append((done, total)))
    assert report.decoded_count == 3 and report.issues[0].count == 3
    assert seen == [(i, 9) for i in range(1, 10)]
    assert "3 of them were decoded completely" in report.describe()[0]
