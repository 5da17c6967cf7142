"""What a prompt asks a model to guess at one step: captions, their words' weights, their shares."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TypeAlias

from unspeckle.prompts.syntax_tree import (
    Break,
    Hybrid,
    Piece,
    Prompt,
    Switch,
    Text,
    Turns,
    Weighted,
    Words,
    beside,
    merged,
)

Chunk: TypeAlias = tuple[tuple[str, float], ...]  # runs of text, with the weight of their words
Caption: TypeAlias = tuple[Chunk, ...]  # chunks, each read by itself
Blend: TypeAlias = tuple[tuple[float, Caption], ...]  # shares of the captions' embeddings; they sum to 1
Guesses: TypeAlias = tuple[tuple[float, Blend], ...]  # the weights with which guesses are summed


def guesses(prompt: Prompt, step: int, steps: int, hybrid: str) -> Guesses:
    """Of the step, counted from 0, of so many. hybrid: the method (of METHODS) of those that name none."""
    found = []
    for guess in prompt.guesses:
        settled = _settled(guess.text, step, steps, hybrid)
        for share, text in _branches(settled, "guesses"):
            blend = tuple((part, _caption(one)) for part, one in _branches(text, "embeddings"))
            found.append((guess.weight * share, blend))
    return tuple(found)


def _settled(text: Text, step: int, steps: int, hybrid: str) -> Text:
    """The text at this step: switches and turns are gone, of hybrids those of mixed embeddings and guesses are left."""

    def settle(text: Text) -> Text:
        return merged([after for piece in text for after in now(piece)])

    def now(piece: Piece) -> Text:
        match piece:
            case Weighted(inner):
                return (replace(piece, text=settle(inner)),)
            case Switch(first, second, at, counted):
                return settle(first if step < (at if counted else round(at * steps)) else second)
            case Turns(choices):
                return settle(choices[step % len(choices)])
            case Hybrid():
                return _both(
                    replace(piece, first=settle(piece.first), second=settle(piece.second)), step, steps, hybrid
                )
        return (piece,)

    return settle(text)


def _both(piece: Hybrid, step: int, steps: int, hybrid: str) -> Text:
    """A hybrid by its method."""
    method = piece.method or hybrid
    if piece.share in (0, 1):
        return piece.second if piece.share else piece.first
    if method == "words":  # as the captions of `make-corpus emoji` say it
        return (*piece.first, Words("-"), *_without_article(piece.second), Words(" hybrid"))
    if method == "switch":
        return piece.first if step < round((1 - piece.share) * steps) else piece.second
    if method == "turns":
        return piece.second if int((step + 1) * piece.share) > int(step * piece.share) else piece.first
    return (replace(piece, method=method),)


def _without_article(text: Text) -> Text:
    match text:
        case (Words(said), *rest):
            article, _, noun = said.partition(" ")
            return (Words(noun if article.lower() in ("a", "an", "the") else said), *rest)
    return text


def _branches(text: Text, method: str) -> list[tuple[float, Text]]:
    """The texts, with their shares, that hybrids of this method are mixed from."""
    found: list[tuple[float, list[Piece]]] = [(1.0, [])]
    for piece in text:
        choices = _choices(piece, method)
        if len(choices) == 1:
            for _, done in found:
                done += choices[0][1]
            continue
        found = [(share * part, [*done, *more]) for share, done in found for part, more in choices]
    return [(share, merged(done)) for share, done in found]


def _choices(piece: Piece, method: str) -> list[tuple[float, Text]]:
    match piece:
        case Weighted(text):
            return [(share, (replace(piece, text=one),)) for share, one in _branches(text, method)]
        case Hybrid(first, second, share, own):
            left, right = _branches(first, method), _branches(second, method)
            if own == method:
                return [((1 - share) * part, one) for part, one in left] + [(share * part, one) for part, one in right]
            return [(a * b, (replace(piece, first=one, second=other),)) for a, one in left for b, other in right]
    return [(1.0, (piece,))]


def _caption(text: Text) -> Caption:
    chunks: list[list[tuple[str, float]]] = [[]]
    for said, weight in _runs(text, 1.0):
        if said is None:
            chunks.append([])
            continue
        runs = chunks[-1]
        said = beside(runs[-1][0] if runs else "", said)
        if runs and runs[-1][1] == weight:
            said = runs.pop()[0] + said
        runs.append((said, weight))
    return tuple(tuple(runs) for runs in chunks if any(said.strip() for said, _ in runs)) or ((),)


def _runs(text: Text, weight: float) -> Iterator[tuple[str | None, float]]:
    for piece in text:
        match piece:
            case Words(said):
                yield said, weight
            case Weighted(inner, more):
                yield from _runs(inner, weight * more)
            case Break():
                yield None, weight
