"""U-Nets and the VAE against those of diffusers with the same weights, which are random so that all inputs matter."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import stable_diffusion_files
from closeness import relative_error
from unspeckle.denoiser import Conditioning
from unspeckle.formats import rename_tables
from unspeckle.formats.stable_diffusion import diffusers_names
from unspeckle.networks.layers import sinusoidal_embedding
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
POOLED_WIDTH = 64
SIZE_WIDTH = 8  # of the sinusoidal embedding of each size


@dataclass(frozen=True)
class UNetInputs:
    """The inputs of a U-Net of diffusers for two images; None for those that its family does not have."""

    x: Tensor
    t: Tensor
    tokens: Tensor
    sizes: Tensor | None
    pooled: Tensor | None
    guidance_embedding: Tensor | None


def random_inputs(config: Any) -> UNetInputs:
    """config: that of the U-Net in diffusers."""
    sizes = pooled = guidance_embedding = None
    x, t = torch.randn(2, config.in_channels, 16, 24), torch.tensor([300.0, 720.5])
    tokens = torch.randn(2, 154, config.cross_attention_dim)
    if config.addition_embed_type:
        num_sizes = (config.projection_class_embeddings_input_dim - POOLED_WIDTH) // SIZE_WIDTH
        sizes = torch.randint(0, 1000, (2, num_sizes)).float()
        pooled = torch.randn(2, POOLED_WIDTH)
    if config.time_cond_proj_dim:
        guidance_embedding = torch.randn(2, config.time_cond_proj_dim)
    return UNetInputs(x, t, tokens, sizes, pooled, guidance_embedding)


def diffusers_output(network: Any, inputs: UNetInputs) -> Tensor:
    added = {} if inputs.sizes is None else {"text_embeds": inputs.pooled, "time_ids": inputs.sizes}
    output = network(
        inputs.x, inputs.t, inputs.tokens, added_cond_kwargs=added, timestep_cond=inputs.guidance_embedding
    )
    return output.sample  # type: ignore[no-any-return]


def our_output(network: UNet, inputs: UNetInputs) -> Tensor:
    vector = inputs.guidance_embedding
    if inputs.sizes is not None and inputs.pooled is not None:
        size_embedding = sinusoidal_embedding(inputs.sizes.flatten(), SIZE_WIDTH).view(2, -1)
        vector = torch.cat([inputs.pooled, size_embedding], 1)
    concat = inputs.x[:, 4:] if inputs.x.shape[1] > 4 else None
    return network(inputs.x[:, :4], inputs.t, Conditioning(inputs.tokens, None, vector, concat))


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
    inputs = random_inputs(theirs.config)
    expected = diffusers_output(theirs, inputs)
    assert relative_error(our_output(ours, inputs), expected) <= 1e-4
    assert 0.7 <= expected.square().mean().sqrt() <= 1.4
    assert_depends_on_all_inputs(theirs, inputs, expected)


def assert_depends_on_all_inputs(network: Any, inputs: UNetInputs, output: Tensor) -> None:
    """Otherwise equal outputs would prove nothing."""
    others = random_inputs(network.config)
    for name in ("t", "tokens", "sizes", "guidance_embedding"):
        if getattr(inputs, name) is not None:
            other_value = inputs.t.flip(0) if name == "t" else getattr(others, name)
            other_output = diffusers_output(network, replace(inputs, **{name: other_value}))
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
