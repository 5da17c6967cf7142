"""Textual inversions: every layout of their files, read as diffusers reads them, and refused in one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import stable_diffusion_files
import unspeckle
from closeness import relative_error
from conftest import SDFolder
from stable_diffusion_files import VOCAB_SIZE
from unspeckle.errors import InputError
from unspeckle.formats.stable_diffusion.model import StableDiffusionModel
from unspeckle.formats.stable_diffusion.textual_inversion import add_embeddings

PipelineAndModel = Callable[[str], tuple[Any, StableDiffusionModel]]


@pytest.fixture
def fresh_pair(sd_folder: SDFolder) -> PipelineAndModel:
    """A function from a family to a fresh pipeline of diffusers and a fresh model of ours."""

    def load(family: str) -> tuple[Any, StableDiffusionModel]:
        model = unspeckle.load(sd_folder(family))
        assert isinstance(model, StableDiffusionModel)
        return stable_diffusion_files.load_pipeline(sd_folder(family)), model

    return load


@torch.no_grad()
def encode_by_both(pipeline: Any, model: Any, prompt: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Our tokens of the prompt and those of diffusers, by each text encoder."""
    pairs = []
    ids = model.tokenizer.encode([prompt])
    for index, encoder in enumerate(model.text_encoder.encoders):
        tokenizer = pipeline.tokenizer_2 if index else pipeline.tokenizer
        their_encoder = pipeline.text_encoder_2 if index else pipeline.text_encoder
        text = pipeline.maybe_convert_prompt(prompt, tokenizer)
        encoded = tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        output = their_encoder(encoded.input_ids, output_hidden_states=True)
        is_xl = len(model.text_encoder.encoders) > 1
        pairs.append((encoder(ids[:, index])[0], output.hidden_states[-2] if is_xl else output.last_hidden_state))
    return pairs


@pytest.mark.parametrize(("family", "width", "count"), [("1", 64, 1), ("1", 64, 3), ("2", 64, 2)])
@pytest.mark.parametrize("layout", ["a1111", "diffusers"])
def test_a_word_is_read_as_by_diffusers(
    family: str, width: int, count: int, layout: str, fresh_pair: PipelineAndModel, tmp_path: Path
) -> None:
    pipeline, model = fresh_pair(family)
    plain, plain_hash = encode_by_both(pipeline, model, "a frogling on stilts"), model.hash
    torch.manual_seed(1)
    vectors, file = torch.randn(count, width), tmp_path / "frogling.safetensors"
    save_file({"emb_params" if layout == "a1111" else "frogling": vectors}, file)
    assert add_embeddings(model, [file]) == ["frogling"]
    pipeline.load_textual_inversion(file, token="frogling")
    for (ours, theirs), (before, _) in zip(encode_by_both(pipeline, model, "a frogling on stilts"), plain, strict=True):
        assert relative_error(ours, theirs) <= 1e-5 and relative_error(ours, before) >= 0.05
    for ours, theirs in encode_by_both(pipeline, model, "two frogs, frogling, on a frogling"):
        assert relative_error(ours, theirs) <= 1e-5
    assert model.hash != plain_hash
    assert torch.equal(model.tokenizer.encode(["A FrogLing"]), model.tokenizer.encode(["a frogling"]))


@pytest.mark.parametrize("layout", ["a1111", "diffusers"])
def test_the_two_text_encoders_of_xl(layout: str, fresh_pair: PipelineAndModel, tmp_path: Path) -> None:
    pipeline, model = fresh_pair("xl")
    torch.manual_seed(1)
    first, second, word = torch.randn(2, 64), torch.randn(2, 128), "<frog-toy>"
    if layout == "a1111":
        word = "toy"
        save_file({"clip_l": first, "clip_g": second}, tmp_path / "toy.safetensors")
        files = [tmp_path / "toy.safetensors"]
    else:
        files = [tmp_path / "learned_embeds.safetensors", tmp_path / "learned_embeds_2.safetensors"]
        for file, vectors in zip(files, (first, second), strict=True):
            save_file({word: vectors}, file)
    assert add_embeddings(model, files) == [word]
    for vectors, suffix in ((first, ""), (second, "_2")):
        encoder, tokenizer = getattr(pipeline, f"text_encoder{suffix}"), getattr(pipeline, f"tokenizer{suffix}")
        pipeline.load_textual_inversion({word: vectors}, token=word, text_encoder=encoder, tokenizer=tokenizer)
    for ours, theirs in encode_by_both(pipeline, model, f"a {word} on stilts"):
        assert relative_error(ours, theirs) <= 1e-5


def test_all_vectors_of_a_word_belong_to_its_characters(fresh_pair: PipelineAndModel, tmp_path: Path) -> None:
    _, model = fresh_pair("1")
    save_file({"emb_params": torch.randn(3, 64)}, tmp_path / "frogling.safetensors")
    add_embeddings(model, [tmp_path / "frogling.safetensors"])
    ids, spans = model.tokenizer.encode(["a frogling frog"])[0, 0], model.tokenizer.character_spans("a frogling frog")
    assert ids[2:5].tolist() == [VOCAB_SIZE, VOCAB_SIZE + 1, VOCAB_SIZE + 2]
    assert spans[1:6] == [(0, 1), (2, 10), (2, 10), (2, 10), (11, 15)]
    # only the word itself is replaced, not what begins or ends with it
    assert VOCAB_SIZE not in model.tokenizer.encode(["froglings afrogling"])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"emb_params": torch.randn(2, 32)}, "takes vectors of 64"),
        ({"emb_params": torch.tensor(1.0)}, "takes vectors"),
        ({"emb_params": torch.randn(2, 64) * torch.nan}, "not finite"),
        ({}, "holds 0 tensors"),
        ({"emb_params": torch.zeros(2, 64, dtype=torch.int64)}, "not finite"),
        ({"frog</w>": torch.randn(64)}, "a token"),
        ({"emb_params": torch.randn(90, 64)}, "takes vectors"),
        ({"clip_l": torch.randn(1, 64), "clip_g": torch.randn(1, 128)}, "two text encoders"),
        ({"a": torch.randn(1, 64), "b": torch.randn(1, 64)}, "holds 2 tensors"),
    ],
)
def test_what_does_not_fit_is_one_line(
    tensors: dict[str, torch.Tensor], message: str, fresh_pair: PipelineAndModel, tmp_path: Path
) -> None:
    _, model = fresh_pair("1")
    save_file(tensors, tmp_path / "odd.safetensors")
    own_hash = model.hash
    with pytest.raises(InputError, match=message) as error:
        add_embeddings(model, [tmp_path / "odd.safetensors"])
    assert "\n" not in str(error.value) and model.hash == own_hash


def test_any_name_of_a_single_tensor_is_a_word(fresh_pair: PipelineAndModel, tmp_path: Path) -> None:
    _, model = fresh_pair("1")
    save_file({"clip_l": torch.randn(1, 64)}, tmp_path / "odd.safetensors")
    assert add_embeddings(model, [tmp_path / "odd.safetensors"]) == ["clip_l"]


def test_vectors_for_one_text_encoder_of_xl_are_not_enough(fresh_pair: PipelineAndModel, tmp_path: Path) -> None:
    _, model = fresh_pair("xl")
    save_file({"<toy>": torch.randn(1, 128)}, tmp_path / "toy.safetensors")
    with pytest.raises(InputError, match="'<toy>' has no vectors for text encoder 1"):
        add_embeddings(model, [tmp_path / "toy.safetensors"])
    with pytest.raises(InputError, match="another file has vectors of '<toy>' for text encoder 2"):
        add_embeddings(model, [tmp_path / "toy.safetensors"] * 2)
