"""LoRA files, to and from adapters."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from unspeckle.atomic import replace_file
from unspeckle.errors import InputError
from unspeckle.formats.lora import alpha_scales
from unspeckle.formats.lora.alpha_scales import LoraScale
from unspeckle.formats.lora.layer_names import LORA_LAYOUTS, LORA_SUFFIXES, lora_layer_names, split_lora_key
from unspeckle.formats.stable_diffusion.model import StableDiffusionModel
from unspeckle.model_io.safetensors_io import read_safetensors
from unspeckle.networks.lora import Adapter, AdapterSet, get_layer


def read_lora(file: Path, model: StableDiffusionModel) -> AdapterSet:
    """The file's adapters for the model's layers. InputError, one line, where it is damaged, has tensors that belong to
    no layer, or others than the layer wants."""
    model.require_float32("a LoRA")
    metadata, tensors = read_safetensors(file, "download")
    layer_by_name = {
        name: layer_name for layer_name, file_names in lora_layer_names(model).items() for name in file_names
    }
    tensors_by_layer: dict[str, dict[str, Tensor]] = defaultdict(dict)
    name_in_file, unknown_keys = dict[str, str](), []
    for key, tensor in tensors.items():
        name, role = split_lora_key(key) or ("", "")
        layer_name = layer_by_name.get(name)
        if layer_name is None:
            unknown_keys.append(f"'{key[:100]}'")
            continue
        if not tensor.is_floating_point() or not tensor.float().isfinite().all():
            raise InputError(f"{file}: tensor '{key[:100]}' holds values that are not finite; download it again")
        if role in tensors_by_layer[layer_name]:
            raise InputError(f"{file}: tensor '{key[:100]}' is there twice, under two names; download it again")
        name_in_file[layer_name], tensors_by_layer[layer_name][role] = name, tensor.float()
    if unknown_keys or not tensors_by_layer:
        others = f" and {len(unknown_keys) - 3} more" if len(unknown_keys) > 3 else ""
        raise InputError(
            f"{file}: holds {', '.join(sorted(unknown_keys)[:3]) or 'nothing'}{others}, which no layer of {model.card.name} "
            "takes: it is for another kind of model, or no LoRA of the plain kind (LoHa, LoKr and DoRA are not)"
        )
    scales, parts = alpha_scales.read_peft_scales(metadata, file), model.modules()
    layers = (
        (layer_name, get_layer(parts, layer_name), layer_tensors, name_in_file[layer_name])
        for layer_name, layer_tensors in tensors_by_layer.items()
    )
    return AdapterSet(
        {
            layer_name: _build_adapter(module, layer_tensors, name, scales.for_layer(name), file)
            for layer_name, module, layer_tensors, name in layers
        }
    )


def _build_adapter(
    module: nn.Module, tensors: Mapping[str, Tensor], name: str, lora_scale: LoraScale | None, file: Path
) -> Adapter:
    if missing := [role for role in ("down", "up") if role not in tensors]:
        raise InputError(f"{file}: lacks the {missing[0]} tensor of '{name}'; download it again")
    weight, down, up = module.weight, tensors["down"], tensors["up"]
    assert isinstance(weight, Tensor)
    rank = len(down) if down.ndim else 0
    shapes_match = rank and _squeeze_1x1(down.shape) == _squeeze_1x1((rank, *weight.shape[1:]))
    if not shapes_match or _squeeze_1x1(up.shape) != (len(weight), rank):
        raise InputError(
            f"{file}: '{name}' is {tuple(up.shape)} times {tuple(down.shape)}, but its layer here is "
            f"{tuple(weight.shape)}; it is for another kind of model"
        )
    alpha = tensors.get("alpha")
    if alpha is not None and alpha.numel() != 1:
        raise InputError(f"{file}: the alpha of '{name}' is no number; download it again")
    scale = float(alpha) / rank if alpha is not None else lora_scale(rank) if lora_scale is not None else 1.0
    kernel_size = (1,) * (weight.ndim - 2)
    return Adapter(down.reshape(rank, *weight.shape[1:]), up.reshape(len(weight), rank, *kernel_size), scale)


def _squeeze_1x1(shape: torch.Size | tuple[int, ...]) -> tuple[int, ...]:
    """A linear layer may be told as a 1 × 1 convolution, and the other way round."""
    return tuple(shape[:2] if shape[2:] == (1, 1) else shape)


def write_lora(
    adapters: AdapterSet,
    model: StableDiffusionModel,
    file: Path,
    layout: str = "kohya",
    extra_metadata: Mapping[str, str] | None = None,
) -> None:
    """Write them as kohya's or peft's programs do, atomically. said: more metadata."""
    if layout not in LORA_LAYOUTS:
        raise InputError(f"--layout {layout}: unknown; choose {' or '.join(LORA_LAYOUTS)}")
    layer_names, (down_suffix, up_suffix) = lora_layer_names(model), LORA_SUFFIXES[layout]
    tensors: dict[str, Tensor] = {}
    for layer_name, adapter in adapters.items():
        name, rank = layer_names[layer_name][LORA_LAYOUTS.index(layout)], len(adapter.down)
        up, alpha = adapter.up.detach(), adapter.scale * rank
        if layout == "kohya":
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
        else:  # without a word of alpha, it is the rank
            up = up * adapter.scale
        tensors[f"{name}.{down_suffix}.weight"], tensors[f"{name}.{up_suffix}.weight"] = adapter.down.detach(), up
    ranks = {len(adapter.down) for _, adapter in adapters.items()}
    kohya_metadata = (
        {"ss_network_module": "networks.lora", "ss_network_dim": str(max(ranks))} if layout == "kohya" else {}
    )
    with replace_file(file) as temp_file:
        save_file(
            {k: t.cpu().contiguous() for k, t in tensors.items()},
            temp_file,
            {"format": "pt", **kohya_metadata, **(extra_metadata or {})},
        )
