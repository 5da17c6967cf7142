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
from unspeckle.kernels.fused_layers import FusedBlock, FusedConv, FusedExit, fusable
from unspeckle.networks.layers import Attention, GatedFeedForward, Growing, added, attend
from unspeckle.networks.lora import Adapted
from unspeckle.networks.unet import Layer, ResBlock, UNet
from unspeckle.networks.vae import Decoder, Encoder, VaeBlock

_Maker = Callable[[Any, torch.dtype], nn.Module]
_PLAIN: Any = ("none", [], "")  # nothing follows the product


def lowered(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module for drawing in that precision, changed in place. Its weights may still lie in a file's memory map, in
    any precision: each is read, cast and let go on its own, so that no second copy of all is in memory."""
    if dtype == torch.bfloat16 and packable():
        _pack(module, dtype)
    for part in module.modules():
        for name, held in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            if held.is_floating_point():
                order = torch.channels_last if held.ndim == 4 else torch.contiguous_format
                own = held.detach().to(dtype, copy=True).contiguous(memory_format=order)
                if isinstance(held, nn.Parameter):
                    setattr(part, name, nn.Parameter(own, requires_grad=False))
                else:
                    part._buffers[name] = own
    return module.eval()


def _pack(parent: Any, dtype: torch.dtype) -> None:
    """Put packed layers in the places of all those that have such, but for those with adapters, which stay live."""
    exits = isinstance(parent, UNet | Encoder | Decoder) and type(parent.norm) is nn.GroupNorm
    if exits and _fits(parent.leave) and fusable(parent.leave):
        parent.leave = FusedExit(parent.leave, parent.norm)  # whose norm stays, and tells the precision
    for name, child in list(parent.named_children()):
        if isinstance(child, Adapted):
            continue
        itself = isinstance(parent, Layer) and name == "itself" and type(child) is Attention
        make = (PackedAttention if _fits(child) else None) if itself else _maker(child)
        if make is not None:
            child = make(child, dtype)
            setattr(parent, name, child)
        if make is None or isinstance(child, FusedBlock):
            _pack(child, dtype)


def _maker(layer: nn.Module) -> _Maker | None:
    """What makes a packed layer of this one, if there is such."""
    if not _fits(layer):
        return None
    if isinstance(layer, ResBlock | VaeBlock):
        return (lambda block, _: FusedBlock(block)) if fusable(layer) else None
    if type(layer) in (nn.Conv2d, Growing) and fusable(layer):
        return lambda conv, _: FusedConv(conv)
    return _PACKED.get(type(layer))


def packable() -> bool:
    """Whether this torch has oneDNN's layers with packed weights."""
    needs = ("_linear_pointwise", "_reorder_linear_weight", "_convolution_pointwise")
    return bool(torch.backends.mkldnn.is_available()) and all(  # type: ignore[no-untyped-call]
        hasattr(torch.ops.mkldnn, name) for name in needs
    )


def _fits(layer: nn.Module) -> bool:
    """Whether the layer is of the kinds that the packed ones stand for."""
    if any(one.device.type != "cpu" for one in layer.parameters()):
        return False
    if any(isinstance(one, Adapted) for one in layer.modules()):
        return False
    return not isinstance(layer, nn.Conv2d) or (layer.groups == 1 and layer.padding_mode == "zeros")


def _own(tensor: Tensor | None, dtype: torch.dtype) -> nn.Parameter | None:
    if tensor is None:
        return None
    return nn.Parameter(tensor.detach().to(dtype, copy=True).contiguous(), requires_grad=False)


def _rows(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A matrix (out, in) packed for a product with some thousand rows."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype).contiguous(), 4096)
    return packed


def _taps(weight: Tensor, dtype: torch.dtype, padding: list[int], stride: list[int]) -> Tensor:
    """A convolution's weights (out, in, kh, kw) packed."""
    plain = weight.to(dtype).contiguous().to_mkldnn()
    packed: Tensor = torch._C._nn.mkldnn_reorder_conv2d_weight(plain, padding, stride, [1, 1], 1)
    return packed


class PackedLinear(nn.Module):
    """A linear layer, or a 1 × 1 convolution, which is the same product of (B, C, H, W)."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.maps = isinstance(layer, nn.Conv2d)
        self.out_features, self.in_features = layer.weight.shape[:2]
        self.weight, self.bias = _rows(layer.weight.detach().flatten(1), dtype), _own(layer.bias, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self._of(x, None)

    def onto(self, x: Tensor, beside: Tensor) -> Tensor:
        """forward(x) + beside, in one rounding."""
        return self._of(x, beside)

    def _of(self, x: Tensor, beside: Tensor | None) -> Tensor:
        rows, summand = self._last(x), None if beside is None else self._last(beside)
        out: Tensor
        if x.dtype != self.weight.dtype:
            out = F.linear(rows, self.weight.to_dense().to(x.dtype), self.bias)
            out = out if summand is None else out + summand
        elif summand is None:
            out = torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, *_PLAIN)
        else:
            out = torch.ops.mkldnn._linear_pointwise(rows, summand, self.weight, self.bias, "add")
        return out.permute(0, 3, 1, 2) if self.maps else out

    def _last(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).contiguous() if self.maps else x.contiguous()


class PackedAttention(nn.Module):
    """An Attention to what it sees itself: queries, keys and values are one product."""

    def __init__(self, one: Any, dtype: torch.dtype) -> None:
        super().__init__()
        three = (one.query, one.key, one.value)
        whole = nn.Linear(one.query.in_features, sum(part.out_features for part in three), False, device="meta")
        whole.weight = nn.Parameter(torch.cat([part.weight.detach() for part in three]))
        self.heads, self.three = one.heads, PackedLinear(whole, dtype)
        self.out = PackedLinear(one.out, dtype)

    def within(self, x: Tensor, beside: Tensor | None = None) -> Tensor:
        query, key, value = self.three(x).chunk(3, dim=2)
        return added(self.out, attend(query, key, value, self.heads), beside)


class PackedFeedForward(nn.Module):
    """A GatedFeedForward. Its entry is two products: by our own kernel, or so that the gelu ends the one and the other
    ends in the multiplication by it."""

    def __init__(self, feed: GatedFeedForward, dtype: torch.dtype) -> None:
        super().__init__()
        weight, bias = feed.enter.weight.detach(), feed.enter.bias.detach()
        self.ours = gated.fits(weight.shape[1], len(weight) // 2) and gated.usable()
        self.weights = [gated.packed(weight)] if self.ours else [_rows(half, dtype) for half in weight.chunk(2)]
        self.biases: list[Any] = [bias.float().clone()] if self.ours else [_own(half, dtype) for half in bias.chunk(2)]
        self.out = PackedLinear(feed.out, dtype)

    def forward(self, x: Tensor, beside: Tensor | None = None) -> Tensor:
        return added(self.out, self._entered(x), beside)

    def _entered(self, x: Tensor) -> Tensor:
        if x.dtype != torch.bfloat16:
            ways = [gated.unpacked(self.weights[0])] if self.ours else [one.to_dense() for one in self.weights]
            value, gate = F.linear(x, torch.cat(ways).to(x.dtype), torch.cat(self.biases).to(x.dtype)).chunk(2, dim=-1)
            return value * F.gelu(gate)
        if self.ours:
            return gated.gated(x, self.weights[0], self.biases[0])
        gate = torch.ops.mkldnn._linear_pointwise(x, self.weights[1], self.biases[1], "gelu", [], "none")
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, gate, self.weights[0], self.biases[0], "mul")
        return out


class PackedConv(nn.Module):
    """A convolution."""

    def __init__(self, layer: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        padding: Any = layer.padding
        self.padding, self.stride = list(padding), list(layer.stride)
        self.weight = _taps(layer.weight.detach(), dtype, self.padding, self.stride)
        self.bias = _own(layer.bias, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return _convolved(x.contiguous(memory_format=torch.channels_last), self.weight, self.bias, self)


class PackedGrowing(nn.Module):
    """A Growing by its phases: a 3 × 3 window on doubled pixels sees only 2 × 2 different ones, so each of the four
    places of a doubled pixel has a 2 × 2 convolution of its own, of summed weights, and 4/9 of the work."""

    def __init__(self, layer: Growing, dtype: torch.dtype) -> None:
        super().__init__()
        self.padding, self.stride = [1, 1], [1, 1]
        weight = layer.weight.detach().float()
        self.phases = [
            _taps(phase, dtype, self.padding, self.stride) for half in _halves(weight, 2) for phase in _halves(half, 3)
        ]
        self.bias = _own(layer.bias, dtype)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, high, wide = x.shape
        x = x.contiguous(memory_format=torch.channels_last)
        out: Tensor | None = None
        for place, phase in enumerate(self.phases):
            down, right = divmod(place, 2)
            seen = _convolved(x, phase, self.bias, self)  # (B, C, H + 1, W + 1)
            if out is None:
                out = x.new_empty(batch, 2 * high, 2 * wide, seen.shape[1]).permute(0, 3, 1, 2)
            out[:, :, down::2, right::2] = seen[:, :, down : down + high, right : right + wide]
        assert out is not None
        return out


def _halves(weight: Tensor, side: int) -> list[Tensor]:
    """Three taps along a side as the two that the first and the second half of a doubled pixel see."""
    first, middle, last = torch.split(weight, 1, side)
    return [torch.cat([first, middle + last], side), torch.cat([first + middle, last], side)]


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, layer: PackedConv | PackedGrowing) -> Tensor:
    if x.dtype != weight.dtype:
        return F.conv2d(x, weight.to_dense().to(x.dtype), bias, layer.stride, layer.padding)
    out: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, weight, bias, layer.padding, layer.stride, [1, 1], 1, *_PLAIN
    )
    return out


def _convolution(layer: nn.Conv2d, dtype: torch.dtype) -> nn.Module:
    alone = layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.padding == (0, 0)
    return PackedLinear(layer, dtype) if alone else PackedConv(layer, dtype)


_PACKED: dict[type, _Maker] = {
    nn.Linear: PackedLinear,
    nn.Conv2d: _convolution,
    GatedFeedForward: PackedFeedForward,
    Growing: PackedGrowing,
}
