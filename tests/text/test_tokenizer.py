"""The tokenizer that is trained on a corpus's captions."""

import hashlib
import json
import subprocess
import sys

import pytest
import torch

from unspeckle.errors import InputError
from unspeckle.text.tokenizer import PAD_ID, START_ID, UNKNOWN_ID, WORD_BREAK, Tokenizer, UnknownWord

CAPTIONS = ["a frog on stilts", "two rabbits left of a frog", "Ein größerer Hase", "a frog wearing a hat", "12 cats"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(CAPTIONS * 3)


def test_decoding_restores_captions(tokenizer: Tokenizer) -> None:
    for caption in CAPTIONS:
        ids = [int(i) for i in tokenizer.encode([caption])[0] if i > START_ID]
        assert tokenizer.bpe.decode(ids).replace("1 2", "12") == caption.lower()  # each digit is a token


def test_word_boundaries_matter(tokenizer: Tokenizer) -> None:
    rows = tokenizer.encode(["a frogon stilts", "a frog on stilts", "a  frog\ton stilts"])
    assert not torch.equal(rows[0], rows[1])
    assert torch.equal(rows[1], rows[2])


def test_special_tokens_in_a_caption_are_characters(tokenizer: Tokenizer) -> None:
    for each in (tokenizer, Tokenizer.from_json(tokenizer.to_json())):
        row = each.encode(["frog <pad> frog <start>"])[0]
        ids = row[row != PAD_ID]
        assert (row[: len(ids)] != PAD_ID).all() and (ids == START_ID).sum() == 1


def many_characters() -> list[str]:
    """Two characters a caption, 900 different ones."""
    return [chr(0x4E00 + i) + chr(0x4E00 + (i * 7) % 900) for i in range(900)]


def test_training_is_the_same_in_another_process() -> None:
    program = (
        "import hashlib, sys\n"
        "from unspeckle.text.tokenizer import Tokenizer\n"
        "print(hashlib.md5(Tokenizer.train(sys.argv[1:]).to_json().encode()).hexdigest())"
    )
    command = [sys.executable, "-c", program, *many_characters()]
    digest = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    tokenizer = Tokenizer.train(many_characters())
    assert hashlib.md5(tokenizer.to_json().encode()).hexdigest() == digest
    assert (tokenizer.encode(many_characters()) == UNKNOWN_ID).sum() == 0


def test_training_does_not_depend_on_the_order_of_captions() -> None:
    assert Tokenizer.train(CAPTIONS).to_json() == Tokenizer.train(reversed(CAPTIONS)).to_json()


def test_case_and_unicode_forms_do_not_matter(tokenizer: Tokenizer) -> None:
    rows = tokenizer.encode(["a FROG on stilts", "a frog on stilts", "ｆｒｏｇ", "frog"])
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[2], rows[3])


def test_a_tokenizer_survives_its_json(tokenizer: Tokenizer) -> None:
    restored = Tokenizer.from_json(tokenizer.to_json())
    prompts = [*CAPTIONS, "", "zebra 🦓 \u0000"]
    assert torch.equal(restored.encode(prompts), tokenizer.encode(prompts))
    assert restored.unknown_words("a zebra frog") == [UnknownWord("zebra")]


@pytest.mark.parametrize("text", ["", "{}", '{"bpe": 1, "length": 3, "known": []}', '{"bpe": {}, "length": "x"}'])
def test_damaged_json_is_an_input_error(text: str) -> None:
    with pytest.raises(InputError, match="tokenizer cannot be read"):
        Tokenizer.from_json(text)


def test_the_longest_caption_fits_and_a_longer_one_is_truncated(tokenizer: Tokenizer) -> None:
    assert tokenizer.are_truncated(CAPTIONS) == [False] * len(CAPTIONS)
    assert tokenizer.are_truncated(["frog " * 100]) == [True]
    assert tokenizer.encode(["frog " * 100]).shape == (1, tokenizer.context_length)


def test_unknown_words_are_listed_once_in_order(tokenizer: Tokenizer) -> None:
    words = [word for word, _ in tokenizer.unknown_words("A zebra on Stilts, zebra and yak's")]
    assert words == ["zebra", "and", "yak's"]


def test_unknown_words_come_with_the_nearest_known_one() -> None:
    """By meaning where the corpus brought keywords, else by spelling; words without meaning are not unknown."""
    tokenizer = Tokenizer.train(CAPTIONS)
    tokenizer.related_words, tokenizer.meaningless_words = {"toad": "frog", "hare": "rabbits"}, frozenset({"please"})
    restored = Tokenizer.from_json(tokenizer.to_json())
    for each in (tokenizer, restored):
        words = each.unknown_words("please a froog, two toads and a hare on stlits, xylophone")
        assert dict(words) == {
            "froog": "frog", "toads": "frog", "and": "", "hare": "rabbits", "stlits": "stilts", "xylophone": "",
        }  # fmt: skip
    assert "related" not in json.loads(Tokenizer.train(CAPTIONS).to_json())


def test_an_empty_caption_is_a_start_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode([""])[0].tolist() == [START_ID] + [PAD_ID] * (tokenizer.context_length - 1)


def test_no_captions_are_an_input_error() -> None:
    with pytest.raises(InputError, match="--caption"):
        Tokenizer.train([])


def test_no_id_reaches_over_a_word_break() -> None:
    tokenizer = Tokenizer.train(CAPTIONS)
    whole, broken = tokenizer.encode_wordings(["a frog on stilts", f"a fr{WORD_BREAK}og on stilts"])
    assert torch.equal(whole, tokenizer.encode(["a frog on stilts"])[0])
    assert (broken != PAD_ID).sum() >= (whole != PAD_ID).sum() and not torch.equal(whole, broken)
    text = tokenizer.bpe.decode([int(i) for i in broken if i > UNKNOWN_ID])
    assert text == "a frog on stilts"


def test_wordings_lengthen_captions_and_are_no_known_words() -> None:
    plain, loose = (Tokenizer.train(CAPTIONS, wordings=w) for w in ([], [f"please draw {c}, 4k" for c in CAPTIONS]))
    assert loose.context_length > plain.context_length and loose.known_words == plain.known_words
    assert not loose.are_truncated([f"please draw {caption}, 4k" for caption in CAPTIONS])[0]
