"""A model's file is opened once, recognized once and built once; files of version 0.1 give the same model."""

import io
import json
from collections import Counter
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import unspeckle
from conftest import SDFolder
from model_files import read_model_file
from tiny_models import random_model, save_random_model
from unspeckle.denoiser import Denoiser
from unspeckle.formats import safetensors_io
from unspeckle.formats.stable_diffusion import writing
from unspeckle.formats.stable_diffusion.checkpoint import StableDiffusionCheckpoint
from unspeckle.formats.weight_dtypes import SCALE_SUFFIX, decode_weights
from unspeckle.model import Model
from unspeckle.model_io.loading import load, open_checkpoint
from unspeckle.model_io.model_file import MODEL_METADATA_KEY, save
from unspeckle.networks import UNet
from unspeckle.old_names import rename_model_metadata, rename_tensor


@pytest.fixture
def openings(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file's name was opened, by safetensors or by Python."""
    count: Counter[str] = Counter()
    safe_open, python_open, path_open = safetensors_io.safe_open, open, Path.open

    def counting_safe_open(file: Any, *args: Any, **kwargs: Any) -> Any:
        count[Path(file).name] += 1
        return safe_open(file, *args, **kwargs)

    def counting_open(file: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(file, str | Path):
            count[Path(file).name] += 1
        return python_open(file, *args, **kwargs)

    def counting_path_open(path: Path, *args: Any, **kwargs: Any) -> Any:
        count[path.name] += 1
        return path_open(path, *args, **kwargs)

    monkeypatch.setattr(safetensors_io, "safe_open", counting_safe_open)
    monkeypatch.setattr("builtins.open", counting_open)
    monkeypatch.setattr(io, "open", python_open)  # by which Path.open opens
    monkeypatch.setattr(Path, "open", counting_path_open)
    return count


@pytest.fixture
def built_networks(monkeypatch: pytest.MonkeyPatch) -> list[UNet]:
    """The U-Nets that are built with memory for their weights, or loaded into."""
    loaded: list[UNet] = []
    load_state_dict = UNet.load_state_dict

    def counting_load(self: UNet, *args: Any, **kwargs: Any) -> Any:
        loaded.append(self)
        return load_state_dict(self, *args, **kwargs)

    monkeypatch.setattr(UNet, "load_state_dict", counting_load)
    return loaded


def test_a_file_of_ours_is_opened_once(tmp_path: Path, openings: Counter[str], built_networks: list[UNet]) -> None:
    path = save_random_model(tmp_path)
    openings.clear()
    load(path)
    assert openings == {path.name: 1} and len(built_networks) == 1


def test_a_run_folder_is_opened_once(tmp_path: Path, openings: Counter[str], built_networks: list[UNet]) -> None:
    save(random_model(), tmp_path / "model.safetensors")
    (tmp_path / "plan.json").write_text("{}")
    openings.clear()
    load(tmp_path)
    assert openings == {"model.safetensors": 1} and len(built_networks) == 1


def test_a_single_file_is_opened_once(
    sd_folder: SDFolder, tmp_path: Path, openings: Counter[str], built_networks: list[UNet]
) -> None:
    checkpoint = open_checkpoint(sd_folder("1"))
    assert isinstance(checkpoint, StableDiffusionCheckpoint)
    writing.write_single_file(checkpoint, tmp_path / "sd.safetensors")
    checkpoint.tokenizer.write_folder(tmp_path)
    openings.clear()
    load(tmp_path / "sd.safetensors")
    assert openings["sd.safetensors"] == 1 and len(built_networks) == 1
    assert max(openings.values()) == 1


def test_each_file_of_a_diffusers_folder_is_opened_once(
    sd_folder: SDFolder, openings: Counter[str], built_networks: list[UNet]
) -> None:
    folder = sd_folder("xl")
    openings.clear()
    load(folder)
    assert openings["model_index.json"] == openings["scheduler_config.json"] == 1
    assert openings["config.json"] == 4  # of U-Net, autoencoder and two text encoders
    assert openings["diffusion_pytorch_model.safetensors"] == openings["model.safetensors"] == 2
    assert len(built_networks) == 1


def model_with_student() -> Model:
    """The random model with a student whose weights are another's."""
    model = random_model()
    network = UNet(replace(model.network.config))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    student_card = replace(model.card, step_counts=(1, 2), sampler="euler_ancestral", clamp_denoised=False)
    model.student = model.with_network(network, student_card)
    return model


def write_format_1(path: Path, old_path: Path) -> dict[str, Tensor]:
    """Write the model file again as version 0.1 would have; returns the tensors by the names of today, as stored."""
    metadata, tensors = read_model_file(path)

    def old_name(name: str) -> str:
        part, _, rest = name.removesuffix(SCALE_SUFFIX).partition(".")
        suffix = SCALE_SUFFIX if name.endswith(SCALE_SUFFIX) else ""
        return f"{part}.{rename_tensor(part, rest, to_old=True)}{suffix}"

    old_metadata = {**rename_model_metadata(metadata, to_old=True), "format": 1}
    save_file(
        {old_name(name): one for name, one in tensors.items()}, old_path, {MODEL_METADATA_KEY: json.dumps(old_metadata)}
    )
    return tensors


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_file_of_version_0_1_is_the_same_model(dtype: str, tmp_path: Path) -> None:
    save(model_with_student(), tmp_path / "new.safetensors", dtype)
    stored = write_format_1(tmp_path / "new.safetensors", tmp_path / "old.safetensors")
    old_metadata, old_tensors = read_model_file(tmp_path / "old.safetensors")
    assert (
        {"clock"} < old_metadata.keys()
        and "network.enter.weight" in old_tensors
        and "student.leave.bias" in old_tensors
    )
    assert old_metadata["student"]["card"]["sampler"] == "euler_a" and old_metadata["student"]["card"]["few"] == [1, 2]
    new, old = load(tmp_path / "new.safetensors"), load(tmp_path / "old.safetensors")
    assert old.hash == new.hash and old.card == new.card
    assert old.student is not None and new.student is not None and old.student.card == new.student.card
    expected, found = decode_weights(stored, tmp_path), old.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_embedded_model_keeps_its_hash() -> None:
    """It was written by version 0.1, whose hash of it this is."""
    with (Path(str(files("unspeckle") / "models" / "embedded.safetensors"))).open("rb") as file:
        assert b'\\"format\\": 1' in file.read(100_000)
    assert load().hash == "36f74eb7b5da"
    assert isinstance(unspeckle.load().denoiser, Denoiser)
