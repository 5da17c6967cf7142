"""The U-Net: Stable Diffusion's number of parameters, and what its output does and does not depend on."""

from dataclasses import replace

import pytest
import torch

from tiny_networks import OWN_UNET, random_conditioning, randomize
from unspeckle.denoiser import Conditioning
from unspeckle.networks import build_network
from unspeckle.networks.unet import UNet
from unspeckle.presets import PRESETS, STABLE_DIFFUSION_CONFIGS

C_NOISE = torch.tensor([0.2, 0.9])


@pytest.mark.parametrize(("name", "parameters"), [("1.5", 859_520_964), ("2.1", 865_910_724), ("xl", 2_567_463_684)])
def test_stable_diffusion_to_the_parameter(name: str, parameters: int) -> None:
    with torch.device("meta"):
        network = UNet(STABLE_DIFFUSION_CONFIGS[name])
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_stable_diffusion_runs_on_the_meta_device_at_its_own_size() -> None:
    config = STABLE_DIFFUSION_CONFIGS["xl"]
    with torch.device("meta"):
        conditioning = Conditioning(torch.empty(2, 77, 2048), None, torch.empty(2, 2816))
        assert UNet(config)(torch.empty(2, 4, 128, 96), torch.empty(2), conditioning).shape == (2, 4, 128, 96)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_number_of_parameters_that_they_state(name: str) -> None:
    with torch.device("meta"):
        network = build_network(PRESETS[name].for_size((64, 64)))
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    assert millions == pytest.approx(PRESETS[name].million_parameters, rel=0.1)


def test_preparing_the_conditioning_changes_nothing() -> None:
    network, conditioning = randomize(UNet(OWN_UNET)), random_conditioning()
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        prepared = network.prepare(conditioning)
        assert torch.equal(network(x, C_NOISE, conditioning), network(x, C_NOISE, prepared))


def test_the_output_depends_on_time_vector_and_unmasked_tokens_only() -> None:
    network, conditioning = randomize(UNet(OWN_UNET)), random_conditioning()
    x = torch.randn(2, 3, 16, 16)
    masked, unmasked = conditioning.tokens.clone(), conditioning.tokens.clone()
    masked[0, 3] += 5
    unmasked[0, 2] += 5
    with torch.no_grad():
        out = network(x, C_NOISE, conditioning)
        assert torch.equal(out, network(x, C_NOISE, conditioning._replace(tokens=masked)))
        assert (out[0] - network(x, C_NOISE, conditioning._replace(tokens=unmasked))[0]).abs().max() > 1e-4
        assert (out - network(x, C_NOISE + 0.1, conditioning)).abs().max() > 1e-4
        other_vector = conditioning._replace(vector=conditioning.vector + 1)
        assert (out - network(x, C_NOISE, other_vector)).abs().max() > 1e-4


def test_a_missing_vector_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"needs a conditioning.vector of 6 values per image"):
        UNet(OWN_UNET)(torch.randn(2, 3, 16, 16), C_NOISE, random_conditioning()._replace(vector=None))


def test_images_of_a_batch_are_independent() -> None:
    network, (tokens, mask, vector, _) = randomize(UNet(OWN_UNET)), random_conditioning()
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        both = network(x, C_NOISE, Conditioning(tokens, mask, vector))
        alone = network(x[1:], C_NOISE[1:], Conditioning(tokens[1:], mask[1:], vector[1:]))
    torch.testing.assert_close(both[1:], alone)


def test_the_output_of_an_untrained_network_is_zero() -> None:
    torch.manual_seed(0)
    assert UNet(OWN_UNET)(torch.randn(2, 3, 16, 16), torch.rand(2), random_conditioning()).abs().max() == 0


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_the_output_depends_most_on_the_pixel_at_its_position(patch_size: int) -> None:
    network = randomize(UNet(replace(OWN_UNET, patch_size=patch_size)))
    x = torch.randn(1, 3, 32, 32, requires_grad=True)
    network(x, torch.tensor([0.5]), random_conditioning(1))[0, 0, 9, 20].backward()
    sensitivity = x.grad[0].abs().amax(0)
    assert sensitivity[9, 20] > 0
    assert sensitivity[9, 20] > sensitivity.mean()
