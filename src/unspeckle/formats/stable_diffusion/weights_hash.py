"""The hash by which images name the Stable Diffusion that drew them.

It is defined by the names of version 0.1, so that it never changes: images drawn then name the model that drew them."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unspeckle.old_names import old_repr, rename_tensor


def hash_weights(configs: Sequence[Any], modules: Mapping[str, nn.Module]) -> str:
    """12 hex digits of the configurations and of the modules' tensors: not of each bit, but of sums over 64 interleaved
    parts of each tensor's bits, which takes a second for some gigabytes. modules: by their names in Model.modules()."""
    digest = hashlib.sha256(old_repr(list(configs)).encode())
    old_tensors = {
        f"{part}.{rename_tensor(part, name, to_old=True)}": tensor
        for part, module in modules.items()
        for name, tensor in module.state_dict().items()
    }
    for name, tensor in sorted(old_tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{interleaved_bit_sums(tensor.detach().float())}".encode())
    return digest.hexdigest()[:12]


def interleaved_bit_sums(tensor: Tensor) -> list[int]:
    """For each k < 64, the sum of the bits, as whole numbers, of the values at k, k + 64, k + 128, ...; the values of
    (O, C, H, W) are counted in the order (O, H, W, C)."""
    if tensor.ndim == 4 and tensor.shape[1] % 64 == 0 and tensor.is_contiguous():  # then the order changes no sum
        parts = tensor.view(torch.int32).view(-1, 64, tensor.shape[2] * tensor.shape[3])
    else:
        bits = (tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor).contiguous().view(torch.int32).flatten()
        parts = F.pad(bits, (0, -len(bits) % 64)).view(-1, 64, 1)
    parts = parts.cpu() if parts.device.type == "mps" else parts  # which has no float64
    # Sums of so many are exact in float64, which adds ten times as fast as int64
    chunk_size = max(2**13 // parts.shape[2], 1)
    sums = torch.zeros(64, dtype=torch.int64, device=parts.device)
    for start in range(0, len(parts), chunk_size):
        sums += parts[start : start + chunk_size].double().sum((0, 2)).long()
    return sums.tolist()
