"""The layers that networks are built from, against PyTorch's and diffusers' own."""

import pytest
import torch
from torch import nn

from unspeckle.networks.autoencoder import PixelAutoencoder, PixelAutoencoderConfig
from unspeckle.networks.layers import LayerNorm2d, ScaledDotProductAttention, SelfAttention, sinusoidal_embedding


def test_explicit_attention_is_the_fused_one() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 10, 16), torch.randn(2, 7, 16), torch.randn(2, 7, 16)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 4:] = False
    attention = ScaledDotProductAttention(4)
    explicit = attention(query, key, value, mask)  # as in training
    with torch.no_grad():
        torch.testing.assert_close(explicit, attention(query, key, value, mask), rtol=1e-5, atol=1e-6)


def test_self_attention_is_pytorchs() -> None:
    torch.manual_seed(0)
    ours, theirs = SelfAttention(16, 4), nn.MultiheadAttention(16, 4, batch_first=True)
    ours.to_out.load_state_dict({"weight": torch.randn(16, 16), "bias": torch.randn(16)})
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.to_q.weight, ours.to_k.weight, ours.to_v.weight]))
        theirs.in_proj_bias.zero_()
        theirs.out_proj.load_state_dict(ours.to_out.state_dict())
        x = torch.randn(3, 9, 16)
        torch.testing.assert_close(ours(x), theirs(x, x, x)[0], rtol=1e-5, atol=1e-5)


def test_layer_norm_2d_normalizes_each_pixel() -> None:
    norm = LayerNorm2d(8)
    x = 3 * torch.randn(2, 8, 5, 4) + 1
    out = norm(x)
    torch.testing.assert_close(out.mean(1), torch.zeros(2, 5, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var(1, unbiased=False), torch.ones(2, 5, 4), atol=1e-3, rtol=0)


def test_the_sinusoidal_embedding_is_that_of_diffusers() -> None:
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    timesteps = torch.tensor([0.0, 1.0, 500.5, 999.0])
    theirs = embeddings.get_timestep_embedding(timesteps, 320, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(sinusoidal_embedding(timesteps, 320), theirs, rtol=1e-4, atol=1e-4)


def test_the_pixel_autoencoder_standardizes_and_restores() -> None:
    images = torch.rand(8, 3, 16, 16) * 2 - 1
    mean, std = images.mean((0, 2, 3)), images.std((0, 2, 3))
    autoencoder = PixelAutoencoder(PixelAutoencoderConfig(tuple(mean.tolist()), tuple(std.tolist())))
    x = autoencoder.encode(images)
    torch.testing.assert_close(x.std((0, 2, 3)), torch.ones(3))
    torch.testing.assert_close(autoencoder.decode(x), images)
    low, high = autoencoder.latent_bounds
    bounds = autoencoder.decode(torch.cat([low[None], high[None]])).flatten(1)[:, 0]
    torch.testing.assert_close(bounds, torch.tensor([-1.0, 1]))
