"""The cache: decoded once, whole or not at all, whatever happens on the way."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import pytest
from PIL import Image

from unspeckle.corpus import Corpus, cache, decoding, open_corpus, read_folder
from unspeckle.errors import InputError


def folder_of(folder: Path, count: int, suffix: str = "png", seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for i in range(count):
        shape = (12 + i % 5, 12 + i % 3, 3)
        Image.fromarray(random.integers(0, 256, shape, np.uint8)).save(folder / f"{i:03}.{suffix}")
    return folder


def opened(folder: Path, store: Path, size: int = 8) -> tuple[Corpus, int]:
    """The corpus, and how many pictures were decoded for it."""
    seen: list[int] = []
    corpus = open_corpus(
        read_folder(folder, caption="c"), size, cache_dir=store, progress=lambda done, total: seen.append(done)
    )
    assert seen == list(range(1, len(seen) + 1))
    return corpus, len(seen)


def pixels(corpus: Corpus) -> bytes:
    return b"".join(
        split.center_crops(range(len(split))).numpy().tobytes() for split in (corpus.training, corpus.validation)
    )


def test_holds_what_decoding_gives_and_opens_again_without_decoding(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", 20)
    corpus, decoded = opened(folder, tmp_path / "cache")
    assert decoded == 20 and len(corpus.training) + len(corpus.validation) == 20
    expected = sorted(decoding.decode_image(path.read_bytes(), (8, 8))[0].tobytes() for path in folder.iterdir())
    store = corpus.training.store
    shapes = zip(store.records["offset"], store.records["height"] * store.records["width"] * 3, strict=True)
    assert sorted(store.pixels[start : start + length].tobytes() for start, length in shapes) == expected
    again, decoded = opened(folder, tmp_path / "cache")
    assert decoded == 0 and pixels(again) == pixels(corpus) and again.fingerprint == corpus.fingerprint
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_copied_folder_needs_no_decoding_and_another_size_does(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", 9)
    first, _ = opened(folder, tmp_path / "cache")
    copy, decoded = opened(shutil.copytree(folder, tmp_path / "copy"), tmp_path / "cache")
    assert decoded == 0 and copy.fingerprint == first.fingerprint
    assert opened(folder, tmp_path / "cache", size=6)[1] == 9


def test_changed_files_are_decoded_again(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", 9, "bmp")
    first, _ = opened(folder, tmp_path / "cache")
    about = (folder / "000.bmp").stat()
    Image.new("RGB", (12, 12), "red").save(folder / "000.bmp")
    second, decoded = opened(folder, tmp_path / "cache")
    assert decoded == 9 and second.fingerprint != first.fingerprint
    os.utime(folder / "000.bmp", ns=(about.st_atime_ns, about.st_mtime_ns))  # same name, length and time as the first
    assert (folder / "000.bmp").stat().st_size == about.st_size
    third, decoded = opened(folder, tmp_path / "cache")
    assert decoded == 9 and third.fingerprint == second.fingerprint and pixels(third) == pixels(second)


def test_a_cut_or_altered_cache_is_made_again(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", 9)
    corpus, _ = opened(folder, tmp_path / "cache")
    expected = pixels(corpus)
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    hurt = [whole[:length] for length in (0, 10, 80, len(whole) // 2, len(whole) - 1)]
    hurt += [whole + b"x"]
    for place in (5, len(whole) // 2, len(whole) - 100, len(whole) - 60, len(whole) - 40, len(whole) - 1):
        hurt.append(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    for raw in hurt:
        file.write_bytes(raw)
        again, decoded = opened(folder, tmp_path / "cache")
        assert decoded == 9 and pixels(again) == expected and file.read_bytes() == whole


def test_killed_at_any_moment_leaves_nothing_wrong(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", 12)
    code = (
        "import os, signal, sys\nfrom unspeckle.corpus import cache, open_corpus, read\n"
        "moment = int(sys.argv[3])\n"
        "def kill(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
        "if moment == 13: cache.os.fsync = kill\n"
        "listing = read(sys.argv[1], caption='c')\n"
        "open_corpus(listing, 8, cache=sys.argv[2], progress=lambda done, total: done == moment and kill())\n"
    )
    expected = pixels(opened(folder, tmp_path / "whole")[0])
    store = tmp_path / "cache"
    for moment in (1, 7, 12, 13):
        ended = subprocess.run([sys.executable, "-c", code, folder, store, str(moment)], env=_with_package())
        assert ended.returncode == -signal.SIGKILL
        left = list(store.iterdir())
        assert left and all(path.suffix == ".part" for path in left)
    for path in store.iterdir():
        os.utime(path, (time.time() - 3600,) * 2)
    corpus, decoded = opened(folder, store)
    assert decoded == 12 and pixels(corpus) == expected
    assert [path.suffix for path in store.iterdir()] == [".pixels"]  # what the killed ones left is gone


def _with_package() -> dict[str, str]:
    source = str(Path(cache.__file__).parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])}


def test_the_half_written_file_of_a_living_process_stays(tmp_path: Path) -> None:
    def sweep(done: int, total: int) -> None:
        (part,) = (tmp_path / "cache").iterdir()
        os.utime(part, (time.time() - 3600,) * 2)
        cache._remove_stale_files(tmp_path / "cache")
        assert part.exists()

    listing = read_folder(folder_of(tmp_path / "in", 9), caption="c")
    open_corpus(listing, 8, cache_dir=tmp_path / "cache", progress=sweep)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".pixels"]


def test_what_nobody_opened_for_long_goes_and_what_is_in_use_stays(tmp_path: Path) -> None:
    store, old = tmp_path / "cache", folder_of(tmp_path / "old", 3)
    used = folder_of(tmp_path / "used", 3, seed=1)
    for folder in (old, used):
        opened(folder, store)
    for path in store.iterdir():
        os.utime(path, (time.time() - cache.CACHE_LIFETIME - 60,) * 2)
    assert opened(used, store)[1] == 0  # opening counts as use
    opened(folder_of(tmp_path / "new", 3, seed=2), store)
    assert opened(used, store)[1] == 0
    assert opened(old, store)[1] == 3


def test_ctrl_c_leaves_no_file(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    listing = read_folder(folder_of(tmp_path / "in", 12), caption="c")
    with pytest.raises(KeyboardInterrupt):
        open_corpus(listing, 8, cache_dir=tmp_path / "cache", progress=stop)
    assert list((tmp_path / "cache").iterdir()) == []


def test_unreadable_files_are_named_and_left_out(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", 9)
    (folder / "cut.png").write_bytes((folder / "000.png").read_bytes()[:200])
    (folder / "empty.jpg").touch()
    (folder / "words.jpg").write_text("no picture at all")
    corpus, decoded = opened(folder, tmp_path / "cache")
    assert decoded == 12 and len(corpus.training) + len(corpus.validation) == 9
    assert [path for path, _ in corpus.unreadable] == ["cut.png", "empty.jpg", "words.jpg"]
    assert corpus.summary["unreadable"] == 3
    assert "left out, cannot be read: 3 (cut.png: truncated" in corpus.describe()[-1]
    assert opened(folder, tmp_path / "cache")[1] == 0
    for path in folder.glob("0*.png"):
        path.unlink()
    with pytest.raises(InputError, match="none of 3 pictures can be read") as error:
        opened(folder, tmp_path / "cache")
    assert "\n" not in str(error.value)


def test_a_file_out_of_reach_is_tried_again_later(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", 9)
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


def test_a_disk_too_small_is_refused_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path / "in", 9)
    opened(folder, tmp_path / "cache")
    needed = next((tmp_path / "cache").iterdir()).stat().st_size - cache._FOOTER.size - len("[]")
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: Disk(0, 0, needed - 1))
    with pytest.raises(InputError, match=r"other: 9 pictures at 8x8 need .* MB and .* MB are free"):
        opened(folder, tmp_path / "other")
    assert list((tmp_path / "other").iterdir()) == []
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: Disk(0, 0, needed))
    assert opened(folder, tmp_path / "other")[1] == 9


def test_a_disk_that_fills_up_and_a_cache_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = folder_of(tmp_path / "in", 9)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="choose another cache folder"):
        opened(folder, tmp_path / "file")
    monkeypatch.setattr(cache.os, "fsync", full)
    with pytest.raises(InputError, match="the disk is full"):
        opened(folder, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    for size in (0, -3, 10_000):
        with pytest.raises(InputError, match="--size"):
            opened(folder, tmp_path / "cache", size)
