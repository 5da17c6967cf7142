"""Drawing in bfloat16: nearly the picture of float32, of the same hash, and replayed to the pixel."""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import stable_diffusion_files
import tiny_models
import unspeckle
from unspeckle.cli import main
from unspeckle.errors import InputError
from unspeckle.generation.pipeline import draw
from unspeckle.generation.request import Request
from unspeckle.model import Model
from unspeckle.model_io import precision
from unspeckle.model_io.model_file import save
from unspeckle.model_io.precision import set_precision
from unspeckle.output.png import image_metadata


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("stable")
    stable_diffusion_files.tiny_pipeline("1", place / "scratch").save_pretrained(place / "pipe")
    return place / "pipe"


def psnr(one: Image.Image, other: Image.Image) -> float:
    apart = np.asarray(one, float) - np.asarray(other, float)
    return 10 * math.log10(255**2 / max(float((apart**2).mean()), 1e-9))


def drawn(model: Model, **options: object) -> Image.Image:
    return draw(model, Request("a frog on stilts", seed=3, steps=6, **options))[0]  # type: ignore[arg-type]


def test_stable_diffusion_in_bfloat16(folder: Path) -> None:
    exact, low = unspeckle.load(folder), unspeckle.load(folder, precision="bfloat16")
    assert low.hash == exact.hash
    assert next(low.network.parameters()).dtype == next(low.autoencoder.parameters()).dtype == torch.bfloat16
    one, other = drawn(exact, size=32), drawn(low, size=32)
    assert psnr(one, other) > 30
    assert "precision" not in image_metadata(one) and image_metadata(other)["precision"] == "bfloat16"


def test_words_are_read_in_float32_by_weights_left_as_they_are_stored(tmp_path: Path) -> None:
    stable_diffusion_files.tiny_pipeline("1", tmp_path / "scratch").to(torch.float16).save_pretrained(tmp_path / "pipe")
    exact, low = unspeckle.load(tmp_path / "pipe"), unspeckle.load(tmp_path / "pipe", precision="bfloat16")
    assert {one.dtype for one in low.text_encoder.parameters()} == {torch.float16}
    assert {one.dtype for one in exact.text_encoder.parameters()} == {torch.float32}
    ids = exact.tokenizer.encode(["a frog on stilts", ""])
    one, other = exact.text_encoder(ids).tokens, low.text_encoder(ids).tokens
    assert other.dtype == torch.float32 and torch.equal(one, other) and low.hash == exact.hash
    with ThreadPoolExecutor(4) as threads:
        told = list(threads.map(lambda _: low.text_encoder(ids).tokens, range(40)))
    assert all(torch.equal(each, one) for each in told)
    assert {held.dtype for held in low.text_encoder.parameters()} == {torch.float16}


def test_our_own_in_bfloat16(tmp_path: Path) -> None:
    file = tiny_models.save_random_model(tmp_path)
    exact, low, left = (unspeckle.load(file, precision=name) for name in ("float32", "bfloat16", "auto"))
    assert low.hash == exact.hash == left.hash and left.precision == "float32"
    assert psnr(drawn(exact), drawn(low)) > 30
    assert np.array_equal(drawn(exact), drawn(left))


def test_a_picture_says_its_precision_and_is_replayed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["a frog", "-m", str(folder), "--steps", "3", "--size", "32", "--out", str(tmp_path), "-q"]
    for name in ("bfloat16", "float32"):
        assert main(["draw", *words, "--precision", name]) == 0
        picture = capsys.readouterr().out.strip()
        with Image.open(picture) as image:
            assert image_metadata(image).get("precision", "float32") == name
        assert main(["replay", picture, "-m", str(folder), "-q"]) == 0
        assert "difference: 0" in capsys.readouterr().out


def test_a_lowered_model_is_only_for_drawing(folder: Path, tmp_path: Path) -> None:
    low, own = (
        unspeckle.load(folder, precision="bfloat16"),
        unspeckle.load(tiny_models.save_random_model(tmp_path), precision="bfloat16"),
    )
    assert set_precision(low, "bfloat16") is low
    for name in ("float32", "float16"):
        with pytest.raises(InputError, match="draws in bfloat16 and cannot go back"):
            set_precision(low, name)
    with pytest.raises(InputError, match="draws in bfloat16 and is not to be saved"):
        save(own, tmp_path / "low.safetensors")
    assert not (tmp_path / "low.safetensors").exists()


def test_a_guide_must_draw_alike(tmp_path: Path) -> None:
    file = tiny_models.save_random_model(tmp_path)
    exact, low = unspeckle.load(file), unspeckle.load(file, precision="bfloat16")
    with pytest.raises(InputError, match="draws in bfloat16, the model in float32"):
        drawn(exact, guide=low)
    drawn(low, guide=low)


def test_an_unknown_precision_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["draw", "a frog", "--precision", "int3"]) == 2
    assert "--precision 'int3': unknown; choose one of auto, float32, bfloat16, float16" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lower", "full", "wanted", "asked"),
    [
        ([5.0], [10.0], True, 2),
        ([30.0, 5.0], [10.0, 10.0], True, 4),  # disturbed once
        ([9.0, 8.5, 9.0], [10.0, 10.0, 30.0], False, 6),
        ([90.0, 90.0, 90.0], [10.0, 10.0, 10.0], False, 6),
    ],
)
def test_a_busy_moment_does_not_decide_the_precision(
    monkeypatch: pytest.MonkeyPatch, lower: list[float], full: list[float], wanted: bool, asked: int
) -> None:
    taken = {torch.bfloat16: iter(lower), torch.float32: iter(full)}
    calls: list[torch.dtype] = []

    def seconds(device: str, dtype: torch.dtype) -> float:
        calls.append(dtype)
        return next(taken[dtype])

    monkeypatch.setattr(precision, "_seconds", seconds)
    assert precision.is_faster_in("cpu", torch.bfloat16) is wanted and len(calls) == asked
