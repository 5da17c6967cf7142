"""Tensors of .safetensors files from any source, and whether they are those that a module needs."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unspeckle.errors import InputError

_PICKLE_STARTS = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # a zip archive, or pickle's protocols


def is_pickle(file: Path) -> bool:
    """Whether the file begins as torch's older formats do, which can run code."""
    with file.open("rb") as opened:
        return opened.read(2) in _PICKLE_STARTS


def read_metadata(file: Path, remedy: str = "train") -> dict[str, str]:
    """The metadata of a .safetensors file, without reading its tensors. Errors as `read_safetensors`."""
    with open_safetensors(file, remedy) as opened:
        return opened.metadata() or {}


def read_safetensors(file: Path, remedy: str = "train") -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and the tensors of a .safetensors file, these as stored and mapped into memory.

    remedy: what helps besides copying the file again, "train" or "download". InputError where it is no such file, or a
    damaged one."""
    with open_safetensors(file, remedy) as opened:
        return opened.metadata() or {}, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


@contextmanager
def open_safetensors(file: Path, remedy: str) -> Iterator[Any]:
    """The opened file. Only where it cannot be opened is it examined for the reason."""
    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    except SafetensorError as e:
        raise _why_unreadable(file, remedy, e) from e


def _why_unreadable(file: Path, remedy: str, error: Exception) -> InputError:
    with file.open("rb") as opened:
        start = opened.read(9)
    if not start:
        return InputError(f"{file}: the file is empty; copy or {remedy} the model again")
    if start.startswith(_PICKLE_STARTS):
        return InputError(f"{file}: is a pickle, which can run code and is never loaded; get it as .safetensors")
    if start[8:] != b"{":
        return InputError(f"{file}: is not a .safetensors file; give one")
    return InputError(f"{file}: is damaged or cut off ({str(error)[:100]}); copy or {remedy} it again")


def check_tensors(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], file: Path, remedy: str = "train"
) -> None:
    """InputError, naming the first, where a tensor is missing, unexpected, of another shape or kind, or not finite.
    remedy: what helps besides copying the file again."""
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise InputError(f"{file}: lacks the tensor '{name}'; copy or {remedy} it again")
        if name not in expected:
            raise InputError(f"{file}: has an unexpected tensor '{name}' that its configuration does not include")
        if expected[name].shape != found[name].shape:
            stored, shape = tuple(found[name].shape), tuple(expected[name].shape)
            raise InputError(f"{file}: tensor '{name}' is {stored}, but its configuration says {shape}")
        if expected[name].is_floating_point() != found[name].is_floating_point():
            raise InputError(f"{file}: tensor '{name}' holds {found[name].dtype}, which does not fit")
        if not is_finite(found[name]):
            raise InputError(f"{file}: tensor '{name}' holds values that are not finite; {remedy} it again")


def is_finite(values: Tensor) -> bool:
    """Whether all values are finite. If their sum is, they are, which is found faster."""
    values = values.float() if values.element_size() == 1 else values  # float8 has no isfinite
    return math.isfinite(float(values.sum(dtype=torch.float32))) or bool(values.isfinite().all())
