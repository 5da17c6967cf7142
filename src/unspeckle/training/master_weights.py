"""Mixed precision: float32 master weights, and the copy of them in which losses and gradients are computed."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from unspeckle.kernels.attention import use_attention_kernel
from unspeckle.training.plan import ComputePlan

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# The first loss scale, and after how many steps in a row without overflow it is doubled
INITIAL_LOSS_SCALE, STEPS_TO_DOUBLE = 2.0**16, 1000


class LossScale:
    """By what losses are multiplied before the backward pass in float16, so that small gradients do not become 0
    (Micikevicius et al. 2018, section 3.2): halved where a gradient overflows, doubled after STEPS_TO_DOUBLE without.

    Attributes, both () float32 on the device, which is never waited for: scale; finite_steps, since the last change.
    """

    def __init__(self, device: torch.device) -> None:
        self.scale = torch.full((), INITIAL_LOSS_SCALE, device=device)
        self.finite_steps = torch.zeros((), device=device)

    def update(self, is_finite: Tensor) -> None:
        """Choose the scale of the next step. is_finite: a bool (), whether this step's loss and gradients were."""
        steps = torch.where(is_finite, self.finite_steps + 1, 0.0)
        is_due = steps >= STEPS_TO_DOUBLE
        self.scale *= torch.where(is_finite, torch.where(is_due, 2.0, 1.0), 0.5)
        self.finite_steps.copy_(torch.where(is_due, 0.0, steps))

    def state_dict(self) -> dict[str, Tensor]:
        """The two tensors themselves."""
        return {"scale": self.scale, "finite_steps": self.finite_steps}


class MasterWeights:
    """A module's float32 weights, which an optimizer updates, and a copy of the module in the precision of the plan,
    which computes. In float32 both are the same module.

    scales_loss: whether gradients pass through float16; None: if the module computes in it.

    Attributes: module, the one that is updated; compute_module, the one that computes; device; loss_scale, if there
    is one.
    """

    def __init__(self, module: nn.Module, device: str, precision: str, scales_loss: bool | None = None) -> None:
        self.device = torch.device(device)
        self.module = module.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.module.train().requires_grad_(True)
        self.compute_module: nn.Module = self.module
        scales_loss = precision == "float16" if scales_loss is None else scales_loss
        self.loss_scale = LossScale(self.device) if scales_loss else None
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

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss as it is differentiated: in float16 multiplied by the loss scale."""
        return loss if self.loss_scale is None else loss.float() * self.loss_scale.scale

    def take_gradients(self) -> None:
        """Move the gradients of a scaled loss from the module that computes to the master weights, as those of the
        loss itself."""
        for master, compute in self._pairs():
            master.grad = None if compute.grad is None else compute.grad.float()
            compute.grad = None
        if self.loss_scale is not None:
            gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
            torch._foreach_div_(gradients, self.loss_scale.scale)

    def update_loss_scale(self, is_finite: Tensor) -> None:
        """Choose the loss scale of the next step, if there is one. is_finite: see `LossScale.update`."""
        if self.loss_scale is not None:
            self.loss_scale.update(is_finite)

    @torch.no_grad()
    def refresh_compute_module(self) -> None:
        """Copy the master weights into the module that computes."""
        for master, compute in self._pairs():
            compute.copy_(master)

    def _pairs(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """Master and compute parameters, if they are not the same."""
        if self.compute_module is not self.module:
            yield from zip(self.module.parameters(), self.compute_module.parameters(), strict=True)
