"""A CLIP of our own: images and texts as vectors of one space, in which an image lies near what is said of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn

from unspeckle import configuration
from unspeckle.denoiser import Conditioning
from unspeckle.networks.image_encoder import ImageEncoder, ImageEncoderConfig
from unspeckle.text.text_encoder import TextEncoder, TextEncoderConfig
from unspeckle.text.tokenizer import Tokenizer

# exp(logit_scale) at first and at most (Radford et al. 2021, section 2.5); the bias is SigLIP's (Zhai et al. 2023,
# section 3.2), whose scale begins at 10
INITIAL_SCALE, MAX_SCALE = {"infonce": 1 / 0.07, "siglip": 10.0}, 100.0
INITIAL_BIAS = -10.0


@dataclass(frozen=True)
class ImageTextConfig:
    """The shape of an ImageTextEncoder."""

    image: ImageEncoderConfig
    text: TextEncoderConfig
    # The loss that it is trained by: see training/contrastive_loss.py
    loss: str = "infonce"


class ImageTextEncoder(nn.Module):
    """An image encoder and a text encoder that end in one space (Radford et al. 2021)."""

    def __init__(self, config: ImageTextConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = ImageEncoder(config.image)
        self.text_encoder = TextEncoder(config.text)
        self.text_proj = nn.Linear(config.text.width, config.image.embedding_width, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(INITIAL_SCALE[config.loss])))
        self.logit_bias = nn.Parameter(torch.tensor(INITIAL_BIAS if config.loss == "siglip" else 0.0))

    def encode_images(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> unit vectors (B, D) float32."""
        return F.normalize(self.image_encoder(images).float(), dim=1)

    def encode_texts(self, ids: Tensor) -> Tensor:
        """Token ids (B, L) -> unit vectors (B, D) float32."""
        conditioning: Conditioning = self.text_encoder(ids)
        return F.normalize(self.text_proj(conditioning.vector).float(), dim=1)

    def logits(self, image_embeddings: Tensor, text_embeddings: Tensor) -> Tensor:
        """How well images (B, D) and texts (M, D) go together, (B, M): scale · cosine + bias."""
        scale = self.logit_scale.float().exp().clamp(max=MAX_SCALE)
        return scale * image_embeddings @ text_embeddings.T + self.logit_bias.float()


@dataclass(frozen=True)
class ImageTextCard:
    """What a user should know of an ImageTextModel."""

    name: str = "unnamed"
    license: str = ""
    # The commands that made it
    recipe: str = ""
    # A summary of the images that it was trained on
    corpus: dict[str, Any] = field(default_factory=dict)


@dataclass
class ImageTextModel:
    """An ImageTextEncoder with its tokenizer: embeds images and texts of any size and wording."""

    encoder: ImageTextEncoder
    tokenizer: Tokenizer
    card: ImageTextCard

    @property
    def device(self) -> torch.device:
        return self.encoder.logit_scale.device

    @torch.no_grad()
    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Pillow images as unit vectors (N, D), float32; each is shrunk or enlarged to the size of training and its
        longer side cut."""
        size = self.encoder.config.image.size
        return self.encoder.encode_images(
            torch.cat([_to_tensor(ImageOps.fit(image.convert("RGB"), size)) for image in images]).to(self.device)
        )

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts as unit vectors (N, D), float32."""
        return self.encoder.encode_texts(self.tokenizer.encode(list(texts)).to(self.device))

    def _repr_html_(self) -> str:
        """For notebooks: what it is."""
        config, parameters = self.encoder.config, sum(p.numel() for p in self.encoder.parameters())
        rows = {
            "embeds": f"images of {config.image.size[0]} × {config.image.size[1]} pixels and texts, as "
            f"{config.image.embedding_width} numbers",
            "parameters": f"{parameters / 1e6:,.1f} million",
            "license": self.card.license,
        }
        return configuration.to_html(self.card.name, rows)


def _to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as (1, 3, H, W) in [-1, 1]."""
    data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)
    return data.permute(2, 0, 1)[None].float() / 127.5 - 1
