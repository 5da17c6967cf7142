"""Training a GAN on captioned images."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from unspeckle.corpus.batches import Batch, batches
from unspeckle.denoiser import Network
from unspeckle.generation.request import Request
from unspeckle.model import Model, ModelCard
from unspeckle.prompts import escape_prompt
from unspeckle.rng import noise_from_seeds
from unspeckle.training.best_weights_task import load_for_inference
from unspeckle.training.gan_updater import GANUpdater
from unspeckle.training.gan_validation import energy_distances
from unspeckle.training.inputs import TrainingInputs
from unspeckle.training.model_task import ModelTask, Validator
from unspeckle.training.plan import GANPlan
from unspeckle.training.task import Stage
from unspeckle.training.text_to_image_task import MAX_SAMPLE_PROMPTS, with_weights_name
from unspeckle.training.text_to_image_updater import init_modules
from unspeckle.training.validation import ValidationResult, validation_split

VALIDATION_IMAGES = 512


class GANTask(ModelTask):
    """Trains a generator with its text encoder against a discriminator, which is not kept.

    card: of the model, but for which weights it is built of.
    """

    plan: GANPlan
    updater: GANUpdater

    def __init__(self, plan: GANPlan, run_folder: Path, inputs: TrainingInputs, card: ModelCard) -> None:
        super().__init__(plan, run_folder, GANUpdater(plan, inputs.tokenizer, inputs.autoencoder))
        self.inputs, self.card = inputs, card

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage("GAN", self.plan.work.steps, self.plan.measured.images_per_second),)

    def batches(self, start: int) -> Iterator[Batch]:
        work = self.plan.work
        return batches(
            self.inputs.corpus.training,
            work.batch_size,
            seed=work.seed,
            start=start * work.batch_size,
            flip=work.flip,
            balance=work.balance,
            augmenter=self.inputs.make_augmenter(work.seed) if work.caption_augmentation else None,
        )

    def create_validator(self) -> Validator:
        """Draws the captions of held-out images, always from the same noise."""
        split, device = validation_split(self.inputs.corpus), self.updater.device
        count = min(VALIDATION_IMAGES, len(split))
        indices = torch.arange(count) * len(split) // count
        real = self.inputs.autoencoder.encode(split.center_crops(indices).to(device).float() / 127.5 - 1)
        captions = [""] * count if self.plan.gan.unconditional else split.first_captions(indices)
        ids = self.inputs.tokenizer.encode(captions).to(device)
        noise = noise_from_seeds(range(count), real.shape[1:], device)(-1, 0)

        @torch.no_grad()
        def validate(model: Model) -> ValidationResult:
            conditioning, ones = model.text_encoder(ids), torch.ones(count, device=device)
            return energy_distances(model.denoiser(noise, ones, model.denoiser.prepare(conditioning)), real)

        return validate

    def build_model(self, tensors: list[Tensor], precision: str = "float32", weights_name: str = "") -> Model:
        modules = load_for_inference(init_modules(self.plan), tensors, precision, self.updater.device)
        denoiser = self.plan.model.build_denoiser(cast(Network, modules.network))
        card = with_weights_name(self.card, weights_name)
        return Model(denoiser, self.inputs.tokenizer, modules.text_encoder, self.inputs.autoencoder, card)

    def sample_requests(self) -> list[Request]:
        return [Request(prompt, seed=i) for i, prompt in enumerate(self.sample_prompts)]

    @cached_property
    def sample_prompts(self) -> list[str]:
        """The first different captions of the held-out images; of an unconditional model, none."""
        if self.plan.gan.unconditional:
            return [""] * MAX_SAMPLE_PROMPTS
        split = validation_split(self.inputs.corpus)
        captions = list(dict.fromkeys(split.first_captions(range(len(split)))))[:MAX_SAMPLE_PROMPTS]
        return [escape_prompt(captions[i % len(captions)]) for i in range(MAX_SAMPLE_PROMPTS)]
