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
from unspeckle.generation.few_step import GUIDED, drawer
from unspeckle.model import Model
from unspeckle.prompts import Lora, parse
from unspeckle.samplers import SAMPLERS
from unspeckle.timesteps import GRIDS

GUIDANCE = ("cfg", "apg")
UPSCALERS = ("lanczos", "latent")
STRENGTHS = {"image": 0.8, "mask": 1.0, "hires": 0.5}  # where none is asked for; those of a picture are diffusers'
LARGEST_SEED = 2**64 - 1


@dataclass(frozen=True)
class Ask:
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
    grid: str | None = None
    scale: float | None = None
    size: int | tuple[int, int] | None = None
    guidance: str = "cfg"
    rescale: float = 0.0
    interval: tuple[float, float] | None = None
    guide: Model | None = field(default=None, repr=False)
    threshold: float | None = None
    image: Image.Image | None = field(default=None, repr=False)
    mask: Image.Image | None = field(default=None, repr=False)
    strength: float | None = None
    paste: bool = True
    variation: int | None = None
    variation_strength: float = 0.2
    hires: int | tuple[int, int] | None = None
    upscaler: str = "lanczos"
    clip_skip: int = 1
    tiles: int = 0
    batch: int | None = None


@dataclass(frozen=True, kw_only=True)
class Order(Ask):
    """An ask with every choice made and found possible."""

    steps: int
    sampler: str
    grid: str
    scale: float
    size: tuple[int, int]
    strength: float
    hires: tuple[int, int] | None = None

    @property
    def later(self) -> int:
        """How many of the steps a drawing takes that goes on from a picture, as diffusers counts them."""
        return min(int(self.steps * self.strength), self.steps)

    @property
    def passes(self) -> tuple[int, ...]:
        """How many steps are taken: at once, or before and after the picture is enlarged."""
        return (self.steps, self.later) if self.hires else (self.later if self.image else self.steps,)

    @property
    def moves(self) -> int:
        """How many Steps a drawing of it has before its last one."""
        return sum(self.passes) + len(self.passes) - 1

    @property
    def sides(self) -> tuple[int, int]:
        """(width, height) of the result."""
        return self.hires or self.size

    @property
    def first(self) -> int:
        """The seed that counts up: of the first picture, or of its variation."""
        return self.seed if self.variation is None else self.variation

    def seeds(self) -> tuple[list[int], list[int] | list[None]]:
        """Each picture's seed, and the seed of its variation."""
        counted = list(range(self.first, self.first + self.count))
        return (counted, [None] * self.count) if self.variation is None else ([self.seed] * self.count, counted)

    def part(self, place: int, count: int) -> "Order":
        """The order of `count` of its pictures, from the given place on."""
        if self.variation is None:
            return replace(self, seed=self.seed + place, count=count)
        return replace(self, variation=self.variation + place, count=count)


def settle(model: Model, ask: Ask) -> Order:
    """The ask with the card's choices filled in. InputError, naming the option, where it cannot be drawn."""
    model = drawer(model, ask)
    card = model.card
    sampler = _named("sampler", card.sampler if ask.sampler is None else ask.sampler, SAMPLERS)
    for name, text in (("prompt", ask.prompt), ("negative", ask.negative_prompt)):
        _worn(model, parse(text, name).loras, name)
    scale = card.scale if ask.scale is None else ask.scale
    if not _number(scale):
        raise InputError(f"scale {scale!r}: must be a finite number; 1 is no guidance, 3 to 7 is usual")
    count, seed = _whole("count", ask.count, 1, 1_000_000), _whole("seed", ask.seed, 0, LARGEST_SEED)
    first, name = (seed, "seed") if ask.variation is None else (ask.variation, "variation")
    if _whole(name, first, 0, LARGEST_SEED) + count > 2**64:
        raise InputError(f"{name} {first} with count {count}: seeds end at 2^64 - 1; take a smaller one")
    size = image_size.chosen(model, ask.size, ask.image, ask.mask)
    settled: dict[str, Any] = {
        "steps": _whole("steps", card.steps if ask.steps is None else ask.steps, 1, 1000),
        "sampler": sampler,
        "grid": _named("grid", model.grid(sampler) if ask.grid is None else ask.grid, GRIDS),
        "scale": float(scale),
        "size": size,
        "guidance": _named("guidance", ask.guidance, GUIDANCE),
        "rescale": _share("rescale", ask.rescale),
        "interval": None if ask.interval is None else _interval(ask.interval),
        "guide": _guide(model, ask),
        "threshold": None if ask.threshold is None else _threshold(model, ask.threshold),
        "paste": _either("paste", ask.paste),
        "strength": _strength(ask),
        "variation_strength": _share("variation_strength", ask.variation_strength),
        "hires": None if ask.hires is None else image_size.larger(image_size.fitting(model, ask.hires, "hires"), size),
        "upscaler": _named("upscaler", ask.upscaler, UPSCALERS),
        "clip_skip": _whole("clip_skip", ask.clip_skip, 1, 100),
        "tiles": _tiles(model, ask.tiles),
        "batch": None if ask.batch is None else _whole("batch", ask.batch, 1, 1_000_000),
    }
    model.skipping(ask.clip_skip)
    order = Order(**{**{one.name: getattr(ask, one.name) for one in fields(Ask)}, **settled})
    if order.threshold is not None and 3 * math.prod(order.sides) > image_size.MOST:  # what torch.quantile takes
        raise InputError(f"threshold: is reckoned for at most {image_size.MOST // 3} pixels of a picture; leave it out")
    if order.later < 1:
        raise InputError(f"strength {order.strength:g}: leaves none of {order.steps} steps; choose more of either")
    if model.cfg_scale(2.0) == 1 and (names := idle(model, order)):
        why = "this model is told of the guidance scale and guesses once, which it cannot change"
        raise InputError(f"{names[0]}: {why}; {'write NOT in the prompt' if order.negative_prompt else 'leave it out'}")
    return order


def idle(model: Model, order: Order) -> list[str]:
    """The options of guidance that change nothing, where none is left for them: at scale 1, and in a model that is told
    of the scale. Prompts whose weights do not sum to 1 (AND, NOT) draw away from the negative one without guidance."""
    if model.cfg_scale(order.scale) != 1:
        return []
    names = [name for name, usual in GUIDED.items() if getattr(order, name) != usual]
    if order.negative_prompt:
        weights = map(sum, conditioning.kind(model, parse(order.prompt), order.steps))
        names += ["negative"] if all(abs(1 - weight) < 1e-9 for weight in weights) else []
    return names


def _worn(model: Model, tags: tuple[Lora, ...], name: str) -> None:
    """InputError where a text names adapters that the model has not."""
    if tags and name == "negative":
        raise InputError(f"negative: {tags[0]}: counts for the whole drawing; write it in the prompt")
    if tags and tags != model.loras:
        raise InputError(
            f"prompt: {' '.join(map(str, tags))}: is not in {model.card.name!r}; a Stable Diffusion gets it by "
            "formats.additions.add(model, tags=…)"
        )


def _whole(name: str, value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        most = f"to {high}" if high < 2**63 else "to 2^64 - 1"
        raise InputError(f"{name} {value!r}: must be a whole number from {low} {most}")
    return value


def _named(option: str, name: Any, known: Any) -> str:
    if not isinstance(name, str) or name not in known:
        raise InputError(f"{option} {name!r}: unknown; choose one of {', '.join(known)}")
    return name


def _either(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{name} {value!r}: must be True or False")
    return value


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _share(name: str, value: Any) -> float:
    if not _number(value) or not 0 <= value <= 1:
        raise InputError(f"{name} {value!r}: must be a number from 0 to 1")
    return float(value)


def _interval(interval: Any) -> tuple[float, float]:
    if not isinstance(interval, tuple | list) or len(interval) != 2:
        raise InputError(f"interval {interval!r}: must be two times from 0 to 1, the lower first")
    low, high = (_share("interval", time) for time in interval)
    if low > high:
        raise InputError(f"interval {low:g} to {high:g}: the lower time comes first; 0 is the picture, 1 noise")
    return low, high


def _guide(model: Model, ask: Ask) -> Model | None:
    """The ask's guide, if it sees the same noisy pictures as the model."""
    if ask.guide is None:
        return None
    if ask.negative_prompt:
        raise InputError("negative: a guide takes its place; write NOT in the prompt, or leave one of the two out")
    if model.precision != ask.guide.precision:
        raise InputError(f"guide: draws in {ask.guide.precision}, the model in {model.precision}; load both alike")
    mine, its = _border(model), _border(ask.guide)
    if mine[:3] != its[:3] or any(not torch.equal(tensor, its[3][name]) for name, tensor in mine[3].items()):
        name = ask.guide.card.name
        raise InputError(f"guide {name!r}: knows other noise or colours than the model; give one of the same corpus")
    return ask.guide


def _threshold(model: Model, share: Any) -> float:
    if not _number(share) or not 0 < share <= 1:
        raise InputError(f"threshold {share!r}: must be over 0 and at most 1; 0.995 is usual")
    if model.autoencoder.bounds is None or not model.card.clamp:
        raise InputError("threshold: this model draws latents, which have no bounds as pixels have; leave it out")
    return float(share)


def _border(model: Model) -> tuple[Any, type, Any, dict[str, Tensor]]:
    """What decides how a noisy picture looks to the network."""
    config: Any = model.autoencoder.config
    return model.denoiser.schedule, type(model.autoencoder), config, model.autoencoder.state_dict()


def _strength(ask: Ask) -> float:
    if ask.image is not None and ask.hires is not None:
        raise InputError("hires: does not go with an image to start from; draw that at the size that you want")
    use = "mask" if ask.mask is not None else "image" if ask.image is not None else "hires"
    if ask.image is None and ask.hires is None:
        if not (ask.strength is None or (_number(ask.strength) and ask.strength == 1)):
            raise InputError(f"strength {ask.strength!r}: says how far to go from a picture; give image or hires")
        return 1.0
    if ask.strength is None:
        return STRENGTHS[use]
    if not _number(ask.strength) or not 0 < ask.strength <= 1:
        raise InputError(f"strength {ask.strength!r}: must be over 0 (the picture as it is) and at most 1 (all anew)")
    return float(ask.strength)


def _tiles(model: Model, tiles: Any) -> int:
    least = 16 * model.autoencoder.factor
    if type(tiles) is not int or not (tiles == 0 or least <= tiles <= image_size.MOST):
        raise InputError(f"tiles {tiles!r}: must be a side of at least {least} pixels, 512 is usual; 0 is the whole")
    return tiles
