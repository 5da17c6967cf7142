"""The scales of adapters by peft's configuration, which diffusers keeps in a LoRA file's metadata."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from unspeckle.errors import InputError

PEFT_METADATA_KEY = "lora_adapter_metadata"


class LoraScale(NamedTuple):
    """The factor of an adapter's product: alpha / rank, or alpha / √rank (rsLoRA; Kalajdzievski 2023)."""

    alpha: float
    # whether alpha is divided by the root of the rank
    use_rslora: bool

    def __call__(self, rank: int) -> float:
        return self.alpha / (math.sqrt(rank) if self.use_rslora else rank)


class PeftScales(NamedTuple):
    """The scales of all layers."""

    # peft's configuration of each component of the pipeline: "unet.lora_alpha", "text_encoder.alpha_pattern", ...
    config: Mapping[str, Any]

    def for_layer(self, name: str) -> LoraScale | None:
        """The scale of the layer that peft calls by that name, such as "unet.mid_block..."; None where the
        configuration says nothing about its component."""
        component, _, layer_name = name.partition(".")
        alpha = self.config.get(f"{component}.lora_alpha")
        if alpha is None:
            return None
        for pattern, layer_alpha in (self.config.get(f"{component}.alpha_pattern") or {}).items():
            if re.fullmatch(rf"(?:.*\.)?{re.escape(pattern)}", layer_name):
                alpha = layer_alpha
                break
        return LoraScale(float(alpha), bool(self.config.get(f"{component}.use_rslora")))


def read_peft_scales(metadata: Mapping[str, str], file: Path) -> PeftScales:
    """The scales that a file's metadata hold, if any. InputError, one line, where they are damaged."""
    try:
        config = json.loads(metadata.get(PEFT_METADATA_KEY, "{}"))
        alphas = [config[key] for key in config if key.endswith(".lora_alpha")]
        alphas += [value for key in config if key.endswith(".alpha_pattern") for value in (config[key] or {}).values()]
        if all(type(value) in (int, float) and math.isfinite(value) for value in alphas):
            return PeftScales(config)
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError):
        pass
    raise InputError(f"{file}: its metadata are damaged ({PEFT_METADATA_KEY}); download it again")
