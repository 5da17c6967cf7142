"""U-Nets and the VAE against those of diffusers with the same weights, which are random so that all inputs matter."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import stable_diffusion_files
from closeness import relative_error
from stable_diffusion_files import UNetInputs
from unspeckle.formats import rename_tables
from unspeckle.formats.stable_diffusion import diffusers_names
from unspeckle.networks.unet import UNet, UNetConfig
from unspeckle.networks.vae import VAE, VAEConfig

SD2 = UNetConfig(
    channels=4,
    base_channels=64,
    blocks_per_level=1,
    transformer_depths=(1, 0),
    self_attention=(True, True),
    feed_forward=True,
    transformer_projection="linear",
    head_width=64,
    text_width=64,
    scale_shift=False,
    time_scale=1.0,
)
SD1 = replace(SD2, base_channels=32, transformer_projection="conv", heads=8)
XL = replace(SD2, transformer_depths=(0, 2), mid_transformer_depth=2, text_width=192, vector_width=112)
XL_REFINER = replace(
    SD2,
    channel_multipliers=(1, 1, 2),
    transformer_depths=(0, 2, 0),
    mid_transformer_depth=2,
    self_attention=(True,) * 3,
    text_width=128,
    vector_width=104,
)
CONFIGS = {
    "1": SD1,
    "1-inpaint": replace(SD1, concat_channels=5),
    "1-lcm": replace(SD1, guidance_width=12),
    "2": SD2,
    "xl": XL,
    "xl-inpaint": replace(XL, concat_channels=5),
    "xl-refiner": XL_REFINER,
}


@pytest.mark.parametrize("family", CONFIGS)
@torch.no_grad()
def test_unet_is_that_of_diffusers(family: str) -> None:
    torch.manual_seed(0)
    theirs, ours = stable_diffusion_files.tiny_unet(family), UNet(CONFIGS[family]).eval()
    depths = CONFIGS[family].transformer_depths
    layout = rename_tables.BlockLayout(1, len(depths), tuple(depth > 0 for depth in depths))
    table = rename_tables.build_name_table(ours.state_dict(), diffusers_names.UNET, layout)
    assert set(table.values()) == set(theirs.state_dict())
    ours.load_state_dict(rename_tables.to_our_names(table, theirs.state_dict()))
    inputs = UNetInputs.random(theirs.config)
    expected = inputs.diffusers_output(theirs)
    assert relative_error(inputs.our_output(ours), expected) <= 1e-4
    assert 0.7 <= expected.square().mean().sqrt() <= 1.4
    assert_depends_on_all_inputs(theirs, inputs, expected)


def assert_depends_on_all_inputs(network: Any, inputs: UNetInputs, output: Tensor) -> None:
    """Otherwise equal outputs would prove nothing."""
    others = UNetInputs.random(network.config)
    for name in ("t", "tokens", "sizes", "guidance_embedding"):
        if getattr(inputs, name) is not None:
            other_value = inputs.t.flip(0) if name == "t" else getattr(others, name)
            other_output = replace(inputs, **{name: other_value}).diffusers_output(network)
            assert relative_error(other_output, output) >= 0.1, name


@pytest.mark.parametrize("changes", [{}, {"use_quant_conv": False, "use_post_quant_conv": False}])
@torch.no_grad()
def test_vae_is_that_of_diffusers(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    theirs = stable_diffusion_files.tiny_vae(**changes)
    config = VAEConfig(
        base_channels=32,
        channel_multipliers=(1, 2),
        blocks_per_level=1,
        use_quant_conv=not changes,
        scaling_factor=0.7,
        shift_factor=0.1,
    )
    ours = VAE(config)
    table = rename_tables.build_name_table(ours.state_dict(), diffusers_names.VAE, rename_tables.BlockLayout(1, 2))
    assert set(table.values()) == set(theirs.state_dict())
    ours.load_state_dict(rename_tables.to_our_names(table, theirs.state_dict()))
    images, latents = torch.rand(2, 3, 16, 24) * 2 - 1, torch.randn(2, 4, 8, 12)
    mean, std = ours.posterior(images)
    posterior = theirs.encode(images).latent_dist
    assert relative_error(mean, (posterior.mean - 0.1) * 0.7) <= 1e-5
    assert relative_error(std, posterior.std * 0.7) <= 1e-5
    assert relative_error(ours.decode(latents), theirs.decode(latents / 0.7 + 0.1).sample) <= 1e-5
    assert torch.equal(ours.encode(images), mean) and (ours.latent_channels, ours.downsampling_factor) == (4, 2)
