"""A listing decoded and divided: pictures to train on, and pictures held out."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unspeckle.corpus.cache import ImageStore, ProgressCallback, open_image_store
from unspeckle.corpus.captions import FolderListing, summarize_names
from unspeckle.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

VALIDATION_FRACTION = 0.05
MAX_VALIDATION_IMAGES = 2000
_SIDE_WORDS = re.compile(
    r"(?<![^\W_])(?:left|right|half)[\-_ ]?(?:most|hand|handed|hander|ward|wards|side|sided)?(?![^\W_])", re.IGNORECASE
)


@dataclass(frozen=True)
class Split:
    """Pictures with their wordings, in the order of their contents' hashes."""

    store: ImageStore
    record_indices: NDArray[np.int64]  # of each picture in the store's records
    captions: tuple[tuple[str, ...], ...]
    size: tuple[int, int]  # (W, H)

    def __len__(self) -> int:
        return len(self.record_indices)

    def center_crops(self, indices: Sequence[int] | NDArray[np.int64] | Tensor) -> Tensor:
        """The middles of these pictures: uint8 (B, 3, H, W), channels last in memory."""
        image_indices = np.asarray(indices, np.int64)
        extra_heights, extra_widths = self.crop_margins(image_indices)
        return self.crop_images(
            image_indices, extra_heights // 2, extra_widths // 2, np.zeros(len(image_indices), np.bool_)
        )

    def first_captions(self, indices: Sequence[int] | NDArray[np.int64] | Tensor) -> list[str]:
        """The first wording of each of these pictures."""
        return [self.captions[i][0] for i in np.asarray(indices, np.int64)]

    def crop_margins(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """By how many pixels each picture is taller and wider than a crop: (B,), (B,)."""
        records = self.store.records[self.record_indices[indices]]
        width, height = self.size
        return records["height"].astype(np.int64) - height, records["width"].astype(np.int64) - width

    def crop_images(
        self,
        indices: NDArray[np.int64],
        tops: NDArray[np.int64],
        lefts: NDArray[np.int64],
        flip: NDArray[np.bool_],
    ) -> Tensor:
        """Cut each picture at (top, left), mirrored where asked: uint8 (B, 3, H, W), channels last in memory."""
        import torch

        records = self.store.records[self.record_indices[indices]]
        width, height = self.size
        crops = np.empty((len(indices), height, width, 3), np.uint8)
        pixels = self.store.pixels
        positions = zip(
            records["offset"].tolist(),
            records["height"].tolist(),
            records["width"].tolist(),
            tops.tolist(),
            lefts.tolist(),
            flip.tolist(),
            strict=True,
        )
        for crop_out, (offset, image_height, image_width, top, left, should_flip) in zip(crops, positions, strict=True):
            image = pixels[offset : offset + image_height * image_width * 3].reshape(image_height, image_width, 3)
            crop = image[top : top + height, left : left + width]
            crop_out[...] = crop[:, ::-1] if should_flip else crop
        return torch.from_numpy(crops).permute(0, 3, 1, 2)  # (B, 3, H, W)

    def flippable(self) -> NDArray[np.bool_]:
        """(N,) False where any wording says left, right or half."""
        return np.array([not any(map(_SIDE_WORDS.search, captions)) for captions in self.captions], np.bool_)


@dataclass(frozen=True)
class Corpus:
    """A decoded listing. `fingerprint` follows from the files' bytes, their wordings and the size alone."""

    training: Split
    validation: Split
    fingerprint: str
    summary: dict[str, Any]  # JSON: counts and sizes, no paths
    unreadable: tuple[tuple[str, str], ...]  # (path, why) of the pictures that were left out

    def training_captions(self) -> Iterator[str]:
        """Every wording of every picture to train on."""
        return (caption for captions in self.training.captions for caption in captions)

    def describe(self) -> list[str]:
        """What was decoded, in words: lines for a person."""
        width, height = self.training.size
        lines = [f"{len(self.training):,} pictures to train on, {len(self.validation):,} held out, at {width}x{height}"]
        if self.summary["enlarged"]:
            lines.append(f"{self.summary['enlarged']:,} of them are smaller than that and were enlarged")
        if self.unreadable:
            examples = summarize_names([f"{path}: {reason}" for path, reason in self.unreadable])
            lines.append(f"left out, cannot be read: {len(self.unreadable):,} ({examples})")
        return lines


def open_corpus(
    listing: FolderListing,
    size: int | tuple[int, int],
    *,
    cache_dir: str | Path,
    progress: ProgressCallback | None = None,
) -> Corpus:
    """Decode the listing's pictures once into a memory map below the folder `cache`, or find them there.

    Each is kept so that it just covers `size` (W, H), an int meaning a square, and the long side at most twice.
    `progress(done, total)` is called from this thread. About 5 % are held out, chosen by the hash of their bytes: the
    same pictures whatever their names and order, copies on one side. Raises InputError where no picture can be read,
    the size is not at least 1, or the cache does not fit or cannot be written.
    """
    width, height = (size, size) if isinstance(size, int) else size
    if not (1 <= width <= 8192 and 1 <= height <= 8192):
        raise InputError(f"--size {width}x{height}: out of range; give 1 to 8192 pixels a side")
    paths = [image.path for image in listing.images]
    store = open_image_store(listing.folder, paths, (width, height), Path(cache_dir), progress)
    unreadable = tuple((paths[entry.path_index], entry.reason) for entry in store.unreadable)
    if len(store.records) == 0:
        examples = summarize_names([f"{path}: {reason}" for path, reason in unreadable])
        raise InputError(f"{listing.folder}: none of {len(paths):,} pictures can be read ({examples}); mend the files")
    digests = store.records["digest"]
    hashes = np.ascontiguousarray(digests).view(">u8").astype(np.uint64)  # (N, 2)
    captions = [listing.images[i].captions for i in store.records["listed"]]
    # copies with other words: by the words, so that the order never hangs on a file's name
    rank_by_captions = {image_captions: rank for rank, image_captions in enumerate(sorted(set(captions)))}
    order = np.lexsort(
        (np.array([rank_by_captions[image_captions] for image_captions in captions]), hashes[:, 1], hashes[:, 0])
    )
    is_validation = validation_mask(hashes[order, 0])

    def make_split(mask: NDArray[np.bool_]) -> Split:
        record_indices = order[mask].astype(np.int64)
        return Split(store, record_indices, tuple(captions[i] for i in record_indices), (width, height))

    training, validation = make_split(~is_validation), make_split(is_validation)
    fingerprint = _fingerprint(digests[order], [captions[i] for i in order], (width, height))
    return Corpus(training, validation, fingerprint, _summary(listing, training, validation, fingerprint), unreadable)


def validation_mask(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """(N,) which of the pictures with these hashes (N,) are kept out of training.

    About 5 % and 2,000 at most; at least one hash of 8 pictures or more, unless copies of one make up over a quarter.
    """
    if len(hashes) < 8:
        return np.zeros(len(hashes), np.bool_)
    fraction = min(VALIDATION_FRACTION, MAX_VALIDATION_IMAGES / len(hashes))
    is_validation = hashes < np.uint64(int(fraction * 2**64))
    if not 0 < is_validation.sum() <= len(hashes) // 4:
        hashes, counts = np.unique(hashes, return_counts=True)
        rare_hashes = hashes[counts <= len(hashes) // 4]
        is_validation = hashes == rare_hashes[0] if len(rare_hashes) else np.zeros(len(hashes), np.bool_)
    return np.asarray(is_validation, np.bool_)


def _fingerprint(digests: NDArray[np.uint8], captions: Sequence[Sequence[str]], size: tuple[int, int]) -> str:
    fingerprint = hashlib.blake2b(f"{size[0]}x{size[1]}".encode(), digest_size=16)
    for image_digest, image_captions in zip(digests, captions, strict=True):
        fingerprint.update(image_digest.tobytes() + "\n".join(image_captions).encode() + b"\0")
    return fingerprint.hexdigest()


def _summary(listing: FolderListing, training: Split, validation: Split, fingerprint: str) -> dict[str, Any]:
    all_captions = [captions for split in (training, validation) for captions in split.captions]
    counts = Counter(len(captions) for captions in all_captions)
    return {
        "pictures": len(all_captions),
        "training": len(training),
        "held_out": len(validation),
        "captions": sum(map(len, all_captions)),
        "different_captions": len({caption for captions in all_captions for caption in captions}),
        "captions_per_picture": {str(caption_count): counts[caption_count] for caption_count in sorted(counts)},
        "size": list(training.size),
        "enlarged": int(training.store.records["enlarged"].sum()),
        "unreadable": len(training.store.unreadable),
        "uncaptioned": len(listing.uncaptioned),
        "missing": len(listing.missing_files),
        "sources": dict(listing.source_counts),
        "fingerprint": fingerprint,
    }
