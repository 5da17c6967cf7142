"""Converts a network for inference in a lower precision: its weights are cast once, and on a CPU in bfloat16 its layers
are replaced by fused and packed ones."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from unspeckle.kernels.attention import use_attention_kernel
from unspeckle.kernels.fused_layers import (
    FusedConv,
    FusedNormSiluConv,
    FusedResBlock,
    is_fusable_block,
    is_fusable_conv,
)
from unspeckle.kernels.packed_attention import (
    PackedSelfAttention,
    PackedSpatialTransformer,
    PackedTransformerLayer,
    PackedVAEAttention,
)
from unspeckle.kernels.packed_layers import PackedFeedForward, PackedLinear, PackedUpsampleConv, can_pack, pack_conv
from unspeckle.networks.layers import GatedFeedForward, SelfAttention, UpsampleConv
from unspeckle.networks.lora import AdaptedLayer
from unspeckle.networks.unet import UNet
from unspeckle.networks.unet_blocks import SpatialTransformer, TransformerLayer
from unspeckle.networks.vae import VAEAttention, VAEDecoder, VAEEncoder

# What takes the place of a layer without adapters, built from the layer and the dtype.
_PACKED_LAYERS: dict[type[nn.Module], Callable[[Any, torch.dtype], nn.Module]] = {
    nn.Linear: PackedLinear,
    nn.Conv2d: pack_conv,
    GatedFeedForward: PackedFeedForward,
    UpsampleConv: PackedUpsampleConv,
}
# What takes the place of a module whose layers have been packed, so that it adds residuals within them.
_RESIDUAL_MODULES: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    TransformerLayer: PackedTransformerLayer,
    SpatialTransformer: PackedSpatialTransformer,
    VAEAttention: PackedVAEAttention,
}


def cast_for_inference(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert the module for inference in that dtype, in place, and return it. Its weights may lie in the memory map of
    a file, in any dtype: each is read, cast and released on its own, so that there is never a second copy of all.
    Statistics of batch normalizations are float32 in every dtype, as their input is."""
    if dtype == torch.bfloat16:
        if can_pack() and all(parameter.device.type == "cpu" for parameter in module.parameters()):
            _pack_children(module, dtype)
        use_attention_kernel(module)
    for submodule in module.modules():
        for name, parameter in list(submodule.named_parameters(recurse=False)):
            if parameter.is_floating_point():
                setattr(submodule, name, nn.Parameter(_cast_copy(parameter, dtype), requires_grad=False))
        buffer_dtype = torch.float32 if isinstance(submodule, nn.BatchNorm2d) else dtype
        for name, buffer in list(submodule.named_buffers(recurse=False)):
            if buffer.is_floating_point():
                setattr(submodule, name, _cast_copy(buffer, buffer_dtype))
    return module.eval()


def _cast_copy(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    memory_format = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
    return tensor.detach().to(dtype, copy=True).contiguous(memory_format=memory_format)


def _pack_children(parent: nn.Module, dtype: torch.dtype) -> None:
    """Replace all layers in the module that have a packed or fused form, except those with adapters."""
    if isinstance(parent, UNet | VAEEncoder | VAEDecoder):
        _fuse_output(parent)
    if isinstance(parent, TransformerLayer) and is_plain_self_attention(parent.self_attn):
        parent.self_attn = PackedSelfAttention(parent.self_attn, dtype)  # type: ignore[arg-type,assignment]
    for name, child in list(parent.named_children()):
        if not isinstance(child, AdaptedLayer):
            setattr(parent, name, _pack_module(child, dtype))


def _pack_module(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """What takes the place of the module: itself, if only layers within it are replaced."""
    if not has_adapters(module):
        if is_fusable_block(module):
            block = FusedResBlock(module)  # type: ignore[arg-type]
            _pack_children(block, dtype)
            return block
        if type(module) in (nn.Conv2d, UpsampleConv) and is_fusable_conv(module):
            return FusedConv(module)  # type: ignore[arg-type]
        pack = _PACKED_LAYERS.get(type(module))
        if pack is not None and not _is_unusual_conv(module):
            return pack(module, dtype)
    _pack_children(module, dtype)
    wrap = _RESIDUAL_MODULES.get(type(module))
    return module if wrap is None else wrap(module)


def _fuse_output(network: UNet | VAEEncoder | VAEDecoder) -> None:
    """Replace the normalization, SiLU and convolution at the end by one layer, if the kernel supports it."""
    norm, conv = network.norm_out, network.conv_out
    if type(norm) is nn.GroupNorm and isinstance(conv, nn.Conv2d) and is_fusable_conv(conv):
        network.norm_out, network.act_out = nn.Identity(), nn.Identity()
        network.conv_out = FusedNormSiluConv(norm, conv)


def has_adapters(module: nn.Module) -> bool:
    """Whether there are adapters in the module, which stay beside their layers."""
    return any(isinstance(submodule, AdaptedLayer) for submodule in module.modules())


def is_plain_self_attention(module: nn.Module | None) -> bool:
    """Whether the module is a SelfAttention as it was built: neither replaced nor with adapters."""
    return type(module) is SelfAttention and not has_adapters(module)


def _is_unusual_conv(layer: nn.Module) -> bool:
    """Whether the layer is a convolution of a kind that packed convolutions do not support."""
    return isinstance(layer, nn.Conv2d) and (layer.groups != 1 or layer.padding_mode != "zeros")
