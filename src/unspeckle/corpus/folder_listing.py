"""What `read_folder` returns: the images of a folder with their captions, and what was left out."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from unspeckle.corpus.display import format_count, make_printable, summarize_names

CaptionSource = Literal["metadata", "txt", "folders", "names", "caption"]

_SOURCE_DESCRIPTIONS: dict[CaptionSource, str] = {
    "metadata": "from metadata.jsonl or metadata.csv",
    "txt": "from .txt files with the same names",
    "folders": "from the names of their folders",
    "names": "from their file names",
    "caption": "from --caption",
}


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """An image file and its captions."""

    path: str
    """Relative to the listing's folder, with forward slashes."""
    captions: tuple[str, ...]
    """At least one; training chooses one of them each time."""
    source: CaptionSource
    """Where the captions come from."""


@dataclass(frozen=True)
class FolderListing:
    """The captioned images of a folder, and what was left out."""

    folder: Path
    images: tuple[CaptionedImage, ...]
    """Sorted by path."""
    uncaptioned: tuple[str, ...] = ()
    """Paths of images without a caption."""
    missing_files: tuple[str, ...] = ()
    """Paths in the metadata at which there is no image."""
    skipped: tuple[tuple[str, str], ...] = ()
    """(path, reason) of what could not be opened."""
    notes: tuple[str, ...] = ()
    """Remarks for the user, a line each."""

    def all_captions(self) -> Iterator[str]:
        """Every caption of every image, in the order of the images."""
        return (caption for image in self.images for caption in image.captions)

    @property
    def source_counts(self) -> dict[CaptionSource, int]:
        """The number of images by the source of their captions, the most frequent source first."""
        return dict(Counter(image.source for image in self.images).most_common())

    def describe(self, example_count: int = 5) -> list[str]:
        """A summary for a person, one string a line, with some pairs of image and caption."""
        lines = [
            f"{format_count(count, 'image')} with captions {_SOURCE_DESCRIPTIONS[source]}"
            for source, count in self.source_counts.items()
        ]
        caption_count = sum(len(image.captions) for image in self.images)
        if caption_count > len(self.images):
            lines.append(f"{caption_count:,} captions: {caption_count / len(self.images):.1f} for each image")
        for image in _sample_evenly(self.images, example_count):
            suffix = f" (+ {len(image.captions) - 1} more)" if len(image.captions) > 1 else ""
            lines.append(f"  {make_printable(image.path)}: {make_printable(image.captions[0], 100)}{suffix}")
        if self.uncaptioned:
            count, examples = format_count(len(self.uncaptioned), "image"), summarize_names(self.uncaptioned)
            lines.append(f"left out because there is no caption: {count} ({examples})")
        if self.missing_files:
            count, examples = format_count(len(self.missing_files), "file"), summarize_names(self.missing_files)
            lines.append(f"named in the metadata, but not an image in the folder: {count} ({examples})")
        if self.skipped:
            examples = summarize_names([f"{path}: {reason}" for path, reason in self.skipped])
            lines.append(f"skipped: {len(self.skipped):,} ({examples})")
        return [*lines, *self.notes]


def _sample_evenly(images: Sequence[CaptionedImage], count: int) -> list[CaptionedImage]:
    """Evenly spaced images, with different captions if there are enough of them."""
    distinct = list({image.captions[0]: image for image in reversed(images)}.values())[::-1]
    chosen = distinct if len(distinct) >= count else images
    count = min(count, len(chosen))
    return [chosen[i * len(chosen) // count] for i in range(count)]
