"""Compiles the C++ files of this folder at their first use, and keeps the libraries in the user's cache folder."""

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
from torch import Tensor

from unspeckle.atomic import replace_file

REQUIRED_FEATURES = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512bf16")  # as GCC names them
_COMPILER_FLAGS = ("-O3", "-std=c++20", "-shared", "-fPIC", "-fopenmp")
# Variables that restrict the instructions of oneDNN, which may then refuse a kernel's matrix products.
_RESTRICTING_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")


@cache
def cpu_features() -> frozenset[str]:
    """The processor's features, by Linux's names; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    flags_line = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags_line.partition(":")[2].split())


def load_kernels(source: str, *functions: str) -> ctypes.CDLL | None:
    """The library compiled from the file source of this folder, which must have these functions without a result.

    None if the processor lacks a feature, oneDNN's instructions are restricted, the file cannot be compiled or stored,
    or the environment variable UNSPECKLE_KERNELS=0 is set."""
    required = {feature.replace("avx512bf16", "avx512_bf16") for feature in REQUIRED_FEATURES}
    is_restricted = any(variable in os.environ for variable in _RESTRICTING_VARIABLES)
    if os.environ.get("UNSPECKLE_KERNELS") == "0" or is_restricted or not required <= cpu_features():
        return None
    try:
        library = compile_library(source)
        for name in functions:
            getattr(library, name).restype = None
    except (OSError, AttributeError):
        return None
    return library


def compile_library(source: str) -> ctypes.CDLL:
    """The library of that file, compiled unless it is in the cache. OSError if there is no compiler, it fails, or the
    library cannot be stored."""
    source_file = Path(__file__).with_name(source)
    flags = (*_COMPILER_FLAGS, *(f"-m{feature}" for feature in REQUIRED_FEATURES))
    library_file = _library_file(source_file, flags)
    if not library_file.is_file():
        compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
        if compiler is None:
            raise OSError("there is no C++ compiler")
        torch_folder = Path(torch.__file__).parent
        link_flags = (f"-I{torch_folder / 'include'}", f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10")
        with replace_file(library_file) as temporary_file:
            command = [compiler, *flags, str(source_file), "-o", str(temporary_file), *link_flags]
            result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
            if result.returncode:
                raise OSError(f"{compiler} cannot compile {source}: {result.stderr[:200]}")
    return ctypes.CDLL(str(library_file))


def tensor_pointer(tensor: Tensor | None) -> ctypes.c_void_p | None:
    """The address of the tensor's first value, as an argument of a kernel; None becomes a null pointer."""
    return None if tensor is None else ctypes.c_void_p(tensor.data_ptr())


def _library_file(source_file: Path, flags: tuple[str, ...]) -> Path:
    """Where the library is cached: its name depends on everything that it is compiled from."""
    source_texts = [path.read_text(encoding="utf-8") for path in (source_file, *sorted(source_file.parent.glob("*.h")))]
    key = repr((source_texts, flags, torch.__version__, platform.machine(), sys.platform))
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    return _cache_folder() / "unspeckle" / "kernels" / f"{source_file.stem}-{digest}.so"


def _cache_folder() -> Path:
    """The user's cache folder. OSError for users without a home folder, as in some containers."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as e:
        raise OSError(str(e)) from e
