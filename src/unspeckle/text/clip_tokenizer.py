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

START_TOKEN, END_TOKEN = "<|startoftext|>", "<|endoftext|>"
COMMA_BACKTRACK = 20  # tokens after a comma that move to the next chunk together, where they would be torn apart
OPENAI_MERGES_FILE = "bpe_simple_vocab_16e6.txt.gz"  # the file in which CLIP itself keeps its merges
_SPLIT_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class _Encoding(NamedTuple):
    ids: list[int]
    offsets: list[tuple[int, int]]  # from which character to which each stands for


class CLIPTokenizer:
    """Strings to ids (B, encoders, chunks · length): each chunk is a start, 75 tokens of words, an end, and padding,
    which each encoder may want to be another token.

    As in the programs that write such prompts: a chunk that fills up is broken after its last comma if fewer than
    BACK tokens follow that. Rows are as long as the longest prompt wants; the others get empty chunks.
    """

    def __init__(self, bpe: BPE, context_length: int = 77, pad_tokens: Sequence[str] = (END_TOKEN,)) -> None:
        bpe.encode_special_tokens = True  # a prompt that says <|endoftext|> means the characters
        bpe.no_padding()
        bpe.no_truncation()
        self.bpe, self.context_length = bpe, context_length
        self.start_id, self.end_id, *self.pad_ids = (
            self._token_id(token) for token in (START_TOKEN, END_TOKEN, *pad_tokens)
        )
        self._comma_id = bpe.token_to_id(",</w>")
        self._added_words: dict[int, list[int]] = {}  # a word's own id to those that it is given to the encoders as

    def _token_id(self, token: str) -> int:
        token_id = self.bpe.token_to_id(token)
        if token_id is None:
            raise InputError(f"the tokenizer has no token {token!r}; it is not CLIP's")
        return int(token_id)

    @classmethod
    def from_folder(
        cls, folder: Path, context_length: int = 77, pad_tokens: Sequence[str] | None = None
    ) -> "CLIPTokenizer":
        """From a folder with vocab.json and merges.txt, or tokenizer.json, or CLIP's own merges. pads: what fills up,
        for each encoder; None = what the folder says. InputError where it has none of them, or damaged ones."""
        try:
            if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
                lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
                bpe = _build_bpe(json.loads((folder / "vocab.json").read_text(encoding="utf-8")), _parse_merges(lines))
            elif (folder / "tokenizer.json").is_file():
                bpe = BPE.from_file(str(folder / "tokenizer.json"))
            elif (folder / OPENAI_MERGES_FILE).is_file():
                lines = gzip.decompress((folder / OPENAI_MERGES_FILE).read_bytes()).decode().split("\n")
                bpe = _openai_bpe(_parse_merges(lines[: 49152 - 256 - 2 + 1]))
            else:
                raise InputError(
                    f"{folder}: holds neither vocab.json and merges.txt, nor tokenizer.json, nor {OPENAI_MERGES_FILE}"
                )
            return cls(bpe, context_length, (read_pad_token(folder),) if pad_tokens is None else pad_tokens)
        except InputError:
            raise
        except Exception as e:  # tokenizers raises bare Exceptions
            raise InputError(f"{folder}: its tokenizer is damaged ({str(e)[:100]}); copy or download it again") from e

    def write_folder(self, folder: Path, encoder: int = 0) -> None:
        """vocab.json, merges.txt and tokenizer_config.json for one encoder, as other programs read them."""
        folder.mkdir(parents=True, exist_ok=True)
        model = json.loads(self.bpe.to_str())["model"]
        merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
        pad_token = self.bpe.id_to_token(self.pad_ids[encoder])
        config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": self.context_length, "pad_token": pad_token,
                "bos_token": START_TOKEN, "eos_token": END_TOKEN, "unk_token": END_TOKEN}  # fmt: skip
        for name, text in (
            ("vocab.json", json.dumps(model["vocab"], ensure_ascii=False)),
            ("merges.txt", "\n".join(["#version: 0.2", *merges, ""])),
            ("tokenizer_config.json", json.dumps(config, indent=2)),
        ):
            (folder / name).write_text(text, encoding="utf-8")

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Ids (B, encoders, chunks · length) int64."""
        chunked = [self._split_chunks(encoding.ids) for encoding in self._encode_batch(captions)]
        max_chunks = max((len(chunks) for chunks in chunked), default=1)
        chunked = [chunks + [[]] * (max_chunks - len(chunks)) for chunks in chunked]
        ids = [[[self._pad_chunk(chunk, pad_id) for chunk in chunks] for pad_id in self.pad_ids] for chunks in chunked]
        return torch.tensor(ids, dtype=torch.int64).reshape(
            len(chunked), len(self.pad_ids), max_chunks * self.context_length
        )

    def character_spans(self, caption: str) -> list[tuple[int, int]]:
        """From which character to which each place of the caption's row stands for; (0, 0) for start, end, padding."""
        (encoding,) = self._encode_batch([caption])
        offsets, character_spans = iter(encoding.offsets), list[tuple[int, int]]()
        for chunk in self._split_chunks(encoding.ids):
            character_spans += [
                (0, 0),
                *islice(offsets, len(chunk)),
                *[(0, 0)] * (self.context_length - 1 - len(chunk)),
            ]
        return character_spans

    def add_word(self, word: str, ids: Sequence[int]) -> None:
        """Read the word, alone and in whatever case, as these ids. InputError where it is one of the tokens."""
        self.check_new_word(word)
        self.bpe.add_tokens([AddedToken(word, single_word=True, normalized=True)])
        self._added_words[self._token_id(word)] = list(ids)

    def check_new_word(self, word: str) -> None:
        """InputError where it is one of the tokens, or no word."""
        if not word.strip() or self.bpe.token_to_id(word) is not None:
            raise InputError(f"{word!r}: is a token already, or none; rename the embedding's file")

    def unknown_words(self, prompt: str) -> list[str]:
        """None: every word has tokens, and nobody wrote down which were in the captions."""
        return []

    def _encode_batch(self, captions: Sequence[str]) -> list[_Encoding]:
        return [
            self._expand_words(encoding) for encoding in self.bpe.encode_batch(list(captions), add_special_tokens=False)
        ]

    def _expand_words(self, encoding: Any) -> _Encoding:
        """With as many ids for each learnt word as it has."""
        if not self._added_words:
            return _Encoding(encoding.ids, encoding.offsets)
        pairs = zip(encoding.ids, encoding.offsets, strict=True)
        expanded = [
            (token_id, span) for word_id, span in pairs for token_id in self._added_words.get(word_id, [word_id])
        ]
        return _Encoding([token_id for token_id, _ in expanded], [span for _, span in expanded])

    def _pad_chunk(self, chunk: list[int], pad_id: int) -> list[int]:
        ids = [self.start_id, *chunk, self.end_id]
        return ids + [pad_id] * (self.context_length - len(ids))

    def _split_chunks(self, ids: list[int]) -> list[list[int]]:
        """At least one chunk, of at most length - 2 tokens each."""
        max_tokens = self.context_length - 2
        chunks: list[list[int]] = []
        while len(ids) > max_tokens:
            commas = [
                i
                for i, token_id in enumerate(ids[:max_tokens])
                if token_id == self._comma_id and max_tokens - i <= COMMA_BACKTRACK
            ]
            cut = commas[-1] + 1 if commas and ids[max_tokens] != self._comma_id else max_tokens
            chunks.append(ids[:cut])
            ids = ids[cut:]
        return [*chunks, ids]


def _parse_merges(lines: Sequence[str]) -> list[tuple[str, str]]:
    """The merges of a file whose first line is a version."""
    pairs = (line.split() for line in lines if not line.startswith("#version") and not line.startswith('"bpe_simple'))
    return [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]


def _build_bpe(vocab: dict[str, int], merges: list[tuple[str, str]]) -> BPE:
    build: Callable[..., Any] = models.BPE
    bpe = BPE(build(vocab, merges, end_of_word_suffix="</w>", unk_token=END_TOKEN))
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT_PATTERN), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    return bpe


def _openai_bpe(merges: list[tuple[str, str]]) -> BPE:
    """CLIP counts its tokens so: the bytes, the printable ones first, the bytes that end a word, the merges."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    byte_symbols = [*map(chr, printable), *(chr(256 + n) for n in range(256 - len(printable)))]
    tokens = [
        *byte_symbols,
        *(symbol + "</w>" for symbol in byte_symbols),
        *map("".join, merges),
        START_TOKEN,
        END_TOKEN,
    ]
    return _build_bpe({token: token_id for token_id, token in enumerate(tokens)}, merges)


def read_pad_token(folder: Path) -> str:
    """The token with which a tokenizer's folder says that rows are filled up."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            pad_token = json.loads((folder / name).read_text(encoding="utf-8")).get("pad_token")
            if pad_token is not None:
                return str(pad_token["content"] if isinstance(pad_token, dict) else pad_token)
    return END_TOKEN
