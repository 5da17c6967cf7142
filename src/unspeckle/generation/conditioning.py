"""What a model draws from: prompts, read step by step, as a Denoise.

Text is encoded once for each different caption and prepared once for each different given, before the first step. A
weight w moves a token's embedding away from the mean m of the chunk's embeddings: m + w (z - m). So (word:0) says
nothing of its own, and it is one rule for every text encoder, whose embeddings are only known as (B, L, D).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unspeckle.denoiser import Denoise, Conditioning
from unspeckle.guidance import Rule, combine, join, mixed
from unspeckle.model import Model, Way
from unspeckle.prompts import Blend, Caption, Chunk, Guesses, Prompt, guesses

Shares = tuple[tuple[float, ...], ...]


class State(NamedTuple):
    """What a step asks for: shares[0] of the guesses are wanted, shares[1] unwanted; each has a blend for every row."""

    shares: Shares
    blends: tuple[tuple[Blend, ...], ...]


def denoise(
    model: Model, prompts: Sequence[Prompt], negative: Prompt, way: Way, rule: Rule | None,
    complete: Callable[[Conditioning, bool], Conditioning],
) -> Denoise:  # fmt: skip
    """x̂ of row i from prompts[i], by a rule on the wanted and the unwanted estimate; None = the wanted one alone.

    way.times are those at which the sampler stops: which words count at a time t depends on t alone. Prompts drawn in
    one batch must be alike, see `kind`. complete(given, wanted) adds what else the model wants to be told.
    """
    times = way.times
    states = [_state(model, prompts, negative, step, len(times) - 1, rule is None) for step in range(len(times) - 1)]
    given = _reader(model, states)
    made: dict[State, Denoise] = {}
    for state in states:
        if state not in made:
            summed = mixed(rule or _alone, state.shares)
            wanted = [share == 0 for share in state.shares[1]] if len(state.shares) > 1 else [True] * len(state.blends)
            givens = [complete(given(blends), own) for blends, own in zip(state.blends, wanted, strict=True)]
            made[state] = combine(way.denoiser, givens, summed)
    ends = times[1:-1].double().cpu()

    def at(x_t: Tensor, t: Tensor) -> Tensor:
        step = int((ends >= float(t.flatten()[0]) - 1e-9).sum())  # those that the drawing has come to
        return made[states[step]](x_t, t)

    return at if len(made) > 1 else made[states[0]]


def _alone(first: Callable[[int], Tensor], t: Tensor) -> Tensor:
    return first(1)[0]


def kind(model: Model, prompt: Prompt, steps: int) -> tuple[tuple[float, ...], ...]:
    """Prompts of one kind, the weights of their guesses at each step, can be rows of one batch."""
    return tuple(tuple(weight for weight, _ in _guesses(model, prompt, step, steps)) for step in range(steps))


def _guesses(model: Model, prompt: Prompt, step: int, steps: int) -> Guesses:
    trained = "hybrid" in getattr(model.tokenizer, "known", ())
    return guesses(prompt, step, steps, "words" if trained else "guesses")


def _state(
    model: Model, prompts: Sequence[Prompt], negative: Prompt, step: int, steps: int, wanted_alone: bool
) -> State:
    """Unwanted is Σ v x̂ + (1 - Σ v) x̂ of the empty prompt, wanted is Σ w x̂ + (1 - Σ w) unwanted."""
    read = {prompt: _guesses(model, prompt, step, steps) for prompt in {*prompts, negative}}
    rows = [read[prompt] for prompt in prompts]
    wanted, unwanted = [weight for weight, _ in rows[0]], [weight for weight, _ in read[negative]]
    blends = [tuple(row[i][1] for row in rows) for i in range(len(wanted))]
    blends += [(blend,) * len(rows) for _, blend in read[negative]]
    if (rest := _rest(unwanted)) != 0:
        unwanted, blends = [*unwanted, rest], [*blends, (((1.0, ((),)),),) * len(rows)]
    rest = _rest(wanted)
    if rest == 0 and wanted_alone:
        return State((tuple(wanted),), tuple(blends[: len(wanted)]))
    shares = ((*wanted, *(rest * share for share in unwanted)), (*(0.0 for _ in wanted), *unwanted))
    return State(shares, tuple(blends))


def _rest(weights: Sequence[float]) -> float:
    rest = 1 - sum(weights)
    return 0.0 if abs(rest) < 1e-9 else rest


def _reader(model: Model, states: Sequence[State]) -> Callable[[tuple[Blend, ...]], Conditioning]:
    """What the states' blends become as rows of a Given. Each is encoded and prepared alone and once, so that it does
    not depend on the batch; shorter ones are filled up to the longest's tokens."""
    blends = dict.fromkeys(blend for state in states for rows in state.blends for blend in rows)
    captions = {caption: _encoded(model, caption) for caption in dict.fromkeys(c for b in blends for _, c in b)}
    most = max(given.tokens.shape[1] for given in captions.values())
    if any(given.tokens.shape[1] < most for given in captions.values()):
        empty = _encoded(model, ((),))
        captions = {caption: _filled(given, empty, most) for caption, given in captions.items()}
    prepared = {
        blend: model.denoiser.prepare(_blended([(share, captions[caption]) for share, caption in blend]))
        for blend in blends
    }

    def given(rows: tuple[Blend, ...]) -> Conditioning:
        places = {blend: place for place, blend in enumerate(dict.fromkeys(rows))}
        each = join([prepared[blend] for blend in places])
        at = torch.tensor([places[blend] for blend in rows], device=each.tokens.device)
        mask, vector, beside = (None if field is None else field[at] for field in each[1:4])
        return Conditioning(each.tokens[at], mask, vector, beside, each.prepared)

    return given


def _encoded(model: Model, caption: Caption) -> Conditioning:
    """The caption's chunks side by side, (1, L of all, D); their vectors' mean."""
    read = [_chunk(model, chunk) for chunk in caption]
    if len(read) == 1:
        return read[0]
    mask = None if read[0].mask is None else torch.cat([g.mask for g in read if g.mask is not None], 1)
    vector = None if read[0].vector is None else torch.stack([g.vector for g in read if g.vector is not None]).mean(0)
    return Conditioning(torch.cat([given.tokens for given in read], 1), mask, vector)


def _chunk(model: Model, chunk: Chunk) -> Conditioning:
    text = "".join(said for said, _ in chunk)
    given: Conditioning = model.text(model.tokenizer.encode([text]).to(model.device))
    if all(weight == 1 for _, weight in chunk):
        return given
    heavy = [weight for said, weight in chunk for _ in said]
    spans = model.tokenizer.spans(text)
    weights = given.tokens.new_tensor([heavy[end - 1] if end > start else 1.0 for start, end in spans])
    seen = given.tokens.new_ones(len(spans)) if given.mask is None else given.mask[0].to(given.tokens.dtype)
    mean = (given.tokens * seen[:, None]).sum(1, keepdim=True) / seen.sum()
    return given._replace(tokens=mean + weights[:, None] * (given.tokens - mean))


def _filled(given: Conditioning, empty: Conditioning, length: int) -> Conditioning:
    """As long as others: by tokens that nothing sees, or where everything is seen by empty chunks."""
    lacks = length - given.tokens.shape[1]
    spare = empty.tokens.repeat(1, -(-lacks // empty.tokens.shape[1]), 1)[:, :lacks]
    mask = None if given.mask is None else torch.cat([given.mask, given.mask.new_zeros(1, lacks)], 1)
    return given._replace(tokens=torch.cat([given.tokens, spare], 1), mask=mask)


def _blended(parts: Sequence[tuple[float, Conditioning]]) -> Conditioning:
    """The mean of embeddings, token by token; where one has no token, the others' alone."""
    if len(parts) == 1:
        return parts[0][1]
    shares = torch.tensor([share for share, _ in parts]).to(parts[0][1].tokens)
    each = join([given for _, given in parts])
    parted = shares[:, None] if each.mask is None else shares[:, None] * each.mask.to(shares)  # (n, L)
    tokens = (parted[:, :, None] * each.tokens).sum(0, keepdim=True) / parted.sum(0)[:, None].clamp(min=1e-9)
    mask = None if each.mask is None else each.mask.any(0, keepdim=True)
    vector = None if each.vector is None else (shares[:, None] * each.vector).sum(0, keepdim=True)
    return Conditioning(tokens, mask, vector)
