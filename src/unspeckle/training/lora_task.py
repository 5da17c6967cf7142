"""Training a LoRA for a Stable Diffusion on captioned images."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from unspeckle.corpus.splits import Corpus
from unspeckle.denoiser import PreparedConditioning
from unspeckle.formats.lora import lora_file
from unspeckle.formats.stable_diffusion.model import StableDiffusionModel
from unspeckle.generation.request import Request
from unspeckle.kernels.attention import use_attention_kernel
from unspeckle.model import Model
from unspeckle.model_io.model_file import LORA_FILE
from unspeckle.networks.lora import find_attached_adapters
from unspeckle.prompts import escape_prompt
from unspeckle.training.cached_latents import CachedLatents, LatentBatch, latent_batches
from unspeckle.training.lora_updater import LoraUpdater, round_up_to_table
from unspeckle.training.master_weights import DTYPES
from unspeckle.training.model_task import ModelTask, Validator
from unspeckle.training.plan import ComputePlan, LoraPlan
from unspeckle.training.task import Stage
from unspeckle.training.validation import NOISE_LEVELS, ValidationLoss, validation_batch_size, validation_split

VALIDATION_IMAGES = 16
SAMPLE_PROMPTS, SAMPLE_STEPS = 4, 20


class LatentValidationLoss(ValidationLoss):
    """The same of latents that are already there, at times from the checkpoint's table."""

    def __init__(self, x: Tensor, captions: list[str], updater: LoraUpdater) -> None:
        self.objective = updater.plan.objective
        quantiles = (torch.arange(NOISE_LEVELS, dtype=torch.float32) + 0.5) / NOISE_LEVELS
        self.times = round_up_to_table(quantiles, updater.base_model).to(updater.device)
        self.batch_size = validation_batch_size(updater.plan.model.size)
        self.x, self.ids = x.to(updater.device), updater.base_model.tokenizer.encode(captions).to(updater.device)


class LoraTask(ModelTask):
    """Trains adapters for a base model, which is in the precision of the plan and stays as it is.

    latents: of the corpus' images; metadata: what the file says of itself.
    """

    output_file = LORA_FILE
    plan: LoraPlan
    updater: LoraUpdater

    def __init__(
        self,
        plan: LoraPlan,
        run_folder: Path,
        base_model: StableDiffusionModel,
        *,
        corpus: Corpus,
        latents: CachedLatents,
        metadata: dict[str, str],
    ) -> None:
        super().__init__(plan, run_folder, LoraUpdater(plan, base_model))
        self.base_model, self.corpus, self.latents, self.metadata = base_model, corpus, latents, metadata

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage("LoRA", self.plan.work.steps),)

    def batches(self, start: int) -> Iterator[LatentBatch]:
        work = self.plan.work
        first_index = start * work.batch_size
        return latent_batches(
            self.latents.training, self.corpus.training, work.batch_size, seed=work.seed, start=first_index
        )

    def create_validator(self) -> Validator:
        size = self.plan.model.size
        validation_loss = LatentValidationLoss(*self._validation_examples(), self.updater)

        def complete_conditioning(conditioning: PreparedConditioning, rows: slice) -> PreparedConditioning:
            return self.base_model.add_conditioning(conditioning, positive=True, guidance_scale=1.0, size=size)

        return lambda model: validation_loss(model.denoiser, model.text_encoder, complete_conditioning)

    @torch.no_grad()
    def build_model(self, tensors: list[Tensor], precision: str = "float32", weights_name: str = "") -> Model:
        """The base model itself, its adapters set to these weights: there is no second one."""
        for parameter, tensor in zip(self.updater.weights.parameters(), tensors, strict=True):
            parameter.copy_(tensor)
        return self.base_model

    def save_model(self, model: Model) -> None:
        """Write RUN's LoRA atomically."""
        path = self.run_folder / self.output_file
        lora_file.write_lora(self.updater.adapters, self.base_model, path, self.plan.lora.layout, self.metadata)

    def sample_requests(self) -> list[Request]:
        prompts = list(dict.fromkeys(self._validation_examples()[1]))[:SAMPLE_PROMPTS]
        size, guidance_scale = self.plan.model.size, self.plan.lora.guidance_scale
        return [
            Request(escape_prompt(prompt), seed=i, steps=SAMPLE_STEPS, size=size, guidance_scale=guidance_scale)
            for i, prompt in enumerate(prompts)
        ]

    def _validation_examples(self) -> tuple[Tensor, list[str]]:
        """Latents and captions of the images to validate with."""
        split = validation_split(self.corpus)
        x = self.latents.training if split is self.corpus.training else self.latents.validation
        return x[:VALIDATION_IMAGES], split.first_captions(range(min(VALIDATION_IMAGES, len(split))))


def cast_base_model(base_model: StableDiffusionModel, compute: ComputePlan) -> StableDiffusionModel:
    """The base model on the plan's device and in its precision, frozen; changed in place. Its autoencoder keeps its own
    precision."""
    base_model.to(compute.device)
    assert not any(find_attached_adapters(module) for module in base_model.modules().values())
    for module in (base_model.network, base_model.text_encoder):
        module.to(DTYPES[compute.precision]).requires_grad_(False)
    # For validation, which has no gradients
    use_attention_kernel(base_model.network)
    return base_model
