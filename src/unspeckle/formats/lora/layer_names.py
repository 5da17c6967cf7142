"""What LoRA files call the layers of a checkpoint: kohya's names, those of peft and diffusers, and older ones."""

import re
from collections.abc import Iterator

from torch import nn

from unspeckle.formats.checkpoint_parts import CheckpointPart
from unspeckle.formats.stable_diffusion.model import StableDiffusionModel

LORA_LAYOUTS = ("kohya", "peft")
LORA_SUFFIXES = {"kohya": ("lora_down", "lora_up"), "peft": ("lora_A", "lora_B")}  # of each layer's down and up
_SUFFIX_PATTERN = re.compile(r"(.+)\.(?:(?:lora_|lora\.|lora_linear_layer\.)(down|up|A|B)\.weight|(alpha))")
_OLD_ATTENTION_PATTERN = re.compile(r"(?:\.processor)?\.to_(q|k|v|out)_lora\.")  # as diffusers wrote until 2023


def split_lora_key(key: str) -> tuple[str, str] | None:
    """The name of a tensor in a LoRA file as the name of its layer and "down", "up" or "alpha"; None where it belongs
    to no adapter."""
    match = _SUFFIX_PATTERN.fullmatch(_OLD_ATTENTION_PATTERN.sub(_current_attention_name, key))
    if match is None:
        return None
    return match[1], match[3] or {"A": "down", "B": "up"}.get(match[2], match[2])


def _current_attention_name(match: re.Match[str]) -> str:
    if match.string.startswith("text_encoder"):
        return f".{match[1]}_proj.lora."
    return f".to_{match[1]}{'.0' if match[1] == 'out' else ''}.lora."


def lora_layer_names(model: StableDiffusionModel) -> dict[str, tuple[str, ...]]:
    """For each layer that may have an adapter, by our full name: what files call it. The first names are those that are
    written in the layouts of LORA_LAYOUTS; the others are read only."""
    modules = model.modules()
    return {
        f"{part_name}.{layer}": _file_names(part, part_name == "network", names)
        for part_name, part in model.parts.items()
        if part.kohya_prefixes
        for layer, names in _their_layer_names(part, _find_module(modules, part_name))
    }


def _find_module(modules: dict[str, nn.Module], part_name: str) -> nn.Module:
    module, _, path = part_name.partition(".")
    return modules[module].get_submodule(path)


def _their_layer_names(part: CheckpointPart, module: nn.Module) -> Iterator[tuple[str, dict[str, str]]]:
    """Our name of each layer of the part that may have an adapter, with its names by layout."""
    tables = {layout: part.name_table(layout) for layout in dict.fromkeys(("diffusers", *part.kohya_layouts))}
    for layer in _adaptable_layers(module):
        yield (
            layer,
            {
                layout: table[f"{layer}.weight"].partition("#")[0].removesuffix(".weight")
                for layout, table in tables.items()
            },
        )


def _file_names(part: CheckpointPart, is_network: bool, names: dict[str, str]) -> tuple[str, ...]:
    """All that files call a layer, from its names by layout."""
    kohya_names = [
        prefix + names[layout].replace(".", "_") for prefix in part.kohya_prefixes for layout in part.kohya_layouts
    ]
    peft_name = f"{part.folder}.{names['diffusers']}"
    # peft leaves out what transformers 5 leaves out; old files leave out the network's folder
    other_peft_name = (
        names["diffusers"] if is_network else f"{part.folder}.{names['diffusers']}".replace(".text_model.", ".", 1)
    )
    return (kohya_names[0], peft_name, other_peft_name, *kohya_names[1:])


def _adaptable_layers(module: nn.Module) -> Iterator[str]:
    """The names of the linear layers and convolutions; of one with adapters, the name that it had without."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            yield name.removesuffix(".layer")
