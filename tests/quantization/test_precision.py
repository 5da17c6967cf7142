"""Drawing in bfloat16: nearly the image of float32, with the same hash, and replayed to the pixel."""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import unspeckle
from conftest import SDFolder
from tiny_models import save_random_model
from unspeckle.cli import main
from unspeckle.errors import InputError
from unspeckle.generation.metadata import image_metadata
from unspeckle.generation.pipeline import draw
from unspeckle.generation.request import Request
from unspeckle.model import Model
from unspeckle.model_io.model_file import save
from unspeckle.quantization import precision
from unspeckle.quantization.precision import check_precision, is_faster_in, set_precision


def psnr(image: Image.Image, other: Image.Image) -> float:
    difference = np.asarray(image, float) - np.asarray(other, float)
    return 10 * math.log10(255**2 / max(float((difference**2).mean()), 1e-9))


def draw_image(model: Model, **options: object) -> Image.Image:
    return draw(model, Request("a frog on stilts", seed=3, steps=6, **options))[0]  # type: ignore[arg-type]


def test_stable_diffusion_in_bfloat16(sd_folder: SDFolder) -> None:
    exact, low = unspeckle.load(sd_folder()), unspeckle.load(sd_folder(), precision="bfloat16")
    assert low.hash == exact.hash
    assert next(low.network.parameters()).dtype == next(low.autoencoder.parameters()).dtype == torch.bfloat16
    exact_image, low_image = draw_image(exact, size=32), draw_image(low, size=32)
    assert psnr(exact_image, low_image) > 30
    assert "precision" not in image_metadata(exact_image) and image_metadata(low_image)["precision"] == "bfloat16"


def test_text_is_encoded_in_float32_by_weights_left_as_they_are_stored(sd_folder: SDFolder) -> None:
    folder = sd_folder("1", half=True)
    exact, low = unspeckle.load(folder), unspeckle.load(folder, precision="bfloat16")
    assert {parameter.dtype for parameter in low.text_encoder.parameters()} == {torch.float16}
    assert {parameter.dtype for parameter in exact.text_encoder.parameters()} == {torch.float32}
    ids = exact.tokenizer.encode(["a frog on stilts", ""])
    exact_tokens, low_tokens = exact.text_encoder(ids).tokens, low.text_encoder(ids).tokens
    assert low_tokens.dtype == torch.float32 and torch.equal(exact_tokens, low_tokens) and low.hash == exact.hash
    with ThreadPoolExecutor(4) as threads:
        all_tokens = list(threads.map(lambda _: low.text_encoder(ids).tokens, range(40)))
    assert all(torch.equal(tokens, exact_tokens) for tokens in all_tokens)
    assert {parameter.dtype for parameter in low.text_encoder.parameters()} == {torch.float16}


def test_a_model_of_ours_in_bfloat16(tmp_path: Path) -> None:
    file = save_random_model(tmp_path)
    exact, low, auto = (unspeckle.load(file, precision=name) for name in ("float32", "bfloat16", "auto"))
    assert low.hash == exact.hash == auto.hash and auto.precision == "float32"
    assert psnr(draw_image(exact), draw_image(low)) > 30
    assert np.array_equal(draw_image(exact), draw_image(auto))


def test_an_image_records_its_precision_and_is_replayed(
    sd_folder: SDFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["a frog", "-m", str(sd_folder()), "--steps", "3", "--size", "32", "--out", str(tmp_path), "-q"]
    for name in ("bfloat16", "float32"):
        assert main(["draw", *arguments, "--precision", name]) == 0
        path = capsys.readouterr().out.strip()
        with Image.open(path) as image:
            assert image_metadata(image).get("precision", "float32") == name
        assert main(["replay", path, "-m", str(sd_folder()), "-q"]) == 0
        assert "difference: 0" in capsys.readouterr().out


def test_a_model_in_low_precision_is_only_for_drawing(sd_folder: SDFolder, tmp_path: Path) -> None:
    low = unspeckle.load(sd_folder(), precision="bfloat16")
    ours = unspeckle.load(save_random_model(tmp_path), precision="bfloat16")
    assert set_precision(low, "bfloat16") is low
    for name in ("float32", "float16"):
        with pytest.raises(InputError, match="draws in bfloat16, from which there is no way back"):
            set_precision(low, name)
    with pytest.raises(InputError, match="draws in bfloat16 and cannot be saved"):
        save(ours, tmp_path / "low.safetensors")
    assert not (tmp_path / "low.safetensors").exists()


def test_a_guide_model_must_draw_in_the_same_precision(tmp_path: Path) -> None:
    file = save_random_model(tmp_path)
    exact, low = unspeckle.load(file), unspeckle.load(file, precision="bfloat16")
    with pytest.raises(InputError, match="bfloat16"):
        draw_image(exact, guide_model=low)
    draw_image(low, guide_model=low)


def test_an_unknown_precision_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["draw", "a frog", "--precision", "int3"]) == 2
    assert "--precision 'int3': unknown; choose one of auto, float32, bfloat16, float16" in capsys.readouterr().err


def test_which_precisions_devices_have() -> None:
    for device in ("mps", "cuda", "cuda:1", "cpu"):
        for name in ("auto", "float32", "bfloat16", "float16"):
            assert check_precision(name, device) == name
    for device in ("mps", "mps:0", "cuda"):
        with pytest.raises(InputError, match=f"int8: runs on CPUs only, not on {device}"):
            check_precision("int8", device)


@pytest.mark.parametrize(
    ("features", "is_faster"),
    [
        ({"avx512f", "avx512_bf16"}, True),
        ({"avx512f", "amx_bf16"}, True),
        ({"avx2", "avx512f", "avx512_vnni"}, False),
    ],
)
def test_the_processor_decides_the_precision_however_busy_it_is(
    monkeypatch: pytest.MonkeyPatch, features: set[str], is_faster: bool
) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(precision, "cpu_features", lambda: frozenset(features))
    monkeypatch.setattr(precision, "time_convolution", None)  # which is not called
    assert is_faster_in("cpu", torch.bfloat16) is is_faster


def test_the_compute_capability_of_a_gpu_decides_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, is_faster in (((9, 0), True), ((8, 6), True), ((7, 5), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert is_faster_in("cuda:1", torch.bfloat16) is is_faster


@pytest.mark.parametrize(
    ("low_seconds", "full_seconds", "is_faster", "measurements"),
    [
        ([5.0], [10.0], True, 2),
        ([30.0, 5.0], [10.0, 10.0], True, 4),  # disturbed once
        ([9.0, 8.5, 9.0], [10.0, 10.0, 30.0], False, 6),
        ([90.0, 90.0, 90.0], [10.0, 10.0, 10.0], False, 6),
    ],
)
@pytest.mark.parametrize("unknown", ["no features", "oneDNN restricted", "mps"])
def test_where_nothing_is_known_it_is_measured(
    monkeypatch: pytest.MonkeyPatch,
    unknown: str,
    low_seconds: list[float],
    full_seconds: list[float],
    is_faster: bool,
    measurements: int,
) -> None:
    seconds = {torch.bfloat16: iter(low_seconds), torch.float32: iter(full_seconds)}
    calls: list[torch.dtype] = []

    def time_convolution(device: str, dtype: torch.dtype) -> float:
        calls.append(dtype)
        return next(seconds[dtype])

    if unknown == "oneDNN restricted":
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    elif unknown == "no features":
        monkeypatch.setattr(precision, "cpu_features", frozenset)
    monkeypatch.setattr(precision, "time_convolution", time_convolution)
    device = "mps" if unknown == "mps" else "cpu"
    assert is_faster_in(device, torch.bfloat16) is is_faster and len(calls) == measurements
