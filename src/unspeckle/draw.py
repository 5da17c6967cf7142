"""From an ask to pictures: the one door, for command line, scores, training's sample grids and notebooks alike."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from unspeckle import guidance, seeds
from unspeckle.denoiser import Denoise, Given
from unspeckle.errors import InputError
from unspeckle.model import Model
from unspeckle.picture import stamp
from unspeckle.samplers import GRIDS, SAMPLERS, Step, times
from unspeckle.student import drawer
from unspeckle.version import installed

TOGETHER = 1 << 16  # pixels drawn in one batch: 16 pictures of 64 × 64
_MOST = 1 << 24  # pixels of one picture
_LONGEST = 100_000  # characters of a prompt: more would not be read back from a PNG


@dataclass(frozen=True)
class Ask:
    """What to draw. None = the model card's. Pictures have the seeds seed, seed + 1, … seed + count - 1.

    scale is the guidance scale, 1 = no guidance. size is (width, height) in pixels, or one number for both.
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


def settle(model: Model, ask: Ask | Order) -> Order:
    """The ask with the card's choices filled in. InputError, naming the option, where it cannot be drawn."""
    model = drawer(model, ask)
    card = model.card
    for name, text in (("prompt", ask.prompt), ("negative", ask.negative)):
        if not isinstance(text, str) or len(text) > _LONGEST:
            raise InputError(f"{name}: must be text of at most {_LONGEST} characters")
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise InputError(f"{name}: is not valid Unicode; write it as UTF-8")
    scale = card.scale if ask.scale is None else ask.scale
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
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
        sampler=_named("sampler", card.sampler if ask.sampler is None else ask.sampler, SAMPLERS),
        grid=_named("grid", card.grid if ask.grid is None else ask.grid, GRIDS),
        scale=float(scale),
        size=_fitting(model, card.size if ask.size is None else ask.size),
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
    return _steps(model, settle(model, ask))


@torch.no_grad()
def _steps(model: Model, order: Order) -> Iterator[Step]:
    model = drawer(model, order)
    width, height = (side // model.autoencoder.factor for side in order.size)
    shape = (model.autoencoder.channels, height, width)
    noise = seeds.noise(range(order.seed, order.seed + order.count), shape, model.device)
    way = times(order.grid, model.denoiser.schedule, order.steps)
    _, sigma = model.denoiser.schedule(way[0])
    x = float(sigma) * noise(-1, 0)  # (B, C, H, W)
    yield from SAMPLERS[order.sampler](_denoise(model, order), model.denoiser.schedule, way, x, noise)


def _denoise(model: Model, order: Order) -> Denoise:
    givens = [_given(model, order.prompt, order.count)]
    if order.scale != 1:
        givens.append(_given(model, order.negative, order.count))
    denoise = guidance.combine(model.denoiser, givens, guidance.cfg(order.scale))
    bounds: Any = model.autoencoder.bounds if model.card.clamp else None
    return denoise if bounds is None else guidance.clamp(denoise, *bounds)


def _given(model: Model, words: str, count: int) -> Given:
    """The words as `count` rows; encoded and prepared as one, so that they do not depend on the batch."""
    one: Given = model.denoiser.prepare(model.text(model.tokenizer.encode([words]).to(model.device)))
    tokens, mask, vector, beside = (None if h is None else h.expand(count, *h.shape[1:]) for h in one[:4])
    assert tokens is not None
    return Given(tokens, mask, vector, beside, one.prepared)


def draw(model: Model, ask: Ask | Order) -> list[Image.Image]:
    """The ask's pictures, RGB, in the order of their seeds; `picture.write` saves one with its ask."""
    drawn: list[Image.Image] = []
    for part in parts(model, ask):
        for step in steps(model, part):
            last = step
        drawn += signed(model, part, last)
    return drawn


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
    drawn = pictures(model, last.x)
    return [stamp(image, {"seed": order.seed + place, **common}) for place, image in enumerate(drawn)]


def asked(record: dict[str, Any]) -> tuple[Ask, int]:
    """The ask that a record tells of, and its picture's place in the batch. InputError where it makes none."""
    try:
        first, count = record["batch"]
        width, height = record["size"]
        place = record["seed"] - first
        names = ("prompt", "negative", "steps", "sampler", "grid", "scale")
        ask = Ask(seed=first, count=count, size=(width, height), **{name: record[name] for name in names})
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
