"""Bits per dimension: against pixels whose exact price is known, and single terms worked out by other means."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unspeckle.denoiser import Denoise
from unspeckle.networks.autoencoder import PixelAutoencoder, PixelAutoencoderConfig
from unspeckle.schedule import CosineSchedule, FlowSchedule, LinearSchedule, Schedule, VESchedule
from unspeckle.scoring.likelihood import FINAL_NOISE_STD, BitsPerDim, measure_bits_per_dim

COLOURS = PixelAutoencoder(PixelAutoencoderConfig((0.1, 0.0, -0.2), (0.5, 0.25, 0.4)))
GREYS = PixelAutoencoder(PixelAutoencoderConfig((0.1, 0.1, 0.1), (0.4, 0.4, 0.4)))


def of(schedule: Schedule, estimate: Denoise, pictures: Tensor, colours: PixelAutoencoder = COLOURS) -> BitsPerDim:
    return measure_bits_per_dim(pictures, colours, schedule, lambda first, last: estimate)


def rounded(deviation: float, count: int) -> tuple[Tensor, Tensor]:
    """Pictures of independent pixels, a Gaussian's about 128 rounded to levels, and the 256 levels' probabilities."""
    edges = (torch.arange(257, dtype=torch.float64) - 128.5) / deviation
    edges[0], edges[-1] = -math.inf, math.inf
    p = torch.special.ndtr(edges[1:]) - torch.special.ndtr(edges[:-1])
    drawn = torch.multinomial(p, count * 3 * 16, replacement=True, generator=torch.Generator().manual_seed(0))
    return drawn.view(count, 3, 4, 4).to(torch.uint8), p


def knowing(schedule: Schedule, p: Tensor) -> Denoise:
    """E[x | x_t] of such pixels: a sum over the levels."""
    table = COLOURS.encode((torch.arange(256) / 127.5 - 1).view(256, 1, 1, 1))[:, :, 0, 0].double()  # (256, 3)
    table = table.T.view(1, 3, 1, 1, 256)

    def estimate(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (level.view(-1, 1, 1, 1, 1) for level in schedule(t.double()))
        away = x_t.double().unsqueeze(-1) - alpha * table
        return ((p.log() - away.square() / sigma**2 / 2).softmax(-1) * table).sum(-1).to(x_t.dtype)

    return estimate


@pytest.mark.parametrize(
    "schedule", [FlowSchedule(), LinearSchedule(), CosineSchedule(), VESchedule()], ids=lambda s: type(s).__name__
)
def test_the_best_denoiser_of_known_pixels_costs_their_entropy(schedule: Schedule) -> None:
    pictures, p = rounded(9.0, 64)
    found = of(schedule, knowing(schedule, p), pictures)
    entropy, here = float(-(p * p.log2()).nan_to_num().sum()), float(-p[pictures.long()].log2().mean())  # 5.2 bits
    assert found.standard_error < 0.06
    assert found.total == pytest.approx(entropy, abs=3 * found.standard_error)
    assert found.total == pytest.approx(here, abs=3 * found.standard_error)
    assert found.total == pytest.approx(found.prior + found.reconstruction + found.diffusion, rel=1e-9)


def gaussian(mean: float, deviation: float) -> Denoise:
    def estimate(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (level.view(-1, 1, 1, 1) for level in FlowSchedule()(t.double()))
        gain = alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2)
        return (mean + gain * (x_t.double() - alpha * mean)).to(x_t.dtype)

    return estimate


def test_a_gaussian_model_costs_its_exact_nll() -> None:
    """A model that is a Gaussian's knows nothing of levels; it pays ½ log2(1 + s² SNR) for the way and, for telling
    levels apart, some hundredths: together within .03 of -log2(density · width)."""
    pictures, _ = rounded(30.0, 256)
    x = GREYS.encode(pictures.float() / 127.5 - 1).double()
    mean, deviation, width = float(x.mean()), float(x.std()), 1 / 127.5 / 0.4
    found = of(FlowSchedule(), gaussian(mean, deviation), pictures, GREYS)
    nll = math.log2(math.sqrt(2 * math.pi * math.e) * deviation / width)  # of these very pixels
    way = 0.5 * math.log2(1 + (deviation / width / FINAL_NOISE_STD) ** 2)
    assert found.diffusion == pytest.approx(way, abs=4 * found.standard_error)
    assert nll - 3 * found.standard_error < found.total < nll + 0.03 + 3 * found.standard_error
    assert found.standard_error < 0.03


def test_a_worse_denoiser_costs_more_and_the_curve_says_where() -> None:
    pictures, p = rounded(9.0, 32)
    good = knowing(FlowSchedule(), p)

    def bad(x_t: Tensor, t: Tensor) -> Tensor:
        """Blind to all but noise above a tenth: there it says the mean."""
        return torch.where(t.view(-1, 1, 1, 1) > 0.1, torch.full_like(x_t, 9.0), good(x_t, t))

    one, other = of(FlowSchedule(), good, pictures), of(FlowSchedule(), bad, pictures)
    assert other.total > one.total + 1
    blind = [math.exp(-log / 2) / (1 + math.exp(-log / 2)) > 0.15 for log in one.log_snr]  # t of a flow
    sighted = [math.exp(-log / 2) / (1 + math.exp(-log / 2)) < 0.05 for log in one.log_snr]
    for better, worse, is_blind, sees in zip(one.bits_by_log_snr, other.bits_by_log_snr, blind, sighted, strict=True):
        assert not is_blind or worse > better + 0.1
        assert not sees or worse == better


def test_white_noise_costs_the_same_at_every_level() -> None:
    pictures = torch.randint(0, 256, (64, 3, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    x = GREYS.encode(pictures.float() / 127.5 - 1)
    unit = PixelAutoencoder(PixelAutoencoderConfig((0.0,) * 3, (float(x.std()) * 0.4,) * 3))
    found = of(FlowSchedule(), gaussian(0.0, 1.0), pictures, unit)
    assert found.bits_by_log_snr == pytest.approx([0.5 / math.log(2)] * len(found.bits_by_log_snr), rel=0.08)


def test_telling_levels_apart_by_brute_force() -> None:
    """The reconstruction, with noise drawn and 256 levels summed, black and white among them."""
    pictures = torch.tensor([0, 1, 128, 254, 255, 77], dtype=torch.uint8).repeat_interleave(8).view(1, 3, 4, 4)
    found = of(FlowSchedule(), lambda x_t, t: x_t, pictures).reconstruction
    x = COLOURS.encode(pictures.float() / 127.5 - 1).double()
    levels = COLOURS.encode((torch.arange(256) / 127.5 - 1).view(256, 1, 1, 1)).double()  # (256, 3, 1, 1)
    last = FINAL_NOISE_STD / 127.5 / 0.5
    eps = torch.randn(4000, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    for some in eps.split(200):
        log = -((x + last * some) - levels).square() / last**2 / 2  # (200, 256, 3, 4, 4)
        own = log.gather(1, pictures.long().unsqueeze(1).expand(200, 1, 3, 4, 4))[:, 0]
        total += (log.logsumexp(1) - own).sum()
    assert found == pytest.approx(float(total) / 4000 / 48 / math.log(2), rel=0.05)


def test_it_is_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, p = rounded(9.0, 10)
    told: list[int] = []
    whole = of(FlowSchedule(), knowing(FlowSchedule(), p), pictures)
    monkeypatch.setattr("unspeckle.scoring.likelihood.SHARE", 4)
    asked: list[tuple[int, int]] = []
    rows: Callable[[int, int], Denoise] = lambda a, b: asked.append((a, b)) or knowing(FlowSchedule(), p)  # type: ignore[func-returns-value]  # noqa: E731
    parts = measure_bits_per_dim(pictures, COLOURS, FlowSchedule(), rows, told.append)
    assert parts.total == pytest.approx(whole.total, rel=1e-9)
    assert asked == [(0, 4), (4, 8), (8, 10)] and sum(told) == 10 * len(whole.bits_by_log_snr)
