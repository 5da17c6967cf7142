"""How weights are stored in a file: as float32, as bfloat16, or as int8 with a scale for each row.

In memory they are float32."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from unspeckle.errors import InputError

# What a file may store its weights as, and the dtype of what is no matrix then
STORED_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.bfloat16}
SCALE_SUFFIX = ".scale"  # the name of an int8 tensor with this behind it is that of its scales


def encode_weights(modules: Mapping[str, nn.Module], dtype: str) -> dict[str, Tensor]:
    """Every tensor of the modules as a file stores it, by its full name.

    dtype: a name of STORED_DTYPES. With "int8", the weights of linear layers and convolutions become whole numbers from
    -127 to 127 times a float32 for each output channel; the error is at most half of that. InputError for other
    names."""
    if dtype not in STORED_DTYPES:
        raise InputError(f" {dtype!r}: unknown; choose one of {', '.join(STORED_DTYPES)}", "dtype")
    stored: dict[str, Tensor] = {}
    for prefix, module in modules.items():
        layers = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
        matrices = {f"{name}.weight" for name in layers} if dtype == "int8" else set()
        for name, value in module.state_dict().items():
            tensor = value.detach().cpu()
            if name in matrices:
                stored[f"{prefix}.{name}"], stored[f"{prefix}.{name}{SCALE_SUFFIX}"] = round_to_int8(tensor)
            else:
                tensor = tensor.to(STORED_DTYPES[dtype] if tensor.is_floating_point() else tensor.dtype)
                stored[f"{prefix}.{name}"] = tensor.contiguous().clone()
    return stored


def decode_weights(stored: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """The stored tensors in float32, as `to_float32`. InputError, naming the file and the tensor, where scales of int8
    weights are missing or do not fit."""
    tensors: dict[str, Tensor] = {}
    scale_names = {name + SCALE_SUFFIX for name, tensor in stored.items() if tensor.dtype == torch.int8}
    for name, tensor in stored.items():
        if name in scale_names:
            continue
        tensors[name] = to_float32(tensor)
        if tensor.dtype == torch.int8:
            scale_name = name + SCALE_SUFFIX
            if scale_name not in stored:
                raise InputError(f"{file}: lacks the tensor '{scale_name}'; copy or train it again")
            scale = stored[scale_name]
            if tensor.ndim < 2 or scale.shape != tensor.shape[:1] or not scale.is_floating_point():
                raise InputError(f"{file}: tensor '{scale_name}' does not fit '{name}'; copy or train it again")
            tensors[name] = tensors[name].float().mul_(scale.float().view(-1, *[1] * (tensor.ndim - 1)))
    return tensors


def to_float32(tensor: Tensor) -> Tensor:
    """A copy, not mapped from a file, in float32 if it holds floating-point numbers. Kernels of convolutions are in
    channels-last order, in which they run fastest."""
    memory_format = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.to(dtype, copy=True).contiguous(memory_format=memory_format)


def round_to_int8(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (O, ...) as int8 of the same shape, and their scales (O,) float32: the largest number of each row becomes
    127."""
    rows = weights.float().flatten(1)
    scale = rows.abs().amax(1) / 127
    rounded = (rows / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round()
    return rounded.to(torch.int8).view(weights.shape).contiguous(), scale
