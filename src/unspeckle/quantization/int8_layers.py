"""A network made ready to draw by products of bytes: weights in int8, one scale for each output channel, and what they
are multiplied with in uint8, whose scale is found anew at every call. Results are bfloat16, and lossy.

Linear layers take a scale for each place, so that a place with large values costs the others nothing; convolutions,
whose windows hold several places, one for each picture and a zero of its own, as most of what a SiLU lets through is
above 0. So no picture hangs on those beside it.
What is named in `_LAYERS` is changed. Entry and exit, the embedding of time, what the words become (a draft too,
which is made once a drawing), and what reads the sum of all blocks without a norm before it (the skips, and from one
size to another) stay as they are.
"""

from typing import Any

import torch
from torch import Tensor, nn

from unspeckle.kernels import quantize
from unspeckle.kernels.compiling import cpu_features
from unspeckle.kernels.quantize import QuantizedRows
from unspeckle.networks import layers, transformer, unet
from unspeckle.networks.coarse_predictor import CoarseImagePredictor
from unspeckle.networks.lora import AdaptedLayer

_QUANTIZED_LAYERS: dict[type[nn.Module], tuple[str, ...]] = {  # whose linear layers and convolutions of that name
    unet.ResBlock: ("conv1", "conv2"),
    unet.SpatialTransformer: ("proj_in", "proj_out"),
    layers.Attention: ("to_q", "to_out"),
    transformer.JointAttention: ("to_qkv", "to_out"),
    transformer.ConvFeedForward: ("proj_in", "proj_out"),
}


def can_quantize() -> bool:
    """Whether torch multiplies bytes here by the processor's own instructions, and not by a reference."""
    has_onednn = bool(torch.backends.mkldnn.is_available()) and hasattr(torch.ops.onednn, "qlinear_pointwise")  # type: ignore[no-untyped-call]
    return has_onednn and "avx512_vnni" in cpu_features()


@torch.no_grad()
def quantize_layers(module: nn.Module) -> nn.Module:
    """The module, changed in place; all that is left in it is for `packing.lowered`. Layers with live adapters stay."""
    coarse_predictor_layers = {
        layer
        for submodule in module.modules()
        if isinstance(submodule, CoarseImagePredictor)
        for layer in submodule.modules()
    }
    for layer in (
        submodule
        for submodule in module.modules()
        if isinstance(submodule, unet.TransformerLayer) and submodule not in coarse_predictor_layers
    ):
        if layer.has_self_attn and type(layer.self_attn) is layers.Attention and not _has_adapters(layer.self_attn):
            layer.self_attn = QuantizedAttention(layer.self_attn)  # type: ignore[assignment]
    parts = [part for part in module.modules() if part not in coarse_predictor_layers]
    while parts:
        part = parts.pop()  # leaves first, and what was replaced is let go
        for name in _QUANTIZED_LAYERS.get(type(part), ()):
            if (quantized_layer := _quantize_layer(getattr(part, name, None))) is not None:
                setattr(part, name, quantized_layer)
        for name, child in part.named_children():
            if isinstance(child, layers.GatedFeedForward) and not _has_adapters(child):
                setattr(part, name, QuantizedFeedForward(child))
    return module


def _has_adapters(module: nn.Module) -> bool:
    return any(isinstance(submodule, AdaptedLayer) for submodule in module.modules())


def _quantize_layer(layer: Any) -> nn.Module | None:
    if type(layer) is nn.Linear or (type(layer) is nn.Conv2d and layer.kernel_size == (1, 1)):
        return QuantizedLinear(layer.weight, layer.bias)
    return QuantizedConv(layer) if type(layer) is nn.Conv2d else None


def _quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight (O, …) as int8 of its shape, and its channels' scales (O,)."""
    weight = weight.detach().float()
    largest = weight.flatten(1).abs().amax(1)
    scales = torch.where(largest == 0, 1.0, largest / 127)
    values = (weight / scales.view(-1, *[1] * (weight.ndim - 1))).round().to(torch.int8)
    return values.contiguous(), scales


def _float32_copy(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach().float().clone()


class Int8MatMul:
    """rows · weight, in bfloat16, still to be multiplied by the rows' scales."""

    def __init__(self, weight: Tensor) -> None:
        values, self.scales = _quantize_weight(weight)
        self.weight: Tensor = torch.ops.onednn.qlinear_prepack(values, [4096, values.shape[1]])
        self.zero_points = torch.zeros(len(values), dtype=torch.int32)

    def __call__(self, rows: QuantizedRows) -> Tensor:
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            rows.values, 1.0, quantize.ZERO_POINT, self.weight, self.scales, self.zero_points, None, 1.0, 0, torch.bfloat16,
            "none", [], "",
        )  # fmt: skip
        return out


class QuantizedLinear(nn.Module):
    """A linear layer, or a 1 × 1 convolution, which is the same product of (B, C, H, W)."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.is_conv = weight.ndim == 4
        self.out_features, self.in_features = weight.shape[:2]
        self.matmul, self.bias = Int8MatMul(weight.flatten(1)), _float32_copy(bias)

    def forward(self, x: Tensor) -> Tensor:
        x_last = x.permute(0, 2, 3, 1) if self.is_conv else x
        out = self.forward_rows(quantize.quantize_rows(x_last.reshape(-1, self.in_features))).view(
            *x_last.shape[:-1], self.out_features
        )
        return out.permute(0, 3, 1, 2) if self.is_conv else out

    def forward_rows(self, rows: QuantizedRows) -> Tensor:
        """(N, in) to (N, out)."""
        return quantize.scale_rows_(self.matmul(rows), rows.scales, self.bias)


class QuantizedAttention(nn.Module):
    """An Attention to what it sees itself: queries, keys and values are one product."""

    def __init__(self, attention: layers.Attention) -> None:
        super().__init__()
        self.heads, self.to_out = attention.heads, QuantizedLinear(attention.to_out.weight, attention.to_out.bias)
        self.to_qkv = QuantizedLinear(
            torch.cat([attention.to_q.weight, attention.to_k.weight, attention.to_v.weight]), None
        )

    def forward_self(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        query, key, value = self.to_qkv(x).chunk(3, dim=2)
        return layers.apply_with_residual(
            self.to_out, layers.multi_head_attention(query, key, value, self.heads), residual
        )


class QuantizedFeedForward(nn.Module):
    """A GatedFeedForward; what lies between its products is bytes only."""

    def __init__(self, feed_forward: layers.GatedFeedForward) -> None:
        super().__init__()
        self.proj_in, self.bias = (
            Int8MatMul(feed_forward.proj_in.weight),
            feed_forward.proj_in.bias.detach().float().clone(),
        )
        self.proj_out = QuantizedLinear(feed_forward.proj_out.weight, feed_forward.proj_out.bias)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        rows = quantize.quantize_rows(x.reshape(-1, x.shape[-1]))
        out = self.proj_out.forward_rows(quantize.quantize_geglu(self.proj_in(rows), rows.scales, self.bias)).view(
            x.shape
        )
        return out if residual is None else residual + out


class QuantizedConv(nn.Module):
    """A convolution."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        padding: Any = layer.padding
        self.padding, self.stride = list(padding), list(layer.stride)
        values, self.scales = _quantize_weight(layer.weight)
        self.weight: Tensor = torch.ops.onednn.qconv_prepack(
            values, self.scales, 1.0, quantize.ZERO_POINT, self.stride, self.padding, [1, 1], 1,
            [2, layer.in_channels, 32, 32],
        )  # fmt: skip
        self.zero_points, self.bias = torch.zeros(len(values), dtype=torch.int32), _float32_copy(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        outputs = [self._forward_image(x[i : i + 1]) for i in range(len(x))]
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]

    def _forward_image(self, image: Tensor) -> Tensor:
        values, scale, zero_point = quantize.quantize_tensor(image)
        out: Tensor = torch.ops.onednn.qconv2d_pointwise.tensor(
            values, scale, zero_point, self.weight, self.scales, self.zero_points, self.bias, self.stride, self.padding, [1, 1], 1,
            1.0, 0, torch.bfloat16, "none", [], "",
        )  # fmt: skip
        return out
