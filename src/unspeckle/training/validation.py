"""How well pictures that training never sees are denoised, at each level of noise."""

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from unspeckle.corpus import Split
from unspeckle.denoiser import Denoiser, PreparedConditioning
from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.objective import Objective
from unspeckle.rng import ExampleRNG
from unspeckle.schedule import FlowSchedule, Schedule
from unspeckle.text.tokenizer import Tokenizer

NOISE_LEVELS = 8  # of noise
MAX_BATCH_SIZE = 64  # pictures a call of the network
MAX_BATCH_PIXELS = 1 << 20  # in them: fewer where they are large


class ValidationResult(Protocol):
    """What an examination found. total: to be as low as may be. shares: the error of each of `levels`, as a share of
    what the mean picture would err; heading: what the levels are; said: all of it in a few words."""

    @property
    def total(self) -> float: ...
    @property
    def relative_errors(self) -> tuple[float, ...]: ...
    @property
    def levels(self) -> tuple[str, ...]: ...
    @property
    def levels_heading(self) -> str: ...
    @property
    def summary(self) -> str: ...


class DenoisingResult(NamedTuple):
    """total: what training minimises, on fixed times. shares: at each of `times`, the mean squared error of x̂, as a
    share of what predicting the mean picture would err."""

    total: float
    times: tuple[float, ...]
    relative_errors: tuple[float, ...]

    @property
    def levels(self) -> tuple[str, ...]:
        return tuple(f"{t:.3f}" for t in self.times)

    @property
    def levels_heading(self) -> str:
        return "noise"

    @property
    def summary(self) -> str:
        middle = len(self.relative_errors) // 2
        middle_error, level = self.relative_errors[middle], self.times[middle]
        return f"held-out loss {self.total:.4f}; at noise {level:.2f} it errs {middle_error:.0%} of the mean picture's error"


def quantile_times(objective: Objective, schedule: Schedule) -> Tensor:
    """(LEVELS,) the middles of as many equal shares of the times that the objective draws."""
    quantiles = (torch.arange(NOISE_LEVELS, dtype=torch.float64) + 0.5) / NOISE_LEVELS
    normal_quantiles = objective.mean + objective.std * torch.special.ndtri(quantiles)
    if objective.time_distribution == "uniform":
        return quantiles.float()
    return (
        normal_quantiles.sigmoid()
        if objective.time_distribution == "logit_normal"
        else schedule.inverse(normal_quantiles.exp())
    ).float()


class ValidationLoss:
    """Fixed pictures, captions, times and noise, so that two moments of a run compare.

    The times are the middles of LEVELS equal shares of the objective's own. schedule: of the noise that is meant, for
    times that hang on it ("edm"); a flow where none is given.
    """

    def __init__(
        self, split: Split, tokenizer: Tokenizer, autoencoder: Autoencoder, objective: Objective, device: torch.device,
        max_images: int, schedule: Schedule | None = None,
    ) -> None:  # fmt: skip
        self.objective = objective
        self.times = quantile_times(objective, schedule or FlowSchedule()).to(device)
        count = min(max_images, len(split))
        indices = torch.arange(count) * len(split) // count
        self.batch_size = max(1, min(MAX_BATCH_SIZE, MAX_BATCH_PIXELS // math.prod(split.size)))
        image_batches = (
            split.center_crops(chunk).to(device).float() / 127.5 - 1 for chunk in torch.split(indices, self.batch_size)
        )
        with torch.no_grad():
            self.x = torch.cat([autoencoder.encode(images) for images in image_batches])
        self.ids = tokenizer.encode(split.first_captions(indices)).to(device)

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser,
        text_encoder: nn.Module,
        complete_conditioning: Callable[[PreparedConditioning], PreparedConditioning] = lambda conditioning: (
            conditioning
        ),
    ) -> DenoisingResult:
        """complete_conditioning adds what else the model takes as an input (see `Model.add_conditioning`)."""
        errors = torch.zeros(NOISE_LEVELS, dtype=torch.float64)
        for start in range(0, len(self.x), self.batch_size):
            x, ids = self.x[start : start + self.batch_size], self.ids[start : start + self.batch_size]
            conditioning = complete_conditioning(denoiser.prepare(text_encoder(ids)))
            rng = ExampleRNG(0, torch.arange(start, start + len(x), device=x.device))
            for i, level in enumerate(self.times):
                t = level.expand(len(x))
                alpha, sigma = denoiser.schedule(level)
                x_t = alpha * x + sigma * rng.normal(i, x.shape[1:])
                errors[i] += _sum_squared_errors(denoiser(x_t, t, conditioning), x)
        errors /= len(self.x)
        mean_image_error = float(self.x.square().mean())
        weights = self.objective.loss_weight(self.times, denoiser.schedule, denoiser.prediction).double().cpu()
        return DenoisingResult(
            float((errors * weights).mean()), tuple(self.times.tolist()), tuple((errors / mean_image_error).tolist())
        )


def _sum_squared_errors(denoised: Tensor, x: Tensor) -> float:
    return float((denoised - x).square().flatten(1).mean(1).sum())
