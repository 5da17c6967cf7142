"""The blocks of the U-Net: residual blocks, and transformers over the pixels of a feature map."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unspeckle.networks.layers import (
    Attention,
    GatedFeedForward,
    SelfAttention,
    make_norm,
    to_feature_map,
    to_tokens,
    zero_init,
)


class ResBlock(nn.Module):
    """A residual block with two convolutions (He et al. 2016), conditioned on the time (Ho et al. 2020).

    time_width: channels of the time embedding. norm_groups: 0 for LayerNorm2d. scale_shift: the time embedding scales
    and shifts the second normalization (Dhariwal & Nichol 2021); otherwise it is added before it.
    """

    def __init__(
        self, in_channels: int, out_channels: int, time_width: int, *, norm_groups: int, scale_shift: bool
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.norm1 = make_norm(in_channels, norm_groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_width, 2 * out_channels if scale_shift else out_channels)
        self.norm2 = make_norm(out_channels, norm_groups)
        self.conv2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, time_embed: Tensor) -> Tensor:
        """x (B, in_channels, H, W), time_embed (B, time_width) -> (B, out_channels, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        modulation = self.time_emb_proj(time_embed)[:, :, None, None]
        if self.scale_shift:
            scale, shift = modulation.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        else:
            h = self.norm2(h + modulation)
        out: Tensor = self.shortcut(x) + self.conv2(F.silu(h))
        return out


class TransformerLayer(nn.Module):
    """A pre-norm transformer layer: self-attention, attention to the text, and a feed-forward layer. The first and the
    last are optional, as they are expensive for large feature maps."""

    def __init__(self, width: int, heads: int, text_width: int, *, has_self_attn: bool, has_feed_forward: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width) if has_self_attn else None
        self.self_attn = SelfAttention(width, heads) if has_self_attn else None
        self.norm2 = nn.LayerNorm(width)
        self.cross_attn = Attention(width, heads, text_width)
        self.norm3 = nn.LayerNorm(width) if has_feed_forward else None
        self.feed_forward = GatedFeedForward(width) if has_feed_forward else None

    def forward(self, x: Tensor, keys_values: Tensor, mask: Tensor | None) -> Tensor:
        """x (B, N, width), the text's keys_values (B, L, 2 · width) and mask (B, L) -> (B, N, width)."""
        if self.self_attn is not None and self.norm1 is not None:
            x = x + self.self_attn(self.norm1(x))
        x = x + self.cross_attn(self.norm2(x), keys_values, mask)
        if self.feed_forward is not None and self.norm3 is not None:
            x = x + self.feed_forward(self.norm3(x))
        return x


class SpatialTransformer(nn.Module):
    """Transformer layers over the pixels of a feature map (Rombach et al. 2022).

    projection: what surrounds the layers. "none", or a normalization, an input projection, an output projection and a
    residual connection; the projections are 1 × 1 convolutions ("conv") or linear layers ("linear").
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        text_width: int,
        *,
        has_self_attn: bool,
        has_feed_forward: bool,
        projection: str,
        norm_groups: int,
    ) -> None:
        super().__init__()
        self.projection = projection
        if projection != "none":
            self.norm = make_norm(width, norm_groups, eps=1e-6)
            self.proj_in: nn.Module = make_projection(width, projection)
            self.proj_out: nn.Module = zero_init(make_projection(width, projection))
        self.layers = nn.ModuleList(
            TransformerLayer(width, heads, text_width, has_self_attn=has_self_attn, has_feed_forward=has_feed_forward)
            for _ in range(depth)
        )

    def forward(self, x: Tensor, layer_keys_values: list[Tensor], mask: Tensor | None) -> Tensor:
        """x (B, width, H, W), the text's keys and values (B, L, 2 · width) for each layer, and its mask (B, L) bool ->
        (B, width, H, W)."""
        tokens = self.project_in(x)
        for layer, keys_values in zip(self.layers, layer_keys_values, strict=True):
            tokens = layer(tokens, keys_values, mask)
        return self.project_out(tokens, x)

    def project_in(self, x: Tensor) -> Tensor:
        """(B, width, H, W) -> (B, H·W, width)."""
        if self.projection == "none":
            return to_tokens(x)
        h = self.norm(x)
        tokens: Tensor = self.proj_in(to_tokens(h)) if self.projection == "linear" else to_tokens(self.proj_in(h))
        return tokens

    def project_out(self, tokens: Tensor, x: Tensor) -> Tensor:
        """Tokens (B, H·W, width), and the input x (B, width, H, W) for the residual connection -> (B, width, H, W)."""
        if self.projection == "none":
            return to_feature_map(tokens, x.shape)
        if self.projection == "linear":
            return to_feature_map(to_tokens(x) + self.proj_out(tokens), x.shape)
        out: Tensor = x + self.proj_out(to_feature_map(tokens, x.shape))
        return out


def make_projection(width: int, projection: str) -> nn.Conv2d | nn.Linear:
    """A 1 × 1 convolution ("conv") or a linear layer ("linear"), which compute the same."""
    return nn.Conv2d(width, width, 1) if projection == "conv" else nn.Linear(width, width)


class UNetBlock(nn.Module):
    """A residual block, and a transformer after it or none."""

    def __init__(self, res_block: ResBlock, transformer: SpatialTransformer | None) -> None:
        super().__init__()
        self.res_block, self.transformer = res_block, transformer

    @property
    def cross_attentions(self) -> list[Attention]:
        """The layers that attend to the text, in the order of the forward pass."""
        return [] if self.transformer is None else [layer.cross_attn for layer in self.transformer.layers]  # type: ignore[misc]

    def forward(self, x: Tensor, time_embed: Tensor, layer_keys_values: list[Tensor], mask: Tensor | None) -> Tensor:
        """x (B, in_channels, H, W), time_embed (B, time_width), the text's keys and values for each transformer layer,
        and its mask (B, L) bool -> (B, out_channels, H, W)."""
        x = self.res_block(x, time_embed)
        if self.transformer is not None:
            x = self.transformer(x, layer_keys_values, mask)
        return x
