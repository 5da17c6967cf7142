"""Helpers for tests of kernels and precisions: random tensors, errors, and a kernel that is loaded anew."""

import math
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from unspeckle.kernels import compiling


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers of that shape, the same for the same seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """‖actual - expected‖ / ‖expected‖, in float64."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def module_types(module: nn.Module) -> set[type]:
    """The classes of the module and of all modules in it."""
    return {type(submodule) for submodule in module.modules()}


def reload_kernel(kernel_module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For a fixture: loads the kernel anew as on a processor without AMX, where it is used. Restores the number of
    threads afterwards."""
    features_without_amx, threads = compiling.cpu_features() - {"amx_bf16"}, torch.get_num_threads()
    monkeypatch.setattr(kernel_module, "cpu_features", lambda: features_without_amx)
    kernel_module._load_kernel.cache_clear()
    yield
    torch.set_num_threads(threads)
    kernel_module._load_kernel.cache_clear()


def psnr(one: Image.Image, other: Image.Image) -> float:
    """The peak signal-to-noise ratio of two images in decibels; 138 for equal ones."""
    difference = np.asarray(one, float) - np.asarray(other, float)
    return 10 * math.log10(255**2 / max(float((difference**2).mean()), 1e-9))
