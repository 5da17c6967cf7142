"""Which files of a folder are images, which are .txt captions and which are metadata files."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from unspeckle.errors import InputError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
METADATA_NAMES = frozenset({"metadata.jsonl", "metadata.csv"})


@dataclass(frozen=True)
class FolderScan:
    """The files of a folder and its subfolders. Every path is relative to the folder, with forward slashes."""

    images: tuple[str, ...]
    """Image files by their suffix, sorted."""
    txt_files: frozenset[str]
    """Files that end in .txt."""
    metadata_files: tuple[str, ...]
    """Files called metadata.jsonl or metadata.csv, sorted."""
    skipped: tuple[tuple[str, str], ...]
    """(path, reason) of broken links, pipes and unreadable folders, sorted."""


def scan_folder(folder: Path) -> FolderScan:
    """List the files of `folder` and its subfolders.

    Links are followed, but no folder is entered twice. Hidden files and folders are left out.
    Raises InputError if `folder` is not a folder that can be read.
    """
    if not folder.exists():
        raise InputError(f"{folder}: no such folder; give the folder that holds the images")
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; give the folder that holds the images")
    images: list[str] = []
    txt_files: set[str] = set()
    metadata_files: list[str] = []
    skipped: list[tuple[str, str]] = []
    visited: set[tuple[int, int]] = set()
    pending_folders = [""]
    # Folders behind links wait until every real folder has been visited under its own name.
    linked_folders: list[str] = []
    while pending_folders or linked_folders:
        subfolder = pending_folders.pop() if pending_folders else linked_folders.pop(0)
        try:
            status = (folder / subfolder).stat()
            if (status.st_dev, status.st_ino) in visited:
                continue
            # File systems without file numbers report 0; they have no links either.
            if status.st_ino:
                visited.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(folder / subfolder), key=lambda entry: entry.name)
        except OSError as error:
            if not subfolder:
                raise InputError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from error
            skipped.append((subfolder, error.strerror or "cannot be read"))
            continue
        for entry in entries:
            name = entry.name
            if name.startswith(".") or name == "__MACOSX":
                continue
            path = f"{subfolder}/{name}" if subfolder else name
            # os.path and not pathlib: Path is ten times slower, and there may be a million names.
            suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122
            if entry.is_dir():
                (linked_folders if entry.is_symlink() else pending_folders).append(path)
            elif suffix in IMAGE_SUFFIXES:
                reason = _unusable_reason(entry)
                if reason:
                    skipped.append((path, reason))
                else:
                    images.append(path)
            elif name.lower() in METADATA_NAMES:
                metadata_files.append(path)
            elif suffix == ".txt":
                txt_files.add(path)
    return FolderScan(
        tuple(sorted(images)), frozenset(txt_files), tuple(sorted(metadata_files)), tuple(sorted(skipped))
    )


def _unusable_reason(entry: os.DirEntry[str]) -> str:
    """Why the entry cannot be an image, or ""."""
    try:
        mode = entry.stat().st_mode
    except OSError:
        return "broken link"
    return "" if stat.S_ISREG(mode) else "not a regular file"
