"""Products of bytes: their kernels say what torch says, their layers and networks nearly what the exact ones say."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_packed_layers import UNET, filled, off
from test_precision import drawn, psnr
from test_transformer import SMALL
from torch import Tensor, nn

import stable_diffusion_files
import tiny_models
import unspeckle
from unspeckle.cli import main
from unspeckle.denoiser import Conditioning
from unspeckle.errors import InputError
from unspeckle.generation.request import Request
from unspeckle.kernels import quantize
from unspeckle.kernels.packed_layers import cast_for_inference
from unspeckle.model import Model
from unspeckle.model_io.model_file import save
from unspeckle.model_io.precision import AUTO, check_precision, resolve_precision, set_precision
from unspeckle.networks.layers import Attention, GatedFeedForward
from unspeckle.networks.lora import init_adapters
from unspeckle.networks.transformer import Transformer
from unspeckle.networks.unet import UNet
from unspeckle.output.png import image_metadata, read_png
from unspeckle.quantization.int8_layers import (
    QuantizedAttention,
    QuantizedConv,
    QuantizedFeedForward,
    QuantizedLinear,
    can_quantize,
    quantize_layers,
)

LOW = torch.bfloat16
pytestmark = pytest.mark.skipif(not can_quantize(), reason="a processor or a torch without products of bytes")


@pytest.fixture(params=["kernel", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """By our kernels, and without them."""
    if request.param == "torch":
        monkeypatch.setattr(quantize, "_load_kernel", lambda: None)
    elif quantize._load_kernel() is None:
        pytest.skip("no compiler, or a processor without bfloat16")
    yield request.param


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def told(rows: quantize.QuantizedRows) -> Tensor:
    return (rows.values.float() - quantize.ZERO_POINT) * rows.scales[:, None]


@pytest.mark.parametrize("shape", [(1, 1), (3, 16), (37, 70), (64, 321)])
def test_rows_are_told_within_half_a_step(shape: tuple[int, int], way: str) -> None:
    x = (noise(*shape) * torch.logspace(-3, 3, shape[0])[:, None]).to(LOW)
    x[-1] = 0
    found = quantize.quantize_rows(x)
    assert torch.allclose(found.scales[:-1], x[:-1].float().abs().amax(1) / 127)
    assert ((told(found) - x.float()).abs() <= 0.5001 * found.scales[:, None]).all()
    assert (found.values[-1] == quantize.ZERO_POINT).all()


@pytest.mark.parametrize("case", ["both", "above", "below", "zero", "large"])
def test_a_whole_is_told_within_half_a_step_and_nothing_exactly(case: str, way: str) -> None:
    x = noise(2, 5, 70, 70) * (1e30 if case == "large" else 1)
    x = {"above": x.abs() + 1, "below": -x.abs() - 1, "zero": 0 * x}.get(case, x)
    x = x.to(LOW).contiguous(memory_format=torch.channels_last)
    x[0, 0, 0, 0] = 0
    found, scale, zero = quantize.quantize_tensor(x)
    assert found.stride() == x.stride() and found[0, 0, 0, 0] == zero
    assert ((found.float() - zero) * scale - x.float()).abs().max() <= 1.0001 * scale  # the zero is rounded as well
    assert case == "zero" or {int(found.min()), int(found.max())} == {0, 255}


@pytest.mark.parametrize("width", [1, 16, 75])
def test_what_follows_a_product(width: int, way: str) -> None:
    x, scales, bias = noise(9, 2 * width).to(LOW), noise(9, seed=1).abs(), noise(2 * width, seed=2)
    made = x.float() * scales[:, None] + bias
    value, gate = made.chunk(2, 1)
    gated = value * F.gelu(gate)
    found = quantize.quantize_geglu(x, scales, bias)
    assert ((told(found) - gated).abs() <= 0.51 * found.scales[:, None] + 1e-6).all()
    assert torch.allclose(quantize.scale_rows_(x.clone(), scales, None).float(), made - bias, rtol=5e-3, atol=1e-3)
    assert torch.allclose(quantize.scale_rows_(x, scales, bias).float(), made, rtol=5e-3, atol=1e-3)


def test_every_count_of_threads_says_the_same() -> None:
    threads, x, said = torch.get_num_threads(), noise(1, 9, 60, 70).to(LOW), []
    for count in (1, 3):
        torch.set_num_threads(count)
        said.append((*quantize.quantize_rows(x.view(-1, 70)), *quantize.quantize_tensor(x)))
    torch.set_num_threads(threads)
    assert all(map(torch.equal, *said))


@pytest.mark.parametrize(
    "part", ["_torch_quantize_rows", "_torch_quantize_geglu", "_torch_quantize_tensor", "_torch_scale_rows"]
)
def test_a_kernel_that_disagrees_is_not_used(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if quantize._load_kernel() is None:
        pytest.skip("no compiler, or a processor without bfloat16")
    quantize._load_kernel.cache_clear()
    plain = getattr(quantize, part)
    monkeypatch.setattr(quantize, part, lambda x, *more: plain(2 * x, *more))
    assert quantize._load_kernel() is None
    quantize._load_kernel.cache_clear()


@torch.no_grad()
@pytest.mark.parametrize(
    ("layer", "shape", "most"),
    [
        (nn.Linear(24, 40), (2, 7, 24), 0.012),
        (nn.Linear(24, 40, bias=False), (3, 5, 7, 24), 0.012),
        (nn.Conv2d(24, 40, 1), (2, 24, 5, 7), 0.012),
        (nn.Conv2d(6, 10, 3, padding=1), (2, 6, 9, 5), 0.016),
        (nn.Conv2d(6, 10, 3, stride=2, padding=1, bias=False), (1, 6, 8, 8), 0.016),
        (GatedFeedForward(24), (2, 9, 24), 0.02),
    ],
)
def test_each_layer(layer: nn.Module, shape: tuple[int, ...], most: float, way: str) -> None:
    """Off by what rounding to 8 bits costs, and by not much less: a layer that was left as it was would show."""
    x = noise(*shape, seed=1).to(LOW)
    exact = filled(layer)(x.float())
    made: nn.Module
    if isinstance(layer, GatedFeedForward):
        made = QuantizedFeedForward(layer)
    elif isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1):
        made = QuantizedConv(layer)
    else:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        made = QuantizedLinear(layer.weight, layer.bias)
    said = made(x)
    assert said.dtype == LOW and said.shape == exact.shape and 0.003 < off(said, exact) < most


@torch.no_grad()
def test_a_large_place_costs_the_others_nothing(way: str) -> None:
    layer, x = QuantizedLinear(noise(40, 24), None), noise(9, 24, seed=1).to(LOW)
    plain = layer(x)
    x[4] *= 1000
    assert torch.equal(layer(x)[:4], plain[:4]) and torch.equal(layer(x)[5:], plain[5:])


@torch.no_grad()
def test_a_loud_picture_costs_those_beside_it_nothing(way: str) -> None:
    layer, x = QuantizedConv(filled(nn.Conv2d(6, 10, 3, padding=1))), noise(3, 6, 9, 5, seed=1).to(LOW)
    alone = [layer(one) for one in x.split(1)]
    x[1] *= 1000
    said = layer(x.contiguous(memory_format=torch.channels_last))
    assert said.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(said[:1], alone[0]) and torch.equal(said[2:], alone[2])


@torch.no_grad()
def test_what_is_not_finite_stays_so(way: str) -> None:
    """Or a network that overflows would not be told of."""
    layer = QuantizedLinear(noise(40, 24), noise(40))
    for value in (torch.inf, -torch.inf, torch.nan):
        x = noise(9, 24, seed=1).to(LOW)
        x[4, 7] = value
        said = layer(x)
        assert not said[4].isfinite().any() and said[5:].isfinite().all()


def kinds(module: nn.Module) -> set[type]:
    return {type(one) for one in module.modules()}


@torch.no_grad()
@pytest.mark.parametrize("projection", ["conv", "linear", "none"])
def test_a_whole_network(projection: str, way: str) -> None:
    x, words, clock = noise(2, 4, 16, 8), noise(2, 77, 48, seed=3), torch.tensor([3.0, 800.0])
    config = replace(UNET, transformer_projection=projection)
    exact = filled(UNet(config))(x, clock, Conditioning(words))
    low = cast_for_inference(filled(UNet(config)), LOW)(x.to(LOW), clock, Conditioning(words.to(LOW)))
    network = cast_for_inference(quantize_layers(filled(UNet(config))), LOW)
    said = network(x.to(LOW), clock, Conditioning(words.to(LOW)))
    assert off(low, exact) < off(said, exact) < 0.03
    assert {QuantizedAttention, QuantizedConv, QuantizedFeedForward, QuantizedLinear} <= kinds(network)
    assert network.prepare(Conditioning(words.to(LOW))).tokens.dtype == LOW
    left = {
        name.split(".")[0]
        for name, one in network.named_modules()
        if type(one).__name__.startswith(("Packed", "Fused"))
    }
    assert left >= {"conv_in", "conv_out", "time_embed_1", "time_embed_2", "downsamplers", "upsamplers"}


@torch.no_grad()
def test_the_other_kind_of_network() -> None:
    network, given = filled(Transformer(SMALL)), Conditioning(noise(2, 5, 12, seed=1), vector=noise(2, 6, seed=2))
    x, clock = noise(2, 3, 16, 16), torch.tensor([0.2, 0.7])
    exact = network(x, clock, given)
    near = given._replace(tokens=given.tokens.to(LOW), vector=noise(2, 6, seed=2).to(LOW))
    low = cast_for_inference(filled(Transformer(SMALL)), LOW)(x.to(LOW), clock, near)
    said = cast_for_inference(quantize_layers(network), LOW)(x.to(LOW), clock, near)
    assert off(low, exact) < 0.03 and 0.005 < off(said, exact) < 0.06
    assert QuantizedLinear in kinds(network)


@torch.no_grad()
def test_a_draft_is_made_once_and_stays(way: str) -> None:
    low = cast_for_inference(filled(UNet(replace(UNET, coarse_predictor_layers=1))), LOW)
    least = cast_for_inference(quantize_layers(filled(UNet(replace(UNET, coarse_predictor_layers=1)))), LOW)
    given = Conditioning(noise(2, 77, 48, seed=3).to(LOW))
    assert (
        isinstance(low.coarse_predictor, nn.Module)
        and isinstance(least.coarse_predictor, nn.Module)
        and QuantizedLinear in kinds(least)
    )
    assert torch.equal(low.coarse_predictor(given), least.coarse_predictor(given))


@torch.no_grad()
def test_live_adapters_stay_beside_their_layers() -> None:
    network = filled(UNet(UNET))
    adapters = init_adapters({"network": network}, rank=2, seed=0)
    for _, adapter in adapters.items():
        adapter.up.normal_(std=0.3)
    adapters.attach({"network": network})
    x, given, clock = noise(1, 4, 16, 8), Conditioning(noise(1, 77, 48, seed=3)), torch.tensor([300.0])
    exact = network(x, clock, given)
    low = cast_for_inference(quantize_layers(network), LOW)
    near = x.to(LOW), clock, Conditioning(given.tokens.to(LOW))
    said = low(*near)
    adapters.set_strength(0)
    assert off(said, exact) < 0.03 and off(low(*near), said) > 0.05
    assert QuantizedConv in kinds(low) and Attention in kinds(low)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("stable")
    stable_diffusion_files.tiny_pipeline("1", place / "scratch").save_pretrained(place / "pipe")
    return place / "pipe"


def test_stable_diffusion(folder: Path) -> None:
    exact, low, least = (unspeckle.load(folder, precision=name) for name in ("float32", "bfloat16", "int8"))
    assert least.hash == exact.hash and least.precision == "int8"
    assert next(least.network.parameters()).dtype == next(least.autoencoder.parameters()).dtype == LOW
    one, near, other = (drawn(model, size=32) for model in (exact, low, least))
    assert 25 < psnr(one, other) < psnr(one, near)
    with pytest.raises(InputError, match="draws in int8 and is not to be saved"):
        save(least, folder / "low.safetensors")


def test_our_own(tmp_path: Path) -> None:
    file = tiny_models.save_random_model(tmp_path)
    exact, least = unspeckle.load(file), unspeckle.load(file, precision="int8")
    assert least.hash == exact.hash and QuantizedConv in kinds(least.network)
    assert 25 < psnr(drawn(exact), drawn(least)) < 60


def test_the_embedded_model_draws_the_same_in_it() -> None:
    exact, least = unspeckle.load(), unspeckle.load(precision="int8")
    assert 25 < psnr(drawn(exact), drawn(least)) < 60


def test_a_picture_is_the_same_alone_and_beside_others() -> None:
    model, ask = unspeckle.load(precision="int8"), Request("a frog on stilts", seed=3, steps=4)
    (alone,), beside = unspeckle.draw(model, ask), unspeckle.draw(model, replace(ask, seed=1, count=5))[2]
    apart = np.abs(np.asarray(alone, np.int16) - np.asarray(beside, np.int16))
    assert apart.max() <= 1


def test_a_picture_says_so_and_is_replayed(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["a frog", "-m", str(folder), "--steps", "3", "--size", "32", "--out", str(tmp_path), "-q"]
    assert main(["draw", *words, "--precision", "int8"]) == 0
    picture = capsys.readouterr().out.strip()
    assert image_metadata(read_png(Path(picture)))["precision"] == "int8"
    assert main(["replay", picture, "-m", str(folder), "-q"]) == 0
    assert "difference: 0" in capsys.readouterr().out


def test_it_is_never_chosen_for_anybody_and_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unspeckle.model_io.precision.pays", lambda device, dtype: True)
    assert resolve_precision(AUTO, "cpu") == "bfloat16"
    with pytest.raises(InputError, match="--precision int8: is for processors, not for cuda; choose bfloat16"):
        check_precision("int8", "cuda")
    monkeypatch.setattr("unspeckle.quantization.int8_layers.cpu_features", lambda: frozenset({"sse2"}))
    model: Model = tiny_models.random_model()
    with pytest.raises(
        InputError, match="--precision int8: needs a processor with AVX-512 VNNI, and oneDNN in torch; choose bf"
    ):
        set_precision(model, "int8")
    assert model.precision == "float32" and QuantizedConv not in kinds(model.network)
