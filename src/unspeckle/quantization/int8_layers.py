"""Layers whose products are of 8-bit integers, and their swap into a network. Their results are bfloat16, and lossy.

Weights are int8 with a scale for each output channel; activations are quantized to uint8 at every call. A linear
layer's activations have a scale for each row, so that a row with large values does not cost the others their precision.
A convolution, whose windows hold several rows, has a scale and a zero point for each image, as what SiLU returns is
mostly above 0. So an image's result does not depend on the others in the batch.

Only the layers in _QUANTIZED_LAYERS, self-attention and feed-forward layers are quantized. The first and the last
convolution, the time embedding, everything that is computed only once an image (keys and values of the text, the coarse
image), and the layers that read the sum of all blocks without a normalization (downsamplers, upsamplers, shortcuts)
keep their precision.
"""

from typing import Any

import torch
from torch import Tensor, nn

from unspeckle.kernels import quantize
from unspeckle.kernels.compiling import cpu_features
from unspeckle.kernels.inference import has_adapters, is_plain_self_attention
from unspeckle.kernels.quantize import QuantizedRows
from unspeckle.networks import joint_attention, layers, transformer, unet_blocks
from unspeckle.networks.coarse_predictor import CoarseImagePredictor

# The names of the linear layers and convolutions to quantize, by the class of the module that they belong to.
_QUANTIZED_LAYERS: dict[type[nn.Module], tuple[str, ...]] = {
    unet_blocks.ResBlock: ("conv1", "conv2"),
    unet_blocks.SpatialTransformer: ("proj_in", "proj_out"),
    layers.Attention: ("to_q", "to_out"),
    layers.SelfAttention: ("to_q", "to_out"),
    joint_attention.JointAttention: ("to_qkv", "to_out"),
    transformer.ConvFeedForward: ("proj_in", "proj_out"),
}
_MAX_MAGNITUDE = 127  # of the int8 values
_EXPECTED_ROWS = 4096  # oneDNN chooses the layout of packed matrices for products with that many rows
_EXPECTED_SIZE = [32, 32]  # and that of convolutions for images of that size
_OUTPUT = (1.0, 0, torch.bfloat16)  # scale and zero point of the output, which is not quantized, and its dtype
_NO_POST_OP: Any = ("none", [], "")  # nothing follows the product


def can_quantize() -> bool:
    """Whether PyTorch multiplies 8-bit integers with the processor's instructions for it here, and not by a slow
    reference implementation."""
    has_onednn = bool(torch.backends.mkldnn.is_available()) and hasattr(torch.ops.onednn, "qlinear_pointwise")  # type: ignore[no-untyped-call]
    return has_onednn and "avx512_vnni" in cpu_features()


@torch.no_grad()
def quantize_layers(module: nn.Module) -> nn.Module:
    """Quantize the module's layers in place, except those with adapters, and return it. `cast_for_inference` converts
    the rest afterwards."""
    modules = _modules_without_coarse_predictor(module)
    for layer in modules:
        if isinstance(layer, unet_blocks.TransformerLayer) and is_plain_self_attention(layer.self_attn):
            layer.self_attn = QuantizedSelfAttention(layer.self_attn)  # type: ignore[arg-type,assignment]
    modules = _modules_without_coarse_predictor(module)
    while modules:
        # From the leaves up; each module is released as soon as its layers have been replaced.
        parent = modules.pop()
        for name in _QUANTIZED_LAYERS.get(type(parent), ()):
            if (quantized_layer := _quantize_layer(getattr(parent, name, None))) is not None:
                setattr(parent, name, quantized_layer)
        for name, child in list(parent.named_children()):
            if isinstance(child, layers.GatedFeedForward) and not has_adapters(child):
                setattr(parent, name, QuantizedFeedForward(child))
    return module


def _modules_without_coarse_predictor(module: nn.Module) -> list[nn.Module]:
    """All modules in the module except those of its CoarseImagePredictor, which runs only once an image."""
    predictors = [submodule for submodule in module.modules() if isinstance(submodule, CoarseImagePredictor)]
    excluded = {submodule for predictor in predictors for submodule in predictor.modules()}
    return [submodule for submodule in module.modules() if submodule not in excluded]


def _quantize_layer(layer: Any) -> nn.Module | None:
    """The quantized form of a linear layer or convolution; None for anything else, such as a layer with adapters."""
    if type(layer) is nn.Linear or (type(layer) is nn.Conv2d and layer.kernel_size == (1, 1)):
        return QuantizedLinear(layer.weight, layer.bias)
    return QuantizedConv(layer) if type(layer) is nn.Conv2d else None


def _quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight (O, …) as int8 of its shape, and the scales (O,) of its output channels."""
    weight = weight.detach().float()
    largest = weight.flatten(1).abs().amax(1)
    scales = torch.where(largest == 0, 1.0, largest / _MAX_MAGNITUDE)
    values = (weight / scales.view(-1, *[1] * (weight.ndim - 1))).round().to(torch.int8)
    return values.contiguous(), scales


def _float32_copy(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach().float().clone()


class Int8MatMul:
    """The product of quantized rows (N, C) and a weight (O, C): (N, O) bfloat16, still without the rows' scales."""

    def __init__(self, weight: Tensor) -> None:
        values, self.scales = _quantize_weight(weight)
        self.weight: Tensor = torch.ops.onednn.qlinear_prepack(values, [_EXPECTED_ROWS, values.shape[1]])
        self.zero_points = torch.zeros(len(values), dtype=torch.int32)

    def __call__(self, rows: QuantizedRows) -> Tensor:
        quantized_weight = (self.weight, self.scales, self.zero_points)
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            rows.values, 1.0, quantize.ZERO_POINT, *quantized_weight, None, *_OUTPUT, *_NO_POST_OP
        )
        return out


class QuantizedLinear(nn.Module):
    """A linear layer, or a 1 × 1 convolution, which is the same product for x (B, C, H, W)."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.is_conv = weight.ndim == 4
        self.out_features, self.in_features = weight.shape[:2]
        self.matmul, self.bias = Int8MatMul(weight.flatten(1)), _float32_copy(bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (…, in_features) or (B, in_features, H, W) bfloat16."""
        channels_last = x.permute(0, 2, 3, 1) if self.is_conv else x
        rows = quantize.quantize_rows(channels_last.reshape(-1, self.in_features))
        out = self.forward_rows(rows).view(*channels_last.shape[:-1], self.out_features)
        return out.permute(0, 3, 1, 2) if self.is_conv else out

    def forward_rows(self, rows: QuantizedRows) -> Tensor:
        """Quantized rows (N, in_features) -> (N, out_features) bfloat16."""
        return quantize.scale_rows_(self.matmul(rows), rows.scales, self.bias)


class QuantizedSelfAttention(nn.Module):
    """A SelfAttention whose queries, keys and values are one product."""

    def __init__(self, attention: layers.SelfAttention) -> None:
        super().__init__()
        self.sdpa, self.to_out = attention.sdpa, QuantizedLinear(attention.to_out.weight, attention.to_out.bias)
        weights = [attention.to_q.weight, attention.to_k.weight, attention.to_v.weight]
        self.to_qkv = QuantizedLinear(torch.cat(weights), None)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, width) -> (B, N, width)."""
        query, key, value = self.to_qkv(x).chunk(3, dim=2)
        out: Tensor = self.to_out(self.sdpa(query, key, value))
        return out


class QuantizedFeedForward(nn.Module):
    """A GatedFeedForward, quantized between its two products as well."""

    def __init__(self, feed_forward: layers.GatedFeedForward) -> None:
        super().__init__()
        self.proj_in = Int8MatMul(feed_forward.proj_in.weight)
        self.bias = feed_forward.proj_in.bias.detach().float().clone()
        self.proj_out = QuantizedLinear(feed_forward.proj_out.weight, feed_forward.proj_out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (…, width) -> (…, width)."""
        rows = quantize.quantize_rows(x.reshape(-1, x.shape[-1]))
        hidden_rows = quantize.quantize_geglu(self.proj_in(rows), rows.scales, self.bias)
        return self.proj_out.forward_rows(hidden_rows).view(x.shape)


class QuantizedConv(nn.Module):
    """A convolution."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        padding: Any = layer.padding
        self.padding, self.stride = list(padding), list(layer.stride)
        values, self.scales = _quantize_weight(layer.weight)
        geometry = (self.stride, self.padding, [1, 1], 1)  # dilation 1, one group
        expected_shape = [2, layer.in_channels, *_EXPECTED_SIZE]
        self.weight: Tensor = torch.ops.onednn.qconv_prepack(
            values, self.scales, 1.0, quantize.ZERO_POINT, *geometry, expected_shape
        )
        self.zero_points, self.bias = torch.zeros(len(values), dtype=torch.int32), _float32_copy(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) bfloat16 -> (B, O, H', W') bfloat16."""
        x = x.contiguous(memory_format=torch.channels_last)
        outputs = [self._forward_image(x[i : i + 1]) for i in range(len(x))]
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]

    def _forward_image(self, image: Tensor) -> Tensor:
        quantized_weight = (self.weight, self.scales, self.zero_points, self.bias)
        geometry = (self.stride, self.padding, [1, 1], 1)
        out: Tensor = torch.ops.onednn.qconv2d_pointwise.tensor(
            *quantize.quantize_tensor(image), *quantized_weight, *geometry, *_OUTPUT, *_NO_POST_OP
        )
        return out
