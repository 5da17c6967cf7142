"""Memory: what is counted beforehand is what a step takes, and a batch size shrinks to what is free."""

from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from tiny_models import CAPTIONS, make_plan
from unspeckle.corpus.batches import Batch
from unspeckle.denoiser import Conditioning
from unspeckle.errors import InputError
from unspeckle.networks import PixelAutoencoder, PixelAutoencoderConfig, build_network
from unspeckle.networks.latent_autoencoder import LatentAutoencoder, LatentAutoencoderConfig
from unspeckle.text.tokenizer import Tokenizer
from unspeckle.training import memory
from unspeckle.training.autoencoder_updater import AutoencoderUpdater
from unspeckle.training.reconstruction_loss import COARSE_LOSS_EVERY
from unspeckle.training.text_to_image_updater import TextToImageUpdater, init_modules
from unspeckle.training.trainer import training_step


@pytest.mark.parametrize("name", ["nano", "micro", "t-nano"])
def test_what_is_counted_is_what_a_forward_pass_keeps(name: str) -> None:
    plan, batch_size = make_plan(name), 4
    config = plan.model.network
    network = build_network(config)
    tokens, vector = torch.randn(batch_size, 8, config.text_width), torch.randn(batch_size, config.vector_width)
    x, c_noise = torch.randn(batch_size, 3, 64, 64), torch.rand(batch_size)
    # Some memory is allocated once.
    network(x, c_noise, Conditioning(tokens, None, vector)).sum().backward()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        prepared = network.prepare(Conditioning(tokens, None, vector))
        output = network(x, c_noise, prepared)
    kept_bytes = sum(event.self_cpu_memory_usage for event in profiled.key_averages())
    assert output.requires_grad
    assert memory.activation_bytes(plan) == pytest.approx(kept_bytes / batch_size, rel=0.15)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_what_is_counted_is_what_the_largest_step_of_an_autoencoder_keeps(precision: str) -> None:
    plan = make_plan("nano", batch_size=4, precision=precision)
    plan = plan.with_changes(model={"autoencoder": LatentAutoencoderConfig()}, work={"autoencoder_steps": 8})
    updater = AutoencoderUpdater(plan, LatentAutoencoder(LatentAutoencoderConfig()))
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    batch = Batch(images, [""] * 4, torch.arange(4))
    kept_bytes = []
    for step in (COARSE_LOSS_EVERY, COARSE_LOSS_EVERY, 1):
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            loss = updater.loss(batch, step)
        kept_bytes.append(sum(event.self_cpu_memory_usage for event in profiled.key_averages()))
        loss.backward()
    assert memory.autoencoder_activation_bytes(plan) == pytest.approx(kept_bytes[1] / 4, rel=0.05)
    assert kept_bytes[2] < 0.9 * kept_bytes[1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["tiny", "t-tiny"])
def test_a_step_on_a_gpu_allocates_what_was_counted(name: str, precision: str) -> None:
    plan = make_plan(name, batch_size=64, precision=precision).with_changes(compute={"device": "cuda"})
    modules = init_modules(plan)
    plan = plan.with_changes(measured={"parameter_count": sum(p.numel() for p in modules.parameters())})
    updater = TextToImageUpdater(
        plan, modules, Tokenizer.train(CAPTIONS, vocab_size=120), PixelAutoencoder(PixelAutoencoderConfig())
    )
    images = torch.randint(0, 256, (64, 3, *reversed(plan.model.size)), dtype=torch.uint8)
    batch = Batch(images, [CAPTIONS[i % len(CAPTIONS)] for i in range(64)], torch.arange(64))
    torch.cuda.reset_peak_memory_stats()
    for step in (1, 2):
        training_step(updater, batch, step)
    allocated = torch.cuda.max_memory_allocated()
    # The plan also counts the EMAs, and the libraries' memory, which is not in this figure.
    estimate = memory.training_step_bytes(plan)
    print(f"{name} {precision}: {allocated / 2**20:.0f} MiB allocated, {estimate / 2**20:.0f} MiB expected")
    assert 0.6 * (estimate - memory.BASE_BYTES) < allocated < estimate


def test_training_an_autoencoder_is_counted_if_it_takes_more() -> None:
    fixed = make_plan("nano").with_changes(model={"autoencoder": LatentAutoencoderConfig()})
    trained = fixed.with_changes(work={"autoencoder_steps": 1})
    own_count = sum(p.numel() for p in LatentAutoencoder(LatentAutoencoderConfig()).parameters())
    assert memory.count_autoencoder_parameters(fixed) == own_count
    assert memory.count_autoencoder_parameters(make_plan("nano")) == 0
    parameter_count, batch_size = fixed.measured.parameter_count, fixed.work.batch_size
    autoencoder_bytes = memory.BACKWARD_FACTOR * batch_size * memory.autoencoder_activation_bytes(trained)
    assert memory.training_step_bytes(trained) == pytest.approx(
        memory.BASE_BYTES + 4 * parameter_count + 16 * own_count + autoencoder_bytes
    )
    network_bytes = memory.BACKWARD_FACTOR * fixed.network_batch_size * memory.activation_bytes(fixed)
    assert memory.training_step_bytes(fixed) == pytest.approx(
        memory.BASE_BYTES + 4 * 6 * parameter_count + 4 * own_count + network_bytes
    )
    assert memory.training_step_bytes(trained) > 1.5 * memory.training_step_bytes(fixed)
    # Here the network's own step is the larger one.
    huge = trained.with_changes(measured={"parameter_count": 10**9})
    without_autoencoder = huge.with_changes(work={"autoencoder_steps": 0})
    assert memory.training_step_bytes(huge) == memory.training_step_bytes(without_autoencoder)


def test_bfloat16_keeps_half_as_much_but_for_the_statistics_of_norms() -> None:
    float32, bfloat16 = (memory.activation_bytes(make_plan(precision=name)) for name in ("float32", "bfloat16"))
    assert 0.5 * float32 < bfloat16 < 0.6 * float32


def test_what_is_free_is_the_less_of_machine_and_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    5000 kB\n")
    monkeypatch.setattr(memory, "MEMINFO_FILE", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP_FOLDER", tmp_path)
    assert memory.free_memory_bytes("cpu") == 5000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert memory.free_memory_bytes("cpu") == 5000 * 1024
    (tmp_path / "memory.max").write_text("3000000\n")
    assert memory.free_memory_bytes("cpu") == 2_000_000
    (tmp_path / "meminfo").unlink()
    assert memory.free_memory_bytes("cpu") is None


def test_a_batch_size_is_halved_until_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    plan = make_plan(batch_size=64)
    free_bytes = memory.training_step_bytes(plan.with_changes(work={"batch_size": 20})) / memory.MAX_MEMORY_SHARE
    monkeypatch.setattr(memory, "free_memory_bytes", lambda device: int(free_bytes))
    assert memory.fit_batch_size(plan, False, lines.append).work.batch_size == 16
    assert len(lines) == 1 and "batches of 16" in lines[0]
    with pytest.raises(InputError, match=r"batch_size 64: needs about .* GiB are free; try 16"):
        memory.fit_batch_size(plan, True, lines.append)
    monkeypatch.setattr(memory, "free_memory_bytes", lambda device: 100)
    with pytest.raises(InputError, match="choose a smaller --preset or --size"):
        memory.fit_batch_size(plan, False, lines.append)
    monkeypatch.setattr(memory, "free_memory_bytes", lambda device: None)
    assert memory.fit_batch_size(plan, True, lines.append) == plan


def test_torch_s_errors_without_memory_are_recognized() -> None:
    with pytest.raises(RuntimeError) as without_memory:
        torch.empty(2**55)
    assert memory.is_out_of_memory(without_memory.value)
    with pytest.raises(RuntimeError) as other:
        torch.ones(2) @ torch.ones(3)
    assert not memory.is_out_of_memory(other.value)
