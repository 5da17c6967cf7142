"""Words to ids and ids to what a network is given."""

import hashlib
import subprocess
import sys

import pytest
import torch

from unspeckle.errors import InputError
from unspeckle.text.text_encoder import TextEncoder, TextEncoderConfig
from unspeckle.text.tokenizer import START_ID, Tokenizer

CAPTIONS = ["a frog on stilts", "two rabbits left of a frog", "Ein größerer Hase", "a frog wearing a hat", "12 cats"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(CAPTIONS * 3)


def test_captions_come_back(tokenizer: Tokenizer) -> None:
    for caption in CAPTIONS:
        ids = [int(i) for i in tokenizer.encode([caption])[0] if i > START_ID]
        assert tokenizer.bpe.decode(ids).replace("1 2", "12") == caption.lower()  # digits stand alone


def test_word_boundaries_count(tokenizer: Tokenizer) -> None:
    rows = tokenizer.encode(["a frogon stilts", "a frog on stilts", "a  frog\ton stilts"])
    assert not torch.equal(rows[0], rows[1])
    assert torch.equal(rows[1], rows[2])


def test_special_tokens_cannot_be_typed(tokenizer: Tokenizer) -> None:
    for again in (tokenizer, Tokenizer.from_json(tokenizer.to_json())):
        row = again.encode(["frog <pad> frog <start>"])[0]
        words = row[row != 0]
        assert (row[: len(words)] != 0).all() and (words == START_ID).sum() == 1


def test_learning_is_the_same_in_another_process() -> None:
    hanzi = [chr(0x4E00 + i) + chr(0x4E00 + (i * 7) % 900) for i in range(900)]
    program = (
        "from unspeckle.text.tokenizer import Tokenizer; import hashlib\n"
        "hanzi = [chr(0x4E00 + i) + chr(0x4E00 + (i * 7) % 900) for i in range(900)]\n"
        "print(hashlib.md5(Tokenizer.learn(hanzi).to_json().encode()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    learnt = Tokenizer.train(hanzi)
    assert hashlib.md5(learnt.to_json().encode()).hexdigest() == other
    assert (learnt.encode(hanzi) == 2).sum() == 0  # no character is unknown


def test_case_and_unicode_forms_do_not_matter(tokenizer: Tokenizer) -> None:
    rows = tokenizer.encode(["a FROG on stilts", "a frog on stilts", "ｆｒｏｇ", "frog"])
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[2], rows[3])


def test_a_tokenizer_survives_its_json(tokenizer: Tokenizer) -> None:
    again = Tokenizer.from_json(tokenizer.to_json())
    prompts = [*CAPTIONS, "", "zebra 🦓 \u0000"]
    assert torch.equal(again.encode(prompts), tokenizer.encode(prompts))
    assert again.unknown_words("a zebra frog") == ["zebra"]


@pytest.mark.parametrize("text", ["", "{}", '{"bpe": 1, "length": 3, "known": []}', '{"bpe": {}, "length": "x"}'])
def test_damaged_tokenizers_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="tokenizer cannot be read"):
        Tokenizer.from_json(text)


def test_learning_is_the_same_in_any_order() -> None:
    assert Tokenizer.train(CAPTIONS).to_json() == Tokenizer.train(reversed(CAPTIONS)).to_json()


def test_the_longest_caption_fits_and_a_longer_one_is_cut(tokenizer: Tokenizer) -> None:
    assert tokenizer.are_truncated(CAPTIONS) == [False] * len(CAPTIONS)
    assert tokenizer.are_truncated(["frog " * 100]) == [True]
    assert tokenizer.encode(["frog " * 100]).shape == (1, tokenizer.context_length)


def test_words_that_were_never_heard_are_named_once_in_order(tokenizer: Tokenizer) -> None:
    assert tokenizer.unknown_words("A zebra on Stilts, zebra and yak's") == ["zebra", "and", "yak's"]


def test_no_captions_is_an_input_error() -> None:
    with pytest.raises(InputError, match="--caption"):
        Tokenizer.train([])


def test_encoder_ignores_padding_and_the_rest_of_the_batch(tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    encoder = TextEncoder(TextEncoderConfig(tokenizer.vocab_size, tokenizer.context_length, 32, 2, 16)).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ids = tokenizer.encode(["a frog", "two rabbits left of a frog"])
    with torch.no_grad():
        both, alone = encoder(ids), encoder(ids[:1])
        short = TextEncoder(TextEncoderConfig(tokenizer.vocab_size, 4, 32, 2, 16)).eval()
        short.load_state_dict({**encoder.state_dict(), "position_embedding": encoder.position_embedding[:4]})
        less = short(ids[:1, :4])
    torch.testing.assert_close(both.tokens[:1], alone.tokens)
    torch.testing.assert_close(less.tokens[:, :3], alone.tokens[:, :3])
    torch.testing.assert_close(less.vector, alone.vector)
    assert both.mask is not None and both.mask.sum(1).tolist() == (ids > 0).sum(1).tolist()
    assert (both.vector[0] - both.vector[1]).abs().max() > 1e-3


def test_an_empty_caption_still_has_something_to_attend_to(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode([""])[0].tolist() == [START_ID] + [0] * (tokenizer.context_length - 1)
