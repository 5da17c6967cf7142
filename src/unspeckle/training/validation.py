"""How well pictures that training never sees are denoised, at each level of noise."""

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from unspeckle.corpus import Split
from unspeckle.denoiser import Denoiser, Conditioning
from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.objective import Objective
from unspeckle.rng import ExampleRNG
from unspeckle.schedule import Flow, Schedule
from unspeckle.text.tokenizer import Tokenizer

LEVELS = 8  # of noise
SHARE = 64  # pictures a call of the network
PIXELS = 1 << 20  # in them: fewer where they are large


class Judged(Protocol):
    """What an examination found. total: to be as low as may be. shares: the error of each of `levels`, as a share of
    what the mean picture would err; heading: what the levels are; said: all of it in a few words."""

    @property
    def total(self) -> float: ...
    @property
    def shares(self) -> tuple[float, ...]: ...
    @property
    def levels(self) -> tuple[str, ...]: ...
    @property
    def heading(self) -> str: ...
    @property
    def said(self) -> str: ...


class HeldOutLoss(NamedTuple):
    """total: what training minimises, on fixed times. shares: at each of `times`, the mean squared error of x̂, as a
    share of what predicting the mean picture would err."""

    total: float
    times: tuple[float, ...]
    shares: tuple[float, ...]

    @property
    def levels(self) -> tuple[str, ...]:
        return tuple(f"{t:.3f}" for t in self.times)

    @property
    def heading(self) -> str:
        return "noise"

    @property
    def said(self) -> str:
        middle = len(self.shares) // 2
        share, level = self.shares[middle], self.times[middle]
        return f"held-out loss {self.total:.4f}; at noise {level:.2f} it errs {share:.0%} of the mean picture's error"


def middles(objective: Objective, schedule: Schedule) -> Tensor:
    """(LEVELS,) the middles of as many equal shares of the times that the objective draws."""
    shares = (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS
    normal = objective.mean + objective.std * torch.special.ndtri(shares)
    if objective.time_distribution == "uniform":
        return shares.float()
    return (normal.sigmoid() if objective.time_distribution == "logit_normal" else schedule.inverse(normal.exp())).float()


class HeldOut:
    """Fixed pictures, captions, times and noise, so that two moments of a run compare.

    The times are the middles of LEVELS equal shares of the objective's own. schedule: of the noise that is meant, for
    times that hang on it ("edm"); a flow where none is given.
    """

    def __init__(
        self, split: Split, tokenizer: Tokenizer, autoencoder: Autoencoder, objective: Objective, device: torch.device,
        most: int, schedule: Schedule | None = None,
    ) -> None:  # fmt: skip
        self.objective = objective
        self.times = middles(objective, schedule or Flow()).to(device)
        count = min(most, len(split))
        chosen = torch.arange(count) * len(split) // count
        self.rows = max(1, min(SHARE, PIXELS // math.prod(split.size)))
        parts = (split.pictures(some).to(device).float() / 127.5 - 1 for some in torch.split(chosen, self.rows))
        with torch.no_grad():
            self.x = torch.cat([autoencoder.encode(part) for part in parts])
        self.ids = tokenizer.encode(split.captions(chosen)).to(device)

    @torch.no_grad()
    def __call__(
        self, denoiser: Denoiser, text: nn.Module, complete: Callable[[Conditioning], Conditioning] = lambda given: given
    ) -> HeldOutLoss:
        """complete: adds what else the model wants to be told (see `Model.complete`)."""
        errors = torch.zeros(LEVELS, dtype=torch.float64)
        for first in range(0, len(self.x), self.rows):
            x, ids = self.x[first : first + self.rows], self.ids[first : first + self.rows]
            given = complete(denoiser.prepare(text(ids)))
            stream = ExampleRNG(0, torch.arange(first, first + len(x), device=x.device))
            for i, level in enumerate(self.times):
                t = level.expand(len(x))
                alpha, sigma = denoiser.schedule(level)
                x_t = alpha * x + sigma * stream.normal(i, x.shape[1:])
                errors[i] += _error(denoiser(x_t, t, given), x)
        errors /= len(self.x)
        zero = float(self.x.square().mean())
        weights = self.objective.loss_weight(self.times, denoiser.schedule, denoiser.prediction).double().cpu()
        return HeldOutLoss(
            float((errors * weights).mean()), tuple(self.times.tolist()), tuple((errors / zero).tolist())
        )


def _error(estimate: Tensor, x: Tensor) -> float:
    return float((estimate - x).square().flatten(1).mean(1).sum())
