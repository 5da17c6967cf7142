"""Textual inversion (Gal et al. 2023): words of one's own, whose vectors a small file brings."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from unspeckle.errors import InputError
from unspeckle.formats.stable_diffusion.model import StableDiffusionModel
from unspeckle.model_io.safetensors_io import read_safetensors
from unspeckle.text.clip import CLIPTextEncoder, CLIPTextEncoders
from unspeckle.text.clip_tokenizer import CLIPTokenizer

_A1111_KEY = "emb_params"  # A1111's
_XL_KEYS = ("clip_l", "clip_g")  # XL's two encoders


def add_embeddings(model: StableDiffusionModel, files: Sequence[Path]) -> list[str]:
    """Teach the model the files' words; returns these. A word is the token that a file names, else the file's own name;
    files of the same word bring the vectors of XL's two encoders each. InputError, one line, where one does not fit;
    the model is then as it was."""
    text_encoder, tokenizer = model.text_encoder, model.tokenizer
    assert isinstance(text_encoder, CLIPTextEncoders) and isinstance(tokenizer, CLIPTokenizer)
    encoders = [encoder for encoder in text_encoder.encoders if isinstance(encoder, CLIPTextEncoder)]
    vectors_by_word: dict[str, dict[int, Tensor]] = {}
    for file in files:
        word, vectors_by_encoder = _read_embedding(file, [encoder.config.width for encoder in encoders])
        known_vectors = vectors_by_word.setdefault(word, {})
        if duplicates := known_vectors.keys() & vectors_by_encoder.keys():
            raise InputError(
                f"{file}: the word {word!r} has vectors for encoder {min(duplicates) + 1} already; leave one out"
            )
        known_vectors |= vectors_by_encoder
    for word, vectors_by_encoder in vectors_by_word.items():
        tokenizer.check_new_word(word)
        missing = [index for index in range(len(encoders)) if index not in vectors_by_encoder]
        if missing:
            raise InputError(
                f"--embedding: {word!r} has no vectors for text encoder {missing[0] + 1} of {model.card.name}; "
                "give the file with these too"
            )
        if len({len(vectors) for vectors in vectors_by_encoder.values()}) > 1:
            raise InputError(f"--embedding: {word!r} has more vectors for one text encoder than for the other")
    for word, vectors_by_encoder in vectors_by_word.items():
        first_id = max(encoder.token_embedding.num_embeddings for encoder in encoders)
        tokenizer.add_word(word, range(first_id, first_id + len(vectors_by_encoder[0])))
        for index, encoder in enumerate(encoders):
            _append_token_vectors(encoder, first_id, vectors_by_encoder[index])
    text_encoder.config = replace(text_encoder.config, encoders=tuple(encoder.config for encoder in encoders))
    model.invalidate_hash()
    return list(vectors_by_word)


def _read_embedding(file: Path, widths: Sequence[int]) -> tuple[str, dict[int, Tensor]]:
    """The file's word, and its vectors (N, width) by the number of the encoder that reads them."""
    _, tensors = read_safetensors(file, "download")
    if set(_XL_KEYS) == set(tensors):
        word, vectors_by_encoder = file.stem, dict(enumerate(tensors[name] for name in _XL_KEYS))
        if len(widths) == 1:
            raise InputError(f"{file}: is for the two text encoders of XL; this model has one")
    elif len(tensors) == 1:
        (name, tensor) = next(iter(tensors.items()))
        word = file.stem if name == _A1111_KEY else name
        width = tensor.shape[-1] if tensor.ndim else 0
        vectors_by_encoder = {index: tensor for index, encoder_width in enumerate(widths) if encoder_width == width}
        vectors_by_encoder = vectors_by_encoder or {0: tensor}
    else:
        raise InputError(f"{file}: holds {len(tensors)} tensors; an embedding has one, or clip_l and clip_g")
    for index, tensor in vectors_by_encoder.items():
        vectors = tensor[None] if tensor.ndim == 1 else tensor
        if vectors.ndim != 2 or not 0 < len(vectors) <= 75 or vectors.shape[1] != widths[index]:
            raise InputError(
                f"{file}: its tensor is {tuple(tensor.shape)}, text encoder {index + 1} of this model reads "
                f"vectors of {widths[index]}; it is for another kind of Stable Diffusion"
            )
        if not vectors.is_floating_point() or not vectors.float().isfinite().all():
            raise InputError(f"{file}: holds values that are not finite; download it again")
        vectors_by_encoder[index] = vectors.float()
    return word, vectors_by_encoder


def _append_token_vectors(encoder: CLIPTextEncoder, first_id: int, vectors: Tensor) -> None:
    """Give the encoder the vectors of the ids from `first` on."""
    old_weight = encoder.token_embedding.weight
    padding = old_weight.new_zeros(first_id - len(old_weight), old_weight.shape[1])
    new_weight = torch.cat([old_weight.detach(), padding, vectors.to(old_weight)])
    encoder.token_embedding = nn.Embedding(len(new_weight), new_weight.shape[1], _weight=new_weight, _freeze=True)
    encoder.config = replace(encoder.config, vocab_size=len(new_weight))
