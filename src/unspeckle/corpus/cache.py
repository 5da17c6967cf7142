"""The cache of decoded images: each folder is decoded once for each size, whatever interrupts the work."""

import errno
import hashlib
import os
import shutil
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from unspeckle.corpus import decoding
from unspeckle.corpus.image_store import RECORD_DTYPE, ImageStore, hash_bytes, load_image_store, write_image_store
from unspeckle.corpus.parallel import ProgressCallback
from unspeckle.errors import InputError

CACHE_VERSION = 1
CACHE_LIFETIME = 30 * 24 * 3600.0
"""Seconds after which a file that nobody has opened is deleted."""

_PARTIAL_LIFETIME = 60.0
"""Seconds after which an unfinished file may belong to a process that was killed."""
_HEADER_SAMPLES = 512
"""Images whose headers are read to estimate how much space all need."""


def open_image_store(
    folder: Path, paths: Sequence[str], size: tuple[int, int], cache_dir: Path, progress: ProgressCallback | None = None
) -> ImageStore:
    """The images `folder / path`, decoded to cover `size` (W, H), from `cache_dir` if they are there already.

    Files that cannot be decoded are listed in the store's `unreadable`. Raises InputError if the cache cannot be
    written or the disk is too small.
    """
    cache_file = cache_dir / f"{_cache_key(folder, paths, size)}.pixels"
    store = load_image_store(cache_file)
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
            hint = "free some space or choose another cache folder"
            raise InputError(f"{cache_dir}: the disk is full; {hint}") from error
        reason = error.strerror or "failed"
        raise InputError(f"{cache_dir}: cannot be written ({reason}); choose another cache folder") from error
    store = load_image_store(cache_file)
    if store is None:
        raise InputError(f"{cache_file}: differs from what was written to it; choose another cache folder")
    return store


def _cache_key(folder: Path, paths: Sequence[str], size: tuple[int, int]) -> str:
    """A hash of what determines the pixels, as far as `stat` shows: names, lengths and times of the files, and the
    size. The folder's own path and the captions are not part of it."""
    digest = hashlib.blake2b(f"{CACHE_VERSION} {size[0]}x{size[1]}".encode(), digest_size=16)
    for path in paths:
        try:
            status = (folder / path).stat()
            state = (status.st_size, status.st_mtime_ns)
        except OSError:
            state = (-1, 0)
        digest.update(os.fsencode(path) + struct.pack("<xqq", *state))
    return digest.hexdigest()


def _is_current(store: ImageStore, folder: Path, paths: Sequence[str]) -> bool:
    """Whether some of the files still have the bytes that were decoded, and no file has become readable since."""
    if any(entry.is_temporary and os.access(folder / paths[entry.path_index], os.R_OK) for entry in store.unreadable):
        return False
    for i in range(0, len(store.records), max(1, len(store.records) // 16)):
        with suppress(OSError):
            raw = (folder / paths[int(store.records["path_index"][i])]).read_bytes()
            if hash_bytes(raw) != store.records["digest"][i].tobytes():
                return False
    return True


def _build_store(
    cache_file: Path, folder: Path, paths: Sequence[str], size: tuple[int, int], progress: ProgressCallback | None
) -> None:
    """Write to a partial file, which takes the name of `cache_file` once it is complete."""
    partial_file = cache_file.with_name(f"{cache_file.stem}.{os.getpid()}-{time.monotonic_ns():x}.part")
    try:
        with partial_file.open("xb") as file:
            _lock_file(file)
            write_image_store(file, folder, paths, size, progress)
            file.flush()
            os.fsync(file.fileno())
        partial_file.replace(cache_file)
    finally:
        with suppress(OSError):
            partial_file.unlink(missing_ok=True)


def _require_disk_space(folder: Path, paths: Sequence[str], size: tuple[int, int], cache_dir: Path) -> None:
    """Raise InputError if the images would not fit, estimated from the headers of some of them."""
    sampled_paths = paths[:: -(-len(paths) // _HEADER_SAMPLES)]
    sampled_bytes = 0
    for path in sampled_paths:
        with suppress(OSError, decoding.ImageDecodeError), (folder / path).open("rb") as file:
            width, height = decoding.covering_size(decoding.upright_size(decoding.open_image_header(file)), size)
            sampled_bytes += width * height * 3
    needed_bytes = sampled_bytes * len(paths) // len(sampled_paths) + len(paths) * RECORD_DTYPE.itemsize
    free_bytes = shutil.disk_usage(cache_dir).free
    if needed_bytes > free_bytes:
        raise InputError(
            f"{cache_dir}: {len(paths):,} images at {size[0]}x{size[1]} need {needed_bytes / 1e6:,.0f} MB, and only "
            f"{free_bytes / 1e6:,.0f} MB are free; free some space, or choose another cache folder or a smaller size"
        )


def _lock_file(file: BinaryIO) -> bool:
    """Lock the file for as long as it is open; False if another process has locked it.

    The lock shows that the process that writes the file is alive. Windows has no fcntl, and needs none: there a file
    that is open cannot be deleted.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove_stale_files(cache_dir: Path) -> None:
    """Delete the unfinished files of killed processes, and images that nobody has opened for a long time."""
    for pixel_file in cache_dir.glob("*.pixels"):
        with suppress(OSError):
            if time.time() - pixel_file.stat().st_mtime > CACHE_LIFETIME:
                pixel_file.unlink()
    for partial_file in cache_dir.glob("*.part"):
        with suppress(OSError):
            if time.time() - partial_file.stat().st_mtime <= _PARTIAL_LIFETIME:
                continue
            with partial_file.open("rb") as file:
                is_abandoned = _lock_file(file)
            if is_abandoned:
                partial_file.unlink()
