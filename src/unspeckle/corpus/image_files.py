"""Which files of a folder are pictures."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from unspeckle.errors import InputError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


@dataclass(frozen=True)
class FolderScan:
    """What a walk through a folder met; every path is relative to it, with forward slashes, sorted."""

    images: tuple[str, ...]
    txt_files: frozenset[str]  # .txt files
    metadata_files: tuple[str, ...]  # metadata.jsonl and metadata.csv
    skipped: tuple[tuple[str, str], ...]  # (path, why): broken links, pipes, folders that may not be entered


def scan_folder(folder: Path) -> FolderScan:
    """Walk through `folder`, following links but entering no folder twice; hidden files and folders stay out.

    Raises InputError where `folder` is not a folder that can be read.
    """
    if not folder.exists():
        raise InputError(f"{folder}: no such folder; give the folder that holds the pictures")
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; give the folder that holds the pictures")
    images: list[str] = []
    txt_files: set[str] = set()
    metadata_files: list[str] = []
    skipped: list[tuple[str, str]] = []
    visited: set[tuple[int, int]] = set()
    linked_folders: list[str] = []  # folders behind links wait until every real folder was entered under its own name
    pending_folders = [""]
    while pending_folders or linked_folders:
        subfolder = pending_folders.pop() if pending_folders else linked_folders.pop(0)
        try:
            status = (folder / subfolder).stat()
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(folder / subfolder), key=lambda entry: entry.name)
        except OSError as error:
            if not subfolder:
                raise InputError(f"{folder}: cannot be read ({error.strerror}); mend its permissions") from error
            skipped.append((subfolder, error.strerror or "cannot be entered"))
            continue
        for entry in entries:
            name = entry.name
            if name.startswith(".") or name == "__MACOSX":
                continue
            path = f"{subfolder}/{name}" if subfolder else name
            suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - a million names: Path is ten times slower
            if entry.is_dir():
                (linked_folders if entry.is_symlink() else pending_folders).append(path)
            elif suffix in IMAGE_SUFFIXES:
                reason = _unusable_reason(entry)
                if reason:
                    skipped.append((path, reason))
                else:
                    images.append(path)
            elif name.lower() in ("metadata.jsonl", "metadata.csv"):
                metadata_files.append(path)
            elif suffix == ".txt":
                txt_files.add(path)
    return FolderScan(
        tuple(sorted(images)), frozenset(txt_files), tuple(sorted(metadata_files)), tuple(sorted(skipped))
    )


def _unusable_reason(entry: os.DirEntry[str]) -> str:
    try:
        mode = entry.stat().st_mode
    except OSError:
        return "a link that leads nowhere"
    return "" if stat.S_ISREG(mode) else "not a regular file"
