"""Captions to token ids: byte-pair encoding learnt from the corpus's own captions (Sennrich et al. 2016)."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as BPE
from torch import Tensor

from unspeckle.errors import InputError

PAD_ID, START_ID, UNKNOWN_ID = 0, 1, 2
MAX_CONTEXT_LENGTH = 64  # tokens a caption may keep
MAX_ALPHABET = 4000  # characters that get tokens of their own
MAX_KNOWN_WORDS = 20_000
WORD_PATTERN = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|\d+")


def split_words(caption: str) -> list[str]:
    """The words of a caption, lower case, in order."""
    return WORD_PATTERN.findall(caption.lower())


class Tokenizer:
    """A byte-pair encoding, the fixed length L of its rows, and the words that its captions held."""

    def __init__(self, bpe: BPE, context_length: int, known_words: Iterable[str]) -> None:
        self.bpe, self.context_length, self.known_words = bpe, context_length, frozenset(known_words)

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int = 2048) -> "Tokenizer":
        """Learn at most size tokens; L becomes the longest caption's count of tokens, at most LONGEST."""
        caption_counts = Counter(captions)
        if not caption_counts:
            raise InputError("no captions to learn words from: give the pictures captions, or use --caption")
        bpe = BPE(models.BPE(unk_token="<unknown>"))
        bpe.encode_special_tokens = True  # a caption that says <pad> means the characters
        bpe.normalizer = normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
        )
        word_starts = pre_tokenizers.Metaspace(prepend_scheme="always")  # so that "butter fly" is not "butterfly"
        bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Punctuation(), pre_tokenizers.Digits(individual_digits=True), word_starts]
        )
        bpe.decoder = decoders.Metaspace(prepend_scheme="always")
        texts = sorted(caption_counts)
        character_counts = Counter(c for text in texts for c in bpe.normalizer.normalize_str(text) if not c.isspace())
        character_counts["▁"] = len(texts)
        alphabet = sorted(character_counts, key=lambda c: (-character_counts[c], c))[
            :MAX_ALPHABET
        ]  # the trainer's own choice is not fixed
        trainer = trainers.BpeTrainer(
            vocab_size=max(vocab_size, 2 * len(alphabet) + 1024), special_tokens=["<pad>", "<start>", "<unknown>"],
            show_progress=False, initial_alphabet=alphabet, limit_alphabet=len(alphabet),
        )  # fmt: skip
        bpe.train_from_iterator(texts, trainer)
        longest = max(len(encoding.ids) for encoding in bpe.encode_batch(texts)) + 1
        word_counts: Counter[str] = Counter()
        for text, count in caption_counts.items():
            word_counts.update(dict.fromkeys(split_words(text), count))
        return cls(bpe, min(longest, MAX_CONTEXT_LENGTH), (w for w, _ in word_counts.most_common(MAX_KNOWN_WORDS)))

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        return self.bpe.get_vocab_size()

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Ids (B, L): a start token (so that no row is empty), the caption cut at L, padding."""
        padded_ids = torch.full((len(captions), self.context_length), PAD_ID, dtype=torch.int64)
        padded_ids[:, 0] = START_ID
        for row, encoding in zip(padded_ids, self.bpe.encode_batch(list(captions)), strict=True):
            ids = encoding.ids[: self.context_length - 1]
            row[1 : 1 + len(ids)] = torch.tensor(ids, dtype=torch.int64)
        return padded_ids

    def are_truncated(self, captions: Sequence[str]) -> list[bool]:
        """Which captions lose words at their end."""
        return [len(encoding.ids) > self.context_length - 1 for encoding in self.bpe.encode_batch(list(captions))]

    def character_spans(self, caption: str) -> list[tuple[int, int]]:
        """Which characters each place of the caption's row came from, (from, to); (0, 0) where it came from none."""
        character_spans: list[tuple[int, int]] = [(0, 0), *self.bpe.encode(caption).offsets][: self.context_length]
        return character_spans + [(0, 0)] * (self.context_length - len(character_spans))

    def unknown_words(self, prompt: str) -> list[str]:
        """The prompt's words that no caption held, in order, each once."""
        return list(dict.fromkeys(word for word in split_words(prompt) if word not in self.known_words))

    def to_json(self) -> str:
        return json.dumps(
            {"length": self.context_length, "known": sorted(self.known_words), "bpe": json.loads(self.bpe.to_str())}
        )

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        try:
            values = json.loads(text)
            bpe = BPE.from_str(json.dumps(values["bpe"]))
            bpe.encode_special_tokens = True
            return cls(bpe, int(values["length"]), [str(w) for w in values["known"]])
        except Exception as error:  # tokenizers raises bare Exceptions
            raise InputError(
                f"the tokenizer cannot be read ({error}): the file is damaged or of another program"
            ) from error
