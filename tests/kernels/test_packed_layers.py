"""Networks converted for inference in bfloat16 compute what the plain ones compute."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from closeness import module_types, random_tensor, relative_error
from tiny_networks import STABLE_DIFFUSION_UNET, fill_weights
from unspeckle.denoiser import Conditioning
from unspeckle.kernels.inference import cast_for_inference
from unspeckle.kernels.packed_attention import PackedTransformerLayer
from unspeckle.kernels.packed_layers import can_pack
from unspeckle.networks.layers import GatedFeedForward, UpsampleConv
from unspeckle.networks.lora import AdapterSet, init_adapters
from unspeckle.networks.unet import UNet
from unspeckle.networks.unet_blocks import TransformerLayer
from unspeckle.networks.vae import VAE, VAEConfig

BF16 = torch.bfloat16
C_NOISE = torch.tensor([3.0, 800.0])


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
    x = random_tensor(*shape, seed=1).to(BF16)
    exact = fill_weights(layer)(x.float())
    plain = layer.to(BF16)(x)
    packed = cast_for_inference(fill_weights(nn.Sequential(layer.float())), BF16)
    out = packed(x)
    assert out.dtype == BF16 and out.shape == exact.shape
    assert relative_error(out, exact) < max(1.1 * relative_error(plain, exact), 3e-3)
    if can_pack() and getattr(layer, "groups", 1) == 1:
        assert "Packed" in repr(packed) or "Fused" in repr(packed)


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
def test_for_float32_input_they_compute_in_float32(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """As when a packed autoencoder overflows and runs again: with its rounded weights, but no rounding on the way."""
    x = random_tensor(*shape, seed=1)
    packed = cast_for_inference(fill_weights(nn.Sequential(layer)), BF16)
    with_rounded_weights, in_bfloat16 = fill_weights(layer).to(BF16).float()(x), packed(x.to(BF16))
    in_float32 = packed.float()(x)
    tolerance = 3e-3 if isinstance(layer, UpsampleConv) else 1e-6  # the former rounds sums of weights
    error = relative_error(in_float32, with_rounded_weights)
    assert in_float32.dtype == torch.float32
    assert error < min(tolerance, relative_error(in_bfloat16, with_rounded_weights))


@torch.no_grad()
@pytest.mark.parametrize("projection", ["conv", "linear", "none"])
def test_a_whole_network(projection: str) -> None:
    x, tokens = random_tensor(2, 4, 16, 8, seed=2), random_tensor(2, 77, 48, seed=3)
    conditioning, low_conditioning = Conditioning(tokens), Conditioning(tokens.to(BF16))
    config = replace(STABLE_DIFFUSION_UNET, transformer_projection=projection)
    exact = fill_weights(UNet(config))(x, C_NOISE, conditioning)
    plain = fill_weights(UNet(config)).to(BF16)(x.to(BF16), C_NOISE, low_conditioning)
    packed = cast_for_inference(fill_weights(UNet(config)), BF16)
    out = packed(x.to(BF16), C_NOISE, low_conditioning)
    assert relative_error(out, exact) < 1.1 * relative_error(plain, exact)
    assert not any(parameter.requires_grad or parameter.dtype != BF16 for parameter in packed.parameters())
    larger = packed(x.to(BF16).repeat(1, 1, 2, 3), C_NOISE, low_conditioning)  # weights are packed for any size
    assert larger.shape == (2, 4, 32, 24) and larger.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("every", [1, 3])
def test_live_adapters_stay_beside_their_layers(every: int) -> None:
    """At all linear layers of the transformers, or at every third: those without adapters are packed."""
    network = fill_weights(UNet(STABLE_DIFFUSION_UNET))
    adapters = AdapterSet(dict(list(init_adapters({"network": network}, rank=2, seed=0).items())[::every]))
    for _, adapter in adapters.items():
        adapter.up.normal_(std=0.3)
    adapters.attach({"network": network})
    x, tokens = random_tensor(2, 4, 16, 8), random_tensor(2, 77, 48, seed=3)
    exact = network(x, C_NOISE, Conditioning(tokens))
    packed = cast_for_inference(network, BF16)
    low_inputs = (x.to(BF16), C_NOISE, Conditioning(tokens.to(BF16)))
    out = packed(*low_inputs)
    adapters.set_strength(0)
    assert relative_error(out, exact) < 0.03 and relative_error(packed(*low_inputs), out) > 0.05
    if can_pack():
        assert PackedTransformerLayer in module_types(packed) and TransformerLayer not in module_types(packed)


@torch.no_grad()
def test_a_vae() -> None:
    vae = fill_weights(VAE(VAEConfig(base_channels=32, channel_multipliers=(1, 2), blocks_per_level=1)))
    latents = random_tensor(1, 4, 8, 8, seed=3)
    exact = vae.decode(latents)
    cast_for_inference(vae, BF16)
    images = vae.decode(latents)
    assert images.dtype == torch.float32 and relative_error(images, exact) < 0.02
    vae.float()
    assert relative_error(vae.decode(latents), exact) < 0.02


@torch.no_grad()
def test_in_other_dtypes_weights_are_only_cast() -> None:
    network = cast_for_inference(fill_weights(UNet(STABLE_DIFFUSION_UNET)), torch.float16)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float16}
    assert "Packed" not in repr(network) and "Kernel" not in repr(network)
