"""Decoded pictures in one memory-mapped file: pixels, then records, then a footer that proves it whole."""

import errno
import hashlib
import json
import os
import shutil
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from unspeckle.corpus import decoding
from unspeckle.corpus.parallel import in_order
from unspeckle.errors import InputError

VERSION = 1
RECORD = np.dtype(
    [
        ("listed", "<i8"),  # place in the list of paths
        ("offset", "<i8"),
        ("height", "<i4"),
        ("width", "<i4"),
        ("crc", "<u4"),
        ("enlarged", "u1"),
        ("digest", "u1", 16),  # of the file's bytes
    ]
)
_FOOTER = struct.Struct("<8sQQQ16s")  # magic, bytes of pixels, records, bytes of JSON, hash of records + JSON
_MAGIC = b"unspeck\n"
KEPT = 30 * 24 * 3600.0  # seconds after their last opening that decoded pictures stay
_PROVED = 1 << 26  # bytes of pixels whose checksums are compared at opening

Progress = Callable[[int, int], None]  # (done, total)


@dataclass(frozen=True)
class Unread:
    """A listed picture that is not in the cache."""

    listed: int  # place in the list of paths
    why: str
    passing: bool  # the system would not give the bytes; a later opening tries again


@dataclass(frozen=True)
class Store:
    """An opened cache: `pixels` holds each record's picture at `offset`, as (height, width, 3)."""

    pixels: NDArray[np.uint8]
    records: NDArray[Any]  # of dtype RECORD, in the order of the paths
    unread: tuple[Unread, ...]


def open_store(
    folder: Path, paths: Sequence[str], size: tuple[int, int], cache: Path, progress: Progress | None = None
) -> Store:
    """The pictures `folder / path`, decoded to cover `size` (W, H); from `cache` where it already holds them.

    A file that cannot be decoded is left out and told in `unread`. Raises InputError where the cache cannot be
    written or the disk is too small.
    """
    target = cache / f"{_key(folder, paths, size)}.pixels"
    store = _load(target)
    if store is not None and _current(store, folder, paths):
        with suppress(OSError):
            os.utime(target)
        return store
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _sweep(cache)
        with decoding.quiet():
            _require_space(folder, paths, size, cache)
            _build(target, folder, paths, size, progress)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise InputError(f"{cache}: the disk is full; free some space or choose another cache folder") from error
        why = error.strerror or "failed"
        raise InputError(f"{cache}: cannot be written ({why}); choose another cache folder") from error
    store = _load(target)
    if store is None:
        raise InputError(f"{target}: does not read back as it was written; choose another cache folder")
    return store


def _key(folder: Path, paths: Sequence[str], size: tuple[int, int]) -> str:
    """Of what the pixels depend on, as far as a stat tells; the folder's own place and the captions are not in it."""
    digest = hashlib.blake2b(f"{VERSION} {size[0]}x{size[1]}".encode(), digest_size=16)
    for path in paths:
        try:
            about = (folder / path).stat()
            state = (about.st_size, about.st_mtime_ns)
        except OSError:
            state = (-1, 0)
        digest.update(os.fsencode(path) + struct.pack("<xqq", *state))
    return digest.hexdigest()


def _load(target: Path) -> Store | None:
    """The cache, or None where there is none or it is not whole."""
    try:
        with target.open("rb") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - _FOOTER.size))
            magic, extent, count, told, proof = _FOOTER.unpack(file.read(_FOOTER.size))
            index = count * RECORD.itemsize + told
            if magic != _MAGIC or extent + index + _FOOTER.size != length:
                return None
            file.seek(extent)
            raw = file.read(index)
        if hashlib.blake2b(raw, digest_size=16).digest() != proof:
            return None
        records = np.frombuffer(raw, RECORD, count)
        unread = tuple(Unread(*entry) for entry in json.loads(raw[count * RECORD.itemsize :]))
        pixels = np.asarray(np.memmap(target, np.uint8, "r", shape=(extent,))) if extent else np.empty(0, np.uint8)
    except (OSError, ValueError, TypeError, struct.error):
        return None
    store = Store(pixels, records, unread)
    return store if all(zlib.crc32(store.pixels[a:b].tobytes()) == crc for a, b, crc in _proofs(records)) else None


def _proofs(records: NDArray[Any]) -> Iterator[tuple[int, int, int]]:
    """(start, end, checksum) of pictures evenly spread, all where that is quick."""
    lengths = records["height"].astype(np.int64) * records["width"] * 3
    total = int(lengths.sum())
    step = max(1, -(-total // _PROVED))
    for i in range(0, len(records), step):
        start = int(records["offset"][i])
        yield start, start + int(lengths[i]), int(records["crc"][i])


def _current(store: Store, folder: Path, paths: Sequence[str]) -> bool:
    """Some files still have the bytes that were decoded, and none that was out of reach can be had by now."""
    if any(entry.passing and os.access(folder / paths[entry.listed], os.R_OK) for entry in store.unread):
        return False
    for i in range(0, len(store.records), max(1, len(store.records) // 16)):
        with suppress(OSError):
            raw = (folder / paths[int(store.records["listed"][i])]).read_bytes()
            if _digest(raw) != store.records["digest"][i].tobytes():
                return False
    return True


def _build(target: Path, folder: Path, paths: Sequence[str], size: tuple[int, int], progress: Progress | None) -> None:
    part = target.with_name(f"{target.stem}.{os.getpid()}-{time.monotonic_ns():x}.part")
    try:
        with part.open("xb") as file:
            _lock(file)
            _write(file, folder, paths, size, progress)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _write(
    file: BinaryIO, folder: Path, paths: Sequence[str], size: tuple[int, int], progress: Progress | None
) -> None:
    def decode(listed: int) -> _Decoded | Unread:
        return _decode(folder, paths, listed, size)

    records = np.zeros(len(paths), RECORD)
    unread: list[Unread] = []
    kept = offset = 0
    for done, outcome in enumerate(in_order(decode, len(paths)), start=1):
        if isinstance(outcome, Unread):
            unread.append(outcome)
        else:
            listed, picture, digest, enlarged = outcome
            height, width, _ = picture.shape
            raw = picture.tobytes()
            records[kept] = (listed, offset, height, width, zlib.crc32(raw), enlarged, np.frombuffer(digest, np.uint8))
            file.write(raw)
            kept, offset = kept + 1, offset + len(raw)
        if progress is not None:
            progress(done, len(paths))
    told = json.dumps([[entry.listed, entry.why, entry.passing] for entry in unread]).encode()
    index = records[:kept].tobytes() + told
    file.write(index)
    file.write(_FOOTER.pack(_MAGIC, offset, kept, len(told), hashlib.blake2b(index, digest_size=16).digest()))


_Decoded = tuple[int, NDArray[np.uint8], bytes, bool]


def _decode(folder: Path, paths: Sequence[str], listed: int, size: tuple[int, int]) -> _Decoded | Unread:
    path = folder / paths[listed]
    try:
        if path.stat().st_size > decoding.LARGEST_FILE:
            return Unread(listed, "file too large", False)
        raw = path.read_bytes()
    except OSError as error:
        return Unread(listed, error.strerror or "cannot be read", True)
    try:
        picture, (width, height) = decoding.decode(raw, size)
    except decoding.Undecodable as error:
        return Unread(listed, str(error), False)
    return listed, picture, _digest(raw), width < size[0] or height < size[1]


def _digest(raw: bytes) -> bytes:
    return hashlib.blake2b(raw, digest_size=16).digest()


def _require_space(folder: Path, paths: Sequence[str], size: tuple[int, int], cache: Path) -> None:
    """Refuse what will not fit, reckoned from the headers of up to 512 pictures."""
    sample = paths[:: -(-len(paths) // 512)]
    needed = 0
    for path in sample:
        with suppress(OSError, decoding.Undecodable), (folder / path).open("rb") as file:
            width, height = decoding.covering(decoding.upright_size(decoding.open_header(file)), size)
            needed += width * height * 3
    needed = needed * len(paths) // len(sample) + len(paths) * RECORD.itemsize
    free = shutil.disk_usage(cache).free
    if needed > free:
        what = f"{len(paths):,} pictures at {size[0]}x{size[1]}"
        mend = "free some space, choose another cache folder or a smaller size"
        raise InputError(f"{cache}: {what} need {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free; {mend}")


def _lock(file: BinaryIO) -> None:
    """Held while the process lives; tells a half-written file of a living process from a dead one's."""
    with suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sweep(cache: Path) -> None:
    """Take away what killed processes left half written, and pictures that nobody opened for a long time."""
    for pixels in cache.glob("*.pixels"):
        with suppress(OSError):
            if time.time() - pixels.stat().st_mtime > KEPT:
                pixels.unlink()
    try:
        import fcntl
    except ImportError:
        return
    for part in cache.glob("*.part"):
        with suppress(OSError), part.open("rb") as file:
            if time.time() - os.fstat(file.fileno()).st_mtime > 60:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                part.unlink()
