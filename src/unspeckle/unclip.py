"""An unCLIP model, as DALL·E 2 is one (Ramesh et al. 2022): a prior draws the embedding of an image from a text, and a
decoder draws the image from the embedding and the text."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn

from unspeckle import configuration
from unspeckle.denoiser import SomeConditioning, with_fields
from unspeckle.model import Model
from unspeckle.networks.embedding_space import EmbeddingSpace
from unspeckle.text.image_text_encoder import ImageTextCard, ImageTextEncoder, ImageTextModel
from unspeckle.text.tokenizer import Tokenizer
from unspeckle.upsampler import UpsamplerModel


@dataclass
class UnCLIPModel(Model):
    """A Model whose network, the decoder, takes the embedding of an image behind the pooled text in its vector."""

    # images and texts to embeddings
    image_text: ImageTextEncoder = field(kw_only=True)
    # texts to the embeddings of images: its x is a latent of the EmbeddingSpace, which is its autoencoder
    prior: Model = field(kw_only=True)
    # enlarges what the decoder draws
    upsampler: UpsamplerModel | None = field(default=None, kw_only=True)

    @property
    def embedding_space(self) -> EmbeddingSpace:
        """How embeddings are standardized."""
        return cast(EmbeddingSpace, self.prior.autoencoder)

    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Pillow images as unit vectors (N, D)."""
        return self._image_text_model().embed_images(images)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts as unit vectors (N, D)."""
        return self._image_text_model().embed_texts(texts)

    def _image_text_model(self) -> ImageTextModel:
        assert isinstance(self.tokenizer, Tokenizer)
        return ImageTextModel(self.image_text, self.tokenizer, ImageTextCard(self.card.name))

    def add_image_embeddings(
        self, conditioning: SomeConditioning, embeddings: Tensor, positive: bool
    ) -> SomeConditioning:
        """The conditioning of B images with their embeddings, unit vectors (B, D); those of a negative prediction have
        none, which is what the decoder saw where its conditioning was dropped in training."""
        return append_embeddings(conditioning, self.embedding_space.standardize(embeddings) * float(positive))

    def modules(self) -> dict[str, nn.Module]:
        modules: dict[str, nn.Module] = {**super().modules(), "image_text": self.image_text}
        for name, model in (("prior", self.prior), ("upsampler", self.upsampler)):
            if model is not None:
                modules |= {
                    name: model.network,
                    f"{name}_text": model.text_encoder,
                    f"{name}_autoencoder": model.autoencoder,
                }
        return modules

    def describe(self) -> dict[str, Any]:
        unclip = {"image_text": configuration.to_json(self.image_text.config)}
        for name, model in (("prior", self.prior), ("upsampler", self.upsampler)):
            if model is not None:
                unclip[name] = model.describe()
                del unclip[name]["tokenizer"]  # that of the decoder
        return {**super().describe(), "unclip": unclip}


def append_embeddings(conditioning: SomeConditioning, embeddings: Tensor) -> SomeConditioning:
    """The conditioning of B images with standardized embeddings (B, D) behind its vector."""
    embeddings = embeddings.to(conditioning[0])
    vector = conditioning.vector
    return with_fields(conditioning, vector=embeddings if vector is None else torch.cat([vector, embeddings], dim=1))
