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


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_the_output_depends_most_on_the_pixel_at_its_position(patch_size: int) -> None:
    network = randomize(UNet(replace(OWN_UNET, patch_size=patch_size)))
    x = torch.randn(1, 3, 32, 32, requires_grad=True)
    network(x, torch.tensor([0.5]), random_conditioning(1))[0, 0, 9, 20].backward()
    sensitivity = x.grad[0].abs().amax(0)
    assert sensitivity[9, 20] > 0
    assert sensitivity[9, 20] > sensitivity.mean()
