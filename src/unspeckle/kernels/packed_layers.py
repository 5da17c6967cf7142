"""Layers for inference in bfloat16 on a CPU, whose weights are stored in the layout in which oneDNN or a kernel of ours
multiplies them, so that no call has to reorder them, and whose products include what follows them.

They compute what the plain layers compute, except for rounding, and have no gradients. For input of another dtype
(after `.float()`, when bfloat16 overflowed) they compute in that dtype.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unspeckle.kernels import geglu
from unspeckle.networks.layers import GatedFeedForward, UpsampleConv

# Operators are called by their overloads: choosing among them costs a message with all arguments for each that does not
# fit. With these arguments nothing follows a product.
_NO_POST_OP: Any = ("none", [], "")
_EXPECTED_ROWS = 4096  # the layout of packed matrices is chosen for products with that many rows


def can_pack() -> bool:
    """Whether this build of PyTorch has oneDNN's layers with packed weights."""
    operators = ("_linear_pointwise", "_reorder_linear_weight", "_convolution_pointwise")
    return bool(torch.backends.mkldnn.is_available()) and all(  # type: ignore[no-untyped-call]
        hasattr(torch.ops.mkldnn, name) for name in operators
    )


class ResidualModule(nn.Module):
    """A module whose forward takes a keyword argument residual, a tensor to add to its result. It is added within the
    last matrix product where that is possible, so that the sum is rounded only once."""


def add_residual(residual: Tensor | None, module: nn.Module, *inputs: Tensor | None) -> Tensor:
    """residual + module(*inputs), with a single rounding if the module is a ResidualModule."""
    if isinstance(module, ResidualModule):
        fused: Tensor = module(*inputs, residual=residual)
        return fused
    out: Tensor = module(*inputs)
    return out if residual is None else residual + out


class PackedLinear(ResidualModule):
    """A linear layer, or a 1 × 1 convolution, which is the same product for x (B, C, H, W)."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.is_conv = isinstance(layer, nn.Conv2d)
        self.out_features, self.in_features = layer.weight.shape[:2]
        self.weight = pack_matrix(layer.weight.detach().flatten(1), dtype)
        self.bias = parameter_copy(layer.bias, dtype)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x (…, in_features) or (B, in_features, H, W), and a residual of the result's shape."""
        rows, residual = self._to_rows(x), None if residual is None else self._to_rows(residual)
        out: Tensor
        if x.dtype != self.weight.dtype:
            out = F.linear(rows, self.weight.to_dense().to(x.dtype), self.bias)
            out = out if residual is None else out + residual
        elif residual is None:
            out = torch.ops.mkldnn._linear_pointwise.default(rows, self.weight, self.bias, *_NO_POST_OP)
        else:
            out = torch.ops.mkldnn._linear_pointwise.binary(rows, residual, self.weight, self.bias, "add")
        return out.permute(0, 3, 1, 2) if self.is_conv else out

    def _to_rows(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).contiguous() if self.is_conv else x.contiguous()


class PackedFeedForward(ResidualModule):
    """A GatedFeedForward. Its first half is the kernel of geglu.py, or two products of oneDNN, of which one ends in the
    GELU, and the other in the multiplication by it."""

    def __init__(self, feed_forward: GatedFeedForward, dtype: torch.dtype) -> None:
        super().__init__()
        weight, bias = feed_forward.proj_in.weight.detach(), feed_forward.proj_in.bias.detach()
        self.uses_kernel = geglu.is_geglu_supported(weight.shape[1], len(weight) // 2) and geglu.has_geglu_kernel()
        self.weights: list[Tensor]  # both halves in one, or those of the value and of the gate
        self.biases: list[Any]
        if self.uses_kernel:
            self.weights, self.biases = [geglu.pack_geglu_weight(weight)], [bias.float().clone()]
        else:
            self.weights = [pack_matrix(half, dtype) for half in weight.chunk(2)]
            self.biases = [parameter_copy(half, dtype) for half in bias.chunk(2)]
        self.proj_out = PackedLinear(feed_forward.proj_out, dtype)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x (…, width), and a residual of the same shape -> (…, width)."""
        return add_residual(residual, self.proj_out, self._geglu(x))

    def _geglu(self, x: Tensor) -> Tensor:
        """(…, width) -> (…, 4 · width)."""
        if x.dtype != torch.bfloat16:
            weight, bias = self._unpack_weight().to(x.dtype), torch.cat(self.biases).to(x.dtype)
            value, gate = F.linear(x, weight, bias).chunk(2, dim=-1)
            return value * F.gelu(gate)
        if self.uses_kernel:
            return geglu.geglu(x, self.weights[0], self.biases[0])
        gate = torch.ops.mkldnn._linear_pointwise.default(x, self.weights[1], self.biases[1], "gelu", [], "none")
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, gate, self.weights[0], self.biases[0], "mul")
        return out

    def _unpack_weight(self) -> Tensor:
        if self.uses_kernel:
            return geglu.unpack_geglu_weight(self.weights[0])
        return torch.cat([weight.to_dense() for weight in self.weights])


class PackedConv(nn.Module):
    """A convolution."""

    def __init__(self, layer: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        padding: Any = layer.padding
        self.padding, self.stride = list(padding), list(layer.stride)
        self.weight = _pack_conv_weight(layer.weight.detach(), dtype, self.padding, self.stride)
        self.bias = parameter_copy(layer.bias, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return _packed_conv2d(x.contiguous(memory_format=torch.channels_last), self.weight, self.bias, self)


class PackedUpsampleConv(nn.Module):
    """An UpsampleConv with 4/9 of the multiplications: a 3 × 3 window over upsampled pixels covers only 2 × 2 different
    ones, so each of the four pixels that one becomes has its own 2 × 2 convolution, with sums of the weights."""

    def __init__(self, layer: UpsampleConv, dtype: torch.dtype) -> None:
        super().__init__()
        self.padding, self.stride = [1, 1], [1, 1]
        weight = layer.weight.detach().float()
        phases = [phase for half in _sum_taps(weight, 2) for phase in _sum_taps(half, 3)]
        self.phase_weights = [_pack_conv_weight(phase, dtype, self.padding, self.stride) for phase in phases]
        self.bias = parameter_copy(layer.bias, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2·H, 2·W)."""
        batch_size, _, height, width = x.shape
        x = x.contiguous(memory_format=torch.channels_last)
        out: Tensor | None = None
        for index, weight in enumerate(self.phase_weights):
            row, column = divmod(index, 2)
            phase_out = _packed_conv2d(x, weight, self.bias, self)  # (B, C, H + 1, W + 1)
            if out is None:
                out = x.new_empty(batch_size, 2 * height, 2 * width, phase_out.shape[1]).permute(0, 3, 1, 2)
            out[:, :, row::2, column::2] = phase_out[:, :, row : row + height, column : column + width]
        assert out is not None
        return out


def pack_conv(layer: nn.Conv2d, dtype: torch.dtype) -> nn.Module:
    """The packed layer for a convolution."""
    is_pointwise = layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.padding == (0, 0)
    return PackedLinear(layer, dtype) if is_pointwise else PackedConv(layer, dtype)


def pack_matrix(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A matrix (O, C) in oneDNN's layout."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype).contiguous(), _EXPECTED_ROWS)
    return packed


def parameter_copy(tensor: Tensor | None, dtype: torch.dtype) -> nn.Parameter | None:
    """A copy without gradient, in that dtype."""
    if tensor is None:
        return None
    return nn.Parameter(tensor.detach().to(dtype, copy=True).contiguous(), requires_grad=False)


def _pack_conv_weight(weight: Tensor, dtype: torch.dtype, padding: list[int], stride: list[int]) -> Tensor:
    """A convolution's weights (O, C, kh, kw) in oneDNN's layout."""
    mkldnn_weight = weight.to(dtype).contiguous().to_mkldnn()
    packed: Tensor = torch._C._nn.mkldnn_reorder_conv2d_weight(mkldnn_weight, padding, stride, [1, 1], 1)
    return packed


def _sum_taps(weight: Tensor, dim: int) -> list[Tensor]:
    """The weights, three along dim, as two for the first and two for the second of the pixels that one becomes."""
    first, middle, last = torch.split(weight, 1, dim)
    return [torch.cat([first, middle + last], dim), torch.cat([first + middle, last], dim)]


def _packed_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, layer: PackedConv | PackedUpsampleConv) -> Tensor:
    if x.dtype != weight.dtype:
        return F.conv2d(x, weight.to_dense().to(x.dtype), bias, layer.stride, layer.padding)
    arguments = (layer.padding, layer.stride, [1, 1], 1)  # dilation 1, one group
    out: Tensor = torch.ops.mkldnn._convolution_pointwise.default(x, weight, bias, *arguments, *_NO_POST_OP)
    return out
