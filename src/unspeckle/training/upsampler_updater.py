"""The loss of an upsampler: it denoises large images, and sees them small, with some noise."""

import torch
from torch import Tensor

from unspeckle.corpus.batches import Batch
from unspeckle.denoiser import PreparedConditioning
from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.rng import ExampleRNG
from unspeckle.text.tokenizer import Tokenizer
from unspeckle.training.plan import Plan
from unspeckle.training.text_to_image_updater import TextToImageUpdater, init_modules
from unspeckle.upsampler import MAX_NOISE_LEVEL, append_noise_level, enlarge, shrink

# Purposes of an ExampleRNG besides the objective's
_LEVEL, _NOISE = 8, 9


class UpsamplerUpdater(TextToImageUpdater):
    """Updates a network that enlarges images by that factor, and its text encoder."""

    def __init__(self, plan: Plan, tokenizer: Tokenizer, autoencoder: Autoencoder, factor: int) -> None:
        super().__init__(plan, init_modules(plan), tokenizer, autoencoder)
        self.factor = factor

    def complete_conditioning(
        self, conditioning: PreparedConditioning, batch: Batch, rng: ExampleRNG
    ) -> PreparedConditioning:
        levels = MAX_NOISE_LEVEL * rng.uniform(_LEVEL)
        return self.add_small_images(conditioning, batch.images, rng, levels)

    @torch.no_grad()
    def add_small_images(
        self, conditioning: PreparedConditioning, images: Tensor, rng: ExampleRNG, levels: Tensor
    ) -> PreparedConditioning:
        """The conditioning with the images uint8 (B, 3, H, W), shrunk and enlarged again, with noise of these levels
        (B,)."""
        small = shrink(images.to(self.device).float() / 127.5 - 1, self.factor)
        encoded = self.autoencoder_in_precision.encode(enlarge(small, self.factor)).float()
        concat = encoded + levels.view(-1, 1, 1, 1) * rng.normal(_NOISE, encoded.shape[1:])
        return append_noise_level(conditioning._replace(concat=concat), levels)
