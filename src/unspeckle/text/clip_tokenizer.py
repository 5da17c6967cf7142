"""CLIP's byte-pair encoding (Radford et al. 2021), from the files of a checkpoint; prompts in chunks of 75 tokens."""

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
from unspeckle.text.tokenizer import UnknownWord

START_TOKEN, END_TOKEN = "<|startoftext|>", "<|endoftext|>"
# A chunk that is full is broken after its last comma if fewer tokens than this follow it, as A1111 does.
COMMA_BACKTRACK = 20
# The file of merges in CLIP's own repository, and how many lines of it are used, after its header.
OPENAI_MERGES_FILE = "bpe_simple_vocab_16e6.txt.gz"
_OPENAI_MERGES = 49152 - 256 - 2
_SPLIT_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class _Encoding(NamedTuple):
    ids: list[int]
    offsets: list[tuple[int, int]]  # the characters that each id stands for, as (start, end)


class CLIPTokenizer:
    """Strings to ids (B, encoders, chunks · context_length). Each chunk has a start token, up to 75 tokens of the text,
    an end token, and padding, whose token may differ between encoders.

    A chunk that is full is broken after its last comma if fewer than COMMA_BACKTRACK tokens follow it. All rows are as
    long as the longest text needs; the others get empty chunks.
    """

    def __init__(self, bpe: BPE, context_length: int = 77, pad_tokens: Sequence[str] = (END_TOKEN,)) -> None:
        """pad_tokens: one for each encoder. InputError if the encoding lacks CLIP's special tokens."""
        bpe.encode_special_tokens = True  # "<|endoftext|>" in a prompt means the characters
        bpe.no_padding()
        bpe.no_truncation()
        self.bpe, self.context_length = bpe, context_length
        self.start_id, self.end_id, *self.pad_ids = map(self._token_id, (START_TOKEN, END_TOKEN, *pad_tokens))
        self._comma_id = bpe.token_to_id(",</w>")
        # The id of each added word, and the ids of the embeddings that it stands for.
        self._added_words: dict[int, list[int]] = {}

    def _token_id(self, token: str) -> int:
        token_id = self.bpe.token_to_id(token)
        if token_id is None:
            raise InputError(f"the tokenizer has no token {token!r}; it is not CLIP's")
        return int(token_id)

    @classmethod
    def from_folder(
        cls, folder: Path, context_length: int = 77, pad_tokens: Sequence[str] | None = None
    ) -> "CLIPTokenizer":
        """The tokenizer of a folder with vocab.json and merges.txt, or tokenizer.json, or the merges of CLIP's own
        repository. pad_tokens: one for each encoder; None for the one that the folder states. InputError if there are
        no such files, or they are damaged."""
        try:
            bpe = _read_bpe(folder)
            pad_tokens = (read_pad_token(folder),) if pad_tokens is None else pad_tokens
            return cls(bpe, context_length, pad_tokens)
        except InputError:
            raise
        except Exception as e:  # tokenizers raises bare Exceptions
            raise InputError(f"{folder}: its tokenizer is damaged ({str(e)[:100]}); copy or download it again") from e

    def write_folder(self, folder: Path, encoder: int = 0) -> None:
        """Write vocab.json, merges.txt and tokenizer_config.json for that encoder, in transformers' layout."""
        folder.mkdir(parents=True, exist_ok=True)
        model = json.loads(self.bpe.to_str())["model"]
        merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
        config = {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": self.context_length,
            "pad_token": self.bpe.id_to_token(self.pad_ids[encoder]),
            "bos_token": START_TOKEN,
            "eos_token": END_TOKEN,
            "unk_token": END_TOKEN,
        }
        for name, text in (
            ("vocab.json", json.dumps(model["vocab"], ensure_ascii=False)),
            ("merges.txt", "\n".join(["#version: 0.2", *merges, ""])),
            ("tokenizer_config.json", json.dumps(config, indent=2)),
        ):
            (folder / name).write_text(text, encoding="utf-8")

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Ids (B, encoders, chunks · context_length) int64."""
        chunked = [self._split_chunks(encoding.ids) for encoding in self._encode_batch(captions)]
        max_chunks = max((len(chunks) for chunks in chunked), default=1)
        chunked = [chunks + [[]] * (max_chunks - len(chunks)) for chunks in chunked]
        ids = [[[self._pad_chunk(chunk, pad_id) for chunk in chunks] for pad_id in self.pad_ids] for chunks in chunked]
        length = max_chunks * self.context_length
        return torch.tensor(ids, dtype=torch.int64).reshape(len(chunked), len(self.pad_ids), length)

    def character_spans(self, caption: str) -> list[tuple[int, int]]:
        """For each id of the encoded caption, the characters that it stands for as (start, end); (0, 0) for none."""
        (encoding,) = self._encode_batch([caption])
        offsets, spans = iter(encoding.offsets), list[tuple[int, int]]()
        for chunk in self._split_chunks(encoding.ids):
            padding = self.context_length - 1 - len(chunk)
            spans += [(0, 0), *islice(offsets, len(chunk)), *[(0, 0)] * padding]
        return spans

    def add_word(self, word: str, ids: Sequence[int]) -> None:
        """Encode the word as these ids, wherever it stands alone, in any case. InputError if it cannot be added."""
        self.check_new_word(word)
        self.bpe.add_tokens([AddedToken(word, single_word=True, normalized=True)])
        self._added_words[self._token_id(word)] = list(ids)

    def check_new_word(self, word: str) -> None:
        """InputError if the word is blank, or a token already."""
        if not word.strip() or self.bpe.token_to_id(word) is not None:
            raise InputError(f"{word!r}: is blank, or a token already; rename the embedding's file")

    def unknown_words(self, prompt: str) -> list[UnknownWord]:
        """None: every word has tokens, and it is not known which words the captions contained."""
        return []

    def _encode_batch(self, captions: Sequence[str]) -> list[_Encoding]:
        return [
            self._expand_words(encoding) for encoding in self.bpe.encode_batch(list(captions), add_special_tokens=False)
        ]

    def _expand_words(self, encoding: Any) -> _Encoding:
        """The encoding with the ids of its embeddings for each added word."""
        if not self._added_words:
            return _Encoding(encoding.ids, encoding.offsets)
        pairs = [
            (expanded_id, span)
            for token_id, span in zip(encoding.ids, encoding.offsets, strict=True)
            for expanded_id in self._added_words.get(token_id, [token_id])
        ]
        return _Encoding([token_id for token_id, _ in pairs], [span for _, span in pairs])

    def _pad_chunk(self, chunk: list[int], pad_id: int) -> list[int]:
        ids = [self.start_id, *chunk, self.end_id]
        return ids + [pad_id] * (self.context_length - len(ids))

    def _split_chunks(self, ids: list[int]) -> list[list[int]]:
        """The ids in chunks of at most context_length - 2; at least one chunk."""
        max_tokens = self.context_length - 2
        chunks: list[list[int]] = []
        while len(ids) > max_tokens:
            is_last = range(max_tokens - COMMA_BACKTRACK, max_tokens)  # where a comma may break the chunk
            commas = [i for i in is_last if i >= 0 and ids[i] == self._comma_id]
            cut = commas[-1] + 1 if commas and ids[max_tokens] != self._comma_id else max_tokens
            chunks.append(ids[:cut])
            ids = ids[cut:]
        return [*chunks, ids]


def openai_bpe(merges: list[tuple[str, str]]) -> BPE:
    """CLIP's encoding with these merges. Its ids are numbered as by CLIP: the bytes, first the printable ones, the same
    bytes at the end of a word, the merges, and the special tokens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    byte_symbols = [*map(chr, printable), *(chr(256 + n) for n in range(256 - len(printable)))]
    word_ends = [symbol + "</w>" for symbol in byte_symbols]
    tokens = [*byte_symbols, *word_ends, *map("".join, merges), START_TOKEN, END_TOKEN]
    return _build_bpe({token: token_id for token_id, token in enumerate(tokens)}, merges)


def read_pad_token(folder: Path) -> str:
    """The token that the tokenizer of a folder uses for padding."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            pad_token = json.loads((folder / name).read_text(encoding="utf-8")).get("pad_token")
            if pad_token is not None:
                return str(pad_token["content"] if isinstance(pad_token, dict) else pad_token)
    return END_TOKEN


def _read_bpe(folder: Path) -> BPE:
    """The encoding in whichever of the supported files the folder has. InputError if it has none."""
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
        return _build_bpe(json.loads((folder / "vocab.json").read_text(encoding="utf-8")), _parse_merges(lines))
    if (folder / "tokenizer.json").is_file():
        return BPE.from_file(str(folder / "tokenizer.json"))
    if (folder / OPENAI_MERGES_FILE).is_file():
        lines = gzip.decompress((folder / OPENAI_MERGES_FILE).read_bytes()).decode().split("\n")
        return openai_bpe(_parse_merges(lines[: 1 + _OPENAI_MERGES]))
    raise InputError(f"{folder}: has neither vocab.json and merges.txt, nor tokenizer.json, nor {OPENAI_MERGES_FILE}")


def _parse_merges(lines: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs in the lines of a file of merges, without its header."""
    pairs = (line.split() for line in lines if not line.startswith("#version") and not line.startswith('"bpe_simple'))
    return [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]


def _build_bpe(vocab: dict[str, int], merges: list[tuple[str, str]]) -> BPE:
    build: Callable[..., Any] = models.BPE
    bpe = BPE(build(vocab, merges, end_of_word_suffix="</w>", unk_token=END_TOKEN))
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    split_words = pre_tokenizers.Split(Regex(_SPLIT_PATTERN), "removed", invert=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split_words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    bpe.decoder = decoders.ByteLevel()
    return bpe
