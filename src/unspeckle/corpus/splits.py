"""A folder's images decoded and divided: a split to train on, and a split for validation."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unspeckle.corpus.cache import open_image_store
from unspeckle.corpus.caption_augmentation import words_of
from unspeckle.corpus.display import summarize_names
from unspeckle.corpus.folder_listing import FolderListing
from unspeckle.corpus.image_store import ImageStore
from unspeckle.corpus.parallel import ProgressCallback
from unspeckle.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

VALIDATION_FRACTION = 0.05
MAX_VALIDATION_IMAGES = 2000
MIN_IMAGES_TO_SPLIT = 8
"""A corpus with fewer images has no validation split."""
MAX_SIDE = 8192

SIDE_WORDS = re.compile(
    r"(?<![^\W_])(?:left|right|half)[\-_ ]?(?:most|hand|handed|hander|ward|wards|side|sided)?(?![^\W_])", re.IGNORECASE
)
"""Words that would be wrong of a flipped image."""


@dataclass(frozen=True)
class Split:
    """Some images of a store with their captions, in the order of the hashes of their files."""

    store: ImageStore
    """The decoded images of the whole corpus."""
    record_indices: NDArray[np.int64]
    """(N,) the row of each image in the store's records."""
    captions: tuple[tuple[str, ...], ...]
    """The captions of each image, at least one."""
    size: tuple[int, int]
    """Width and height of a crop in pixels."""

    def __len__(self) -> int:
        return len(self.record_indices)

    def center_crops(self, indices: Sequence[int] | NDArray[np.int64] | Tensor) -> Tensor:
        """The central crops of these images: uint8 (B, 3, H, W), channels last in memory."""
        image_indices = np.asarray(indices, np.int64)
        extra_heights, extra_widths = self.crop_margins(image_indices)
        no_flip = np.zeros(len(image_indices), np.bool_)
        return self.crop_images(image_indices, extra_heights // 2, extra_widths // 2, no_flip)

    def first_captions(self, indices: Sequence[int] | NDArray[np.int64] | Tensor) -> list[str]:
        """The first caption of each of these images."""
        return [self.captions[i][0] for i in np.asarray(indices, np.int64)]

    def crop_margins(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """By how many pixels each of these images (B,) is higher and wider than a crop: (B,), (B,)."""
        records = self.store.records[self.record_indices[indices]]
        width, height = self.size
        return records["height"].astype(np.int64) - height, records["width"].astype(np.int64) - width

    def crop_images(
        self, indices: NDArray[np.int64], tops: NDArray[np.int64], lefts: NDArray[np.int64], flip: NDArray[np.bool_]
    ) -> Tensor:
        """Crop each of these images (B,) at (top, left), and flip it horizontally if `flip` (B,) is set.

        Returns uint8 (B, 3, H, W), channels last in memory.
        """
        import torch

        records = self.store.records[self.record_indices[indices]]
        width, height = self.size
        crops = np.empty((len(indices), height, width, 3), np.uint8)
        pixels = self.store.pixels
        columns = (records["offset"], records["height"], records["width"], tops, lefts, flip)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        for crop_out, (offset, image_height, image_width, top, left, is_flipped) in zip(crops, rows, strict=True):
            image = pixels[offset : offset + image_height * image_width * 3].reshape(image_height, image_width, 3)
            crop = image[top : top + height, left : left + width]
            crop_out[...] = crop[:, ::-1] if is_flipped else crop
        return torch.from_numpy(crops).permute(0, 3, 1, 2)  # (B, 3, H, W)

    def flippable(self) -> NDArray[np.bool_]:
        """(N,) False for images with a caption that says left, right or half."""
        return np.array([not any(map(SIDE_WORDS.search, captions)) for captions in self.captions], np.bool_)


@dataclass(frozen=True)
class Corpus:
    """The decoded images of a folder."""

    training: Split
    validation: Split
    fingerprint: str
    """A hash of the files' bytes, their captions and the size, and of nothing else."""
    summary: dict[str, Any]
    """Counts and sizes for a model card, as JSON; without paths."""
    unreadable: tuple[tuple[str, str], ...]
    """(path, reason) of the images that were left out because they cannot be decoded."""

    def training_captions(self) -> Iterator[str]:
        """Every caption of every training image."""
        return (caption for captions in self.training.captions for caption in captions)

    @cached_property
    def training_words(self) -> frozenset[str]:
        """Every word of these captions, in lower case."""
        return words_of(self.training_captions())

    def describe(self) -> list[str]:
        """A summary for a person, one string a line."""
        width, height = self.training.size
        lines = [
            f"{len(self.training):,} images for training and {len(self.validation):,} for validation, "
            f"at {width}x{height}"
        ]
        if self.summary["enlarged"]:
            lines.append(f"{self.summary['enlarged']:,} of them are smaller than that and were enlarged")
        if self.unreadable:
            examples = summarize_names([f"{path}: {reason}" for path, reason in self.unreadable])
            lines.append(f"left out because they cannot be read: {len(self.unreadable):,} ({examples})")
        return lines


def open_corpus(
    listing: FolderListing,
    size: int | tuple[int, int],
    *,
    cache_dir: str | Path,
    progress: ProgressCallback | None = None,
) -> Corpus:
    """Decode the images of a listing once into a file in `cache_dir` that is mapped into memory, or find them there.

    size: (width, height) of a crop in pixels, an int for a square. Each image is shrunk or enlarged until it just
        covers the crop; its longer side is cut to at most twice the crop's.
    progress: called with (done, total) from this thread.

    About 5 % of the images are for validation. They are chosen by the hash of their bytes, so that names and order
    change nothing and copies are in the same split. Raises InputError if no image can be read, the size is out of
    range, or the cache does not fit or cannot be written.
    """
    width, height = (size, size) if isinstance(size, int) else size
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise InputError(f" {width}x{height}: out of range; each side must have 1 to {MAX_SIDE} pixels", "size")
    paths = [image.path for image in listing.images]
    store = open_image_store(listing.folder, paths, (width, height), Path(cache_dir), progress)
    unreadable = tuple((paths[entry.path_index], entry.reason) for entry in store.unreadable)
    if len(store.records) == 0:
        examples = summarize_names([f"{path}: {reason}" for path, reason in unreadable])
        raise InputError(f"{listing.folder}: none of {len(paths):,} images can be read ({examples}); replace them")
    captions = [listing.images[i].captions for i in store.records["path_index"]]
    digests = store.records["digest"]
    hashes = np.ascontiguousarray(digests).view(">u8").astype(np.uint64)  # (N, 2)
    # Copies with different captions are sorted by these, so that the order never depends on a file's name.
    rank_by_captions = {image_captions: rank for rank, image_captions in enumerate(sorted(set(captions)))}
    ranks = np.array([rank_by_captions[image_captions] for image_captions in captions])
    order = np.lexsort((ranks, hashes[:, 1], hashes[:, 0]))
    is_validation = validation_mask(hashes[order, 0])

    def make_split(mask: NDArray[np.bool_]) -> Split:
        record_indices = order[mask].astype(np.int64)
        return Split(store, record_indices, tuple(captions[i] for i in record_indices), (width, height))

    training, validation = make_split(~is_validation), make_split(is_validation)
    fingerprint = _fingerprint(digests[order], [captions[i] for i in order], (width, height))
    return Corpus(training, validation, fingerprint, _summarize(listing, training, validation, fingerprint), unreadable)


def validation_mask(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """(N,) which of the images with these hashes (N,) are for validation.

    About 5 %, and at most 2,000. Of 8 images or more at least one, unless copies of one image make up over a quarter.
    """
    if len(hashes) < MIN_IMAGES_TO_SPLIT:
        return np.zeros(len(hashes), np.bool_)
    fraction = min(VALIDATION_FRACTION, MAX_VALIDATION_IMAGES / len(hashes))
    is_validation = hashes < np.uint64(int(fraction * 2**64))
    if not 0 < is_validation.sum() <= len(hashes) // 4:
        distinct_hashes, counts = np.unique(hashes, return_counts=True)
        rare_hashes = distinct_hashes[counts <= len(hashes) // 4]
        is_validation = hashes == rare_hashes[0] if len(rare_hashes) else np.zeros(len(hashes), np.bool_)
    return np.asarray(is_validation, np.bool_)


def _fingerprint(digests: NDArray[np.uint8], captions: Sequence[Sequence[str]], size: tuple[int, int]) -> str:
    fingerprint = hashlib.blake2b(f"{size[0]}x{size[1]}".encode(), digest_size=16)
    for image_digest, image_captions in zip(digests, captions, strict=True):
        fingerprint.update(image_digest.tobytes() + "\n".join(image_captions).encode() + b"\0")
    return fingerprint.hexdigest()


def _summarize(listing: FolderListing, training: Split, validation: Split, fingerprint: str) -> dict[str, Any]:
    all_captions = [captions for split in (training, validation) for captions in split.captions]
    counts = Counter(len(captions) for captions in all_captions)
    return {
        "images": len(all_captions),
        "training": len(training),
        "validation": len(validation),
        "captions": sum(map(len, all_captions)),
        "distinct_captions": len({caption for captions in all_captions for caption in captions}),
        "captions_per_image": {str(caption_count): counts[caption_count] for caption_count in sorted(counts)},
        "size": list(training.size),
        "enlarged": int(training.store.records["enlarged"].sum()),
        "unreadable": len(training.store.unreadable),
        "uncaptioned": len(listing.uncaptioned),
        "missing": len(listing.missing_files),
        "sources": dict(listing.source_counts),
        "fingerprint": fingerprint,
    }
