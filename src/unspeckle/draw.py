"""From an ask to pictures: the one door, for command line, scores, training's sample grids and notebooks alike."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from unspeckle import conditioning, guidance
from unspeckle.denoiser import Denoise
from unspeckle.errors import InputError
from unspeckle.grids import GRIDS
from unspeckle.model import Model, Way
from unspeckle.picture import stamp
from unspeckle.prompts import Prompt, parse
from unspeckle.samplers import SAMPLERS, Step
from unspeckle.student import drawer
from unspeckle.version import installed

TOGETHER = 1 << 16  # pixels drawn in one batch: 16 pictures of 64 × 64
_MOST = 1 << 24  # pixels of one picture
GUIDANCE = ("cfg", "apg")
_LONGEST = 100_000  # characters of a prompt: more would not be read back from a PNG


@dataclass(frozen=True)
class Ask:
    """What to draw. None = the model card's. Pictures have the seeds seed, seed + 1, … seed + count - 1.

    prompt and negative are written in the language of `prompts/`. scale is the guidance scale, 1 = no guidance. size is
    (width, height) in pixels, or one number for both. guidance: classifier-free or adaptive projected, see guidance.py;
    interval: the times (low, high) of guidance; rescale: 0 to 1; guide: a weaker model in place of the negative prompt.
    steps that the model's student knows, such as 1, 2 or 4, are drawn by it, unless negative words, or a scale, sampler
    or grid that are not its own, are asked for.
    """

    prompt: str = ""
    negative: str = ""
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


@dataclass(frozen=True)
class Order:
    """An ask with every choice made and found possible."""

    prompt: str
    negative: str
    seed: int
    count: int
    steps: int
    sampler: str
    grid: str
    scale: float
    size: tuple[int, int]
    guidance: str
    rescale: float
    interval: tuple[float, float] | None
    guide: Model | None = field(repr=False)


def settle(model: Model, ask: Ask | Order) -> Order:
    """The ask with the card's choices filled in. InputError, naming the option, where it cannot be drawn."""
    model = drawer(model, ask)
    card = model.card
    sampler = _named("sampler", card.sampler if ask.sampler is None else ask.sampler, SAMPLERS)
    for name, text in (("prompt", ask.prompt), ("negative", ask.negative)):
        if not isinstance(text, str) or len(text) > _LONGEST:
            raise InputError(f"{name}: must be text of at most {_LONGEST} characters")
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise InputError(f"{name}: is not valid Unicode; write it as UTF-8")
        parse(text, name)
    scale = card.scale if ask.scale is None else ask.scale
    if not _number(scale):
        raise InputError(f"scale {scale!r}: must be a finite number; 1 is no guidance, 3 to 7 is usual")
    count, seed = _whole("count", ask.count, 1, 1_000_000), _whole("seed", ask.seed, 0, 2**64 - 1)
    if seed + count > 2**64:
        raise InputError(f"seed {seed} with count {count}: seeds end at 2^64 - 1; take a smaller seed")
    return Order(
        prompt=ask.prompt,
        negative=ask.negative,
        seed=seed,
        count=count,
        steps=_whole("steps", card.steps if ask.steps is None else ask.steps, 1, 1000),
        sampler=sampler,
        grid=_named("grid", model.grid(sampler) if ask.grid is None else ask.grid, GRIDS),
        scale=float(scale),
        size=_fitting(model, card.size if ask.size is None else ask.size),
        guidance=_named("guidance", ask.guidance, GUIDANCE),
        rescale=_share("rescale", ask.rescale),
        interval=None if ask.interval is None else _interval(ask.interval),
        guide=_guide(model, ask),
    )


def parts(model: Model, ask: Ask | Order) -> list[Order]:
    """The ask cut into batches that memory holds; each goes through `steps` on its own."""
    order = settle(model, ask)
    most = max(1, TOGETHER // math.prod(order.size))
    return [
        replace(order, seed=order.seed + first, count=min(most, order.count - first))
        for first in range(0, order.count, most)
    ]


def steps(model: Model, ask: Ask | Order) -> Iterator[Step]:
    """Draw all of the ask's pictures as one batch, step by step; the last Step's x is the result (see `pictures`).

    A picture depends on its own seed alone, not on its place or its neighbours, but for the rounding of float32.
    InputError at once, before the first step, where the ask cannot be drawn.
    """
    order = settle(model, ask)
    return _steps(model, order, [parse(order.prompt)] * order.count, range(order.seed, order.seed + order.count))


@torch.no_grad()
def _steps(model: Model, order: Order, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Iterator[Step]:
    """One batch: row i from prompts[i] and the noise of seeds[i], the rest as ordered."""
    model = drawer(model, order)
    width, height = (side // model.autoencoder.factor for side in order.size)
    fresh = model.noise(seeds, (model.autoencoder.channels, height, width))
    way = model.way(order.sampler, order.grid, order.steps)
    x = way.start * fresh(-1, 0)  # (B, C, H, W)
    denoise = _denoise(model, order, prompts, way)
    yield from SAMPLERS[order.sampler](denoise, way.denoiser.schedule, way.times, x, fresh)


def _denoise(model: Model, order: Order, prompts: Sequence[Prompt], way: Way) -> Denoise:
    rule, negative = _rule(order, model.left(order.scale)), parse(order.negative)

    def read(one: Model, way: Way, rule: guidance.Rule | None) -> Denoise:
        complete = partial(one.complete, scale=order.scale, size=order.size)
        return conditioning.denoise(one, prompts, negative, way, rule, complete)

    if order.guide is None or rule is None:
        denoise = read(model, way, rule)
    else:
        its = read(order.guide, order.guide.way(order.sampler, order.grid, order.steps), None)
        denoise = guidance.autoguidance(read(model, way, None), its, rule)
    bounds: Any = model.autoencoder.bounds if model.card.clamp else None
    return denoise if bounds is None else guidance.clamp(denoise, *bounds)


def _rule(order: Order, scale: float) -> guidance.Rule | None:
    """How the order is guided with that scale, None = not at all."""
    if scale == 1:
        return None
    rule = guidance.cfg(scale, order.rescale)
    rule = guidance.projected(rule) if order.guidance == "apg" else rule
    return rule if order.interval is None else guidance.interval(rule, *order.interval)


def draw(model: Model, ask: Ask | Order) -> list[Image.Image]:
    """The ask's pictures, RGB, in the order of their seeds; `picture.write` saves one with its ask."""
    drawn: list[Image.Image] = []
    for part in parts(model, ask):
        for step in steps(model, part):
            last = step
        drawn += signed(model, part, last)
    return drawn


def many(model: Model, prompts: Sequence[str], seeds: Sequence[int], ask: Ask | None = None) -> list[Image.Image]:
    """prompts[i] drawn with seeds[i], many to a batch; the ask (or the card) says the rest. Each picture is that of
    `draw` but for the rounding of float32, so it carries no record to be replayed by."""
    if len(prompts) != len(seeds):
        raise InputError(f"{len(prompts)} prompts and {len(seeds)} seeds: give one seed for each prompt")
    alike: dict[Any, list[tuple[int, Prompt]]] = {}
    for place, words in enumerate(prompts):
        order = settle(model, replace(ask or Ask(), prompt=words, seed=seeds[place], count=1))
        prompt = parse(words)
        alike.setdefault(conditioning.kind(model, prompt, order.steps), []).append((place, prompt))
    drawn: dict[int, Image.Image] = {}
    for group in alike.values():
        most = max(1, TOGETHER // math.prod(order.size))
        for batch in (group[first : first + most] for first in range(0, len(group), most)):
            for step in _steps(model, order, [prompt for _, prompt in batch], [seeds[place] for place, _ in batch]):
                last = step
            drawn.update(zip((place for place, _ in batch), pictures(model, last.x), strict=True))
    return [drawn[place] for place in range(len(prompts))]


@torch.no_grad()
def pictures(model: Model, x: Tensor) -> list[Image.Image]:
    """x (B, C, H, W), of any time, as RGB pictures."""
    data = ((model.autoencoder.decode(x.float()).nan_to_num().clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8)
    return [Image.fromarray(one) for one in data.permute(0, 2, 3, 1).contiguous().numpy()]


def signed(model: Model, order: Order, last: Step) -> list[Image.Image]:
    """The pictures of an order's last step, each with the record from which `unspeckle replay` draws it again."""
    common: dict[str, Any] = {
        "prompt": order.prompt,
        "negative": order.negative,
        "steps": order.steps,
        "sampler": order.sampler,
        "grid": order.grid,
        "scale": order.scale,
        "size": list(order.size),
        "model": {"name": model.card.name, "hash": model.hash},
        "batch": [order.seed, order.count],  # rounding differs a little with the neighbours
        "version": installed(),
    }
    guide = order.guide and {"name": order.guide.card.name, "hash": order.guide.hash}
    unusual = {"guidance": order.guidance, "rescale": order.rescale, "interval": order.interval, "guide": guide}
    unusual["precision"] = model.precision
    common |= {name: value for name, value in unusual.items() if value not in ("cfg", 0, None, "float32")}
    drawn = pictures(model, last.x)
    return [stamp(image, {"seed": order.seed + place, **common}) for place, image in enumerate(drawn)]


def asked(record: dict[str, Any]) -> tuple[Ask, int]:
    """The ask that a record tells of, and its picture's place in the batch. InputError where it makes none. A guide is
    not part of it: the record names it, whoever has it puts it in."""
    try:
        first, count = record["batch"]
        width, height = record["size"]
        place = record["seed"] - first
        names = ("prompt", "negative", "steps", "sampler", "grid", "scale")
        said = {name: record[name] for name in names}
        said |= {name: record[name] for name in ("guidance", "rescale", "interval") if name in record}
        ask = Ask(seed=first, count=count, size=(width, height), **said)
    except (KeyError, TypeError, ValueError) as e:
        raise InputError(f"its record is incomplete or damaged ({type(e).__name__}: {e}); give the original PNG") from e
    if not 0 <= place < count:
        raise InputError("its record is damaged (the seed lies outside its batch); give the original PNG")
    return ask, place


def _whole(name: str, value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        most = f"to {high}" if high < 2**63 else "to 2^64 - 1"
        raise InputError(f"{name} {value!r}: must be a whole number from {low} {most}")
    return value


def _named(option: str, name: Any, known: Any) -> str:
    if name not in known:
        raise InputError(f"{option} {name!r}: unknown; choose one of {', '.join(known)}")
    return str(name)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


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


def _guide(model: Model, ask: Ask | Order) -> Model | None:
    """The ask's guide, if it sees the same noisy pictures as the model."""
    if ask.guide is None:
        return None
    if ask.negative:
        raise InputError("negative: a guide takes its place; write NOT in the prompt, or leave one of the two out")
    if model.precision != ask.guide.precision:
        raise InputError(f"guide: draws in {ask.guide.precision}, the model in {model.precision}; load both alike")
    mine, its = _border(model), _border(ask.guide)
    if mine[:3] != its[:3] or any(not torch.equal(tensor, its[3][name]) for name, tensor in mine[3].items()):
        name = ask.guide.card.name
        raise InputError(f"guide {name!r}: knows other noise or colours than the model; give one of the same corpus")
    return ask.guide


def _border(model: Model) -> tuple[Any, type, Any, dict[str, Tensor]]:
    """What decides how a noisy picture looks to the network."""
    config: Any = model.autoencoder.config
    return model.denoiser.schedule, type(model.autoencoder), config, model.autoencoder.state_dict()


def _fitting(model: Model, size: int | tuple[int, int]) -> tuple[int, int]:
    """(width, height) if the network can draw it; the InputError names the nearest size that it can."""
    config: Any = model.network.config
    unit = int(config.factor) * model.autoencoder.factor
    least = -(-16 // unit) * unit
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or any(type(side) is not int for side in sides):
        raise InputError(f"size {size!r}: must be a number of pixels or a pair of them, width first")
    near = [max(least, (side + unit // 2) // unit * unit) for side in sides]
    if near != list(sides):
        raise InputError(
            f"size {sides[0]}x{sides[1]}: sides must be multiples of {unit}, at least {least}; "
            f"the nearest that fits is {near[0]}x{near[1]}"
        )
    if math.prod(sides) > _MOST:
        raise InputError(f"size {sides[0]}x{sides[1]}: is over {_MOST} pixels; choose a smaller one")
    return sides[0], sides[1]
