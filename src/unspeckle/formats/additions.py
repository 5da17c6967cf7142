"""What people add to a Stable Diffusion: LoRA, words of their own, another autoencoder."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from unspeckle.errors import InputError
from unspeckle.formats import inversion, lora, vae
from unspeckle.formats.foreign import Foreign
from unspeckle.model import Model
from unspeckle.networks.autoencoder import Autoencoder


def add(
    model: Model, loras: Sequence[str | Path] = (), embeddings: Sequence[Path] = (), autoencoder: Path | None = None
) -> Model:
    """The model, with all of them, in place. loras: files, each perhaps with a colon and its weight behind; they are
    merged into the weights. InputError, one line, where one does not fit, or the model is no Stable Diffusion."""
    option = "--lora" if loras else "--embedding" if embeddings else "--vae" if autoencoder is not None else None
    if option is None:
        return model
    foreign = stable(model, option).changeable(option)
    name = foreign.card.name
    for said in loras:
        file, strength = weighed(str(said))
        lora.read(file, foreign).turn(strength).merge(foreign.parts())
        name += f" + {file.stem}" + (f":{strength:g}" if strength != 1 else "")
    inversion.add(foreign, [existing(file, "--embedding") for file in embeddings])
    if autoencoder is not None:
        foreign.autoencoder = vae.read(autoencoder, foreign)
    foreign.card = replace(foreign.card, name=name)
    return foreign.changed()


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
    return vae.read(path, stable(model, "--preview"))
