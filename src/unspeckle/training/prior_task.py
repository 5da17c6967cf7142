"""Training the prior of an unCLIP model: from a text to the embedding of an image that fits it."""

from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from unspeckle.corpus.splits import Split
from unspeckle.generation.pipeline import steps
from unspeckle.generation.request import Request
from unspeckle.model import Model, ModelCard
from unspeckle.networks.embedding_space import EmbeddingSpace, EmbeddingSpaceConfig
from unspeckle.output.grid import grid
from unspeckle.text.image_text_encoder import ImageTextEncoder, ImageTextModel
from unspeckle.training.inputs import TrainingInputs
from unspeckle.training.plan import Plan
from unspeckle.training.text_to_image_task import TextToImageTask
from unspeckle.training.text_to_image_updater import TextToImageUpdater
from unspeckle.training.validation import validation_split

# Training images by which embeddings are standardized, and held-out images of which the nearest is shown
STANDARDIZATION_IMAGES, SAMPLE_IMAGES = 4096, 1024
BATCH_SIZE = 64
# How the prior draws: Ramesh et al. 2022 find little gain beyond 64 steps; embeddings need far fewer here
PRIOR_STEPS, PRIOR_GUIDANCE_SCALE = 16, 2.0


class PriorTask(TextToImageTask):
    """Trains a network that denoises embeddings of images, with a text encoder that begins as that of the CLIP.

    inputs: their autoencoder is the EmbeddingSpace of image_text."""

    def __init__(
        self, plan: Plan, run_folder: Path, inputs: TrainingInputs, card: ModelCard, image_text: ImageTextModel
    ) -> None:
        self.image_text = image_text
        super().__init__(plan, run_folder, inputs, card)

    def create_updater(self, plan: Plan, inputs: TrainingInputs) -> TextToImageUpdater:
        updater = super().create_updater(plan, inputs)
        text_encoder = self.image_text.encoder.text_encoder
        with torch.no_grad():
            for name, parameter in updater.weights.module.named_parameters():
                part, _, rest = name.partition(".")
                if part == "text_encoder":
                    parameter.copy_(text_encoder.get_parameter(rest))
        updater.weights.refresh_compute_module()
        return updater

    @cached_property
    def shown_images(self) -> tuple[Split, Tensor, Tensor]:
        """Held-out images to search: the split, their indices (N,), and their embeddings (N, D)."""
        split = validation_split(self.inputs.corpus)
        count = min(SAMPLE_IMAGES, len(split))
        indices = torch.arange(count) * len(split) // count
        return split, indices, embed_split(split, indices, self.image_text)

    def draw_samples(self, model: Model) -> Image.Image:
        """For each prompt, the held-out image that is nearest to the embedding that is drawn from it."""
        split, indices, embeddings = self.shown_images
        space = model.autoencoder
        assert isinstance(space, EmbeddingSpace)
        nearest = []
        for i, prompt in enumerate(self.sample_prompts):
            for step in steps(model, Request(prompt, seed=i)):
                last = step
            nearest.append(indices[int((embeddings @ space.to_embeddings(last.x)[0].cpu()).argmax())])
        pixels = split.center_crops(torch.stack(nearest)).permute(0, 2, 3, 1).contiguous().numpy()
        return grid([Image.fromarray(one) for one in pixels])


@torch.no_grad()
def embed_split(split: Split, indices: Tensor, image_text: ImageTextModel) -> Tensor:
    """The unit vectors (N, D) of these images (N,), on the CPU."""
    crops = (split.center_crops(chunk).to(image_text.device) for chunk in torch.split(indices, BATCH_SIZE))
    return torch.cat([image_text.encoder.encode_images(images.float() / 127.5 - 1).cpu() for images in crops])


def fit_embedding_space(split: Split, image_text: ImageTextModel) -> EmbeddingSpace:
    """The space of the CLIP's embeddings, standardized over training images; always the same for the same ones."""
    space = empty_embedding_space(image_text.encoder)
    count = min(STANDARDIZATION_IMAGES, len(split))
    embeddings = embed_split(split, torch.arange(count) * len(split) // count, image_text)
    space.mean.copy_(embeddings.mean(dim=0))
    # Numbers that hardly differ are not blown up
    deviations = embeddings.std(dim=0, correction=0)
    space.std.copy_(torch.maximum(deviations, 0.1 * deviations.square().mean().sqrt()).clamp(min=1e-6))
    return space.to(image_text.device).eval()


def empty_embedding_space(encoder: ImageTextEncoder) -> EmbeddingSpace:
    """The space of an encoder's embeddings, not yet standardized."""
    image = encoder.config.image
    space = EmbeddingSpace(EmbeddingSpaceConfig(image.size, image.embedding_width))
    space.embed_images = encoder.encode_images
    return space


def prior_card(card: ModelCard) -> ModelCard:
    """How the prior draws embeddings."""
    return ModelCard(
        name=f"{card.name}'s prior",
        license=card.license,
        sampler="dpmpp_2m",
        steps=PRIOR_STEPS,
        guidance_scale=PRIOR_GUIDANCE_SCALE,
        size=card.size,
        clamp_denoised=False,
    )
