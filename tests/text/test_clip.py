"""CLIP's text encoders and tokenizer against those of transformers, at tiny sizes with random weights."""

import json
from pathlib import Path

import pytest
import torch

from unspeckle.errors import InputError
from unspeckle.text.clip import CLIPTextConfig, CLIPTextEncoder
from unspeckle.text.clip_tokenizer import (
    COMMA_BACKTRACK,
    END_TOKEN,
    OPENAI_MERGES_FILE,
    START_TOKEN,
    CLIPTokenizer,
    _openai_bpe,
)

transformers = pytest.importorskip("transformers")
WORDS = ("a frog on stilts", "", "It's 2024, naïve  café — 日本語 😀!! frogs' <x>", "frog, " * 9)
MERGES = [("o", "g</w>"), ("r", "og</w>"), ("f", "rog</w>"), ("s", "t"), ("o", "n</w>"), ("i", "l"), ("st", "il")]


def tokenizer(pad: str = END_TOKEN) -> CLIPTokenizer:
    return CLIPTokenizer(_openai_bpe(MERGES), pad_tokens=(pad,))


@pytest.mark.parametrize(("act", "projection"), [("quick_gelu", 0), ("gelu", 24)])
@pytest.mark.parametrize("skip", [0, 1, 2])
def test_encoder_is_that_of_transformers(act: str, projection: int, skip: int) -> None:
    theirs_config = transformers.CLIPTextConfig(
        vocab_size=60, hidden_size=32, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4,
        projection_dim=24, hidden_act=act, eos_token_id=59, bos_token_id=58, max_position_embeddings=20,
    )  # fmt: skip
    torch.manual_seed(0)
    make = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    theirs = make(theirs_config).eval()
    for parameter in theirs.parameters():
        parameter.data.normal_(std=0.3)
    config = CLIPTextConfig(32, 3, 4, 80, 60, 20, 59, act == "quick_gelu", projection, skip, normalize_tokens=skip != 2)
    ours = CLIPTextEncoder(config).eval()
    inner = theirs.text_model if projection else theirs
    ours.token_embedding.weight, ours.position_embedding = (
        inner.embeddings.token_embedding.weight,
        inner.embeddings.position_embedding.weight,
    )
    ours.final_norm = inner.final_layer_norm
    for mine, other in zip(ours.layers, inner.encoder.layers, strict=True):
        mine.norm1, mine.norm2, mine.fc1, mine.fc2 = (
            other.layer_norm1, other.layer_norm2, other.mlp.fc1, other.mlp.fc2,
        )  # fmt: skip
        attention = other.self_attn
        mine.to_q, mine.to_k, mine.to_v = attention.q_proj, attention.k_proj, attention.v_proj
        mine.to_out = attention.out_proj
    if projection:
        ours.text_projection = theirs.text_projection
    ids = torch.randint(0, 58, (3, 20))
    ids[:, 0], ids[0, 7:], ids[1, 12], ids[2, 19] = 58, 59, 59, 59
    ids[1, 13:] = 0  # the padding of OpenCLIP
    with torch.no_grad():
        tokens, vector = ours(ids)
        said = theirs(ids, output_hidden_states=True)
        expected = said.hidden_states[-1 - skip]
        if config.normalize_tokens:
            expected = inner.final_layer_norm(expected)
    for mine, other in ((tokens, expected), (vector, said.text_embeds if projection else said.pooler_output)):
        assert (mine - other).norm() <= 1e-5 * other.norm()


@pytest.mark.parametrize("pad", [END_TOKEN, "!"])
@pytest.mark.parametrize("kept", ["vocab.json", "tokenizer.json"])
def test_tokenizer_is_that_of_transformers(tmp_path: Path, pad: str, kept: str) -> None:
    tokenizer(pad).write_folder(tmp_path)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    if kept == "tokenizer.json":
        theirs.save_pretrained(tmp_path)
        (tmp_path / "vocab.json").unlink(missing_ok=True)
    ours = CLIPTokenizer.from_folder(tmp_path)
    for words in WORDS:
        words = words.replace("!", "") if pad == "!" else words  # theirs takes it for padding; OpenCLIP never did
        expected = theirs(words, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        assert torch.equal(ours.encode([words])[:, 0], expected)


def test_clips_own_merges_make_clips_vocabulary() -> None:
    clip = Path("/work/shared/data/clip")
    if not (clip / OPENAI_MERGES_FILE).is_file():
        pytest.skip("CLIP's vocabulary is not here")
    ours = CLIPTokenizer.from_folder(clip)
    assert (ours.start_id, ours.end_id, ours.bpe.get_vocab_size()) == (49406, 49407, 49408)
    ids = ours.encode(["a photo of an astronaut riding a horse on mars"])[0, 0, :12].tolist()
    assert ids == [49406, 320, 1125, 539, 550, 18376, 6765, 320, 4558, 525, 7496, 49407]


def test_long_prompts_are_cut_into_chunks_of_75() -> None:
    ours = tokenizer()
    rows = ours.encode(["frog " * 150, "frog", ""])[:, 0].unflatten(1, (-1, 77))
    assert rows.shape == (3, 2, 77)
    frog = ours.bpe.token_to_id("frog</w>")
    assert (
        (rows[0, :, 1:76] == frog).all()
        and (rows[0, :, 0] == ours.start_id).all()
        and (rows[0, :, 76] == ours.end_id).all()
    )
    assert torch.equal(rows[1, 1], ours.encode([""])[0, 0])
    assert ours.encode(["frog " * 75]).shape == (1, 1, 77) and ours.encode(["frog " * 76]).shape == (1, 1, 154)


def test_spans_say_where_each_place_of_a_row_lies_in_the_caption() -> None:
    ours, caption = tokenizer(), "frog " * 80
    ids, spans = ours.encode([caption])[0, 0], ours.character_spans(caption)
    assert len(spans) == len(ids) == 154
    words = [(start, end) for start, end in spans if end]
    assert words == [(5 * i, 5 * i + 4) for i in range(80)]
    assert all((ids[i] == ours.bpe.token_to_id("frog</w>")) == (spans[i] != (0, 0)) for i in range(154))


@pytest.mark.parametrize(("after", "moves"), [(COMMA_BACKTRACK - 1, True), (COMMA_BACKTRACK, False)])
def test_a_chunk_is_broken_after_a_comma_that_is_near(after: int, moves: bool) -> None:
    ours = tokenizer()
    frog, comma = (ours.bpe.token_to_id(f"{word}</w>") for word in ("frog", ","))
    first, second = ours.encode(["frog " * (74 - after) + "," + " frog" * (after + 5)])[0, 0].view(2, 77).tolist()
    assert first[1:76].count(frog) == (74 - after if moves else 74) and first[75 - after] == comma
    assert second[1:76].count(frog) == (after + 5 if moves else 5)


def test_words_that_look_like_marks_are_words() -> None:
    ours = tokenizer()
    ids = ours.encode([f"a {END_TOKEN} b {START_TOKEN}"])[0, 0].tolist()
    assert ids.count(ours.start_id) == 1 and ids.index(ours.end_id) > 10


@pytest.mark.parametrize(
    ("files", "says"),
    [({}, "neither"), ({"vocab.json": "{", "merges.txt": ""}, "damaged"), ({"tokenizer.json": "[]"}, "damaged"),
     ({"vocab.json": json.dumps({"a": 0}), "merges.txt": ""}, "no token"), ({OPENAI_MERGES_FILE: "no gzip"}, "damaged")],
)  # fmt: skip
def test_damaged_tokenizers_are_one_line(tmp_path: Path, files: dict[str, str], says: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=says) as error:
        CLIPTokenizer.from_folder(tmp_path)
    assert "\n" not in str(error.value)
