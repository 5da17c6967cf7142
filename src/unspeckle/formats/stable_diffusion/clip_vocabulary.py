"""Where CLIP's vocabulary is found for a checkpoint that comes without one."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from unspeckle.errors import InputError
from unspeckle.text.clip import CLIPTextConfig
from unspeckle.text.clip_tokenizer import OPENAI_MERGES_FILE, CLIPTokenizer

VOCABULARY_FILES = ("vocab.json", "tokenizer.json", OPENAI_MERGES_FILE)


def find_tokenizer(folder: Path, encoder_config: CLIPTextConfig, pad_tokens: Sequence[str]) -> CLIPTokenizer:
    """The tokenizer in the folder, in its tokenizer/, or of any model in the hub's cache, whose vocabulary the text
    encoder covers. pad_tokens: one for each text encoder. InputError, saying where to put one, where there is none."""
    for candidate in (folder, folder / "tokenizer", *_cached_tokenizer_folders()):
        if any((candidate / name).is_file() for name in VOCABULARY_FILES):
            tokenizer = CLIPTokenizer.from_folder(candidate, encoder_config.context_length, pad_tokens)
            if tokenizer.bpe.get_vocab_size() <= encoder_config.vocab_size:
                return tokenizer
    raise InputError(
        f"{folder}: a single file has no vocabulary, and there is none of CLIP beside it or in the hub's cache; put "
        f"vocab.json and merges.txt of any Stable Diffusion, or {OPENAI_MERGES_FILE} of CLIP, into this folder"
    )


def hub_cache_folder() -> Path:
    """The folder of the Hugging Face hub's cache, as its own client finds it."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def _cached_tokenizer_folders() -> Iterator[Path]:
    for snapshot in sorted(hub_cache_folder().glob("models--*/snapshots/*")):
        if (snapshot / "tokenizer").is_dir():
            yield snapshot / "tokenizer"
        yield snapshot
