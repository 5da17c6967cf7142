"""In which precision a model draws, and in which one a device computes fastest."""

import math
import os
import time

import torch

from unspeckle.errors import InputError
from unspeckle.kernels.compiling import cpu_features
from unspeckle.kernels.inference import cast_for_inference
from unspeckle.model import Model
from unspeckle.quantization.int8_layers import can_quantize, quantize_layers

AUTO = "auto"
INT8 = "int8"  # for the large layers of the network, see quantization/int8_layers.py; all else is bfloat16 then
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, INT8: torch.bfloat16}

# Instructions of x86 processors that multiply these dtypes, by the names of Linux; the networks run by them are faster
_MATRIX_INSTRUCTIONS = {
    torch.bfloat16: {"avx512_bf16", "amx_bf16"},
    torch.float16: {"avx512_fp16", "amx_fp16"},
}
# Instructions that convert these dtypes only, which may or may not pay
_CONVERSION_INSTRUCTIONS = {"avx_ne_convert"}
# Compute capability from which NVIDIA's GPUs multiply these dtypes faster than float32
_CUDA_CAPABILITIES = {torch.bfloat16: (8, 0), torch.float16: (7, 0)}
# Variables of the environment that make oneDNN do without some of the processor's instructions
_ONEDNN_LIMITS = {"ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"}


def check_precision(name: str, device: str) -> str:
    """The name itself, where it is "auto" or one of PRECISIONS that the device can compute in. InputError where it is
    not."""
    if name != AUTO and name not in PRECISIONS:
        raise InputError(f" {name!r}: unknown; choose one of {AUTO}, {', '.join(PRECISIONS)}", "precision")
    if name == INT8 and not device.startswith("cpu"):
        raise InputError(
            f" {INT8}: runs on CPUs only, not on {device}; choose bfloat16, or the device cpu", "precision"
        )
    if name == INT8 and not can_quantize():
        raise InputError(
            f" {INT8}: needs a processor with AVX-512 VNNI, and a torch with oneDNN; choose bfloat16", "precision"
        )
    return name


def resolve_precision(name: str, device: str) -> str:
    """The precision in which a Stable Diffusion is to draw: for "auto", the `fastest_precision`. The same on every run
    of the same machine, as the images depend on it: see `is_faster_in`."""
    return fastest_precision(device) if name == AUTO else name


def fastest_precision(device: str) -> str:
    """bfloat16 if the device computes in it faster than in float32; else float16 if it is a GPU that is faster in that,
    as NVIDIA's of 2017 to 2019 are (T4, V100); else float32."""
    if is_faster_in(device, torch.bfloat16):
        return "bfloat16"
    return "float16" if device.startswith("cuda") and is_faster_in(device, torch.float16) else "float32"


def set_precision(model: Model, name: str) -> Model:
    """The model, changed in place so that it draws in that precision: its networks and its autoencoder. Text is always
    encoded in float32, once a drawing. The hash of the model stays that of its weights as stored.

    InputError where the model was set to another low precision before, or its device cannot compute in this one."""
    check_precision(name, str(model.device))
    if name == model.precision:
        return model
    if model.precision != "float32":
        raise InputError(
            f"{model.card.name!r}: draws in {model.precision}, from which there is no way back; load it again"
        )
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
    """Whether the device computes in bfloat16 or float16 faster than in float32.

    It is decided by what the hardware offers, so that it never changes from run to run, however busy the machine is:
    the instructions of x86 processors under Linux, and the compute capability of CUDA devices. Only where these do not
    tell (other processors and systems, mps, or oneDNN restricted by the environment) it is measured."""
    known = _is_faster_by_hardware(device, dtype)
    return _is_measured_faster(device, dtype) if known is None else known


def _is_faster_by_hardware(device: str, dtype: torch.dtype) -> bool | None:
    """None where it is not known."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_capability(device) >= _CUDA_CAPABILITIES[dtype]
    features = cpu_features()
    is_limited = bool(_ONEDNN_LIMITS & set(os.environ)) or not torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if device != "cpu" or not features or is_limited:
        return None
    if features & _MATRIX_INSTRUCTIONS[dtype]:
        return True
    return None if features & _CONVERSION_INSTRUCTIONS else False


def _is_measured_faster(device: str, dtype: torch.dtype) -> bool:
    """By the best of up to three measurements each, so that a busy moment hardly decides."""
    lower, full = math.inf, math.inf
    for _ in range(3):
        lower, full = min(lower, time_convolution(device, dtype)), min(full, time_convolution(device, torch.float32))
        if lower < 0.8 * full:
            return True
    return False


def time_convolution(device: str, dtype: torch.dtype) -> float:
    """Seconds of a convolution such as the networks have, the best of five."""
    x = torch.randn(32, 128, 16, 16, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    layer = torch.nn.Conv2d(128, 128, 3, padding=1, device=device, dtype=dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    seconds = []
    with torch.no_grad():
        for _ in range(6):
            start = time.perf_counter()
            layer(x)
            synchronize(device)
            seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def synchronize(device: str) -> None:
    """Wait until the device has finished what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    elif device.startswith("mps"):
        torch.mps.synchronize()
