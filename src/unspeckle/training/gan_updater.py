"""The two updates of a GAN's step: the discriminator's, then the generator's."""

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from unspeckle.corpus.batches import Batch
from unspeckle.denoiser import Conditioning
from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.networks.gan import Discriminator, Generator, GeneratorConfig
from unspeckle.rng import ExampleRNG
from unspeckle.text.text_encoder import TextEncoder, TextEncoderConfig
from unspeckle.text.tokenizer import Tokenizer
from unspeckle.training.gan_losses import discriminator_loss, generator_loss, gradient_penalty
from unspeckle.training.master_weights import DTYPES, MasterWeights
from unspeckle.training.optimizer import Optimizer
from unspeckle.training.plan import GANPlan
from unspeckle.training.text_to_image_updater import TrainableModules, encode_images, gather_rows, init_modules
from unspeckle.training.updater import Update, Updater

# Purposes of an ExampleRNG: the noise of the images that each of the two is updated by
_DISCRIMINATOR_NOISE, _GENERATOR_NOISE = 1, 2
# Added to the seed of the generator's weights
_DISCRIMINATOR_SEED = 1


class TextDiscriminator(nn.Module):
    """A discriminator with a text encoder of its own, which reads what fits images rather than what makes them."""

    def __init__(self, discriminator: Discriminator, text_encoder: TextEncoder) -> None:
        super().__init__()
        self.discriminator, self.text_encoder = discriminator, text_encoder


def init_discriminator(plan: GANPlan) -> TextDiscriminator:
    """The plan's discriminator with random weights, the same for the same seed."""
    config, text_config = plan.model.network, plan.model.text_encoder
    assert isinstance(config, GeneratorConfig) and isinstance(text_config, TextEncoderConfig)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.work.seed + _DISCRIMINATOR_SEED)
        return TextDiscriminator(Discriminator(config), TextEncoder(text_config))


class GANUpdater(Updater):
    """Updates a generator with its text encoder (`weights`), and the discriminator that judges it."""

    plan: GANPlan

    def __init__(self, plan: GANPlan, tokenizer: Tokenizer, autoencoder: Autoencoder) -> None:
        super().__init__(plan, MasterWeights.for_plan(init_modules(plan), plan.compute))
        self.tokenizer, self.autoencoder = tokenizer, autoencoder.to(self.device)
        self.discriminator_weights = MasterWeights.for_plan(init_discriminator(plan), plan.compute)
        self.discriminator_optimizer = Optimizer(
            self.discriminator_weights.module, plan.optimizer, DTYPES[plan.compute.precision]
        )

    @property
    def others(self) -> dict[str, tuple[MasterWeights, Optimizer]]:
        return {"discriminator": (self.discriminator_weights, self.discriminator_optimizer)}

    @property
    def other_loss_names(self) -> tuple[str, ...]:
        return ("generator",)

    def loss(self, batch: Batch, step: int) -> Tensor:
        """The generator's mean loss () of a batch."""
        return self._generator_update(batch).loss

    def updates(self, batch: Batch, step: int) -> Iterator[Update]:
        yield self._discriminator_update(batch)
        yield self._generator_update(batch)

    def _discriminator_update(self, batch: Batch) -> Update:
        """With both gradient penalties at every step (Huang et al. 2024, section 3.1)."""
        settings, real = self.plan.gan, self._real_images(batch)
        with torch.no_grad():
            drawn = self._draw(batch, _DISCRIMINATOR_NOISE)
        modules = cast(TextDiscriminator, self.discriminator_weights.compute_module)
        vector = self._vector(modules.text_encoder, batch)
        real_values, real_penalty = gradient_penalty(lambda x: modules.discriminator(x, vector), real)
        drawn_values, drawn_penalty = gradient_penalty(lambda x: modules.discriminator(x, vector), drawn)
        loss = discriminator_loss(real_values, drawn_values, settings.loss)
        loss = loss + settings.penalty_weight / 2 * (real_penalty + drawn_penalty)
        return Update(loss.mean(), self.discriminator_weights, self.discriminator_optimizer)

    def _generator_update(self, batch: Batch) -> Update:
        modules = cast(TextDiscriminator, self.discriminator_weights.compute_module)
        modules.requires_grad_(False)
        try:
            vector = self._vector(modules.text_encoder, batch)
            real_values = modules.discriminator(self._real_images(batch), vector)
            drawn_values = modules.discriminator(self._draw(batch, _GENERATOR_NOISE), vector)
        finally:
            modules.requires_grad_(True)
        loss = generator_loss(real_values, drawn_values, self.plan.gan.loss)
        return Update(loss.mean(), self.weights, self.optimizer)

    def _draw(self, batch: Batch, purpose: int) -> Tensor:
        """Images (B, C, H, W) that the generator makes for the batch's captions, from noise of its examples."""
        modules = cast(TrainableModules, self.weights.compute_module)
        generator = cast(Generator, modules.network)
        rng = ExampleRNG(self.plan.work.seed, batch.example_indices.to(self.device))
        width, height = self.plan.model.input_size
        z = rng.normal(purpose, (generator.config.noise_width,))
        noise = torch.zeros(len(z), generator.config.channels, height, width, device=self.device)
        noise.flatten(1)[:, : z.shape[1]] = z
        vector = self._vector(modules.text_encoder, batch)
        conditioning = Conditioning(vector[:, None], None, vector)
        images: Tensor = generator(noise, torch.ones(len(z), device=self.device), conditioning)
        return images

    def _vector(self, text_encoder: nn.Module, batch: Batch) -> Tensor:
        """The pooled embeddings (B, P) of the batch's captions, each different one encoded once."""
        captions = [""] * len(batch.captions) if self.plan.gan.unconditional else batch.captions
        distinct = list(dict.fromkeys(captions))
        rows = {caption: row for row, caption in enumerate(distinct)}
        indices = torch.tensor([rows[caption] for caption in captions], device=self.device)
        conditioning: Conditioning = text_encoder(self.tokenizer.encode_wordings(distinct).to(self.device))
        assert conditioning.vector is not None
        return gather_rows(conditioning.vector, indices)

    def _real_images(self, batch: Batch) -> Tensor:
        return encode_images(batch, self.autoencoder, self.device)
