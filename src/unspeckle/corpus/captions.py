"""From a folder to a listing: which pictures, and which words belong to each."""

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from unspeckle.corpus import image_files, metadata
from unspeckle.corpus.emoji import wording
from unspeckle.corpus.image_files import Found
from unspeckle.errors import InputError

Source = Literal["metadata", "txt", "folders", "names", "caption"]
Mode = Literal["auto", "txt", "metadata", "folders", "names"]
_TOLD = {
    "metadata": "from metadata",
    "txt": "from the .txt file beside each",
    "folders": "from the names of their folders",
    "names": "from their file names",
    "caption": "from --caption",
}


@dataclass(frozen=True, slots=True)
class Captioned:
    """A picture and its wordings (at least one)."""

    path: str  # relative to the listing's folder, forward slashes
    captions: tuple[str, ...]
    source: Source


@dataclass(frozen=True)
class Listing:
    """What `read` took from a folder, and what it left."""

    folder: Path
    pictures: tuple[Captioned, ...]  # sorted by path
    uncaptioned: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()  # named by metadata, but not there or no picture
    skipped: tuple[tuple[str, str], ...] = ()  # (path, why)
    notes: tuple[str, ...] = ()

    def captions(self) -> Iterator[str]:
        """Every wording of every picture, in the pictures' order."""
        return (caption for picture in self.pictures for caption in picture.captions)

    @property
    def sources(self) -> dict[Source, int]:
        """How many pictures took their words from where, the most first."""
        return dict(Counter(picture.source for picture in self.pictures).most_common())

    def describe(self, pairs: int = 5) -> list[str]:
        """What was taken, in words: lines for a person, with some pairs of picture and caption."""
        lines = [f"{_count(n, 'picture')} with captions {_TOLD[source]}" for source, n in self.sources.items()]
        wordings = sum(len(picture.captions) for picture in self.pictures)
        if wordings > len(self.pictures):
            lines.append(f"{wordings:,} captions: {wordings / len(self.pictures):.1f} for each picture")
        for picture in _spread(self.pictures, pairs):
            more = f" (+ {len(picture.captions) - 1} more)" if len(picture.captions) > 1 else ""
            lines.append(f"  {shown(picture.path)}: {shown(picture.captions[0], 100)}{more}")
        if self.uncaptioned:
            some = named(self.uncaptioned)
            lines.append(f"left out, no caption: {_count(len(self.uncaptioned), 'picture')} ({some})")
        if self.missing:
            some = named(self.missing)
            lines.append(f"named by metadata, but no picture there: {_count(len(self.missing), 'file')} ({some})")
        if self.skipped:
            some = named([f"{path}: {why}" for path, why in self.skipped])
            lines.append(f"passed over: {len(self.skipped):,} ({some})")
        return [*lines, *self.notes]


def read(
    folder: str | Path,
    captions: str = "auto",
    caption: str | None = None,
    template: str | None = None,
) -> Listing:
    """List the pictures of `folder` (and its sub-folders) with their captions.

    `captions`: "txt" takes `name.txt` beside `name.jpg`, a wording a line; "metadata" takes metadata.jsonl and
    metadata.csv; "folders" puts the folder's name into `template` ("a photo of a {name}"), "names" the file's.
    "auto" takes metadata, else the .txt file, else, where these caption less than half of the pictures and at
    least two folders hold pictures, the folder's name. `caption` gives all pictures this one. Pictures without
    words are left out. Raises InputError, naming the mend, where nothing is left or something cannot be read.
    """
    folder = Path(folder)
    if captions not in get_args(Mode):
        raise InputError(f"--captions {captions}: unknown; choose one of {', '.join(get_args(Mode))}")
    if template is not None and "{name}" not in template:
        raise InputError(f'--template "{template}": holds no {{name}}; write for example "{wording.TEMPLATE}"')
    if caption is not None and captions != "auto":
        raise InputError(f"--caption and --captions {captions} exclude each other; give one of them")
    if caption is not None and not wording.clean(caption):
        raise InputError("--caption: empty; give the words that all pictures share")
    found = image_files.find(folder)
    if not found.pictures:
        kinds = ", ".join(sorted(image_files.SUFFIXES))
        raise InputError(f"{folder}: no pictures in it; give a folder that holds some ({kinds})")
    reader = _Reader(folder, found, template)
    words = reader.words(captions, caption)
    taken = tuple(Captioned(path, *words[path]) for path in found.pictures if path in words)
    if not taken:
        raise InputError(_no_captions(folder, captions, len(found.pictures)))
    return Listing(
        folder,
        taken,
        uncaptioned=tuple(path for path in found.pictures if path not in words),
        missing=tuple(reader.missing),
        skipped=found.skipped,
        notes=tuple(reader.notes),
    )


class _Reader:
    """The sources of one folder, each a map from a picture's path to its wordings."""

    def __init__(self, folder: Path, found: Found, template: str | None) -> None:
        self.folder, self.found, self.template = folder, found, template
        self.missing: list[str] = []
        self.notes: list[str] = []

    def words(self, mode: str, caption: str | None) -> dict[str, tuple[tuple[str, ...], Source]]:
        if caption is not None:
            return {path: ((wording.clean(caption),), "caption") for path in self.found.pictures}
        if mode != "auto":
            source: dict[str, Source] = {"txt": "txt", "metadata": "metadata", "folders": "folders", "names": "names"}
            return {path: (words, source[mode]) for path, words in getattr(self, mode)().items()}
        taken: dict[str, tuple[tuple[str, ...], Source]] = {}
        taken.update({path: (words, "txt") for path, words in self.txt().items()})
        taken.update({path: (words, "metadata") for path, words in self.metadata().items()})
        if 2 * len(taken) < len(self.found.pictures):
            named_folders = self.folders()
            if len({wording.class_name(path) for path in named_folders}) >= 2:
                taken = {path: (words, "folders") for path, words in named_folders.items()} | taken
        return taken

    def metadata(self) -> dict[str, tuple[str, ...]]:
        """By metadata.jsonl and metadata.csv in any folder; names are matched in any Unicode composition."""
        composed = {unicodedata.normalize("NFC", path): path for path in self.found.pictures}
        there = set(self.found.pictures)
        wordings: dict[str, list[str]] = {}
        for path in self.found.metadata:
            for name, captions in metadata.rows(self.folder, path):
                picture = name if name in there else composed.get(unicodedata.normalize("NFC", name))
                if picture is None:
                    self.missing.append(name)
                else:
                    wordings.setdefault(picture, []).extend(captions)
        self.missing = list(dict.fromkeys(self.missing))
        words = _cleaned(wordings)
        if wordings and not words:
            known = ", ".join(metadata.COLUMNS)
            self.notes.append(f"{named(self.found.metadata)}: no captions in it (looked for {known})")
        return words

    def txt(self) -> dict[str, tuple[str, ...]]:
        """By `name.txt` beside `name.jpg`, each line that is not empty a wording."""
        stems = {path.rsplit(".", 1)[0]: path for path in self.found.texts}
        wordings: dict[str, list[str]] = {}
        foreign: list[str] = []
        for picture in self.found.pictures:
            text = stems.get(picture.rsplit(".", 1)[0])
            if text is None:
                continue
            try:
                raw = (self.folder / text).read_bytes()
            except OSError as error:
                self.notes.append(f"{shown(text)}: cannot be read ({error.strerror})")
                continue
            try:
                wordings[picture] = metadata.decode(raw).splitlines()
            except UnicodeDecodeError:
                foreign.append(text)
                wordings[picture] = raw.decode("cp1252", "replace").splitlines()
        if foreign:
            self.notes.append(f"not UTF-8, read as Windows-1252: {_count(len(foreign), 'file')} ({named(foreign)})")
        return _cleaned(wordings)

    def folders(self) -> dict[str, tuple[str, ...]]:
        """By the name of the innermost folder that is a name."""
        return self._filled({path: wording.class_name(path) for path in self.found.pictures})

    def names(self) -> dict[str, tuple[str, ...]]:
        """By the file's own name."""
        return self._filled({path: wording.stem_words(path) for path in self.found.pictures})

    def _filled(self, names: dict[str, str]) -> dict[str, tuple[str, ...]]:
        template = self.template or wording.TEMPLATE
        return {path: (wording.fill(template, name),) for path, name in names.items() if name}


def _cleaned(wordings: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
    tidy = {path: tuple(dict.fromkeys(filter(None, map(wording.clean, lines)))) for path, lines in wordings.items()}
    return {path: lines for path, lines in tidy.items() if lines}


def _no_captions(folder: Path, mode: str, count: int) -> str:
    mend = {
        "txt": "put name.txt beside name.jpg",
        "metadata": 'put a metadata.jsonl with "file_name" and "text" beside them',
        "folders": "put each class into a folder with its name",
        "names": "give the files names with words",
        "auto": 'put name.txt beside name.jpg, or a metadata.jsonl, or class folders, or give --caption "…"',
    }[mode]
    return f"{folder}: {_count(count, 'picture')} but no captions; {mend}"


def _spread(items: Sequence[Captioned], count: int) -> list[Captioned]:
    """Evenly spread, different captions first."""
    different = list({item.captions[0]: item for item in reversed(items)}.values())[::-1]
    chosen = different if len(different) >= count else items
    count = min(count, len(chosen))
    return [chosen[i * len(chosen) // count] for i in range(count)]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def shown(text: str, width: int = 60) -> str:
    """Text that is safe to print: no control characters or half characters, cut to `width`."""
    plain = "".join(c if c.isprintable() else "�" for c in text)
    return plain if len(plain) <= width else plain[: width - 1] + "…"


def named(names: Sequence[str], count: int = 3) -> str:
    """The first few names, and that there are more."""
    return ", ".join(shown(name) for name in names[:count]) + (", …" if len(names) > count else "")
