"""Muon: momentum made orthogonal, for matrices and convolution kernels."""

import math
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
# Jordan et al. 2024: a quintic that takes all singular values to between 0.7 and 1.2
NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def as_matrix(tensor: Tensor) -> Tensor:
    """A view of a matrix, or of a channels-last kernel (O, I, H, W), as (O, H·W·I)."""
    return tensor.permute(0, 2, 3, 1).view(len(tensor), -1) if tensor.ndim == 4 else tensor


def orthogonalize(matrices: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """About U·Vᵀ of each of the matrices (K, R, C), where U·S·Vᵀ is its singular value decomposition: Newton–Schulz
    (Jordan et al. 2024), computed and returned in `dtype`."""
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if is_tall else matrices).to(dtype)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


class Muon:
    """Momentum made orthogonal (Jordan et al. 2024), its size that of Adam's updates (Liu et al. 2025, 2502.16982).

    The updates are those of torch.optim.Muon, which works on one matrix after the other. The networks here have many
    small matrices, so those of one shape are worked on together, and kernels count as matrices.

    Attributes: parameters, sorted by shape; momenta, a matrix for each of them; dtype, in which matrices are made
    orthogonal: bfloat16 is enough, but many CPUs multiply it more slowly than float32.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], weight_decay: float, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        self.parameters = sorted(parameters, key=lambda p: as_matrix(p).shape)
        self.matrices = [as_matrix(p.detach()) for p in self.parameters]
        self.momenta = [torch.zeros_like(matrix) for matrix in self.matrices]
        self.weight_decay, self.dtype = weight_decay, dtype

    @torch.no_grad()
    def step(self, learning_rate: float, is_finite: Tensor | None = None) -> None:
        """Update every parameter that has a gradient. is_finite: a bool () on the device; where it is false, weights
        and momenta stay as they are."""
        states = zip(self.parameters, self.matrices, self.momenta, strict=True)
        updated = [(matrix, momentum, as_matrix(p.grad)) for p, matrix, momentum in states if p.grad is not None]
        if not updated:
            return
        matrices, momenta, grads = map(list, zip(*updated, strict=True))
        if is_finite is not None:
            self._step_if_finite(is_finite, matrices, momenta, grads, learning_rate)
            return
        torch._foreach_mul_(matrices, 1 - learning_rate * self.weight_decay)
        torch._foreach_lerp_(momenta, grads, 1 - MOMENTUM)
        # Nesterov's look ahead
        torch._foreach_lerp_(grads, momenta, MOMENTUM)
        for shape, pairs in groupby(zip(matrices, grads, strict=True), key=lambda pair: pair[0].shape):
            group = list(pairs)
            updates = orthogonalize(torch.stack([grad for _, grad in group]), self.dtype)
            for (matrix, _), update in zip(group, updates, strict=True):
                matrix.add_(update, alpha=-learning_rate * _update_scale(shape))

    def _step_if_finite(
        self,
        is_finite: Tensor,
        matrices: list[Tensor],
        momenta: list[Tensor],
        grads: list[Tensor],
        learning_rate: float,
    ) -> None:
        """The same if the gradients are finite, else nothing, without waiting for the device to say which: a momentum
        that moves toward itself stays, and so does a weight that moves by nothing."""
        torch._foreach_mul_(matrices, torch.where(is_finite, 1 - learning_rate * self.weight_decay, 1.0))
        states = zip(matrices, momenta, grads, strict=True)
        for shape, entries in groupby(states, key=lambda entry: entry[0].shape):
            group = list(entries)
            momentum_stack = torch.stack([momentum for _, momentum, _ in group])
            grad_stack = torch.where(is_finite, torch.stack([grad for _, _, grad in group]), momentum_stack)
            momentum_stack.lerp_(grad_stack, 1 - MOMENTUM)
            updates = orthogonalize(grad_stack.lerp_(momentum_stack, MOMENTUM), self.dtype)
            updates = updates.float() * torch.where(is_finite, -learning_rate * _update_scale(shape), 0.0)
            torch._foreach_copy_([momentum for _, momentum, _ in group], list(momentum_stack))
            torch._foreach_add_([matrix for matrix, _, _ in group], list(updates))


def _update_scale(shape: torch.Size) -> float:
    """By how much an orthogonal matrix is scaled to the size of Adam's updates (Liu et al. 2025, eq. 4)."""
    return 0.2 * math.sqrt(max(shape))
