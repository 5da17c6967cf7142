"""CLIP's byte-pair encoding (Radford et al. 2021) from a checkpoint's own files, and prompts in chunks of 75 tokens."""

import gzip
import json
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as BPE
from torch import Tensor

from unspeckle.errors import InputError

START, END = "<|startoftext|>", "<|endoftext|>"
BACK = 20  # tokens after a comma that move to the next chunk together, where they would be torn apart
OPENAI = "bpe_simple_vocab_16e6.txt.gz"  # the file in which CLIP itself keeps its merges
_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class _Encoded(NamedTuple):
    ids: list[int]
    offsets: list[tuple[int, int]]  # from which character to which each stands for


class ClipTokenizer:
    """Strings to ids (B, encoders, chunks · length): each chunk is a start, 75 tokens of words, an end, and padding,
    which each encoder may want to be another token.

    As in the programs that write such prompts: a chunk that fills up is broken after its last comma if fewer than
    BACK tokens follow that. Rows are as long as the longest prompt wants; the others get empty chunks.
    """

    def __init__(self, bpe: BPE, length: int = 77, pads: Sequence[str] = (END,)) -> None:
        bpe.encode_special_tokens = True  # a prompt that says <|endoftext|> means the characters
        bpe.no_padding()
        bpe.no_truncation()
        self.bpe, self.length = bpe, length
        self.start, self.end, *self.pads = (self._id(token) for token in (START, END, *pads))
        self._comma = bpe.token_to_id(",</w>")
        self._learnt: dict[int, list[int]] = {}  # a word's own id to those that it is given to the encoders as

    def _id(self, token: str) -> int:
        found = self.bpe.token_to_id(token)
        if found is None:
            raise InputError(f"the tokenizer has no token {token!r}; it is not CLIP's")
        return int(found)

    @classmethod
    def read(cls, folder: Path, length: int = 77, pads: Sequence[str] | None = None) -> "ClipTokenizer":
        """From a folder with vocab.json and merges.txt, or tokenizer.json, or CLIP's own merges. pads: what fills up,
        for each encoder; None = what the folder says. InputError where it has none of them, or damaged ones."""
        try:
            if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
                lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
                bpe = _bpe(json.loads((folder / "vocab.json").read_text(encoding="utf-8")), _pairs(lines))
            elif (folder / "tokenizer.json").is_file():
                bpe = BPE.from_file(str(folder / "tokenizer.json"))
            elif (folder / OPENAI).is_file():
                lines = gzip.decompress((folder / OPENAI).read_bytes()).decode().split("\n")
                bpe = _openai(_pairs(lines[: 49152 - 256 - 2 + 1]))
            else:
                raise InputError(f"{folder}: holds neither vocab.json and merges.txt, nor tokenizer.json, nor {OPENAI}")
            return cls(bpe, length, (padding(folder),) if pads is None else pads)
        except InputError:
            raise
        except Exception as e:  # tokenizers raises bare Exceptions
            raise InputError(f"{folder}: its tokenizer is damaged ({str(e)[:100]}); copy or download it again") from e

    def write(self, folder: Path, encoder: int = 0) -> None:
        """vocab.json, merges.txt and tokenizer_config.json for one encoder, as other programs read them."""
        folder.mkdir(parents=True, exist_ok=True)
        model = json.loads(self.bpe.to_str())["model"]
        merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
        pad = self.bpe.id_to_token(self.pads[encoder])
        said = {"tokenizer_class": "CLIPTokenizer", "model_max_length": self.length, "pad_token": pad,
                "bos_token": START, "eos_token": END, "unk_token": END}  # fmt: skip
        for name, text in (
            ("vocab.json", json.dumps(model["vocab"], ensure_ascii=False)),
            ("merges.txt", "\n".join(["#version: 0.2", *merges, ""])),
            ("tokenizer_config.json", json.dumps(said, indent=2)),
        ):
            (folder / name).write_text(text, encoding="utf-8")

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Ids (B, encoders, chunks · length) int64."""
        rows = [self._chunks(encoded.ids) for encoded in self._encoded(captions)]
        most = max((len(chunks) for chunks in rows), default=1)
        rows = [chunks + [[]] * (most - len(chunks)) for chunks in rows]
        filled = [[[self._filled(chunk, pad) for chunk in chunks] for pad in self.pads] for chunks in rows]
        return torch.tensor(filled, dtype=torch.int64).reshape(len(rows), len(self.pads), most * self.length)

    def spans(self, caption: str) -> list[tuple[int, int]]:
        """From which character to which each place of the caption's row stands for; (0, 0) for start, end, padding."""
        (encoded,) = self._encoded([caption])
        told, spans = iter(encoded.offsets), list[tuple[int, int]]()
        for chunk in self._chunks(encoded.ids):
            spans += [(0, 0), *islice(told, len(chunk)), *[(0, 0)] * (self.length - 1 - len(chunk))]
        return spans

    def learn(self, word: str, ids: Sequence[int]) -> None:
        """Read the word, alone and in whatever case, as these ids. InputError where it is one of the tokens."""
        self.learnable(word)
        self.bpe.add_tokens([AddedToken(word, single_word=True, normalized=True)])
        self._learnt[self._id(word)] = list(ids)

    def learnable(self, word: str) -> None:
        """InputError where it is one of the tokens, or no word."""
        if not word.strip() or self.bpe.token_to_id(word) is not None:
            raise InputError(f"{word!r}: is a token already, or none; rename the embedding's file")

    def unknown(self, prompt: str) -> list[str]:
        """None: every word has tokens, and nobody wrote down which were in the captions."""
        return []

    def _encoded(self, captions: Sequence[str]) -> list[_Encoded]:
        return [self._spread(one) for one in self.bpe.encode_batch(list(captions), add_special_tokens=False)]

    def _spread(self, encoded: Any) -> _Encoded:
        """With as many ids for each learnt word as it has."""
        if not self._learnt:
            return _Encoded(encoded.ids, encoded.offsets)
        pairs = zip(encoded.ids, encoded.offsets, strict=True)
        spread = [(one, span) for own, span in pairs for one in self._learnt.get(own, [own])]
        return _Encoded([one for one, _ in spread], [span for _, span in spread])

    def _filled(self, chunk: list[int], pad: int) -> list[int]:
        ids = [self.start, *chunk, self.end]
        return ids + [pad] * (self.length - len(ids))

    def _chunks(self, ids: list[int]) -> list[list[int]]:
        """At least one chunk, of at most length - 2 tokens each."""
        room = self.length - 2
        chunks: list[list[int]] = []
        while len(ids) > room:
            commas = [i for i, one in enumerate(ids[:room]) if one == self._comma and room - i <= BACK]
            cut = commas[-1] + 1 if commas and ids[room] != self._comma else room
            chunks.append(ids[:cut])
            ids = ids[cut:]
        return [*chunks, ids]


def _pairs(lines: Sequence[str]) -> list[tuple[str, str]]:
    """The merges of a file whose first line is a version."""
    split = (line.split() for line in lines if not line.startswith("#version") and not line.startswith('"bpe_simple'))
    return [(pair[0], pair[1]) for pair in split if len(pair) == 2]


def _bpe(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> BPE:
    make: Callable[..., Any] = models.BPE
    bpe = BPE(make(vocabulary, merges, end_of_word_suffix="</w>", unk_token=END))
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_SPLIT), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    return bpe


def _openai(merges: list[tuple[str, str]]) -> BPE:
    """CLIP counts its tokens so: the bytes, the printable ones first, the bytes that end a word, the merges."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [*map(chr, printable), *(chr(256 + n) for n in range(256 - len(printable)))]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges), START, END]
    return _bpe({token: place for place, token in enumerate(tokens)}, merges)


def padding(folder: Path) -> str:
    """The token with which a tokenizer's folder says that rows are filled up."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            said = json.loads((folder / name).read_text(encoding="utf-8")).get("pad_token")
            if said is not None:
                return str(said["content"] if isinstance(said, dict) else said)
    return END
