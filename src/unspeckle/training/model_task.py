"""A task that trains (a part of) a Model, whose samples are drawings."""

from abc import abstractmethod
from collections.abc import Callable

from PIL import Image

from unspeckle.generation.pipeline import draw
from unspeckle.generation.request import Request
from unspeckle.model import Model
from unspeckle.model_io.model_file import save
from unspeckle.output.grid import grid
from unspeckle.training.best_weights_task import BestWeightsTask
from unspeckle.training.validation import ValidationResult

Validator = Callable[[Model], ValidationResult]


class ModelTask(BestWeightsTask[Model]):
    """Trains (a part of) a Model."""

    @abstractmethod
    def sample_requests(self) -> list[Request]:
        """What the samples show: the same prompts and seeds every time."""

    def save_model(self, model: Model) -> None:
        """Write RUN's model atomically."""
        save(model, self.run_folder / self.output_file)

    def draw_samples(self, model: Model) -> Image.Image:
        """The samples side by side."""
        return grid([draw(model, request)[0] for request in self.sample_requests()])
