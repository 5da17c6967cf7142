"""Mixed precision: float32 master weights, and the copy of them in which losses and gradients are computed."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from unspeckle.kernels.attention import use_attention_kernel
from unspeckle.training.plan import ComputePlan

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class MasterWeights:
    """A module's float32 weights, which an optimizer updates, and a copy of the module in the precision of the plan,
    which computes. In float32 both are the same module.

    Attributes: module, the one that is updated; compute_module, the one that computes; device.
    """

    def __init__(self, module: nn.Module, device: str, precision: str) -> None:
        self.device = torch.device(device)
        self.module = module.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.module.train().requires_grad_(True)
        self.compute_module: nn.Module = self.module
        if precision != "float32":
            self.compute_module = copy.deepcopy(self.module).to(DTYPES[precision])
            # For validation, which has no gradients
            use_attention_kernel(self.compute_module)

    @classmethod
    def for_plan(cls, module: nn.Module, compute: ComputePlan) -> "MasterWeights":
        """The module's weights on the device of the plan, computing in its precision."""
        return cls(module, compute.device, compute.precision)

    def parameters(self) -> list[nn.Parameter]:
        """The master weights."""
        return list(self.module.parameters())

    def tensors(self) -> list[Tensor]:
        """The master weights in the order of parameters(), as plain tensors."""
        return [parameter.detach() for parameter in self.parameters()]

    def zero_grad(self) -> None:
        """Drop all gradients, such as those that another update's loss has left."""
        self.module.zero_grad()
        self.compute_module.zero_grad()

    def take_gradients(self) -> None:
        """Move the gradients from the module that computes to the master weights."""
        for master, compute in self._pairs():
            master.grad = None if compute.grad is None else compute.grad.float()
            compute.grad = None

    @torch.no_grad()
    def refresh_compute_module(self) -> None:
        """Copy the master weights into the module that computes."""
        for master, compute in self._pairs():
            compute.copy_(master)

    def _pairs(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """Master and compute parameters, if they are not the same."""
        if self.compute_module is not self.module:
            yield from zip(self.module.parameters(), self.compute_module.parameters(), strict=True)
