"""The U-Net: Stable Diffusion's sizes to the parameter, and that its shortcuts change nothing."""

import pytest
import torch
from torch import nn

from unspeckle.denoiser import Conditioning
from unspeckle.networks import build_network
from unspeckle.networks.autoencoder import PixelAutoencoder, PixelAutoencoderConfig
from unspeckle.networks.layers import Attention, LayerNorm2d, multi_head_attention, sinusoidal_embedding
from unspeckle.networks.unet import UNet, UNetConfig
from unspeckle.presets import PRESETS, STABLE_DIFFUSION_CONFIGS

SMALL = UNetConfig(
    patch_size=2, base_channels=16, blocks_per_level=1, transformer_depths=(1, 1), self_attention=(False, True), head_width=8, text_width=12, vector_width=6,
    norm_groups=0,
)  # fmt: skip


def awake(config: UNetConfig = SMALL) -> UNet:
    """A network whose silenced branches speak."""
    torch.manual_seed(0)
    network = UNet(config)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network.eval()


def given(rows: int = 2) -> Conditioning:
    torch.manual_seed(1)
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])[:rows]
    return Conditioning(torch.randn(rows, 4, 12), mask, torch.randn(rows, 6))


@pytest.mark.parametrize(
    ("name", "parameters"), [("1.5", 859_520_964), ("2.1", 865_910_724), ("xl", 2_567_463_684)]
)  # fmt: skip
def test_stable_diffusion_to_the_parameter(name: str, parameters: int) -> None:
    with torch.device("meta"):
        network = UNet(STABLE_DIFFUSION_CONFIGS[name])
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_stable_diffusion_runs_on_meta_at_its_own_shapes() -> None:
    config = STABLE_DIFFUSION_CONFIGS["xl"]
    with torch.device("meta"):
        words = Conditioning(torch.empty(2, 77, 2048), None, torch.empty(2, 2816))
        assert UNet(config)(torch.empty(2, 4, 128, 96), torch.empty(2), words).shape == (2, 4, 128, 96)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_millions_they_claim(name: str) -> None:
    with torch.device("meta"):
        network = build_network(PRESETS[name].for_size((64, 64)))
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    assert millions == pytest.approx(PRESETS[name].million_parameters, rel=0.1)


def test_prepared_keys_and_values_change_nothing() -> None:
    network, words = awake(), given()
    x, clock = torch.randn(2, 3, 16, 16), torch.tensor([0.2, 0.9])
    with torch.no_grad():
        assert torch.equal(network(x, clock, words), network(x, clock, network.prepare(words)))


def test_words_behind_the_mask_are_not_seen_and_those_before_it_are() -> None:
    network, words = awake(), given()
    x, clock = torch.randn(2, 3, 16, 16), torch.tensor([0.2, 0.9])
    hidden, seen = words.tokens.clone(), words.tokens.clone()
    hidden[0, 3] += 5
    seen[0, 2] += 5
    with torch.no_grad():
        before = network(x, clock, words)
        assert torch.equal(before, network(x, clock, words._replace(tokens=hidden)))
        assert (before[0] - network(x, clock, words._replace(tokens=seen))[0]).abs().max() > 1e-4
        assert (before - network(x, clock + 0.1, words)).abs().max() > 1e-4
        assert (before - network(x, clock, words._replace(vector=words.vector + 1))).abs().max() > 1e-4


def test_rows_of_a_batch_do_not_meet() -> None:
    network, words = awake(), given()
    x, clock = torch.randn(2, 3, 16, 16), torch.tensor([0.2, 0.9])
    alone = Conditioning(words.tokens[1:], words.mask[1:], words.vector[1:])
    with torch.no_grad():
        torch.testing.assert_close(network(x, clock, words)[1:], network(x[1:], clock[1:], alone))


def test_untrained_network_says_nothing() -> None:
    torch.manual_seed(0)
    assert UNet(SMALL)(torch.randn(2, 3, 16, 16), torch.rand(2), given()).abs().max() == 0


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_the_network_sees_every_pixel_at_its_place(patch: int) -> None:
    network = awake(UNetConfig(**{**vars(SMALL), "patch_size": patch}))
    x = torch.randn(1, 3, 32, 32, requires_grad=True)
    network(x, torch.tensor([0.5]), given(1))[0, 0, 9, 20].backward()
    reach = x.grad[0].abs().amax(0)
    assert reach[9, 20] > 0
    assert reach[9, 20] > reach.mean()  # a skip leads straight there


def test_explicit_attention_is_the_fused_kernel() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 10, 16), torch.randn(2, 7, 16), torch.randn(2, 7, 16)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 4:] = False
    explicit = multi_head_attention(query, key, value, 4, mask)
    with torch.no_grad():
        torch.testing.assert_close(explicit, multi_head_attention(query, key, value, 4, mask), rtol=1e-5, atol=1e-6)


def test_attention_is_torchs() -> None:
    torch.manual_seed(0)
    ours, theirs = Attention(16, 4), nn.MultiheadAttention(16, 4, batch_first=True)
    ours.to_out.load_state_dict({"weight": torch.randn(16, 16), "bias": torch.randn(16)})
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.to_q.weight, ours.to_k.weight, ours.to_v.weight]))
        theirs.in_proj_bias.zero_()
        theirs.out_proj.load_state_dict(ours.to_out.state_dict())
        x = torch.randn(3, 9, 16)
        torch.testing.assert_close(ours(x, ours.project_keys_values(x)), theirs(x, x, x)[0], rtol=1e-5, atol=1e-5)


def test_place_norm_is_a_layer_norm_of_each_place() -> None:
    norm = LayerNorm2d(8)
    x = 3 * torch.randn(2, 8, 5, 4) + 1
    out = norm(x)
    torch.testing.assert_close(out.mean(1), torch.zeros(2, 5, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var(1, unbiased=False), torch.ones(2, 5, 4), atol=1e-3, rtol=0)


def test_sinusoids_are_those_of_diffusers() -> None:
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    clock = torch.tensor([0.0, 1.0, 500.5, 999.0])
    theirs = embeddings.get_timestep_embedding(clock, 320, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(sinusoidal_embedding(clock, 320), theirs, rtol=1e-4, atol=1e-4)


def test_identity_autoencoder_standardises_and_returns() -> None:
    pixels = torch.rand(8, 3, 16, 16) * 2 - 1
    mean, deviation = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3))
    coder = PixelAutoencoder(PixelAutoencoderConfig(tuple(mean.tolist()), tuple(deviation.tolist())))
    x = coder.encode(pixels)
    torch.testing.assert_close(x.std((0, 2, 3)), torch.ones(3))
    torch.testing.assert_close(coder.decode(x), pixels)
    low, high = coder.latent_bounds
    torch.testing.assert_close(
        coder.decode(torch.cat([low[None], high[None]])).flatten(1)[:, 0], torch.tensor([-1.0, 1])
    )
