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

SIDE = 8  # places of a side


class DraftLayer(nn.Module):
    """Places look at the words, then at one another."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.words, self.itself = Attention(width, heads), Attention(width, heads)
        self.feed = GatedFeedForward(width)

    def forward(self, x: Tensor, given: Conditioning) -> Tensor:
        x = x + self.words(self.norm1(x), self.words.keys_values(given.tokens), given.mask)
        h = self.norm2(x)
        x = x + self.itself(h, self.itself.keys_values(h))
        out: Tensor = x + self.feed(self.norm3(x))
        return out


class Draft(nn.Module):
    """Words (B, L, text_width) to the mean of x over SIDE × SIDE parts of the picture, (B, channels, SIDE, SIDE)."""

    def __init__(self, channels: int, text_width: int, layers: int, head_width: int = 32) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.empty(SIDE**2, text_width))
        heads = max(1, text_width // head_width)
        self.layers = nn.ModuleList(DraftLayer(text_width, heads) for _ in range(layers))
        self.norm, self.out = nn.LayerNorm(text_width), nn.Linear(text_width, channels)
        nn.init.normal_(self.places, std=0.5)
        mixing(self)

    def forward(self, given: Conditioning) -> Tensor:
        x = self.places.expand(given.tokens.shape[0], -1, -1)  # (B, N, D)
        for layer in self.layers:
            x = layer(x, given)
        out: Tensor = self.out(self.norm(x))
        return out.transpose(1, 2).reshape(out.shape[0], -1, SIDE, SIDE)

    def loss(self, drafts: Tensor, x: Tensor) -> Tensor:
        """The mean squared error (B,) of drafts of the pictures x (B, C, H, W)."""
        return (drafts.float() - F.adaptive_avg_pool2d(x, SIDE)).square().mean((1, 2, 3))


def joined(x: Tensor, draft: Tensor) -> Tensor:
    """x (B, C, H, W) and behind it a draft of it (B, C, SIDE, SIDE), as (B, 2·C, H, W). What it costs to denoise
    teaches the draft nothing: it is to stay the mean picture."""
    size = (x.shape[2], x.shape[3])
    return torch.cat([x, F.interpolate(draft.detach().to(x.dtype), size, mode="bilinear", align_corners=False)], dim=1)


def mixing(module: nn.Module) -> None:
    """Let the branches within begin as what mixes at random, not as nothing: order shows in what mixes."""
    for part in module.modules():
        if isinstance(part, Attention | GatedFeedForward):
            nn.init.normal_(part.out.weight, std=part.out.weight.shape[1] ** -0.5)
