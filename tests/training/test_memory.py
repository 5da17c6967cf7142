"""Memory: what is counted beforehand is what a step takes, and a batch shrinks to what is free."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from tiny_models import make_plan
from unspeckle.corpus import Batch
from unspeckle.denoiser import Conditioning
from unspeckle.errors import InputError
from unspeckle.networks import build_network
from unspeckle.networks.latent_autoencoder import LatentAutoencoder, LatentAutoencoderConfig
from unspeckle.training import memory
from unspeckle.training.autoencoder_task import AutoencoderUpdater
from unspeckle.training.reconstruction_loss import COARSE_LOSS_EVERY


@pytest.mark.parametrize("name", ["nano", "micro", "t-nano"])
def test_what_is_counted_is_what_a_forward_pass_leaves_in_memory(name: str) -> None:
    counted, batch = make_plan(name), 4
    network = build_network(counted.network_config)
    words, vector = (
        torch.randn(batch, 8, counted.network_config.text_width),
        torch.randn(batch, counted.network_config.vector_width),
    )
    x, clock = torch.randn(batch, 3, 64, 64), torch.rand(batch)
    network(x, clock, Conditioning(words, None, vector)).sum().backward()  # what is allocated once
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        given = network.prepare(Conditioning(words, None, vector))
        output = network(x, clock, given)
    left = sum(event.self_cpu_memory_usage for event in profiled.key_averages())
    assert output.requires_grad
    assert memory.activation_bytes(counted) == pytest.approx(left / batch, rel=0.15)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_is_counted_is_what_the_dearest_step_of_an_autoencoder_leaves(precision: str) -> None:
    learning = replace(
        make_plan("nano", batch_size=4, precision=precision), autoencoder=LatentAutoencoderConfig(), latent_steps=8
    )
    learner = AutoencoderUpdater(learning, LatentAutoencoder(LatentAutoencoderConfig()))
    pictures = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    batch = Batch(pictures, [""] * 4, torch.arange(4))
    left = []
    for step in (COARSE_LOSS_EVERY, COARSE_LOSS_EVERY, 1):
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            loss = learner.loss(batch, step)
        left.append(sum(event.self_cpu_memory_usage for event in profiled.key_averages()))
        loss.backward()
    assert memory.autoencoder_activation_bytes(learning) == pytest.approx(left[1] / 4, rel=0.05)
    assert left[2] < 0.9 * left[1]


def test_a_learning_autoencoder_is_counted_where_it_takes_more() -> None:
    fixed = replace(make_plan("nano"), autoencoder=LatentAutoencoderConfig())
    learning = replace(fixed, latent_steps=1)
    own = sum(p.numel() for p in LatentAutoencoder(LatentAutoencoderConfig()).parameters())
    assert (
        memory.count_autoencoder_parameters(fixed) == own
        and memory.count_autoencoder_parameters(make_plan("nano")) == 0
    )
    rows = memory.BACKWARD_FACTOR * learning.batch_size * memory.autoencoder_activation_bytes(learning)
    assert memory.training_step_bytes(learning) == pytest.approx(
        memory.BASE_BYTES + 4 * learning.parameter_count + 16 * own + rows
    )
    assert memory.training_step_bytes(fixed) == pytest.approx(
        memory.BASE_BYTES
        + 4 * 6 * fixed.parameter_count
        + 4 * own
        + memory.BACKWARD_FACTOR * fixed.network_batch_size * memory.activation_bytes(fixed)
    )
    assert memory.training_step_bytes(learning) > 1.5 * memory.training_step_bytes(fixed)
    huge = replace(learning, parameters=10**9)  # here the network's own step is the larger one
    assert memory.training_step_bytes(huge) == memory.training_step_bytes(replace(huge, latent_steps=0))


def test_bfloat16_keeps_half_as_much_but_for_the_norms_statistics() -> None:
    whole, half = memory.activation_bytes(make_plan()), memory.activation_bytes(make_plan(precision="bfloat16"))
    assert 0.5 * whole < half < 0.6 * whole


def test_what_is_free_is_the_least_of_machine_and_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    5000 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.free_memory_bytes("cpu") == 5000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert memory.free_memory_bytes("cpu") == 5000 * 1024
    (tmp_path / "memory.max").write_text("3000000\n")
    assert memory.free_memory_bytes("cpu") == 2_000_000
    (tmp_path / "meminfo").unlink()
    assert memory.free_memory_bytes("cpu") is None


def test_a_batch_is_halved_until_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    wished = make_plan(batch_size=64)
    room = memory.training_step_bytes(replace(wished, batch=20)) / memory.MAX_MEMORY_SHARE
    monkeypatch.setattr(memory, "free", lambda device: int(room))
    assert memory.fit_batch_size(wished, False, said.append).batch_size == 16
    assert len(said) == 1 and "batches of 16" in said[0]
    with pytest.raises(InputError, match=r"--batch 64: needs about .* GiB are free; try --batch 16"):
        memory.fit_batch_size(wished, True, said.append)
    monkeypatch.setattr(memory, "free", lambda device: 100)
    with pytest.raises(InputError, match="take a smaller --preset or --size"):
        memory.fit_batch_size(wished, False, said.append)
    monkeypatch.setattr(memory, "free", lambda device: None)
    assert memory.fit_batch_size(wished, True, said.append) == wished


def test_torch_without_memory_is_understood() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert memory.is_out_of_memory(caught.value)
    with pytest.raises(RuntimeError) as other:
        torch.ones(2) @ torch.ones(3)
    assert not memory.is_out_of_memory(other.value)
