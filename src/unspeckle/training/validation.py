"""How well images that the model is not trained on are denoised, at each level of noise."""

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from unspeckle.corpus.splits import Corpus, Split
from unspeckle.denoiser import Denoiser, PreparedConditioning
from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.objective import Objective
from unspeckle.rng import ExampleRNG
from unspeckle.schedule import FlowSchedule, Schedule
from unspeckle.text.tokenizer import CaptionTokenizer

# Times at which the error is measured
NOISE_LEVELS = 8
# Images in a call of the network, and pixels in all of them
MAX_BATCH_SIZE = 64
MAX_BATCH_PIXELS = 1 << 20


class ValidationResult(Protocol):
    """What a validation found."""

    @property
    def total(self) -> float:
        """What is compared: the lower the better."""

    @property
    def relative_errors(self) -> tuple[float, ...]:
        """The error of each of the levels, as a share of the error of the mean image."""

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the levels: times, or numbers of steps."""

    @property
    def levels_heading(self) -> str:
        """What the levels are: "noise" or "steps"."""

    @property
    def summary(self) -> str:
        """The result in one phrase."""


class DenoisingResult(NamedTuple):
    """How well a model denoises."""

    # The loss that training minimizes, at fixed times
    total: float
    times: tuple[float, ...]
    # The mean squared error of x̂ at each of the times, as a share of that of the mean image
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
        return f"validation loss {self.total:.4f}; error at noise {level:.2f}: {middle_error:.0%} of the mean image's"


def quantile_times(objective: Objective, schedule: Schedule) -> Tensor:
    """The middles (NOISE_LEVELS,) of as many equal shares of the times that the objective draws."""
    quantiles = (torch.arange(NOISE_LEVELS, dtype=torch.float64) + 0.5) / NOISE_LEVELS
    normal_quantiles = objective.mean + objective.std * torch.special.ndtri(quantiles)
    if objective.time_distribution == "uniform":
        return quantiles.float()
    return (
        normal_quantiles.sigmoid()
        if objective.time_distribution == "logit_normal"
        else schedule.inverse(normal_quantiles.exp())
    ).float()


def validation_split(corpus: Corpus) -> Split:
    """The images that are held out; the training images if there are too few to hold some out."""
    return corpus.validation if len(corpus.validation) else corpus.training


class ValidationLoss:
    """The loss of a model on fixed images with fixed captions, times and noise, so that two moments of a run compare.

    Attributes: x (N, C, H, W), what the autoencoder makes of the images; ids (N, L), of their captions; times
    (NOISE_LEVELS,); batch_size.
    """

    def __init__(
        self,
        split: Split,
        tokenizer: CaptionTokenizer,
        autoencoder: Autoencoder,
        objective: Objective,
        *,
        device: torch.device,
        max_images: int,
        schedule: Schedule | None = None,
    ) -> None:
        """At most max_images of the split, evenly chosen, at quantile_times of the objective.

        schedule: of the noise, for times that depend on it ("edm"); a flow if none is given."""
        self.objective = objective
        self.times = quantile_times(objective, schedule or FlowSchedule()).to(device)
        count = min(max_images, len(split))
        indices = torch.arange(count) * len(split) // count
        self.batch_size = validation_batch_size(split.size)
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
        complete_conditioning: Callable[[PreparedConditioning, slice], PreparedConditioning] | None = None,
    ) -> DenoisingResult:
        """complete_conditioning adds what else the model takes as an input (see `Model.add_conditioning`) to the
        conditioning of these of the images."""
        errors = torch.zeros(NOISE_LEVELS, dtype=torch.float64)
        for start in range(0, len(self.x), self.batch_size):
            x, ids = self.x[start : start + self.batch_size], self.ids[start : start + self.batch_size]
            conditioning = denoiser.prepare(text_encoder(ids))
            if complete_conditioning is not None:
                conditioning = complete_conditioning(conditioning, slice(start, start + len(x)))
            rng = ExampleRNG(0, torch.arange(start, start + len(x), device=x.device))
            for i, level in enumerate(self.times):
                t = level.expand(len(x))
                alpha, sigma = denoiser.schedule(level)
                x_t = alpha * x + sigma * rng.normal(i, x.shape[1:])
                errors[i] += _sum_squared_errors(denoiser(x_t, t, conditioning), x)
        errors /= len(self.x)
        mean_image_error = float(self.x.square().mean())
        weights = self.objective.loss_weight(self.times, denoiser.schedule, denoiser.prediction).cpu().double()
        return DenoisingResult(
            float((errors * weights).mean()), tuple(self.times.tolist()), tuple((errors / mean_image_error).tolist())
        )


def validation_batch_size(size: tuple[int, int]) -> int:
    """How many images of that size (W, H) the network is given at once."""
    return max(1, min(MAX_BATCH_SIZE, MAX_BATCH_PIXELS // math.prod(size)))


def _sum_squared_errors(denoised: Tensor, x: Tensor) -> float:
    return float((denoised - x).square().flatten(1).mean(1).sum())
