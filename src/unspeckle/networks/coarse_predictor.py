"""What pictures of such words look like on average, coarsely: where things lie, before there is any noise to look into.

Which of two nouns lies left is one bit, told only where noise is nearly all: a network that must find it in noisy
pictures learns the colours, and hardly ever the order of the words. Asked for the mean picture alone it learns that
soon, and what it found then stands beside the noisy picture at every time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unspeckle.denoiser import Conditioning
from unspeckle.networks.layers import Attention, GatedFeedForward

COARSE_SIZE = 8  # places of a side


class CoarsePredictorLayer(nn.Module):
    """Places look at the words, then at one another."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.cross_attn, self.self_attn = Attention(width, heads), Attention(width, heads)
        self.feed_forward = GatedFeedForward(width)

    def forward(self, x: Tensor, conditioning: Conditioning) -> Tensor:
        x = x + self.cross_attn(
            self.norm1(x), self.cross_attn.project_keys_values(conditioning.tokens), conditioning.mask
        )
        h = self.norm2(x)
        x = x + self.self_attn(h, self.self_attn.project_keys_values(h))
        out: Tensor = x + self.feed_forward(self.norm3(x))
        return out


class CoarseImagePredictor(nn.Module):
    """Words (B, L, text_width) to the mean of x over SIDE × SIDE parts of the picture, (B, channels, SIDE, SIDE)."""

    def __init__(self, channels: int, text_width: int, num_layers: int, head_width: int = 32) -> None:
        super().__init__()
        self.position_embedding = nn.Parameter(torch.empty(COARSE_SIZE**2, text_width))
        heads = max(1, text_width // head_width)
        self.layers = nn.ModuleList(CoarsePredictorLayer(text_width, heads) for _ in range(num_layers))
        self.norm_out, self.proj_out = nn.LayerNorm(text_width), nn.Linear(text_width, channels)
        nn.init.normal_(self.position_embedding, std=0.5)
        init_output_projections(self)

    def forward(self, conditioning: Conditioning) -> Tensor:
        x = self.position_embedding.expand(conditioning.tokens.shape[0], -1, -1)  # (B, N, D)
        for layer in self.layers:
            x = layer(x, conditioning)
        coarse: Tensor = self.proj_out(self.norm_out(x))
        return coarse.transpose(1, 2).reshape(coarse.shape[0], -1, COARSE_SIZE, COARSE_SIZE)

    def loss(self, coarse_images: Tensor, x: Tensor) -> Tensor:
        """The mean squared error (B,) of drafts of the pictures x (B, C, H, W)."""
        return (coarse_images.float() - F.adaptive_avg_pool2d(x, COARSE_SIZE)).square().mean((1, 2, 3))


def concat_coarse_image(x: Tensor, coarse_image: Tensor) -> Tensor:
    """x (B, C, H, W) and behind it a draft of it (B, C, SIDE, SIDE), as (B, 2·C, H, W). What it costs to denoise
    teaches the draft nothing: it is to stay the mean picture."""
    size = (x.shape[2], x.shape[3])
    return torch.cat(
        [x, F.interpolate(coarse_image.detach().to(x.dtype), size, mode="bilinear", align_corners=False)], dim=1
    )


def init_output_projections(module: nn.Module) -> None:
    """Let the branches within begin as what mixes at random, not as nothing: order shows in what mixes."""
    for layer in module.modules():
        if isinstance(layer, Attention | GatedFeedForward):
            out = layer.to_out if isinstance(layer, Attention) else layer.proj_out
            nn.init.normal_(out.weight, std=out.weight.shape[1] ** -0.5)
