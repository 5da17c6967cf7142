"""What LoRA files call the layers of a Stable Diffusion: kohya's names, those of peft and diffusers, and older ones."""

import re
from collections.abc import Iterator

from torch import nn

from unspeckle.formats.stable_diffusion import diffusers_names, original_names
from unspeckle.formats.stable_diffusion.checkpoint import module_name_table
from unspeckle.formats.stable_diffusion.model import StableDiffusionModel
from unspeckle.networks.unet import UNet, UNetConfig
from unspeckle.text.clip import CLIPTextEncoder, CLIPTextEncoders

LORA_LAYOUTS = ("kohya", "peft")
LORA_SUFFIXES = {"kohya": ("lora_down", "lora_up"), "peft": ("lora_A", "lora_B")}
_SUFFIX_PATTERN = re.compile(r"(.+)\.(?:(?:lora_|lora\.|lora_linear_layer\.)(down|up|A|B)\.weight|(alpha))")
_OLD_ATTENTION_PATTERN = re.compile(r"(?:\.processor)?\.to_(q|k|v|out)_lora\.")  # until 2023


def split_lora_key(key: str) -> tuple[str, str] | None:
    """A tensor's name as its layer's and "down", "up" or "alpha"; None where it is no adapter's."""
    match = _SUFFIX_PATTERN.fullmatch(_OLD_ATTENTION_PATTERN.sub(_current_suffix, key))
    return None if match is None else (match[1], match[3] or {"A": "down", "B": "up"}.get(match[2], match[2]))


def _current_suffix(match: re.Match[str]) -> str:
    name = f"{match[1]}_proj" if match.string.startswith("text_encoder") else f"to_{match[1]}"
    return f".{name.replace('to_out', 'to_out.0')}.lora."


def lora_layer_names(model: StableDiffusionModel) -> dict[str, tuple[str, ...]]:
    """Every layer that may have an adapter, by our full name, with what files call it: in the order of LAYOUTS as they
    are written here, then whatever else others write."""
    unet, text_encoder = model.network.config, model.text_encoder
    assert isinstance(unet, UNetConfig) and isinstance(text_encoder, CLIPTextEncoders)
    lora_names: dict[str, tuple[str, ...]] = {}
    diffusers_table, original_table = (
        module_name_table(UNet, unet, diffusers_names.UNET),
        module_name_table(UNet, unet, original_names.UNET),
    )
    for name in _adaptable_layers(model.network):
        diffusers_name, original_name = (
            name_table[f"{name}.weight"].removesuffix(".weight") for name_table in (diffusers_table, original_table)
        )
        kohya_names = [f"lora_unet_{dotted.replace('.', '_')}" for dotted in (diffusers_name, original_name)]
        if unet.vector_width:  # kohya has XL by its original names
            kohya_names.reverse()
        lora_names[f"network.{name}"] = (kohya_names[0], f"unet.{diffusers_name}", kohya_names[1], diffusers_name)
    for index, encoder in enumerate(text_encoder.encoders):
        assert isinstance(encoder, CLIPTextEncoder)
        encoder_suffix = (
            "2" if index or (len(text_encoder.encoders) == 1 and unet.vector_width) else ""
        )  # XL's refiner has the second
        kohya_prefix = f"lora_te{encoder_suffix or ('1' if len(text_encoder.encoders) > 1 else '')}_"
        clip_names = module_name_table(CLIPTextEncoder, encoder.config, diffusers_names.CLIP)
        for name in _adaptable_layers(encoder):
            diffusers_name = clip_names[f"{name}.weight"].removesuffix(".weight")
            peft_prefix = f"text_encoder{'_2' if encoder_suffix else ''}."
            kohya_names = [
                prefix + diffusers_name.replace(".", "_") for prefix in (kohya_prefix, "lora_te_", "lora_te1_")
            ]
            lora_names[f"text.encoders.{index}.{name}"] = (
                kohya_names[0], peft_prefix + diffusers_name, peft_prefix + diffusers_name.removeprefix("text_model."), *(kohya_names[1:] if not encoder_suffix else ()),
            )  # fmt: skip
    return lora_names


def _adaptable_layers(module: nn.Module) -> Iterator[str]:
    """Of whom an adapter may stand beside; those that have one already included."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            yield name.removesuffix(".layer")
