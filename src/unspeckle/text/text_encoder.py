"""Token ids to what the denoiser is conditioned on: a small transformer, trained together with the network."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unspeckle.denoiser import Conditioning
from unspeckle.networks.coarse_predictor import init_output_projections
from unspeckle.networks.layers import GatedFeedForward, SelfAttention
from unspeckle.text.tokenizer import PAD_ID


@dataclass(frozen=True)
class TextEncoderConfig:
    """The sizes of a text encoder."""

    # Number of ids.
    vocab_size: int
    # Ids of a caption, with padding.
    context_length: int
    # Channels of the tokens.
    width: int = 192
    # Transformer layers.
    layers: int = 2
    # Channels of an attention head.
    head_width: int = 32


class TextEncoderLayer(nn.Module):
    """A pre-norm transformer layer (Xiong et al. 2020)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attn, self.feed_forward = SelfAttention(width, heads), GatedFeedForward(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, L, width), mask (B, L) bool with True for tokens to attend to -> (B, L, width)."""
        x = x + self.self_attn(self.norm1(x), mask)
        out: Tensor = x + self.feed_forward(self.norm2(x))
        return out


class TextEncoder(nn.Module):
    """Ids (B, L) int64 to a Conditioning: tokens (B, L, width), mask (B, L), and as vector (B, width) their mean."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Parameter(torch.empty(config.context_length, config.width))
        heads = config.width // config.head_width
        self.layers = nn.ModuleList(TextEncoderLayer(config.width, heads) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.width)
        nn.init.normal_(self.token_embedding.weight, std=0.5)
        nn.init.normal_(self.position_embedding, std=0.5)
        init_output_projections(self)

    def forward(self, ids: Tensor) -> Conditioning:
        mask = ids != PAD_ID
        x = self.token_embedding(ids) + self.position_embedding
        for layer in self.layers:
            x = layer(x, mask)
        tokens = self.final_norm(x)
        weights = mask[:, :, None].to(tokens.dtype)  # (B, L, 1)
        return Conditioning(tokens, mask, (tokens * weights).sum(1) / weights.sum(1))
