"""What a training step needs: weights, an optimizer, and the loss of a batch."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unspeckle.training.master_weights import DTYPES, MasterWeights
from unspeckle.training.optimizer import Optimizer
from unspeckle.training.plan import Plan


class Update(NamedTuple):
    """A loss, and what it updates."""

    # The mean loss of a batch, ()
    loss: Tensor
    weights: MasterWeights
    optimizer: Optimizer


class Updater(ABC):
    """Weights with their optimizer, and the loss by which a batch updates them."""

    def __init__(self, plan: Plan, weights: MasterWeights) -> None:
        self.plan, self.weights = plan, weights
        self.optimizer = Optimizer(weights.module, plan.optimizer, DTYPES[plan.compute.precision])

    @property
    def device(self) -> torch.device:
        return self.weights.device

    @property
    def others(self) -> dict[str, tuple[MasterWeights, Optimizer]]:
        """What is trained besides `weights`, by name, such as a discriminator: in checkpoints, but not in the model."""
        return {}

    @property
    def other_loss_names(self) -> tuple[str, ...]:
        """The names of a step's updates after the first."""
        return ()

    @abstractmethod
    def loss(self, batch: Any, step: int) -> Tensor:
        """The mean loss () of a batch at step 1…steps."""

    def updates(self, batch: Any, step: int) -> Iterator[Update]:
        """The updates of a step, in order; each is made before the next loss is computed. A GAN has two."""
        yield Update(self.loss(batch, step), self.weights, self.optimizer)
