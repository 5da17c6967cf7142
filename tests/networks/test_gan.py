"""A GAN's networks: what each reads, how they begin, and that the gradient penalties are true."""

import itertools

import pytest
import torch
from torch import Tensor

from unspeckle.denoiser import Conditioning, Denoiser
from unspeckle.networks.gan import Discriminator, Generator, GeneratorConfig
from unspeckle.samplers import SAMPLERS
from unspeckle.schedule import FlowSchedule
from unspeckle.training.gan_losses import LOSSES, discriminator_loss, generator_loss, gradient_penalty

TINY = GeneratorConfig(
    channels=3, size=(16, 8), noise_width=5, widths=(8, 6), blocks=1, group_width=4, text_width=7, vector_width=7
)


def make_conditioning(rows: int, vector: Tensor | None = None) -> Conditioning:
    return Conditioning(torch.randn(rows, 4, 7), None, torch.randn(rows, 7) if vector is None else vector)


def perturb(module: torch.nn.Module) -> None:
    """Give layers that begin as zero other values."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.fixture
def generator() -> Generator:
    torch.manual_seed(0)
    generator = Generator(TINY)
    perturb(generator)
    return generator


def test_an_ordinary_denoiser_draws_by_it_in_one_step(generator: Generator) -> None:
    conditioning = make_conditioning(2)
    noise = torch.randn(2, 3, 8, 16)
    image = generator(noise, torch.ones(2), conditioning)
    assert image.shape == (2, 3, 8, 16)
    denoiser = Denoiser(generator, FlowSchedule(), "x", "t")
    prepared = denoiser.prepare(conditioning)
    times = torch.tensor([1.0, 0.0], dtype=torch.float64)
    steps = list(
        SAMPLERS["euler"](
            lambda x, t: denoiser(x, t.expand(len(x)).float(), prepared), FlowSchedule(), times, noise, lambda *_: noise
        )
    )
    assert len(steps) == 2
    torch.testing.assert_close(steps[-1].x, image)


def test_the_image_depends_on_the_first_numbers_of_the_noise_and_on_the_pooled_text(generator: Generator) -> None:
    conditioning, noise = make_conditioning(1), torch.randn(1, 3, 8, 16)
    image = generator(noise, torch.ones(1), conditioning)
    rest = noise.clone().flatten()
    rest[5:] = 0
    assert torch.equal(generator(rest.view_as(noise), torch.zeros(1), conditioning), image)
    rest[4] += 1
    assert not torch.allclose(generator(rest.view_as(noise), torch.ones(1), conditioning), image)
    assert torch.equal(generator(noise, torch.ones(1), make_conditioning(1, conditioning.vector)), image)
    assert not torch.allclose(generator(noise, torch.ones(1), make_conditioning(1)), image)


@torch.no_grad()
def test_networks_begin_with_signals_of_unit_size_whatever_their_depth() -> None:
    """Every residual branch is zero at first, so that only transitions and resampling act on the signal."""
    for widths, blocks in itertools.product([(32, 32), (32, 24, 16, 16)], [1, 4]):
        torch.manual_seed(0)
        side = 4 * 2 ** (len(widths) - 1)
        config = GeneratorConfig(size=(side, side), widths=widths, blocks=blocks, vector_width=16)
        generator, discriminator = Generator(config), Discriminator(config)
        conditioning = Conditioning(torch.zeros(64, 1, 64), None, torch.randn(64, 16))
        image = generator(torch.randn(64, 3, side, side), torch.ones(64), conditioning)
        assert 0.3 < float(image.std()) < 3 and conditioning.vector is not None
        plain = torch.randn(64, 3, 1, 1).expand(64, 3, side, side)
        assert 0.3 < float(discriminator(plain, conditioning.vector).std()) < 3
        for block in generator.stages[0]:
            h = torch.randn(2, widths[0], 4, 4)
            assert torch.equal(block(h), h)


def test_downsampling_is_the_adjoint_of_upsampling_inside_the_image() -> None:
    discriminator = Discriminator(TINY).double()
    x, y = torch.zeros(1, 2, 12, 12, dtype=torch.float64), torch.zeros(1, 2, 24, 24, dtype=torch.float64)
    x[..., 3:9, 3:9], y[..., 6:18, 6:18] = torch.randn(2, 6, 6), torch.randn(2, 12, 12)
    upsampled = torch.nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
    assert float((upsampled * y).sum()) == pytest.approx(4 * float((x * discriminator.downsample(y)).sum()), rel=1e-9)


def test_a_discriminator_reads_image_and_text() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(TINY)
    perturb(discriminator)
    images, vector = torch.randn(3, 3, 8, 16), torch.randn(3, 7)
    values = discriminator(images, vector)
    assert values.shape == (3,) and len(set(values.tolist())) == 3
    assert not torch.allclose(discriminator(images, torch.randn(3, 7)), values)
    assert not torch.allclose(discriminator(images.flip(3), vector), values)


def test_gradient_penalties_are_those_of_finite_differences() -> None:
    """The penalty itself, and its gradient by a weight, in float64."""
    torch.manual_seed(0)
    discriminator = Discriminator(TINY).double()
    perturb(discriminator)
    images, vector = torch.randn(2, 3, 8, 16, dtype=torch.float64), torch.randn(2, 7, dtype=torch.float64)

    def penalties() -> Tensor:
        return gradient_penalty(lambda x: discriminator(x, vector), images)[1]

    values, penalty = gradient_penalty(lambda x: discriminator(x, vector), images)
    torch.testing.assert_close(values, discriminator(images, vector))
    step, differences = 1e-6, torch.zeros_like(images)
    for index in itertools.product(*map(range, images.shape[1:])):
        shift = torch.zeros_like(images)
        shift[(slice(None), *index)] = step
        differences[(slice(None), *index)] = (
            discriminator(images + shift, vector) - discriminator(images - shift, vector)
        ).detach() / (2 * step)
    torch.testing.assert_close(penalty, differences.square().flatten(1).sum(1), rtol=1e-6, atol=1e-9)

    weight = discriminator.from_image.weight
    penalty.sum().backward()
    assert weight.grad is not None
    with torch.no_grad():
        weight[1, 0] += step
        above = penalties().sum()
        weight[1, 0] -= 2 * step
        below = penalties().sum()
        weight[1, 0] += step
    assert float(weight.grad[1, 0]) == pytest.approx(float((above - below) / (2 * step)), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_fall_for_the_one_and_rise_for_the_other(loss: str) -> None:
    real, drawn = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0], requires_grad=True)
    discriminator_loss(real, drawn, loss).sum().backward()
    assert drawn.grad is not None and bool((drawn.grad > 0).all())
    drawn.grad = None
    generator_loss(real, drawn, loss).sum().backward()
    assert drawn.grad is not None and bool((drawn.grad < 0).all())


def test_the_original_losses_are_logarithms_of_probabilities_and_the_relativistic_ones_compare_pairs() -> None:
    real, drawn = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    d_real, d_drawn = real.sigmoid(), drawn.sigmoid()
    torch.testing.assert_close(discriminator_loss(real, drawn, "original"), -d_real.log() - (1 - d_drawn).log())
    torch.testing.assert_close(generator_loss(real, drawn, "original"), -d_drawn.log())
    torch.testing.assert_close(discriminator_loss(real, drawn, "relativistic"), -(real - drawn).sigmoid().log())
    # Only differences count: whatever is added to all values changes nothing.
    torch.testing.assert_close(
        generator_loss(real + 7, drawn + 7, "relativistic"), generator_loss(real, drawn, "relativistic")
    )
