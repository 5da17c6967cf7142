"""What people add to a Stable Diffusion: LoRA, words of their own, another autoencoder."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from unspeckle.errors import InputError
from unspeckle.formats.lora import lora_file
from unspeckle.formats.stable_diffusion import textual_inversion, vae_files
from unspeckle.formats.stable_diffusion.model import StableDiffusionModel
from unspeckle.model import Model
from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.prompts import LoraTag


def apply_add_ons(
    model: Model, loras: Sequence[str | Path] = (), embeddings: Sequence[Path] = (), autoencoder: Path | None = None,
    lora_tags: Sequence[LoraTag] = (), model_path: Path | None = None,
) -> Model:  # fmt: skip
    """The model, with all of them, in place. loras: files, each perhaps with a colon and its weight behind, merged into
    the weights, or folders where those of the prompt may lie; tags: what the prompt names, as `prompts.parse` tells it;
    near: where the model lies. InputError, one line, where one does not fit, or the model is no Stable Diffusion; it
    is then as it was."""
    options = {f"prompt: {next(iter(lora_tags), '')}": lora_tags, "--lora": loras, "--embedding": embeddings}
    option = next((name for name, value in options.items() if value), "--vae" if autoencoder is not None else None)
    if option is None:
        return model
    sd_model = require_stable_diffusion(model, option).require_float32(option)
    name, lora_folders = sd_model.card.name, [lora for lora in loras if str(lora) and Path(lora).is_dir()]
    weighted_files = [parse_lora_option(str(lora)) for lora in loras if lora not in lora_folders]
    if lora_folders and not lora_tags:
        raise InputError(
            f"--lora {lora_folders[0]}: is a folder, and the prompt names nothing in it by <lora:…>; give a file"
        )
    weighted_files += [
        (find_lora_file(tag, [*map(Path, lora_folders), *default_lora_folders(model_path)]), tag.weight)
        for tag in lora_tags
    ]
    adapters = [lora_file.read_lora(file, sd_model).set_strength(strength) for file, strength in weighted_files]
    new_autoencoder = sd_model.autoencoder if autoencoder is None else vae_files.read_vae(autoencoder, sd_model)
    textual_inversion.add_embeddings(sd_model, [require_file(file, "--embedding") for file in embeddings])
    for adapter, (file, strength) in zip(adapters, weighted_files, strict=True):  # nothing fails from here on
        adapter.merge(sd_model.modules())
        name += f" + {file.stem}" + (f":{strength:g}" if strength != 1 else "")
    sd_model.autoencoder = new_autoencoder
    sd_model.card, sd_model.loras = replace(sd_model.card, name=name), (*sd_model.loras, *lora_tags)
    return sd_model.invalidate_hash()


def default_lora_folders(model_path: Path | None) -> list[Path]:
    """The folders in which the LoRA of a model lie, as people keep them."""
    if model_path is None or not model_path.exists():
        return []
    model_folder = model_path.absolute().parent
    folders = [
        model_folder,
        *(base / name for base in (model_folder, model_folder.parent) for name in ("loras", "Lora")),
    ]
    return [folder for folder in folders if folder.is_dir()]


def find_lora_file(tag: LoraTag, folders: Sequence[Path]) -> Path:
    """The file that a prompt's tag means, in the first place that has it. InputError where none has."""
    name = f"{tag.name.removesuffix('.safetensors')}.safetensors"
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    searched = ", ".join(map(str, folders)) or "no folder, as the model lies in none"
    raise InputError(f"prompt: {tag}: there is no {name} in {searched}; put it there, or name its folder with --lora")


def require_stable_diffusion(model: Model, option: str) -> StableDiffusionModel:
    """The model as what it must be. InputError where it is none."""
    if not isinstance(model, StableDiffusionModel):
        raise InputError(f"{option}: is for Stable Diffusion, and {model.card.name!r} is none; name one with --model")
    return model


def parse_lora_option(value: str) -> tuple[Path, float]:
    """FILE or FILE:WEIGHT, any number. InputError where there is no such file, or the weight is too large or none."""
    file, colon, weight_text = value.rpartition(":")
    try:
        weight = float(weight_text)
    except ValueError:
        colon = ""
    if not colon or Path(value).is_file():
        return require_file(Path(value), "--lora"), 1.0
    if not abs(weight) <= 100:
        raise InputError(f"--lora {value}: a weight lies between -100 and 100; 1 is usual")
    return require_file(Path(file), "--lora"), weight


def require_file(file: Path, option: str) -> Path:
    """The file. InputError where there is none."""
    if not file.is_file():
        raise InputError(f"{option} {file}: no such file; give a .safetensors file")
    return file


def read_preview_autoencoder(model: Model, path: Path) -> Autoencoder:
    """A (tiny) autoencoder that shows what emerges; the picture itself is decoded by the model's own."""
    return vae_files.read_vae(path, require_stable_diffusion(model, "--preview"))
