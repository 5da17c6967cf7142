"""LoRA files, to and from adapters."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from unspeckle.atomic import replace_file
from unspeckle.errors import InputError
from unspeckle.formats.lora.layer_names import LORA_LAYOUTS, LORA_SUFFIXES, lora_layer_names, split_lora_key
from unspeckle.formats.lora.peft_metadata import LoraScale, read_peft_scales
from unspeckle.formats.safetensors_io import read_safetensors
from unspeckle.formats.stable_diffusion.model import StableDiffusionModel
from unspeckle.networks.lora import Adapter, AdapterSet, get_layer


def read_lora(file: Path, model: StableDiffusionModel) -> AdapterSet:
    """The file's adapters for the model's layers, in float32. InputError, one line, where the file is damaged, or has
    tensors that belong to no layer of this model or do not fit it."""
    model.require_float32("a LoRA")
    metadata, tensors = read_safetensors(file, "download")
    tensors_by_layer, names_in_file = _group_by_layer(tensors, model, file)
    scales, modules = read_peft_scales(metadata, file), model.modules()
    adapters = {}
    for layer, layer_tensors in tensors_by_layer.items():
        name = names_in_file[layer]
        adapters[layer] = _build_adapter(get_layer(modules, layer), layer_tensors, name, scales.for_layer(name), file)
    return AdapterSet(adapters)


def _group_by_layer(
    tensors: Mapping[str, Tensor], model: StableDiffusionModel, file: Path
) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
    """The tensors "down", "up" and perhaps "alpha" of each layer, by our full name of it; and its name in the file."""
    layer_by_name = {name: layer for layer, names in lora_layer_names(model).items() for name in names}
    tensors_by_layer: dict[str, dict[str, Tensor]] = defaultdict(dict)
    names_in_file, unknown_keys = dict[str, str](), []
    for key, tensor in tensors.items():
        name, role = split_lora_key(key) or ("", "")
        layer = layer_by_name.get(name)
        if layer is None:
            unknown_keys.append(f"'{key[:100]}'")
            continue
        if not tensor.is_floating_point() or not tensor.float().isfinite().all():
            raise InputError(f"{file}: tensor '{key[:100]}' holds values that are not finite; download it again")
        if role in tensors_by_layer[layer]:
            raise InputError(f"{file}: tensor '{key[:100]}' is there twice, under two names; download it again")
        names_in_file[layer], tensors_by_layer[layer][role] = name, tensor.float()
    if unknown_keys or not tensors_by_layer:
        others = f" and {len(unknown_keys) - 3} more" if len(unknown_keys) > 3 else ""
        raise InputError(
            f"{file}: holds {', '.join(sorted(unknown_keys)[:3]) or 'nothing'}{others}, which fits no layer of "
            f"{model.card.name}: it is for another kind of model, or not a plain LoRA (there is no support for LoHa, "
            "LoKr and DoRA)"
        )
    return tensors_by_layer, names_in_file


def _build_adapter(
    layer: nn.Module, tensors: Mapping[str, Tensor], name: str, peft_scale: LoraScale | None, file: Path
) -> Adapter:
    """An adapter for the layer. Its scale is that of the alpha in the file, else that of peft's metadata, else 1."""
    if missing := [role for role in ("down", "up") if role not in tensors]:
        raise InputError(f"{file}: lacks the {missing[0]} tensor of '{name}'; download it again")
    weight, down, up = layer.weight, tensors["down"], tensors["up"]
    assert isinstance(weight, Tensor)
    rank = len(down) if down.ndim else 0
    fits = rank and _squeeze_1x1(down.shape) == _squeeze_1x1((rank, *weight.shape[1:]))
    if not fits or _squeeze_1x1(up.shape) != (len(weight), rank):
        raise InputError(
            f"{file}: '{name}' is {tuple(up.shape)} times {tuple(down.shape)}, but its layer in this model is "
            f"{tuple(weight.shape)}; it is for another kind of model"
        )
    alpha = tensors.get("alpha")
    if alpha is not None and alpha.numel() != 1:
        raise InputError(f"{file}: the alpha of '{name}' is not one number; download it again")
    if alpha is not None:
        scale = float(alpha) / rank
    else:
        scale = 1.0 if peft_scale is None else peft_scale(rank)
    kernel_size = (1,) * (weight.ndim - 2)
    return Adapter(down.reshape(rank, *weight.shape[1:]), up.reshape(len(weight), rank, *kernel_size), scale)


def _squeeze_1x1(shape: torch.Size | tuple[int, ...]) -> tuple[int, ...]:
    """The shape without a 1 × 1 kernel: files may hold a linear layer as such a convolution, and the reverse."""
    return tuple(shape[:2] if shape[2:] == (1, 1) else shape)


def write_lora(
    adapters: AdapterSet,
    model: StableDiffusionModel,
    file: Path,
    layout: str = "kohya",
    extra_metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the adapters, atomically, by the names of a layout in LORA_LAYOUTS. InputError where there is none such."""
    if layout not in LORA_LAYOUTS:
        raise InputError(f" {layout!r}: unknown; choose {' or '.join(LORA_LAYOUTS)}", "layout")
    layer_names, (down_suffix, up_suffix) = lora_layer_names(model), LORA_SUFFIXES[layout]
    tensors: dict[str, Tensor] = {}
    for layer, adapter in adapters.items():
        name, up = layer_names[layer][LORA_LAYOUTS.index(layout)], adapter.up.detach()
        if layout == "kohya":
            tensors[f"{name}.alpha"] = torch.tensor(adapter.scale * len(adapter.down))
        else:  # without an alpha, readers take the rank for it, so that the scale is 1
            up = up * adapter.scale
        tensors[f"{name}.{down_suffix}.weight"] = adapter.down.detach()
        tensors[f"{name}.{up_suffix}.weight"] = up
    metadata = {"format": "pt"}
    if layout == "kohya":
        highest_rank = max(len(adapter.down) for _, adapter in adapters.items())
        metadata |= {"ss_network_module": "networks.lora", "ss_network_dim": str(highest_rank)}
    contiguous = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    with replace_file(file) as temp_file:
        save_file(contiguous, temp_file, metadata | dict(extra_metadata or {}))
