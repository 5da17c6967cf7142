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

REQUIRED_FEATURES = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512bf16")  # as GCC names them
_COMPILER_FLAGS = ("-O3", "-std=c++20", "-shared", "-fPIC", "-fopenmp")


@cache
def cpu_features() -> frozenset[str]:
    """What the processor can do, by Linux's names; nothing is known of other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    flags_line = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags_line.partition(":")[2].split())


def load_kernels(source: str, *functions: str) -> ctypes.CDLL | None:
    """The library with these functions, which return nothing; None where the processor lacks what it needs or oneDNN is
    told to do with less, it cannot be compiled or kept, torch is built otherwise, or UNSPECKLE_KERNELS=0 is set."""
    required = {feature.replace("avx512bf16", "avx512_bf16") for feature in REQUIRED_FEATURES}
    restricting_variables = {"ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"} & set(
        os.environ
    )  # then its products may be refused midway
    if os.environ.get("UNSPECKLE_KERNELS") == "0" or restricting_variables or not required <= cpu_features():
        return None
    try:
        library = compile_library(source)
        for name in functions:
            getattr(library, name).restype = None
    except (OSError, AttributeError):
        return None
    return library


def compile_library(source: str) -> ctypes.CDLL:
    """The library made from a file beside this one. OSError where there is no compiler, it fails, or there is nowhere
    to keep the library."""
    source_file = Path(__file__).with_name(source)
    torch_folder = Path(torch.__file__).parent
    flags = (*_COMPILER_FLAGS, *(f"-m{feature}" for feature in REQUIRED_FEATURES))
    source_texts = [path.read_text(encoding="utf-8") for path in (source_file, *sorted(source_file.parent.glob("*.h")))]
    cache_key = (source_texts, flags, torch.__version__, platform.machine(), sys.platform)
    library_file = (
        _cache_folder()
        / "unspeckle"
        / "kernels"
        / f"{source_file.stem}-{hashlib.sha256(repr(cache_key).encode()).hexdigest()[:16]}.so"
    )
    if not library_file.is_file():
        compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
        if compiler is None:
            raise OSError("there is no C++ compiler")
        with replace_file(library_file) as temporary_file:
            link_flags = (f"-I{torch_folder / 'include'}", f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10")
            command = [compiler, *flags, str(source_file), "-o", str(temporary_file), *link_flags]
            result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
            if result.returncode:
                raise OSError(f"{compiler} cannot compile {source}: {result.stderr[:200]}")
    return ctypes.CDLL(str(library_file))


def _cache_folder() -> Path:
    """The user's cache. OSError for users who have no home, as in some containers."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as e:
        raise OSError(str(e)) from e
