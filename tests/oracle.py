"""A Gaussian mixture, whose optimal denoiser has a closed form: the truth that samplers are compared with."""

from dataclasses import dataclass

import torch
from torch import Tensor

from unspeckle.denoiser import Denoise
from unspeckle.schedule import CosineSchedule, DiscreteSchedule, FlowSchedule, LinearSchedule, Schedule, SigmoidSchedule

STABLE_DIFFUSION_SCHEDULE = DiscreteSchedule("scaled_linear", 0.00085, 0.012)
SCHEDULES: dict[str, Schedule] = {
    "linear": LinearSchedule(),
    "cosine": CosineSchedule(),
    "sigmoid": SigmoidSchedule(),
    "flow": FlowSchedule(),
    "ddpm": DiscreteSchedule(),
    "scaled_linear": STABLE_DIFFUSION_SCHEDULE,
    "zero_snr": DiscreteSchedule("scaled_linear", 0.00085, 0.012, zero_terminal_snr=True),
    "cosine_table": DiscreteSchedule("cosine"),
}


@dataclass(frozen=True)
class GaussianMixture:
    """A mixture of K isotropic Gaussians over images x (B, D, 1, 1)."""

    weights: Tensor  # (K,), they sum to 1
    means: Tensor  # (K, D)
    stds: Tensor  # (K,)

    def denoiser(self, schedule: Schedule) -> Denoise:
        """The optimal denoiser E[x | x_t]: the posterior over the components by Bayes' rule, and within each component
        the linear-Gaussian posterior mean."""

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            alpha, sigma = (level.view(-1, 1) for level in schedule(t.double()))  # (B, 1)
            x = x_t.double().flatten(1)
            residual = x.unsqueeze(1) - alpha.unsqueeze(1) * self.means  # (B, K, D)
            variance = alpha**2 * self.stds**2 + sigma**2  # (B, K)
            log_density = (
                self.weights.log() - residual.square().sum(-1) / variance / 2 - variance.log() * x.shape[1] / 2
            )
            gain = alpha * self.stds**2 / variance
            posterior_means = self.means + gain.unsqueeze(-1) * residual
            posterior_weights = log_density.softmax(1).unsqueeze(-1)
            return (posterior_weights * posterior_means).sum(1).view_as(x_t).to(x_t.dtype)

        return denoise

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Images x (num_samples, D, 1, 1), float64."""
        components = torch.multinomial(self.weights, num_samples, replacement=True, generator=generator)
        eps = torch.randn(num_samples, self.means.shape[1], generator=generator, dtype=torch.float64)
        return (self.means[components] + self.stds[components, None] * eps).view(num_samples, -1, 1, 1)


def two_gaussians() -> GaussianMixture:
    """A mixture of two Gaussians in two dimensions."""
    return GaussianMixture(
        torch.tensor([0.3, 0.7], dtype=torch.float64),
        torch.tensor([[-1.2, 0.4], [0.6, -0.3]], dtype=torch.float64),
        torch.tensor([0.25, 0.4], dtype=torch.float64),
    )


def one_gaussian(mean: float = 0.5, std: float = 0.4, size: int = 2) -> GaussianMixture:
    """A single Gaussian with the same mean in all of size dimensions."""
    means = torch.full((1, size), mean, dtype=torch.float64)
    return GaussianMixture(torch.ones(1, dtype=torch.float64), means, torch.tensor([std], dtype=torch.float64))
