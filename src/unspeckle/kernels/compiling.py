"""C++ beside this file, compiled at its first use and kept in the user's cache."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import torch

from unspeckle.atomic import replacing

_FLAGS = ("-O3", "-std=c++20", "-shared", "-fPIC", "-fopenmp")


@cache
def processor() -> frozenset[str]:
    """What the processor can do, by Linux's names; nothing is known of other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    said = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(said.partition(":")[2].split())


def compiled(source: str, *features: str) -> ctypes.CDLL:
    """The library made from a file beside this one, for processors with these features (of GCC's names). OSError where
    there is no compiler, it fails, or there is nowhere to keep the library."""
    file = Path(__file__).with_name(source)
    root = Path(torch.__file__).parent
    flags = (*_FLAGS, *(f"-m{feature}" for feature in features))
    said = (file.read_text(encoding="utf-8"), flags, torch.__version__, platform.machine(), sys.platform)
    made = _home() / "unspeckle" / "kernels" / f"{file.stem}-{hashlib.sha256(repr(said).encode()).hexdigest()[:16]}.so"
    if not made.is_file():
        compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
        if compiler is None:
            raise OSError("there is no C++ compiler")
        with replacing(made) as beside:
            links = (f"-I{root / 'include'}", f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10")
            command = [compiler, *flags, str(file), "-o", str(beside), *links]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
            if done.returncode:
                raise OSError(f"{compiler} cannot compile {source}: {done.stderr[:200]}")
    return ctypes.CDLL(str(made))


def _home() -> Path:
    """The user's cache. OSError for users who have no home, as in some containers."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as e:
        raise OSError(str(e)) from e
