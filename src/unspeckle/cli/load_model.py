"""The model that a command works with: loaded, with what is added to a Stable Diffusion, in its precision."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from unspeckle.cli.options import ModelOptions
from unspeckle.errors import InputError, prefix_with_option
from unspeckle.model import Model
from unspeckle.model_io.device import resolve_device
from unspeckle.model_io.loading import load
from unspeckle.prompts import LoraTag
from unspeckle.upsampler import UpsamplerModel


def load_model(options: ModelOptions, lora_tags: Sequence[LoraTag] = ()) -> Model:
    """The model in the precision that it is to compute in. LoRA, those of the prompt's tags too, textual inversions and
    another autoencoder are added before that, in float32.

    InputError, naming the option, where one of these files cannot be used."""
    with prefix_with_option("--model", options.path):
        return load(
            options.path,
            resolve_device(options.device),
            prediction=options.prediction,
            trust_pickle=options.trust_pickle,
            precision=options.precision,
            loras=options.loras,
            embeddings=options.embeddings,
            autoencoder=options.vae,
            lora_tags=lora_tags,
        )


def load_guide_model(options: ModelOptions, path: Path, model: Model) -> Model:
    """The weaker model that guides the model (autoguidance), in the model's precision and with the autoencoder that was
    added to it; its hash stays that of its file."""
    with prefix_with_option("--guide-model", path):
        guide = load(
            path,
            resolve_device(options.device),
            prediction=options.prediction,
            trust_pickle=options.trust_pickle,
            precision=model.precision,
        )
    if options.vae is None:
        return guide
    return replace(guide, autoencoder=model.autoencoder, stored_hash=guide.weights_hash)


def load_upsampler(options: ModelOptions, path: Path) -> UpsamplerModel:
    """The model that enlarges images. InputError where it is none."""
    with prefix_with_option("--upsampler", path):
        model = load(path, resolve_device(options.device))
    if not isinstance(model, UpsamplerModel):
        raise InputError(f" {path}: enlarges no images; give a model of `train --kind upsampler`", "upsampler")
    return model
