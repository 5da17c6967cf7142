"""The RUN folder of a training: who may use it, and the lock that keeps a second process out."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from unspeckle.atomic import PARTIAL_FILES
from unspeckle.errors import InputError
from unspeckle.model_io.device import resolve_device
from unspeckle.training.inputs import TOKENIZER_FILE
from unspeckle.training.plan import Plan

LOCK_FILE = ".lock"
# Some of the captions that a model was trained on, one a line, for `distil`
CAPTIONS_FILE = "captions.txt"


def check_run_folder(run_folder: Path, plan: Plan | None) -> None:
    """InputError if the folder cannot be a new RUN, or if the plan of a RUN cannot be continued on this machine."""
    if plan is not None:
        try:
            resolve_device(plan.compute.device)
        except InputError as error:
            message = f"{run_folder}: this run began on {plan.compute.device}, which is not here; give another --out"
            raise InputError(message) from error
        return
    if run_folder.exists() and not run_folder.is_dir():
        raise InputError(f" {run_folder}: is a file; give a folder", "out")
    if not run_folder.is_dir():
        return
    names = {entry.name for entry in run_folder.iterdir() if not entry.match(PARTIAL_FILES)}
    # A run that was killed before its plan was written leaves these.
    if LOCK_FILE in names:
        names -= {LOCK_FILE, TOKENIZER_FILE, CAPTIONS_FILE}
    if names:
        raise InputError(f" {run_folder}: contains other files; give a new or an empty folder", "out")


@contextmanager
def lock_run(run_folder: Path) -> Iterator[None]:
    """Make the folder, and keep other processes from training in it; the lock ends with the process, however it ends.
    InputError if another process trains there."""
    try:
        run_folder.mkdir(parents=True, exist_ok=True)
        file = (run_folder / LOCK_FILE).open("w")
    except OSError as error:
        raise InputError(f" {run_folder}: cannot be written ({error.strerror}); give another folder", "out") from error
    with file:
        if not _try_lock(file):
            raise InputError(f"{run_folder}: another process trains there; wait, or give another --out")
        # Of a process that was killed
        for partial_file in run_folder.rglob(PARTIAL_FILES):
            partial_file.unlink()
        yield


def _try_lock(file: IO[str]) -> bool:
    """Lock the file for this process; False if another process has locked it."""
    try:
        import fcntl
    except ImportError:
        return _try_lock_on_windows(file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _try_lock_on_windows(file: IO[str]) -> bool:
    import msvcrt

    try:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except OSError:
        return False
    return True
