"""What tests of our own kernels share: numbers, how far off an answer is, and a kernel asked anew."""

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor

from unspeckle.kernels import compiling


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def off(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


def anew(kernel: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernel asked anew, on a processor that has no AMX even where it has: elsewhere it is not used."""
    known, threads = compiling.cpu_features() - {"amx_bf16"}, torch.get_num_threads()
    monkeypatch.setattr(kernel, "cpu_features", lambda: known)
    kernel._load_kernel.cache_clear()
    yield
    torch.set_num_threads(threads)
    kernel._load_kernel.cache_clear()
