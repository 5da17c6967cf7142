"""A Gaussian mixture, whose best denoiser is known in closed form: the truth against which samplers are measured."""

from dataclasses import dataclass

import torch
from torch import Tensor

from unspeckle.denoiser import Denoise
from unspeckle.schedule import CosineSchedule, DiscreteSchedule, FlowSchedule, LinearSchedule, Schedule, SigmoidSchedule

SD = DiscreteSchedule("scaled_linear", 0.00085, 0.012)
SCHEDULES: dict[str, Schedule] = {
    "linear": LinearSchedule(),
    "cosine": CosineSchedule(),
    "sigmoid": SigmoidSchedule(),
    "flow": FlowSchedule(),
    "ddpm": DiscreteSchedule(),
    "scaled_linear": SD,
    "zero_snr": DiscreteSchedule("scaled_linear", 0.00085, 0.012, zero_terminal_snr=True),
    "cosine_table": DiscreteSchedule("cosine"),
}


@dataclass(frozen=True)
class Mixture:
    """Isotropic Gaussians: weights (K,), means (K, D), deviations (K,); pictures are (B, D, 1, 1)."""

    weights: Tensor
    means: Tensor
    deviations: Tensor

    def denoise(self, schedule: Schedule) -> Denoise:
        """E[x | x_t]: by Bayes over components, and within each by the linear-Gaussian posterior."""

        def estimate(x_t: Tensor, t: Tensor) -> Tensor:
            alpha, sigma = (level.view(-1, 1) for level in schedule(t.double()))  # (B, 1)
            x = x_t.double().flatten(1)
            away = x.unsqueeze(1) - alpha.unsqueeze(1) * self.means  # (B, K, D)
            variance = alpha**2 * self.deviations**2 + sigma**2  # (B, K)
            log_density = self.weights.log() - away.square().sum(-1) / variance / 2 - variance.log() * x.shape[1] / 2
            gain = alpha * self.deviations**2 / variance
            posterior = self.means + gain.unsqueeze(-1) * away
            return (log_density.softmax(1).unsqueeze(-1) * posterior).sum(1).view_as(x_t).to(x_t.dtype)

        return estimate

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        which = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        eps = torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)
        return (self.means[which] + self.deviations[which, None] * eps).view(count, -1, 1, 1)


def two_lumps() -> Mixture:
    return Mixture(
        torch.tensor([0.3, 0.7], dtype=torch.float64),
        torch.tensor([[-1.2, 0.4], [0.6, -0.3]], dtype=torch.float64),
        torch.tensor([0.25, 0.4], dtype=torch.float64),
    )


def one_lump(mean: float = 0.5, deviation: float = 0.4, size: int = 2) -> Mixture:
    means = torch.full((1, size), mean, dtype=torch.float64)
    return Mixture(torch.ones(1, dtype=torch.float64), means, torch.tensor([deviation], dtype=torch.float64))
