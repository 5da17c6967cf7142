"""Textual inversion (Gal et al. 2023): words of one's own, whose vectors a small file brings."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from unspeckle.errors import InputError
from unspeckle.formats.stable_diffusion.model import Foreign
from unspeckle.model_io.safetensors_io import read_safetensors
from unspeckle.text.clip import ClipEncoder, ClipTexts
from unspeckle.text.clip_tokenizer import ClipTokenizer

_BARE = "emb_params"  # A1111's
_PAIR = ("clip_l", "clip_g")  # XL's two encoders


def add(model: Foreign, files: Sequence[Path]) -> list[str]:
    """Teach the model the files' words; returns these. A word is the token that a file names, else the file's own name;
    files of the same word bring the vectors of XL's two encoders each. InputError, one line, where one does not fit;
    the model is then as it was."""
    text, tokenizer = model.text_encoder, model.tokenizer
    assert isinstance(text, ClipTexts) and isinstance(tokenizer, ClipTokenizer)
    encoders = [one for one in text.encoders if isinstance(one, ClipEncoder)]
    words: dict[str, dict[int, Tensor]] = {}
    for file in files:
        word, found = _read(file, [one.config.width for one in encoders])
        own = words.setdefault(word, {})
        if twice := own.keys() & found.keys():
            raise InputError(
                f"{file}: the word {word!r} has vectors for encoder {min(twice) + 1} already; leave one out"
            )
        own |= found
    for word, found in words.items():
        tokenizer.learnable(word)
        lacks = [number for number in range(len(encoders)) if number not in found]
        if lacks:
            raise InputError(
                f"--embedding: {word!r} has no vectors for text encoder {lacks[0] + 1} of {model.card.name}; "
                "give the file with these too"
            )
        if len({len(vectors) for vectors in found.values()}) > 1:
            raise InputError(f"--embedding: {word!r} has more vectors for one text encoder than for the other")
    for word, found in words.items():
        first = max(one.token.num_embeddings for one in encoders)
        tokenizer.learn(word, range(first, first + len(found[0])))
        for number, encoder in enumerate(encoders):
            _grow(encoder, first, found[number])
    text.config = replace(text.config, encoders=tuple(one.config for one in encoders))
    model.changed()
    return list(words)


def _read(file: Path, widths: Sequence[int]) -> tuple[str, dict[int, Tensor]]:
    """The file's word, and its vectors (N, width) by the number of the encoder that reads them."""
    _, held = read_safetensors(file, "download")
    if set(_PAIR) == set(held):
        word, each = file.stem, dict(enumerate(held[name] for name in _PAIR))
        if len(widths) == 1:
            raise InputError(f"{file}: is for the two text encoders of XL; this model has one")
    elif len(held) == 1:
        (name, tensor) = next(iter(held.items()))
        word = file.stem if name == _BARE else name
        width = tensor.shape[-1] if tensor.ndim else 0
        each = {number: tensor for number, wanted in enumerate(widths) if wanted == width}
        each = each or {0: tensor}
    else:
        raise InputError(f"{file}: holds {len(held)} tensors; an embedding has one, or clip_l and clip_g")
    for number, tensor in each.items():
        vectors = tensor[None] if tensor.ndim == 1 else tensor
        if vectors.ndim != 2 or not 0 < len(vectors) <= 75 or vectors.shape[1] != widths[number]:
            raise InputError(
                f"{file}: its tensor is {tuple(tensor.shape)}, text encoder {number + 1} of this model reads "
                f"vectors of {widths[number]}; it is for another kind of Stable Diffusion"
            )
        if not vectors.is_floating_point() or not vectors.float().isfinite().all():
            raise InputError(f"{file}: holds values that are not finite; download it again")
        each[number] = vectors.float()
    return word, each


def _grow(encoder: ClipEncoder, first: int, vectors: Tensor) -> None:
    """Give the encoder the vectors of the ids from `first` on."""
    old = encoder.token.weight
    between = old.new_zeros(first - len(old), old.shape[1])
    rows = torch.cat([old.detach(), between, vectors.to(old)])
    encoder.token = nn.Embedding(len(rows), rows.shape[1], _weight=rows, _freeze=True)
    encoder.config = replace(encoder.config, vocabulary=len(rows))
