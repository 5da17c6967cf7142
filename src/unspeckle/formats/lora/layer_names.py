"""What LoRA files call the layers of a Stable Diffusion: kohya's names, those of peft and diffusers, and older ones."""

import re
from collections.abc import Iterator

from torch import nn

from unspeckle.formats.stable_diffusion import diffusers_names, original_names
from unspeckle.formats.stable_diffusion.checkpoint import table
from unspeckle.formats.stable_diffusion.model import Foreign
from unspeckle.networks.unet import UNet, UNetConfig
from unspeckle.text.clip import ClipEncoder, ClipTexts

LAYOUTS = ("kohya", "peft")
ENDS = {"kohya": ("lora_down", "lora_up"), "peft": ("lora_A", "lora_B")}
_END = re.compile(r"(.+)\.(?:(?:lora_|lora\.|lora_linear_layer\.)(down|up|A|B)\.weight|(alpha))")
_OLD = re.compile(r"(?:\.processor)?\.to_(q|k|v|out)_lora\.")  # until 2023


def parted(key: str) -> tuple[str, str] | None:
    """A tensor's name as its layer's and "down", "up" or "alpha"; None where it is no adapter's."""
    end = _END.fullmatch(_OLD.sub(_modern, key))
    return None if end is None else (end[1], end[3] or {"A": "down", "B": "up"}.get(end[2], end[2]))


def _modern(old: re.Match[str]) -> str:
    name = f"{old[1]}_proj" if old.string.startswith("text_encoder") else f"to_{old[1]}"
    return f".{name.replace('to_out', 'to_out.0')}.lora."


def spelt(model: Foreign) -> dict[str, tuple[str, ...]]:
    """Every layer that may have an adapter, by our full name, with what files call it: in the order of LAYOUTS as they
    are written here, then whatever else others write."""
    unet, text = model.network.config, model.text_encoder
    assert isinstance(unet, UNetConfig) and isinstance(text, ClipTexts)
    found: dict[str, tuple[str, ...]] = {}
    theirs, original = table(UNet, unet, diffusers_names.UNET), table(UNet, unet, original_names.UNET)
    for name in _layers(model.network):
        plain, old = (one[f"{name}.weight"].removesuffix(".weight") for one in (theirs, original))
        flat = [f"lora_unet_{one.replace('.', '_')}" for one in (plain, old)]
        if unet.vector_width:  # kohya has XL by its original names
            flat.reverse()
        found[f"network.{name}"] = (flat[0], f"unet.{plain}", flat[1], plain)
    for number, encoder in enumerate(text.encoders):
        assert isinstance(encoder, ClipEncoder)
        count = "2" if number or (len(text.encoders) == 1 and unet.vector_width) else ""  # XL's refiner has the second
        own = f"lora_te{count or ('1' if len(text.encoders) > 1 else '')}_"
        names = table(ClipEncoder, encoder.config, diffusers_names.CLIP)
        for name in _layers(encoder):
            plain = names[f"{name}.weight"].removesuffix(".weight")
            peft = f"text_encoder{'_2' if count else ''}."
            flat = [prefix + plain.replace(".", "_") for prefix in (own, "lora_te_", "lora_te1_")]
            found[f"text.encoders.{number}.{name}"] = (
                flat[0], peft + plain, peft + plain.removeprefix("text_model."), *(flat[1:] if not count else ()),
            )  # fmt: skip
    return found


def _layers(module: nn.Module) -> Iterator[str]:
    """Of whom an adapter may stand beside; those that have one already included."""
    for name, one in module.named_modules():
        if isinstance(one, nn.Linear | nn.Conv2d):
            yield name.removesuffix(".layer")
