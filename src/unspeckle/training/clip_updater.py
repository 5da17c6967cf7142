"""The loss of a CLIP of our own: each image of a batch is to be nearest to its caption, and the other way round."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from unspeckle.corpus.batches import Batch
from unspeckle.networks.image_encoder import ImageEncoderConfig
from unspeckle.text.image_text_encoder import ImageTextConfig, ImageTextEncoder
from unspeckle.text.text_encoder import TextEncoderConfig
from unspeckle.text.tokenizer import Tokenizer
from unspeckle.training.contrastive_loss import contrastive_loss
from unspeckle.training.master_weights import MasterWeights
from unspeckle.training.plan import CLIPPlan
from unspeckle.training.text_to_image_updater import gather_rows
from unspeckle.training.updater import Updater


def init_encoder(plan: CLIPPlan) -> ImageTextEncoder:
    """The plan's two encoders with random weights, the same for the same seed."""
    image, text = plan.model.network, plan.model.text_encoder
    assert isinstance(image, ImageEncoderConfig) and isinstance(text, TextEncoderConfig)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.work.seed)
        return ImageTextEncoder(ImageTextConfig(image, text, plan.contrastive.loss))


class CLIPUpdater(Updater):
    """Updates an image encoder and a text encoder together."""

    plan: CLIPPlan

    def __init__(self, plan: CLIPPlan, tokenizer: Tokenizer) -> None:
        super().__init__(plan, MasterWeights.for_plan(init_encoder(plan), plan.compute))
        self.tokenizer = tokenizer

    def loss(self, batch: Batch, step: int) -> Tensor:
        """The mean loss () of a batch; each different caption is encoded once."""
        encoder = cast(ImageTextEncoder, self.weights.compute_module)
        captions = list(dict.fromkeys(batch.captions))
        rows = {caption: row for row, caption in enumerate(captions)}
        indices = torch.tensor([rows[caption] for caption in batch.captions], device=self.device)
        ids = self.tokenizer.encode_wordings(captions).to(self.device)
        texts = gather_rows(encoder.encode_texts(ids), indices)  # (B, D)
        images = encoder.encode_images(batch.images.to(self.device).float() / 127.5 - 1)  # (B, D)
        matches = same_captions(batch.original_captions or batch.captions).to(self.device)
        return contrastive_loss(encoder.logits(images, texts), matches, self.plan.contrastive.loss).mean()


def same_captions(captions: Sequence[str]) -> Tensor:
    """(B, B) bool, true where two captions are the same."""
    first_places: dict[str, int] = {}
    numbers = torch.tensor([first_places.setdefault(caption, len(first_places)) for caption in captions])
    return numbers[:, None] == numbers
