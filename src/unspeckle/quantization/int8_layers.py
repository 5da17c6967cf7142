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
from unspeckle.kernels.compiling import processor
from unspeckle.kernels.quantize import Rows
from unspeckle.networks import layers, transformer, unet
from unspeckle.networks.coarse_predictor import Draft
from unspeckle.networks.lora import Adapted

_LAYERS: dict[type[nn.Module], tuple[str, ...]] = {  # whose linear layers and convolutions of that name
    unet.ResBlock: ("conv1", "conv2"),
    unet.SpatialTransformer: ("enter", "leave"),
    layers.Attention: ("query", "out"),
    transformer.Attention: ("enter", "out"),
    transformer.FeedForward: ("enter", "out"),
}


def quantisable() -> bool:
    """Whether torch multiplies bytes here by the processor's own instructions, and not by a reference."""
    ready = bool(torch.backends.mkldnn.is_available()) and hasattr(torch.ops.onednn, "qlinear_pointwise")  # type: ignore[no-untyped-call]
    return ready and "avx512_vnni" in processor()


@torch.no_grad()
def quantised(module: nn.Module) -> nn.Module:
    """The module, changed in place; all that is left in it is for `packing.lowered`. Layers with live adapters stay."""
    drafts = {layer for one in module.modules() if isinstance(one, Draft) for layer in one.modules()}
    for layer in (one for one in module.modules() if isinstance(one, unet.Layer) and one not in drafts):
        if layer.sees_itself and type(layer.itself) is layers.Attention and not _adapted(layer.itself):
            layer.itself = QuantisedAttention(layer.itself)  # type: ignore[assignment]
    parts = [part for part in module.modules() if part not in drafts]
    while parts:
        part = parts.pop()  # leaves first, and what was replaced is let go
        for name in _LAYERS.get(type(part), ()):
            if (made := _made(getattr(part, name, None))) is not None:
                setattr(part, name, made)
        for name, child in part.named_children():
            if isinstance(child, layers.GatedFeedForward) and not _adapted(child):
                setattr(part, name, QuantisedFeedForward(child))
    return module


def _adapted(module: nn.Module) -> bool:
    return any(isinstance(one, Adapted) for one in module.modules())


def _made(layer: Any) -> nn.Module | None:
    if type(layer) is nn.Linear or (type(layer) is nn.Conv2d and layer.kernel_size == (1, 1)):
        return QuantisedLinear(layer.weight, layer.bias)
    return QuantisedConv(layer) if type(layer) is nn.Conv2d else None


def _bytes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight (O, …) as int8 of its shape, and its channels' scales (O,)."""
    weight = weight.detach().float()
    most = weight.flatten(1).abs().amax(1)
    scales = torch.where(most == 0, 1.0, most / 127)
    whole = (weight / scales.view(-1, *[1] * (weight.ndim - 1))).round().to(torch.int8)
    return whole.contiguous(), scales


def _kept(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach().float().clone()


class Product:
    """rows · weight, in bfloat16, still to be multiplied by the rows' scales."""

    def __init__(self, weight: Tensor) -> None:
        whole, self.scales = _bytes(weight)
        self.weight: Tensor = torch.ops.onednn.qlinear_prepack(whole, [4096, whole.shape[1]])
        self.zeros = torch.zeros(len(whole), dtype=torch.int32)

    def __call__(self, rows: Rows) -> Tensor:
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            rows.bytes, 1.0, quantize.ZERO, self.weight, self.scales, self.zeros, None, 1.0, 0, torch.bfloat16,
            "none", [], "",
        )  # fmt: skip
        return out


class QuantisedLinear(nn.Module):
    """A linear layer, or a 1 × 1 convolution, which is the same product of (B, C, H, W)."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.maps = weight.ndim == 4
        self.out_features, self.in_features = weight.shape[:2]
        self.product, self.own = Product(weight.flatten(1)), _kept(bias)

    def forward(self, x: Tensor) -> Tensor:
        last = x.permute(0, 2, 3, 1) if self.maps else x
        out = self.of(quantize.rows(last.reshape(-1, self.in_features))).view(*last.shape[:-1], self.out_features)
        return out.permute(0, 3, 1, 2) if self.maps else out

    def of(self, rows: Rows) -> Tensor:
        """(N, in) to (N, out)."""
        return quantize.scaled(self.product(rows), rows.scales, self.own)


class QuantisedAttention(nn.Module):
    """An Attention to what it sees itself: queries, keys and values are one product."""

    def __init__(self, one: layers.Attention) -> None:
        super().__init__()
        self.heads, self.out = one.heads, QuantisedLinear(one.out.weight, one.out.bias)
        self.three = QuantisedLinear(torch.cat([one.query.weight, one.key.weight, one.value.weight]), None)

    def within(self, x: Tensor, beside: Tensor | None = None) -> Tensor:
        query, key, value = self.three(x).chunk(3, dim=2)
        return layers.added(self.out, layers.attend(query, key, value, self.heads), beside)


class QuantisedFeedForward(nn.Module):
    """A GatedFeedForward; what lies between its products is bytes only."""

    def __init__(self, feed: layers.GatedFeedForward) -> None:
        super().__init__()
        self.enter, self.own = Product(feed.enter.weight), feed.enter.bias.detach().float().clone()
        self.out = QuantisedLinear(feed.out.weight, feed.out.bias)

    def forward(self, x: Tensor, beside: Tensor | None = None) -> Tensor:
        rows = quantize.rows(x.reshape(-1, x.shape[-1]))
        out = self.out.of(quantize.gated(self.enter(rows), rows.scales, self.own)).view(x.shape)
        return out if beside is None else beside + out


class QuantisedConv(nn.Module):
    """A convolution."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        padding: Any = layer.padding
        self.padding, self.stride = list(padding), list(layer.stride)
        whole, self.scales = _bytes(layer.weight)
        self.weight: Tensor = torch.ops.onednn.qconv_prepack(
            whole, self.scales, 1.0, quantize.ZERO, self.stride, self.padding, [1, 1], 1,
            [2, layer.in_channels, 32, 32],
        )  # fmt: skip
        self.zeros, self.own = torch.zeros(len(whole), dtype=torch.int32), _kept(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        each = [self._one(x[place : place + 1]) for place in range(len(x))]
        return torch.cat(each) if len(each) > 1 else each[0]

    def _one(self, picture: Tensor) -> Tensor:
        whole, scale, zero = quantize.whole(picture)
        out: Tensor = torch.ops.onednn.qconv2d_pointwise.tensor(
            whole, scale, zero, self.weight, self.scales, self.zeros, self.own, self.stride, self.padding, [1, 1], 1,
            1.0, 0, torch.bfloat16, "none", [], "",
        )  # fmt: skip
        return out
