"""Training in float16: small gradients survive, overflows cost a step and no weights, and runs resume bit for bit."""

from pathlib import Path

import pytest
import torch
from torch import nn

from training_runs import final_tensors, interrupt_at, tensors_equal, train_options
from unspeckle.quantization import precision
from unspeckle.training import checkpoint, master_weights
from unspeckle.training.master_weights import INITIAL_LOSS_SCALE, LossScale, MasterWeights
from unspeckle.training.train_command import run_training

FINITE, INFINITE = torch.tensor(True), torch.tensor(False)


def gradients(precision: str, factor: float) -> list[torch.Tensor]:
    """Of a small network's loss times a factor."""
    torch.manual_seed(0)
    weights = MasterWeights(nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 1)), "cpu", precision)
    x = torch.randn(32, 8, generator=torch.Generator().manual_seed(1))
    loss = weights.compute_module(x.to(master_weights.DTYPES[precision])).float().square().mean() * factor
    weights.zero_grad()
    weights.scaled(loss).backward()
    weights.take_gradients()
    return [parameter.grad for parameter in weights.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("factor", [1.0, 1e-7])
def test_gradients_are_those_of_float32_even_where_float16_has_no_such_small_numbers(factor: float) -> None:
    ours, exact = gradients("float16", factor), gradients("float32", factor)
    assert len(ours) == len(exact) == 4
    for gradient, expected in zip(ours, exact, strict=True):
        assert gradient.dtype == torch.float32
        assert float((gradient - expected).norm() / expected.norm()) < 5e-3
    # Without the scale most of them would be zero
    assert factor == 1 or all(not gradient.half().any() for gradient in exact[:1])


def test_gradients_in_float32_that_come_through_float16_are_scaled_too() -> None:
    """As those of a LoRA beside a base model in float16."""
    torch.manual_seed(0)
    base = nn.Linear(4, 4).half().requires_grad_(False)
    for scales_loss in (False, True):
        weights = MasterWeights(nn.Linear(4, 4), "cpu", "float32", scales_loss=scales_loss)
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
        loss = base(weights.compute_module(x).half()).float().mean() * 1e-7
        weights.scaled(loss).backward()
        weights.take_gradients()
        gradient = next(iter(weights.parameters())).grad
        assert gradient is not None and bool(gradient.any()) == scales_loss
        assert float(gradient.abs().max()) < 1e-6


def test_the_loss_scale_is_halved_at_an_overflow_and_doubled_after_long_without_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(master_weights, "STEPS_TO_DOUBLE", 3)
    loss_scale, scales = LossScale(torch.device("cpu")), []
    for is_finite in (FINITE, FINITE, INFINITE, FINITE, FINITE, FINITE, FINITE, INFINITE, INFINITE):
        loss_scale.update(is_finite)
        scales.append(float(loss_scale.scale) / INITIAL_LOSS_SCALE)
    assert scales == [1, 1, 0.5, 0.5, 0.5, 1, 1, 0.5, 0.25]


def test_an_interrupted_run_in_float16_gives_the_same_weights(
    color_folder: Path, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted, run = tmp_path / "uninterrupted", tmp_path / "run"
    # So large that the first steps overflow, and so quickly doubled that later ones do
    monkeypatch.setattr(master_weights, "INITIAL_LOSS_SCALE", 2.0**22)
    monkeypatch.setattr(master_weights, "STEPS_TO_DOUBLE", 2)
    assert run_training(train_options(color_folder, uninterrupted, precision="float16", steps=16, batch_size=4)) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 11)
        assert run_training(train_options(color_folder, run, precision="float16", steps=16, batch_size=4)) == 130
    saved = checkpoint.load_latest_checkpoint(run)
    assert saved is not None and 2 <= saved.counters["skipped_steps"] < 11
    assert 2.0**8 < float(saved.tensors["loss_scale.scale"]) < 2.0**22
    assert run_training(train_options(color_folder, run, precision="float16", steps=16, batch_size=4)) == 0
    assert tensors_equal(final_tensors(run), final_tensors(uninterrupted))


@pytest.mark.parametrize(
    ("device", "capability", "expected"),
    [("cuda", (9, 0), "bfloat16"), ("cuda:1", (7, 5), "float16"), ("cuda", (6, 1), "float32"), ("cpu", None, None)],
    ids=["H100", "T4", "P100", "CPU"],
)
def test_the_precision_of_a_device(
    device: str, capability: tuple[int, int] | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    chosen = precision.fastest_precision(device)
    assert chosen == expected if expected else chosen in ("float32", "bfloat16")
    assert precision.resolve_precision("auto", device) == chosen
