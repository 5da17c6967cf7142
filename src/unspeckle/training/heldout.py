"""How well pictures that training never sees are denoised, at each level of noise."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from unspeckle.corpus import Split
from unspeckle.denoiser import Denoiser
from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.seeds import Stream
from unspeckle.text.tokenizer import Tokenizer

LEVELS = (0.05, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.0)  # times
SHARE = 64  # pictures a call of the network
FLOOR = 0.05


class HeldOutLoss(NamedTuple):
    """Mean squared errors of x̂ at LEVELS, as shares of what predicting the mean picture would err; and one number.

    `total` is the loss in v-space, averaged over the levels: what training minimises, on fixed times.
    """

    total: float
    shares: tuple[float, ...]


class HeldOut:
    """Fixed pictures, captions, times and noise, so that two moments of a run compare."""

    def __init__(self, split: Split, tokenizer: Tokenizer, autoencoder: Autoencoder, device: torch.device, most: int):
        count = min(most, len(split))
        chosen = torch.arange(count) * len(split) // count
        pixels = split.pictures(chosen)
        self.x = autoencoder.encode(pixels.to(device).float() / 127.5 - 1)
        self.ids = tokenizer.encode(split.captions(chosen)).to(device)

    @torch.no_grad()
    def __call__(self, denoiser: Denoiser, text: nn.Module) -> HeldOutLoss:
        errors = torch.zeros(len(LEVELS), dtype=torch.float64)
        for first in range(0, len(self.x), SHARE):
            x, ids = self.x[first : first + SHARE], self.ids[first : first + SHARE]
            given = denoiser.prepare(text(ids))
            stream = Stream(0, torch.arange(first, first + len(x), device=x.device))
            for i, level in enumerate(LEVELS):
                t = torch.full((len(x),), level, device=x.device)
                alpha, sigma = denoiser.schedule(t[0])
                x_t = alpha * x + sigma * stream.normal(i, x.shape[1:])
                errors[i] += _error(denoiser(x_t, t, given), x)
        errors /= len(self.x)
        zero = float(self.x.square().mean())
        weights = torch.tensor([max(level, FLOOR) for level in LEVELS], dtype=torch.float64) ** -2
        return HeldOutLoss(float((errors * weights).mean()), tuple((errors / zero).tolist()))


def _error(estimate: Tensor, x: Tensor) -> float:
    return float((estimate - x).square().flatten(1).mean(1).sum())
