"""Training a CLIP of our own on captioned images."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from PIL import Image
from torch import Tensor

from unspeckle.corpus.batches import Batch, batches
from unspeckle.model_io.image_text_file import save_image_text_model
from unspeckle.text.image_text_encoder import ImageTextCard, ImageTextModel
from unspeckle.training.best_weights_task import BestWeightsTask, load_for_inference
from unspeckle.training.clip_updater import CLIPUpdater, init_encoder
from unspeckle.training.clip_validation import RetrievalValidation
from unspeckle.training.inputs import TrainingInputs
from unspeckle.training.plan import CLIPPlan
from unspeckle.training.task import Stage
from unspeckle.training.validation import validation_split

VALIDATION_IMAGES = 512


class CLIPTask(BestWeightsTask[ImageTextModel]):
    """Trains an image encoder and a text encoder together.

    card: of the model, but for which weights it is built of."""

    plan: CLIPPlan
    updater: CLIPUpdater

    def __init__(self, plan: CLIPPlan, run_folder: Path, inputs: TrainingInputs, card: ImageTextCard) -> None:
        super().__init__(plan, run_folder, CLIPUpdater(plan, inputs.tokenizer))
        self.inputs, self.card = inputs, card

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage("CLIP", self.plan.work.steps, self.plan.measured.images_per_second),)

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

    @cached_property
    def retrieval(self) -> RetrievalValidation:
        """Held-out images with their captions."""
        return RetrievalValidation(validation_split(self.inputs.corpus), VALIDATION_IMAGES)

    def create_validator(self) -> RetrievalValidation:
        return self.retrieval

    def build_model(self, tensors: list[Tensor], precision: str = "float32", weights_name: str = "") -> ImageTextModel:
        encoder = load_for_inference(init_encoder(self.plan), tensors, precision, self.updater.device)
        corpus = {**self.card.corpus, "weights": weights_name} if weights_name else self.card.corpus
        return ImageTextModel(encoder, self.inputs.tokenizer, replace(self.card, corpus=corpus))

    def save_model(self, model: ImageTextModel) -> None:
        save_image_text_model(model, self.run_folder / self.output_file)

    def draw_samples(self, model: ImageTextModel) -> Image.Image:
        return self.retrieval.draw_samples(model)
