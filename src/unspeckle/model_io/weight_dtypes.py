"""How weights lie in a file: as float32, as bfloat16, or as int8 with a scale a row; in memory they are float32."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from unspeckle.errors import InputError

STORED_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.bfloat16}  # of what is no matrix
SCALE_SUFFIX = ".scale"  # behind the name of an int8 tensor, the name of its scales


def encode_weights(modules: Mapping[str, nn.Module], dtype: str) -> dict[str, Tensor]:
    """Every tensor of the parts as a file holds it, by its full name. With "int8" the weights of linear layers and
    convolutions become whole numbers of -127…127 times a float32 for each row, at most half of which they are off."""
    if dtype not in STORED_DTYPES:
        raise InputError(f"dtype {dtype!r} is unknown; choose one of {', '.join(STORED_DTYPES)}")
    stored: dict[str, Tensor] = {}
    for prefix, part in modules.items():
        layers = (name for name, module in part.named_modules() if isinstance(module, nn.Linear | nn.Conv2d))
        matrices = {f"{name}.weight" for name in layers} if dtype == "int8" else set()
        for name, value in part.state_dict().items():
            tensor = value.detach().cpu()
            if name in matrices:
                stored[f"{prefix}.{name}"], stored[f"{prefix}.{name}{SCALE_SUFFIX}"] = round_to_int8(tensor)
            else:
                tensor = tensor.to(STORED_DTYPES[dtype] if tensor.is_floating_point() else tensor.dtype)
                stored[f"{prefix}.{name}"] = tensor.contiguous().clone()
    return stored


def decode_weights(stored: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """The tensors in float32, off the file's memory map; pictures' layers in channels-last order, in which they run
    fastest. InputError, naming the file and the tensor, where scales do not fit."""
    tensors: dict[str, Tensor] = {}
    used = {name + SCALE_SUFFIX for name, tensor in stored.items() if tensor.dtype == torch.int8}
    for name, tensor in stored.items():
        if name in used:
            continue
        if tensor.dtype == torch.int8:
            scale = stored.get(name + SCALE_SUFFIX)
            if scale is None:
                raise InputError(f"{file}: lacks the tensor '{name}{SCALE_SUFFIX}'; copy or train it again")
            if tensor.ndim < 2 or scale.shape != tensor.shape[:1] or not scale.is_floating_point():
                raise InputError(f"{file}: tensor '{name}{SCALE_SUFFIX}' does not fit '{name}'; copy or train it again")
            rows = scale.float().view(-1, *[1] * (tensor.ndim - 1))
            tensors[name] = to_float32(tensor).float().mul_(rows)
        else:
            tensors[name] = to_float32(tensor)
    return tensors


def to_float32(tensor: Tensor) -> Tensor:
    """A copy off the file's memory map, float32 where it holds fractions; pictures' layers in channels-last order."""
    order = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.to(dtype, copy=True).contiguous(memory_format=order)


def round_to_int8(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (O, …) as int8 of the same shape and their scales (O,): each row's largest number becomes 127."""
    rows = weights.float().flatten(1)
    scale = rows.abs().amax(1) / 127
    whole = (rows / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round()
    return whole.to(torch.int8).view(weights.shape).contiguous(), scale
