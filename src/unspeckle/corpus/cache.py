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
from unspeckle.corpus.parallel import map_in_order
from unspeckle.errors import InputError

CACHE_VERSION = 1
RECORD_DTYPE = np.dtype(
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
CACHE_LIFETIME = 30 * 24 * 3600.0  # seconds after their last opening that decoded pictures stay
_VERIFIED_BYTES = 1 << 26  # bytes of pixels whose checksums are compared at opening

ProgressCallback = Callable[[int, int], None]  # (done, total)


@dataclass(frozen=True)
class UnreadableImage:
    """A listed picture that is not in the cache."""

    path_index: int  # place in the list of paths
    reason: str
    is_temporary: bool  # the system would not give the bytes; a later opening tries again


@dataclass(frozen=True)
class ImageStore:
    """An opened cache: `pixels` holds each record's picture at `offset`, as (height, width, 3)."""

    pixels: NDArray[np.uint8]
    records: NDArray[Any]  # of dtype RECORD, in the order of the paths
    unreadable: tuple[UnreadableImage, ...]


def open_image_store(
    folder: Path, paths: Sequence[str], size: tuple[int, int], cache_dir: Path, progress: ProgressCallback | None = None
) -> ImageStore:
    """The pictures `folder / path`, decoded to cover `size` (W, H); from `cache` where it already holds them.

    A file that cannot be decoded is left out and told in `unread`. Raises InputError where the cache cannot be
    written or the disk is too small.
    """
    cache_file = cache_dir / f"{_cache_key(folder, paths, size)}.pixels"
    store = _load_store(cache_file)
    if store is not None and _is_current(store, folder, paths):
        with suppress(OSError):
            os.utime(cache_file)
        return store
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        _remove_stale_files(cache_dir)
        with decoding.suppress_decoder_warnings():
            _require_disk_space(folder, paths, size, cache_dir)
            _build_store(cache_file, folder, paths, size, progress)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise InputError(
                f"{cache_dir}: the disk is full; free some space or choose another cache folder"
            ) from error
        reason = error.strerror or "failed"
        raise InputError(f"{cache_dir}: cannot be written ({reason}); choose another cache folder") from error
    store = _load_store(cache_file)
    if store is None:
        raise InputError(f"{cache_file}: does not read back as it was written; choose another cache folder")
    return store


def _cache_key(folder: Path, paths: Sequence[str], size: tuple[int, int]) -> str:
    """Of what the pixels depend on, as far as a stat tells; the folder's own place and the captions are not in it."""
    digest = hashlib.blake2b(f"{CACHE_VERSION} {size[0]}x{size[1]}".encode(), digest_size=16)
    for path in paths:
        try:
            status = (folder / path).stat()
            state = (status.st_size, status.st_mtime_ns)
        except OSError:
            state = (-1, 0)
        digest.update(os.fsencode(path) + struct.pack("<xqq", *state))
    return digest.hexdigest()


def _load_store(cache_file: Path) -> ImageStore | None:
    """The cache, or None where there is none or it is not whole."""
    try:
        with cache_file.open("rb") as file:
            file_size = file.seek(0, os.SEEK_END)
            file.seek(max(0, file_size - _FOOTER.size))
            magic, pixel_bytes, record_count, json_bytes, index_hash = _FOOTER.unpack(file.read(_FOOTER.size))
            index_bytes = record_count * RECORD_DTYPE.itemsize + json_bytes
            if magic != _MAGIC or pixel_bytes + index_bytes + _FOOTER.size != file_size:
                return None
            file.seek(pixel_bytes)
            index_data = file.read(index_bytes)
        if hashlib.blake2b(index_data, digest_size=16).digest() != index_hash:
            return None
        records = np.frombuffer(index_data, RECORD_DTYPE, record_count)
        unreadable = tuple(
            UnreadableImage(*entry) for entry in json.loads(index_data[record_count * RECORD_DTYPE.itemsize :])
        )
        pixels = (
            np.asarray(np.memmap(cache_file, np.uint8, "r", shape=(pixel_bytes,)))
            if pixel_bytes
            else np.empty(0, np.uint8)
        )
    except (OSError, ValueError, TypeError, struct.error):
        return None
    store = ImageStore(pixels, records, unreadable)
    return (
        store
        if all(zlib.crc32(store.pixels[start:end].tobytes()) == crc for start, end, crc in _checksum_samples(records))
        else None
    )


def _checksum_samples(records: NDArray[Any]) -> Iterator[tuple[int, int, int]]:
    """(start, end, checksum) of pictures evenly spread, all where that is quick."""
    image_bytes = records["height"].astype(np.int64) * records["width"] * 3
    total = int(image_bytes.sum())
    step = max(1, -(-total // _VERIFIED_BYTES))
    for i in range(0, len(records), step):
        start = int(records["offset"][i])
        yield start, start + int(image_bytes[i]), int(records["crc"][i])


def _is_current(store: ImageStore, folder: Path, paths: Sequence[str]) -> bool:
    """Some files still have the bytes that were decoded, and none that was out of reach can be had by now."""
    if any(entry.is_temporary and os.access(folder / paths[entry.path_index], os.R_OK) for entry in store.unreadable):
        return False
    for i in range(0, len(store.records), max(1, len(store.records) // 16)):
        with suppress(OSError):
            raw = (folder / paths[int(store.records["listed"][i])]).read_bytes()
            if _hash_bytes(raw) != store.records["digest"][i].tobytes():
                return False
    return True


def _build_store(
    cache_file: Path, folder: Path, paths: Sequence[str], size: tuple[int, int], progress: ProgressCallback | None
) -> None:
    partial_file = cache_file.with_name(f"{cache_file.stem}.{os.getpid()}-{time.monotonic_ns():x}.part")
    try:
        with partial_file.open("xb") as file:
            _lock_file(file)
            _write_store(file, folder, paths, size, progress)
            file.flush()
            os.fsync(file.fileno())
        partial_file.replace(cache_file)
    finally:
        with suppress(OSError):
            partial_file.unlink(missing_ok=True)


def _write_store(
    file: BinaryIO, folder: Path, paths: Sequence[str], size: tuple[int, int], progress: ProgressCallback | None
) -> None:
    def decode_at(path_index: int) -> _DecodedFile | UnreadableImage:
        return _decode_file(folder, paths, path_index, size)

    records = np.zeros(len(paths), RECORD_DTYPE)
    unreadable: list[UnreadableImage] = []
    record_count = offset = 0
    for done, result in enumerate(map_in_order(decode_at, len(paths)), start=1):
        if isinstance(result, UnreadableImage):
            unreadable.append(result)
        else:
            path_index, image, digest, enlarged = result
            height, width, _ = image.shape
            raw = image.tobytes()
            records[record_count] = (
                path_index,
                offset,
                height,
                width,
                zlib.crc32(raw),
                enlarged,
                np.frombuffer(digest, np.uint8),
            )
            file.write(raw)
            record_count, offset = record_count + 1, offset + len(raw)
        if progress is not None:
            progress(done, len(paths))
    unreadable_json = json.dumps(
        [[entry.path_index, entry.reason, entry.is_temporary] for entry in unreadable]
    ).encode()
    index_data = records[:record_count].tobytes() + unreadable_json
    file.write(index_data)
    file.write(
        _FOOTER.pack(
            _MAGIC, offset, record_count, len(unreadable_json), hashlib.blake2b(index_data, digest_size=16).digest()
        )
    )


_DecodedFile = tuple[int, NDArray[np.uint8], bytes, bool]


def _decode_file(
    folder: Path, paths: Sequence[str], path_index: int, size: tuple[int, int]
) -> _DecodedFile | UnreadableImage:
    path = folder / paths[path_index]
    try:
        if path.stat().st_size > decoding.MAX_FILE_BYTES:
            return UnreadableImage(path_index, "file too large", False)
        raw = path.read_bytes()
    except OSError as error:
        return UnreadableImage(path_index, error.strerror or "cannot be read", True)
    try:
        image, (width, height) = decoding.decode_image(raw, size)
    except decoding.ImageDecodeError as error:
        return UnreadableImage(path_index, str(error), False)
    return path_index, image, _hash_bytes(raw), width < size[0] or height < size[1]


def _hash_bytes(raw: bytes) -> bytes:
    return hashlib.blake2b(raw, digest_size=16).digest()


def _require_disk_space(folder: Path, paths: Sequence[str], size: tuple[int, int], cache_dir: Path) -> None:
    """Refuse what will not fit, reckoned from the headers of up to 512 pictures."""
    sampled_paths = paths[:: -(-len(paths) // 512)]
    needed_bytes = 0
    for path in sampled_paths:
        with suppress(OSError, decoding.ImageDecodeError), (folder / path).open("rb") as file:
            width, height = decoding.covering_size(decoding.upright_size(decoding.open_image_header(file)), size)
            needed_bytes += width * height * 3
    needed_bytes = needed_bytes * len(paths) // len(sampled_paths) + len(paths) * RECORD_DTYPE.itemsize
    free_bytes = shutil.disk_usage(cache_dir).free
    if needed_bytes > free_bytes:
        images_at_size = f"{len(paths):,} pictures at {size[0]}x{size[1]}"
        hint = "free some space, choose another cache folder or a smaller size"
        raise InputError(
            f"{cache_dir}: {images_at_size} need {needed_bytes / 1e6:,.0f} MB and {free_bytes / 1e6:,.0f} MB are free; {hint}"
        )


def _lock_file(file: BinaryIO) -> None:
    """Held while the process lives; tells a half-written file of a living process from a dead one's."""
    with suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _remove_stale_files(cache_dir: Path) -> None:
    """Take away what killed processes left half written, and pictures that nobody opened for a long time."""
    for pixel_file in cache_dir.glob("*.pixels"):
        with suppress(OSError):
            if time.time() - pixel_file.stat().st_mtime > CACHE_LIFETIME:
                pixel_file.unlink()
    try:
        import fcntl
    except ImportError:
        return
    for partial_file in cache_dir.glob("*.part"):
        with suppress(OSError), partial_file.open("rb") as file:
            if time.time() - os.fstat(file.fileno()).st_mtime > 60:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                partial_file.unlink()
