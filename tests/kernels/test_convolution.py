"""The convolution kernel: closer to the exact result than PyTorch with what surrounds a convolution, and with at most
twice its error for a convolution alone."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from closeness import random_tensor, relative_error, reload_kernel
from unspeckle.kernels import convolution
from unspeckle.kernels.convolution import ChannelAffine
from unspeckle.kernels.fused_layers import (
    FusedConv,
    FusedNorm,
    FusedNormSiluConv,
    FusedResBlock,
    is_fusable_block,
    is_fusable_conv,
)
from unspeckle.kernels.inference import cast_for_inference
from unspeckle.kernels.packed_layers import PackedConv, can_pack
from unspeckle.networks.layers import UpsampleConv, upsample_2x
from unspeckle.networks.unet_blocks import ResBlock
from unspeckle.networks.vae import VAEConfig, VAEDecoder, VAEResBlock

BF16 = torch.bfloat16
needs_kernel = pytest.mark.skipif(
    convolution._load_kernel() is None, reason="needs a C++ compiler and a processor with bfloat16"
)
needs_packing = pytest.mark.skipif(not can_pack(), reason="needs oneDNN's packed layers in PyTorch")


@pytest.fixture(autouse=True)
def reload_convolution_kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from reload_kernel(convolution, monkeypatch)


def fill_weights(module: nn.Module) -> nn.Module:
    """The module with random weights, those of a channel centered at 1, and without gradients."""
    for seed, parameter in enumerate(module.parameters()):
        std = 0.7 * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
        parameter.data = random_tensor(*parameter.shape, seed=seed) * std + (parameter.ndim == 1)
    return module.eval().requires_grad_(False)


@needs_kernel
@torch.no_grad()
@pytest.mark.parametrize("upsample", [False, True])
@pytest.mark.parametrize(
    ("batch_size", "in_channels", "out_channels", "height", "width"),
    [
        (2, 64, 96, 9, 5),
        (1, 32, 64, 8, 8),
        (3, 32, 32, 5, 7),
        (1, 320, 32, 1, 1),
        (2, 128, 64, 20, 33),
        (1, 32, 32, 1, 130),
        (2, 64, 3, 9, 8),
        (1, 32, 70, 4, 4),
    ],
)
def test_a_convolution_with_norm_silu_bias_and_residual(
    batch_size: int, in_channels: int, out_channels: int, height: int, width: int, upsample: bool
) -> None:
    factor = 2 if upsample else 1
    x = random_tensor(batch_size, in_channels, height, width).to(BF16)
    weight = random_tensor(out_channels, in_channels, 3, 3, seed=1) * (9 * in_channels) ** -0.5
    norm = ChannelAffine(*random_tensor(2, batch_size, in_channels, seed=2))
    bias = random_tensor(batch_size, out_channels, seed=3)
    residual = random_tensor(batch_size, out_channels, factor * height, factor * width, seed=4).to(BF16)

    def plain(dtype: torch.dtype) -> Tensor:
        scale, shift, channel_bias = (tensor[:, :, None, None].to(dtype) for tensor in (*norm, bias))
        activation = F.silu(x.to(dtype) * scale + shift)
        conv_input = upsample_2x(activation) if upsample else activation
        return F.conv2d(conv_input, weight.to(dtype), padding=1) + channel_bias + residual.to(dtype)

    packed_weight = convolution.pack_conv_weight(weight, upsample)
    ours = convolution.winograd_conv2d(x, packed_weight, bias, norm=norm, residual=residual, upsample=upsample)
    exact = plain(torch.float64)
    assert relative_error(ours, exact) < relative_error(plain(BF16), exact)


@needs_kernel
@torch.no_grad()
@pytest.mark.parametrize("mean", [0, 3])
def test_a_convolution_alone_has_at_most_twice_the_error(mean: int) -> None:
    x, weight = (random_tensor(2, 128, 16, 16) + mean).to(BF16), random_tensor(64, 128, 3, 3, seed=1) / 34
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    ours = convolution.winograd_conv2d(x, convolution.pack_conv_weight(weight), torch.zeros(64))
    assert relative_error(ours, exact) < 2 * relative_error(F.conv2d(x, weight.to(BF16), padding=1), exact)


@needs_kernel
@torch.no_grad()
def test_one_bias_serves_all_images_and_wrong_shapes_are_errors() -> None:
    x, weight = random_tensor(5, 32, 4, 4).to(BF16), convolution.pack_conv_weight(random_tensor(64, 32, 3, 3))
    bias, residual = random_tensor(1, 64), random_tensor(5, 64, 4, 4).to(BF16)
    out = convolution.winograd_conv2d(x, weight, bias)
    assert torch.equal(out, convolution.winograd_conv2d(x, weight, bias[0]))
    assert torch.equal(out, convolution.winograd_conv2d(x, weight, bias.expand(5, 64)))
    assert convolution.winograd_conv2d(x[:0], weight, bias).shape == (0, 64, 4, 4)
    with pytest.raises(ValueError, match="x has 64 channels, but the weight is for 32"):
        convolution.winograd_conv2d(torch.cat([x, x], 1), weight, bias)
    for wrong in (residual[:4], residual.float()):
        with pytest.raises(ValueError, match="cannot add"):
            convolution.winograd_conv2d(x, weight, bias, residual=wrong)


@needs_kernel
@torch.no_grad()
def test_an_image_with_several_groups_of_tiles() -> None:
    """More tiles than are transformed at once, in rows that begin in one group and end in the next."""
    x, weight = random_tensor(3, 64, 96, 96).to(BF16), random_tensor(64, 64, 3, 3) / 24
    ours = convolution.winograd_conv2d(x, convolution.pack_conv_weight(weight), torch.zeros(64))
    assert relative_error(ours, F.conv2d(x.float(), weight, padding=1)) < 5e-3


@needs_kernel
@torch.no_grad()
@pytest.mark.parametrize("upsample", [False, True])
def test_any_number_of_threads_and_any_batch_give_the_same_bits(upsample: bool) -> None:
    x, bias = random_tensor(3, 64, 23, 17).to(BF16), torch.ones(96)
    weight = convolution.pack_conv_weight(random_tensor(96, 64, 3, 3) / 24, upsample)
    norm, outputs = ChannelAffine(*random_tensor(2, 3, 64)), list[Tensor]()
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        outputs.append(convolution.winograd_conv2d(x, weight, bias, norm=norm, upsample=upsample))
    norm_of_one = ChannelAffine(norm.scale[1:2], norm.shift[1:2])
    alone = convolution.winograd_conv2d(x[1:2], weight, bias, norm=norm_of_one, upsample=upsample)
    assert all(torch.equal(out, outputs[0]) for out in outputs) and torch.equal(alone, outputs[0][1:2])


@needs_kernel
@torch.no_grad()
@pytest.mark.parametrize("upsample", [False, True])
@pytest.mark.parametrize("out_channels", [64, 32, 160, 3])
def test_unpacking_restores_the_weight(out_channels: int, upsample: bool) -> None:
    weight = random_tensor(out_channels, 32, 3, 3)
    packed = convolution.pack_conv_weight(weight, upsample)
    assert relative_error(convolution.unpack_conv_weight(packed, out_channels, upsample), weight) < 5e-3


@needs_kernel
@torch.no_grad()
@pytest.mark.parametrize(("channels", "groups", "size"), [(32, 4, 1), (64, 32, 9), (96, 3, 40), (320, 32, 16)])
def test_group_normalization_of_values_far_from_zero(channels: int, groups: int, size: int) -> None:
    layer = fill_weights(nn.GroupNorm(groups, channels, 1e-6))
    x = (random_tensor(2, channels, size, size) + 10 * random_tensor(1, channels, 1, 1, seed=1)).to(BF16)
    of_kernel, of_pytorch = FusedNorm(layer)(x), FusedNorm(layer)(x.double())  # type: ignore[arg-type]
    expected = layer.double()(x.double())
    for norm in (of_kernel, of_pytorch):
        actual = x.double() * norm.scale[:, :, None, None] + norm.shift[:, :, None, None]
        assert relative_error(actual, expected) < 1e-5


def res_blocks() -> list[ResBlock | VAEResBlock]:
    return [
        ResBlock(32, 64, 64, norm_groups=32, scale_shift=True),
        ResBlock(64, 64, 64, norm_groups=32, scale_shift=True),
        ResBlock(64, 32, 64, norm_groups=32, scale_shift=False),
        VAEResBlock(64, 32, 32),
    ]


@needs_kernel
@needs_packing
@torch.no_grad()
@pytest.mark.parametrize("index", range(4))
def test_a_residual_block_is_more_accurate_than_the_plain_one(index: int) -> None:
    block = fill_weights(res_blocks()[index])
    time_embed = () if isinstance(block, VAEResBlock) else (random_tensor(2, 64, seed=5),)
    low_time_embed = [tensor.to(BF16) for tensor in time_embed]
    x = random_tensor(2, block.conv1.in_channels, 11, 6).to(BF16)  # type: ignore[operator]
    exact = block(x.float(), *time_embed)
    plain = fill_weights(res_blocks()[index]).to(BF16)(x, *low_time_embed)
    fused = cast_for_inference(nn.Sequential(block), BF16)[0]  # type: ignore[index]
    assert isinstance(fused, FusedResBlock)
    assert relative_error(fused(x, *low_time_embed), exact) < relative_error(plain, exact)
    in_float32 = fused.float()(x.float(), *time_embed)
    assert in_float32.dtype == torch.float32 and relative_error(in_float32, exact) < 6e-3  # its weights are rounded


@needs_kernel
@needs_packing
@torch.no_grad()
def test_norm_silu_and_convolution_at_a_networks_end_become_one_layer() -> None:
    config = VAEConfig(base_channels=32, channel_multipliers=(1, 2), blocks_per_level=1)
    z = random_tensor(1, 4, 9, 7)
    exact = fill_weights(VAEDecoder(config))(z)
    plain = fill_weights(VAEDecoder(config)).to(BF16)(z.to(BF16))
    fused = cast_for_inference(fill_weights(VAEDecoder(config)), BF16)
    assert isinstance(fused.conv_out, FusedNormSiluConv)
    assert relative_error(fused(z.to(BF16)), exact) < 1.1 * relative_error(plain, exact)
    assert relative_error(fused.float()(z), exact) < 1e-2


@torch.no_grad()
@pytest.mark.parametrize("obstacle", ["switched off", "AMX"])
def test_where_it_cannot_or_need_not_be_used_layers_are_packed(obstacle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if obstacle == "switched off":
        monkeypatch.setenv("UNSPECKLE_KERNELS", "0")
    else:
        monkeypatch.setattr(convolution, "cpu_features", lambda: frozenset({"amx_bf16"}))
    conv = nn.Conv2d(32, 32, 3, padding=1)
    assert not is_fusable_conv(conv) and not any(is_fusable_block(block) for block in res_blocks())
    if can_pack():
        packed = cast_for_inference(fill_weights(nn.Sequential(conv)), BF16)
        assert isinstance(packed[0], PackedConv)  # type: ignore[index]


@needs_kernel
def test_unsupported_layers_are_recognized() -> None:
    assert is_fusable_conv(nn.Conv2d(32, 64, 3, padding=1)) and is_fusable_conv(UpsampleConv(32))
    unsupported = [
        nn.Conv2d(32, 32, 3),
        nn.Conv2d(32, 32, 3, padding=1, stride=2),
        nn.Conv2d(4, 32, 3, padding=1),
        nn.Conv2d(64, 64, 3, padding=1, groups=2),
        nn.Conv2d(32, 32, 1),
        nn.Conv2d(32, 32, 3, padding=2, dilation=2),
    ]
    assert not any(is_fusable_conv(layer) for layer in unsupported)
    assert not is_fusable_block(ResBlock(32, 32, 64, norm_groups=0, scale_shift=True))


@needs_kernel
def test_a_kernel_that_disagrees_with_pytorch_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    right = convolution._run_convolution
    monkeypatch.setattr(convolution, "_run_convolution", lambda *args, **kwargs: 1.05 * right(*args, **kwargs))
    assert convolution._load_kernel() is None and not convolution.has_conv_kernel()


@needs_kernel
@torch.no_grad()
def test_a_convolution_without_a_bias() -> None:
    layer = fill_weights(nn.Conv2d(32, 32, 3, padding=1, bias=False))
    x = random_tensor(1, 32, 6, 6).to(BF16)
    assert relative_error(FusedConv(layer)(x), layer(x.float())) < 5e-3  # type: ignore[arg-type]
