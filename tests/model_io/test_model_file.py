"""A model is one file: what is written comes back, and whatever else a file may hold is refused in one line."""

import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model_files import load_error, read_model_file, write_model_file
from tiny_models import random_model, save_random_model
from unspeckle.errors import InputError
from unspeckle.generation.pipeline import draw
from unspeckle.generation.request import Request
from unspeckle.model_io.loading import load
from unspeckle.model_io.model_file import save


def test_round_trip(tmp_path: Path) -> None:
    model, path = random_model(), save_random_model(tmp_path)
    loaded = load(path)
    assert loaded.card == model.card
    assert loaded.hash == model.hash
    assert loaded.denoiser.schedule == model.denoiser.schedule
    assert (loaded.denoiser.prediction, loaded.denoiser.time_conditioning) == ("v", "t")
    saved_tensors, loaded_tensors = model.state_dict(), loaded.state_dict()
    assert saved_tensors.keys() == loaded_tensors.keys()
    assert all(torch.equal(saved_tensors[name], loaded_tensors[name]) for name in saved_tensors)
    request = Request("a frog", seed=3, count=2)
    assert [a.tobytes() for a in draw(model, request)] == [b.tobytes() for b in draw(loaded, request)]


def test_saving_again_gives_the_same_bytes(tmp_path: Path) -> None:
    path = save_random_model(tmp_path)
    save(load(path), tmp_path / "again.safetensors")
    assert path.read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_bfloat16_halves_the_file_and_rounds_once(tmp_path: Path) -> None:
    path = save_random_model(tmp_path, "bfloat16")
    loaded, tensors = load(path).state_dict(), random_model().state_dict()
    assert all(torch.equal(loaded[name], tensors[name].bfloat16().float()) for name in tensors)
    assert path.stat().st_size < 0.55 * save_random_model(tmp_path).stat().st_size


def test_loading_leaves_the_random_state_alone(tmp_path: Path) -> None:
    path = save_random_model(tmp_path)
    random_state = torch.get_rng_state()
    load(path)
    assert torch.equal(random_state, torch.get_rng_state())


def test_a_loaded_model_outlives_its_file(tmp_path: Path) -> None:
    path = save_random_model(tmp_path)
    model = load(path)
    with path.open("r+b") as file:
        file.truncate(10)
    assert model.hash == random_model().hash


def test_the_hash_depends_on_weights_and_configuration_not_on_the_card() -> None:
    model = random_model()
    first_hash = model.hash
    model.card = replace(model.card, name="another", steps=7)
    assert model.hash == first_hash
    model.denoiser.prediction = "x"
    assert model.hash != first_hash
    model.denoiser.prediction = "v"
    with torch.no_grad():
        next(model.text_encoder.parameters()).view(-1)[0] += 1e-6
    assert model.hash != first_hash


def test_older_models_keep_their_hash() -> None:
    """Features that the network was given since, and this one does not have, leave it alone: images and students name
    their model by it."""
    model = random_model()
    for tensor in model.state_dict().values():
        tensor.fill_(0.5)
    assert model.hash == "a68fadf9ddec"  # computed before there were coarse image predictors


def test_a_model_that_cannot_be_stored_leaves_the_old_file(tmp_path: Path) -> None:
    path = save_random_model(tmp_path)
    old_bytes = path.read_bytes()
    model = random_model()
    model.denoiser.time_conditioning = lambda t, schedule: t
    with pytest.raises(InputError, match="time conditioning"):
        save(model, path)
    with pytest.raises(InputError, match="float32, bfloat16, int8"):
        save(random_model(), path, "float8")
    assert path.read_bytes() == old_bytes
    assert list(tmp_path.iterdir()) == [path]


def test_strict_about_tensors(tmp_path: Path) -> None:
    metadata, tensors = read_model_file(save_random_model(tmp_path))
    path, name = tmp_path / "bad.safetensors", "network.conv_in.weight"

    def error(**changes: torch.Tensor | None) -> str:
        changed = {**tensors, **{key.replace("__", "."): tensor for key, tensor in changes.items()}}
        kept = {key: tensor for key, tensor in changed.items() if tensor is not None}
        return load_error(write_model_file(path, metadata, kept))

    assert f"lacks the tensor '{name}'" in error(network__conv_in__weight=None)
    assert "unexpected tensor 'network.more'" in error(network__more=torch.ones(1))
    assert "unexpected tensor 'else.more'" in error(else__more=torch.ones(1))
    assert "(2, 2)" in error(network__conv_in__weight=torch.ones(2, 2))
    with_nan = tensors[name].clone()
    with_nan.view(-1)[5] = torch.nan
    assert "not finite" in error(network__conv_in__weight=with_nan)
    assert "torch.int64" in error(network__conv_in__weight=tensors[name].long())
    large = torch.full_like(tensors[name], 3e38)  # whose sum is not finite, though its values are
    loaded = load(write_model_file(path, metadata, {**tensors, name: large}))
    assert loaded.network.state_dict()["conv_in.weight"].max() > 2e38


def test_strict_about_configuration(tmp_path: Path) -> None:
    metadata, tensors = read_model_file(save_random_model(tmp_path))
    path = tmp_path / "bad.safetensors"

    def error(**changes: object) -> str:
        return load_error(write_model_file(path, {**metadata, **changes}, tensors))

    assert "newer unspeckle" in error(format=99)
    assert "format" in error(format="1")
    assert "'mamba'" in error(network={**metadata["network"], "kind": "mamba"})
    assert "unknown field 'wings'" in error(network={**metadata["network"], "wings": 2})
    assert "'base_channels'" in error(network={**metadata["network"], "base_channels": "16"})
    assert "configuration" in error(network={**metadata["network"], "base_channels": 1 << 40})
    assert "'vocab_size'" in error(text={k: v for k, v in metadata["text"].items() if k != "vocab_size"})
    assert "'size'" in error(card={**metadata["card"], "size": [64, 64, 64]})
    assert "must be an object" in error(card=[])
    incomplete = {k: v for k, v in metadata.items() if k not in ("tokenizer", "time_conditioning")}
    assert "lack time_conditioning, tokenizer" in load_error(write_model_file(path, incomplete, tensors))
    for broken in ("{", "[1]", "null", "[" * 100_000):
        assert "damaged" in load_error(write_model_file(path, broken, tensors))
    wrong = {"schedule": {"kind": "magic"}, "prediction": "z", "time_conditioning": "noon", "tokenizer": "{}"}
    for name, value in wrong.items():
        with pytest.raises(InputError):
            load(write_model_file(path, {**metadata, name: value}, tensors))


def test_files_that_are_no_model(tmp_path: Path) -> None:
    whole = save_random_model(tmp_path).read_bytes()
    path = tmp_path / "file.safetensors"

    def error(content: bytes) -> str:
        path.write_bytes(content)
        return load_error(path)

    assert "empty" in error(b"")
    assert "is not a .safetensors file" in error(b"Dear model,\nplease draw me a frog.\n")
    assert "pickle" in error(b"PK\x03\x04" + bytes(100))
    assert "pickle" in error(b"\x80\x02}q\x00." + bytes(20))
    assert "is not a .safetensors" in error(whole[:5])
    for length in (9, 200, len(whole) // 2, len(whole) - 1):
        assert "damaged or cut off" in error(whole[:length])
    for size in (1 << 62, (1 << 63) - 1, 100_000_001, len(whole) * 2):
        assert "damaged or cut off" in error(struct.pack("<Q", size) + whole[8:])
    save_file({"weight": torch.ones(2)}, path)
    assert "holds no supported U-Net" in load_error(path)


def test_run_folders(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    assert "give the same command again" in load_error(run)
    save(random_model(), run / "model.safetensors")
    assert load(run).hash == random_model().hash
    (tmp_path / "empty").mkdir()
    lora_run = tmp_path / "lora"
    (lora_run / "checkpoints").mkdir(parents=True)
    assert "let it finish" in load_error(lora_run)
    (lora_run / "lora.safetensors").touch()
    assert (
        f"holds a LoRA, which changes a model but is none; use it with --model CHECKPOINT --lora {lora_run}/lora"
        in load_error(lora_run)
    )
    assert "holds no model.safetensors" in load_error(tmp_path / "empty")
    assert "no such file" in load_error(tmp_path / "nothing")
