"""The optimizer: Muon and AdamW are torch's own, Muon's updates are nearly orthogonal, state can be restored."""

import copy

import pytest
import torch
from torch import Tensor, nn

from tiny_models import make_plan
from unspeckle.training.muon import orthogonalize
from unspeckle.training.optimizer import Optimizer, learning_rate_factor
from unspeckle.training.plan import OptimizerPlan

FINITE = torch.tensor(True)


class MixedModule(nn.Module):
    """Parameters of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 24, 3)
        self.linear = nn.Linear(24, 16)
        self.embedding = nn.Embedding(10, 24)
        self.position = nn.Parameter(torch.randn(3, 24))

    def loss(self, x: Tensor) -> Tensor:
        h = self.conv(x).mean((2, 3)) + self.embedding.weight.sum(0) + self.position.sum(0)
        loss: Tensor = self.linear(h).square().mean()
        return loss


def make_module() -> MixedModule:
    torch.manual_seed(0)
    return MixedModule().to(memory_format=torch.channels_last)


def optimizer_plan(name: str, weight_decay: float = 0.0) -> OptimizerPlan:
    return OptimizerPlan(name=name, weight_decay=weight_decay)


def train(module: MixedModule, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        module.loss(torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(step))).backward()
        optimizer.step(1.0, FINITE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_muon_updates_matrices_and_kernels_by_nearly_orthogonal_matrices(dtype: torch.dtype) -> None:
    module, plan = make_module(), optimizer_plan("muon")
    optimizer, before = Optimizer(module, plan, dtype), {n: p.detach().clone() for n, p in module.named_parameters()}
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step(1.0, FINITE)
    updates = {name: before[name] - p.detach() for name, p in module.named_parameters()}
    # (24, 72) and (16, 24)
    for matrix in (updates["conv.weight"].permute(0, 2, 3, 1).flatten(1), updates["linear.weight"]):
        values = torch.linalg.svdvals(matrix) / (plan.muon_learning_rate * 0.2 * max(matrix.shape) ** 0.5)
        # Jordan's quintic leaves 0.7 to 1.2.
        assert float(values.min()) > 0.6 and float(values.max()) < 1.3
    for name in ("embedding.weight", "position", "conv.bias", "linear.bias"):
        # The first update of Adam has the size of the learning rate.
        assert updates[name].abs().max() == pytest.approx(plan.learning_rate, rel=1e-3)


@pytest.mark.parametrize("shape", [(3, 8, 40), (2, 40, 8)])
def test_muon_computes_in_the_precision_it_is_given(shape: tuple[int, ...]) -> None:
    torch.manual_seed(2)
    matrices = torch.randn(shape)
    exact = orthogonalize(matrices.double(), torch.float64)
    for dtype, error, least_error in ((torch.float32, 1e-5, 0.0), (torch.bfloat16, 3e-2, 1e-3)):
        rounded = orthogonalize(matrices, dtype)
        assert rounded.dtype == dtype and rounded.shape == exact.shape
        assert least_error <= (rounded - exact).norm() / exact.norm() < error


def test_muon_is_torch_s_own_on_matrices() -> None:
    torch.manual_seed(1)
    ours = nn.Sequential(nn.Linear(24, 48, bias=False), nn.Linear(48, 24, bias=False), nn.Linear(24, 48, bias=False))
    theirs, plan = copy.deepcopy(ours), optimizer_plan("muon", weight_decay=0.1)
    reference = torch.optim.Muon(
        theirs.parameters(), lr=plan.muon_learning_rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    optimizer, initial = Optimizer(ours, plan), [p.detach().clone() for p in ours.parameters()]
    for _ in range(3):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        optimizer.step(1.0, FINITE)
        reference.step()
    for a, b, start in zip(ours.parameters(), theirs.parameters(), initial, strict=True):
        # Both round to bfloat16, not at the same places.
        assert (a - b).norm() < 0.02 * (b - start).norm()


def test_adamw_is_torch_s_own() -> None:
    ours, theirs, plan = make_module(), make_module(), optimizer_plan("adamw")
    reference = torch.optim.AdamW(theirs.parameters(), lr=plan.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    optimizer = Optimizer(ours, plan)
    for step in (1, 2, 3):
        train(ours, optimizer, range(step, step + 1))
        theirs.loss(torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(step))).backward()
        reference.step()
        reference.zero_grad()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-7)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_a_restored_state_continues_as_before(name: str) -> None:
    uninterrupted, first, second = make_module(), make_module(), make_module()
    train(uninterrupted, Optimizer(uninterrupted, optimizer_plan(name)), range(1, 7))
    optimizer = Optimizer(first, optimizer_plan(name))
    train(first, optimizer, range(1, 4))
    second.load_state_dict(first.state_dict())
    restored = Optimizer(second, optimizer_plan(name))
    state = {name: tensor.clone() for name, tensor in optimizer.state_dict().items()}
    for key, tensor in restored.state_dict().items():
        tensor.copy_(state[key])
    train(second, restored, range(4, 7))
    assert all(torch.equal(a, b) for a, b in zip(uninterrupted.parameters(), second.parameters(), strict=True))


def test_kernels_that_are_not_channels_last_are_refused() -> None:
    torch.manual_seed(0)
    with pytest.raises(RuntimeError, match="view"):
        Optimizer(MixedModule(), optimizer_plan("muon"))


def test_the_learning_rate_rises_stays_and_falls_to_zero() -> None:
    plan = make_plan().with_changes(work={"steps": 1000}, optimizer={"warmup_steps": 100, "decay_fraction": 0.4})
    factors = [learning_rate_factor(step, plan) for step in range(1, 1001)]
    assert factors[0] == 0.01 and factors[99:600] == [1.0] * 501
    assert factors[799] == pytest.approx(0.5, abs=0.01) and factors[999] == 1 / 400
    # After the text stage it rises again.
    plan = plan.with_changes(work={"text_steps": 300})
    again = [learning_rate_factor(step, plan) for step in range(1, 1001)]
    assert again[:300] == factors[:300] and again[300:] == [*factors[:100], *factors[400:]]
