"""Files that are either the old one or the complete new one, and folders that are filled completely or not at all, even
if the process is killed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What the files are called while they are written
PARTIAL_FILES = ".unspeckle-*.part"
_UMASK = os.umask(0o022)
# It can only be read by setting it.
os.umask(_UMASK)


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to. The file replaces `path` when the block ends without an error, else it is deleted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_path(path.parent)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        # Some writers create files that only their owner can read.
        temporary.chmod(0o666 & ~_UMASK)
        temporary.replace(path)
    except OSError as error:
        _name_target(error, temporary, path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def create_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder to fill. It gets the name of `folder` when the block ends without an error; otherwise it is
    deleted with its content. Where `folder` exists and is empty, it stays what it is, also a link or a mount point, and
    is filled at the end."""
    exists = folder.is_dir()
    temporary = _temporary_path(folder if exists else folder.parent)
    temporary.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.mkdir()
        yield temporary
        if exists:
            for entry in list(temporary.iterdir()):
                entry.rename(folder / entry.name)
        else:
            temporary.rename(folder)
    except OSError as error:
        _name_target(error, temporary, folder)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, replacing what it contained."""
    with replace_file(path) as temporary:
        temporary.write_bytes(data)


def write_new_bytes(path: Path, data: bytes) -> bool:
    """Write `data` to `path` unless it exists. Returns whether it was written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_path(path.parent)
    try:
        temporary.write_bytes(data)
        try:
            # Unlike a rename, this fails where the path exists.
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:
            # The file system has no links.
            if path.exists():
                return False
            temporary.replace(path)
        return True
    except OSError as error:
        _name_target(error, temporary, path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _temporary_path(folder: Path) -> Path:
    """A path in the folder that no other process uses."""
    return folder / f".unspeckle-{os.getpid()}-{os.urandom(4).hex()}.part"


def _name_target(error: OSError, temporary: Path, path: Path) -> None:
    """Make the error name the file that was to be written: that of a full disk names none, others the temporary one."""
    if error.errno is not None and (error.filename is None or str(error.filename).startswith(str(temporary))):
        error.filename = str(path)
