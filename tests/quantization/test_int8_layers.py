"""Layers, networks and models with products of 8-bit integers: nearly what the exact ones compute."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import tiny_models
import unspeckle
from closeness import module_types, psnr, random_tensor, relative_error
from conftest import SDFolder
from tiny_networks import STABLE_DIFFUSION_UNET, TRANSFORMER, fill_weights
from unspeckle.cli import main
from unspeckle.denoiser import Conditioning
from unspeckle.errors import InputError
from unspeckle.generation.metadata import image_metadata
from unspeckle.generation.request import Request
from unspeckle.kernels.inference import cast_for_inference
from unspeckle.model import Model
from unspeckle.model_io.model_file import save
from unspeckle.networks.layers import GatedFeedForward
from unspeckle.networks.lora import init_adapters
from unspeckle.networks.transformer import Transformer
from unspeckle.networks.unet import UNet
from unspeckle.output.png import read_png
from unspeckle.quantization.int8_layers import (
    QuantizedConv,
    QuantizedFeedForward,
    QuantizedLinear,
    QuantizedSelfAttention,
    can_quantize,
    quantize_layers,
)
from unspeckle.quantization.precision import AUTO, check_precision, resolve_precision, set_precision

BF16 = torch.bfloat16
C_NOISE = torch.tensor([3.0, 800.0])
# Peak signal-to-noise ratios of images by 8-bit products: similar to the exact ones, but not the same.
MIN_PSNR, MAX_PSNR = 25, 60
pytestmark = pytest.mark.skipif(not can_quantize(), reason="needs AVX-512 VNNI, and oneDNN in PyTorch")


@torch.no_grad()
@pytest.mark.parametrize(
    ("layer", "shape", "max_error"),
    [
        (nn.Linear(24, 40), (2, 7, 24), 0.012),
        (nn.Linear(24, 40, bias=False), (3, 5, 7, 24), 0.012),
        (nn.Conv2d(24, 40, 1), (2, 24, 5, 7), 0.012),
        (nn.Conv2d(6, 10, 3, padding=1), (2, 6, 9, 5), 0.016),
        (nn.Conv2d(6, 10, 3, stride=2, padding=1, bias=False), (1, 6, 8, 8), 0.016),
        (GatedFeedForward(24), (2, 9, 24), 0.02),
    ],
)
@pytest.mark.usefixtures("implementation")
def test_the_error_of_each_layer_is_that_of_8_bits(layer: nn.Module, shape: tuple[int, ...], max_error: float) -> None:
    """And not much less: it would show that the layer was not quantized."""
    x = random_tensor(*shape, seed=1).to(BF16)
    exact = fill_weights(layer)(x.float())
    quantized: nn.Module
    if isinstance(layer, GatedFeedForward):
        quantized = QuantizedFeedForward(layer)
    elif isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1):
        quantized = QuantizedConv(layer)
    else:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        quantized = QuantizedLinear(layer.weight, layer.bias)
    out = quantized(x)
    assert out.dtype == BF16 and out.shape == exact.shape and 0.003 < relative_error(out, exact) < max_error


@torch.no_grad()
@pytest.mark.usefixtures("implementation")
def test_a_row_with_large_values_does_not_change_the_others() -> None:
    layer, x = QuantizedLinear(random_tensor(40, 24), None), random_tensor(9, 24, seed=1).to(BF16)
    before = layer(x)
    x[4] *= 1000
    after = layer(x)
    assert torch.equal(after[:4], before[:4]) and torch.equal(after[5:], before[5:])


@torch.no_grad()
@pytest.mark.usefixtures("implementation")
def test_an_image_with_large_values_does_not_change_the_others() -> None:
    layer = QuantizedConv(fill_weights(nn.Conv2d(6, 10, 3, padding=1)))
    x = random_tensor(3, 6, 9, 5, seed=1).to(BF16)
    alone = [layer(image) for image in x.split(1)]
    x[1] *= 1000
    out = layer(x.contiguous(memory_format=torch.channels_last))
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(out[:1], alone[0]) and torch.equal(out[2:], alone[2])


@torch.no_grad()
@pytest.mark.usefixtures("implementation")
def test_values_that_are_not_finite_stay_so() -> None:
    """Otherwise nobody would notice that a network overflows."""
    layer = QuantizedLinear(random_tensor(40, 24), random_tensor(40))
    for value in (torch.inf, -torch.inf, torch.nan):
        x = random_tensor(9, 24, seed=1).to(BF16)
        x[4, 7] = value
        out = layer(x)
        assert not out[4].isfinite().any() and out[5:].isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("projection", ["conv", "linear", "none"])
@pytest.mark.usefixtures("implementation")
def test_a_whole_unet(projection: str) -> None:
    x, tokens = random_tensor(2, 4, 16, 8), random_tensor(2, 77, 48, seed=3)
    low_inputs = (x.to(BF16), C_NOISE, Conditioning(tokens.to(BF16)))
    config = replace(STABLE_DIFFUSION_UNET, transformer_projection=projection)
    exact = fill_weights(UNet(config))(x, C_NOISE, Conditioning(tokens))
    in_bfloat16 = cast_for_inference(fill_weights(UNet(config)), BF16)(*low_inputs)
    network = cast_for_inference(quantize_layers(fill_weights(UNet(config))), BF16)
    out = network(*low_inputs)
    assert relative_error(in_bfloat16, exact) < relative_error(out, exact) < 0.03
    assert {QuantizedSelfAttention, QuantizedConv, QuantizedFeedForward, QuantizedLinear} <= module_types(network)
    assert network.prepare(Conditioning(tokens.to(BF16))).keys_values.dtype == BF16
    unquantized = {
        name.split(".")[0]
        for name, module in network.named_modules()
        if type(module).__name__.startswith(("Packed", "Fused"))
    }
    assert unquantized >= {"conv_in", "conv_out", "time_embed_1", "time_embed_2", "downsamplers", "upsamplers"}


@torch.no_grad()
def test_a_whole_transformer() -> None:
    tokens, vector = random_tensor(2, 5, 12, seed=1), random_tensor(2, 6, seed=2)
    x, c_noise = random_tensor(2, 3, 16, 16), torch.tensor([0.2, 0.7])
    low_inputs = (x.to(BF16), c_noise, Conditioning(tokens.to(BF16), vector=vector.to(BF16)))
    exact = fill_weights(Transformer(TRANSFORMER))(x, c_noise, Conditioning(tokens, vector=vector))
    in_bfloat16 = cast_for_inference(fill_weights(Transformer(TRANSFORMER)), BF16)(*low_inputs)
    network = cast_for_inference(quantize_layers(fill_weights(Transformer(TRANSFORMER))), BF16)
    assert relative_error(in_bfloat16, exact) < 0.03 and 0.005 < relative_error(network(*low_inputs), exact) < 0.06
    assert QuantizedLinear in module_types(network)


@torch.no_grad()
@pytest.mark.usefixtures("implementation")
def test_the_coarse_predictor_runs_once_an_image_and_is_not_quantized() -> None:
    config = replace(STABLE_DIFFUSION_UNET, coarse_predictor_layers=1)
    in_bfloat16 = cast_for_inference(fill_weights(UNet(config)), BF16)
    quantized = cast_for_inference(quantize_layers(fill_weights(UNet(config))), BF16)
    conditioning = Conditioning(random_tensor(2, 77, 48, seed=3).to(BF16))
    assert QuantizedLinear in module_types(quantized)
    assert isinstance(in_bfloat16.coarse_predictor, nn.Module) and isinstance(quantized.coarse_predictor, nn.Module)
    assert torch.equal(in_bfloat16.coarse_predictor(conditioning), quantized.coarse_predictor(conditioning))


@torch.no_grad()
def test_layers_with_live_adapters_are_not_quantized() -> None:
    network = fill_weights(UNet(STABLE_DIFFUSION_UNET))
    adapters = init_adapters({"network": network}, rank=2, seed=0)
    for _, adapter in adapters.items():
        adapter.up.normal_(std=0.3)
    adapters.attach({"network": network})
    x, tokens, c_noise = random_tensor(1, 4, 16, 8), random_tensor(1, 77, 48, seed=3), torch.tensor([300.0])
    exact = network(x, c_noise, Conditioning(tokens))
    quantized = cast_for_inference(quantize_layers(network), BF16)
    low_inputs = x.to(BF16), c_noise, Conditioning(tokens.to(BF16))
    out = quantized(*low_inputs)
    adapters.set_strength(0)
    assert relative_error(out, exact) < 0.03 and relative_error(quantized(*low_inputs), out) > 0.05
    assert QuantizedConv in module_types(quantized) and QuantizedSelfAttention not in module_types(quantized)


def draw_image(model: Model, **options: object) -> Image.Image:
    return unspeckle.draw(model, Request("a frog on stilts", seed=3, steps=6, **options))[0]  # type: ignore[arg-type]


def test_stable_diffusion(sd_folder: SDFolder, tmp_path: Path) -> None:
    precisions = ("float32", "bfloat16", "int8")
    exact, in_bfloat16, in_int8 = (unspeckle.load(sd_folder("1"), precision=name) for name in precisions)
    assert in_int8.hash == exact.hash and in_int8.precision == "int8"
    assert next(in_int8.network.parameters()).dtype == next(in_int8.autoencoder.parameters()).dtype == BF16
    image, bfloat16_image, int8_image = (draw_image(model, size=32) for model in (exact, in_bfloat16, in_int8))
    assert MIN_PSNR < psnr(image, int8_image) < psnr(image, bfloat16_image)
    with pytest.raises(InputError, match="draws in int8"):
        save(in_int8, tmp_path / "int8.safetensors")


def test_a_model_of_our_own(tmp_path: Path) -> None:
    file = tiny_models.save_random_model(tmp_path)
    exact, in_int8 = unspeckle.load(file), unspeckle.load(file, precision="int8")
    assert in_int8.hash == exact.hash and QuantizedConv in module_types(in_int8.network)
    assert MIN_PSNR < psnr(draw_image(exact), draw_image(in_int8)) < MAX_PSNR


def test_the_embedded_model() -> None:
    exact, in_int8 = unspeckle.load(), unspeckle.load(precision="int8")
    assert MIN_PSNR < psnr(draw_image(exact), draw_image(in_int8)) < MAX_PSNR


def test_an_image_does_not_depend_on_the_others_of_its_batch() -> None:
    model, request = unspeckle.load(precision="int8"), Request("a frog on stilts", seed=3, steps=4)
    alone = unspeckle.draw(model, request)[0]
    in_batch = unspeckle.draw(model, replace(request, seed=1, count=5))[2]
    difference = np.abs(np.asarray(alone, np.int16) - np.asarray(in_batch, np.int16))
    assert difference.max() <= 1


def test_an_image_records_the_precision_and_is_replayed_in_it(
    sd_folder: SDFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(sd_folder("1"))
    options = ["-m", folder, "--steps", "3", "--size", "32", "--out", str(tmp_path), "-q"]
    assert main(["draw", "a frog", *options, "--precision", "int8"]) == 0
    image_path = capsys.readouterr().out.strip()
    assert image_metadata(read_png(Path(image_path)))["precision"] == "int8"
    assert main(["replay", image_path, "-m", folder, "-q"]) == 0
    assert "difference: 0" in capsys.readouterr().out


def test_it_is_never_chosen_automatically_and_refused_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unspeckle.quantization.precision.is_faster_in", lambda device, dtype: True)
    assert resolve_precision(AUTO, "cpu") == "bfloat16"
    with pytest.raises(InputError, match="int8: runs on CPUs only, not on cuda; choose bfloat16"):
        check_precision("int8", "cuda")
    monkeypatch.setattr("unspeckle.quantization.int8_layers.cpu_features", lambda: frozenset({"sse2"}))
    model = tiny_models.random_model()
    with pytest.raises(InputError, match="int8: needs a processor with AVX-512 VNNI"):
        set_precision(model, "int8")
    assert model.precision == "float32" and QuantizedConv not in module_types(model.network)
