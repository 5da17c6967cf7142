"""How the weights move: Muon on matrices and kernels, AdamW on the rest, their pace over the run, and the clipping."""

import math
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from unspeckle.training.plan import Plan

ADAMW_BETAS = (0.9, 0.99)
ADAMW_STATE_NAMES = ("exp_avg", "exp_avg_sq")  # AdamW's
MUON_MOMENTUM = 0.95  # Muon's
NEWTON_SCHULZ_COEFFICIENTS = (
    3.4445,
    -4.7750,
    2.0315,
)  # Jordan et al. 2024: takes all singular values to between 0.7 and 1.2
NEWTON_SCHULZ_STEPS = 5


def learning_rate_factor(step: int, plan: Plan) -> float:
    """The share of the learning rates at step 1…steps: a linear warm-up, a plateau, a linear decay to zero. Where the
    words learn first, the warm-up comes again for the network."""
    warmup_factor = (step if step <= plan.text_steps else step - plan.text_steps) / max(1, plan.warmup_steps)
    decay_factor = (plan.steps - step + 1) / max(1, round(plan.decay_fraction * plan.steps))
    return min(1.0, warmup_factor, decay_factor)


def as_matrix(tensor: Tensor) -> Tensor:
    """A view of a matrix, or of a channels-last kernel (O, I, H, W), as (O, H·W·I)."""
    return tensor.permute(0, 2, 3, 1).view(len(tensor), -1) if tensor.ndim == 4 else tensor


def orthogonalize(matrices: Tensor) -> Tensor:
    """(K, R, C) to about U·Vᵀ of each, where U·S·Vᵀ is its singular value decomposition: Newton–Schulz in bfloat16."""
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if is_tall else matrices).bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


class Muon:
    """Momentum, made orthogonal (Jordan et al. 2024), its size that of Adam's steps (Liu et al. 2025, 2502.16982).

    The steps of torch.optim.Muon, which works on one matrix after the other: these networks have many small ones, so
    those of one shape are worked on together here, and kernels count as matrices.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], weight_decay: float) -> None:
        self.parameters = sorted(parameters, key=lambda p: as_matrix(p).shape)
        self.matrices = [as_matrix(p.detach()) for p in self.parameters]
        self.momenta = [torch.zeros_like(matrix) for matrix in self.matrices]
        self.weight_decay = weight_decay

    @torch.no_grad()
    def step(self, learning_rate: float, is_finite: Tensor | None = None) -> None:
        """Move every parameter that has a gradient. finite: see Optimizer."""
        parameter_states = zip(self.parameters, self.matrices, self.momenta, strict=True)
        trainable = [
            (matrix, momentum, as_matrix(p.grad)) for p, matrix, momentum in parameter_states if p.grad is not None
        ]
        if not trainable:
            return
        matrices, momenta, grads = map(list, zip(*trainable, strict=True))
        if is_finite is not None:
            self._step_if_finite(is_finite, matrices, momenta, grads, learning_rate)
            return
        torch._foreach_mul_(matrices, 1 - learning_rate * self.weight_decay)
        torch._foreach_lerp_(momenta, grads, 1 - MUON_MOMENTUM)
        torch._foreach_lerp_(grads, momenta, MUON_MOMENTUM)  # Nesterov's look ahead
        for shape, group_iterator in groupby(zip(matrices, grads, strict=True), key=lambda pair: pair[0].shape):
            group = list(group_iterator)
            updates = orthogonalize(torch.stack([grad for _, grad in group]))
            for (matrix, _), update in zip(group, updates, strict=True):
                matrix.add_(update, alpha=-learning_rate * 0.2 * math.sqrt(max(shape)))

    def _step_if_finite(
        self,
        is_finite: Tensor,
        matrices: list[Tensor],
        momenta: list[Tensor],
        grads: list[Tensor],
        learning_rate: float,
    ) -> None:
        """The same where the gradients are finite, else nothing, and nobody waits to know: a momentum that moves toward
        itself stays, and so does a weight that moves by nothing."""
        torch._foreach_mul_(matrices, torch.where(is_finite, 1 - learning_rate * self.weight_decay, 1.0))
        for shape, group_iterator in groupby(
            zip(matrices, momenta, grads, strict=True), key=lambda entry: entry[0].shape
        ):
            group = list(group_iterator)
            momentum_stack = torch.stack([buffer for _, buffer, _ in group])
            grad_stack = torch.where(is_finite, torch.stack([grad for _, _, grad in group]), momentum_stack)
            momentum_stack.lerp_(grad_stack, 1 - MUON_MOMENTUM)
            updates = orthogonalize(grad_stack.lerp_(momentum_stack, MUON_MOMENTUM))
            updates = updates.float() * torch.where(is_finite, -learning_rate * 0.2 * math.sqrt(max(shape)), 0.0)
            torch._foreach_copy_([buffer for _, buffer, _ in group], list(momentum_stack))
            torch._foreach_add_([matrix for matrix, _, _ in group], list(updates))


class Optimizer:
    """Plan "muon": Muon on the weights of linear layers and convolutions, AdamW on all other parameters. "adamw": AdamW
    on all. Weights decay where they are matrices or kernels. All state is made at once, so that it can be loaded into;
    for Muon, kernels must lie in channels-last memory."""

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        self.plan, self.parameters = plan, dict(module.named_parameters())
        weight_layers = (m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear))
        muon_weights: list[nn.Parameter] = [m.weight for m in weight_layers]  # type: ignore[misc]
        self.muon = Muon(muon_weights if plan.optimizer == "muon" else [], plan.weight_decay)
        muon_ids = {id(p) for p in self.muon.parameters}
        adamw_parameters = [p for p in self.parameters.values() if id(p) not in muon_ids]
        groups = [
            {"params": [p for p in adamw_parameters if p.ndim >= 2], "weight_decay": plan.weight_decay},
            {"params": [p for p in adamw_parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.adamw = torch.optim.AdamW(groups, lr=plan.learning_rate, betas=ADAMW_BETAS, fused=True)
        for parameter in adamw_parameters:
            self.adamw.state[parameter] = {"step": torch.zeros((), device=parameter.device)} | {
                name: torch.zeros_like(parameter) for name in ADAMW_STATE_NAMES
            }

    def step(self, step: int, is_finite: Tensor | None = None) -> None:
        """Move the weights by their gradients, as step 1…plan.steps, and forget the gradients. finite: a truth () on
        the device; where it is false, nothing moves and nothing is remembered."""
        lr_factor = learning_rate_factor(step, self.plan)
        for group in self.adamw.param_groups:
            group["lr"] = self.plan.learning_rate * lr_factor
        # as torch's GradScaler does
        self.adamw.found_inf = None if is_finite is None else 1.0 - is_finite.float()  # type: ignore[attr-defined]
        self.adamw.step()
        self.muon.step(self.plan.muon_learning_rate * lr_factor, is_finite)
        self.zero_grad()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def state_tensors(self) -> dict[str, Tensor]:
        """The state by slot and parameter name: the very tensors, to save or to copy into."""
        momenta = {id(parameter): m for parameter, m in zip(self.muon.parameters, self.muon.momenta, strict=True)}
        state = {}
        for name, p in self.parameters.items():
            if id(p) in momenta:
                state[f"momentum.{name}"] = momenta[id(p)]
            else:
                state |= {
                    f"{slot_name}.{name}": self.adamw.state[p][slot_name] for slot_name in ("step", *ADAMW_STATE_NAMES)
                }
        return state


def clip_grad_norm(parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """Scale the gradients down to a joint norm of at most `largest`; returns the norm () they had, if it is finite."""
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm).detach()
