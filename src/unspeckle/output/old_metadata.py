"""Names that image metadata had in version 0.1, and those that they have now."""

from typing import Any

OLD_NAMES = {
    "negative": "negative_prompt", "grid": "timestep_spacing", "scale": "guidance_scale",
    "guidance": "guidance_method", "rescale": "guidance_rescale", "interval": "guidance_interval",
    "guide": "guide_model", "threshold": "dynamic_threshold", "paste": "paste_original",
    "variation": "variation_seed", "hires": "hires_size", "tiles": "tile_size",
}  # fmt: skip
OLD_VALUES = {"sampler": {"euler_a": "euler_ancestral"}}


def with_present_names(metadata: dict[str, Any]) -> dict[str, Any]:
    """The metadata by the names of today, whichever version wrote them."""
    renamed = {OLD_NAMES.get(name, name): value for name, value in metadata.items()}
    for name, values in OLD_VALUES.items():
        if isinstance(old := renamed.get(name), str):
            renamed[name] = values.get(old, old)
    return renamed
