"""From a folder to a listing: which pictures, and which words belong to each."""

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from unspeckle.corpus import image_files, metadata
from unspeckle.corpus.emoji import wording
from unspeckle.corpus.image_files import FolderScan
from unspeckle.errors import InputError

CaptionSource = Literal["metadata", "txt", "folders", "names", "caption"]
CaptionMode = Literal["auto", "txt", "metadata", "folders", "names"]
_SOURCE_DESCRIPTIONS = {
    "metadata": "from metadata",
    "txt": "from the .txt file beside each",
    "folders": "from the names of their folders",
    "names": "from their file names",
    "caption": "from --caption",
}


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """A picture and its wordings (at least one)."""

    path: str  # relative to the listing's folder, forward slashes
    captions: tuple[str, ...]
    source: CaptionSource


@dataclass(frozen=True)
class FolderListing:
    """What `read` took from a folder, and what it left."""

    folder: Path
    images: tuple[CaptionedImage, ...]  # sorted by path
    uncaptioned: tuple[str, ...] = ()
    missing_files: tuple[str, ...] = ()  # named by metadata, but not there or no picture
    skipped: tuple[tuple[str, str], ...] = ()  # (path, why)
    notes: tuple[str, ...] = ()

    def all_captions(self) -> Iterator[str]:
        """Every wording of every picture, in the pictures' order."""
        return (caption for image in self.images for caption in image.captions)

    @property
    def source_counts(self) -> dict[CaptionSource, int]:
        """How many pictures took their words from where, the most first."""
        return dict(Counter(image.source for image in self.images).most_common())

    def describe(self, example_count: int = 5) -> list[str]:
        """What was taken, in words: lines for a person, with some pairs of picture and caption."""
        lines = [
            f"{_format_count(count, 'picture')} with captions {_SOURCE_DESCRIPTIONS[source]}"
            for source, count in self.source_counts.items()
        ]
        caption_count = sum(len(image.captions) for image in self.images)
        if caption_count > len(self.images):
            lines.append(f"{caption_count:,} captions: {caption_count / len(self.images):.1f} for each picture")
        for image in _sample_evenly(self.images, example_count):
            suffix = f" (+ {len(image.captions) - 1} more)" if len(image.captions) > 1 else ""
            lines.append(f"  {make_printable(image.path)}: {make_printable(image.captions[0], 100)}{suffix}")
        if self.uncaptioned:
            examples = summarize_names(self.uncaptioned)
            lines.append(f"left out, no caption: {_format_count(len(self.uncaptioned), 'picture')} ({examples})")
        if self.missing_files:
            examples = summarize_names(self.missing_files)
            lines.append(
                f"named by metadata, but no picture there: {_format_count(len(self.missing_files), 'file')} ({examples})"
            )
        if self.skipped:
            examples = summarize_names([f"{path}: {reason}" for path, reason in self.skipped])
            lines.append(f"passed over: {len(self.skipped):,} ({examples})")
        return [*lines, *self.notes]


def read_folder(
    folder: str | Path,
    caption_mode: str = "auto",
    caption: str | None = None,
    template: str | None = None,
) -> FolderListing:
    """List the pictures of `folder` (and its sub-folders) with their captions.

    `captions`: "txt" takes `name.txt` beside `name.jpg`, a wording a line; "metadata" takes metadata.jsonl and
    metadata.csv; "folders" puts the folder's name into `template` ("a photo of a {name}"), "names" the file's.
    "auto" takes metadata, else the .txt file, else, where these caption less than half of the pictures and at
    least two folders hold pictures, the folder's name. `caption` gives all pictures this one. Pictures without
    words are left out. Raises InputError, naming the mend, where nothing is left or something cannot be read.
    """
    folder = Path(folder)
    if caption_mode not in get_args(CaptionMode):
        raise InputError(f"--captions {caption_mode}: unknown; choose one of {', '.join(get_args(CaptionMode))}")
    if template is not None and "{name}" not in template:
        raise InputError(f'--template "{template}": holds no {{name}}; write for example "{wording.DEFAULT_TEMPLATE}"')
    if caption is not None and caption_mode != "auto":
        raise InputError(f"--caption and --captions {caption_mode} exclude each other; give one of them")
    if caption is not None and not wording.clean_caption(caption):
        raise InputError("--caption: empty; give the words that all pictures share")
    scan = image_files.scan_folder(folder)
    if not scan.images:
        suffixes = ", ".join(sorted(image_files.IMAGE_SUFFIXES))
        raise InputError(f"{folder}: no pictures in it; give a folder that holds some ({suffixes})")
    reader = _CaptionReader(folder, scan, template)
    captions_by_path = reader.read_captions(caption_mode, caption)
    images = tuple(CaptionedImage(path, *captions_by_path[path]) for path in scan.images if path in captions_by_path)
    if not images:
        raise InputError(_no_captions_message(folder, caption_mode, len(scan.images)))
    return FolderListing(
        folder,
        images,
        uncaptioned=tuple(path for path in scan.images if path not in captions_by_path),
        missing_files=tuple(reader.missing_files),
        skipped=scan.skipped,
        notes=tuple(reader.notes),
    )


class _CaptionReader:
    """The sources of one folder, each a map from a picture's path to its wordings."""

    def __init__(self, folder: Path, scan: FolderScan, template: str | None) -> None:
        self.folder, self.scan, self.template = folder, scan, template
        self.missing_files: list[str] = []
        self.notes: list[str] = []

    def read_captions(self, mode: str, caption: str | None) -> dict[str, tuple[tuple[str, ...], CaptionSource]]:
        if caption is not None:
            return {path: ((wording.clean_caption(caption),), "caption") for path in self.scan.images}
        if mode != "auto":
            sources: dict[str, CaptionSource] = {
                "txt": "txt",
                "metadata": "metadata",
                "folders": "folders",
                "names": "names",
            }
            return {path: (captions, sources[mode]) for path, captions in getattr(self, mode)().items()}
        captioned: dict[str, tuple[tuple[str, ...], CaptionSource]] = {}
        captioned.update({path: (captions, "txt") for path, captions in self.captions_from_txt().items()})
        captioned.update({path: (captions, "metadata") for path, captions in self.captions_from_metadata().items()})
        if 2 * len(captioned) < len(self.scan.images):
            folder_captions = self.captions_from_folders()
            if len({wording.class_from_folders(path) for path in folder_captions}) >= 2:
                captioned = {path: (captions, "folders") for path, captions in folder_captions.items()} | captioned
        return captioned

    def captions_from_metadata(self) -> dict[str, tuple[str, ...]]:
        """By metadata.jsonl and metadata.csv in any folder; names are matched in any Unicode composition."""
        path_by_nfc = {unicodedata.normalize("NFC", path): path for path in self.scan.images}
        known_paths = set(self.scan.images)
        captions_by_path: dict[str, list[str]] = {}
        for path in self.scan.metadata_files:
            for name, captions in metadata.read_metadata(self.folder, path):
                image_path = name if name in known_paths else path_by_nfc.get(unicodedata.normalize("NFC", name))
                if image_path is None:
                    self.missing_files.append(name)
                else:
                    captions_by_path.setdefault(image_path, []).extend(captions)
        self.missing_files = list(dict.fromkeys(self.missing_files))
        cleaned = _clean_captions(captions_by_path)
        if captions_by_path and not cleaned:
            columns = ", ".join(metadata.CAPTION_COLUMNS)
            self.notes.append(f"{summarize_names(self.scan.metadata_files)}: no captions in it (looked for {columns})")
        return cleaned

    def captions_from_txt(self) -> dict[str, tuple[str, ...]]:
        """By `name.txt` beside `name.jpg`, each line that is not empty a wording."""
        txt_by_stem = {path.rsplit(".", 1)[0]: path for path in self.scan.txt_files}
        captions_by_path: dict[str, list[str]] = {}
        not_utf8: list[str] = []
        for image_path in self.scan.images:
            txt_path = txt_by_stem.get(image_path.rsplit(".", 1)[0])
            if txt_path is None:
                continue
            try:
                raw = (self.folder / txt_path).read_bytes()
            except OSError as error:
                self.notes.append(f"{make_printable(txt_path)}: cannot be read ({error.strerror})")
                continue
            try:
                captions_by_path[image_path] = metadata.decode_text(raw).splitlines()
            except UnicodeDecodeError:
                not_utf8.append(txt_path)
                captions_by_path[image_path] = raw.decode("cp1252", "replace").splitlines()
        if not_utf8:
            self.notes.append(
                f"not UTF-8, read as Windows-1252: {_format_count(len(not_utf8), 'file')} ({summarize_names(not_utf8)})"
            )
        return _clean_captions(captions_by_path)

    def captions_from_folders(self) -> dict[str, tuple[str, ...]]:
        """By the name of the innermost folder that is a name."""
        return self._captions_from_template({path: wording.class_from_folders(path) for path in self.scan.images})

    def captions_from_names(self) -> dict[str, tuple[str, ...]]:
        """By the file's own name."""
        return self._captions_from_template({path: wording.words_from_file_name(path) for path in self.scan.images})

    def _captions_from_template(self, name_by_path: dict[str, str]) -> dict[str, tuple[str, ...]]:
        template = self.template or wording.DEFAULT_TEMPLATE
        return {path: (wording.fill_template(template, name),) for path, name in name_by_path.items() if name}


def _clean_captions(captions_by_path: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
    cleaned = {
        path: tuple(dict.fromkeys(filter(None, map(wording.clean_caption, captions))))
        for path, captions in captions_by_path.items()
    }
    return {path: captions for path, captions in cleaned.items() if captions}


def _no_captions_message(folder: Path, mode: str, count: int) -> str:
    hint = {
        "txt": "put name.txt beside name.jpg",
        "metadata": 'put a metadata.jsonl with "file_name" and "text" beside them',
        "folders": "put each class into a folder with its name",
        "names": "give the files names with words",
        "auto": 'put name.txt beside name.jpg, or a metadata.jsonl, or class folders, or give --caption "…"',
    }[mode]
    return f"{folder}: {_format_count(count, 'picture')} but no captions; {hint}"


def _sample_evenly(images: Sequence[CaptionedImage], count: int) -> list[CaptionedImage]:
    """Evenly spread, different captions first."""
    distinct = list({image.captions[0]: image for image in reversed(images)}.values())[::-1]
    chosen = distinct if len(distinct) >= count else images
    count = min(count, len(chosen))
    return [chosen[i * len(chosen) // count] for i in range(count)]


def _format_count(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def make_printable(text: str, max_length: int = 60) -> str:
    """Text that is safe to print: no control characters or half characters, cut to `width`."""
    printable = "".join(c if c.isprintable() else "�" for c in text)
    return printable if len(printable) <= max_length else printable[: max_length - 1] + "…"


def summarize_names(names: Sequence[str], max_names: int = 3) -> str:
    """The first few names, and that there are more."""
    return ", ".join(make_printable(name) for name in names[:max_names]) + (", …" if len(names) > max_names else "")
