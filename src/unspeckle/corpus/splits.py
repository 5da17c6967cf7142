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

from unspeckle.corpus.cache import Progress, Store, open_store
from unspeckle.corpus.captions import Listing, named
from unspeckle.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

HELD_OUT_SHARE = 0.05
HELD_OUT_MOST = 2000
_SIDED = re.compile(
    r"(?<![^\W_])(?:left|right|half)[\-_ ]?(?:most|hand|handed|hander|ward|wards|side|sided)?(?![^\W_])", re.IGNORECASE
)


@dataclass(frozen=True)
class Split:
    """Pictures with their wordings, in the order of their contents' hashes."""

    store: Store
    places: NDArray[np.int64]  # of each picture in the store's records
    wordings: tuple[tuple[str, ...], ...]
    size: tuple[int, int]  # (W, H)

    def __len__(self) -> int:
        return len(self.places)

    def pictures(self, indices: Sequence[int] | NDArray[np.int64] | Tensor) -> Tensor:
        """The middles of these pictures: uint8 (B, 3, H, W), channels last in memory."""
        chosen = np.asarray(indices, np.int64)
        tall, wide = self.spare(chosen)
        return self.crops(chosen, tall // 2, wide // 2, np.zeros(len(chosen), np.bool_))

    def captions(self, indices: Sequence[int] | NDArray[np.int64] | Tensor) -> list[str]:
        """The first wording of each of these pictures."""
        return [self.wordings[i][0] for i in np.asarray(indices, np.int64)]

    def spare(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """By how many pixels each picture is taller and wider than a crop: (B,), (B,)."""
        records = self.store.records[self.places[indices]]
        width, height = self.size
        return records["height"].astype(np.int64) - height, records["width"].astype(np.int64) - width

    def crops(
        self,
        indices: NDArray[np.int64],
        tops: NDArray[np.int64],
        lefts: NDArray[np.int64],
        mirrored: NDArray[np.bool_],
    ) -> Tensor:
        """Cut each picture at (top, left), mirrored where asked: uint8 (B, 3, H, W), channels last in memory."""
        import torch

        records = self.store.records[self.places[indices]]
        width, height = self.size
        out = np.empty((len(indices), height, width, 3), np.uint8)
        pixels = self.store.pixels
        places = zip(
            records["offset"].tolist(),
            records["height"].tolist(),
            records["width"].tolist(),
            tops.tolist(),
            lefts.tolist(),
            mirrored.tolist(),
            strict=True,
        )
        for row, (offset, tall, wide, top, left, mirror) in zip(out, places, strict=True):
            picture = pixels[offset : offset + tall * wide * 3].reshape(tall, wide, 3)
            crop = picture[top : top + height, left : left + width]
            row[...] = crop[:, ::-1] if mirror else crop
        return torch.from_numpy(out).permute(0, 3, 1, 2)  # (B, 3, H, W)

    def mirrorable(self) -> NDArray[np.bool_]:
        """(N,) False where any wording says left, right or half."""
        return np.array([not any(map(_SIDED.search, words)) for words in self.wordings], np.bool_)


@dataclass(frozen=True)
class Corpus:
    """A decoded listing. `fingerprint` follows from the files' bytes, their wordings and the size alone."""

    training: Split
    heldout: Split
    fingerprint: str
    summary: dict[str, Any]  # JSON: counts and sizes, no paths
    unread: tuple[tuple[str, str], ...]  # (path, why) of the pictures that were left out

    def captions(self) -> Iterator[str]:
        """Every wording of every picture to train on."""
        return (caption for words in self.training.wordings for caption in words)

    def describe(self) -> list[str]:
        """What was decoded, in words: lines for a person."""
        width, height = self.training.size
        lines = [f"{len(self.training):,} pictures to train on, {len(self.heldout):,} held out, at {width}x{height}"]
        if self.summary["enlarged"]:
            lines.append(f"{self.summary['enlarged']:,} of them are smaller than that and were enlarged")
        if self.unread:
            some = named([f"{path}: {why}" for path, why in self.unread])
            lines.append(f"left out, cannot be read: {len(self.unread):,} ({some})")
        return lines


def open_corpus(
    listing: Listing, size: int | tuple[int, int], *, cache: str | Path, progress: Progress | None = None
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
    paths = [picture.path for picture in listing.pictures]
    store = open_store(listing.folder, paths, (width, height), Path(cache), progress)
    unread = tuple((paths[entry.listed], entry.why) for entry in store.unread)
    if len(store.records) == 0:
        some = named([f"{path}: {why}" for path, why in unread])
        raise InputError(f"{listing.folder}: none of {len(paths):,} pictures can be read ({some}); mend the files")
    digests = store.records["digest"]
    keys = np.ascontiguousarray(digests).view(">u8").astype(np.uint64)  # (N, 2)
    words = [listing.pictures[i].captions for i in store.records["listed"]]
    # copies with other words: by the words, so that the order never hangs on a file's name
    ranks = {caption: rank for rank, caption in enumerate(sorted(set(words)))}
    order = np.lexsort((np.array([ranks[w] for w in words]), keys[:, 1], keys[:, 0]))
    out = held_out(keys[order, 0])

    def split(mine: NDArray[np.bool_]) -> Split:
        places = order[mine].astype(np.int64)
        return Split(store, places, tuple(words[i] for i in places), (width, height))

    training, heldout = split(~out), split(out)
    fingerprint = _fingerprint(digests[order], [words[i] for i in order], (width, height))
    return Corpus(training, heldout, fingerprint, _summary(listing, training, heldout, fingerprint), unread)


def held_out(keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """(N,) which of the pictures with these hashes (N,) are kept out of training.

    About 5 % and 2,000 at most; at least one hash of 8 pictures or more, unless copies of one make up over a quarter.
    """
    if len(keys) < 8:
        return np.zeros(len(keys), np.bool_)
    share = min(HELD_OUT_SHARE, HELD_OUT_MOST / len(keys))
    out = keys < np.uint64(int(share * 2**64))
    if not 0 < out.sum() <= len(keys) // 4:
        hashes, counts = np.unique(keys, return_counts=True)
        rare = hashes[counts <= len(keys) // 4]
        out = keys == rare[0] if len(rare) else np.zeros(len(keys), np.bool_)
    return np.asarray(out, np.bool_)


def _fingerprint(digests: NDArray[np.uint8], words: Sequence[Sequence[str]], size: tuple[int, int]) -> str:
    whole = hashlib.blake2b(f"{size[0]}x{size[1]}".encode(), digest_size=16)
    for digest, captions in zip(digests, words, strict=True):
        whole.update(digest.tobytes() + "\n".join(captions).encode() + b"\0")
    return whole.hexdigest()


def _summary(listing: Listing, training: Split, heldout: Split, fingerprint: str) -> dict[str, Any]:
    wordings = [words for split in (training, heldout) for words in split.wordings]
    counts = Counter(len(words) for words in wordings)
    return {
        "pictures": len(wordings),
        "training": len(training),
        "held_out": len(heldout),
        "captions": sum(map(len, wordings)),
        "different_captions": len({caption for words in wordings for caption in words}),
        "captions_per_picture": {str(number): counts[number] for number in sorted(counts)},
        "size": list(training.size),
        "enlarged": int(training.store.records["enlarged"].sum()),
        "unreadable": len(training.store.unread),
        "uncaptioned": len(listing.uncaptioned),
        "missing": len(listing.missing),
        "sources": dict(listing.sources),
        "fingerprint": fingerprint,
    }
