"""A model is one file: what is written comes back, and whatever else may be in a file is refused in one line."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tiny_models import random_model, save_random_model
from unspeckle.errors import InputError
from unspeckle.generation.pipeline import draw
from unspeckle.generation.request import Request
from unspeckle.model_io.loading import load, open_checkpoint
from unspeckle.model_io.model_file import METADATA_KEY, save


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load(path)
    line = str(caught.value)
    assert "\n" not in line and str(path) in line
    return line


def contents(path: Path) -> tuple[dict, dict]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()[METADATA_KEY]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def written(path: Path, said: object, tensors: dict) -> Path:
    save_file(tensors, path, {METADATA_KEY: said if isinstance(said, str) else json.dumps(said)})
    return path


def test_round_trip(tmp_path: Path) -> None:
    model, path = random_model(), save_random_model(tmp_path)
    again = load(path)
    assert again.card == model.card
    assert again.hash == model.hash
    assert again.denoiser.schedule == model.denoiser.schedule
    assert (again.denoiser.prediction, again.denoiser.time_conditioning) == ("v", "t")
    one, other = model.state_dict(), again.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    ask = Request("a frog", seed=3, count=2)
    assert [a.tobytes() for a in draw(model, ask)] == [b.tobytes() for b in draw(again, ask)]


def test_saving_again_gives_the_same_bytes(tmp_path: Path) -> None:
    path = save_random_model(tmp_path)
    save(load(path), tmp_path / "again.safetensors")
    assert path.read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_bfloat16_halves_the_file_and_rounds_once(tmp_path: Path) -> None:
    path = save_random_model(tmp_path, "bfloat16")
    again, tensors = load(path).state_dict(), random_model().state_dict()
    assert all(torch.equal(again[name], tensors[name].bfloat16().float()) for name in tensors)
    assert path.stat().st_size < 0.55 * save_random_model(tmp_path).stat().st_size


def test_loading_leaves_the_random_state_alone(tmp_path: Path) -> None:
    path = save_random_model(tmp_path)
    before = torch.get_rng_state()
    load(path)
    assert torch.equal(before, torch.get_rng_state())


def test_a_loaded_model_outlives_its_file(tmp_path: Path) -> None:
    path = save_random_model(tmp_path)
    model = load(path)
    with path.open("r+b") as file:
        file.truncate(10)
    assert model.hash == random_model().hash


def test_hash_tells_weights_and_configuration_not_the_card() -> None:
    model = random_model()
    first = model.hash
    model.card = replace(model.card, name="another", steps=7)
    assert model.hash == first
    model.denoiser.prediction = "x"
    assert model.hash != first
    model.denoiser.prediction = "v"
    with torch.no_grad():
        next(model.text_encoder.parameters()).view(-1)[0] += 1e-6
    assert model.hash != first


def test_models_from_before_keep_their_hash() -> None:
    """What the network learnt to be since, and this one is not, leaves it alone: records and students name it."""
    model = random_model()
    for tensor in model.state_dict().values():
        tensor.fill_(0.5)
    assert model.hash == "a68fadf9ddec"  # computed before there were drafts


def test_a_model_that_cannot_be_stored_leaves_the_old_file(tmp_path: Path) -> None:
    path = save_random_model(tmp_path)
    before = path.read_bytes()
    model = random_model()
    model.denoiser.time_conditioning = lambda t, schedule: t
    with pytest.raises(InputError, match="clock"):
        save(model, path)
    with pytest.raises(InputError, match="float32, bfloat16, int8"):
        save(random_model(), path, "float8")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_strict_about_tensors(tmp_path: Path) -> None:
    said, tensors = contents(save_random_model(tmp_path))
    path, name = tmp_path / "bad.safetensors", "network.conv_in.weight"
    without = {k: v for k, v in tensors.items() if k != name}
    assert f"lacks the tensor '{name}'" in refusal(written(path, said, without))
    assert "spare tensor 'network.more'" in refusal(written(path, said, {**tensors, "network.more": torch.ones(1)}))
    assert "spare tensor 'else.more'" in refusal(written(path, said, {**tensors, "else.more": torch.ones(1)}))
    assert "(2, 2)" in refusal(written(path, said, {**tensors, name: torch.ones(2, 2)}))
    hollow = tensors[name].clone()
    hollow.view(-1)[5] = torch.nan
    assert "not finite" in refusal(written(path, said, {**tensors, name: hollow}))
    assert "torch.int64" in refusal(written(path, said, {**tensors, name: tensors[name].long()}))
    large = torch.full_like(tensors[name], 3e38)  # whose sum is not finite
    assert load(written(path, said, {**tensors, name: large})).network.state_dict()["conv_in.weight"].max() > 2e38


def test_strict_about_configuration(tmp_path: Path) -> None:
    said, tensors = contents(save_random_model(tmp_path))
    path = tmp_path / "bad.safetensors"

    def says(**changed: object) -> str:
        return refusal(written(path, {**said, **changed}, tensors))

    assert "newer unspeckle" in says(format=99)
    assert "format" in says(format="1")
    assert "'mamba'" in says(network={**said["network"], "kind": "mamba"})
    assert "unknown field 'wings'" in says(network={**said["network"], "wings": 2})
    assert "'width'" in says(network={**said["network"], "width": "16"})
    assert "configuration" in says(network={**said["network"], "width": 1 << 40})
    assert "'vocabulary'" in says(text={k: v for k, v in said["text"].items() if k != "vocabulary"})
    assert "'size'" in says(card={**said["card"], "size": [64, 64, 64]})
    assert "must be an object" in says(card=[])
    lacking = {k: v for k, v in said.items() if k not in ("tokenizer", "clock")}
    assert "lack clock, tokenizer" in refusal(written(path, lacking, tensors))
    for broken in ("{", "[1]", "null", "[" * 100_000):
        assert "damaged" in refusal(written(path, broken, tensors))
    for name, value in (("schedule", {"kind": "magic"}), ("prediction", "z"), ("clock", "noon"), ("tokenizer", "{}")):
        with pytest.raises(InputError):
            load(written(path, {**said, name: value}, tensors))


def test_files_that_are_no_model(tmp_path: Path) -> None:
    whole = save_random_model(tmp_path).read_bytes()
    path = tmp_path / "file.safetensors"

    def says(data: bytes) -> str:
        path.write_bytes(data)
        return refusal(path)

    assert "empty" in says(b"")
    assert "is no .safetensors file" in says(b"Dear model,\nplease draw me a frog.\n")
    assert "pickle" in says(b"PK\x03\x04" + bytes(100))
    assert "pickle" in says(b"\x80\x02}q\x00." + bytes(20))
    assert "is no .safetensors" in says(whole[:5])
    for length in (9, 200, len(whole) // 2, len(whole) - 1):
        assert "damaged or cut off" in says(whole[:length])
    for size in (1 << 62, (1 << 63) - 1, 100_000_001, len(whole) * 2):
        assert "damaged or cut off" in says(struct.pack("<Q", size) + whole[8:])
    save_file({"weight": torch.ones(2)}, path)
    assert "holds no U-Net that is known here" in refusal(path)


def test_where_a_model_lies(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    assert "train command again" in refusal(run)
    save(random_model(), run / "model.safetensors")
    assert open_checkpoint(run).file == run / "model.safetensors"
    assert load(run).hash == random_model().hash
    (tmp_path / "empty").mkdir()
    lora = tmp_path / "tuned"
    (lora / "checkpoints").mkdir(parents=True)
    assert "let it finish" in refusal(lora)
    (lora / "lora.safetensors").touch()
    assert (
        f"holds a LoRA, which changes a model but is none; draw with it by --model CHECKPOINT --lora {lora}/lora"
        in (refusal(lora))
    )
    assert "holds no model.safetensors" in refusal(tmp_path / "empty")
    assert "no such file" in refusal(tmp_path / "nothing")
