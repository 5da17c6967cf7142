"""The file that holds decoded images: their pixels, then an index, then a footer that proves the file complete.

The file is mapped into memory, so that a corpus may be larger than the memory.
"""

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unspeckle.corpus import decoding
from unspeckle.corpus.parallel import ProgressCallback, map_in_order

RECORD_DTYPE = np.dtype(
    [
        ("path_index", "<i8"),  # position of the file in the list of paths
        ("offset", "<i8"),  # byte at which the pixels begin
        ("height", "<i4"),
        ("width", "<i4"),
        ("crc", "<u4"),  # CRC-32 of the pixels
        ("enlarged", "u1"),  # 1 if the file's image is smaller than a crop
        ("digest", "u1", 16),  # BLAKE2b of the file's bytes
    ]
)
FOOTER = struct.Struct("<8sQQQ16s")
"""Magic bytes, bytes of pixels, number of records, bytes of JSON, BLAKE2b of records and JSON."""

_MAGIC = b"unspeck\n"
_VERIFIED_BYTES = 1 << 26
"""About how many bytes of pixels are compared with their checksums when a file is opened."""


@dataclass(frozen=True)
class UnreadableImage:
    """A file of the list that is not in the store."""

    path_index: int
    """Position in the list of paths."""
    reason: str
    """Why it could not be decoded, in a few words."""
    is_temporary: bool
    """The file could not be read at all; it may be readable later."""


@dataclass(frozen=True)
class ImageStore:
    """Decoded images."""

    pixels: NDArray[np.uint8]
    """(bytes,) each record's image lies at `offset`, as (height, width, 3)."""
    records: NDArray[Any]
    """(N,) of dtype RECORD_DTYPE, in the order of the paths."""
    unreadable: tuple[UnreadableImage, ...]


class _DecodedFile(NamedTuple):
    path_index: int
    image: NDArray[np.uint8]  # (h, w, 3)
    digest: bytes
    is_enlarged: bool


def load_image_store(store_file: Path) -> ImageStore | None:
    """The store in `store_file`, or None if there is none or the file is damaged."""
    try:
        with store_file.open("rb") as file:
            file_size = file.seek(0, os.SEEK_END)
            file.seek(max(0, file_size - FOOTER.size))
            magic, pixel_bytes, record_count, json_bytes, index_hash = FOOTER.unpack(file.read(FOOTER.size))
            index_bytes = record_count * RECORD_DTYPE.itemsize + json_bytes
            if magic != _MAGIC or pixel_bytes + index_bytes + FOOTER.size != file_size:
                return None
            file.seek(pixel_bytes)
            index_data = file.read(index_bytes)
        if hash_bytes(index_data) != index_hash:
            return None
        records = np.frombuffer(index_data, RECORD_DTYPE, record_count)
        unreadable_json = index_data[record_count * RECORD_DTYPE.itemsize :]
        unreadable = tuple(UnreadableImage(*entry) for entry in json.loads(unreadable_json))
        pixels = np.empty(0, np.uint8)
        if pixel_bytes:
            pixels = np.asarray(np.memmap(store_file, np.uint8, "r", shape=(pixel_bytes,)))
    except (OSError, ValueError, TypeError, struct.error):
        return None
    is_intact = all(zlib.crc32(pixels[start:end].tobytes()) == crc for start, end, crc in _checksum_samples(records))
    return ImageStore(pixels, records, unreadable) if is_intact else None


def write_image_store(
    file: BinaryIO, folder: Path, paths: Sequence[str], size: tuple[int, int], progress: ProgressCallback | None
) -> None:
    """Decode the images `folder / path` so that they cover `size` (W, H), and write them as a store."""

    def decode_at(path_index: int) -> _DecodedFile | UnreadableImage:
        return _decode_file(folder / paths[path_index], path_index, size)

    records = np.zeros(len(paths), RECORD_DTYPE)
    unreadable: list[UnreadableImage] = []
    record_count = offset = 0
    for done, result in enumerate(map_in_order(decode_at, len(paths)), start=1):
        if isinstance(result, UnreadableImage):
            unreadable.append(result)
        else:
            height, width, _ = result.image.shape
            raw = result.image.tobytes()
            digest = np.frombuffer(result.digest, np.uint8)
            crc = zlib.crc32(raw)
            records[record_count] = (result.path_index, offset, height, width, crc, result.is_enlarged, digest)
            file.write(raw)
            record_count, offset = record_count + 1, offset + len(raw)
        if progress is not None:
            progress(done, len(paths))
    entries = [[entry.path_index, entry.reason, entry.is_temporary] for entry in unreadable]
    unreadable_json = json.dumps(entries).encode()
    index_data = records[:record_count].tobytes() + unreadable_json
    file.write(index_data)
    file.write(FOOTER.pack(_MAGIC, offset, record_count, len(unreadable_json), hash_bytes(index_data)))


def hash_bytes(raw: bytes) -> bytes:
    """BLAKE2b, 16 bytes."""
    return hashlib.blake2b(raw, digest_size=16).digest()


def _checksum_samples(records: NDArray[Any]) -> Iterator[tuple[int, int, int]]:
    """(start, end, CRC) of evenly spaced images of about _VERIFIED_BYTES in total, or of all if they are fewer."""
    image_bytes = records["height"].astype(np.int64) * records["width"] * 3
    step = max(1, -(-int(image_bytes.sum()) // _VERIFIED_BYTES))
    for i in range(0, len(records), step):
        start = int(records["offset"][i])
        yield start, start + int(image_bytes[i]), int(records["crc"][i])


def _decode_file(path: Path, path_index: int, size: tuple[int, int]) -> _DecodedFile | UnreadableImage:
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
    return _DecodedFile(path_index, image, hash_bytes(raw), width < size[0] or height < size[1])
