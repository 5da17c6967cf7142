"""A task that ends with a file: of its weights and of their EMAs, the ones that validate best are saved."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from unspeckle import atomic
from unspeckle.kernels.attention import use_attention_kernel
from unspeckle.model_io.model_file import MODEL_FILE
from unspeckle.training.errors import TrainingError
from unspeckle.training.master_weights import DTYPES
from unspeckle.training.progress import ProgressReport
from unspeckle.training.task import Task
from unspeckle.training.validation import ValidationResult

SAMPLES_FOLDER = "samples"
BuiltT = TypeVar("BuiltT")
ModuleT = TypeVar("ModuleT", bound=nn.Module)


class BestWeightsTask(Task, Generic[BuiltT]):
    """Builds something usable (a BuiltT, such as a Model) from its weights or from an EMA of them, validates it, shows
    it by samples, and saves the best at the end."""

    # In RUN
    output_file = MODEL_FILE

    @abstractmethod
    def create_validator(self) -> Callable[[BuiltT], ValidationResult]:
        """What validates it: always with the same examples and noise, so that two moments of a run compare."""

    @abstractmethod
    def build_model(self, tensors: list[Tensor], precision: str = "float32", weights_name: str = "") -> BuiltT:
        """It, built of these weights, which are in the order of the updater's, to compute in that precision.

        weights_name: which weights they are ("raw", "EMA 0.1"), for its card."""

    @abstractmethod
    def save_model(self, model: BuiltT) -> None:
        """Write RUN's output file atomically."""

    @abstractmethod
    def draw_samples(self, model: BuiltT) -> Image.Image:
        """What shows how well it does, always by the same examples. Training's own randomness is not touched."""

    @cached_property
    def validator(self) -> Callable[[BuiltT], ValidationResult]:
        return self.create_validator()

    def candidate_weights(self) -> dict[str, list[Tensor]]:
        """The weights that the model may be built of, by name."""
        emas = {f"EMA {ema.width:g}": ema.averaged_tensors for ema in self.emas if ema.last_step}
        return {"raw": self.updater.weights.tensors(), **emas}

    def validate(self) -> ValidationResult:
        """How well the weights do as they are, not the EMAs."""
        return self.validator(self.build_model(self.updater.weights.tensors(), self.plan.compute.precision))

    def save_samples(self, step: int) -> Path:
        """Draw the samples with the first EMA, or with the weights if it has not begun."""
        has_ema = bool(self.emas) and self.emas[0].last_step > 0
        weights = self.emas[0].averaged_tensors if has_ema else self.updater.weights.tensors()
        return self._save_samples(step, self.build_model(weights, self.plan.compute.precision))

    def finish(self) -> Iterator[ProgressReport]:
        """Save the weights that validate best as the model, and samples of it."""
        steps, precision = self.plan.work.steps, self.plan.compute.precision
        candidates = self.candidate_weights()
        results = {n: self.validator(self.build_model(tensors, precision)) for n, tensors in candidates.items()}
        best_name = min(results, key=lambda name: results[name].total)
        best_weights = candidates[best_name]
        # The samples first: a RUN that holds a model is finished.
        samples_path = self._save_samples(steps, self.build_model(best_weights, precision))
        try:
            self.save_model(self.build_model(best_weights, weights_name=best_name))
        except (OSError, SafetensorError) as error:
            message = f"{self.output_file} cannot be written ({error}); free some space and give the same command again"
            raise TrainingError(message) from error
        yield ProgressReport(
            step=steps,
            steps=steps,
            stage=self.stage_of(steps).name,
            skipped_steps=self.skipped_steps,
            validation=results[best_name],
            samples_path=samples_path,
            saved_path=self.run_folder / self.output_file,
        )

    def _save_samples(self, step: int, model: BuiltT) -> Path:
        path = self.run_folder / SAMPLES_FOLDER / f"step-{step:08d}.png"
        with atomic.replace_file(path) as temporary:
            self.draw_samples(model).save(temporary, "PNG")
        return path


def load_for_inference(module: ModuleT, tensors: list[Tensor], precision: str, device: torch.device) -> ModuleT:
    """The module with copies of the tensors as its parameters, on the device, in that precision and frozen."""
    module.to(device)
    with torch.no_grad():
        for parameter, tensor in zip(module.parameters(), tensors, strict=True):
            parameter.copy_(tensor)
    module.to(DTYPES[precision]).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    use_attention_kernel(module)
    module.eval().requires_grad_(False)
    return module
