"""What is wrong with a folder of captioned pictures, before time is spent on it."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unspeckle.corpus import decoding
from unspeckle.corpus.cache import Progress
from unspeckle.corpus.captions import Listing, named
from unspeckle.corpus.parallel import in_order

DECODED_MOST = 20_000  # of a larger folder so many pictures, evenly spread, are decoded; of the rest the header is read
LONG_CAPTION = 60  # words
NARROW = 3  # the long side is more than this many times the short one


@dataclass(frozen=True)
class Finding:
    """One kind of fault: how many pictures (or captions) have it, and the names of a few."""

    kind: str
    count: int
    says: str
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Findings:
    """All faults that `check` found; true where there are any."""

    pictures: int
    decoded: int
    found: tuple[Finding, ...]

    def __bool__(self) -> bool:
        return bool(self.found)

    def lines(self) -> list[str]:
        """For a person, a line a finding."""
        whole = f"{self.pictures:,} pictures with captions checked"
        if self.decoded < self.pictures:
            whole += f", {self.decoded:,} of them decoded whole"
        told = [f"{item.kind}: {item.count:,} {item.says} ({named(item.examples)})" for item in self.found]
        return [whole, *(told or ["nothing wrong was found"])]

    def to_json(self) -> dict[str, Any]:
        """For a program: {"pictures": …, "decoded": …, "found": [{kind, count, says, examples}, …]}."""
        return {**asdict(self), "found": [{**asdict(item), "examples": list(item.examples)} for item in self.found]}


@dataclass(frozen=True)
class _Look:
    why: str = ""  # why it cannot be read
    size: tuple[int, int] = (0, 0)
    digest: bytes = b""


def check(listing: Listing, size: int | tuple[int, int] = 64, progress: Progress | None = None) -> Findings:
    """Look for files that cannot be read, copies, and pictures and captions that will train badly at `size` (W, H).

    Reads every file, and decodes up to 20,000. `progress(done, total)` is called from this thread.
    """
    width, height = (size, size) if isinstance(size, int) else size
    paths = [picture.path for picture in listing.pictures]
    looks: dict[str, _Look] = {}
    lengths = [_length(listing.folder / path) for path in paths]
    alike = Counter(lengths)
    step = -(-len(paths) // DECODED_MOST)

    def look(i: int) -> _Look:
        return _look(listing.folder / paths[i], decode=i % step == 0, digest=alike[lengths[i]] > 1)

    with decoding.quiet():
        for i, seen in enumerate(in_order(look, len(paths))):
            looks[paths[i]] = seen
            if progress is not None:
                progress(i + 1, len(paths))
    read = {path: seen for path, seen in looks.items() if not seen.why}
    unread = [f"{path}: {seen.why}" for path, seen in looks.items() if seen.why]
    small = [path for path, seen in read.items() if seen.size[0] < width or seen.size[1] < height]
    narrow = [path for path, seen in read.items() if max(seen.size) > NARROW * min(seen.size)]
    found = [
        _finding("unreadable", unread, "cannot be decoded and will be left out"),
        _finding("small", small, f"are smaller than {width}x{height} and will be enlarged"),
        _finding("narrow", narrow, f"are over {NARROW} times as long as wide; most of each will never be seen"),
        _finding("duplicates", _copies(read), "are exact copies of another picture"),
        *_about_captions(listing),
    ]
    return Findings(len(paths), len(range(0, len(paths), step)), tuple(item for item in found if item.count))


def _about_captions(listing: Listing) -> list[Finding]:
    long = [p.path for p in listing.pictures if any(len(words.split()) > LONG_CAPTION for words in p.captions)]
    first = listing.pictures[0].captions
    given = listing.pictures[0].source == "caption"
    alike = len(listing.pictures) > 1 and not given and all(p.captions == first for p in listing.pictures)
    skipped = [f"{path}: {why}" for path, why in listing.skipped]
    return [
        _finding("uncaptioned", listing.uncaptioned, "have no caption and will be left out"),
        _finding("missing", listing.missing, "are named by metadata but are not there"),
        _finding("skipped", skipped, "were passed over"),
        _finding("long captions", long, f"have a caption of over {LONG_CAPTION} words; its end may be cut off"),
        _finding(
            "same caption",
            [p.path for p in listing.pictures] if alike else [],
            "all have the same words; a model will not learn to tell anything apart by them",
        ),
    ]


def _finding(kind: str, examples: Iterable[str], says: str) -> Finding:
    names = list(examples)
    return Finding(kind, len(names), says, tuple(names[:10]))


def _copies(read: dict[str, _Look]) -> list[str]:
    first: dict[bytes, str] = {}
    copies: list[str] = []
    for path, seen in read.items():
        if seen.digest and first.setdefault(seen.digest, path) != path:
            copies.append(f"{path} = {first[seen.digest]}")
    return copies


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _look(path: Path, *, decode: bool, digest: bool) -> _Look:
    try:
        if path.stat().st_size > decoding.LARGEST_FILE:
            return _Look("file too large")
        if not (decode or digest):
            with path.open("rb") as file:
                return _Look(size=decoding.upright_size(decoding.open_header(file)))
        raw = path.read_bytes()
        size = decoding.decode(raw, (8, 8))[1]
    except decoding.Undecodable as error:
        return _Look(str(error))
    except OSError as error:
        return _Look(error.strerror or "cannot be read")
    return _Look("", size, hashlib.blake2b(raw, digest_size=16).digest() if digest else b"")
