"""Fine-tuning a Stable Diffusion: it stays as it is, in the precision of the work, and adapters beside it learn."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from unspeckle.corpus import Corpus
from unspeckle.denoiser import Conditioning, PreparedConditioning
from unspeckle.formats.lora import lora_file
from unspeckle.formats.stable_diffusion.model import StableDiffusionModel
from unspeckle.generation.request import Request
from unspeckle.kernels.attention import use_attention_kernel
from unspeckle.model import Model
from unspeckle.model_io.model_file import LORA_FILE
from unspeckle.networks.lora import AdapterSet, find_attached_adapters, init_adapters
from unspeckle.prompts import escape_prompt
from unspeckle.rng import ExampleRNG
from unspeckle.schedule import DiscreteSchedule
from unspeckle.training.cached_latents import CachedLatents, LatentBatch, latent_batches
from unspeckle.training.loop import TrainingTask, Validator
from unspeckle.training.master_weights import DTYPES, MasterWeights, StepStats
from unspeckle.training.plan import LoraPlan
from unspeckle.training.validation import MAX_BATCH_PIXELS, MAX_BATCH_SIZE, NOISE_LEVELS, ValidationLoss

OUTPUT_FILE = LORA_FILE
LORA_VALIDATION_IMAGES = 16  # pictures
SAMPLE_PROMPTS, SAMPLE_STEPS = 4, 20  # of the samples
_NOISE = 1  # a Stream's purpose


class LoraUpdater(MasterWeights):
    """weights: the adapters, float32 whatever the base is; they stand beside the layers of the base."""

    plan: LoraPlan
    weights: AdapterSet

    def __init__(self, plan: LoraPlan, base_model: StableDiffusionModel) -> None:
        modules = {
            "network": base_model.network,
            **({"text": base_model.text_encoder} if plan.train_text_encoder else {}),
        }
        super().__init__(plan, init_adapters(modules, plan.rank, plan.seed))
        self.weights.attach(modules)
        self.base_model, self.modules = base_model, modules
        self.objective = replace(plan.build_objective(), min_c_out=1e-3)

    def create_compute_module(self) -> nn.Module:
        return self.weights

    def detach_adapters(self) -> None:
        """Take the adapters away from the base."""
        self.weights.detach(self.modules)

    def condition_on(self, ids: Tensor) -> Conditioning:
        """Of captions' ids (B, encoders, L): all that the network wants to be told."""
        with torch.set_grad_enabled(self.plan.train_text_encoder and torch.is_grad_enabled()):
            conditioning: Conditioning = self.base_model.text_encoder(ids)
        return self.base_model.add_conditioning(conditioning, positive=True, guidance_scale=1.0, size=self.plan.size)

    def loss(self, batch: LatentBatch) -> Tensor:
        """Mean loss of a batch, captions dropped example by example."""
        rng = ExampleRNG(self.plan.seed, batch.indices.to(self.device))
        *caption_ids, empty_ids = self.base_model.tokenizer.encode([*batch.captions, ""]).to(self.device)
        ids = torch.where(self.objective.dropped_captions(rng)[:, None, None], empty_ids, torch.stack(caption_ids))
        x = batch.x.to(self.device)
        t = round_up_to_table(self.objective.sample_times(rng, self.base_model.denoiser.schedule), self.base_model)
        eps = rng.normal(_NOISE, x.shape[1:])
        return self.objective.loss_at(self.base_model.denoiser, x, self.condition_on(ids), t, eps).mean()

    def step(self, batch: LatentBatch, step: int) -> StepStats:
        return self.backward_and_update(self.loss(batch), step)


def round_up_to_table(t: Tensor, base_model: StableDiffusionModel) -> Tensor:
    """Times (B,) in (0, 1] moved up to the next entry of the base's table: it was told of no others."""
    schedule = base_model.denoiser.schedule
    assert isinstance(schedule, DiscreteSchedule)
    return (t * schedule.num_train_timesteps).ceil().clamp(min=1) / schedule.num_train_timesteps


class LatentValidationLoss(ValidationLoss):
    """The same examination, on latents that are there already, at times from the checkpoint's table."""

    def __init__(self, x: Tensor, captions: list[str], updater: LoraUpdater) -> None:
        self.objective = updater.objective
        quantiles = (torch.arange(NOISE_LEVELS, dtype=torch.float32) + 0.5) / NOISE_LEVELS
        self.times = round_up_to_table(quantiles, updater.base_model).to(updater.device)
        self.batch_size = max(1, min(MAX_BATCH_SIZE, MAX_BATCH_PIXELS // math.prod(updater.plan.size)))
        self.x, self.ids = x.to(updater.device), updater.base_model.tokenizer.encode(captions).to(updater.device)


@dataclass
class LoraTask(TrainingTask):
    """A course on captioned pictures for adapters of the base. said: for the file's metadata."""

    output_file: ClassVar[str] = OUTPUT_FILE
    plan: LoraPlan
    base_model: StableDiffusionModel
    corpus: Corpus
    latents: CachedLatents
    metadata: dict[str, str]

    def create_updater(self) -> LoraUpdater:
        return LoraUpdater(self.plan, self.base_model)

    @property
    def lora_updater(self) -> LoraUpdater:
        assert isinstance(self.updater, LoraUpdater)
        return self.updater

    def batches(self, steps_done: int) -> Iterator[LatentBatch]:
        plan = self.plan
        return latent_batches(
            self.latents.training,
            self.corpus.training,
            plan.batch_size,
            seed=plan.seed,
            start=steps_done * plan.batch_size,
        )

    def _validation_examples(self) -> tuple[Tensor, list[str]]:
        """Latents and captions to be judged by: held out, if there are some."""
        has_validation = len(self.corpus.validation) > 0
        x, split = (
            (self.latents.validation, self.corpus.validation)
            if has_validation
            else (self.latents.training, self.corpus.training)
        )
        return x[:LORA_VALIDATION_IMAGES], split.first_captions(range(min(LORA_VALIDATION_IMAGES, len(split))))

    def create_validator(self) -> Validator:
        updater = self.lora_updater
        validation_loss = LatentValidationLoss(*self._validation_examples(), updater)
        return lambda model: validation_loss(
            model.denoiser,
            model.text_encoder,
            lambda conditioning: _complete_conditioning(model, conditioning, updater.plan.size),
        )

    @torch.no_grad()
    def build_model(self, tensors: list[Tensor], precision: str = "float32", weights_name: str = "") -> Model:
        """The base itself, its adapters made those: there is no second one."""
        for parameter, tensor in zip(self.updater.parameters(), tensors, strict=True):
            parameter.copy_(tensor)
        return self.base_model

    def save_model(self, model: Model) -> None:
        lora_file.write_lora(
            self.lora_updater.weights,
            self.base_model,
            self.run_folder / self.output_file,
            self.plan.layout,
            self.metadata,
        )

    def sample_requests(self) -> list[Request]:
        prompts = list(dict.fromkeys(self._validation_examples()[1]))[:SAMPLE_PROMPTS]
        settings = {"steps": SAMPLE_STEPS, "size": self.plan.size, "guidance_scale": self.plan.guidance_scale}
        return [Request(escape_prompt(prompt), seed=i, **settings) for i, prompt in enumerate(prompts)]  # type: ignore[arg-type]


def _complete_conditioning(
    model: Model, conditioning: PreparedConditioning, size: tuple[int, int]
) -> PreparedConditioning:
    return model.add_conditioning(conditioning, positive=True, guidance_scale=1.0, size=size)


def cast_base_model(base_model: StableDiffusionModel, plan: LoraPlan) -> StableDiffusionModel:
    """The base on the plan's device, in the precision of the work; it stays so. Its autoencoder keeps its own."""
    base_model.to(plan.device)
    assert not any(find_attached_adapters(module) for module in base_model.modules().values())
    for module in (base_model.network, base_model.text_encoder):
        module.to(DTYPES[plan.precision]).requires_grad_(False)
    use_attention_kernel(base_model.network)  # for validation, which has no gradients
    return base_model
