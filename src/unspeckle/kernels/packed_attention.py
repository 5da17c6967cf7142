"""Attention and transformer layers for inference in bfloat16 on a CPU, whose residual connections are added within the
output projections, with one rounding.

Each takes over the modules of the plain layer in whose place it is put, under the same names. These may be packed,
quantized, or layers with adapters.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unspeckle.kernels.packed_layers import PackedLinear, ResidualModule, add_residual
from unspeckle.networks.layers import Attention, GatedFeedForward, SelfAttention, to_feature_map, to_tokens
from unspeckle.networks.unet_blocks import SpatialTransformer, TransformerLayer
from unspeckle.networks.vae import VAEAttention


class PackedSelfAttention(ResidualModule):
    """A SelfAttention whose queries, keys and values are one product."""

    def __init__(self, attention: SelfAttention, dtype: torch.dtype) -> None:
        super().__init__()
        weights = [projection.weight.detach() for projection in (attention.to_q, attention.to_k, attention.to_v)]
        qkv = nn.Linear(weights[0].shape[1], sum(map(len, weights)), bias=False, device="meta")
        qkv.weight = nn.Parameter(torch.cat(weights))
        self.to_qkv, self.sdpa = PackedLinear(qkv, dtype), attention.sdpa
        self.to_out = PackedLinear(attention.to_out, dtype)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x (B, N, width), and a residual of the same shape -> (B, N, width)."""
        query, key, value = self.to_qkv(x).chunk(3, dim=2)
        return add_residual(residual, self.to_out, self.sdpa(query, key, value))


class PackedAttention(ResidualModule):
    """An Attention, or a SelfAttention whose projections cannot be one product because of adapters."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = attention.to_q, attention.to_k, attention.to_v
        self.sdpa, self.to_out = attention.sdpa, attention.to_out

    def project_keys_values(self, context: Tensor) -> Tensor:
        """Context (B, M, context_width) -> keys and values (B, M, 2 · width)."""
        return torch.cat([self.to_k(context), self.to_v(context)], dim=2)

    def forward(
        self,
        x: Tensor,
        keys_values: Tensor | None = None,
        mask: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """As Attention's, plus the residual (B, N, width). Without keys_values it is attention of x to itself."""
        keys_values = self.project_keys_values(x) if keys_values is None else keys_values
        key, value = keys_values.chunk(2, dim=2)
        return add_residual(residual, self.to_out, self.sdpa(self.to_q(x), key, value, mask))


class AdaptedFeedForward(ResidualModule):
    """A GatedFeedForward with adapters at its projections, or at one of them."""

    def __init__(self, feed_forward: GatedFeedForward) -> None:
        super().__init__()
        self.proj_in, self.proj_out = feed_forward.proj_in, feed_forward.proj_out

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x (…, width), and a residual of the same shape -> (…, width)."""
        value, gate = self.proj_in(x).chunk(2, dim=-1)
        return add_residual(residual, self.proj_out, value * F.gelu(gate))


class PackedTransformerLayer(nn.Module):
    """A TransformerLayer of the U-Net."""

    def __init__(self, layer: TransformerLayer) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = layer.norm1, layer.norm2, layer.norm3
        self.self_attn: nn.Module | None = layer.self_attn
        if isinstance(layer.self_attn, SelfAttention):
            self.self_attn = PackedAttention(layer.self_attn)
        self.cross_attn = PackedAttention(layer.cross_attn)
        self.feed_forward: nn.Module | None = layer.feed_forward
        if isinstance(layer.feed_forward, GatedFeedForward):
            self.feed_forward = AdaptedFeedForward(layer.feed_forward)

    def forward(self, x: Tensor, keys_values: Tensor, mask: Tensor | None) -> Tensor:
        if self.self_attn is not None and self.norm1 is not None:
            x = add_residual(x, self.self_attn, self.norm1(x))
        x = add_residual(x, self.cross_attn, self.norm2(x), keys_values, mask)
        if self.feed_forward is not None and self.norm3 is not None:
            x = add_residual(x, self.feed_forward, self.norm3(x))
        return x


class PackedSpatialTransformer(SpatialTransformer):
    """A SpatialTransformer of the U-Net."""

    def __init__(self, transformer: SpatialTransformer) -> None:
        nn.Module.__init__(self)
        self.projection, self.layers = transformer.projection, transformer.layers
        if self.projection != "none":
            self.norm, self.proj_in, self.proj_out = transformer.norm, transformer.proj_in, transformer.proj_out

    def project_out(self, tokens: Tensor, x: Tensor) -> Tensor:
        if self.projection == "none":
            return to_feature_map(tokens, x.shape)
        if self.projection == "linear":
            return to_feature_map(add_residual(to_tokens(x), self.proj_out, tokens), x.shape)
        return add_residual(x, self.proj_out, to_feature_map(tokens, x.shape))


class PackedVAEAttention(VAEAttention):
    """A VAEAttention."""

    def __init__(self, attention: VAEAttention) -> None:
        nn.Module.__init__(self)
        self.norm, self.sdpa = attention.norm, attention.sdpa
        self.to_q, self.to_k, self.to_v, self.to_out = attention.to_q, attention.to_k, attention.to_v, attention.to_out

    def forward(self, x: Tensor) -> Tensor:
        return to_feature_map(add_residual(to_tokens(x), self.to_out, self.attend(x)), x.shape)
