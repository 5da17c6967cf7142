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

from unspeckle.atomic import replace_file

NEEDS = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512bf16")  # as GCC names them
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


def kernels(source: str, *functions: str) -> ctypes.CDLL | None:
    """The library with these functions, which return nothing; None where the processor lacks what it needs or oneDNN is
    told to do with less, it cannot be compiled or kept, torch is built otherwise, or UNSPECKLE_KERNELS=0 is set."""
    wanted = {feature.replace("avx512bf16", "avx512_bf16") for feature in NEEDS}
    lowered = {"ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"} & set(os.environ)  # then its products may be refused midway
    if os.environ.get("UNSPECKLE_KERNELS") == "0" or lowered or not wanted <= processor():
        return None
    try:
        library = compiled(source)
        for name in functions:
            getattr(library, name).restype = None
    except (OSError, AttributeError):
        return None
    return library


def compiled(source: str) -> ctypes.CDLL:
    """The library made from a file beside this one. OSError where there is no compiler, it fails, or there is nowhere
    to keep the library."""
    file = Path(__file__).with_name(source)
    root = Path(torch.__file__).parent
    flags = (*_FLAGS, *(f"-m{feature}" for feature in NEEDS))
    texts = [one.read_text(encoding="utf-8") for one in (file, *sorted(file.parent.glob("*.h")))]
    said = (texts, flags, torch.__version__, platform.machine(), sys.platform)
    made = _home() / "unspeckle" / "kernels" / f"{file.stem}-{hashlib.sha256(repr(said).encode()).hexdigest()[:16]}.so"
    if not made.is_file():
        compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
        if compiler is None:
            raise OSError("there is no C++ compiler")
        with replace_file(made) as beside:
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
