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
from unspeckle.formats.lora.alpha_scales import Scale
from unspeckle.formats.lora.layer_names import ENDS, LAYOUTS, parted, spelt
from unspeckle.formats.stable_diffusion.model import Foreign
from unspeckle.model_io.safetensors_io import read_safetensors
from unspeckle.networks.lora import Adapter, Adapters, layer


def read(file: Path, model: Foreign) -> Adapters:
    """The file's adapters for the model's layers. InputError, one line, where it is damaged, has tensors that belong to
    no layer, or others than the layer wants."""
    model.changeable("a LoRA")
    metadata, held = read_safetensors(file, "download")
    known = {name: ours for ours, spellings in spelt(model).items() for name in spellings}
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    said, strange = dict[str, str](), []
    for key, tensor in held.items():
        name, role = parted(key) or ("", "")
        ours = known.get(name)
        if ours is None:
            strange.append(f"'{key[:100]}'")
            continue
        if not tensor.is_floating_point() or not tensor.float().isfinite().all():
            raise InputError(f"{file}: tensor '{key[:100]}' holds values that are not finite; download it again")
        if role in found[ours]:
            raise InputError(f"{file}: tensor '{key[:100]}' is there twice, under two names; download it again")
        said[ours], found[ours][role] = name, tensor.float()
    if strange or not found:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        raise InputError(
            f"{file}: holds {', '.join(sorted(strange)[:3]) or 'nothing'}{more}, which no layer of {model.card.name} "
            "takes: it is for another kind of model, or no LoRA of the plain kind (LoHa, LoKr and DoRA are not)"
        )
    scales, parts = alpha_scales.read(metadata, file), model.modules()
    each = ((ours, layer(parts, ours), held, said[ours]) for ours, held in found.items())
    return Adapters({ours: _adapter(module, held, name, scales.of(name), file) for ours, module, held, name in each})


def _adapter(module: nn.Module, held: Mapping[str, Tensor], said: str, scale: Scale | None, file: Path) -> Adapter:
    if missing := [role for role in ("down", "up") if role not in held]:
        raise InputError(f"{file}: lacks the {missing[0]} tensor of '{said}'; download it again")
    weight, down, up = module.weight, held["down"], held["up"]
    assert isinstance(weight, Tensor)
    rank = len(down) if down.ndim else 0
    fits = rank and _squeezed(down.shape) == _squeezed((rank, *weight.shape[1:]))
    if not fits or _squeezed(up.shape) != (len(weight), rank):
        raise InputError(
            f"{file}: '{said}' is {tuple(up.shape)} times {tuple(down.shape)}, but its layer here is "
            f"{tuple(weight.shape)}; it is for another kind of model"
        )
    alpha = held.get("alpha")
    if alpha is not None and alpha.numel() != 1:
        raise InputError(f"{file}: the alpha of '{said}' is no number; download it again")
    share = float(alpha) / rank if alpha is not None else scale(rank) if scale is not None else 1.0
    plain = (1,) * (weight.ndim - 2)
    return Adapter(down.reshape(rank, *weight.shape[1:]), up.reshape(len(weight), rank, *plain), share)


def _squeezed(shape: torch.Size | tuple[int, ...]) -> tuple[int, ...]:
    """A linear layer may be told as a 1 × 1 convolution, and the other way round."""
    return tuple(shape[:2] if shape[2:] == (1, 1) else shape)


def write(
    adapters: Adapters, model: Foreign, file: Path, layout: str = "kohya", said: Mapping[str, str] | None = None
) -> None:
    """Write them as kohya's or peft's programs do, atomically. said: more metadata."""
    if layout not in LAYOUTS:
        raise InputError(f"--layout {layout}: unknown; choose {' or '.join(LAYOUTS)}")
    names, (first, last) = spelt(model), ENDS[layout]
    tensors: dict[str, Tensor] = {}
    for ours, adapter in adapters.items():
        name, rank = names[ours][LAYOUTS.index(layout)], len(adapter.down)
        up, alpha = adapter.up.detach(), adapter.scale * rank
        if layout == "kohya":
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
        else:  # without a word of alpha, it is the rank
            up = up * adapter.scale
        tensors[f"{name}.{first}.weight"], tensors[f"{name}.{last}.weight"] = adapter.down.detach(), up
    ranks = {len(adapter.down) for _, adapter in adapters.items()}
    kohya = {"ss_network_module": "networks.lora", "ss_network_dim": str(max(ranks))} if layout == "kohya" else {}
    with replace_file(file) as beside:
        save_file(
            {k: t.cpu().contiguous() for k, t in tensors.items()}, beside, {"format": "pt", **kohya, **(said or {})}
        )
