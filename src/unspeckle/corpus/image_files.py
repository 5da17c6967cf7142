"""Which files of a folder are pictures."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from unspeckle.errors import InputError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


@dataclass(frozen=True)
class Found:
    """What a walk through a folder met; every path is relative to it, with forward slashes, sorted."""

    pictures: tuple[str, ...]
    texts: frozenset[str]  # .txt files
    metadata: tuple[str, ...]  # metadata.jsonl and metadata.csv
    skipped: tuple[tuple[str, str], ...]  # (path, why): broken links, pipes, folders that may not be entered


def find(folder: Path) -> Found:
    """Walk through `folder`, following links but entering no folder twice; hidden files and folders stay out.

    Raises InputError where `folder` is not a folder that can be read.
    """
    if not folder.exists():
        raise InputError(f"{folder}: no such folder; give the folder that holds the pictures")
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; give the folder that holds the pictures")
    pictures: list[str] = []
    texts: set[str] = set()
    metadata: list[str] = []
    skipped: list[tuple[str, str]] = []
    entered: set[tuple[int, int]] = set()
    links: list[str] = []  # folders behind links wait until every real folder was entered under its own name
    waiting = [""]
    while waiting or links:
        here = waiting.pop() if waiting else links.pop(0)
        try:
            about = (folder / here).stat()
            if (about.st_dev, about.st_ino) in entered:
                continue
            entered.add((about.st_dev, about.st_ino))
            entries = sorted(os.scandir(folder / here), key=lambda entry: entry.name)
        except OSError as error:
            if not here:
                raise InputError(f"{folder}: cannot be read ({error.strerror}); mend its permissions") from error
            skipped.append((here, error.strerror or "cannot be entered"))
            continue
        for entry in entries:
            name = entry.name
            if name.startswith(".") or name == "__MACOSX":
                continue
            path = f"{here}/{name}" if here else name
            suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - a million names: Path is ten times slower
            if entry.is_dir():
                (links if entry.is_symlink() else waiting).append(path)
            elif suffix in SUFFIXES:
                why = _unusable(entry)
                if why:
                    skipped.append((path, why))
                else:
                    pictures.append(path)
            elif name.lower() in ("metadata.jsonl", "metadata.csv"):
                metadata.append(path)
            elif suffix == ".txt":
                texts.add(path)
    return Found(tuple(sorted(pictures)), frozenset(texts), tuple(sorted(metadata)), tuple(sorted(skipped)))


def _unusable(entry: os.DirEntry[str]) -> str:
    try:
        mode = entry.stat().st_mode
    except OSError:
        return "a link that leads nowhere"
    return "" if stat.S_ISREG(mode) else "not a regular file"
