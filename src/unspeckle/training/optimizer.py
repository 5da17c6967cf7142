"""How the weights move: Muon on matrices and kernels, AdamW on the rest, their pace over the run, and the clipping."""

import math
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from unspeckle.training.plan import Plan

BETAS = (0.9, 0.99)
SLOTS = ("exp_avg", "exp_avg_sq")  # AdamW's
MOMENTUM = 0.95  # Muon's
QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024: takes all singular values to between 0.7 and 1.2
ROUNDS = 5


def pace(step: int, plan: Plan) -> float:
    """The share of the learning rates at step 1…steps: a linear warm-up, a plateau, a linear decay to zero. Where the
    words learn first, the warm-up comes again for the network."""
    rise = (step if step <= plan.word_steps else step - plan.word_steps) / max(1, plan.warmup)
    fall = (plan.steps - step + 1) / max(1, round(plan.decay * plan.steps))
    return min(1.0, rise, fall)


def rows(tensor: Tensor) -> Tensor:
    """A view of a matrix, or of a channels-last kernel (O, I, H, W), as (O, H·W·I)."""
    return tensor.permute(0, 2, 3, 1).view(len(tensor), -1) if tensor.ndim == 4 else tensor


def orthogonal(matrices: Tensor) -> Tensor:
    """(K, R, C) to about U·Vᵀ of each, where U·S·Vᵀ is its singular value decomposition: Newton–Schulz in bfloat16."""
    a, b, c = QUINTIC
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ROUNDS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon:
    """Momentum, made orthogonal (Jordan et al. 2024), its size that of Adam's steps (Liu et al. 2025, 2502.16982).

    The steps of torch.optim.Muon, which works on one matrix after the other: these networks have many small ones, so
    those of one shape are worked on together here, and kernels count as matrices.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], weight_decay: float) -> None:
        self.parameters = sorted(parameters, key=lambda p: rows(p).shape)
        self.views = [rows(p.detach()) for p in self.parameters]
        self.momenta = [torch.zeros_like(view) for view in self.views]
        self.weight_decay = weight_decay

    @torch.no_grad()
    def step(self, rate: float, finite: Tensor | None = None) -> None:
        """Move every parameter that has a gradient. finite: see Optimizer."""
        held = zip(self.parameters, self.views, self.momenta, strict=True)
        live = [(view, momentum, rows(p.grad)) for p, view, momentum in held if p.grad is not None]
        if not live:
            return
        views, momenta, grads = map(list, zip(*live, strict=True))
        if finite is not None:
            self._step_if(finite, views, momenta, grads, rate)
            return
        torch._foreach_mul_(views, 1 - rate * self.weight_decay)
        torch._foreach_lerp_(momenta, grads, 1 - MOMENTUM)
        torch._foreach_lerp_(grads, momenta, MOMENTUM)  # Nesterov's look ahead
        for shape, same in groupby(zip(views, grads, strict=True), key=lambda pair: pair[0].shape):
            group = list(same)
            turned = orthogonal(torch.stack([grad for _, grad in group]))
            for (view, _), update in zip(group, turned, strict=True):
                view.add_(update, alpha=-rate * 0.2 * math.sqrt(max(shape)))

    def _step_if(
        self, finite: Tensor, views: list[Tensor], momenta: list[Tensor], grads: list[Tensor], rate: float
    ) -> None:
        """The same where the gradients are finite, else nothing, and nobody waits to know: a momentum that moves toward
        itself stays, and so does a weight that moves by nothing."""
        torch._foreach_mul_(views, torch.where(finite, 1 - rate * self.weight_decay, 1.0))
        for shape, same in groupby(zip(views, momenta, grads, strict=True), key=lambda three: three[0].shape):
            group = list(same)
            momentum = torch.stack([one for _, one, _ in group])
            gradient = torch.where(finite, torch.stack([one for _, _, one in group]), momentum)
            momentum.lerp_(gradient, 1 - MOMENTUM)
            update = orthogonal(gradient.lerp_(momentum, MOMENTUM))
            update = update.float() * torch.where(finite, -rate * 0.2 * math.sqrt(max(shape)), 0.0)
            torch._foreach_copy_([one for _, one, _ in group], list(momentum))
            torch._foreach_add_([view for view, _, _ in group], list(update))


class Optimizer:
    """Plan "muon": Muon on the weights of linear layers and convolutions, AdamW on all other parameters. "adamw": AdamW
    on all. Weights decay where they are matrices or kernels. All state is made at once, so that it can be loaded into;
    for Muon, kernels must lie in channels-last memory."""

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        self.plan, self.parameters = plan, dict(module.named_parameters())
        layers = (m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear))
        matrices: list[nn.Parameter] = [m.weight for m in layers]  # type: ignore[misc]
        self.muon = Muon(matrices if plan.optimizer == "muon" else [], plan.weight_decay)
        turned = {id(p) for p in self.muon.parameters}
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

    def step(self, step: int, finite: Tensor | None = None) -> None:
        """Move the weights by their gradients, as step 1…plan.steps, and forget the gradients. finite: a truth () on
        the device; where it is false, nothing moves and nothing is remembered."""
        share = pace(step, self.plan)
        for group in self.adamw.param_groups:
            group["lr"] = self.plan.learning_rate * share
        # as torch's GradScaler does
        self.adamw.found_inf = None if finite is None else 1.0 - finite.float()  # type: ignore[attr-defined]
        self.adamw.step()
        self.muon.step(self.plan.muon_rate * share, finite)
        self.forget()

    def forget(self) -> None:
        """Drop all gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def memory(self) -> dict[str, Tensor]:
        """The state by slot and parameter name: the very tensors, to save or to copy into."""
        momenta = {id(p): m for p, m in zip(self.muon.parameters, self.muon.momenta, strict=True)}
        kept = {}
        for name, p in self.parameters.items():
            if id(p) in momenta:
                kept[f"momentum.{name}"] = momenta[id(p)]
            else:
                kept |= {f"{slot}.{name}": self.adamw.state[p][slot] for slot in ("step", *SLOTS)}
        return kept


def clipped(parameters: Sequence[nn.Parameter], largest: float) -> Tensor:
    """Scale the gradients down to a joint norm of at most `largest`; returns the norm () they had, if it is finite."""
    return torch.nn.utils.clip_grad_norm_(parameters, largest).detach()
