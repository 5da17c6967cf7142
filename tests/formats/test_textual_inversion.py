"""Words of one's own: every layout of their files, read as diffusers reads them, and refused in one line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import stable_diffusion_files
import unspeckle
from closeness import relative_error
from unspeckle.errors import InputError
from unspeckle.formats.stable_diffusion import textual_inversion

KEPT: dict[str, Any] = {}


@pytest.fixture
def pair(tmp_path_factory: Any) -> Any:
    """A function from a family to a fresh pipeline of diffusers and a fresh model of ours."""

    def made(family: str) -> Any:
        if family not in KEPT:
            folder = tmp_path_factory.mktemp(family)
            stable_diffusion_files.tiny_pipeline(family, folder / "scratch").save_pretrained(folder / "pipe")
            KEPT[family] = folder / "pipe"
        return stable_diffusion_files.load_pipeline(KEPT[family]), unspeckle.load(KEPT[family])

    return made


def read(pipe: Any, model: Any, prompt: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Both's tokens of the prompt by each encoder."""
    found = []
    ids = model.tokenizer.encode([prompt])
    for number, encoder in enumerate(model.text_encoder.encoders):
        tokenizer = pipe.tokenizer_2 if number else pipe.tokenizer
        reader = pipe.text_encoder_2 if number else pipe.text_encoder
        told = pipe.maybe_convert_prompt(prompt, tokenizer)
        theirs = tokenizer(told, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            out = reader(theirs, output_hidden_states=True)
            expected = out.hidden_states[-2] if len(model.text_encoder.encoders) > 1 else out.last_hidden_state
            found.append((encoder(ids[:, number])[0], expected))
    return found


@pytest.mark.parametrize(("family", "width", "count"), [("1", 64, 1), ("1", 64, 3), ("2", 64, 2)])
@pytest.mark.parametrize("layout", ["a1111", "diffusers"])
def test_a_word_is_that_of_diffusers(
    family: str, width: int, count: int, layout: str, pair: Any, tmp_path: Path
) -> None:
    pipe, model = pair(family)
    plain, before = read(pipe, model, "a frogling on stilts"), model.hash
    torch.manual_seed(1)
    vectors, file = torch.randn(count, width), tmp_path / "frogling.safetensors"
    save_file({"emb_params" if layout == "a1111" else "frogling": vectors}, file)
    assert textual_inversion.add_embeddings(model, [file]) == ["frogling"]
    pipe.load_textual_inversion(file, token="frogling")
    for (mine, theirs), (old, _) in zip(read(pipe, model, "a frogling on stilts"), plain, strict=True):
        assert relative_error(mine, theirs) <= 1e-5 and relative_error(mine, old) >= 0.05
    both = read(pipe, model, "two frogs, frogling, on a frogling")
    assert all(relative_error(mine, theirs) <= 1e-5 for mine, theirs in both) and model.hash != before
    assert torch.equal(model.tokenizer.encode(["A FrogLing"]), model.tokenizer.encode(["a frogling"]))


@pytest.mark.parametrize("layout", ["a1111", "diffusers"])
def test_the_two_encoders_of_xl(layout: str, pair: Any, tmp_path: Path) -> None:
    pipe, model = pair("xl")
    torch.manual_seed(1)
    first, second, name = torch.randn(2, 64), torch.randn(2, 128), "<frog-toy>"
    if layout == "a1111":
        name = "toy"
        save_file({"clip_l": first, "clip_g": second}, tmp_path / "toy.safetensors")
        files = [tmp_path / "toy.safetensors"]
    else:
        files = [tmp_path / "learned_embeds.safetensors", tmp_path / "learned_embeds_2.safetensors"]
        for file, vectors in zip(files, (first, second), strict=True):
            save_file({name: vectors}, file)
    assert textual_inversion.add_embeddings(model, files) == [name]
    pipe.load_textual_inversion({name: first}, token=name, text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer)
    pipe.load_textual_inversion(
        {name: second}, token=name, text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2
    )
    for mine, theirs in read(pipe, model, f"a {name} on stilts"):
        assert relative_error(mine, theirs) <= 1e-5


def test_a_word_of_several_vectors_stands_for_its_characters(pair: Any, tmp_path: Path) -> None:
    _, model = pair("1")
    save_file({"emb_params": torch.randn(3, 64)}, tmp_path / "frogling.safetensors")
    textual_inversion.add_embeddings(model, [tmp_path / "frogling.safetensors"])
    ids, spans = model.tokenizer.encode(["a frogling frog"])[0, 0], model.tokenizer.character_spans("a frogling frog")
    assert ids[2:5].tolist() == [
        stable_diffusion_files.VOCAB_SIZE,
        stable_diffusion_files.VOCAB_SIZE + 1,
        stable_diffusion_files.VOCAB_SIZE + 2,
    ]
    assert spans[1:6] == [(0, 1), (2, 10), (2, 10), (2, 10), (11, 15)]
    assert stable_diffusion_files.VOCAB_SIZE not in model.tokenizer.encode(
        ["froglings afrogling"]
    )  # only the word itself


@pytest.mark.parametrize(
    ("held", "says"),
    [({"emb_params": torch.randn(2, 32)}, "reads vectors of 64"), ({"emb_params": torch.tensor(1.0)}, "reads vectors"),
     ({"emb_params": torch.randn(2, 64) * torch.nan}, "not finite"), ({}, "holds 0 tensors"),
     ({"emb_params": torch.zeros(2, 64, dtype=torch.int64)}, "not finite"), ({"frog</w>": torch.randn(64)}, "a token"),
     ({"emb_params": torch.randn(90, 64)}, "reads vectors"), ({"clip_l": torch.randn(1, 64)}, None),
     ({"clip_l": torch.randn(1, 64), "clip_g": torch.randn(1, 128)}, "two text encoders"),
     ({"a": torch.randn(1, 64), "b": torch.randn(1, 64)}, "holds 2 tensors")],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(held: Any, says: str | None, pair: Any, tmp_path: Path) -> None:
    _, model = pair("1")
    save_file(held, tmp_path / "odd.safetensors")
    if says is None:
        assert textual_inversion.add_embeddings(model, [tmp_path / "odd.safetensors"]) == ["clip_l"]
        return
    before = model.hash
    with pytest.raises(InputError, match=says) as error:
        textual_inversion.add_embeddings(model, [tmp_path / "odd.safetensors"])
    assert "\n" not in str(error.value) and model.hash == before


def test_one_encoder_of_xl_is_not_enough(pair: Any, tmp_path: Path) -> None:
    _, model = pair("xl")
    save_file({"<toy>": torch.randn(1, 128)}, tmp_path / "toy.safetensors")
    with pytest.raises(InputError, match="'<toy>' has no vectors for text encoder 1"):
        textual_inversion.add_embeddings(model, [tmp_path / "toy.safetensors"])
    with pytest.raises(InputError, match="already"):
        textual_inversion.add_embeddings(model, [tmp_path / "toy.safetensors"] * 2)
