"""What is asked for, and the order that it becomes once every choice is made and found possible."""

import math
import sys
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from unspeckle.errors import InputError
from unspeckle.generation import conditioning, image_size
from unspeckle.generation.few_step import GUIDANCE_DEFAULTS, select_network
from unspeckle.model import Model
from unspeckle.prompts import LoraTag, parse_prompt
from unspeckle.samplers import SAMPLERS
from unspeckle.timesteps import TIMESTEP_SPACINGS

GUIDANCE_METHODS = ("cfg", "apg")
UPSCALERS = ("lanczos", "latent")
DEFAULT_STRENGTHS = {
    "image": 0.8,
    "mask": 1.0,
    "hires": 0.5,
}  # where none is asked for; those of a picture are diffusers'
LARGEST_SEED = 2**64 - 1


@dataclass(frozen=True)
class Request:
    """What to draw. None = the model card's. Pictures have the seeds seed, seed + 1, … seed + count - 1.

    prompt and negative are written in the language of `prompts/`. scale is the guidance scale, 1 = no guidance, and so
    nothing to do for negative, guidance, rescale, interval and guide (an error in models told of the scale). size is
    (width, height) in pixels, or one number for both. guidance: classifier-free or adaptive projected, see guidance.py;
    interval: the times (low, high) of guidance; rescale: 0 to 1; guide: a weaker model in place of the negative prompt.
    threshold: the share of values, over 0 to 1, that dynamic thresholding leaves within bounds, in models of pixels.
    steps that the model's student knows, such as 1, 2 or 4, are drawn by it, unless negative words, or a scale, sampler
    or grid that are not its own, are asked for.

    image: a picture to go on from; of the steps, the last int(steps · strength) are taken. mask: white where it is to
    be painted anew, black where kept; paste: its own pixels stand in the result where the mask is black. variation:
    another seed, toward whose noise that of `seed` is turned by variation_strength; then pictures have the one seed and
    the variations variation, variation + 1, …. hires: the final size; the picture is drawn at `size`, enlarged by the
    upscaler and drawn on from, with the strength. clip_skip: 1 = the whole text encoder, 2 = without its last layer, as
    A1111 counts. tiles: side in pixels of the parts in which the autoencoder works, 0 = on the whole at once.
    batch: how many of the pictures are drawn together, None = as many as are usual at their size on the device.
    """

    prompt: str = ""
    negative_prompt: str = ""
    seed: int = 0
    count: int = 1
    steps: int | None = None
    sampler: str | None = None
    timestep_spacing: str | None = None
    guidance_scale: float | None = None
    size: int | tuple[int, int] | None = None
    guidance_method: str = "cfg"
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] | None = None
    guide_model: Model | None = field(default=None, repr=False)
    dynamic_threshold: float | None = None
    image: Image.Image | None = field(default=None, repr=False)
    mask: Image.Image | None = field(default=None, repr=False)
    strength: float | None = None
    paste_original: bool = True
    variation_seed: int | None = None
    variation_strength: float = 0.2
    hires_size: int | tuple[int, int] | None = None
    upscaler: str = "lanczos"
    clip_skip: int = 1
    tile_size: int = 0
    batch_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class ResolvedRequest(Request):
    """An ask with every choice made and found possible."""

    steps: int
    sampler: str
    timestep_spacing: str
    guidance_scale: float
    size: tuple[int, int]
    strength: float
    hires_size: tuple[int, int] | None = None

    @property
    def img2img_steps(self) -> int:
        """How many of the steps a drawing takes that goes on from a picture, as diffusers counts them."""
        return min(int(self.steps * self.strength), self.steps)

    @property
    def steps_per_pass(self) -> tuple[int, ...]:
        """How many steps are taken: at once, or before and after the picture is enlarged."""
        return (
            (self.steps, self.img2img_steps) if self.hires_size else (self.img2img_steps if self.image else self.steps,)
        )

    @property
    def total_steps(self) -> int:
        """How many Steps a drawing of it has before its last one."""
        return sum(self.steps_per_pass) + len(self.steps_per_pass) - 1

    @property
    def final_size(self) -> tuple[int, int]:
        """(width, height) of the result."""
        return self.hires_size or self.size

    @property
    def first_seed(self) -> int:
        """The seed that counts up: of the first picture, or of its variation."""
        return self.seed if self.variation_seed is None else self.variation_seed

    def seeds(self) -> tuple[list[int], list[int] | list[None]]:
        """Each picture's seed, and the seed of its variation."""
        counted = list(range(self.first_seed, self.first_seed + self.count))
        return (counted, [None] * self.count) if self.variation_seed is None else ([self.seed] * self.count, counted)

    def slice(self, place: int, count: int) -> "ResolvedRequest":
        """The order of `count` of its pictures, from the given place on."""
        if self.variation_seed is None:
            return replace(self, seed=self.seed + place, count=count)
        return replace(self, variation_seed=self.variation_seed + place, count=count)


def resolve(model: Model, request: Request) -> ResolvedRequest:
    """The ask with the card's choices filled in. InputError, naming the option, where it cannot be drawn."""
    model = select_network(model, request)
    card = model.card
    sampler = check_choice("sampler", card.sampler if request.sampler is None else request.sampler, SAMPLERS)
    for name, text in (("prompt", request.prompt), ("negative", request.negative_prompt)):
        check_loras(model, parse_prompt(text, name).lora_tags, name)
    scale = card.guidance_scale if request.guidance_scale is None else request.guidance_scale
    if not is_number(scale):
        raise InputError(f"scale {scale!r}: must be a finite number; 1 is no guidance, 3 to 7 is usual")
    count, seed = (
        check_integer("count", request.count, 1, 1_000_000),
        check_integer("seed", request.seed, 0, LARGEST_SEED),
    )
    first, name = (seed, "seed") if request.variation_seed is None else (request.variation_seed, "variation")
    if check_integer(name, first, 0, LARGEST_SEED) + count > 2**64:
        raise InputError(f"{name} {first} with count {count}: seeds end at 2^64 - 1; take a smaller one")
    size = image_size.choose_size(model, request.size, request.image, request.mask)
    choices: dict[str, Any] = {
        "steps": check_integer("steps", card.steps if request.steps is None else request.steps, 1, 1000),
        "sampler": sampler,
        "grid": check_choice(
            "grid",
            model.default_timestep_spacing(sampler) if request.timestep_spacing is None else request.timestep_spacing,
            TIMESTEP_SPACINGS,
        ),
        "scale": float(scale),
        "size": size,
        "guidance": check_choice("guidance", request.guidance_method, GUIDANCE_METHODS),
        "rescale": check_fraction("rescale", request.guidance_rescale),
        "interval": None if request.guidance_interval is None else check_interval(request.guidance_interval),
        "guide": check_guide_model(model, request),
        "threshold": None if request.dynamic_threshold is None else check_threshold(model, request.dynamic_threshold),
        "paste": check_bool("paste", request.paste_original),
        "strength": check_strength(request),
        "variation_strength": check_fraction("variation_strength", request.variation_strength),
        "hires": None
        if request.hires_size is None
        else image_size.check_hires_size(image_size.check_size(model, request.hires_size, "hires"), size),
        "upscaler": check_choice("upscaler", request.upscaler, UPSCALERS),
        "clip_skip": check_integer("clip_skip", request.clip_skip, 1, 100),
        "tiles": check_tile_size(model, request.tile_size),
        "batch": None if request.batch_size is None else check_integer("batch", request.batch_size, 1, 1_000_000),
    }
    model.with_clip_skip(request.clip_skip)
    resolved = ResolvedRequest(**{**{one.name: getattr(request, one.name) for one in fields(Request)}, **choices})
    if (
        resolved.dynamic_threshold is not None and 3 * math.prod(resolved.final_size) > image_size.MAX_PIXELS
    ):  # what torch.quantile takes
        raise InputError(
            f"threshold: is reckoned for at most {image_size.MAX_PIXELS // 3} pixels of a picture; leave it out"
        )
    if resolved.img2img_steps < 1:
        raise InputError(
            f"strength {resolved.strength:g}: leaves none of {resolved.steps} steps; choose more of either"
        )
    if model.cfg_scale(2.0) == 1 and (names := ignored_options(model, resolved)):
        why = "this model is told of the guidance scale and guesses once, which it cannot change"
        raise InputError(
            f"{names[0]}: {why}; {'write NOT in the prompt' if resolved.negative_prompt else 'leave it out'}"
        )
    return resolved


def ignored_options(model: Model, resolved: ResolvedRequest) -> list[str]:
    """The options of guidance that change nothing, where none is left for them: at scale 1, and in a model that is told
    of the scale. Prompts whose weights do not sum to 1 (AND, NOT) draw away from the negative one without guidance."""
    if model.cfg_scale(resolved.guidance_scale) != 1:
        return []
    names = [name for name, usual in GUIDANCE_DEFAULTS.items() if getattr(resolved, name) != usual]
    if resolved.negative_prompt:
        weights = map(sum, conditioning.prediction_weights(model, parse_prompt(resolved.prompt), resolved.steps))
        names += ["negative"] if all(abs(1 - weight) < 1e-9 for weight in weights) else []
    return names


def check_loras(model: Model, tags: tuple[LoraTag, ...], name: str) -> None:
    """InputError where a text names adapters that the model has not."""
    if tags and name == "negative":
        raise InputError(f"negative: {tags[0]}: counts for the whole drawing; write it in the prompt")
    if tags and tags != model.loras:
        raise InputError(
            f"prompt: {' '.join(map(str, tags))}: is not in {model.card.name!r}; a Stable Diffusion gets it by "
            "formats.additions.add(model, tags=…)"
        )


def check_integer(name: str, value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        most = f"to {high}" if high < 2**63 else "to 2^64 - 1"
        raise InputError(f"{name} {value!r}: must be a whole number from {low} {most}")
    return value


def check_choice(option: str, name: Any, known: Any) -> str:
    if not isinstance(name, str) or name not in known:
        raise InputError(f"{option} {name!r}: unknown; choose one of {', '.join(known)}")
    return name


def check_bool(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{name} {value!r}: must be True or False")
    return value


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def check_fraction(name: str, value: Any) -> float:
    if not is_number(value) or not 0 <= value <= 1:
        raise InputError(f"{name} {value!r}: must be a number from 0 to 1")
    return float(value)


def check_interval(interval: Any) -> tuple[float, float]:
    if not isinstance(interval, tuple | list) or len(interval) != 2:
        raise InputError(f"interval {interval!r}: must be two times from 0 to 1, the lower first")
    low, high = (check_fraction("interval", time) for time in interval)
    if low > high:
        raise InputError(f"interval {low:g} to {high:g}: the lower time comes first; 0 is the picture, 1 noise")
    return low, high


def check_guide_model(model: Model, request: Request) -> Model | None:
    """The ask's guide, if it sees the same noisy pictures as the model."""
    if request.guide_model is None:
        return None
    if request.negative_prompt:
        raise InputError("negative: a guide takes its place; write NOT in the prompt, or leave one of the two out")
    if model.precision != request.guide_model.precision:
        raise InputError(
            f"guide: draws in {request.guide_model.precision}, the model in {model.precision}; load both alike"
        )
    mine, its = noisy_space(model), noisy_space(request.guide_model)
    if mine[:3] != its[:3] or any(not torch.equal(tensor, its[3][name]) for name, tensor in mine[3].items()):
        name = request.guide_model.card.name
        raise InputError(f"guide {name!r}: knows other noise or colours than the model; give one of the same corpus")
    return request.guide_model


def check_threshold(model: Model, share: Any) -> float:
    if not is_number(share) or not 0 < share <= 1:
        raise InputError(f"threshold {share!r}: must be over 0 and at most 1; 0.995 is usual")
    if model.autoencoder.latent_bounds is None or not model.card.clamp_denoised:
        raise InputError("threshold: this model draws latents, which have no bounds as pixels have; leave it out")
    return float(share)


def noisy_space(model: Model) -> tuple[Any, type, Any, dict[str, Tensor]]:
    """What decides how a noisy picture looks to the network."""
    config: Any = model.autoencoder.config
    return model.denoiser.schedule, type(model.autoencoder), config, model.autoencoder.state_dict()


def check_strength(request: Request) -> float:
    if request.image is not None and request.hires_size is not None:
        raise InputError("hires: does not go with an image to start from; draw that at the size that you want")
    use = "mask" if request.mask is not None else "image" if request.image is not None else "hires"
    if request.image is None and request.hires_size is None:
        if not (request.strength is None or (is_number(request.strength) and request.strength == 1)):
            raise InputError(f"strength {request.strength!r}: says how far to go from a picture; give image or hires")
        return 1.0
    if request.strength is None:
        return DEFAULT_STRENGTHS[use]
    if not is_number(request.strength) or not 0 < request.strength <= 1:
        raise InputError(
            f"strength {request.strength!r}: must be over 0 (the picture as it is) and at most 1 (all anew)"
        )
    return float(request.strength)


def check_tile_size(model: Model, tiles: Any) -> int:
    least = 16 * model.autoencoder.downsampling_factor
    if type(tiles) is not int or not (tiles == 0 or least <= tiles <= image_size.MAX_PIXELS):
        raise InputError(f"tiles {tiles!r}: must be a side of at least {least} pixels, 512 is usual; 0 is the whole")
    return tiles
