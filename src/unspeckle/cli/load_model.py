"""The model that a command works with: loaded, with what is added to a Stable Diffusion, in its precision."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from unspeckle.cli.options import ModelOptions
from unspeckle.errors import prefix_with_option
from unspeckle.formats.stable_diffusion.add_ons import apply_add_ons
from unspeckle.model import Model
from unspeckle.model_io.device import resolve_device
from unspeckle.model_io.loading import load
from unspeckle.prompts import LoraTag
from unspeckle.quantization.precision import check_precision, resolve_precision, set_precision


def load_model(options: ModelOptions, lora_tags: Sequence[LoraTag] = ()) -> Model:
    """The model in the precision that it is to compute in. LoRA, those of the prompt's tags too, textual inversions and
    another autoencoder are added before that, in float32.

    InputError, naming the option, where one of these files cannot be used."""
    device = resolve_device(options.device)
    check_precision(options.precision, device)
    has_add_ons = bool(options.loras or options.embeddings or options.vae or lora_tags)
    model = _load(options, options.path, "--model", device, "float32" if has_add_ons else options.precision)
    if not has_add_ons:
        return model
    model = apply_add_ons(
        model,
        options.loras,
        options.embeddings,
        autoencoder=options.vae,
        lora_tags=lora_tags,
        model_path=options.path,
    )
    return set_precision(model, resolve_precision(options.precision, device))


def load_guide_model(options: ModelOptions, path: Path, model: Model) -> Model:
    """The weaker model that guides the model (autoguidance), in the model's precision and with the autoencoder that was
    added to it; its hash stays that of its file."""
    guide = _load(options, path, "--guide-model", resolve_device(options.device), model.precision)
    if options.vae is None:
        return guide
    return replace(guide, autoencoder=model.autoencoder, stored_hash=guide.weights_hash)


def _load(options: ModelOptions, path: Path | None, option: str, device: str, precision: str) -> Model:
    with prefix_with_option(option, path):
        return load(
            path,
            device,
            prediction=options.prediction,
            trust_pickle=options.trust_pickle,
            precision=precision,
        )
