"""Textual inversion (Gal et al. 2023): new words, whose token embeddings come from a small file."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from unspeckle.errors import InputError
from unspeckle.formats.safetensors_io import read_safetensors
from unspeckle.formats.stable_diffusion.model import StableDiffusionModel
from unspeckle.text.clip import CLIPTextEncoder, CLIPTextEncoders
from unspeckle.text.clip_tokenizer import CLIPTokenizer

MAX_VECTORS = 75  # tokens of a chunk, but for its start and end
_A1111_KEY = "emb_params"  # the name of the only tensor in a file of A1111, whose word is the file's name
_XL_KEYS = ("clip_l", "clip_g")  # the names of the tensors for SDXL's two text encoders

VectorsByEncoder = dict[int, Tensor]  # (N, width) float32 for each text encoder, by its number


def add_embeddings(model: StableDiffusionModel, files: Sequence[Path]) -> list[str]:
    """Add the files' words to the model's tokenizer and text encoders; returns the words.

    A word is the token that a file names, else the file's own name. Several files of one word each bring the vectors of
    one of SDXL's text encoders. InputError, one line, where a file does not fit; the model is unchanged then."""
    text_encoder, tokenizer = model.text_encoder, model.tokenizer
    if not isinstance(text_encoder, CLIPTextEncoders) or not isinstance(tokenizer, CLIPTokenizer):
        raise InputError(f": {model.card.name!r} has no text encoder of CLIP, so words cannot be added", "embeddings")
    encoders = [encoder for encoder in text_encoder.encoders if isinstance(encoder, CLIPTextEncoder)]
    vectors_by_word: dict[str, VectorsByEncoder] = {}
    for file in files:
        word, vectors = _read_embedding(file, [encoder.config.width for encoder in encoders])
        known_vectors = vectors_by_word.setdefault(word, {})
        if duplicates := known_vectors.keys() & vectors.keys():
            raise InputError(
                f"{file}: another file has vectors of {word!r} for text encoder {min(duplicates) + 1}; leave one out"
            )
        known_vectors |= vectors
    for word, vectors in vectors_by_word.items():
        tokenizer.check_new_word(word)
        _check_complete(word, vectors, len(encoders), model.card.name)
    for word, vectors in vectors_by_word.items():
        first_id = max(encoder.token_embedding.num_embeddings for encoder in encoders)
        tokenizer.add_word(word, range(first_id, first_id + len(vectors[0])))
        for index, encoder in enumerate(encoders):
            _append_token_vectors(encoder, first_id, vectors[index])
    text_encoder.config = replace(text_encoder.config, encoders=tuple(encoder.config for encoder in encoders))
    model.invalidate_hash()
    return list(vectors_by_word)


def _check_complete(word: str, vectors: VectorsByEncoder, encoder_count: int, model_name: str) -> None:
    """InputError where a text encoder has no vectors of the word, or not as many as the others."""
    missing = [index for index in range(encoder_count) if index not in vectors]
    if missing:
        raise InputError(
            f": {word!r} has no vectors for text encoder {missing[0] + 1} of {model_name}; give the file that holds "
            "these too",
            "embeddings",
        )
    if len({len(one) for one in vectors.values()}) > 1:
        raise InputError(f": {word!r} has more vectors for one text encoder than for the other", "embeddings")


def _read_embedding(file: Path, widths: Sequence[int]) -> tuple[str, VectorsByEncoder]:
    """The file's word, and its vectors. widths: of the model's text encoders."""
    _, tensors = read_safetensors(file, "download")
    word = file.stem
    if set(_XL_KEYS) == set(tensors):
        if len(widths) == 1:
            raise InputError(f"{file}: is for the two text encoders of SDXL, but this model has one")
        vectors = dict(enumerate(tensors[name] for name in _XL_KEYS))
    elif len(tensors) == 1:
        name, tensor = next(iter(tensors.items()))
        word = word if name == _A1111_KEY else name
        width = tensor.shape[-1] if tensor.ndim else 0
        vectors = {index: tensor for index, encoder_width in enumerate(widths) if encoder_width == width}
        vectors = vectors or {0: tensor}
    else:
        raise InputError(f"{file}: holds {len(tensors)} tensors; an embedding has one, or clip_l and clip_g")
    return word, {index: _check_vectors(tensor, widths[index], index, file) for index, tensor in vectors.items()}


def _check_vectors(tensor: Tensor, width: int, index: int, file: Path) -> Tensor:
    """The tensor as vectors (N, width) float32 for the text encoder of that number. InputError where it is none."""
    vectors = tensor[None] if tensor.ndim == 1 else tensor
    if vectors.ndim != 2 or not 0 < len(vectors) <= MAX_VECTORS or vectors.shape[1] != width:
        raise InputError(
            f"{file}: its tensor is {tuple(tensor.shape)}, but text encoder {index + 1} of this model takes vectors of "
            f"{width} numbers; it is for another kind of Stable Diffusion"
        )
    if not vectors.is_floating_point() or not vectors.float().isfinite().all():
        raise InputError(f"{file}: holds values that are not finite; download it again")
    return vectors.float()


def _append_token_vectors(encoder: CLIPTextEncoder, first_id: int, vectors: Tensor) -> None:
    """Add the vectors to the encoder's token embeddings, from the id first_id on."""
    old_weight = encoder.token_embedding.weight
    padding = old_weight.new_zeros(first_id - len(old_weight), old_weight.shape[1])
    new_weight = torch.cat([old_weight.detach(), padding, vectors.to(old_weight)])
    encoder.token_embedding = nn.Embedding(len(new_weight), new_weight.shape[1], _weight=new_weight, _freeze=True)
    encoder.config = replace(encoder.config, vocab_size=len(new_weight))
