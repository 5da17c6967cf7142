"""The loss of an autoencoder that is trained: how far images that come back are from those that went in."""

from typing import cast

from torch import Tensor

from unspeckle.corpus.batches import Batch
from unspeckle.networks.latent_autoencoder import LatentAutoencoder
from unspeckle.rng import ExampleRNG
from unspeckle.training.master_weights import MasterWeights
from unspeckle.training.plan import Plan
from unspeckle.training.reconstruction_loss import COARSE_LOSS_EVERY, reconstruction_loss
from unspeckle.training.updater import Updater

# The largest standard deviation of the noise that is added to latents, so that a denoiser's small errors do not show
MAX_LATENT_NOISE_STD = 0.1
# Purposes of an ExampleRNG
_LEVEL, _NOISE = 0, 1


class AutoencoderUpdater(Updater):
    """Updates an autoencoder. The running mean and variance of the latents are kept in float32."""

    def __init__(self, plan: Plan, autoencoder: LatentAutoencoder) -> None:
        super().__init__(plan, MasterWeights.for_plan(autoencoder, plan.compute))
        self.compute_autoencoder.latent_norm = autoencoder.latent_norm

    @property
    def compute_autoencoder(self) -> LatentAutoencoder:
        """The autoencoder that computes, in the precision of the plan."""
        return cast(LatentAutoencoder, self.weights.compute_module)

    def loss(self, batch: Batch, step: int) -> Tensor:
        """The mean error () of images that are encoded, noised and decoded."""
        rng = ExampleRNG(self.plan.work.seed, batch.example_indices.to(self.device))
        images = batch.images.to(self.device).float() / 127.5 - 1
        noise_std = MAX_LATENT_NOISE_STD * rng.uniform(_LEVEL).view(-1, 1, 1, 1)

        def add_noise(latents: Tensor) -> Tensor:
            return latents + noise_std * rng.normal(_NOISE, latents.shape[1:])

        with_coarse_loss = step % COARSE_LOSS_EVERY == 0
        return reconstruction_loss(self.compute_autoencoder, images, add_noise, with_coarse_loss=with_coarse_loss)
