"""Which optimizer updates which weights, and the learning rate over a run."""

import torch
from torch import Tensor, nn

from unspeckle.training.muon import Muon
from unspeckle.training.plan import OptimizerPlan, Plan

ADAMW_MOMENTS = ("exp_avg", "exp_avg_sq")


def learning_rate_factor(step: int, plan: Plan) -> float:
    """The share of the highest learning rates at step 1…steps: a linear warm-up, a plateau, a linear decay to zero. If
    the text encoder is trained alone first, the warm-up is repeated for the network."""
    work, optimizer = plan.work, plan.optimizer
    warmup_factor = (step if step <= work.text_steps else step - work.text_steps) / max(1, optimizer.warmup_steps)
    decay_factor = (work.steps - step + 1) / max(1, round(optimizer.decay_fraction * work.steps))
    return min(1.0, warmup_factor, decay_factor)


class Optimizer:
    """Updates the parameters of a module by the optimizer of a plan.

    "muon": Muon for the weights of linear layers and convolutions, AdamW for all other parameters. "adamw": AdamW for
    all. Matrices and kernels decay. For Muon, kernels must lie in channels-last memory, and muon_dtype is that of its
    products.

    All state exists from the beginning, so that a checkpoint can be loaded into it.
    """

    def __init__(self, module: nn.Module, plan: OptimizerPlan, muon_dtype: torch.dtype = torch.bfloat16) -> None:
        self.plan, self.parameters = plan, dict(module.named_parameters())
        # Work on a GPU is queued, and waiting for its results would leave it idle.
        self.is_asynchronous = any(parameter.is_cuda for parameter in self.parameters.values())
        layers = (layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear))
        muon_weights: list[nn.Parameter] = [layer.weight for layer in layers]  # type: ignore[misc]
        self.muon = Muon(muon_weights if plan.name == "muon" else [], plan.weight_decay, muon_dtype)
        muon_ids = {id(parameter) for parameter in self.muon.parameters}
        adamw_parameters = [p for p in self.parameters.values() if id(p) not in muon_ids]
        groups = [
            {"params": [p for p in adamw_parameters if p.ndim >= 2], "weight_decay": plan.weight_decay},
            {"params": [p for p in adamw_parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.adamw = torch.optim.AdamW(groups, lr=plan.learning_rate, betas=plan.adamw_betas, fused=True)
        for parameter in adamw_parameters:
            moments = {name: torch.zeros_like(parameter) for name in ADAMW_MOMENTS}
            self.adamw.state[parameter] = {"step": torch.zeros((), device=parameter.device), **moments}

    def step(self, learning_rate_factor: float, is_finite: Tensor) -> None:
        """Update the weights by their gradients, at this share of the highest learning rates, and clear the gradients.
        is_finite: a bool () on the device; where it is false, neither weights nor state change."""
        if not self.is_asynchronous and not is_finite:
            self.zero_grad()
            return
        for group in self.adamw.param_groups:
            group["lr"] = self.plan.learning_rate * learning_rate_factor
        # As torch's GradScaler does: the device itself then leaves out the update.
        found_inf = 1.0 - is_finite.float() if self.is_asynchronous else None
        self.adamw.found_inf = found_inf  # type: ignore[attr-defined]
        self.adamw.step()
        self.muon.step(self.plan.muon_learning_rate * learning_rate_factor, is_finite if self.is_asynchronous else None)
        self.zero_grad()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """The state by slot and name of parameter, such as "exp_avg.conv_in.weight": the tensors themselves."""
        momenta = {id(parameter): m for parameter, m in zip(self.muon.parameters, self.muon.momenta, strict=True)}
        state = {}
        for name, parameter in self.parameters.items():
            if id(parameter) in momenta:
                state[f"momentum.{name}"] = momenta[id(parameter)]
            else:
                slots = self.adamw.state[parameter]
                state |= {f"{slot}.{name}": slots[slot] for slot in ("step", *ADAMW_MOMENTS)}
        return state
