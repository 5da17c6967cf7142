"""Training an upsampler: large images from small ones."""

from pathlib import Path
from typing import cast

import torch
from PIL import Image
from torch import Tensor

from unspeckle.denoiser import Network, PreparedConditioning
from unspeckle.generation.pipeline import upsample
from unspeckle.model import Model, ModelCard
from unspeckle.output.grid import grid
from unspeckle.prompts import escape_prompt, parse_prompt
from unspeckle.rng import ExampleRNG
from unspeckle.training.best_weights_task import load_for_inference
from unspeckle.training.inputs import TrainingInputs
from unspeckle.training.model_task import Validator
from unspeckle.training.plan import Plan
from unspeckle.training.text_to_image_task import VALIDATION_IMAGES, TextToImageTask, with_weights_name
from unspeckle.training.text_to_image_updater import init_modules
from unspeckle.training.upsampler_updater import UpsamplerUpdater
from unspeckle.training.validation import ValidationLoss, validation_split
from unspeckle.upsampler import NOISE_LEVEL, UpsamplerModel

SAMPLE_IMAGES, SAMPLE_STEPS = 6, 12


class UpsamplerTask(TextToImageTask):
    """Trains a network that enlarges images by a factor, and its text encoder."""

    updater: UpsamplerUpdater

    def __init__(self, plan: Plan, run_folder: Path, inputs: TrainingInputs, card: ModelCard, factor: int) -> None:
        self.factor = factor
        super().__init__(plan, run_folder, inputs, card)

    def create_updater(self, plan: Plan, inputs: TrainingInputs) -> UpsamplerUpdater:
        return UpsamplerUpdater(plan, inputs.tokenizer, inputs.autoencoder, self.factor)

    def create_validator(self) -> Validator:
        split = validation_split(self.inputs.corpus)
        validation_loss = ValidationLoss(
            split,
            self.inputs.tokenizer,
            self.inputs.autoencoder,
            self.plan.objective,
            max_images=VALIDATION_IMAGES,
            schedule=self.updater.denoiser.schedule,
            device=self.updater.device,
        )
        count = len(validation_loss.x)
        images = split.center_crops(torch.arange(count) * len(split) // count)

        def complete_conditioning(conditioning: PreparedConditioning, rows: slice) -> PreparedConditioning:
            rng = ExampleRNG(0, torch.arange(count, device=self.updater.device)[rows])
            levels = torch.full((len(images[rows]),), NOISE_LEVEL, device=self.updater.device)
            return self.updater.add_small_images(conditioning, images[rows], rng, levels)

        return lambda model: validation_loss(model.denoiser, model.text_encoder, complete_conditioning)

    def build_model(self, tensors: list[Tensor], precision: str = "float32", weights_name: str = "") -> UpsamplerModel:
        modules = load_for_inference(init_modules(self.plan), tensors, precision, self.updater.device)
        return UpsamplerModel(
            self.plan.model.build_denoiser(cast(Network, modules.network)),
            self.inputs.tokenizer,
            modules.text_encoder,
            self.inputs.autoencoder,
            with_weights_name(self.card, weights_name),
            factor=self.factor,
        )

    def draw_samples(self, model: Model) -> Image.Image:
        """Held-out images: enlarged bilinearly, by the model, and as they are."""
        assert isinstance(model, UpsamplerModel)
        split = validation_split(self.inputs.corpus)
        count = min(SAMPLE_IMAGES, len(split))
        indices = torch.arange(count) * len(split) // count
        pixels = split.center_crops(indices).permute(0, 2, 3, 1).contiguous().numpy()
        originals = [Image.fromarray(one) for one in pixels]
        width, height = self.plan.model.size
        small = [one.resize((width // self.factor, height // self.factor), Image.Resampling.BOX) for one in originals]
        prompts = [parse_prompt(escape_prompt(caption)) for caption in split.first_captions(indices)]
        enlarged = upsample(model, small, prompts, range(count))
        bilinear = [one.resize((width, height), Image.Resampling.BILINEAR) for one in small]
        return grid([*bilinear, *enlarged, *originals], columns=count)


def upsampler_card(card: ModelCard) -> ModelCard:
    """How an upsampler draws: in few steps, and hardly guided, as the small image says what it shows."""
    return ModelCard(
        name=card.name,
        license=card.license,
        sampler="dpmpp_2m",
        steps=SAMPLE_STEPS,
        guidance_scale=1.0,
        size=card.size,
        recipe=card.recipe,
        corpus=card.corpus,
        vocabulary=card.vocabulary,
    )
