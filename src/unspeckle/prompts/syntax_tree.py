"""The syntax tree of a prompt, and its canonical text."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import groupby
from typing import TypeAlias

EMPHASIS_WEIGHT, DEEMPHASIS_WEIGHT = 1.1, 1 / 1.1
# How a hybrid is drawn, see docs/prompts.md: its name in words, mean embeddings, mean predictions, one after the other,
# or alternating
HYBRID_METHODS = ("words", "embeddings", "guesses", "switch", "turns")

Span = tuple[int, int]  # characters of the source, from and to
_SPAN: Span = field(default=(0, 0), compare=False)


@dataclass(frozen=True)
class PlainText:
    """Text that means itself."""

    text: str
    span: Span = _SPAN


@dataclass(frozen=True)
class Emphasis:
    """(content:weight)."""

    content: "PromptNodes"
    weight: float
    span: Span = _SPAN


@dataclass(frozen=True)
class PromptEdit:
    """[before:after:when]: the content changes after the share `when` of the steps, or in_steps after that many."""

    before: "PromptNodes"
    after: "PromptNodes"
    when: float
    in_steps: bool
    span: Span = _SPAN


@dataclass(frozen=True)
class Alternation:
    """[one|other]: a step each."""

    choices: "tuple[PromptNodes, ...]"
    span: Span = _SPAN


@dataclass(frozen=True)
class Hybrid:
    """hybrid(first, second, ratio, method). ratio 0 is the first alone, 1 the second; method "" is the model's own."""

    first: "PromptNodes"
    second: "PromptNodes"
    ratio: float = 0.5
    method: str = ""
    span: Span = _SPAN


@dataclass(frozen=True)
class Break:
    """BREAK: what follows is encoded as a separate chunk."""

    span: Span = _SPAN


PromptNode: TypeAlias = PlainText | Emphasis | PromptEdit | Alternation | Hybrid | Break
PromptNodes: TypeAlias = tuple[PromptNode, ...]


@dataclass(frozen=True)
class Subprompt:
    """A part that is predicted separately; its weight is negative after NOT."""

    content: PromptNodes
    weight: float = 1.0
    span: Span = _SPAN


@dataclass(frozen=True)
class LoraTag:
    """<lora:name:strength>, which applies to the whole drawing."""

    name: str
    strength: float = 1.0
    span: Span = _SPAN

    def __str__(self) -> str:
        return f"<lora:{self.name}{'' if self.strength == 1 else ':' + repr(self.strength).removesuffix('.0')}>"


@dataclass(frozen=True)
class Prompt:
    """The tree of a prompt. str(prompt) is its canonical text: parse_prompt(str(prompt)) == prompt."""

    subprompts: tuple[Subprompt, ...]
    lora_tags: tuple[LoraTag, ...] = ()

    @property
    def is_composed(self) -> bool:
        """Whether AND or NOT stands in it."""
        return len(self.subprompts) > 1 or self.subprompts[0].weight != 1

    def __str__(self) -> str:
        return " ".join(filter(None, (self._text_without_loras(), *map(str, self.lora_tags))))

    def _text_without_loras(self) -> str:
        if not self.is_composed:
            return _format_nodes(self.subprompts[0].content, "")
        text = ""
        for index, subprompt in enumerate(self.subprompts):
            operator = "NOT" if subprompt.weight < 0 else "AND" if index else ""
            weight_suffix = "" if abs(subprompt.weight) == 1 else f":{_format_number(abs(subprompt.weight))}"
            text = " ".join(
                part for part in (text, operator, _format_nodes(subprompt.content, ":"), weight_suffix) if part
            )
        return text


def escape_prompt(text: str) -> str:
    """The prompt that means exactly this text."""
    return _format_nodes((PlainText(text),), "")


def plain_text(prompt: Prompt) -> str:
    """All words of a prompt, without its syntax."""
    return " ".join(_nodes_plain_text(subprompt.content) for subprompt in prompt.subprompts)


def _nodes_plain_text(nodes: PromptNodes) -> str:
    text = ""
    for node in nodes:
        match node:
            case PlainText(literal):
                text += literal
            case Break():
                text += " "
            case Emphasis(content):
                text += separate_words(text, _nodes_plain_text(content) + " ")
            case Alternation(choices):
                text += " ".join(map(_nodes_plain_text, choices))
            case PromptEdit(first, second) | Hybrid(first, second):
                text += f"{_nodes_plain_text(first)} {_nodes_plain_text(second)}"
    return text


def separate_words(before: str, text: str) -> str:
    """The text, with a space in front where it would continue a word: "frog(green)" is two words."""
    return f" {text}" if before[-1:].isalnum() and text[:1].isalnum() else text


def merge_plain_text(nodes: Iterable[PromptNode]) -> PromptNodes:
    """The nodes with neighboring plain text joined, without the spaces around BREAK."""
    groups = [list(group) for _, group in groupby(nodes, type)]
    result: list[PromptNode] = []
    for index, group in enumerate(groups):
        if isinstance(group[0], PlainText):
            text = "".join(node.text for node in group if isinstance(node, PlainText))
            text = text.lstrip() if index and isinstance(groups[index - 1][0], Break) else text
            text = text.rstrip() if index + 1 < len(groups) and isinstance(groups[index + 1][0], Break) else text
            group = [PlainText(text, (group[0].span[0], group[-1].span[1]))] if text else []
        result += group
    return tuple(result)


def _format_number(value: float) -> str:
    digits = format(Decimal(repr(value)), "f")
    return digits.removesuffix(".0")


def _format_nodes(nodes: PromptNodes, special: str) -> str:
    """The canonical text of nodes. special: the separators that have a meaning in this place, so are escaped."""
    parts: list[str] = [""]
    for node in nodes:
        formatted = _format_node(node, special)
        if formatted.startswith("(") and re.search(
            r"\bhybrid\Z", parts[-1][-7:]
        ):  # a word before a bracket, not the operator
            parts[-1] = f"{parts[-1][:-6]}\\hybrid"
        parts.append(formatted)
    return "".join(parts)


def _format_node(node: PromptNode, special: str) -> str:
    match node:
        case PlainText(content):
            return re.sub(rf"[\\()\[\]{special}]|\b(?:AND|NOT|BREAK)\b|<(?=lora(?::|\Z))", r"\\\g<0>", content)
        case Break():
            return " BREAK "
        case Emphasis(content, weight) if weight == DEEMPHASIS_WEIGHT:
            return f"[{_format_nodes(content, ':|')}]"
        case Emphasis(content, weight):
            return f"({_format_nodes(content, ':')}{'' if weight == EMPHASIS_WEIGHT else ':' + _format_number(weight)})"
        case PromptEdit(first, second, when, in_steps):
            before_text = f"{_format_nodes(first, ':|')}:" if first else ""
            when_text = f"{when:.0f}" if in_steps else format(Decimal(repr(when)), "f")
            return f"[{before_text}{_format_nodes(second, ':|')}:{when_text}]"
        case Alternation(choices):
            return f"[{'|'.join(_format_nodes(choice, ':|') for choice in choices)}]"
        case Hybrid(first, second, ratio, method):
            arguments = ([_format_number(ratio)] if ratio != 0.5 else []) + ([method] if method else [])
            return f"hybrid({', '.join([_format_nodes(first, ','), _format_nodes(second, ','), *arguments])})"
