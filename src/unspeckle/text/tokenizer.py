"""Captions to token ids: byte-pair encoding that is trained on the corpus's own captions (Sennrich et al. 2016)."""

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as BPE
from torch import Tensor

from unspeckle.errors import InputError

PAD_ID, START_ID, UNKNOWN_ID = 0, 1, 2
SPECIAL_TOKENS = ("<pad>", "<start>", "<unknown>")  # by their ids
MAX_CONTEXT_LENGTH = 64  # ids of a caption; longer ones are cut
MAX_ALPHABET = 4000  # characters with a token of their own
MAX_KNOWN_WORDS = 20_000
MIN_SPELLING_SIMILARITY = 0.78  # of difflib, from 0 to 1: "rabit" and "rabbit" have .91, "art" and "heart" .75
WORD_BREAK = "\ue000"  # in a wording of a caption: the word is split here (see corpus/caption_augmentation.py)
# "4k" is one word, and not the number in it
WORD_PATTERN = re.compile(r"[^\W_]+(?:['’][^\W\d_]+)*")


def split_words(caption: str) -> list[str]:
    """The words of a caption in order, in lower case."""
    return WORD_PATTERN.findall(caption.lower())


class UnknownWord(NamedTuple):
    """A word of a prompt that no caption contained."""

    word: str
    # The known word that is nearest, by meaning or else by spelling; "" if none is near
    nearest: str = ""


class CaptionTokenizer(Protocol):
    """What drawing needs of the tokenizer of any model: a `Tokenizer`, CLIP's, or that of another text encoder."""

    # Ids of a caption, or of one chunk of it.
    context_length: int

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Ids int64 as the model's text encoder takes them, a row for each caption."""

    def character_spans(self, caption: str) -> list[tuple[int, int]]:
        """For each id of the encoded caption, the characters that it stands for as (start, end); (0, 0) for none."""

    def unknown_words(self, prompt: str) -> list[UnknownWord]:
        """The words of the prompt that no caption contained, as far as that is known."""


class Tokenizer:
    """A byte-pair encoding.

    context_length: ids of every caption, L. known_words: the words that the captions contain on which it was trained.
    related_words: by an unknown word, the known one of nearly the same meaning. meaningless_words: with which the
    captions were surrounded in training, so that they say nothing.
    """

    def __init__(
        self,
        bpe: BPE,
        context_length: int,
        known_words: Iterable[str],
        *,
        related_words: Mapping[str, str] | None = None,
        meaningless_words: Iterable[str] = (),
    ) -> None:
        self.bpe, self.context_length, self.known_words = bpe, context_length, frozenset(known_words)
        self.related_words, self.meaningless_words = dict(related_words or {}), frozenset(meaningless_words)

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int = 2048, *, wordings: Iterable[str] = ()) -> "Tokenizer":
        """A tokenizer with about vocab_size ids, and more if the captions have many different characters. The longest
        caption or wording decides its context_length, up to MAX_CONTEXT_LENGTH; the order of the captions nothing.

        wordings: other forms in which the captions will be read; their words are not known words. InputError without
        captions."""
        caption_counts = Counter(captions)
        if not caption_counts:
            raise InputError("no captions to train the tokenizer on: give the images captions, or use --caption")
        bpe = _untrained_bpe()
        texts = sorted({*caption_counts, *(wording.replace(WORD_BREAK, "") for wording in wordings)})
        alphabet = _most_frequent_characters(texts, bpe.normalizer)
        trainer = trainers.BpeTrainer(
            vocab_size=max(vocab_size, 2 * len(alphabet) + 1024),
            special_tokens=list(SPECIAL_TOKENS),
            show_progress=False,
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
        )
        bpe.train_from_iterator(texts, trainer)
        longest = max(len(encoding.ids) for encoding in bpe.encode_batch(texts)) + 1
        word_counts: Counter[str] = Counter()
        for text, count in caption_counts.items():
            word_counts.update(dict.fromkeys(split_words(text), count))
        known_words = (word for word, _ in word_counts.most_common(MAX_KNOWN_WORDS))
        return cls(bpe, min(longest, MAX_CONTEXT_LENGTH), known_words)

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self.bpe.get_vocab_size()

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Ids (B, L) int64: a start token, so that no row is empty, the caption, cut at L, and padding."""
        return self._pad([encoding.ids for encoding in self.bpe.encode_batch(list(captions))])

    def encode_wordings(self, wordings: Sequence[str]) -> Tensor:
        """Ids (B, L) int64 as `encode` gives them, but no id reaches over a WORD_BREAK."""
        return self._pad(self._encode_wordings(wordings))

    def _pad(self, rows: Sequence[list[int]]) -> Tensor:
        padded_ids = torch.full((len(rows), self.context_length), PAD_ID, dtype=torch.int64)
        padded_ids[:, 0] = START_ID
        for padded_row, row in zip(padded_ids, rows, strict=True):
            ids = row[: self.context_length - 1]
            padded_row[1 : 1 + len(ids)] = torch.tensor(ids, dtype=torch.int64)
        return padded_ids

    def _encode_wordings(self, captions: Sequence[str]) -> list[list[int]]:
        """The ids of each wording, all of them."""
        encodings = self.bpe.encode_batch([caption.replace(WORD_BREAK, "") for caption in captions])
        return [
            self._encode_broken_words(caption) if WORD_BREAK in caption else encoding.ids
            for caption, encoding in zip(captions, encodings, strict=True)
        ]

    def _encode_broken_words(self, caption: str) -> list[int]:
        """The ids of a caption in which no id reaches over a WORD_BREAK."""
        pieces = self.bpe.pre_tokenizer.pre_tokenize_str(self.bpe.normalizer.normalize_str(caption))
        parts = (part for piece, _ in pieces for part in piece.split(WORD_BREAK) if part)
        return [token.id for part in parts for token in self.bpe.model.tokenize(part)]

    def are_truncated(self, captions: Sequence[str]) -> list[bool]:
        """Which captions are too long, and lose words at their end."""
        return [len(ids) > self.context_length - 1 for ids in self._encode_wordings(captions)]

    def character_spans(self, caption: str) -> list[tuple[int, int]]:
        """For each id of the encoded caption, the characters that it stands for as (start, end); (0, 0) for none."""
        spans: list[tuple[int, int]] = [(0, 0), *self.bpe.encode(caption).offsets][: self.context_length]
        return spans + [(0, 0)] * (self.context_length - len(spans))

    def unknown_words(self, prompt: str) -> list[UnknownWord]:
        """The words of the prompt that no caption contained, but for those without meaning, in order, each once."""
        familiar = self.known_words | self.meaningless_words
        words = dict.fromkeys(word for word in split_words(prompt) if word not in familiar)
        return [UnknownWord(word, self._nearest_word(word)) for word in words]

    def _nearest_word(self, word: str) -> str:
        """The known word that is nearest by meaning, where the corpus brought keywords, or else by spelling; "" if none
        is near."""
        singular = word.removesuffix("s")
        if related := self.related_words.get(word) or self.related_words.get(singular):
            return related
        near = difflib.get_close_matches(word, sorted(self.known_words), n=1, cutoff=MIN_SPELLING_SIMILARITY)
        return near[0] if near and len(word) > 2 else ""

    def to_json(self) -> str:
        """As text, for a model file. The names of its fields are those of version 0.1."""
        bpe = json.loads(self.bpe.to_str())
        values = {"length": self.context_length, "known": sorted(self.known_words), "bpe": bpe}
        if self.related_words:
            values["related"] = self.related_words
        if self.meaningless_words:
            values["meaningless"] = sorted(self.meaningless_words)
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        """The tokenizer of `to_json`. InputError if the text is damaged."""
        try:
            values = json.loads(text)
            bpe = BPE.from_str(json.dumps(values["bpe"]))
            bpe.encode_special_tokens = True
            return cls(
                bpe,
                int(values["length"]),
                [str(word) for word in values["known"]],
                related_words={str(word): str(known) for word, known in values.get("related", {}).items()},
                meaningless_words=[str(word) for word in values.get("meaningless", [])],
            )
        except Exception as error:  # tokenizers raises bare Exceptions
            raise InputError(
                f"the tokenizer cannot be read ({error}): the file is damaged or of another program"
            ) from error


def _untrained_bpe() -> BPE:
    """Ignores case and Unicode forms, separates punctuation and digits, and marks the start of each word, so that
    "butter fly" is not "butterfly"."""
    bpe = BPE(models.BPE(unk_token=SPECIAL_TOKENS[UNKNOWN_ID]))
    bpe.encode_special_tokens = True  # "<pad>" in a caption means the characters
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    word_starts = pre_tokenizers.Metaspace(prepend_scheme="always")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.Digits(individual_digits=True), word_starts]
    )
    bpe.decoder = decoders.Metaspace(prepend_scheme="always")
    return bpe


def _most_frequent_characters(texts: Sequence[str], normalizer: normalizers.Normalizer) -> list[str]:
    """The MAX_ALPHABET most frequent characters. The trainer would choose them too, but not always the same ones."""
    counts = Counter(c for text in texts for c in normalizer.normalize_str(text) if not c.isspace())
    counts["▁"] = len(texts)  # the mark of a word's start
    return sorted(counts, key=lambda character: (-counts[character], character))[:MAX_ALPHABET]
