"""Training an unCLIP model's decoder, which ends with the whole model."""

from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from unspeckle.denoiser import Network, PreparedConditioning
from unspeckle.model import Model, ModelCard
from unspeckle.model_io.model_file import save
from unspeckle.networks.embedding_space import EmbeddingSpace
from unspeckle.text.image_text_encoder import ImageTextModel
from unspeckle.training.best_weights_task import load_for_inference
from unspeckle.training.decoder_updater import DecoderUpdater
from unspeckle.training.inputs import TrainingInputs
from unspeckle.training.model_task import Validator
from unspeckle.training.plan import Plan
from unspeckle.training.text_to_image_task import VALIDATION_IMAGES, TextToImageTask, with_weights_name
from unspeckle.training.text_to_image_updater import init_modules
from unspeckle.training.validation import ValidationLoss, validation_split
from unspeckle.unclip import UnCLIPModel, append_embeddings
from unspeckle.upsampler import UpsamplerModel


class DecoderTask(TextToImageTask):
    """Trains a network that denoises images by their embeddings; its model has the CLIP and the prior too.

    model_path: where the model is saved. prior: draws embeddings; its autoencoder is their space. upsampler: enlarges
    what the decoder draws, if it is not None."""

    updater: DecoderUpdater

    def __init__(
        self,
        plan: Plan,
        run_folder: Path,
        inputs: TrainingInputs,
        card: ModelCard,
        *,
        image_text: ImageTextModel,
        prior: Model,
        upsampler: UpsamplerModel | None,
        model_path: Path,
    ) -> None:
        self.image_text, self.prior, self.upsampler, self.model_path = image_text, prior, upsampler, model_path
        super().__init__(plan, run_folder, inputs, card)

    def create_updater(self, plan: Plan, inputs: TrainingInputs) -> DecoderUpdater:
        space = cast(EmbeddingSpace, self.prior.autoencoder)
        return DecoderUpdater(plan, inputs.tokenizer, inputs.autoencoder, self.image_text.encoder, space)

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
        embeddings = self.updater.embed(split.center_crops(torch.arange(count) * len(split) // count))

        def complete_conditioning(conditioning: PreparedConditioning, rows: slice) -> PreparedConditioning:
            return append_embeddings(conditioning, embeddings[rows])

        return lambda model: validation_loss(model.denoiser, model.text_encoder, complete_conditioning)

    def build_model(self, tensors: list[Tensor], precision: str = "float32", weights_name: str = "") -> UnCLIPModel:
        modules = load_for_inference(init_modules(self.plan), tensors, precision, self.updater.device)
        return UnCLIPModel(
            self.plan.model.build_denoiser(cast(Network, modules.network)),
            self.inputs.tokenizer,
            modules.text_encoder,
            self.inputs.autoencoder,
            with_weights_name(self.card, weights_name),
            image_text=self.image_text.encoder,
            prior=self.prior,
            upsampler=self.upsampler,
        )

    def save_model(self, model: Model) -> None:
        save(model, self.model_path)
