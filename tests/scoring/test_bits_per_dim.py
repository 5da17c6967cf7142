"""Bits per dimension: bits_of pixels whose exact cost is known, and single terms computed by bad_bits means."""

import math

import pytest
import torch
from scoring_examples import random_images
from torch import Tensor

from unspeckle.denoiser import Denoise
from unspeckle.networks.autoencoder import PixelAutoencoder, PixelAutoencoderConfig
from unspeckle.schedule import CosineSchedule, FlowSchedule, LinearSchedule, Schedule, VESchedule
from unspeckle.scoring.bits_per_dim import FINAL_NOISE_STD, BitsPerDim, measure_bits_per_dim

COLOR_AUTOENCODER = PixelAutoencoder(PixelAutoencoderConfig((0.1, 0.0, -0.2), (0.5, 0.25, 0.4)))
GRAY_AUTOENCODER = PixelAutoencoder(PixelAutoencoderConfig((0.1, 0.1, 0.1), (0.4, 0.4, 0.4)))


def bits_of(
    schedule: Schedule, denoise: Denoise, images: Tensor, autoencoder: PixelAutoencoder = COLOR_AUTOENCODER
) -> BitsPerDim:
    return measure_bits_per_dim(images, autoencoder, schedule, lambda first, last: denoise)


def rounded_gaussian(std: float, count: int) -> tuple[Tensor, Tensor]:
    """Images of independent pixels, a Gaussian about 128 rounded to levels, and the probability of each level."""
    edges = (torch.arange(257, dtype=torch.float64) - 128.5) / std
    edges[0], edges[-1] = -math.inf, math.inf
    p = torch.special.ndtr(edges[1:]) - torch.special.ndtr(edges[:-1])
    levels = torch.multinomial(p, count * 3 * 16, replacement=True, generator=torch.Generator().manual_seed(0))
    return levels.view(count, 3, 4, 4).to(torch.uint8), p


def exact_denoiser(schedule: Schedule, p: Tensor) -> Denoise:
    """E[x | x_t] of such pixels: a sum over the levels."""
    table = COLOR_AUTOENCODER.encode((torch.arange(256) / 127.5 - 1).view(256, 1, 1, 1))[:, :, 0, 0]  # (256, 3)
    table = table.double().T.view(1, 3, 1, 1, 256)

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (level.view(-1, 1, 1, 1, 1) for level in schedule(t.double()))
        distances = x_t.double().unsqueeze(-1) - alpha * table
        return ((p.log() - distances.square() / sigma**2 / 2).softmax(-1) * table).sum(-1).to(x_t.dtype)

    return denoise


@pytest.mark.parametrize(
    "schedule", [FlowSchedule(), LinearSchedule(), CosineSchedule(), VESchedule()], ids=lambda s: type(s).__name__
)
def test_the_best_denoiser_of_known_pixels_costs_their_entropy(schedule: Schedule) -> None:
    images, p = rounded_gaussian(9.0, 64)
    bits = bits_of(schedule, exact_denoiser(schedule, p), images)
    entropy, here = float(-(p * p.log2()).nan_to_num().sum()), float(-p[images.long()].log2().mean())  # 5.2 bits
    assert bits.standard_error < 0.06
    assert bits.total == pytest.approx(entropy, abs=3 * bits.standard_error)
    assert bits.total == pytest.approx(here, abs=3 * bits.standard_error)
    assert bits.total == pytest.approx(bits.prior + bits.reconstruction + bits.diffusion, rel=1e-9)


def gaussian_denoiser(mean: float, std: float) -> Denoise:
    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (level.view(-1, 1, 1, 1) for level in FlowSchedule()(t.double()))
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        return (mean + gain * (x_t.double() - alpha * mean)).to(x_t.dtype)

    return denoise


def test_a_gaussian_model_costs_its_exact_nll() -> None:
    """A Gaussian model knows nothing of levels: it pays ½ log2(1 + s² SNR) for the diffusion and some hundredths for
    the reconstruction, together within .03 of -log2(density · width)."""
    images, _ = rounded_gaussian(30.0, 256)
    x = GRAY_AUTOENCODER.encode(images.float() / 127.5 - 1).double()
    mean, std, width = float(x.mean()), float(x.std()), 1 / 127.5 / 0.4
    bits = bits_of(FlowSchedule(), gaussian_denoiser(mean, std), images, GRAY_AUTOENCODER)
    nll = math.log2(math.sqrt(2 * math.pi * math.e) * std / width)  # of these pixels
    diffusion = 0.5 * math.log2(1 + (std / width / FINAL_NOISE_STD) ** 2)
    assert bits.diffusion == pytest.approx(diffusion, abs=4 * bits.standard_error)
    assert nll - 3 * bits.standard_error < bits.total < nll + 0.03 + 3 * bits.standard_error
    assert bits.standard_error < 0.03


def test_a_worse_denoiser_costs_more_and_the_curve_shows_where() -> None:
    images, p = rounded_gaussian(9.0, 32)
    good = exact_denoiser(FlowSchedule(), p)

    def bad(x_t: Tensor, t: Tensor) -> Tensor:
        """Predicts the mean image for t above a tenth."""
        return torch.where(t.view(-1, 1, 1, 1) > 0.1, torch.full_like(x_t, 9.0), good(x_t, t))

    good_bits, bad_bits = bits_of(FlowSchedule(), good, images), bits_of(FlowSchedule(), bad, images)
    assert bad_bits.total > good_bits.total + 1
    for log_snr, good_value, bad_value in zip(
        good_bits.log_snr, good_bits.bits_by_log_snr, bad_bits.bits_by_log_snr, strict=True
    ):
        ratio = math.exp(-log_snr / 2)
        t = ratio / (1 + ratio)  # of a flow
        assert t <= 0.15 or bad_value > good_value + 0.1
        assert t >= 0.05 or bad_value == good_value


def test_white_noise_costs_the_same_at_every_level() -> None:
    images = random_images(64, 3, 4, 4, seed=1)
    x = GRAY_AUTOENCODER.encode(images.float() / 127.5 - 1)
    autoencoder = PixelAutoencoder(PixelAutoencoderConfig((0.0,) * 3, (float(x.std()) * 0.4,) * 3))
    bits = bits_of(FlowSchedule(), gaussian_denoiser(0.0, 1.0), images, autoencoder)
    assert bits.bits_by_log_snr == pytest.approx([0.5 / math.log(2)] * len(bits.bits_by_log_snr), rel=0.08)


def test_reconstruction_by_brute_force() -> None:
    """With random noise and a sum over 256 levels, black and white among them."""
    images = torch.tensor([0, 1, 128, 254, 255, 77], dtype=torch.uint8).repeat_interleave(8).view(1, 3, 4, 4)
    reconstruction = bits_of(FlowSchedule(), lambda x_t, t: x_t, images).reconstruction
    x = COLOR_AUTOENCODER.encode(images.float() / 127.5 - 1).double()
    levels = COLOR_AUTOENCODER.encode((torch.arange(256) / 127.5 - 1).view(256, 1, 1, 1)).double()  # (256, 3, 1, 1)
    noise_std = FINAL_NOISE_STD / 127.5 / 0.5
    eps = torch.randn(4000, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    for eps_batch in eps.split(200):
        log_density = -(x + noise_std * eps_batch - levels).square() / noise_std**2 / 2  # (200, 256, 3, 4, 4)
        log_density_of_level = log_density.gather(1, images.long().unsqueeze(1).expand(200, 1, 3, 4, 4))[:, 0]
        total += (log_density.logsumexp(1) - log_density_of_level).sum()
    assert reconstruction == pytest.approx(float(total) / 4000 / 48 / math.log(2), rel=0.05)


def test_it_is_the_same_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    images, p = rounded_gaussian(9.0, 10)
    whole = bits_of(FlowSchedule(), exact_denoiser(FlowSchedule(), p), images)
    monkeypatch.setattr("unspeckle.scoring.bits_per_dim.BATCH_SIZE", 4)
    batches: list[tuple[int, int]] = []
    advances: list[int] = []

    def bind_denoiser(first: int, last: int) -> Denoise:
        batches.append((first, last))
        return exact_denoiser(FlowSchedule(), p)

    bits = measure_bits_per_dim(images, COLOR_AUTOENCODER, FlowSchedule(), bind_denoiser, advances.append)
    assert bits.total == pytest.approx(whole.total, rel=1e-9)
    assert batches == [(0, 4), (4, 8), (8, 10)] and sum(advances) == 10 * len(whole.bits_by_log_snr)
