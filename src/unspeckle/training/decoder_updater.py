"""The loss of an unCLIP model's decoder: it denoises images, and is told their embeddings besides their captions."""

import torch
from torch import Tensor

from unspeckle.corpus.batches import Batch
from unspeckle.denoiser import PreparedConditioning
from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.networks.embedding_space import EmbeddingSpace
from unspeckle.rng import ExampleRNG
from unspeckle.text.image_text_encoder import ImageTextEncoder
from unspeckle.text.tokenizer import Tokenizer
from unspeckle.training.plan import Plan
from unspeckle.training.text_to_image_updater import TextToImageUpdater, init_modules
from unspeckle.unclip import append_embeddings

# Share of the examples without an embedding, for guidance; they have no caption either
EMBEDDING_DROPOUT = 0.1


class DecoderUpdater(TextToImageUpdater):
    """Updates a network that denoises images by their embeddings and captions, and its text encoder.

    image_text, space: of the embeddings; they stay as they are."""

    def __init__(
        self,
        plan: Plan,
        tokenizer: Tokenizer,
        autoencoder: Autoencoder,
        image_text: ImageTextEncoder,
        space: EmbeddingSpace,
    ) -> None:
        super().__init__(plan, init_modules(plan), tokenizer, autoencoder)
        self.image_text, self.space = image_text.to(self.device), space.to(self.device)

    def complete_conditioning(
        self, conditioning: PreparedConditioning, batch: Batch, rng: ExampleRNG
    ) -> PreparedConditioning:
        embeddings = self.embed(batch.images)
        keep = ~self.objective.dropped_captions(rng, EMBEDDING_DROPOUT)
        return append_embeddings(conditioning, embeddings * keep[:, None])

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Images uint8 (B, 3, H, W) as standardized embeddings (B, D)."""
        return self.space.standardize(self.image_text.encode_images(images.to(self.device).float() / 127.5 - 1))
