"""What is wrong with a folder of captioned pictures, before time is spent on it."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unspeckle.corpus import decoding
from unspeckle.corpus.cache import ProgressCallback
from unspeckle.corpus.captions import FolderListing, summarize_names
from unspeckle.corpus.parallel import map_in_order

MAX_DECODED = 20_000  # of a larger folder so many pictures, evenly spread, are decoded; of the rest the header is read
LONG_CAPTION_WORDS = 60  # words
NARROW_ASPECT_RATIO = 3  # the long side is more than this many times the short one


@dataclass(frozen=True)
class CorpusIssue:
    """One kind of fault: how many pictures (or captions) have it, and the names of a few."""

    kind: str
    count: int
    description: str
    examples: tuple[str, ...]


@dataclass(frozen=True)
class CorpusReport:
    """All faults that `check` found; true where there are any."""

    image_count: int
    decoded_count: int
    issues: tuple[CorpusIssue, ...]

    def __bool__(self) -> bool:
        return bool(self.issues)

    def describe(self) -> list[str]:
        """For a person, a line a finding."""
        summary = f"{self.image_count:,} pictures with captions checked"
        if self.decoded_count < self.image_count:
            summary += f", {self.decoded_count:,} of them decoded whole"
        issue_lines = [
            f"{issue.kind}: {issue.count:,} {issue.description} ({summarize_names(issue.examples)})"
            for issue in self.issues
        ]
        return [summary, *(issue_lines or ["nothing wrong was found"])]

    def to_json(self) -> dict[str, Any]:
        """For a program: {"pictures": …, "decoded": …, "found": [{kind, count, says, examples}, …]}."""
        return {**asdict(self), "found": [{**asdict(issue), "examples": list(issue.examples)} for issue in self.issues]}


@dataclass(frozen=True)
class _InspectedFile:
    error: str = ""  # why it cannot be read
    image_size: tuple[int, int] = (0, 0)
    digest: bytes = b""


def check_corpus(
    listing: FolderListing, size: int | tuple[int, int] = 64, progress: ProgressCallback | None = None
) -> CorpusReport:
    """Look for files that cannot be read, copies, and pictures and captions that will train badly at `size` (W, H).

    Reads every file, and decodes up to 20,000. `progress(done, total)` is called from this thread.
    """
    width, height = (size, size) if isinstance(size, int) else size
    paths = [image.path for image in listing.images]
    files: dict[str, _InspectedFile] = {}
    file_sizes = [_file_size(listing.folder / path) for path in paths]
    size_counts = Counter(file_sizes)
    step = -(-len(paths) // MAX_DECODED)

    def inspect_file(i: int) -> _InspectedFile:
        return _inspect_file(
            listing.folder / paths[i], should_decode=i % step == 0, should_hash=size_counts[file_sizes[i]] > 1
        )

    with decoding.suppress_decoder_warnings():
        for i, file in enumerate(map_in_order(inspect_file, len(paths))):
            files[paths[i]] = file
            if progress is not None:
                progress(i + 1, len(paths))
    readable = {path: file for path, file in files.items() if not file.error}
    unreadable = [f"{path}: {file.error}" for path, file in files.items() if file.error]
    small_images = [
        path for path, file in readable.items() if file.image_size[0] < width or file.image_size[1] < height
    ]
    narrow_images = [
        path for path, file in readable.items() if max(file.image_size) > NARROW_ASPECT_RATIO * min(file.image_size)
    ]
    issues = [
        _make_issue("unreadable", unreadable, "cannot be decoded and will be left out"),
        _make_issue("small", small_images, f"are smaller than {width}x{height} and will be enlarged"),
        _make_issue(
            "narrow",
            narrow_images,
            f"are over {NARROW_ASPECT_RATIO} times as long as wide; most of each will never be seen",
        ),
        _make_issue("duplicates", _find_duplicates(readable), "are exact copies of another picture"),
        *_caption_issues(listing),
    ]
    return CorpusReport(len(paths), len(range(0, len(paths), step)), tuple(issue for issue in issues if issue.count))


def _caption_issues(listing: FolderListing) -> list[CorpusIssue]:
    long_captions = [
        image.path
        for image in listing.images
        if any(len(caption.split()) > LONG_CAPTION_WORDS for caption in image.captions)
    ]
    first_captions = listing.images[0].captions
    has_shared_caption = listing.images[0].source == "caption"
    all_same = (
        len(listing.images) > 1
        and not has_shared_caption
        and all(image.captions == first_captions for image in listing.images)
    )
    skipped = [f"{path}: {reason}" for path, reason in listing.skipped]
    return [
        _make_issue("uncaptioned", listing.uncaptioned, "have no caption and will be left out"),
        _make_issue("missing", listing.missing_files, "are named by metadata but are not there"),
        _make_issue("skipped", skipped, "were passed over"),
        _make_issue(
            "long captions", long_captions, f"have a caption of over {LONG_CAPTION_WORDS} words; its end may be cut off"
        ),
        _make_issue(
            "same caption",
            [image.path for image in listing.images] if all_same else [],
            "all have the same words; a model will not learn to tell anything apart by them",
        ),
    ]


def _make_issue(kind: str, examples: Iterable[str], description: str) -> CorpusIssue:
    names = list(examples)
    return CorpusIssue(kind, len(names), description, tuple(names[:10]))


def _find_duplicates(files: dict[str, _InspectedFile]) -> list[str]:
    first_path: dict[bytes, str] = {}
    duplicates: list[str] = []
    for path, file in files.items():
        if file.digest and first_path.setdefault(file.digest, path) != path:
            duplicates.append(f"{path} = {first_path[file.digest]}")
    return duplicates


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _inspect_file(path: Path, *, should_decode: bool, should_hash: bool) -> _InspectedFile:
    try:
        if path.stat().st_size > decoding.MAX_FILE_BYTES:
            return _InspectedFile("file too large")
        if not (should_decode or should_hash):
            with path.open("rb") as file:
                return _InspectedFile(image_size=decoding.upright_size(decoding.open_image_header(file)))
        raw = path.read_bytes()
        size = decoding.decode_image(raw, (8, 8))[1]
    except decoding.ImageDecodeError as error:
        return _InspectedFile(str(error))
    except OSError as error:
        return _InspectedFile(error.strerror or "cannot be read")
    return _InspectedFile("", size, hashlib.blake2b(raw, digest_size=16).digest() if should_hash else b"")
