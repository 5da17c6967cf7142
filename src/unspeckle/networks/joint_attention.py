"""Self- and cross-attention in one softmax: image tokens attend to one another and to the text, with rotary positions.

This is not the joint attention of SD3's MMDiT, whose text tokens attend too and have weights and a residual stream of
their own: here only image tokens are queries, and the keys and values of the text are the same at every time, so that
`Network.prepare` computes them once a drawing.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unspeckle.networks.layers import ScaledDotProductAttention, zero_init

# The rotations have periods from 2π to nearly this many times 2π pixels.
ROTARY_BASE = 100.0


def rotary_cos_sin(height: int, width: int, head_width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines (height · width, 1, 1, head_width) for `apply_rotary`, in like's dtype, on its device:
    rotary position embedding (Su et al. 2021) on two axes, half of the angles for the row, half for the column."""
    num_angles = head_width // 4  # of each axis
    frequencies = ROTARY_BASE ** -(torch.arange(num_angles, device=like.device) / num_angles)  # radians a pixel
    row_angles, column_angles = (
        torch.arange(size, device=like.device)[:, None] * frequencies for size in (height, width)
    )
    angles = torch.cat([row_angles[:, None].expand(-1, width, -1), column_angles.expand(height, -1, -1)], dim=2)
    angles = angles.reshape(height * width, 1, 1, 2 * num_angles)
    cos, sin = angles.cos().to(like.dtype), angles.sin().to(like.dtype)
    return torch.cat([cos, cos], dim=3), torch.cat([-sin, sin], dim=3)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads (B, N, …, head_width), rotated: channels i and i + head_width / 2 are the pair that angle i rotates."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


class AttentionContext(NamedTuple):
    """What a joint attention layer needs besides the image tokens."""

    # Keys and values of the text, (B, L, 2 · width).
    text_keys_values: Tensor
    # (B, N + L) bool, True for tokens to attend to: those of the image, then those of the text. None for all.
    mask: Tensor | None
    # Cosines and signed sines of the image tokens' positions, from rotary_cos_sin.
    cos: Tensor
    sin: Tensor


class JointAttention(nn.Module):
    """Attention of image tokens to one another and to the text in one softmax.

    Queries and keys are normalized (Henry et al. 2020), by a layer normalization, which costs a fifth of an RMS
    normalization here, and those of the image are rotated by their positions.
    """

    def __init__(self, width: int, head_width: int, text_width: int) -> None:
        super().__init__()
        self.heads, self.head_width = width // head_width, head_width
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.text_to_kv = nn.Linear(text_width, 2 * width, bias=False)
        self.to_out = zero_init(nn.Linear(width, width, bias=False))
        self.sdpa = ScaledDotProductAttention(self.heads)

    def project_keys_values(self, tokens: Tensor) -> Tensor:
        """Text tokens (B, L, text_width) -> keys and values (B, L, 2 · width)."""
        key, value = self.text_to_kv(tokens).view(*tokens.shape[:2], 2, self.heads, self.head_width).unbind(2)
        return torch.cat([self._normalize(key).flatten(2), value.flatten(2)], dim=2)

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        """x (B, H, W, width) -> (B, H, W, width)."""
        batch_size, height, width, channels = x.shape
        query_key, value = self.to_qkv(x).view(batch_size, height * width, -1).split([2 * channels, channels], dim=2)
        query_key = query_key.unflatten(2, (2, self.heads, self.head_width))  # (B, N, 2, heads, head_width)
        query_key = apply_rotary(self._normalize(query_key), context.cos, context.sin)
        query, key = query_key.flatten(3).unbind(2)  # (B, N, width) each
        text_key, text_value = context.text_keys_values.chunk(2, dim=2)
        key, value = torch.cat([key, text_key], dim=1), torch.cat([value, text_value], dim=1)  # (B, N + L, width)
        out: Tensor = self.to_out(self.sdpa(query, key, value, context.mask))
        return out.view(batch_size, height, width, channels)

    def _normalize(self, heads: Tensor) -> Tensor:
        """(…, head_width) with mean 0 and variance 1."""
        return F.layer_norm(heads, (self.head_width,))
