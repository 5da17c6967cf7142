"""The `parameters` text of AUTOMATIC1111's web UI, which many programs read from a PNG file, written and read:

    a frog on stilts
    Negative prompt: blurry
    Steps: 30, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 7, Size: 512x512, Model hash: …, Model: …

The names and their order are those of A1111's `create_infotext`. What A1111 has no name for is left out, but for a
timestep spacing, which a field of our own names.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from unspeckle.errors import InputError
from unspeckle.samplers import SAMPLERS

PARAMETERS_KEY = "parameters"  # of the PNG chunk
SAMPLER_NAMES = {  # by the names of ours; a sampler without an entry is written by our name
    "ddpm": "DDPM",
    "ddim": "DDIM",
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "lms": "LMS",
    "plms": "PLMS",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_sde": "DPM++ SDE",
    "unipc": "UniPC",
    "lcm": "LCM",
}
SCHEDULE_TYPES = {  # by the names of our timestep spacings; uniform and shifted are not in A1111
    "linspace": "Uniform",
    "karras": "Karras",
    "exponential": "Exponential",
    "trailing": "SGM Uniform",
    "leading": "DDIM",
}
_OTHER_SCHEDULE_TYPES = {"Simple": "trailing", "Normal": "linspace"}
# A1111's schedule type "Automatic" by our sampler; "leading" too is what these samplers use whatever the type is.
_AUTOMATIC_SPACINGS = {"dpmpp_2m": "karras", "dpmpp_sde": "karras", "dpmpp_2m_sde": "exponential"}
_LEADING_SAMPLERS = ("ddim", "ddpm", "plms", "unipc")
_UPSCALERS = {"lanczos": "Lanczos", "latent": "Latent"}
_SPACING_FIELD = "Timestep spacing"
_HIRES_SIZE_FIELDS = ("Hires resize", "Hires upscale")
# "Name: value" or 'Name: "quoted value"', as A1111 reads them
_FIELD = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|\Z)')
_NEGATIVE_PROMPT = re.compile(r"(?:\A|\n)[ \t]*Negative prompt: ?")
_NEGATIVE_MARK, _ESCAPED_MARK = "Negative prompt:", "Negative prompt\\:"  # the same in our prompt language


def format_parameters(metadata: Mapping[str, Any]) -> str:
    """The text for the metadata of an image (see `generation.metadata`). What is missing or damaged is left out."""
    size, spacing = _as_size(metadata.get("size")), str(metadata.get("timestep_spacing", ""))
    model = metadata.get("model")
    model = model if isinstance(model, dict) else {}
    fields = {
        "Steps": metadata.get("steps"),
        "Sampler": SAMPLER_NAMES.get(str(metadata.get("sampler")), metadata.get("sampler")),
        "Schedule type": SCHEDULE_TYPES.get(spacing),
        "CFG scale": metadata.get("guidance_scale"),
        "Seed": metadata.get("seed"),
        "Size": None if size is None else f"{size[0]}x{size[1]}",
        "Model hash": model.get("hash"),
        "Model": model.get("name"),
        "Variation seed": metadata.get("variation_seed"),
        "Variation seed strength": metadata.get("variation_strength"),
        "Denoising strength": metadata.get("strength"),
        "Clip skip": metadata.get("clip_skip"),
        **_hires_fields(metadata),
        _SPACING_FIELD: None if spacing in SCHEDULE_TYPES else spacing or None,
        "Version": f"unspeckle {metadata.get('version', '')}".rstrip(),
    }
    settings = ", ".join(f"{name}: {_format_value(value)}" for name, value in fields.items() if value is not None)
    lines = [str(metadata.get("prompt") or ""), str(metadata.get("negative_prompt") or "")]
    prompt, negative_prompt = (line.replace(_NEGATIVE_MARK, _ESCAPED_MARK) for line in lines)
    return "\n".join(filter(None, (prompt, negative_prompt and f"Negative prompt: {negative_prompt}", settings)))


def _hires_fields(metadata: Mapping[str, Any]) -> dict[str, Any]:
    size, hires_size = _as_size(metadata.get("size")), _as_size(metadata.get("hires_size"))
    if size is None or hires_size is None:
        return {}
    (width, height), (hires_width, hires_height) = size, hires_size
    by_factor = hires_width * height == hires_height * width
    return {
        "Hires upscale": hires_width / width if by_factor else None,
        "Hires resize": None if by_factor else f"{hires_width}x{hires_height}",
        "Hires upscaler": _UPSCALERS.get(str(metadata.get("upscaler", "lanczos"))),
    }


def _as_size(value: object) -> tuple[int, int] | None:
    """(width, height), if it is a pair of positive integers."""
    sides = tuple(value) if isinstance(value, list | tuple) else ()
    return sides if len(sides) == 2 and all(type(side) is int and side > 0 for side in sides) else None


def _format_value(value: object) -> str:
    text = repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:\n"]', text) else text


@dataclass(frozen=True)
class A1111Parameters:
    """The parts of a `parameters` text."""

    prompt: str
    negative_prompt: str
    # The fields of its last line by their names, such as "Sampler".
    settings: Mapping[str, str]

    @property
    def model_label(self) -> str:
        """The name and the hash of the model, as far as they are there."""
        name, digest = self.settings.get("Model"), self.settings.get("Model hash")
        return f"{name or 'an unknown model'}{f' ({digest})' if digest else ''}"

    @property
    def starts_from_image(self) -> bool:
        """Whether the drawing started from another image (img2img or inpainting)."""
        return "Denoising strength" in self.settings and not any(name in self.settings for name in _HIRES_SIZE_FIELDS)

    @property
    def unused_settings(self) -> list[str]:
        """The names of the settings that `request_options` does not follow."""
        return [name for name in self.settings if name not in _KNOWN_SETTINGS]


def parse_parameters(text: str) -> A1111Parameters:
    """The parts of a `parameters` text. InputError where it does not end with a line of settings."""
    *lines, last = text.rstrip().split("\n")
    settings = {name: _unquote(value) for name, value in _FIELD.findall(last)}
    if len(settings) < 3:
        raise InputError("its parameters do not end with a line such as Steps: 20, Sampler: Euler a, CFG scale: 7, …")
    prompts = "\n".join(lines)
    found = _NEGATIVE_PROMPT.search(prompts)
    prompt, negative_prompt = (prompts, "") if found is None else (prompts[: found.start()], prompts[found.end() :])
    prompt, negative_prompt = (one.replace(_ESCAPED_MARK, _NEGATIVE_MARK) for one in (prompt, negative_prompt))
    return A1111Parameters(prompt, negative_prompt, settings)


def _unquote(value: str) -> str:
    if not (value.startswith('"') and value.endswith('"') and len(value) > 1):
        return value.strip()
    try:
        return str(json.loads(value))
    except ValueError:
        return value.strip()


def request_options(parameters: A1111Parameters, names: Collection[str] | None = None) -> dict[str, Any]:
    """The options of a Request that the parameters name, by the names of its fields.

    names: only these options, which may then be missing from the parameters; None takes all that there are.
    InputError where a value is damaged or has no counterpart here, such as a sampler; and where names is None, where
    one of steps, sampler, guidance scale, seed and size is missing."""
    options: dict[str, Any] = {}
    for name, (fields, read) in _READERS.items():
        if names is not None and name not in names:
            continue
        if all(field in parameters.settings or field in ("prompt", "negative_prompt") for field in fields):
            try:
                options[name] = read(parameters)
            except (ValueError, KeyError, ZeroDivisionError) as error:
                raise InputError(f"its parameters are damaged ({error}); correct them, or give the options") from error
        elif names is None and name in _REQUIRED:
            raise InputError(f"its parameters lack {fields[0]!r}; give the original PNG file")
    if names is None and any(field in parameters.settings for field in _HIRES_SIZE_FIELDS):
        options |= _read_hires(parameters, options["size"])
    return options


def _read_setting(name: str, kind: Callable[[str], Any]) -> Callable[[A1111Parameters], Any]:
    return lambda parameters: kind(parameters.settings[name])


def _read_size(text: str) -> tuple[int, int]:
    width, height = text.lower().split("x")
    return int(width), int(height)


def _split_sampler(parameters: A1111Parameters) -> tuple[str, str | None]:
    """The sampler by our name, and the schedule type, which older versions wrote behind the sampler's name."""
    name, schedule_type = parameters.settings["Sampler"], parameters.settings.get("Schedule type")
    if schedule_type is None:
        for suffix in sorted((*SCHEDULE_TYPES.values(), *_OTHER_SCHEDULE_TYPES), key=len, reverse=True):
            if name.lower().endswith(f" {suffix.lower()}"):
                name, schedule_type = name[: -len(suffix) - 1], suffix
                break
    names = {sampler: SAMPLER_NAMES.get(sampler, sampler) for sampler in SAMPLERS}
    ours = next((key for key, value in names.items() if value.lower() == name.lower()), None)
    if ours is None:
        raise InputError(f"its sampler {name!r} does not exist here; the samplers are {', '.join(names)}")
    return ours, schedule_type


def _read_timestep_spacing(parameters: A1111Parameters) -> str:
    if (spacing := parameters.settings.get(_SPACING_FIELD)) is not None:
        return spacing
    sampler, schedule_type = _split_sampler(parameters)
    default = "leading" if sampler in _LEADING_SAMPLERS else "linspace"
    if schedule_type is None:
        return default
    if schedule_type == "Automatic":
        return _AUTOMATIC_SPACINGS.get(sampler, default)
    spacings = {value: key for key, value in SCHEDULE_TYPES.items()} | _OTHER_SCHEDULE_TYPES
    if schedule_type not in spacings:
        raise InputError(
            f"its schedule type {schedule_type!r} does not exist here; those known are {', '.join(spacings)}"
        )
    return spacings[schedule_type]


def _read_hires(parameters: A1111Parameters, size: tuple[int, int]) -> dict[str, Any]:
    settings = parameters.settings
    name = settings.get("Hires upscaler", "Latent")
    upscaler = next((ours for ours, theirs in _UPSCALERS.items() if name.startswith(theirs)), None)
    if upscaler is None:
        raise InputError(f"its hires upscaler {name!r} does not exist here; those known are Latent and Lanczos")
    try:
        if "Hires resize" in settings:
            width, height = _read_size(settings["Hires resize"])
        else:
            width, height = (round(side * float(settings["Hires upscale"])) for side in size)
    except (ValueError, OverflowError) as error:
        raise InputError(f"its parameters are damaged ({error}); correct them, or give the options") from error
    return {"hires_size": (width, height), "upscaler": upscaler}


# Of each option of a Request: the fields that it needs, and how it is read from them
_READERS: dict[str, tuple[tuple[str, ...], Callable[[A1111Parameters], Any]]] = {
    "prompt": (("prompt",), lambda parameters: parameters.prompt),
    "negative_prompt": (("negative_prompt",), lambda parameters: parameters.negative_prompt),
    "steps": (("Steps",), _read_setting("Steps", int)),
    "sampler": (("Sampler",), lambda parameters: _split_sampler(parameters)[0]),
    "timestep_spacing": (("Sampler",), _read_timestep_spacing),
    "guidance_scale": (("CFG scale",), _read_setting("CFG scale", float)),
    "seed": (("Seed",), _read_setting("Seed", int)),
    "size": (("Size",), _read_setting("Size", _read_size)),
    "strength": (("Denoising strength",), _read_setting("Denoising strength", float)),
    "clip_skip": (("Clip skip",), _read_setting("Clip skip", int)),
    "variation_seed": (("Variation seed",), _read_setting("Variation seed", int)),
    "variation_strength": (("Variation seed strength",), _read_setting("Variation seed strength", float)),
}
_REQUIRED = ("steps", "sampler", "guidance_scale", "seed", "size")
_KNOWN_SETTINGS = {
    *(field for fields, _ in _READERS.values() for field in fields),
    *("Schedule type", "Hires upscaler", "Model", "Model hash", "Version"),
    *_HIRES_SIZE_FIELDS,
    _SPACING_FIELD,
}
