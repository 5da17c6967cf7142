"""The run: averages, held-out losses, samples and the choice at the end, around the walk along the plan's steps."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from unspeckle import atomic
from unspeckle.corpus import Batch, Corpus, batches
from unspeckle.denoiser import Network
from unspeckle.errors import InputError
from unspeckle.generation.pipeline import draw
from unspeckle.generation.request import Request
from unspeckle.kernels.attention import use_attention_kernel
from unspeckle.model import Model, ModelCard
from unspeckle.model_io.model_file import MODEL_FILE, save
from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.prompts import escape_prompt
from unspeckle.text.tokenizer import Tokenizer
from unspeckle.training import checkpoint
from unspeckle.training.ema import PowerFunctionEMA
from unspeckle.training.encoded_corpus import encode_split
from unspeckle.training.master_weights import (
    DTYPES,
    MasterWeights,
    StepStats,
    TextToImageUpdater,
    TrainableModules,
    init_modules,
)
from unspeckle.training.plan import Plan
from unspeckle.training.stage import Inspection, ProgressReport, TrainingError, save_checkpoint_or_raise, training_loop
from unspeckle.training.validation import ValidationLoss, ValidationResult

ModuleT = TypeVar("ModuleT", bound=nn.Module)
VALIDATION_IMAGES = 128  # pictures

Validator = Callable[[Model], ValidationResult]


@dataclass
class TrainingTask(ABC):
    """All that a run holds in memory, whatever it learns from. file: what it leaves in RUN."""

    output_file: ClassVar[str] = MODEL_FILE
    plan: Plan
    run_folder: Path
    should_stop: Callable[[], bool] = field(default=lambda: False, kw_only=True)
    skipped_steps: int = field(default=0, kw_only=True)
    updater: MasterWeights = field(init=False)
    emas: list[PowerFunctionEMA] = field(init=False)

    def __post_init__(self) -> None:
        self.updater = self.create_updater()
        self.emas = [PowerFunctionEMA(width, self.updater.parameters()) for width in self.plan.ema_widths]

    @abstractmethod
    def create_updater(self) -> MasterWeights:
        """Who learns, from the beginning."""

    @abstractmethod
    def batches(self, steps_done: int) -> Iterator[Any]:
        """What the learner is given from the step after `done`, without end: a function of the plan and of `done`."""

    @abstractmethod
    def create_validator(self) -> Validator:
        """The examination that two moments of a run compare by."""

    @abstractmethod
    def build_model(self, tensors: list[Tensor], precision: str = "float32", weights_name: str = "") -> Model:
        """A model of these tensors, apart from the ones that learn. weights: which ones they are, for its card."""

    def save_model(self, model: Model) -> None:
        """Leave in RUN what was learnt, atomically."""
        save(model, self.run_folder / self.output_file)

    @abstractmethod
    def sample_requests(self) -> list[Request]:
        """The samples: fixed prompts and seeds."""

    def state_tensors(self) -> dict[str, Tensor]:
        """Every tensor that a checkpoint keeps, by name: the very ones, to save or to copy into."""
        module, names = self.updater.weights, [name for name, _ in self.updater.weights.named_parameters()]
        tensors = {f"weights.{name}": p.data for name, p in module.named_parameters()}
        tensors |= {f"optimizer.{name}": tensor for name, tensor in self.updater.optimizer.state_tensors().items()}
        for ema in self.emas:
            tensors |= {
                f"average-{ema.width}.{name}": tensor for name, tensor in zip(names, ema.averaged_tensors, strict=True)
            }
        return tensors

    def step(self, batch: Any, step: int) -> StepStats:
        stats = self.updater.step(batch, step)
        if step % self.plan.ema_every == 0 or step == self.plan.steps:
            for ema in self.emas:
                ema.update(self.updater.parameters(), step)
        return stats

    def inspect(self, step: int) -> Inspection:
        return Inspection(
            self.validate(self.build_model(self.updater.weight_tensors(), self.plan.precision)),
            _draw_samples(self, step),
        )

    @cached_property
    def validate(self) -> Validator:
        return self.create_validator()

    def save_checkpoint(self, step: int) -> Path:
        counters = {"skipped": self.skipped_steps, **{f"seen-{ema.width}": ema.last_step for ema in self.emas}}
        return save_checkpoint_or_raise(self.run_folder / "checkpoints", step, self.state_tensors(), counters)

    def resume(self) -> int:
        """Take up the newest checkpoint, if there is one; returns the steps done."""
        saved_checkpoint = checkpoint.load_latest_checkpoint(self.run_folder / "checkpoints")
        if saved_checkpoint is None:
            return 0
        try:
            with torch.no_grad():
                checkpoint.restore_tensors(self.state_tensors(), saved_checkpoint.tensors)
        except (KeyError, RuntimeError) as error:
            raise InputError(
                f"{self.run_folder}: its checkpoint does not fit its plan ({error}); give another --out"
            ) from error
        self.updater.refresh_compute_module()
        self.skipped_steps = int(saved_checkpoint.counters["skipped"])
        for ema in self.emas:
            ema.last_step = int(saved_checkpoint.counters[f"seen-{ema.width}"])
        return saved_checkpoint.step

    def candidate_weights(self) -> dict[str, list[Tensor]]:
        """The weights a model may end with."""
        raw_weights = {"raw": self.updater.weight_tensors()}
        return raw_weights | {f"EMA {ema.width:g}": ema.averaged_tensors for ema in self.emas if ema.last_step}


@dataclass
class TextToImageTask(TrainingTask):
    """A course on captioned pictures."""

    corpus: Corpus
    tokenizer: Tokenizer
    autoencoder: Autoencoder
    card: ModelCard
    prompts: tuple[str, ...]
    modules: TrainableModules

    def create_updater(self) -> TextToImageUpdater:
        return TextToImageUpdater(self.plan, self.modules, self.tokenizer, self.autoencoder)

    def batches(self, steps_done: int) -> Iterator[Batch]:
        plan, split, updater = self.plan, self.corpus.training, self.updater
        assert isinstance(updater, TextToImageUpdater)
        split = encode_split(split, updater.autoencoder_in_precision) if plan.cache_latents else split
        first_index = steps_done * plan.batch_size
        return batches(split, plan.batch_size, seed=plan.seed, start=first_index, flip=plan.flip, balance=plan.balance)

    def create_validator(self) -> Validator:
        validation_split, updater = (
            self.corpus.validation if len(self.corpus.validation) else self.corpus.training,
            self.updater,
        )
        assert isinstance(updater, TextToImageUpdater)
        schedule = updater.denoiser.schedule
        validation_loss = ValidationLoss(
            validation_split,
            self.tokenizer,
            self.autoencoder,
            updater.objective,
            updater.device,
            VALIDATION_IMAGES,
            schedule,
        )
        return lambda model: validation_loss(model.denoiser, model.text_encoder)

    def build_model(self, tensors: list[Tensor], precision: str = "float32", weights_name: str = "") -> Model:
        modules = load_for_inference(init_modules(self.plan), tensors, precision, self.updater.device)
        card, denoiser = self.card, self.plan.build_denoiser(cast(Network, modules.network))
        card = replace(card, corpus={**card.corpus, "weights": weights_name}) if weights_name else card
        return Model(denoiser, self.tokenizer, modules.text_encoder, self.autoencoder, card)

    def sample_requests(self) -> list[Request]:
        return [Request(escape_prompt(prompt), seed=i, steps=20) for i, prompt in enumerate(self.prompts)]


def load_for_inference(module: ModuleT, tensors: list[Tensor], precision: str, device: torch.device) -> ModuleT:
    """The module with copies of the tensors as its parameters, in that precision, as one draws with it."""
    module.to(device)
    with torch.no_grad():
        for parameter, tensor in zip(module.parameters(), tensors, strict=True):
            parameter.copy_(tensor)
    module.to(DTYPES[precision]).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    use_attention_kernel(module)
    module.eval().requires_grad_(False)
    return module


def fit(task: TrainingTask) -> Iterator[ProgressReport]:
    """Run the plan from its newest checkpoint to its end, leaving RUN/model.safetensors.

    Stops at a clean point, with a checkpoint, where training.stop() turns true. Failed where the loss stays infinite.
    """
    steps_done = task.resume()
    yield from training_loop(task, task.batches(steps_done), steps_done)
    if checkpoint.latest_step(task.run_folder / "checkpoints") == task.plan.steps:
        yield _save_best_weights(task)


def _draw_samples(task: TrainingTask, step: int, model: Model | None = None) -> Path:
    """Draw the samples as one PNG; training's own randomness is not touched."""
    ema_weights = [ema.averaged_tensors for ema in task.emas[:1] if ema.last_step]
    weights = ema_weights[0] if ema_weights else task.updater.weight_tensors()
    model = model or task.build_model(weights, task.plan.precision)
    images = [draw(model, request)[0] for request in task.sample_requests()]
    width, height = task.plan.size
    columns = math.ceil(math.sqrt(len(images)))
    grid = Image.new("RGB", (columns * width, math.ceil(len(images) / columns) * height))
    for i, image in enumerate(images):
        grid.paste(image, (i % columns * width, i // columns * height))
    path = task.run_folder / "samples" / f"step-{step:08d}.png"
    with atomic.replace_file(path) as temporary:
        grid.save(temporary, "PNG")
    return path


def _save_best_weights(task: TrainingTask) -> ProgressReport:
    """Keep the weights that do best in the examination."""
    best_candidate: tuple[ValidationResult, str, list[Tensor]] | None = None
    for name, tensors in task.candidate_weights().items():
        validation = task.validate(task.build_model(tensors, task.plan.precision))
        if best_candidate is None or validation.total < best_candidate[0].total:
            best_candidate = validation, name, tensors
    assert best_candidate is not None
    plan, run_folder = task.plan, task.run_folder
    samples_path = _draw_samples(
        task, plan.steps, task.build_model(best_candidate[2], plan.precision)
    )  # first: the model ends a run
    try:
        task.save_model(task.build_model(best_candidate[2], weights_name=best_candidate[1]))
    except (OSError, SafetensorError) as error:
        message = f"{task.output_file} cannot be written ({error}); free some space and give the same command again"
        raise TrainingError(message) from error
    return ProgressReport(
        plan.steps,
        plan.steps,
        math.nan,
        math.nan,
        0,
        0,
        task.skipped_steps,
        best_candidate[0],
        samples_path,
        run_folder / task.output_file,
    )
