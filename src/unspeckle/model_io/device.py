"""On which device a model computes."""

import torch

from unspeckle.errors import InputError

DEVICE_TYPES = ("cpu", "cuda", "mps")


def default_device() -> str:
    """A CUDA GPU where there is one, otherwise the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def resolve_device(device: str | None) -> str:
    """The name of a device that this machine has: the one given, such as "cpu", "cuda", "cuda:1" or "mps", or for None
    the default one. InputError where there is no such device."""
    if device is None:
        return default_device()
    kind, _, index = device.partition(":")
    if kind not in DEVICE_TYPES:
        raise InputError(f" {device!r}: unknown; choose cpu, cuda or mps", "device")
    if device != "cpu" and not ((index or "0").isdecimal() and int(index or "0") < _device_count(kind)):
        raise InputError(f" {device}: there is no such device on this machine; choose cpu", "device")
    return device


def _device_count(kind: str) -> int:
    """How many devices of that kind can be chosen by an index."""
    if kind == "cuda":
        return torch.cuda.device_count()
    return int(kind == "mps" and torch.backends.mps.is_available())
