"""What a model predicts from at one step of a prompt: captions, the weights of their words, and their shares."""

from dataclasses import replace
from itertools import groupby
from typing import TypeAlias

from unspeckle.prompts.hybrid_phrase import article_edit, without_article
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

Run: TypeAlias = tuple[str, float]  # text, and the weight of its words
PromptChunk: TypeAlias = tuple[Run, ...]
ChunkedPrompt: TypeAlias = tuple[PromptChunk, ...]  # chunks, each of which is encoded by itself
PromptBlend: TypeAlias = tuple[tuple[float, ChunkedPrompt], ...]  # shares of the captions' embeddings; they sum to 1
WeightedPredictions: TypeAlias = tuple[tuple[float, PromptBlend], ...]  # the weights with which predictions are summed


def predictions(prompt: Prompt, step: int, steps: int, default_hybrid_method: str) -> WeightedPredictions:
    """The predictions of a prompt at a step, counted from 0, of a drawing of so many steps, and their weights.

    default_hybrid_method: one of HYBRID_METHODS, for hybrids that name none."""
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
    """The nodes at this step: edits and alternations are replaced by their present content; hybrids are left only where
    they are spelled in words, or mix embeddings or predictions."""

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
    """A hybrid at this step, by its method."""
    method = node.method or default_method
    if node.ratio in (0, 1):
        return node.second if node.ratio else node.first
    if method == "switch":
        return node.first if step < round((1 - node.ratio) * steps) else node.second
    if method == "turns":
        return node.second if int((step + 1) * node.ratio) > int(step * node.ratio) else node.first
    return (replace(node, method=method),)


def _expand_hybrids(nodes: PromptNodes, method: str) -> list[tuple[float, PromptNodes]]:
    """The contents that hybrids of this method are mixed from, and their shares."""
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
    chunks: list[list[Run]] = [[]]
    _append_nodes(nodes, 1.0, chunks, with_articles=True)
    return tuple(tuple(runs) for runs in chunks if any(text.strip() for text, _ in runs)) or ((),)


def _append_nodes(nodes: PromptNodes, weight: float, chunks: list[list[Run]], with_articles: bool) -> None:
    """Append the nodes' text to the last chunk; BREAK starts a new one.

    with_articles: whether phrases of hybrids get an article, which those within another hybrid do not."""
    for node in nodes:
        match node:
            case PlainText(text):
                _append_text(text, weight, chunks[-1])
            case Emphasis(content, emphasis):
                _append_nodes(content, weight * emphasis, chunks, with_articles)
            case Break():
                chunks.append([])
            case Hybrid(first, second):
                phrase = (*_without_article(first), PlainText("-"), *_without_article(second), PlainText(" hybrid"))
                phrase_chunks: list[list[Run]] = [[]]
                _append_nodes(phrase, weight, phrase_chunks, with_articles=False)
                if with_articles:
                    _add_article(chunks[-1], phrase_chunks[0])
                for text, run_weight in phrase_chunks[0]:
                    _append_text(text, run_weight, chunks[-1])
                chunks += phrase_chunks[1:]


def _append_text(text: str, weight: float, runs: list[Run]) -> None:
    text = separate_words(runs[-1][0] if runs else "", text)
    if runs and runs[-1][1] == weight:
        text = runs.pop()[0] + text
    runs.append((text, weight))


def _without_article(nodes: PromptNodes) -> PromptNodes:
    match nodes:
        case (PlainText(text), *rest):
            return (PlainText(without_article(text)), *rest)
        case (Emphasis() as emphasis, *rest):
            return (replace(emphasis, content=_without_article(emphasis.content)), *rest)
    return nodes


def _add_article(runs: list[Run], phrase: list[Run]) -> None:
    """Give a hybrid's phrase its article, in the runs before it. It has the weight of the text in whose place, or in
    front of which, it stands."""
    edit = article_edit("".join(text for text, _ in runs), "".join(text for text, _ in phrase))
    if edit is None:
        return
    characters = [(character, weight) for text, weight in runs for character in text]
    weight = characters[edit.start][1] if edit.start < len(characters) else phrase[0][1]
    characters[edit.start : edit.end] = [(character, weight) for character in edit.article]
    groups = groupby(characters, key=lambda item: item[1])
    runs[:] = [("".join(character for character, _ in group), run_weight) for run_weight, group in groups]
