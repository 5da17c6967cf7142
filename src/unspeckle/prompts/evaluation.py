"""What a prompt asks a model to guess at one step: captions, their words' weights, their shares."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TypeAlias

from unspeckle.prompts.syntax_tree import (
    Alternation,
    Break,
    Emphasis,
    Hybrid,
    PlainText,
    Prompt,
    PromptEdit,
    PromptNode,
    PromptNodes,
    merge_plain_text,
    separate_words,
)

PromptChunk: TypeAlias = tuple[tuple[str, float], ...]  # runs of text, with the weight of their words
ChunkedPrompt: TypeAlias = tuple[PromptChunk, ...]  # chunks, each read by itself
PromptBlend: TypeAlias = tuple[tuple[float, ChunkedPrompt], ...]  # shares of the captions' embeddings; they sum to 1
WeightedPredictions: TypeAlias = tuple[tuple[float, PromptBlend], ...]  # the weights with which guesses are summed


def predictions(prompt: Prompt, step: int, steps: int, default_hybrid_method: str) -> WeightedPredictions:
    """Of the step, counted from 0, of so many. hybrid: the method (of METHODS) of those that name none."""
    result = []
    for subprompt in prompt.subprompts:
        nodes = _resolve_nodes(subprompt.content, step, steps, default_hybrid_method)
        for share, branch in _expand_hybrids(nodes, "guesses"):
            blend = tuple(
                (blend_share, _to_chunks(nodes_of_part))
                for blend_share, nodes_of_part in _expand_hybrids(branch, "embeddings")
            )
            result.append((subprompt.weight * share, blend))
    return tuple(result)


def _resolve_nodes(nodes: PromptNodes, step: int, steps: int, default_method: str) -> PromptNodes:
    """The text at this step: switches and turns are gone, of hybrids those of mixed embeddings and guesses are left."""

    def resolve(nodes: PromptNodes) -> PromptNodes:
        return merge_plain_text([resolved for node in nodes for resolved in resolve_node(node)])

    def resolve_node(node: PromptNode) -> PromptNodes:
        match node:
            case Emphasis(content):
                return (replace(node, content=resolve(content)),)
            case PromptEdit(before, after, when, in_steps):
                return resolve(before if step < (when if in_steps else round(when * steps)) else after)
            case Alternation(choices):
                return resolve(choices[step % len(choices)])
            case Hybrid():
                return _resolve_hybrid(
                    replace(node, first=resolve(node.first), second=resolve(node.second)), step, steps, default_method
                )
        return (node,)

    return resolve(nodes)


def _resolve_hybrid(node: Hybrid, step: int, steps: int, default_method: str) -> PromptNodes:
    """A hybrid by its method."""
    method = node.method or default_method
    if node.ratio in (0, 1):
        return node.second if node.ratio else node.first
    if method == "words":  # as the captions of `make-corpus emoji` say it
        return (*node.first, PlainText("-"), *_without_article(node.second), PlainText(" hybrid"))
    if method == "switch":
        return node.first if step < round((1 - node.ratio) * steps) else node.second
    if method == "turns":
        return node.second if int((step + 1) * node.ratio) > int(step * node.ratio) else node.first
    return (replace(node, method=method),)


def _without_article(nodes: PromptNodes) -> PromptNodes:
    match nodes:
        case (PlainText(text), *rest):
            article, _, noun = text.partition(" ")
            return (PlainText(noun if article.lower() in ("a", "an", "the") else text), *rest)
    return nodes


def _expand_hybrids(nodes: PromptNodes, method: str) -> list[tuple[float, PromptNodes]]:
    """The texts, with their shares, that hybrids of this method are mixed from."""
    branches: list[tuple[float, list[PromptNode]]] = [(1.0, [])]
    for node in nodes:
        choices = _expand_node(node, method)
        if len(choices) == 1:
            for _, branch in branches:
                branch += choices[0][1]
            continue
        branches = [
            (share * choice_share, [*branch, *choice]) for share, branch in branches for choice_share, choice in choices
        ]
    return [(share, merge_plain_text(branch)) for share, branch in branches]


def _expand_node(node: PromptNode, method: str) -> list[tuple[float, PromptNodes]]:
    match node:
        case Emphasis(content):
            return [(ratio, (replace(node, content=branch),)) for ratio, branch in _expand_hybrids(content, method)]
        case Hybrid(first, second, share, own_method):
            left, right = _expand_hybrids(first, method), _expand_hybrids(second, method)
            if own_method == method:
                return [((1 - share) * branch_share, branch) for branch_share, branch in left] + [
                    (share * branch_share, branch) for branch_share, branch in right
                ]
            return [
                (left_share * right_share, (replace(node, first=left_branch, second=right_branch),))
                for left_share, left_branch in left
                for right_share, right_branch in right
            ]
    return [(1.0, (node,))]


def _to_chunks(nodes: PromptNodes) -> ChunkedPrompt:
    chunks: list[list[tuple[str, float]]] = [[]]
    for text, weight in _weighted_runs(nodes, 1.0):
        if text is None:
            chunks.append([])
            continue
        runs = chunks[-1]
        text = separate_words(runs[-1][0] if runs else "", text)
        if runs and runs[-1][1] == weight:
            text = runs.pop()[0] + text
        runs.append((text, weight))
    return tuple(tuple(runs) for runs in chunks if any(text.strip() for text, _ in runs)) or ((),)


def _weighted_runs(nodes: PromptNodes, weight: float) -> Iterator[tuple[str | None, float]]:
    for node in nodes:
        match node:
            case PlainText(literal):
                yield literal, weight
            case Emphasis(content, emphasis):
                yield from _weighted_runs(content, weight * emphasis)
            case Break():
                yield None, weight
