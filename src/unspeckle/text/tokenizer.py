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

PAD, START, UNKNOWN = 0, 1, 2
LONGEST = 64  # tokens a caption may keep
ALPHABET = 4000  # characters that get tokens of their own
WORDS_KEPT = 20_000
WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|\d+")


def words(caption: str) -> list[str]:
    """The words of a caption, lower case, in order."""
    return WORD.findall(caption.lower())


class Tokenizer:
    """A byte-pair encoding, the fixed length L of its rows, and the words that its captions held."""

    def __init__(self, bpe: BPE, length: int, known: Iterable[str]) -> None:
        self.bpe, self.length, self.known = bpe, length, frozenset(known)

    @classmethod
    def learn(cls, captions: Iterable[str], size: int = 2048) -> "Tokenizer":
        """Learn at most size tokens; L becomes the longest caption's count of tokens, at most LONGEST."""
        counted = Counter(captions)
        if not counted:
            raise InputError("no captions to learn words from: give the pictures captions, or use --caption")
        bpe = BPE(models.BPE(unk_token="<unknown>"))
        bpe.encode_special_tokens = True  # a caption that says <pad> means the characters
        bpe.normalizer = normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
        )
        begins = pre_tokenizers.Metaspace(prepend_scheme="always")  # so that "butter fly" is not "butterfly"
        bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Punctuation(), pre_tokenizers.Digits(individual_digits=True), begins]
        )
        bpe.decoder = decoders.Metaspace(prepend_scheme="always")
        texts = sorted(counted)
        letters = Counter(c for text in texts for c in bpe.normalizer.normalize_str(text) if not c.isspace())
        letters["▁"] = len(texts)
        alphabet = sorted(letters, key=lambda c: (-letters[c], c))[:ALPHABET]  # the trainer's own choice is not fixed
        trainer = trainers.BpeTrainer(
            vocab_size=max(size, 2 * len(alphabet) + 1024), special_tokens=["<pad>", "<start>", "<unknown>"],
            show_progress=False, initial_alphabet=alphabet, limit_alphabet=len(alphabet),
        )  # fmt: skip
        bpe.train_from_iterator(texts, trainer)
        longest = max(len(e.ids) for e in bpe.encode_batch(texts)) + 1
        heard: Counter[str] = Counter()
        for text, times in counted.items():
            heard.update(dict.fromkeys(words(text), times))
        return cls(bpe, min(longest, LONGEST), (w for w, _ in heard.most_common(WORDS_KEPT)))

    @property
    def size(self) -> int:
        """How many ids there are."""
        return self.bpe.get_vocab_size()

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Ids (B, L): a start token (so that no row is empty), the caption cut at L, padding."""
        rows = torch.full((len(captions), self.length), PAD, dtype=torch.int64)
        rows[:, 0] = START
        for row, encoded in zip(rows, self.bpe.encode_batch(list(captions)), strict=True):
            ids = encoded.ids[: self.length - 1]
            row[1 : 1 + len(ids)] = torch.tensor(ids, dtype=torch.int64)
        return rows

    def cut(self, captions: Sequence[str]) -> list[bool]:
        """Which captions lose words at their end."""
        return [len(e.ids) > self.length - 1 for e in self.bpe.encode_batch(list(captions))]

    def spans(self, caption: str) -> list[tuple[int, int]]:
        """Which characters each place of the caption's row came from, (from, to); (0, 0) where it came from none."""
        spans: list[tuple[int, int]] = [(0, 0), *self.bpe.encode(caption).offsets][: self.length]
        return spans + [(0, 0)] * (self.length - len(spans))

    def unknown(self, prompt: str) -> list[str]:
        """The prompt's words that no caption held, in order, each once."""
        return list(dict.fromkeys(word for word in words(prompt) if word not in self.known))

    def to_json(self) -> str:
        return json.dumps({"length": self.length, "known": sorted(self.known), "bpe": json.loads(self.bpe.to_str())})

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        try:
            held = json.loads(text)
            bpe = BPE.from_str(json.dumps(held["bpe"]))
            bpe.encode_special_tokens = True
            return cls(bpe, int(held["length"]), [str(w) for w in held["known"]])
        except Exception as error:  # tokenizers raises bare Exceptions
            raise InputError(
                f"the tokenizer cannot be read ({error}): the file is damaged or of another program"
            ) from error
