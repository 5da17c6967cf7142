"""From prompts to a Denoise: the conditioning of every step, and the predictions that guidance combines.

Every distinct caption is encoded once, and every distinct blend of captions prepared once, before the first step. A
weight w moves a token's embedding z away from the mean m of its chunk's embeddings: m + w (z - m). It needs nothing
from a text encoder but embeddings (B, L, D), and (word:0) removes what the word adds to the mean.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unspeckle.denoiser import Conditioning, Denoise, PreparedConditioning, concatenate, map_fields
from unspeckle.guidance import GuidanceRule, Predict, build_guided_denoise, weighted_predictions
from unspeckle.model import Model, SamplingSetup
from unspeckle.prompts import ChunkedPrompt, Prompt, PromptBlend, PromptChunk, WeightedPredictions, predictions

Weights = tuple[tuple[float, ...], ...]
# (conditioning, whether it is of a positive prediction) -> the conditioning with what else the model takes as an input
AddInputs = Callable[[PreparedConditioning, bool], PreparedConditioning]
# (a blend for each row of a batch) -> the conditioning of these rows
ConditioningOf = Callable[[tuple[PromptBlend, ...]], PreparedConditioning]
EMPTY_PROMPT: PromptBlend = ((1.0, ((),)),)


class StepPlan(NamedTuple):
    """The predictions of a sampling step and how they are combined."""

    # Σ_i weights[0][i] · prediction_i is the positive prediction; the same with weights[1], if there, the negative one.
    weights: Weights
    # Of each prediction, a blend for every row of the batch.
    blends: tuple[tuple[PromptBlend, ...], ...]


def build_prompt_denoise(
    model: Model,
    prompts: Sequence[Prompt],
    negative_prompt: Prompt,
    setup: SamplingSetup,
    rule: GuidanceRule | None,
    add_inputs: AddInputs,
) -> Denoise:
    """A Denoise whose row i is denoised by prompts[i] and the negative prompt, combined by the rule; None takes the
    positive prediction alone.

    setup.times are those of this pass: which words count at a time t depends on t alone. Prompts of one
    batch must have the same `prediction_weights`. add_inputs adds what else the model takes as an input."""
    times = setup.times
    count = len(times) - 1
    plans = [_plan_step(model, prompts, negative_prompt, step, count, rule is None) for step in range(count)]
    conditioning_of = _prepare_blends(model, plans)
    denoisers: dict[StepPlan, Denoise] = {}
    for plan in plans:
        if plan not in denoisers:
            # A prediction is a negative one if it has a weight in the negative sum.
            negative_weights = plan.weights[1] if len(plan.weights) > 1 else (0.0,) * len(plan.blends)
            conditionings = [
                add_inputs(conditioning_of(blends), weight == 0)
                for blends, weight in zip(plan.blends, negative_weights, strict=True)
            ]
            denoisers[plan] = build_guided_denoise(
                setup.denoiser, conditionings, weighted_predictions(rule or _unguided, plan.weights)
            )
    step_ends = times[1:-1].double().cpu()

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        step = int((step_ends >= float(t.flatten()[0]) - 1e-9).sum())  # the step in which the time t lies
        return denoisers[plans[step]](x_t, t)

    return denoise if len(denoisers) > 1 else denoisers[plans[0]]


def _unguided(predict: Predict, t: Tensor) -> Tensor:
    return predict(1)[0]


def prediction_weights(model: Model, prompt: Prompt, steps: int) -> Weights:
    """The weights of the prompt's predictions at each step. Prompts whose weights are equal can share a batch."""
    return tuple(tuple(weight for weight, _ in _predictions(model, prompt, step, steps)) for step in range(steps))


def _predictions(model: Model, prompt: Prompt, step: int, steps: int) -> WeightedPredictions:
    knows_hybrids = "hybrid" in getattr(model.tokenizer, "known_words", ())
    return predictions(prompt, step, steps, "words" if knows_hybrids else "guesses")


def _plan_step(
    model: Model, prompts: Sequence[Prompt], negative_prompt: Prompt, step: int, steps: int, positive_only: bool
) -> StepPlan:
    """The predictions of one step. With weights v_i of the negative prompt's and w_i of the prompts' predictions x̂_i,

    negative = Σ v_i x̂_i + (1 - Σ v_i) x̂ of the empty prompt,    positive = Σ w_i x̂_i + (1 - Σ w_i) negative."""
    by_prompt = {prompt: _predictions(model, prompt, step, steps) for prompt in {*prompts, negative_prompt}}
    rows = [by_prompt[prompt] for prompt in prompts]
    positive, negative = [weight for weight, _ in rows[0]], [weight for weight, _ in by_prompt[negative_prompt]]
    blends = [tuple(row[i][1] for row in rows) for i in range(len(positive))]
    blends += [(blend,) * len(rows) for _, blend in by_prompt[negative_prompt]]
    if (rest := _remaining_weight(negative)) != 0:
        negative, blends = [*negative, rest], [*blends, (EMPTY_PROMPT,) * len(rows)]
    rest = _remaining_weight(positive)
    if rest == 0 and positive_only:
        return StepPlan((tuple(positive),), tuple(blends[: len(positive)]))
    weights = ((*positive, *(rest * weight for weight in negative)), (*(0.0 for _ in positive), *negative))
    return StepPlan(weights, tuple(blends))


def _remaining_weight(weights: Sequence[float]) -> float:
    """1 - Σ weights, exactly 0 where it is 0 but for rounding."""
    rest = 1 - sum(weights)
    return 0.0 if abs(rest) < 1e-9 else rest


def _prepare_blends(model: Model, plans: Sequence[StepPlan]) -> ConditioningOf:
    """Encode and prepare every blend of the plans, each alone and once, so that it does not depend on its batch.
    Shorter ones are padded to the number of tokens of the longest."""
    distinct_blends = dict.fromkeys(blend for plan in plans for rows in plan.blends for blend in rows)
    encoded = encode_blends(model, list(distinct_blends))
    prepared = {blend: model.denoiser.prepare(conditioning) for blend, conditioning in encoded.items()}

    def conditioning_of(rows: tuple[PromptBlend, ...]) -> PreparedConditioning:
        index = {blend: i for i, blend in enumerate(dict.fromkeys(rows))}
        distinct = concatenate([prepared[blend] for blend in index])
        which = torch.tensor([index[blend] for blend in rows], device=distinct.keys_values.device)
        return map_fields(distinct, lambda field: field[which])

    return conditioning_of


def encode_blends(model: Model, blends: Sequence[PromptBlend]) -> dict[PromptBlend, Conditioning]:
    """The conditioning of each blend (1 row), padded to the number of tokens of the longest. Each caption is encoded
    once."""
    captions = dict.fromkeys(caption for blend in blends for _, caption in blend)
    encoded = {caption: encode_caption(model, caption) for caption in captions}
    longest = max(conditioning.tokens.shape[1] for conditioning in encoded.values())
    if any(conditioning.tokens.shape[1] < longest for conditioning in encoded.values()):
        empty = encode_caption(model, ((),))
        encoded = {caption: _pad_tokens(conditioning, empty, longest) for caption, conditioning in encoded.items()}
    return {blend: _blend([(share, encoded[caption]) for share, caption in blend]) for blend in blends}


def encode_caption(model: Model, caption: ChunkedPrompt) -> Conditioning:
    """The conditioning of a caption: the tokens of its chunks one after another, (1, Σ L, D), and the mean of their
    vectors."""
    chunks = [_encode_chunk(model, chunk) for chunk in caption]
    if len(chunks) == 1:
        return chunks[0]
    masks, vectors = [chunk.mask for chunk in chunks], [chunk.vector for chunk in chunks]
    mask = None if masks[0] is None else torch.cat([mask for mask in masks if mask is not None], 1)
    vector = None if vectors[0] is None else torch.stack([vector for vector in vectors if vector is not None]).mean(0)
    return Conditioning(torch.cat([chunk.tokens for chunk in chunks], 1), mask, vector)


def _encode_chunk(model: Model, chunk: PromptChunk) -> Conditioning:
    text = "".join(run for run, _ in chunk)
    conditioning: Conditioning = model.text_encoder(model.tokenizer.encode([text]).to(model.device))
    if all(weight == 1 for _, weight in chunk):
        return conditioning
    character_weights = [weight for run, weight in chunk for _ in run]
    spans = model.tokenizer.character_spans(text)
    tokens, mask = conditioning.tokens, conditioning.mask
    weights = tokens.new_tensor([character_weights[end - 1] if end > start else 1.0 for start, end in spans])
    visible = tokens.new_ones(len(spans)) if mask is None else mask[0].to(tokens.dtype)
    mean = (tokens * visible[:, None]).sum(1, keepdim=True) / visible.sum()
    return conditioning._replace(tokens=mean + weights[:, None] * (tokens - mean))


def _pad_tokens(conditioning: Conditioning, empty: Conditioning, length: int) -> Conditioning:
    """Padded to `length` tokens: by masked ones, or where there is no mask by the tokens of empty chunks."""
    missing = length - conditioning.tokens.shape[1]
    padding = empty.tokens.repeat(1, -(-missing // empty.tokens.shape[1]), 1)[:, :missing]
    mask = conditioning.mask
    mask = None if mask is None else torch.cat([mask, mask.new_zeros(1, missing)], 1)
    return conditioning._replace(tokens=torch.cat([conditioning.tokens, padding], 1), mask=mask)


def _blend(parts: Sequence[tuple[float, Conditioning]]) -> Conditioning:
    """The weighted mean of embeddings, token by token, over those that have a token there."""
    if len(parts) == 1:
        return parts[0][1]
    shares = torch.tensor([share for share, _ in parts]).to(parts[0][1].tokens)
    joined = concatenate([conditioning for _, conditioning in parts])
    weights = shares[:, None] if joined.mask is None else shares[:, None] * joined.mask.to(shares)  # (n, L)
    tokens = (weights[:, :, None] * joined.tokens).sum(0, keepdim=True) / weights.sum(0)[:, None].clamp(min=1e-9)
    mask = None if joined.mask is None else joined.mask.any(0, keepdim=True)
    vector = None if joined.vector is None else (shares[:, None] * joined.vector).sum(0, keepdim=True)
    return Conditioning(tokens, mask, vector)
