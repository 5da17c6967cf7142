"""EMAs by a power function, long ones that forget the beginning of training (Karras et al. 2024, "EDM2")."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def gamma_from_width(width: float) -> float:
    """The gamma whose average has the relative width sigma_rel, 0 < width < 0.28 (EDM2, eq. 126 and Alg. 2)."""
    inverse_square = width**-2
    return float(np.roots([1, 7, 16 - inverse_square, 12 - inverse_square]).real.max())


class PowerFunctionEMA:
    """A running average of tensors in which the weights of step s count as s^gamma.

    Attributes: width, the relative width; averaged_tensors; last_step, the step of the last update, 0 before the first.
    """

    def __init__(self, width: float, tensors: Sequence[Tensor]) -> None:
        self.width, self.gamma, self.last_step = width, gamma_from_width(width), 0
        self.averaged_tensors = [t.detach().clone() for t in tensors]

    @torch.no_grad()
    def update(self, tensors: Sequence[Tensor], step: int) -> None:
        """Take in the tensors of `step`, as if the steps since the last update had had the same."""
        # EDM2, eq. 123, over several steps at once
        decay = (self.last_step / step) ** (self.gamma + 1)
        for average, tensor in zip(self.averaged_tensors, tensors, strict=True):
            average.lerp_(tensor.to(average.dtype), 1 - decay)
        self.last_step = step
