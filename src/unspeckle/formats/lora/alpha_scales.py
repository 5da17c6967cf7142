"""What peft's configuration, as diffusers keeps it in a LoRA file's metadata, says of the adapters' scales."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from unspeckle.errors import InputError

KEY = "lora_adapter_metadata"


class Scale(NamedTuple):
    """alpha / rank, or alpha / √rank (Kalajdzievski 2023)."""

    alpha: float
    root: bool

    def __call__(self, rank: int) -> float:
        return self.alpha / (math.sqrt(rank) if self.root else rank)


class Scales(NamedTuple):
    """Those of all layers: said is peft's configuration, each word behind its module's name."""

    said: Mapping[str, Any]

    def of(self, name: str) -> Scale | None:
        """The scale of the layer that peft calls so, such as "unet.mid_block…"; None where nothing is said of it."""
        module, _, inner = name.partition(".")
        alpha, patterns = self.said.get(f"{module}.lora_alpha"), self.said.get(f"{module}.alpha_pattern") or {}
        if alpha is None:
            return None
        own = (one for key, one in patterns.items() if re.fullmatch(rf"(?:.*\.)?{re.escape(key)}", inner))
        return Scale(float(next(own, alpha)), bool(self.said.get(f"{module}.use_rslora")))


def read(metadata: Mapping[str, str], file: Path) -> Scales:
    """InputError, one line, where the file's metadata are damaged."""
    try:
        said = json.loads(metadata.get(KEY, "{}"))
        numbers = [said[key] for key in said if key.endswith(".lora_alpha")]
        numbers += [one for key in said if key.endswith(".alpha_pattern") for one in (said[key] or {}).values()]
        if all(type(one) in (int, float) and math.isfinite(one) for one in numbers):
            return Scales(said)
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError):
        pass
    raise InputError(f"{file}: its metadata are damaged ({KEY}); download it again")
