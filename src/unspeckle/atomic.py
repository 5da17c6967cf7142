"""Files that are either the old one or the whole new one, and folders that are filled whole or not at all, whatever
kills the process."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_UMASK = os.umask(0o022)
os.umask(_UMASK)  # it can only be read by setting it


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; it takes the place of `path` when the block ends well, else it vanishes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.parent / f".unspeckle-{os.getpid()}-{os.urandom(4).hex()}.part"
    try:
        yield beside
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.chmod(0o666 & ~_UMASK)  # some writers make files for their owner alone
        beside.replace(path)
    except OSError as error:
        name_target(error, beside, path)
        raise
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def create_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder to fill, which gets the name of `folder` when the block ends well, else vanishes with all that
    is in it. Where `folder` is there, empty, it stays what it is, a link or a mount too, and is filled at the end."""
    there = folder.is_dir()
    beside = (folder if there else folder.parent) / f".unspeckle-{os.getpid()}-{os.urandom(4).hex()}.part"
    beside.parent.mkdir(parents=True, exist_ok=True)
    try:
        beside.mkdir()
        yield beside
        if there:
            for made in list(beside.iterdir()):
                made.rename(folder / made.name)
        else:
            beside.rename(folder)
    except OSError as error:
        name_target(error, beside, folder)
        raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, replacing what stood there."""
    with replace_file(path) as beside:
        beside.write_bytes(data)


def write_new_bytes(path: Path, data: bytes) -> bool:
    """Write `data` to `path` if nothing stands there; False (and nothing written) if something does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.parent / f".unspeckle-{os.getpid()}-{os.urandom(4).hex()}.part"
    try:
        beside.write_bytes(data)
        try:
            os.link(beside, path)  # fails where the name is taken, unlike a rename
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            if path.exists():
                return False
            beside.replace(path)
        return True
    except OSError as error:
        name_target(error, beside, path)
        raise
    finally:
        beside.unlink(missing_ok=True)


def name_target(error: OSError, beside: Path, path: Path) -> None:
    """Let the error tell of the file that was to be: a full disk names none."""
    if error.errno is not None and (error.filename is None or str(error.filename).startswith(str(beside))):
        error.filename = str(path)
