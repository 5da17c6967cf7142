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
from unspeckle.guidance import GuidanceRule, guided_denoise, concatenate, composed
from unspeckle.model import Model, SamplingSetup
from unspeckle.prompts import PromptBlend, ChunkedPrompt, PromptChunk, WeightedPredictions, Prompt, predictions

Shares = tuple[tuple[float, ...], ...]


class StepState(NamedTuple):
    """What a step asks for: shares[0] of the guesses are wanted, shares[1] unwanted; each has a blend for every row."""

    weights: Shares
    captions: tuple[tuple[PromptBlend, ...], ...]


def denoise_prompts(
    model: Model, prompts: Sequence[Prompt], negative_prompt: Prompt, setup: SamplingSetup, rule: GuidanceRule | None,
    add_conditioning: Callable[[Conditioning, bool], Conditioning],
) -> Denoise:  # fmt: skip
    """x̂ of row i from prompts[i], by a rule on the wanted and the unwanted estimate; None = the wanted one alone.

    way.times are those at which the sampler stops: which words count at a time t depends on t alone. Prompts drawn in
    one batch must be alike, see `kind`. complete(given, wanted) adds what else the model wants to be told.
    """
    times = setup.times
    states = [
        step_state(model, prompts, negative_prompt, step, len(times) - 1, rule is None)
        for step in range(len(times) - 1)
    ]
    conditioning_of = conditioning_reader(model, states)
    denoisers: dict[StepState, Denoise] = {}
    for state in states:
        if state not in denoisers:
            composed_rule = composed(rule or unguided, state.weights)
            positive = (
                [share == 0 for share in state.weights[1]] if len(state.weights) > 1 else [True] * len(state.captions)
            )
            conditionings = [
                add_conditioning(conditioning_of(blends), own)
                for blends, own in zip(state.captions, positive, strict=True)
            ]
            denoisers[state] = guided_denoise(setup.denoiser, conditionings, composed_rule)
    ends = times[1:-1].double().cpu()

    def at(x_t: Tensor, t: Tensor) -> Tensor:
        step = int((ends >= float(t.flatten()[0]) - 1e-9).sum())  # those that the drawing has come to
        return denoisers[states[step]](x_t, t)

    return at if len(denoisers) > 1 else denoisers[states[0]]


def unguided(first: Callable[[int], Tensor], t: Tensor) -> Tensor:
    return first(1)[0]


def prediction_weights(model: Model, prompt: Prompt, steps: int) -> tuple[tuple[float, ...], ...]:
    """Prompts of one kind, the weights of their guesses at each step, can be rows of one batch."""
    return tuple(tuple(weight for weight, _ in _predictions(model, prompt, step, steps)) for step in range(steps))


def _predictions(model: Model, prompt: Prompt, step: int, steps: int) -> WeightedPredictions:
    trained = "hybrid" in getattr(model.tokenizer, "known", ())
    return predictions(prompt, step, steps, "words" if trained else "guesses")


def step_state(
    model: Model, prompts: Sequence[Prompt], negative: Prompt, step: int, steps: int, wanted_alone: bool
) -> StepState:
    """Unwanted is Σ v x̂ + (1 - Σ v) x̂ of the empty prompt, wanted is Σ w x̂ + (1 - Σ w) unwanted."""
    read = {prompt: _predictions(model, prompt, step, steps) for prompt in {*prompts, negative}}
    rows = [read[prompt] for prompt in prompts]
    wanted, unwanted = [weight for weight, _ in rows[0]], [weight for weight, _ in read[negative]]
    blends = [tuple(row[i][1] for row in rows) for i in range(len(wanted))]
    blends += [(blend,) * len(rows) for _, blend in read[negative]]
    if (rest := remaining_weight(unwanted)) != 0:
        unwanted, blends = [*unwanted, rest], [*blends, (((1.0, ((),)),),) * len(rows)]
    rest = remaining_weight(wanted)
    if rest == 0 and wanted_alone:
        return StepState((tuple(wanted),), tuple(blends[: len(wanted)]))
    shares = ((*wanted, *(rest * share for share in unwanted)), (*(0.0 for _ in wanted), *unwanted))
    return StepState(shares, tuple(blends))


def remaining_weight(weights: Sequence[float]) -> float:
    rest = 1 - sum(weights)
    return 0.0 if abs(rest) < 1e-9 else rest


def conditioning_reader(model: Model, states: Sequence[StepState]) -> Callable[[tuple[PromptBlend, ...]], Conditioning]:
    """What the states' blends become as rows of a Given. Each is encoded and prepared alone and once, so that it does
    not depend on the batch; shorter ones are filled up to the longest's tokens."""
    blends = dict.fromkeys(blend for state in states for rows in state.captions for blend in rows)
    captions = {caption: encode_caption(model, caption) for caption in dict.fromkeys(c for b in blends for _, c in b)}
    most = max(given.tokens.shape[1] for given in captions.values())
    if any(given.tokens.shape[1] < most for given in captions.values()):
        empty = encode_caption(model, ((),))
        captions = {caption: pad_conditioning(given, empty, most) for caption, given in captions.items()}
    prepared = {
        blend: model.denoiser.prepare(blend_conditionings([(share, captions[caption]) for share, caption in blend]))
        for blend in blends
    }

    def given(rows: tuple[PromptBlend, ...]) -> Conditioning:
        places = {blend: place for place, blend in enumerate(dict.fromkeys(rows))}
        each = concatenate([prepared[blend] for blend in places])
        at = torch.tensor([places[blend] for blend in rows], device=each.tokens.device)
        mask, vector, beside = (None if field is None else field[at] for field in each[1:4])
        return Conditioning(each.tokens[at], mask, vector, beside, each.prepared)

    return given


def encode_caption(model: Model, caption: ChunkedPrompt) -> Conditioning:
    """The caption's chunks side by side, (1, L of all, D); their vectors' mean."""
    chunks = [encode_chunk(model, chunk) for chunk in caption]
    if len(chunks) == 1:
        return chunks[0]
    mask = None if chunks[0].mask is None else torch.cat([g.mask for g in chunks if g.mask is not None], 1)
    vector = (
        None if chunks[0].vector is None else torch.stack([g.vector for g in chunks if g.vector is not None]).mean(0)
    )
    return Conditioning(torch.cat([given.tokens for given in chunks], 1), mask, vector)


def encode_chunk(model: Model, chunk: PromptChunk) -> Conditioning:
    text = "".join(said for said, _ in chunk)
    conditioning: Conditioning = model.text_encoder(model.tokenizer.encode([text]).to(model.device))
    if all(weight == 1 for _, weight in chunk):
        return conditioning
    character_weights = [weight for said, weight in chunk for _ in said]
    spans = model.tokenizer.character_spans(text)
    weights = conditioning.tokens.new_tensor([character_weights[end - 1] if end > start else 1.0 for start, end in spans])
    visible = conditioning.tokens.new_ones(len(spans)) if conditioning.mask is None else conditioning.mask[0].to(conditioning.tokens.dtype)
    mean = (conditioning.tokens * visible[:, None]).sum(1, keepdim=True) / visible.sum()
    return conditioning._replace(tokens=mean + weights[:, None] * (conditioning.tokens - mean))


def pad_conditioning(conditioning: Conditioning, empty: Conditioning, length: int) -> Conditioning:
    """As long as others: by tokens that nothing sees, or where everything is seen by empty chunks."""
    missing = length - conditioning.tokens.shape[1]
    padding = empty.tokens.repeat(1, -(-missing // empty.tokens.shape[1]), 1)[:, :missing]
    mask = (
        None
        if conditioning.mask is None
        else torch.cat([conditioning.mask, conditioning.mask.new_zeros(1, missing)], 1)
    )
    return conditioning._replace(tokens=torch.cat([conditioning.tokens, padding], 1), mask=mask)


def blend_conditionings(parts: Sequence[tuple[float, Conditioning]]) -> Conditioning:
    """The mean of embeddings, token by token; where one has no token, the others' alone."""
    if len(parts) == 1:
        return parts[0][1]
    weights = torch.tensor([share for share, _ in parts]).to(parts[0][1].tokens)
    joined = concatenate([given for _, given in parts])
    token_weights = weights[:, None] if joined.mask is None else weights[:, None] * joined.mask.to(weights)  # (n, L)
    tokens = (token_weights[:, :, None] * joined.tokens).sum(0, keepdim=True) / token_weights.sum(0)[:, None].clamp(
        min=1e-9
    )
    mask = None if joined.mask is None else joined.mask.any(0, keepdim=True)
    vector = None if joined.vector is None else (weights[:, None] * joined.vector).sum(0, keepdim=True)
    return Conditioning(tokens, mask, vector)
