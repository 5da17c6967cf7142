"""From an ask to pictures: the one door, for command line, scores, training's sample grids and notebooks alike."""

import hashlib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from PIL import Image

from unspeckle import guidance
from unspeckle.denoiser import Denoise, Conditioning
from unspeckle.errors import InputError
from unspeckle.generation import conditioning
from unspeckle.generation.codec import pictures
from unspeckle.generation.few_step import drawer
from unspeckle.generation.initial_latents import Start, again, begin, fitted
from unspeckle.generation.inpainting import masked, pasted, settled
from unspeckle.generation.request import Ask, Order, idle, settle
from unspeckle.model import Model
from unspeckle.output.png import stamp
from unspeckle.prompts import Prompt, parse
from unspeckle.samplers import SAMPLERS, Step
from unspeckle.version import installed

__all__ = [
    "Ask",
    "Order",
    "asked",
    "draw",
    "fingerprint",
    "idle",
    "many",
    "parts",
    "pictures",
    "settle",
    "signed",
    "steps",
    "together",
]

TOGETHER = {"cpu": 1 << 16, "cuda": 1 << 20}  # pixels drawn in one batch: 16 pictures of 64 × 64; 4 of 512 × 512
_UNUSUAL = {  # what a record tells of only where it is not so
    "guidance": "cfg", "rescale": 0, "interval": None, "paste": True, "upscaler": "lanczos", "clip_skip": 1, "tiles": 0,
    "threshold": None,
}  # fmt: skip


def parts(model: Model, ask: Ask) -> list[Order]:
    """The ask cut into batches that memory holds; each goes through `steps` on its own."""
    order = settle(model, ask)
    most = together(model, order)
    return [order.part(first, min(most, order.count - first)) for first in range(0, order.count, most)]


def together(model: Model, order: Order) -> int:
    """How many of the order's pictures are drawn in one batch: as asked, or by their size and the device."""
    pixels = TOGETHER.get(model.device.type, TOGETHER["cpu"])
    return max(1, pixels // math.prod(order.sides)) if order.batch is None else order.batch


def steps(model: Model, ask: Ask) -> Iterator[Step]:
    """Draw all of the ask's pictures as one batch, step by step; the last Step's x is the result (see `pictures`, and
    `parts` for batches of the size that it says).

    A picture depends on its own seed alone, not on its place or its neighbours, but for the rounding of float32. With
    hires, the first part's last Step is followed by those of the second part, which are larger.
    InputError at once, before the first step, where the ask cannot be drawn.
    """
    order = settle(model, ask)
    return _steps(model, order, [parse(order.prompt)] * order.count, *order.seeds())


@torch.no_grad()
def _steps(
    model: Model, order: Order, prompts: Sequence[Prompt], seeds: Sequence[int], others: Sequence[int | None]
) -> Iterator[Step]:
    """One batch: row i from prompts[i] and the noise of seeds[i] (turned to that of others[i]), the rest as ordered."""
    model = drawer(model, order).skipping(order.clip_skip)
    for step in _drawn(model, order, prompts, begin(model, order, seeds, others)):
        yield step
    if order.hires is not None:
        yield from _drawn(model, order, prompts, again(model, order, seeds, others, step.x))


def _drawn(model: Model, order: Order, prompts: Sequence[Prompt], start: Start) -> Iterator[Step]:
    schedule, times = start.way.denoiser.schedule, start.way.times
    denoise = _denoise(model, order, prompts, start)
    if start.mask is not None and start.known is not None:
        denoise = masked(denoise, schedule, start.known, start.noise, start.mask, float(times[0]))
    drawn = SAMPLERS[order.sampler](denoise, schedule, times, start.x, start.fresh)
    return drawn if start.mask is None or start.known is None else settled(drawn, start.known, start.mask)


def _denoise(model: Model, order: Order, prompts: Sequence[Prompt], start: Start) -> Denoise:
    rule, negative = _rule(order, model.cfg_scale(order.scale)), parse(order.negative_prompt)
    size = (start.x.shape[3] * model.autoencoder.factor, start.x.shape[2] * model.autoencoder.factor)

    def complete(one: Model, given: Conditioning, wanted: bool) -> Conditioning:
        if one.masks and start.beside is not None:
            given = given._replace(beside=start.beside.expand(len(given.tokens), -1, -1, -1))
        return one.complete(given, wanted, order.scale, size)

    def read(one: Model, rule: guidance.Rule | None) -> Denoise:
        way = one.way(order.sampler, order.grid, order.steps)._replace(times=start.way.times)
        return conditioning.denoise(one, prompts, negative, way, rule, partial(complete, one))

    if order.guide is None or rule is None:
        denoise = read(model, rule)
    else:
        denoise = guidance.autoguidance(read(model, None), read(order.guide.skipping(order.clip_skip), None), rule)
    bounds: Any = model.autoencoder.bounds if model.card.clamp else None
    if order.threshold is not None:
        return guidance.dynamic_threshold(denoise, bounds[0], bounds[1], order.threshold)
    return denoise if bounds is None else guidance.clamp(denoise, *bounds)


def _rule(order: Order, scale: float) -> guidance.Rule | None:
    """How the order is guided with that scale, None = not at all."""
    if scale == 1:
        return None
    rule = guidance.cfg(scale, order.rescale)
    rule = guidance.projected(rule) if order.guidance == "apg" else rule
    return rule if order.interval is None else guidance.interval(rule, *order.interval)


def draw(model: Model, ask: Ask) -> list[Image.Image]:
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
        kind = tuple(conditioning.kind(model, prompt, count) for count in order.passes)
        alike.setdefault(kind, []).append((place, prompt))
    drawn: dict[int, Image.Image] = {}
    for group in alike.values():
        most = together(model, order)
        for batch in (group[first : first + most] for first in range(0, len(group), most)):
            rows, others = [seeds[place] for place, _ in batch], [order.variation] * len(batch)
            for step in _steps(model, order, [prompt for _, prompt in batch], rows, others):
                last = step
            drawn.update(zip((place for place, _ in batch), pictures(model, last.x), strict=True))
    return [drawn[place] for place in range(len(prompts))]


def signed(model: Model, order: Order, last: Step) -> list[Image.Image]:
    """The pictures of an order's last step, each with the record from which `unspeckle replay` draws it again."""
    common: dict[str, Any] = {
        "prompt": order.prompt,
        "negative": order.negative_prompt,
        "steps": order.steps,
        "sampler": order.sampler,
        "grid": order.grid,
        "scale": order.scale,
        "size": list(order.size),
        "model": {"name": model.card.name, "hash": model.hash},
        "batch": [order.first, order.count],  # rounding differs a little with the neighbours
        "version": installed(),
    }
    unusual = {name: getattr(order, name) for name, usual in _UNUSUAL.items() if getattr(order, name) != usual}
    if order.guide is not None:
        unusual["guide"] = {"name": order.guide.card.name, "hash": order.guide.hash}
    if order.image is not None or order.hires is not None:
        unusual["strength"] = order.strength
    unusual |= {} if model.precision == "float32" else {"precision": model.precision}
    unusual |= {} if order.hires is None else {"hires": list(order.hires)}
    unusual |= {} if order.image is None else {"image": fingerprint(order.image.convert("RGB"))}
    unusual |= {} if order.mask is None else {"mask": fingerprint(order.mask.convert("L"))}
    if not last.x.isfinite().all():
        lower = "" if model.precision == "float32" else f" in {model.precision}; draw in float32"
        logging.getLogger("unspeckle").warning("the network overflows%s; what it drew is grey there", lower)
    drawn = pictures(model, last.x, order.tiles)
    if order.image is not None and order.mask is not None and order.paste:
        picture, mask = (fitted(one, order.size) for one in (order.image.convert("RGB"), order.mask.convert("L")))
        drawn = [pasted(one, picture, mask) for one in drawn]
    for one, seed, other in zip(drawn, *order.seeds(), strict=True):
        varied = {} if other is None else {"variation": other, "variation_strength": order.variation_strength}
        stamp(one, {"seed": seed, **common, **unusual, **varied})
    return drawn


def fingerprint(picture: Image.Image) -> str:
    """16 hex digits of a picture's pixels and size, whatever file they lie in."""
    return hashlib.sha256(f"{picture.mode}{picture.size}".encode() + picture.tobytes()).hexdigest()[:16]


def asked(record: dict[str, Any]) -> tuple[Ask, int]:
    """The ask that a record tells of, and its picture's place in the batch. InputError where it makes none. A guide,
    an image and a mask are not part of it: the record names them, whoever has them puts them in."""
    try:
        first, count = record["batch"]
        width, height = record["size"]
        varied = "variation" in record
        counted = record["variation" if varied else "seed"]
        names = ("prompt", "negative", "steps", "sampler", "grid", "scale")
        said = {name: record[name] for name in names}
        said |= {name: record[name] for name in (*_UNUSUAL, "strength", "variation_strength") if name in record}
        said |= {"hires": tuple(record["hires"])} if "hires" in record else {}
        said |= {"seed": record["seed"], "variation": first} if varied else {"seed": first}
        ask = Ask(count=count, size=(width, height), **said)
    except (KeyError, TypeError, ValueError) as e:
        raise InputError(f"its record is incomplete or damaged ({type(e).__name__}: {e}); give the original PNG") from e
    empty = next((name for name, value in record.items() if value is None), None)
    if empty is not None:  # which in an ask is a choice that is left open
        raise InputError(f"its record is damaged (it says nothing of {empty}); give the original PNG")
    if any(type(number) is not int for number in (first, count, counted)) or not 0 <= counted - first < count:
        raise InputError("its record is damaged (the seed lies outside its batch); give the original PNG")
    return ask, counted - first
