"""CLIP's text encoders and its tokenizer against those of transformers, at tiny sizes with random weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from closeness import relative_error
from unspeckle.errors import InputError
from unspeckle.text.clip import CLIPTextConfig, CLIPTextEncoder
from unspeckle.text.clip_tokenizer import (
    COMMA_BACKTRACK,
    END_TOKEN,
    OPENAI_MERGES_FILE,
    START_TOKEN,
    CLIPTokenizer,
    openai_bpe,
)

transformers = pytest.importorskip("transformers")
PROMPTS = ("a frog on stilts", "", "It's 2024, naïve  café — 日本語 😀!! frogs' <x>", "frog, " * 9)
MERGES = [("o", "g</w>"), ("r", "og</w>"), ("f", "rog</w>"), ("s", "t"), ("o", "n</w>"), ("i", "l"), ("st", "il")]
VOCAB_SIZE, CONTEXT_LENGTH, START_ID, END_ID = 60, 20, 58, 59


def make_tokenizer(pad_token: str = END_TOKEN) -> CLIPTokenizer:
    return CLIPTokenizer(openai_bpe(MERGES), pad_tokens=(pad_token,))


def random_transformers_encoder(activation: str, projection_width: int) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=24,
        hidden_act=activation,
        eos_token_id=END_ID,
        bos_token_id=START_ID,
        max_position_embeddings=CONTEXT_LENGTH,
    )
    torch.manual_seed(0)
    encoder_class = transformers.CLIPTextModelWithProjection if projection_width else transformers.CLIPTextModel
    encoder = encoder_class(config).eval()
    for parameter in encoder.parameters():
        parameter.data.normal_(std=0.3)
    return encoder


def copy_weights(encoder: CLIPTextEncoder, their_encoder: Any, projection_width: int) -> None:
    """Let the encoder have the modules of transformers' encoder."""
    theirs = their_encoder.text_model if projection_width else their_encoder
    encoder.token_embedding.weight = theirs.embeddings.token_embedding.weight
    encoder.position_embedding = theirs.embeddings.position_embedding.weight
    encoder.final_norm = theirs.final_layer_norm
    if projection_width:
        encoder.text_projection = their_encoder.text_projection
    for layer, their_layer in zip(encoder.layers, theirs.encoder.layers, strict=True):
        layer.norm1, layer.norm2 = their_layer.layer_norm1, their_layer.layer_norm2
        layer.fc1, layer.fc2 = their_layer.mlp.fc1, their_layer.mlp.fc2
        attention = their_layer.self_attn
        layer.to_q, layer.to_k, layer.to_v = attention.q_proj, attention.k_proj, attention.v_proj
        layer.to_out = attention.out_proj


def random_ids() -> torch.Tensor:
    """Ids (3, 20) with end tokens at different positions, and padding of both kinds after them."""
    ids = torch.randint(0, START_ID, (3, CONTEXT_LENGTH))
    ids[:, 0] = START_ID
    ids[0, 7:] = END_ID  # as OpenAI pads
    ids[1, 12], ids[1, 13:] = END_ID, 0  # as OpenCLIP pads
    ids[2, 19] = END_ID
    return ids


@pytest.mark.parametrize(("activation", "projection_width"), [("quick_gelu", 0), ("gelu", 24)])
@pytest.mark.parametrize("skipped_layers", [0, 1, 2])
@torch.no_grad()
def test_encoder_is_that_of_transformers(activation: str, projection_width: int, skipped_layers: int) -> None:
    theirs = random_transformers_encoder(activation, projection_width)
    config = CLIPTextConfig(
        width=32,
        layers=3,
        heads=4,
        feed_forward_width=80,
        vocab_size=VOCAB_SIZE,
        context_length=CONTEXT_LENGTH,
        eos_token_id=END_ID,
        quick_gelu=activation == "quick_gelu",
        projection_width=projection_width,
        skipped_layers=skipped_layers,
        normalize_tokens=skipped_layers != 2,
    )
    ours = CLIPTextEncoder(config).eval()
    copy_weights(ours, theirs, projection_width)
    ids = random_ids()
    tokens, vector = ours(ids)
    output = theirs(ids, output_hidden_states=True)
    expected_tokens = output.hidden_states[-1 - skipped_layers]
    if config.normalize_tokens:
        expected_tokens = ours.final_norm(expected_tokens)
    expected_vector = output.text_embeds if projection_width else output.pooler_output
    assert relative_error(tokens, expected_tokens) <= 1e-5
    assert relative_error(vector, expected_vector) <= 1e-5


@pytest.mark.parametrize("pad_token", [END_TOKEN, "!"])
@pytest.mark.parametrize("kind_of_file", ["vocab.json", "tokenizer.json"])
def test_tokenizer_is_that_of_transformers(tmp_path: Path, pad_token: str, kind_of_file: str) -> None:
    make_tokenizer(pad_token).write_folder(tmp_path)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    if kind_of_file == "tokenizer.json":
        theirs.save_pretrained(tmp_path)
        (tmp_path / "vocab.json").unlink(missing_ok=True)
    ours = CLIPTokenizer.from_folder(tmp_path)
    for prompt in PROMPTS:
        if pad_token == "!":
            prompt = prompt.replace("!", "")  # which theirs takes for padding; OpenCLIP does not
        expected = theirs(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        assert torch.equal(ours.encode([prompt])[:, 0], expected)


def test_clips_own_merges_give_clips_ids() -> None:
    folder = Path("/work/shared/data/clip")
    if not (folder / OPENAI_MERGES_FILE).is_file():
        pytest.skip("needs CLIP's vocabulary")
    tokenizer = CLIPTokenizer.from_folder(folder)
    assert (tokenizer.start_id, tokenizer.end_id, tokenizer.bpe.get_vocab_size()) == (49406, 49407, 49408)
    ids = tokenizer.encode(["a photo of an astronaut riding a horse on mars"])[0, 0, :12].tolist()
    assert ids == [49406, 320, 1125, 539, 550, 18376, 6765, 320, 4558, 525, 7496, 49407]


def test_long_prompts_are_split_into_chunks_of_75() -> None:
    tokenizer = make_tokenizer()
    rows = tokenizer.encode(["frog " * 150, "frog", ""])[:, 0].unflatten(1, (-1, 77))
    assert rows.shape == (3, 2, 77)
    assert (rows[0, :, 1:76] == tokenizer.bpe.token_to_id("frog</w>")).all()
    assert (rows[0, :, 0] == tokenizer.start_id).all() and (rows[0, :, 76] == tokenizer.end_id).all()
    assert torch.equal(rows[1, 1], tokenizer.encode([""])[0, 0])
    assert tokenizer.encode(["frog " * 75]).shape == (1, 1, 77)
    assert tokenizer.encode(["frog " * 76]).shape == (1, 1, 154)


def test_character_spans_give_the_position_of_each_id_in_the_caption() -> None:
    tokenizer, caption = make_tokenizer(), "frog " * 80
    ids, spans = tokenizer.encode([caption])[0, 0], tokenizer.character_spans(caption)
    assert len(spans) == len(ids) == 154
    assert [span for span in spans if span != (0, 0)] == [(5 * i, 5 * i + 4) for i in range(80)]
    frog_id = tokenizer.bpe.token_to_id("frog</w>")
    assert all((token_id == frog_id) == (span != (0, 0)) for token_id, span in zip(ids.tolist(), spans, strict=True))


@pytest.mark.parametrize(("tokens_after_comma", "is_moved"), [(COMMA_BACKTRACK - 1, True), (COMMA_BACKTRACK, False)])
def test_a_chunk_is_broken_after_a_comma_near_its_end(tokens_after_comma: int, is_moved: bool) -> None:
    tokenizer = make_tokenizer()
    frog_id, comma_id = (tokenizer.bpe.token_to_id(f"{word}</w>") for word in ("frog", ","))
    frogs_before = 74 - tokens_after_comma
    prompt = "frog " * frogs_before + "," + " frog" * (tokens_after_comma + 5)
    first, second = tokenizer.encode([prompt])[0, 0].view(2, 77).tolist()
    assert first[1 + frogs_before] == comma_id
    assert first[1:76].count(frog_id) == (frogs_before if is_moved else 74)
    assert second[1:76].count(frog_id) == (tokens_after_comma + 5 if is_moved else 5)


def test_special_tokens_in_a_prompt_are_characters() -> None:
    tokenizer = make_tokenizer()
    ids = tokenizer.encode([f"a {END_TOKEN} b {START_TOKEN}"])[0, 0].tolist()
    assert ids.count(tokenizer.start_id) == 1 and ids.index(tokenizer.end_id) > 10


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "neither"),
        ({"vocab.json": "{", "merges.txt": ""}, "damaged"),
        ({"tokenizer.json": "[]"}, "damaged"),
        ({"vocab.json": json.dumps({"a": 0}), "merges.txt": ""}, "no token"),
        ({OPENAI_MERGES_FILE: "no gzip"}, "damaged"),
    ],
)
def test_damaged_tokenizers_are_errors_of_one_line(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message) as error:
        CLIPTokenizer.from_folder(tmp_path)
    assert "\n" not in str(error.value)
