"""Training a model on captioned images."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import cast

from torch import Tensor

from unspeckle.corpus.batches import Batch, batches
from unspeckle.denoiser import Network
from unspeckle.generation.request import Request
from unspeckle.model import Model, ModelCard
from unspeckle.prompts import escape_prompt
from unspeckle.training.best_weights_task import load_for_inference
from unspeckle.training.encoded_corpus import encode_split
from unspeckle.training.inputs import TrainingInputs
from unspeckle.training.model_task import ModelTask, Validator
from unspeckle.training.plan import Plan
from unspeckle.training.task import Stage
from unspeckle.training.text_to_image_updater import TextToImageUpdater, TrainableModules, init_modules
from unspeckle.training.validation import ValidationLoss, validation_split

VALIDATION_IMAGES = 128
MAX_SAMPLE_PROMPTS = 16
SAMPLE_STEPS = 20


class TextToImageTask(ModelTask):
    """Trains a network and its text encoder on captioned images; the autoencoder stays as it is.

    card: of the model, but for which weights it is built of.
    """

    updater: TextToImageUpdater

    def __init__(self, plan: Plan, run_folder: Path, inputs: TrainingInputs, card: ModelCard) -> None:
        super().__init__(plan, run_folder, self.create_updater(plan, inputs))
        self.inputs, self.card = inputs, card

    def create_updater(self, plan: Plan, inputs: TrainingInputs) -> TextToImageUpdater:
        """What is trained, with random weights or with those of the model that is continued."""
        base = inputs.base_model
        modules = init_modules(plan) if base is None else TrainableModules(base.network, base.text_encoder)
        return TextToImageUpdater(plan, modules, inputs.tokenizer, inputs.autoencoder)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """First the text encoder and the coarse image predictor, if the plan says so, then all with the network."""
        work = self.plan.work
        network_stage = Stage("network", work.steps, self.plan.measured.images_per_second)
        text_stage = Stage("text", work.text_steps, can_validate=False)
        return (text_stage, network_stage) if work.text_steps else (network_stage,)

    def batches(self, start: int) -> Iterator[Batch]:
        work, split = self.plan.work, self.inputs.corpus.training
        if work.cache_latents:
            split = encode_split(split, self.updater.autoencoder_in_precision)
        first_index = start * work.batch_size
        return batches(
            split,
            work.batch_size,
            seed=work.seed,
            start=first_index,
            flip=work.flip,
            balance=work.balance,
            augmenter=self.inputs.make_augmenter(work.seed) if work.caption_augmentation else None,
        )

    def create_validator(self) -> Validator:
        validation_loss = ValidationLoss(
            validation_split(self.inputs.corpus),
            self.inputs.tokenizer,
            self.inputs.autoencoder,
            self.plan.objective,
            max_images=VALIDATION_IMAGES,
            schedule=self.updater.denoiser.schedule,
            device=self.updater.device,
        )
        return lambda model: validation_loss(model.denoiser, model.text_encoder)

    def build_model(self, tensors: list[Tensor], precision: str = "float32", weights_name: str = "") -> Model:
        modules = load_for_inference(init_modules(self.plan), tensors, precision, self.updater.device)
        denoiser = self.plan.model.build_denoiser(cast(Network, modules.network))
        card = with_weights_name(self.card, weights_name)
        return Model(denoiser, self.inputs.tokenizer, modules.text_encoder, self.inputs.autoencoder, card)

    def sample_requests(self) -> list[Request]:
        return [Request(prompt, seed=i, steps=SAMPLE_STEPS) for i, prompt in enumerate(self.sample_prompts)]

    @cached_property
    def sample_prompts(self) -> list[str]:
        """The first different captions of the validation images, or of the training images."""
        validation = self.inputs.corpus.validation
        captions = validation.first_captions(range(len(validation))) or self.inputs.corpus.training_captions()
        return [escape_prompt(caption) for caption in list(dict.fromkeys(captions))[:MAX_SAMPLE_PROMPTS]]


def with_weights_name(card: ModelCard, weights_name: str) -> ModelCard:
    """The card, which then tells of which weights ("raw", "EMA 0.1") the model is built."""
    return replace(card, corpus={**card.corpus, "weights": weights_name}) if weights_name else card
