"""Our own convolutions: what torch's say, nearer the truth with what lies around them, at most twice as far alone."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from closeness import random_tensor, relative_error, reload_kernel
from unspeckle.kernels import convolution
from unspeckle.kernels.convolution import ChannelAffine
from unspeckle.kernels.fused_layers import FusedConv, FusedNorm, FusedNormConv, FusedResBlock, is_fusable
from unspeckle.kernels.packed_layers import PackedConv, can_pack, cast_for_inference
from unspeckle.networks.layers import UpsampleConv, upsample_2x
from unspeckle.networks.unet import ResBlock, UNetConfig
from unspeckle.networks.vae import VAEConfig, VAEDecoder, VAEResBlock

LOW = torch.bfloat16
needs_kernel = pytest.mark.skipif(
    convolution._load_kernel() is None, reason="no compiler, or a processor without bfloat16"
)


@pytest.fixture(autouse=True)
def _anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from reload_kernel(convolution, monkeypatch)


def filled(module: nn.Module) -> nn.Module:
    for place, parameter in enumerate(module.parameters()):
        std = 0.7 * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
        parameter.data = random_tensor(*parameter.shape, seed=place) * std + (parameter.ndim == 1)
    return module.eval().requires_grad_(False)


@needs_kernel
@torch.no_grad()
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize(
    ("batch", "enter", "leave", "high", "wide"),
    [(2, 64, 96, 9, 5), (1, 32, 64, 8, 8), (3, 32, 32, 5, 7), (1, 320, 32, 1, 1), (2, 128, 64, 20, 33),
     (1, 32, 32, 1, 130), (2, 64, 3, 9, 8), (1, 32, 70, 4, 4)],
)  # fmt: skip
def test_a_convolution_with_all_around_it(
    batch: int, enter: int, leave: int, high: int, wide: int, twice: bool
) -> None:
    times = 2 if twice else 1
    x, weight = (
        random_tensor(batch, enter, high, wide).to(LOW),
        random_tensor(leave, enter, 3, 3, seed=1) * (9 * enter) ** -0.5,
    )
    norm, bias = ChannelAffine(*random_tensor(2, batch, enter, seed=2)), random_tensor(batch, leave, seed=3)
    beside = random_tensor(batch, leave, times * high, times * wide, seed=4).to(LOW)

    def plain(precision: torch.dtype) -> Tensor:
        scale, shift, more = (one[:, :, None, None].to(precision) for one in (*norm, bias))
        entered = F.silu(x.to(precision) * scale + shift)
        seen = upsample_2x(entered) if twice else entered
        return F.conv2d(seen, weight.to(precision), padding=1) + more + beside.to(precision)

    made = convolution.pack_conv_weight(weight, twice)
    ours = convolution.winograd_conv2d(x, made, bias, norm=norm, residual=beside, upsample=twice)
    assert relative_error(ours, plain(torch.float64)) < relative_error(plain(LOW), plain(torch.float64))


@needs_kernel
@torch.no_grad()
@pytest.mark.parametrize("mean", [0, 3])
def test_a_convolution_alone_is_at_most_twice_as_far_off(mean: int) -> None:
    x, weight = (random_tensor(2, 128, 16, 16) + mean).to(LOW), random_tensor(64, 128, 3, 3, seed=1) / 34
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    ours = convolution.winograd_conv2d(x, convolution.pack_conv_weight(weight), torch.zeros(64))
    assert relative_error(ours, exact) < 2 * relative_error(F.conv2d(x, weight.to(LOW), padding=1), exact)


@needs_kernel
@torch.no_grad()
def test_one_bias_is_for_all_and_what_does_not_fit_is_an_error() -> None:
    x, weight = random_tensor(5, 32, 4, 4).to(LOW), convolution.pack_conv_weight(random_tensor(64, 32, 3, 3))
    bias, beside = random_tensor(1, 64), random_tensor(5, 64, 4, 4).to(LOW)
    one = convolution.winograd_conv2d(x, weight, bias)
    assert torch.equal(one, convolution.winograd_conv2d(x, weight, bias[0]))
    assert torch.equal(one, convolution.winograd_conv2d(x, weight, bias.expand(5, 64)))
    assert convolution.winograd_conv2d(x[:0], weight, bias).shape == (0, 64, 4, 4)
    with pytest.raises(ValueError, match="64 channels, of 32"):
        convolution.winograd_conv2d(torch.cat([x, x], 1), weight, bias)
    for wrong in (beside[:4], beside.float()):
        with pytest.raises(ValueError, match="to add"):
            convolution.winograd_conv2d(x, weight, bias, residual=wrong)


@needs_kernel
@torch.no_grad()
def test_many_tiles_in_several_groups() -> None:
    """More of them than are kept at once, in rows that begin in one group and end in the next."""
    x, weight = random_tensor(3, 64, 96, 96).to(LOW), random_tensor(64, 64, 3, 3) / 24
    ours = convolution.winograd_conv2d(x, convolution.pack_conv_weight(weight), torch.zeros(64))
    assert relative_error(ours, F.conv2d(x.float(), weight, padding=1)) < 5e-3


@needs_kernel
@torch.no_grad()
@pytest.mark.parametrize("twice", [False, True])
def test_every_count_of_threads_and_every_batch_says_the_same(twice: bool) -> None:
    x, weight = (
        random_tensor(3, 64, 23, 17).to(LOW),
        convolution.pack_conv_weight(random_tensor(96, 64, 3, 3) / 24, twice),
    )
    norm, said = ChannelAffine(*random_tensor(2, 3, 64)), list[Tensor]()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        said.append(convolution.winograd_conv2d(x, weight, torch.ones(96), norm=norm, upsample=twice))
    alone = ChannelAffine(norm.scale[1:2], norm.shift[1:2])
    one = convolution.winograd_conv2d(x[1:2], weight, torch.ones(96), norm=alone, upsample=twice)
    assert all(torch.equal(each, said[0]) for each in said) and torch.equal(one, said[0][1:2])


@needs_kernel
@torch.no_grad()
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("leave", [64, 32, 160, 3])
def test_weights_come_back(leave: int, twice: bool) -> None:
    weight = random_tensor(leave, 32, 3, 3)
    assert (
        relative_error(
            convolution.unpack_conv_weight(convolution.pack_conv_weight(weight, twice), leave, twice), weight
        )
        < 5e-3
    )


@needs_kernel
@torch.no_grad()
@pytest.mark.parametrize(("channels", "groups", "side"), [(32, 4, 1), (64, 32, 9), (96, 3, 40), (320, 32, 16)])
def test_a_normalisation_of_values_far_from_0(channels: int, groups: int, side: int) -> None:
    layer = filled(nn.GroupNorm(groups, channels, 1e-6))
    x = (random_tensor(2, channels, side, side) + 10 * random_tensor(1, channels, 1, 1, seed=1)).to(LOW)
    low, exact = FusedNorm(layer)(x), FusedNorm(layer)(x.double())  # type: ignore[arg-type]
    apply = lambda norm: x.double() * norm.scale[:, :, None, None] + norm.shift[:, :, None, None]  # noqa: E731
    assert relative_error(apply(low), layer.double()(x.double())) < 1e-5
    assert relative_error(apply(exact), layer(x.double())) < 1e-5


def blocks() -> list[nn.Module]:
    config = UNetConfig(base_channels=16)
    adding = UNetConfig(base_channels=16, scale_shift=False)
    return [ResBlock(32, 64, config), ResBlock(64, 64, config), ResBlock(64, 32, adding), VAEResBlock(64, 32, 32)]


@needs_kernel
@pytest.mark.skipif(not can_pack(), reason="torch without oneDNN's packed layers")
@torch.no_grad()
@pytest.mark.parametrize("place", range(4))
def test_a_block_is_nearer_the_truth_than_a_plain_one(place: int) -> None:
    block = filled(blocks()[place])
    time = () if isinstance(block, VAEResBlock) else (random_tensor(2, 64, seed=5),)
    x = random_tensor(2, block.conv1.in_channels, 11, 6)  # type: ignore[operator]
    x = x.to(LOW).float()
    exact = block(x, *time)
    plain = filled(blocks()[place]).to(LOW)(x.to(LOW), *(one.to(LOW) for one in time))
    low = cast_for_inference(nn.Sequential(block), LOW)[0]
    assert isinstance(low, FusedResBlock)
    assert relative_error(low(x.to(LOW), *(one.to(LOW) for one in time)), exact) < relative_error(plain, exact)
    again = low.float()(x, *time)
    assert again.dtype == torch.float32 and relative_error(again, exact) < 6e-3  # its weights are rounded still


@needs_kernel
@pytest.mark.skipif(not can_pack(), reason="torch without oneDNN's packed layers")
@torch.no_grad()
def test_an_exit_reads_what_was_normalised() -> None:
    config = VAEConfig(base_channels=32, channel_multipliers=(1, 2), blocks_per_level=1)
    z = random_tensor(1, 4, 9, 7)
    exact, plain = filled(VAEDecoder(config))(z), filled(VAEDecoder(config)).to(LOW)(z.to(LOW))
    low = cast_for_inference(filled(VAEDecoder(config)), LOW)
    assert isinstance(low.conv_out, FusedNormConv) and relative_error(low(z.to(LOW)), exact) < 1.1 * relative_error(
        plain, exact
    )
    assert relative_error(low.float()(z), exact) < 1e-2


@torch.no_grad()
@pytest.mark.parametrize("without", ["kernel", "need"])
def test_the_plain_way_where_it_does_not_pay(without: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if without == "kernel":
        monkeypatch.setenv("UNSPECKLE_KERNELS", "0")
    else:
        monkeypatch.setattr(convolution, "cpu_features", lambda: frozenset({"amx_bf16"}))
    layer = filled(nn.Sequential(nn.Conv2d(32, 32, 3, padding=1)))
    assert not is_fusable(layer[0]) and not any(is_fusable(block) for block in blocks())  # type: ignore[index]
    if can_pack():
        assert isinstance(cast_for_inference(layer, LOW)[0], PackedConv)  # type: ignore[index]


@needs_kernel
def test_what_is_no_such_convolution_is_left() -> None:
    assert is_fusable(nn.Conv2d(32, 64, 3, padding=1)) and is_fusable(UpsampleConv(32))
    others = [
        nn.Conv2d(32, 32, 3), nn.Conv2d(32, 32, 3, padding=1, stride=2), nn.Conv2d(4, 32, 3, padding=1),
        nn.Conv2d(64, 64, 3, padding=1, groups=2), nn.Conv2d(32, 32, 1),
        nn.Conv2d(32, 32, 3, padding=2, dilation=2), ResBlock(32, 32, UNetConfig(base_channels=16, norm_groups=0)),
    ]  # fmt: skip
    assert not any(is_fusable(one) for one in others)


@needs_kernel
def test_a_kernel_that_disagrees_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    right = convolution._run_convolution
    monkeypatch.setattr(convolution, "_run_convolution", lambda *given: 1.05 * right(*given))
    assert convolution._load_kernel() is None and not convolution.has_conv_kernel()


@needs_kernel
@torch.no_grad()
def test_a_convolution_without_a_bias() -> None:
    layer = filled(nn.Conv2d(32, 32, 3, padding=1, bias=False))
    x = random_tensor(1, 32, 6, 6).to(LOW)
    assert relative_error(FusedConv(layer)(x), layer(x.float())) < 5e-3  # type: ignore[arg-type]
