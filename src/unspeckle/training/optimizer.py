"""How the weights move: Muon on matrices and kernels, AdamW on the rest, their pace over the run, and the clipping."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unspeckle.training.plan import Plan

BETAS = (0.9, 0.99)
SLOTS = ("exp_avg", "exp_avg_sq")  # AdamW's
MOMENTUM = "momentum_buffer"  # Muon's


def pace(step: int, plan: Plan) -> float:
    """The share of the learning rates at step 1…steps: a linear warm-up, a plateau, a linear decay to zero."""
    rise = step / max(1, plan.warmup)
    fall = (plan.steps - step + 1) / max(1, round(plan.decay * plan.steps))
    return min(1.0, rise, fall)


def rows(tensor: Tensor) -> Tensor:
    """A view of a matrix, or of a channels-last kernel (O, I, H, W), as (O, H·W·I)."""
    return tensor.permute(0, 2, 3, 1).view(len(tensor), -1) if tensor.ndim == 4 else tensor


class Optimizer:
    """Plan "muon": Muon (Jordan et al. 2024; steps scaled as by Liu et al. 2025, 2502.16982) on the weights of linear
    layers and convolutions, AdamW on all other parameters. Plan "adamw": AdamW on all. Weights decay where they are matrices or kernels. All state is made at once,
    so that it can be loaded into; kernels must lie in channels-last memory."""

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        self.plan, self.parameters = plan, dict(module.named_parameters())
        matrices: list[nn.Parameter] = [m.weight for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]  # type: ignore[misc]
        self.turned: list[tuple[nn.Parameter, nn.Parameter]] = []  # a matrix, and the view of it that Muon moves
        if plan.optimizer == "muon":
            self.turned = [(p, nn.Parameter(rows(p.detach()))) for p in matrices]
        turned = {id(p) for p, _ in self.turned}
        rest = [p for p in self.parameters.values() if id(p) not in turned]
        groups = [
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": plan.weight_decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.adamw = torch.optim.AdamW(groups, lr=plan.learning_rate, betas=BETAS, fused=True)
        for parameter in rest:
            self.adamw.state[parameter] = {"step": torch.zeros((), device=parameter.device)} | {
                slot: torch.zeros_like(parameter) for slot in SLOTS
            }
        self.muon: torch.optim.Muon | None = None
        if self.turned:
            views = [view for _, view in self.turned]
            self.muon = torch.optim.Muon(
                views, lr=plan.muon_rate, weight_decay=plan.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
            for view in views:
                self.muon.state[view] = {MOMENTUM: torch.zeros_like(view)}

    def step(self, step: int) -> None:
        """Move the weights by their gradients, as step 1…plan.steps, and forget the gradients."""
        share = pace(step, self.plan)
        for group in self.adamw.param_groups:
            group["lr"] = self.plan.learning_rate * share
        self.adamw.step()
        if self.muon is not None:
            for group in self.muon.param_groups:
                group["lr"] = self.plan.muon_rate * share
            for parameter, view in self.turned:
                if parameter.grad is not None:
                    view.grad = rows(parameter.grad)
            self.muon.step()  # type: ignore[no-untyped-call]
        self.forget()

    def forget(self) -> None:
        """Drop all gradients."""
        for parameter in (*self.parameters.values(), *(view for _, view in self.turned)):
            parameter.grad = None

    def memory(self) -> dict[str, Tensor]:
        """The state by slot and parameter name: the very tensors, to save or to copy into."""
        views = {id(p): view for p, view in self.turned}
        kept = {}
        for name, p in self.parameters.items():
            if id(p) in views:
                assert self.muon is not None
                kept[f"{MOMENTUM}.{name}"] = self.muon.state[views[id(p)]][MOMENTUM]
            else:
                kept |= {f"{slot}.{name}": self.adamw.state[p][slot] for slot in ("step", *SLOTS)}
        return kept


def clipped(parameters: Sequence[nn.Parameter], largest: float) -> float:
    """Scale the gradients down to a joint norm of at most `largest`; returns the norm they had, perhaps not finite."""
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, largest))
    return norm if math.isfinite(norm) else math.inf
