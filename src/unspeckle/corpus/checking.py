"""What is wrong with a folder of captioned images, found before time is spent on training with it."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from unspeckle.corpus import decoding
from unspeckle.corpus.captions import read_folder
from unspeckle.corpus.display import summarize_names
from unspeckle.corpus.folder_listing import FolderListing
from unspeckle.corpus.parallel import ProgressCallback, map_in_order

MAX_DECODED = 20_000
"""Images that are decoded, evenly spaced; of the others in a larger folder only the header is read."""
LONG_CAPTION_WORDS = 60
"""A caption with more words is reported."""
NARROW_ASPECT_RATIO = 3
"""An image is reported if its long side is more than this many times its short side."""
MAX_EXAMPLES = 10
"""File names that an issue lists."""


@dataclass(frozen=True)
class CorpusIssue:
    """A fault that some images or captions have."""

    kind: str
    """A short name, such as "duplicates"."""
    count: int
    """How many images or files have it."""
    description: str
    """What it is and what it leads to, for a person."""
    examples: tuple[str, ...]
    """The first files that have it, some with a reason."""


@dataclass(frozen=True)
class CorpusReport:
    """All issues that `check_corpus` found; true if there are any."""

    image_count: int
    """Images with captions."""
    decoded_count: int
    """Those of them that were decoded completely."""
    issues: tuple[CorpusIssue, ...]

    def __bool__(self) -> bool:
        return bool(self.issues)

    def describe(self) -> list[str]:
        """A summary for a person, one string a line."""
        summary = f"checked {self.image_count:,} images with captions"
        if self.decoded_count < self.image_count:
            summary += f"; {self.decoded_count:,} of them were decoded completely"
        issue_lines = [
            f"{issue.count:,} {issue.kind}: {issue.description} ({summarize_names(issue.examples)})"
            for issue in self.issues
        ]
        return [summary, *(issue_lines or ["no problems found"])]

    def _repr_html_(self) -> str:
        """For notebooks: the summary, each issue in a line."""
        return "".join(f"<div>{escape(line)}</div>" for line in self.describe())

    def to_json(self) -> dict[str, Any]:
        """{"image_count": …, "decoded_count": …, "issues": [{"kind", "count", "description", "examples"}, …]}."""
        return asdict(self)


@dataclass(frozen=True)
class _InspectedFile:
    error: str = ""  # why it cannot be decoded
    image_size: tuple[int, int] = (0, 0)
    digest: bytes = b""  # of its bytes; empty if no other file has the same length


def check(
    folder: str | Path,
    size: int | tuple[int, int] = 64,
    *,
    captions: str = "auto",
    caption: str | None = None,
    template: str | None = None,
) -> CorpusReport:
    """Look for problems in a folder of captioned images before training with it at `size` (W, H); a notebook shows the
    report. captions, caption, template: where the captions are, as for `train`. InputError if there are no images."""
    return check_corpus(read_folder(Path(folder), captions, caption, template), size)


def check_corpus(
    listing: FolderListing, size: int | tuple[int, int] = 64, progress: ProgressCallback | None = None
) -> CorpusReport:
    """Look for unreadable files, copies, and images and captions that are bad for training at `size` (W, H).

    Reads every file, and decodes up to MAX_DECODED. `progress(done, total)` is called from this thread.
    """
    width, height = (size, size) if isinstance(size, int) else size
    paths = [image.path for image in listing.images]
    files: dict[str, _InspectedFile] = {}
    file_sizes = [_file_size(listing.folder / path) for path in paths]
    size_counts = Counter(file_sizes)
    step = -(-len(paths) // MAX_DECODED)

    def inspect_file(i: int) -> _InspectedFile:
        has_same_size = size_counts[file_sizes[i]] > 1
        return _inspect_file(listing.folder / paths[i], should_decode=i % step == 0, should_hash=has_same_size)

    with decoding.suppress_decoder_warnings():
        for i, file in enumerate(map_in_order(inspect_file, len(paths))):
            files[paths[i]] = file
            if progress is not None:
                progress(i + 1, len(paths))
    issues = [*_image_issues(files, (width, height)), *_caption_issues(listing)]
    return CorpusReport(len(paths), len(range(0, len(paths), step)), tuple(issue for issue in issues if issue.count))


def _image_issues(files: dict[str, _InspectedFile], crop_size: tuple[int, int]) -> list[CorpusIssue]:
    width, height = crop_size
    readable = {path: file for path, file in files.items() if not file.error}
    unreadable = [f"{path}: {file.error}" for path, file in files.items() if file.error]
    small = [path for path, file in readable.items() if file.image_size[0] < width or file.image_size[1] < height]
    narrow = [
        path for path, file in readable.items() if max(file.image_size) > NARROW_ASPECT_RATIO * min(file.image_size)
    ]
    return [
        _make_issue("unreadable", unreadable, "images that cannot be decoded and will be left out"),
        _make_issue("small", small, f"images smaller than {width}x{height}, which will be enlarged"),
        _make_issue(
            "narrow",
            narrow,
            f"images with one side more than {NARROW_ASPECT_RATIO} times the other, most of which is cropped away",
        ),
        _make_issue("duplicates", _find_duplicates(readable), "exact copies of another image"),
    ]


def _caption_issues(listing: FolderListing) -> list[CorpusIssue]:
    paths = [image.path for image in listing.images]
    long_captions = [
        image.path
        for image in listing.images
        if any(len(caption.split()) > LONG_CAPTION_WORDS for caption in image.captions)
    ]
    first_image = listing.images[0]
    all_same = (
        len(listing.images) > 1
        and first_image.source != "caption"
        and all(image.captions == first_image.captions for image in listing.images)
    )
    skipped = [f"{path}: {reason}" for path, reason in listing.skipped]
    return [
        _make_issue("uncaptioned", listing.uncaptioned, "images without a caption, which will be left out"),
        _make_issue("missing", listing.missing_files, "files named in the metadata that are not images in the folder"),
        _make_issue("skipped", skipped, "files that cannot be opened"),
        _make_issue(
            "long captions",
            long_captions,
            f"images with a caption of more than {LONG_CAPTION_WORDS} words, whose end may be cut off",
        ),
        _make_issue(
            "same caption",
            paths if all_same else [],
            "all images have the same caption, from which a model cannot learn to tell them apart",
        ),
    ]


def _make_issue(kind: str, examples: Iterable[str], description: str) -> CorpusIssue:
    names = list(examples)
    return CorpusIssue(kind, len(names), description, tuple(names[:MAX_EXAMPLES]))


def _find_duplicates(files: dict[str, _InspectedFile]) -> list[str]:
    """`copy = first file with these bytes` for each copy."""
    first_path: dict[bytes, str] = {}
    duplicates: list[str] = []
    for path, file in files.items():
        if file.digest and first_path.setdefault(file.digest, path) != path:
            duplicates.append(f"{path} = {first_path[file.digest]}")
    return duplicates


def _file_size(path: Path) -> int:
    """Bytes, or -1 if the file cannot be reached."""
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
        image_size = decoding.decode_image(raw, (8, 8))[1]
    except decoding.ImageDecodeError as error:
        return _InspectedFile(str(error))
    except OSError as error:
        return _InspectedFile(error.strerror or "cannot be read")
    return _InspectedFile("", image_size, hashlib.blake2b(raw, digest_size=16).digest() if should_hash else b"")
