"""Optimiser: Muon turns what it should and nothing else, and its state can be put down and taken up."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from tiny_models import make_plan
from unspeckle.training.optimizer import Optimizer
from unspeckle.training.plan import Plan


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 24, 3)
        self.linear = nn.Linear(24, 16)
        self.words = nn.Embedding(10, 24)
        self.place = nn.Parameter(torch.randn(3, 24))

    def loss(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv(x).mean((2, 3)) + self.words.weight.sum(0) + self.place.sum(0)
        return self.linear(h).square().mean()


def plan(optimizer: str) -> Plan:
    return replace(make_plan("nano"), steps=100, warmup=1, optimizer=optimizer, weight_decay=0.0)


def mixed() -> Mixed:
    torch.manual_seed(0)
    return Mixed().to(memory_format=torch.channels_last)


def moved(module: Mixed, optimizer: Optimizer, steps: int = 1) -> dict[str, torch.Tensor]:
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    for step in range(1, steps + 1):
        module.loss(torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(step))).backward()
        optimizer.step(step)
    return {name: before[name] - p.detach() for name, p in module.named_parameters()}


def test_muon_moves_matrices_and_kernels_by_nearly_orthogonal_steps() -> None:
    module, chosen = mixed(), plan("muon")
    optimizer, before = Optimizer(module, chosen), {n: p.detach().clone() for n, p in module.named_parameters()}
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step(1)
    moves = {name: before[name] - p.detach() for name, p in module.named_parameters()}
    for matrix in (moves["conv.weight"].permute(0, 2, 3, 1).flatten(1), moves["linear.weight"]):  # (24, 72), (16, 24)
        values = torch.linalg.svdvals(matrix) / (chosen.muon_learning_rate * 0.2 * max(matrix.shape) ** 0.5)
        assert float(values.min()) > 0.6  # Jordan's quintic leaves 0.7 to 1.2
        assert float(values.max()) < 1.3
    for name in ("words.weight", "place", "conv.bias", "linear.bias"):  # Adam's first step has the rate's size
        assert moves[name].abs().max() == pytest.approx(chosen.learning_rate, rel=1e-3)


def test_muon_is_torch_s_own_on_matrices() -> None:
    torch.manual_seed(1)
    ours = nn.Sequential(nn.Linear(24, 48, bias=False), nn.Linear(48, 24, bias=False), nn.Linear(24, 48, bias=False))
    theirs, chosen = copy.deepcopy(ours), replace(plan("muon"), weight_decay=0.1)
    reference = torch.optim.Muon(
        theirs.parameters(), lr=chosen.muon_learning_rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    optimizer, first = Optimizer(ours, chosen), [p.detach().clone() for p in ours.parameters()]
    for step in (1, 2, 3):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        optimizer.step(step)
        reference.step()
    for a, b, start in zip(ours.parameters(), theirs.parameters(), first, strict=True):
        assert (a - b).norm() < 0.02 * (b - start).norm()  # both round to bfloat16, not at the same places


def test_adamw_is_torch_s_own() -> None:
    ours, theirs, chosen = mixed(), mixed(), plan("adamw")
    reference = torch.optim.AdamW(theirs.parameters(), lr=chosen.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    optimizer = Optimizer(ours, chosen)
    for step in (1, 2, 3):
        for module in (ours, theirs):
            module.loss(torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(step))).backward()
        optimizer.step(step)
        reference.step()
        reference.zero_grad()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-7)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_state_put_down_and_taken_up_goes_on_as_before(kind: str) -> None:
    whole = mixed()
    moved(whole, Optimizer(whole, plan(kind)), steps=6)
    first = mixed()
    optimizer = Optimizer(first, plan(kind))
    moved(first, optimizer, steps=3)
    held = {name: tensor.clone() for name, tensor in optimizer.state_tensors().items()}
    second = mixed()
    second.load_state_dict(first.state_dict())
    fresh = Optimizer(second, plan(kind))
    for name, tensor in fresh.state_tensors().items():
        tensor.copy_(held[name])
    for step in (4, 5, 6):
        second.loss(torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(step))).backward()
        fresh.step(step)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


def test_kernels_out_of_channels_last_memory_are_refused() -> None:
    torch.manual_seed(0)
    with pytest.raises(RuntimeError, match="view"):
        Optimizer(Mixed(), plan("muon"))
