"""What users add to a Stable Diffusion: LoRA, textual inversions, another autoencoder."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from unspeckle.errors import InputError
from unspeckle.formats.lora.lora_file import read_lora
from unspeckle.formats.stable_diffusion.model import StableDiffusionModel
from unspeckle.formats.stable_diffusion.textual_inversion import add_embeddings
from unspeckle.formats.stable_diffusion.vae_files import read_vae
from unspeckle.model import Model
from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.prompts import MAX_LORA_STRENGTH, LoraTag

LoraFile = tuple[Path, float]  # a file and its strength


def apply_add_ons(
    model: Model,
    loras: Sequence[str | Path] = (),
    embeddings: Sequence[Path] = (),
    *,
    autoencoder: Path | None = None,
    lora_tags: Sequence[LoraTag] = (),
    model_path: Path | None = None,
) -> Model:
    """The model, changed in place.

    loras: LoRA files, each with ":STRENGTH" behind it if it is not to count 1, which are merged into the weights; or
    folders in which those of the prompt may be. embeddings: textual inversions. autoencoder: replaces the model's own.
    lora_tags: those of the prompt, as `parse_prompt` gives them. model_path: where the model is, beside which their
    files are looked for. InputError, one line, where a file does not fit, or the model is no Stable Diffusion; it is
    unchanged then."""
    if lora_tags:
        sd_model = require_stable_diffusion(model, "prompt", f": {lora_tags[0]}")
    elif loras or embeddings or autoencoder is not None:
        sd_model = require_stable_diffusion(model, "loras" if loras else "embeddings" if embeddings else "autoencoder")
    else:
        return model
    sd_model.require_float32("an add-on")
    lora_files = _find_lora_files(loras, lora_tags, model_path)
    adapter_sets = [read_lora(file, sd_model).set_strength(strength) for file, strength in lora_files]
    new_autoencoder = sd_model.autoencoder if autoencoder is None else read_vae(autoencoder, sd_model)
    # the last that may fail, before anything is changed
    add_embeddings(sd_model, [require_file(file, "embeddings") for file in embeddings])
    name = sd_model.card.name
    for adapters, (file, strength) in zip(adapter_sets, lora_files, strict=True):
        adapters.merge(sd_model.modules())
        name += f" + {file.stem}" + (f":{strength:g}" if strength != 1 else "")
    sd_model.autoencoder = new_autoencoder
    sd_model.card, sd_model.loras = replace(sd_model.card, name=name), (*sd_model.loras, *lora_tags)
    return sd_model.invalidate_hash()


def _find_lora_files(
    loras: Sequence[str | Path], lora_tags: Sequence[LoraTag], model_path: Path | None
) -> list[LoraFile]:
    """The LoRA files with their strengths: those of the option, then those of the prompt's tags."""
    folders = [Path(lora) for lora in loras if str(lora) and Path(lora).is_dir()]
    files = [parse_lora_option(str(lora)) for lora in loras if not (str(lora) and Path(lora).is_dir())]
    if folders and not lora_tags:
        raise InputError(
            f" {folders[0]}: is a folder, and the prompt names no LoRA in it by <lora:NAME>; give a file", "loras"
        )
    searched = [*folders, *default_lora_folders(model_path)]
    return files + [(find_lora_file(tag, searched), tag.strength) for tag in lora_tags]


def default_lora_folders(model_path: Path | None) -> list[Path]:
    """The folders in which the LoRA files of a model usually are: its own, and "loras" or "Lora" in that or beside
    it."""
    if model_path is None or not model_path.exists():
        return []
    model_folder = model_path.absolute().parent
    bases = (model_folder, model_folder.parent)
    folders = [model_folder, *(base / name for base in bases for name in ("loras", "Lora"))]
    return [folder for folder in folders if folder.is_dir()]


def find_lora_file(tag: LoraTag, folders: Sequence[Path]) -> Path:
    """The file that a prompt's tag names, in the first folder that has it. InputError where none has."""
    name = f"{tag.name.removesuffix('.safetensors')}.safetensors"
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    searched = ", ".join(map(str, folders)) or "no folder (the model has none of its own)"
    raise InputError(
        f": {tag}: there is no {name} in {searched}; put it there, or give its folder with `loras`", "prompt"
    )


def require_stable_diffusion(model: Model, option: str, value: str = "") -> StableDiffusionModel:
    """The model, typed as what it must be. InputError, naming the option and its value, where it is no Stable
    Diffusion."""
    if not isinstance(model, StableDiffusionModel):
        raise InputError(
            f"{value}: needs a Stable Diffusion, and {model.card.name!r} is none; choose one with `model`", option
        )
    return model


def parse_lora_option(value: str) -> LoraFile:
    """FILE or FILE:STRENGTH. InputError where there is no such file, or the strength is too large."""
    file, colon, strength_text = value.rpartition(":")
    try:
        strength = float(strength_text)
    except ValueError:
        colon = ""
    if not colon or Path(value).is_file():
        return require_file(Path(value), "loras"), 1.0
    if not abs(strength) <= MAX_LORA_STRENGTH:
        raise InputError(
            f" {value}: the strength must lie between -{MAX_LORA_STRENGTH:g} and {MAX_LORA_STRENGTH:g}; 1 is usual",
            "loras",
        )
    return require_file(Path(file), "loras"), strength


def require_file(file: Path, option: str) -> Path:
    """The file. InputError, naming the option, where there is none."""
    if not file.is_file():
        raise InputError(f" {file}: no such file; give a .safetensors file", option)
    return file


def read_preview_autoencoder(model: Model, path: Path) -> Autoencoder:
    """An autoencoder (usually a tiny one) for previews of a drawing; its final image is decoded by the model's own."""
    return read_vae(path, require_stable_diffusion(model, "preview"))
