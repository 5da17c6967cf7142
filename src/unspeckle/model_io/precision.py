"""In which precision a model draws, and what this machine is fast at."""

import ctypes
import math
import sys
import time

import torch

from unspeckle.errors import InputError
from unspeckle.kernels.packed_layers import cast_for_inference
from unspeckle.model import Model
from unspeckle.quantization.int8_layers import can_quantize, quantize_layers

AUTO = "auto"
INT8 = "int8"  # of the network's large products, see networks/quantised.py; all else is then bfloat16
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, INT8: torch.bfloat16}


def check_precision(name: str, device: str) -> str:
    """The name, if it is one of a precision that the device has, or "auto". InputError where it is not."""
    if name != AUTO and name not in PRECISIONS:
        raise InputError(f" {name!r}: unknown; choose one of {AUTO}, {', '.join(PRECISIONS)}", "precision")
    if name == INT8 and device != "cpu":
        raise InputError(f" {INT8}: runs on a CPU only, not on {device}; choose bfloat16, or `device` cpu", "precision")
    if name == INT8 and not can_quantize():
        raise InputError(
            f" {INT8}: needs a processor with AVX-512 VNNI, and oneDNN in torch; choose bfloat16", "precision"
        )
    return name


def resolve_precision(name: str, device: str) -> str:
    """The precision that a Stable Diffusion is to draw in: of "auto", bfloat16 where it pays, and nothing lossier."""
    return name if name != AUTO else "bfloat16" if is_faster_in(device, torch.bfloat16) else "float32"


def set_precision(model: Model, name: str) -> Model:
    """The model, changed in place to draw in that precision: its networks and its autoencoder; words are read in
    float32, once a drawing. It keeps its hash, which tells its weights as they were stored. InputError where it was
    made to draw in another lower one, or its device has no such."""
    check_precision(name, str(model.device))
    if name == model.precision:
        return model
    if model.precision != "float32":
        raise InputError(f"{model.card.name!r}: draws in {model.precision} and cannot go back; load it anew")
    model.stored_hash = model.weights_hash
    model.precision = name
    for one in (model, model.student):
        if one is not None:
            if name == INT8:
                quantize_layers(one.network)
            cast_for_inference(one.network, PRECISIONS[name])
    if next(model.autoencoder.parameters(), None) is not None:
        cast_for_inference(model.autoencoder, PRECISIONS[name])
    return model


def is_faster_in(device: str, dtype: torch.dtype) -> bool:
    """Whether the hardware multiplies that precision faster than float32. Asked up to three times, the best of each
    counting, as a busy moment must not decide how a model learns."""
    lower, full = math.inf, math.inf
    for _ in range(3):
        lower, full = min(lower, time_convolution(device, dtype)), min(full, time_convolution(device, torch.float32))
        if lower < 0.8 * full:
            return True
    return False


def time_convolution(device: str, dtype: torch.dtype) -> float:
    """Of a convolution as the networks here have them, the best of five."""
    x = torch.randn(32, 128, 16, 16, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    layer = torch.nn.Conv2d(128, 128, 3, padding=1, device=device, dtype=dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    taken = []
    with torch.no_grad():
        for _ in range(6):
            start = time.perf_counter()
            layer(x)
            synchronize(device)
            taken.append(time.perf_counter() - start)
    return min(taken[1:])


def synchronize(device: str) -> None:
    """Until the device has done what it was told."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def keep_freed_memory() -> None:
    """Ask glibc to keep what is freed, but for blocks over 32 MiB: it gives all large ones back at once, and each step
    pays for their pages again, a twentieth of its time. For a process that does little but draw."""
    if sys.platform == "linux":
        try:
            mallopt = ctypes.CDLL(None).mallopt
        except AttributeError:  # another C library
            return
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, at most this
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
