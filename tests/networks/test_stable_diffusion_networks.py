"""U-Nets and autoencoder against diffusers, in its layout; the weights first made to depend on all that is asked."""

from typing import Any

import pytest
import torch

import stable_diffusion_files
from unspeckle.denoiser import Conditioning
from unspeckle.formats import rename_tables
from unspeckle.formats.stable_diffusion import diffusers_names
from unspeckle.networks.unet import UNet, UNetConfig
from unspeckle.networks.vae import VAE, VAEConfig

_S = UNetConfig(
    channels=4, base_channels=64, blocks_per_level=1, transformer_depths=(1, 0), self_attention=(True, True), feed_forward=True, transformer_projection="linear",
    head_width=64, text_width=64, scale_shift=False, time_scale=1.0,
)  # fmt: skip
OURS = {
    "1": UNetConfig(**{**vars(_S), "width": 32, "projection": "conv", "heads": 8}),
    "1-inpaint": UNetConfig(**{**vars(_S), "width": 32, "projection": "conv", "heads": 8, "concat_channels": 5}),
    "1-lcm": UNetConfig(**{**vars(_S), "width": 32, "projection": "conv", "heads": 8, "guidance_width": 12}),
    "2": _S,
    "xl": UNetConfig(**{**vars(_S), "transformer_depths": (0, 2), "mid_transformer_depth": 2, "text_width": 192, "vector_width": 112}),
    "xl-inpaint": UNetConfig(
        **{**vars(_S), "transformer_depths": (0, 2), "mid_transformer_depth": 2, "text_width": 192, "vector_width": 112, "concat_channels": 5}
    ),
    "xl-refiner": UNetConfig(
        **{**vars(_S), "channel_multipliers": (1, 1, 2), "transformer_depths": (0, 2, 0), "mid_transformer_depth": 2, "self_attention": (True,) * 3,
           "text_width": 128, "vector_width": 104},
    ),
}  # fmt: skip


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


class Asked:
    """One question to a U-Net of diffusers, and the same to ours."""

    def __init__(self, config: Any) -> None:
        self.x, self.t = torch.randn(2, config.in_channels, 16, 24), torch.tensor([300.0, 720.5])
        self.words = torch.randn(2, 154, config.cross_attention_dim)
        self.sizes = self.pooled = self.guidance = None
        if config.addition_embed_type:
            self.sizes = torch.randint(0, 1000, (2, (config.projection_class_embeddings_input_dim - 64) // 8)).float()
            self.pooled = torch.randn(2, 64)
        if config.time_cond_proj_dim:
            self.guidance = torch.randn(2, config.time_cond_proj_dim)

    def of_theirs(self, network: Any) -> torch.Tensor:
        more = {"text_embeds": self.pooled, "time_ids": self.sizes} if self.sizes is not None else {}
        return network(self.x, self.t, self.words, added_cond_kwargs=more, timestep_cond=self.guidance).sample

    def of_ours(self, network: UNet) -> torch.Tensor:
        from unspeckle.networks.layers import sinusoidal_embedding

        vector = self.guidance
        if self.sizes is not None:
            vector = torch.cat([self.pooled, sinusoidal_embedding(self.sizes.flatten(), 8).view(2, -1)], 1)
        beside = self.x[:, 4:] if self.x.shape[1] > 4 else None
        return network(self.x[:, :4], self.t, Conditioning(self.words, None, vector, beside))


@pytest.mark.parametrize("family", stable_diffusion_files.UNET_CONFIGS)
@torch.no_grad()
def test_unet_is_that_of_diffusers(family: str) -> None:
    torch.manual_seed(0)
    theirs, ours = stable_diffusion_files.tiny_unet(family), UNet(OURS[family]).eval()
    depths = OURS[family].transformer_depths
    table = rename_tables.build_name_table(
        ours.state_dict(), diffusers_names.UNET, rename_tables.BlockLayout(1, len(depths), tuple(d > 0 for d in depths))
    )
    assert set(table.values()) == set(theirs.state_dict())
    ours.load_state_dict(rename_tables.to_our_names(table, theirs.state_dict()))
    asked = Asked(theirs.config)
    answer = asked.of_theirs(theirs)
    assert far(asked.of_ours(ours), answer) <= 1e-4
    assert 0.7 <= answer.square().mean().sqrt() <= 1.4
    for part in ("t", "words", "sizes", "guidance"):  # an answer that depended on nothing would prove nothing
        other = Asked(theirs.config)
        vars(other).update({**vars(asked), part: getattr(other, part)})
        other.t = asked.t.flip(0) if part == "t" else asked.t
        if getattr(asked, part) is not None:
            assert far(other.of_theirs(theirs), answer) >= 0.1, part


@pytest.mark.parametrize("changes", [{}, {"use_quant_conv": False, "use_post_quant_conv": False}])
@torch.no_grad()
def test_autoencoder_is_that_of_diffusers(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    theirs = stable_diffusion_files.tiny_vae(**changes)
    ours = VAE(
        VAEConfig(
            base_channels=32,
            channel_multipliers=(1, 2),
            blocks_per_level=1,
            use_quant_conv=not changes,
            scaling_factor=0.7,
            shift_factor=0.1,
        )
    )
    table = rename_tables.build_name_table(ours.state_dict(), diffusers_names.VAE, rename_tables.BlockLayout(1, 2))
    assert set(table.values()) == set(theirs.state_dict())
    ours.load_state_dict(rename_tables.to_our_names(table, theirs.state_dict()))
    pictures, z = torch.rand(2, 3, 16, 24) * 2 - 1, torch.randn(2, 4, 8, 12)
    mean, deviation = ours.posterior(pictures)
    posterior = theirs.encode(pictures).latent_dist
    assert far(mean, (posterior.mean - 0.1) * 0.7) <= 1e-5 and far(deviation, posterior.std * 0.7) <= 1e-5
    assert far(ours.decode(z), theirs.decode(z / 0.7 + 0.1).sample) <= 1e-5
    assert torch.equal(ours.encode(pictures), mean) and (ours.latent_channels, ours.downsampling_factor) == (4, 2)
