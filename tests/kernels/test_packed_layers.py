"""Networks made ready to draw in bfloat16 say what the plain ones say."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from unspeckle.denoiser import Conditioning
from unspeckle.kernels.packed_layers import can_pack, cast_for_inference
from unspeckle.networks.layers import GatedFeedForward, UpsampleConv
from unspeckle.networks.unet import UNet, UNetConfig
from unspeckle.networks.vae import VAE, VAEConfig

LOW = torch.bfloat16


def filled(module: nn.Module) -> nn.Module:
    """With weights under which every branch speaks, and that bfloat16 cannot hold."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        std = 0.7 * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.data = torch.randn(parameter.shape, generator=generator) * std + (parameter.ndim == 1)
    return module.eval().requires_grad_(False)


def off(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


@torch.no_grad()
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(24, 40), (2, 7, 24)),
        (nn.Linear(24, 40, bias=False), (5, 24)),
        (nn.Linear(24, 40), (2, 24, 24, 24)),
        (nn.Linear(1, 1), (1, 1)),
        (GatedFeedForward(24), (2, 9, 24)),
        (nn.Conv2d(6, 10, 3, padding=1), (2, 6, 9, 5)),
        (nn.Conv2d(6, 10, 3, stride=2, padding=1), (1, 6, 8, 8)),
        (nn.Conv2d(6, 10, 3, stride=2), (1, 6, 9, 9)),
        (nn.Conv2d(6, 10, 1), (2, 6, 4, 3)),
        (nn.Conv2d(6, 10, 3, padding=1, groups=2), (2, 6, 4, 3)),
        (UpsampleConv(8), (2, 8, 5, 3)),
        (UpsampleConv(8), (1, 8, 1, 1)),
    ],
)
def test_each_layer(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(LOW)
    exact = filled(layer)(x.float())
    plain = layer.to(LOW)(x)
    packed = cast_for_inference(filled(nn.Sequential(layer.float())), LOW)
    said = packed(x)
    assert said.dtype == LOW and said.shape == exact.shape
    assert off(said, exact) < max(1.1 * off(plain, exact), 3e-3)
    assert not can_pack() or "Packed" in repr(packed) or "Fused" in repr(packed) or getattr(layer, "groups", 1) > 1


@torch.no_grad()
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(24, 40), (2, 7, 24)),
        (nn.Conv2d(6, 10, 3, stride=2, padding=1), (1, 6, 8, 8)),
        (nn.Conv2d(6, 10, 1, bias=False), (2, 6, 4, 3)),
        (UpsampleConv(8), (2, 8, 5, 3)),
    ],
)
def test_of_float32_they_answer_in_float32(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """As where a packed autoencoder is asked again: their own weights, and no rounding on the way."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    packed = cast_for_inference(filled(nn.Sequential(layer)), LOW)
    rounded, low = filled(layer).to(LOW).float()(x), packed(x.to(LOW))
    exact = packed.float()(x)
    near = 3e-3 if isinstance(layer, UpsampleConv) else 1e-6  # whose summed weights are rounded
    assert exact.dtype == torch.float32 and off(exact, rounded) < min(near, off(low, rounded))


UNET = UNetConfig(
    channels=4, base_channels=32, channel_multipliers=(1, 2), blocks_per_level=1, transformer_depths=(1, 1), self_attention=(True, True), feed_forward=True,
    transformer_projection="conv", heads=4, text_width=48, scale_shift=False, time_scale=1.0,
)  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("projection", ["conv", "linear", "none"])
def test_a_whole_network(projection: str) -> None:
    generator = torch.Generator().manual_seed(2)
    x, words = torch.randn(2, 4, 16, 8, generator=generator), torch.randn(2, 77, 48, generator=generator)
    clock = torch.tensor([3.0, 800.0])
    config = replace(UNET, transformer_projection=projection)
    network = filled(UNet(config))
    exact = network(x, clock, Conditioning(words))
    plain = filled(UNet(config)).to(LOW)(x.to(LOW), clock, Conditioning(words.to(LOW)))
    low = cast_for_inference(network, LOW)
    said = low(x.to(LOW), clock, Conditioning(words.to(LOW)))
    assert off(said, exact) < 1.1 * off(plain, exact)
    assert not any(one.requires_grad or one.dtype != LOW for one in low.parameters())
    wider = low(
        x.to(LOW).repeat(1, 1, 2, 3), clock, Conditioning(words.to(LOW))
    )  # what was packed for one size serves all
    assert wider.shape == (2, 4, 32, 24) and wider.isfinite().all()


@torch.no_grad()
def test_a_decoder() -> None:
    vae = filled(VAE(VAEConfig(base_channels=32, channel_multipliers=(1, 2), blocks_per_level=1)))
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    exact = vae.decode(z)
    cast_for_inference(vae, LOW)
    said = vae.decode(z)
    assert said.dtype == torch.float32 and off(said, exact) < 0.02


@torch.no_grad()
def test_other_precisions_are_only_cast() -> None:
    network = cast_for_inference(filled(UNet(UNET)), torch.float16)
    assert {one.dtype for one in network.parameters()} == {torch.float16} and "Packed" not in repr(network)
