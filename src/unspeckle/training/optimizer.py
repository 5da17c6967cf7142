"""How the weights move: AdamW on float32 masters, its pace over the run, and the gate that lets no bad step through."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unspeckle.training.plan import Plan

BETAS = (0.9, 0.99)
SLOTS = ("exp_avg", "exp_avg_sq")


def pace(step: int, plan: Plan) -> float:
    """The share of the learning rate at step 1…steps: a linear warm-up, a plateau, a linear decay to zero."""
    rise = step / max(1, plan.warmup)
    fall = (plan.steps - step + 1) / max(1, round(plan.decay * plan.steps))
    return min(1.0, rise, fall)


def optimizer(module: nn.Module, plan: Plan) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and kernels only, its state made at once so that it can be loaded into."""
    matrices = [p for p in module.parameters() if p.ndim >= 2]
    others = [p for p in module.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": others, "weight_decay": 0.0}]
    made = torch.optim.AdamW(groups, lr=plan.learning_rate, betas=BETAS, fused=True)
    for parameter in (*matrices, *others):
        made.state[parameter] = {"step": torch.zeros((), device=parameter.device)} | {
            slot: torch.zeros_like(parameter) for slot in SLOTS
        }
    return made


def memory(made: torch.optim.AdamW, module: nn.Module) -> dict[str, Tensor]:
    """The optimiser's tensors by slot and parameter name: the very tensors, to save or to copy into."""
    slots = ("step", *SLOTS)
    return {f"{slot}.{name}": made.state[p][slot] for name, p in module.named_parameters() for slot in slots}


def clipped(parameters: Sequence[nn.Parameter], largest: float) -> float:
    """Scale the gradients down to a joint norm of at most `largest`; returns the norm they had, perhaps not finite."""
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, largest))
    return norm if math.isfinite(norm) else math.inf
