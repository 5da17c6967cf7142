"""What people add to a Stable Diffusion: LoRA, words of their own, another autoencoder."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from unspeckle.errors import InputError
from unspeckle.formats.lora import lora_file
from unspeckle.formats.stable_diffusion import textual_inversion, vae_files
from unspeckle.formats.stable_diffusion.model import Foreign
from unspeckle.model import Model
from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.prompts import Lora


def add(
    model: Model, loras: Sequence[str | Path] = (), embeddings: Sequence[Path] = (), autoencoder: Path | None = None,
    tags: Sequence[Lora] = (), near: Path | None = None,
) -> Model:  # fmt: skip
    """The model, with all of them, in place. loras: files, each perhaps with a colon and its weight behind, merged into
    the weights, or folders where those of the prompt may lie; tags: what the prompt names, as `prompts.parse` tells it;
    near: where the model lies. InputError, one line, where one does not fit, or the model is no Stable Diffusion; it
    is then as it was."""
    options = {f"prompt: {next(iter(tags), '')}": tags, "--lora": loras, "--embedding": embeddings}
    option = next((name for name, given in options.items() if given), "--vae" if autoencoder is not None else None)
    if option is None:
        return model
    foreign = stable(model, option).changeable(option)
    name, places = foreign.card.name, [said for said in loras if str(said) and Path(said).is_dir()]
    files = [weighed(str(said)) for said in loras if said not in places]
    if places and not tags:
        raise InputError(
            f"--lora {places[0]}: is a folder, and the prompt names nothing in it by <lora:…>; give a file"
        )
    files += [(found(tag, [*map(Path, places), *beside(near)]), tag.weight) for tag in tags]
    adapters = [lora_file.read(file, foreign).turn(strength) for file, strength in files]
    decoder = foreign.autoencoder if autoencoder is None else vae_files.read(autoencoder, foreign)
    textual_inversion.add(foreign, [existing(file, "--embedding") for file in embeddings])
    for one, (file, strength) in zip(adapters, files, strict=True):  # nothing fails from here on
        one.merge(foreign.modules())
        name += f" + {file.stem}" + (f":{strength:g}" if strength != 1 else "")
    foreign.autoencoder = decoder
    foreign.card, foreign.loras = replace(foreign.card, name=name), (*foreign.loras, *tags)
    return foreign.changed()


def beside(model: Path | None) -> list[Path]:
    """The folders in which the LoRA of a model lie, as people keep them."""
    if model is None or not model.exists():
        return []
    here = model.absolute().parent
    folders = [here, *(place / name for place in (here, here.parent) for name in ("loras", "Lora"))]
    return [folder for folder in folders if folder.is_dir()]


def found(tag: Lora, places: Sequence[Path]) -> Path:
    """The file that a prompt's tag means, in the first place that has it. InputError where none has."""
    name = f"{tag.name.removesuffix('.safetensors')}.safetensors"
    for place in places:
        if (place / name).is_file():
            return place / name
    looked = ", ".join(map(str, places)) or "no folder, as the model lies in none"
    raise InputError(f"prompt: {tag}: there is no {name} in {looked}; put it there, or name its folder with --lora")


def stable(model: Model, option: str) -> Foreign:
    """The model as what it must be. InputError where it is none."""
    if not isinstance(model, Foreign):
        raise InputError(f"{option}: is for Stable Diffusion, and {model.card.name!r} is none; name one with --model")
    return model


def weighed(said: str) -> tuple[Path, float]:
    """FILE or FILE:WEIGHT, any number. InputError where there is no such file, or the weight is too large or none."""
    file, colon, tail = said.rpartition(":")
    try:
        strength = float(tail)
    except ValueError:
        colon = ""
    if not colon or Path(said).is_file():
        return existing(Path(said), "--lora"), 1.0
    if not abs(strength) <= 100:
        raise InputError(f"--lora {said}: a weight lies between -100 and 100; 1 is usual")
    return existing(Path(file), "--lora"), strength


def existing(file: Path, option: str) -> Path:
    """The file. InputError where there is none."""
    if not file.is_file():
        raise InputError(f"{option} {file}: no such file; give a .safetensors file")
    return file


def preview(model: Model, path: Path) -> Autoencoder:
    """A (tiny) autoencoder that shows what emerges; the picture itself is decoded by the model's own."""
    return vae_files.read(path, stable(model, "--preview"))
