"""Token ids to what the denoiser is given: a small transformer, trained together with the network."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unspeckle.denoiser import Conditioning
from unspeckle.networks.coarse_predictor import mixing
from unspeckle.networks.layers import Attention, GatedFeedForward
from unspeckle.text.tokenizer import PAD


@dataclass(frozen=True)
class TextConfig:
    """Sizes of a text encoder: vocabulary ids, length tokens a row, layers of width channels."""

    vocabulary: int
    length: int
    width: int = 192
    layers: int = 2
    head_width: int = 32


class TextLayer(nn.Module):
    """A pre-norm transformer layer (Xiong et al. 2020)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.itself, self.feed = Attention(width, heads), GatedFeedForward(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.itself(h, self.itself.keys_values(h), mask)
        out: Tensor = x + self.feed(self.norm2(x))
        return out


class TextEncoder(nn.Module):
    """ids (B, L) int64 -> Given with tokens (B, L, width), mask (B, L) and vector (B, width), their mean."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.token = nn.Embedding(config.vocabulary, config.width)
        self.place = nn.Parameter(torch.empty(config.length, config.width))
        self.layers = nn.ModuleList(
            TextLayer(config.width, config.width // config.head_width) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width)
        nn.init.normal_(self.token.weight, std=0.5)
        nn.init.normal_(self.place, std=0.5)
        mixing(self)

    def forward(self, ids: Tensor) -> Conditioning:
        mask = ids != PAD
        x = self.token(ids) + self.place
        for layer in self.layers:
            x = layer(x, mask)
        tokens = self.norm(x)
        share = mask[:, :, None].to(tokens.dtype)
        return Conditioning(tokens, mask, (tokens * share).sum(1) / share.sum(1))
