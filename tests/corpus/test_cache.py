"""The cache: each image is decoded once, and a file is complete or absent, whatever happens."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest
from corpus_images import write_noise
from PIL import Image

from unspeckle.corpus import cache, decoding, image_store
from unspeckle.corpus.captions import read_folder
from unspeckle.corpus.splits import Corpus, open_corpus
from unspeckle.errors import InputError


def write_folder(folder: Path, count: int, suffix: str = "png", seed: int = 0) -> Path:
    for i in range(count):
        write_noise(folder / f"{i:03}.{suffix}", 12 + i % 3, 12 + i % 5, 100 * seed + i)
    return folder


def open_folder(folder: Path, cache_dir: Path, size: int = 8) -> tuple[Corpus, int]:
    """The corpus, and how many images were decoded for it."""
    seen: list[int] = []
    corpus = open_corpus(
        read_folder(folder, caption="c"), size, cache_dir=cache_dir, progress=lambda done, total: seen.append(done)
    )
    assert seen == list(range(1, len(seen) + 1))
    return corpus, len(seen)


def all_pixels(corpus: Corpus) -> bytes:
    return b"".join(
        split.center_crops(range(len(split))).numpy().tobytes() for split in (corpus.training, corpus.validation)
    )


def test_contains_what_decoding_gives_and_opens_again_without_decoding(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", 20)
    corpus, decoded = open_folder(folder, tmp_path / "cache")
    assert decoded == 20 and len(corpus.training) + len(corpus.validation) == 20
    expected = sorted(decoding.decode_image(path.read_bytes(), (8, 8))[0].tobytes() for path in folder.iterdir())
    store = corpus.training.store
    shapes = zip(store.records["offset"], store.records["height"] * store.records["width"] * 3, strict=True)
    assert sorted(store.pixels[start : start + length].tobytes() for start, length in shapes) == expected
    again, decoded = open_folder(folder, tmp_path / "cache")
    assert decoded == 0 and all_pixels(again) == all_pixels(corpus) and again.fingerprint == corpus.fingerprint
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_copied_folder_needs_no_decoding_and_another_size_does(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", 9)
    first, _ = open_folder(folder, tmp_path / "cache")
    copy, decoded = open_folder(shutil.copytree(folder, tmp_path / "copy"), tmp_path / "cache")
    assert decoded == 0 and copy.fingerprint == first.fingerprint
    assert open_folder(folder, tmp_path / "cache", size=6)[1] == 9


def test_changed_files_are_decoded_again(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", 9, "bmp")
    first, _ = open_folder(folder, tmp_path / "cache")
    status = (folder / "000.bmp").stat()
    Image.new("RGB", (12, 12), "red").save(folder / "000.bmp")
    second, decoded = open_folder(folder, tmp_path / "cache")
    assert decoded == 9 and second.fingerprint != first.fingerprint
    # Now the file has the name, length and time of the first.
    os.utime(folder / "000.bmp", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (folder / "000.bmp").stat().st_size == status.st_size
    third, decoded = open_folder(folder, tmp_path / "cache")
    assert decoded == 9 and third.fingerprint == second.fingerprint and all_pixels(third) == all_pixels(second)


def test_a_damaged_cache_is_made_again(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", 9)
    corpus, _ = open_folder(folder, tmp_path / "cache")
    expected = all_pixels(corpus)
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    damaged = [whole[:length] for length in (0, 10, 80, len(whole) // 2, len(whole) - 1)]
    damaged += [whole + b"x"]
    for place in (5, len(whole) // 2, len(whole) - 100, len(whole) - 60, len(whole) - 40, len(whole) - 1):
        damaged.append(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    for raw in damaged:
        file.write_bytes(raw)
        again, decoded = open_folder(folder, tmp_path / "cache")
        assert decoded == 9 and all_pixels(again) == expected and file.read_bytes() == whole


def test_a_process_killed_at_any_moment_leaves_a_usable_cache(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", 12)
    code = (
        "import os, signal, sys\nfrom unspeckle.corpus import cache\n"
        "from unspeckle.corpus.captions import read_folder\nfrom unspeckle.corpus.splits import open_corpus\n"
        "moment = int(sys.argv[3])\n"
        "def kill(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
        "if moment == 13: cache.os.fsync = kill\n"
        "listing = read_folder(sys.argv[1], caption='c')\n"
        "open_corpus(listing, 8, cache_dir=sys.argv[2], progress=lambda done, total: done == moment and kill())\n"
    )
    expected = all_pixels(open_folder(folder, tmp_path / "whole")[0])
    cache_dir = tmp_path / "cache"
    for moment in (1, 7, 12, 13):
        process = subprocess.run([sys.executable, "-c", code, folder, cache_dir, str(moment)], env=_with_package())
        assert process.returncode == -signal.SIGKILL
        files = list(cache_dir.iterdir())
        assert files and all(path.suffix == ".part" for path in files)
    for path in cache_dir.iterdir():
        os.utime(path, (time.time() - 3600,) * 2)
    corpus, decoded = open_folder(folder, cache_dir)
    assert decoded == 12 and all_pixels(corpus) == expected
    # What the killed processes left is gone.
    assert [path.suffix for path in cache_dir.iterdir()] == [".pixels"]


def _with_package() -> dict[str, str]:
    source = str(Path(cache.__file__).parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])}


def test_the_unfinished_file_of_a_living_process_is_kept(tmp_path: Path) -> None:
    def remove_stale(done: int, total: int) -> None:
        (partial_file,) = (tmp_path / "cache").iterdir()
        os.utime(partial_file, (time.time() - 3600,) * 2)
        cache._remove_stale_files(tmp_path / "cache")
        assert partial_file.exists()

    listing = read_folder(write_folder(tmp_path / "in", 9), caption="c")
    open_corpus(listing, 8, cache_dir=tmp_path / "cache", progress=remove_stale)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".pixels"]


def test_files_that_nobody_opens_are_deleted_and_used_ones_are_kept(tmp_path: Path) -> None:
    cache_dir, old = tmp_path / "cache", write_folder(tmp_path / "old", 3)
    used = write_folder(tmp_path / "used", 3, seed=1)
    for folder in (old, used):
        open_folder(folder, cache_dir)
    for path in cache_dir.iterdir():
        os.utime(path, (time.time() - cache.CACHE_LIFETIME - 60,) * 2)
    assert open_folder(used, cache_dir)[1] == 0  # opening counts as use
    open_folder(write_folder(tmp_path / "new", 3, seed=2), cache_dir)
    assert open_folder(used, cache_dir)[1] == 0
    assert open_folder(old, cache_dir)[1] == 3


def test_ctrl_c_leaves_no_file(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    listing = read_folder(write_folder(tmp_path / "in", 12), caption="c")
    with pytest.raises(KeyboardInterrupt):
        open_corpus(listing, 8, cache_dir=tmp_path / "cache", progress=stop)
    assert list((tmp_path / "cache").iterdir()) == []


def test_unreadable_files_are_named_and_left_out(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", 9)
    (folder / "cut.png").write_bytes((folder / "000.png").read_bytes()[:200])
    (folder / "empty.jpg").touch()
    (folder / "words.jpg").write_text("not an image at all")
    corpus, decoded = open_folder(folder, tmp_path / "cache")
    assert decoded == 12 and len(corpus.training) + len(corpus.validation) == 9
    assert [path for path, _ in corpus.unreadable] == ["cut.png", "empty.jpg", "words.jpg"]
    assert corpus.summary["unreadable"] == 3
    assert "left out because they cannot be read: 3 (cut.png: truncated" in corpus.describe()[-1]
    assert open_folder(folder, tmp_path / "cache")[1] == 0
    for path in folder.glob("0*.png"):
        path.unlink()
    with pytest.raises(InputError, match="none of 3 images can be read") as error:
        open_folder(folder, tmp_path / "cache")
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_tried_again_later(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", 9)
    listing = read_folder(folder, caption="c")
    (folder / "004.png").rename(tmp_path / "away.png")
    corpus = open_corpus(listing, 8, cache_dir=tmp_path / "cache")
    assert corpus.unreadable == (("004.png", "No such file or directory"),)
    (tmp_path / "away.png").rename(folder / "004.png")
    assert open_corpus(listing, 8, cache_dir=tmp_path / "cache").unreadable == ()


class Disk(NamedTuple):
    total: int
    used: int
    free: int


def test_a_full_disk_is_noticed_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "in", 9)
    open_folder(folder, tmp_path / "cache")
    needed = next((tmp_path / "cache").iterdir()).stat().st_size - image_store.FOOTER.size - len("[]")
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: Disk(0, 0, needed - 1))
    with pytest.raises(InputError, match=r"other: 9 images at 8x8 need .* MB, and only .* MB are free"):
        open_folder(folder, tmp_path / "other")
    assert list((tmp_path / "other").iterdir()) == []
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: Disk(0, 0, needed))
    assert open_folder(folder, tmp_path / "other")[1] == 9


def test_a_disk_that_fills_up_and_a_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_as_full(_: int) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = write_folder(tmp_path / "in", 9)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="choose another cache folder"):
        open_folder(folder, tmp_path / "file")
    monkeypatch.setattr(cache.os, "fsync", fail_as_full)
    with pytest.raises(InputError, match="the disk is full"):
        open_folder(folder, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    for size in (0, -3, 10_000):
        with pytest.raises(InputError, match=r"size .*: out of range"):
            open_folder(folder, tmp_path / "cache", size)
