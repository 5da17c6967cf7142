"""The tensors of a .safetensors file that may be anything, and whether they are those that are wanted."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unspeckle.errors import InputError


def is_pickle(file: Path) -> bool:
    """Whether the file begins as torch's old formats do, which can run code."""
    with file.open("rb") as opened:
        return opened.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def read_metadata(file: Path, again: str = "train") -> dict[str, str]:
    """What a .safetensors file says of itself, its tensors unread. InputError where it is none, or damaged."""
    with open_safetensors(file, again) as opened:
        return opened.metadata() or {}


def read_safetensors(file: Path, again: str = "train") -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and the tensors, as stored, of a .safetensors file. InputError where it is none, or damaged."""
    with open_safetensors(file, again) as opened:
        return opened.metadata() or {}, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


@contextmanager
def open_safetensors(file: Path, again: str) -> Iterator[Any]:
    """The opened file. What is wrong with it is looked for only where it cannot be opened."""
    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    except SafetensorError as e:
        raise _why_unreadable(file, again, e) from e


def _why_unreadable(file: Path, again: str, error: Exception) -> InputError:
    with file.open("rb") as opened:
        start = opened.read(9)
    if not start:
        return InputError(f"{file}: the file is empty; copy or {again} the model again")
    if is_pickle(file):
        return InputError(f"{file}: is a pickle, which can run code and is never loaded; get it as .safetensors")
    if start[8:] != b"{":
        return InputError(f"{file}: is no .safetensors file; give one")
    return InputError(f"{file}: is damaged or cut off ({str(error)[:100]}); copy or {again} it again")


def check_tensors(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], file: Path, again: str = "train"
) -> None:
    """InputError, naming the first tensor that is missing, spare, ill-shaped or not finite. again: what mends it."""
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise InputError(f"{file}: lacks the tensor '{name}'; copy or {again} it again")
        if name not in expected:
            raise InputError(f"{file}: has a spare tensor '{name}' that its configuration does not know")
        if expected[name].shape != found[name].shape:
            stored, shape = tuple(found[name].shape), tuple(expected[name].shape)
            raise InputError(f"{file}: tensor '{name}' is {stored}, its configuration says {shape}")
        if expected[name].is_floating_point() != found[name].is_floating_point():
            raise InputError(f"{file}: tensor '{name}' holds {found[name].dtype}, which does not fit")
        if not is_finite(found[name]):
            raise InputError(f"{file}: tensor '{name}' holds values that are not finite; {again} it again")


def is_finite(values: Tensor) -> bool:
    """Whether all values are finite. A finite sum has only finite parts, and is found sooner."""
    values = values.float() if values.element_size() == 1 else values  # float8 knows no isfinite
    return math.isfinite(float(values.sum(dtype=torch.float32))) or bool(values.isfinite().all())
