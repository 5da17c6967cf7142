"""What peft's configuration, as diffusers keeps it in a LoRA file's metadata, says of the adapters' scales."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from unspeckle.errors import InputError

METADATA_KEY = "lora_adapter_metadata"


class LoraScale(NamedTuple):
    """alpha / rank, or alpha / √rank (Kalajdzievski 2023)."""

    alpha: float
    use_rslora: bool

    def __call__(self, rank: int) -> float:
        return self.alpha / (math.sqrt(rank) if self.use_rslora else rank)


class PeftScales(NamedTuple):
    """Those of all layers: said is peft's configuration, each word behind its module's name."""

    peft_config: Mapping[str, Any]

    def for_layer(self, name: str) -> LoraScale | None:
        """The scale of the layer that peft calls so, such as "unet.mid_block…"; None where nothing is said of it."""
        component, _, layer_name = name.partition(".")
        alpha, patterns = (
            self.peft_config.get(f"{component}.lora_alpha"),
            self.peft_config.get(f"{component}.alpha_pattern") or {},
        )
        if alpha is None:
            return None
        overrides = (
            value for pattern, value in patterns.items() if re.fullmatch(rf"(?:.*\.)?{re.escape(pattern)}", layer_name)
        )
        return LoraScale(float(next(overrides, alpha)), bool(self.peft_config.get(f"{component}.use_rslora")))


def read_peft_scales(metadata: Mapping[str, str], file: Path) -> PeftScales:
    """InputError, one line, where the file's metadata are damaged."""
    try:
        config = json.loads(metadata.get(METADATA_KEY, "{}"))
        alphas = [config[key] for key in config if key.endswith(".lora_alpha")]
        alphas += [value for key in config if key.endswith(".alpha_pattern") for value in (config[key] or {}).values()]
        if all(type(value) in (int, float) and math.isfinite(value) for value in alphas):
            return PeftScales(config)
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError):
        pass
    raise InputError(f"{file}: its metadata are damaged ({METADATA_KEY}); download it again")
