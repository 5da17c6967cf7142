"""A network made ready to draw in a lower precision: weights cast once, and on a CPU in bfloat16 kept in the order in
which oneDNN or our own kernels multiply them, so that no step turns them round again, with what follows a product done
in it.

What is computed is the same as by the plain layers, but for rounding; there are no gradients any more. Of x in another
precision (after `.float()`, where bfloat16 did not do) all of them answer in that one.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unspeckle.kernels import gated
from unspeckle.kernels.fused_layers import FusedConv, FusedNormConv, FusedResBlock, is_fusable
from unspeckle.networks.layers import (
    Attention,
    GatedFeedForward,
    UpsampleConv,
    apply_with_residual,
    multi_head_attention,
)
from unspeckle.networks.lora import AdaptedLayer
from unspeckle.networks.unet import ResBlock, TransformerLayer, UNet
from unspeckle.networks.vae import VAEDecoder, VAEEncoder, VAEResBlock

_LayerFactory = Callable[[Any, torch.dtype], nn.Module]
_NO_POST_OP: Any = ("none", [], "")  # nothing follows the product


def cast_for_inference(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module for drawing in that precision, changed in place. Its weights may still lie in a file's memory map, in
    any precision: each is read, cast and let go on its own, so that no second copy of all is in memory."""
    if dtype == torch.bfloat16 and can_pack():
        _pack_layers(module, dtype)
    for submodule in module.modules():
        for name, tensor in [*submodule.named_parameters(recurse=False), *submodule.named_buffers(recurse=False)]:
            if tensor.is_floating_point():
                memory_format = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
                copy = tensor.detach().to(dtype, copy=True).contiguous(memory_format=memory_format)
                if isinstance(tensor, nn.Parameter):
                    setattr(submodule, name, nn.Parameter(copy, requires_grad=False))
                else:
                    submodule._buffers[name] = copy
    return module.eval()


def _pack_layers(parent: Any, dtype: torch.dtype) -> None:
    """Put packed layers in the places of all those that have such, but for those with adapters, which stay live."""
    has_out_norm = isinstance(parent, UNet | VAEEncoder | VAEDecoder) and type(parent.norm_out) is nn.GroupNorm
    if has_out_norm and _is_packable(parent.conv_out) and is_fusable(parent.conv_out):
        parent.conv_out = FusedNormConv(parent.conv_out, parent.norm_out)  # whose norm stays, and tells the precision
    for name, child in list(parent.named_children()):
        if isinstance(child, AdaptedLayer):
            continue
        is_self_attn = isinstance(parent, TransformerLayer) and name == "self_attn" and type(child) is Attention
        factory = (PackedAttention if _is_packable(child) else None) if is_self_attn else _find_factory(child)
        if factory is not None:
            child = factory(child, dtype)
            setattr(parent, name, child)
        if factory is None or isinstance(child, FusedResBlock):
            _pack_layers(child, dtype)


def _find_factory(layer: nn.Module) -> _LayerFactory | None:
    """What makes a packed layer of this one, if there is such."""
    if not _is_packable(layer):
        return None
    if isinstance(layer, ResBlock | VAEResBlock):
        return (lambda block, _: FusedResBlock(block)) if is_fusable(layer) else None
    if type(layer) in (nn.Conv2d, UpsampleConv) and is_fusable(layer):
        return lambda conv, _: FusedConv(conv)
    return _LAYER_FACTORIES.get(type(layer))


def can_pack() -> bool:
    """Whether this torch has oneDNN's layers with packed weights."""
    operators = ("_linear_pointwise", "_reorder_linear_weight", "_convolution_pointwise")
    return bool(torch.backends.mkldnn.is_available()) and all(  # type: ignore[no-untyped-call]
        hasattr(torch.ops.mkldnn, name) for name in operators
    )


def _is_packable(layer: nn.Module) -> bool:
    """Whether the layer is of the kinds that the packed ones stand for."""
    if any(parameter.device.type != "cpu" for parameter in layer.parameters()):
        return False
    if any(isinstance(submodule, AdaptedLayer) for submodule in layer.modules()):
        return False
    return not isinstance(layer, nn.Conv2d) or (layer.groups == 1 and layer.padding_mode == "zeros")


def _parameter_copy(tensor: Tensor | None, dtype: torch.dtype) -> nn.Parameter | None:
    if tensor is None:
        return None
    return nn.Parameter(tensor.detach().to(dtype, copy=True).contiguous(), requires_grad=False)


def _pack_matrix(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A matrix (out, in) packed for a product with some thousand rows."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype).contiguous(), 4096)
    return packed


def _pack_conv_weight(weight: Tensor, dtype: torch.dtype, padding: list[int], stride: list[int]) -> Tensor:
    """A convolution's weights (out, in, kh, kw) packed."""
    mkldnn_weight = weight.to(dtype).contiguous().to_mkldnn()
    packed: Tensor = torch._C._nn.mkldnn_reorder_conv2d_weight(mkldnn_weight, padding, stride, [1, 1], 1)
    return packed


class PackedLinear(nn.Module):
    """A linear layer, or a 1 × 1 convolution, which is the same product of (B, C, H, W)."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.is_conv = isinstance(layer, nn.Conv2d)
        self.out_features, self.in_features = layer.weight.shape[:2]
        self.weight, self.bias = (
            _pack_matrix(layer.weight.detach().flatten(1), dtype),
            _parameter_copy(layer.bias, dtype),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self._linear(x, None)

    def with_residual(self, x: Tensor, residual: Tensor) -> Tensor:
        """forward(x) + beside, in one rounding."""
        return self._linear(x, residual)

    def _linear(self, x: Tensor, residual: Tensor | None) -> Tensor:
        rows_in, rows_residual = self._channels_last(x), None if residual is None else self._channels_last(residual)
        out: Tensor
        if x.dtype != self.weight.dtype:
            out = F.linear(rows_in, self.weight.to_dense().to(x.dtype), self.bias)
            out = out if rows_residual is None else out + rows_residual
        elif rows_residual is None:
            out = torch.ops.mkldnn._linear_pointwise(rows_in, self.weight, self.bias, *_NO_POST_OP)
        else:
            out = torch.ops.mkldnn._linear_pointwise(rows_in, rows_residual, self.weight, self.bias, "add")
        return out.permute(0, 3, 1, 2) if self.is_conv else out

    def _channels_last(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).contiguous() if self.is_conv else x.contiguous()


class PackedAttention(nn.Module):
    """An Attention to what it sees itself: queries, keys and values are one product."""

    def __init__(self, attention: Any, dtype: torch.dtype) -> None:
        super().__init__()
        projections = (attention.to_q, attention.to_k, attention.to_v)
        qkv = nn.Linear(
            attention.to_q.in_features,
            sum(projection.out_features for projection in projections),
            False,
            device="meta",
        )
        qkv.weight = nn.Parameter(torch.cat([projection.weight.detach() for projection in projections]))
        self.heads, self.to_qkv = attention.heads, PackedLinear(qkv, dtype)
        self.to_out = PackedLinear(attention.to_out, dtype)

    def forward_self(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        query, key, value = self.to_qkv(x).chunk(3, dim=2)
        return apply_with_residual(self.to_out, multi_head_attention(query, key, value, self.heads), residual)


class PackedFeedForward(nn.Module):
    """A GatedFeedForward. Its entry is two products: by our own kernel, or so that the gelu ends the one and the other
    ends in the multiplication by it."""

    def __init__(self, feed_forward: GatedFeedForward, dtype: torch.dtype) -> None:
        super().__init__()
        weight, bias = feed_forward.proj_in.weight.detach(), feed_forward.proj_in.bias.detach()
        self.uses_kernel = gated.is_geglu_supported(weight.shape[1], len(weight) // 2) and gated.has_geglu_kernel()
        self.weights = (
            [gated.pack_geglu_weight(weight)]
            if self.uses_kernel
            else [_pack_matrix(half, dtype) for half in weight.chunk(2)]
        )
        self.biases: list[Any] = (
            [bias.float().clone()] if self.uses_kernel else [_parameter_copy(half, dtype) for half in bias.chunk(2)]
        )
        self.proj_out = PackedLinear(feed_forward.proj_out, dtype)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return apply_with_residual(self.proj_out, self._geglu(x), residual)

    def _geglu(self, x: Tensor) -> Tensor:
        if x.dtype != torch.bfloat16:
            halves = (
                [gated.unpack_geglu_weight(self.weights[0])]
                if self.uses_kernel
                else [weight.to_dense() for weight in self.weights]
            )
            value, gate = F.linear(x, torch.cat(halves).to(x.dtype), torch.cat(self.biases).to(x.dtype)).chunk(
                2, dim=-1
            )
            return value * F.gelu(gate)
        if self.uses_kernel:
            return gated.geglu(x, self.weights[0], self.biases[0])
        gate = torch.ops.mkldnn._linear_pointwise(x, self.weights[1], self.biases[1], "gelu", [], "none")
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, gate, self.weights[0], self.biases[0], "mul")
        return out


class PackedConv(nn.Module):
    """A convolution."""

    def __init__(self, layer: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        padding: Any = layer.padding
        self.padding, self.stride = list(padding), list(layer.stride)
        self.weight = _pack_conv_weight(layer.weight.detach(), dtype, self.padding, self.stride)
        self.bias = _parameter_copy(layer.bias, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return _mkldnn_conv2d(x.contiguous(memory_format=torch.channels_last), self.weight, self.bias, self)


class PackedUpsampleConv(nn.Module):
    """A Growing by its phases: a 3 × 3 window on doubled pixels sees only 2 × 2 different ones, so each of the four
    places of a doubled pixel has a 2 × 2 convolution of its own, of summed weights, and 4/9 of the work."""

    def __init__(self, layer: UpsampleConv, dtype: torch.dtype) -> None:
        super().__init__()
        self.padding, self.stride = [1, 1], [1, 1]
        weight = layer.weight.detach().float()
        self.phases = [
            _pack_conv_weight(phase, dtype, self.padding, self.stride)
            for half in _sum_taps(weight, 2)
            for phase in _sum_taps(half, 3)
        ]
        self.bias = _parameter_copy(layer.bias, dtype)

    def forward(self, x: Tensor) -> Tensor:
        batch_size, _, height, width = x.shape
        x = x.contiguous(memory_format=torch.channels_last)
        out: Tensor | None = None
        for index, phase in enumerate(self.phases):
            row, column = divmod(index, 2)
            phase_out = _mkldnn_conv2d(x, phase, self.bias, self)  # (B, C, H + 1, W + 1)
            if out is None:
                out = x.new_empty(batch_size, 2 * height, 2 * width, phase_out.shape[1]).permute(0, 3, 1, 2)
            out[:, :, row::2, column::2] = phase_out[:, :, row : row + height, column : column + width]
        assert out is not None
        return out


def _sum_taps(weight: Tensor, dim: int) -> list[Tensor]:
    """Three taps along a side as the two that the first and the second half of a doubled pixel see."""
    first, middle, last = torch.split(weight, 1, dim)
    return [torch.cat([first, middle + last], dim), torch.cat([first + middle, last], dim)]


def _mkldnn_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, layer: PackedConv | PackedUpsampleConv) -> Tensor:
    if x.dtype != weight.dtype:
        return F.conv2d(x, weight.to_dense().to(x.dtype), bias, layer.stride, layer.padding)
    out: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, weight, bias, layer.padding, layer.stride, [1, 1], 1, *_NO_POST_OP
    )
    return out


def _pack_conv(layer: nn.Conv2d, dtype: torch.dtype) -> nn.Module:
    is_pointwise = layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.padding == (0, 0)
    return PackedLinear(layer, dtype) if is_pointwise else PackedConv(layer, dtype)


_LAYER_FACTORIES: dict[type, _LayerFactory] = {
    nn.Linear: PackedLinear,
    nn.Conv2d: _pack_conv,
    GatedFeedForward: PackedFeedForward,
    UpsampleConv: PackedUpsampleConv,
}
