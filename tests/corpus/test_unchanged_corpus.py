"""Caches, fingerprints and batches are those of version 0.1: what was decoded stays valid, and runs can be resumed.

The files of this corpus are written byte by byte, and their images are as large as a crop, so that no version of
Pillow can change them.
"""

import hashlib
import os
from pathlib import Path

import pytest

from unspeckle.corpus.batches import batches
from unspeckle.corpus.captions import read_folder
from unspeckle.corpus.splits import Corpus, open_corpus


def hash_hex(raw: bytes) -> str:
    return hashlib.blake2b(raw, digest_size=16).hexdigest()


def write_bitmap(path: Path, seed: int) -> None:
    """A BMP of 8 × 8 pixels with 24 bits."""
    pixels = bytes((7 * seed + 3 * i) % 256 for i in range(3 * 64))
    file_header = b"BM" + (54 + len(pixels)).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little")
    bitmap_header = (40).to_bytes(4, "little") + (8).to_bytes(4, "little") * 2 + b"\x01\0\x18\0" + bytes(24)
    path.write_bytes(file_header + bitmap_header + pixels)
    os.utime(path, ns=(0, 1_600_000_000_123_456_789 + seed))


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Corpus:
    folder = tmp_path_factory.mktemp("in")
    for i in range(30):
        write_bitmap(folder / f"{i:02}.bmp", seed=i)
    return open_corpus(read_folder(folder, caption="a frog"), 8, cache_dir=cache_dir)


def test_the_name_and_the_bytes_of_the_cache(corpus: Corpus, cache_dir: Path) -> None:
    (file,) = cache_dir.iterdir()
    assert file.name == "99ee3e56a971a23fe6ae57860d3470fa.pixels"
    assert hash_hex(file.read_bytes()) == "db6a6b5a35903c6eab3eef9b135caec6"


def test_the_fingerprint_and_the_splits(corpus: Corpus) -> None:
    assert corpus.fingerprint == "38dcaa9d45689fce5862df20f7930fd6"
    assert (len(corpus.training), len(corpus.validation)) == (28, 2)


def test_the_batches(corpus: Corpus) -> None:
    batch = next(batches(corpus.training, 64, seed=3, start=5))
    assert hash_hex(batch.images.numpy().tobytes()) == "449747e7ab105fb3a8a0589bd2d52368"
