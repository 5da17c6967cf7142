"""Where CLIP's vocabulary is found for a checkpoint that has none with it."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from unspeckle.errors import InputError
from unspeckle.text.clip import ClipConfig
from unspeckle.text.clip_tokenizer import OPENAI, ClipTokenizer

FILES = ("vocab.json", "tokenizer.json", OPENAI)


def find(folder: Path, encoder: ClipConfig, pads: Sequence[str]) -> ClipTokenizer:
    """The tokenizer that lies in the folder, in its tokenizer/, or with any model in the hub's cache, and has the
    encoder's count of tokens. InputError, telling where to put one, where there is none."""
    for place in (folder, folder / "tokenizer", *_cached()):
        if any((place / name).is_file() for name in FILES):
            tokenizer = ClipTokenizer.read(place, encoder.length, pads)
            if tokenizer.bpe.get_vocab_size() <= encoder.vocabulary:
                return tokenizer
    raise InputError(
        f"{folder}: a single file has no vocabulary, and none of CLIP lies beside it or in the hub's cache; put "
        f"vocab.json and merges.txt of any Stable Diffusion, or {OPENAI} of CLIP, into this folder"
    )


def hub() -> Path:
    """The hub's cache, as its own programs find it."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def _cached() -> Iterator[Path]:
    for snapshot in sorted(hub().glob("models--*/snapshots/*")):
        yield from (snapshot / "tokenizer", snapshot) if (snapshot / "tokenizer").is_dir() else (snapshot,)
