"""A prompt as a tree, and its canonical text."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import groupby
from typing import TypeAlias

UP, DOWN = 1.1, 1 / 1.1
METHODS = ("words", "embeddings", "guesses", "switch", "turns")  # of drawing a hybrid: see meaning.py

Span = tuple[int, int]  # characters of the source, from and to
_span: Span = field(default=(0, 0), compare=False)


@dataclass(frozen=True)
class Words:
    text: str
    span: Span = _span


@dataclass(frozen=True)
class Weighted:
    text: "Text"
    weight: float
    span: Span = _span


@dataclass(frozen=True)
class Switch:
    """first, then second: after the share `at` of the steps, or where `counted` after so many steps."""

    first: "Text"
    second: "Text"
    at: float
    counted: bool
    span: Span = _span


@dataclass(frozen=True)
class Turns:
    choices: "tuple[Text, ...]"
    span: Span = _span


@dataclass(frozen=True)
class Hybrid:
    """share 0 is the first alone, 1 the second. method: one of METHODS, "" = what suits the model best."""

    first: "Text"
    second: "Text"
    share: float = 0.5
    method: str = ""
    span: Span = _span


@dataclass(frozen=True)
class Break:
    span: Span = _span


Piece: TypeAlias = Words | Weighted | Switch | Turns | Hybrid | Break
Text: TypeAlias = tuple[Piece, ...]


@dataclass(frozen=True)
class Guess:
    """What is guessed by itself; of negative weight after NOT."""

    text: Text
    weight: float = 1.0
    span: Span = _span


@dataclass(frozen=True)
class Lora:
    """Adapters of that name, for the whole drawing."""

    name: str
    weight: float = 1.0
    span: Span = _span

    def __str__(self) -> str:
        return f"<lora:{self.name}{'' if self.weight == 1 else ':' + repr(self.weight).removesuffix('.0')}>"


@dataclass(frozen=True)
class Prompt:
    """The tree. str(prompt) is its canonical text: parse(str(prompt)) == prompt."""

    guesses: tuple[Guess, ...]
    loras: tuple[Lora, ...] = ()

    @property
    def composed(self) -> bool:
        return len(self.guesses) > 1 or self.guesses[0].weight != 1

    def __str__(self) -> str:
        return " ".join(filter(None, (self._words(), *map(str, self.loras))))

    def _words(self) -> str:
        if not self.composed:
            return _text(self.guesses[0].text, "")
        said = ""
        for place, guess in enumerate(self.guesses):
            word = "NOT" if guess.weight < 0 else "AND" if place else ""
            weight = "" if abs(guess.weight) == 1 else f":{_number(abs(guess.weight))}"
            said = " ".join(part for part in (said, word, _text(guess.text, ":"), weight) if part)
        return said


def escape(text: str) -> str:
    """The prompt that says just this text, whatever is in it."""
    return _text((Words(text),), "")


def words(prompt: Prompt) -> str:
    """All that the prompt says in plain words, without its syntax."""
    return " ".join(_words(guess.text) for guess in prompt.guesses)


def _words(text: Text) -> str:
    said = ""
    for piece in text:
        match piece:
            case Words(more):
                said += more
            case Break():
                said += " "
            case Weighted(inner):
                said += beside(said, _words(inner) + " ")
            case Turns(choices):
                said += " ".join(map(_words, choices))
            case Switch(first, second) | Hybrid(first, second):
                said += f"{_words(first)} {_words(second)}"
    return said


def beside(before: str, said: str) -> str:
    """said, with a space where it would run into a word before it: "frog(green)" is two words."""
    return f" {said}" if before[-1:].isalnum() and said[:1].isalnum() else said


def merged(pieces: Iterable[Piece]) -> Text:
    """Words that stand together as one piece, without the space beside BREAK."""
    groups = [list(group) for _, group in groupby(pieces, type)]
    found: list[Piece] = []
    for place, group in enumerate(groups):
        if isinstance(group[0], Words):
            said = "".join(piece.text for piece in group if isinstance(piece, Words))
            said = said.lstrip() if place and isinstance(groups[place - 1][0], Break) else said
            said = said.rstrip() if place + 1 < len(groups) and isinstance(groups[place + 1][0], Break) else said
            group = [Words(said, (group[0].span[0], group[-1].span[1]))] if said else []
        found += group
    return tuple(found)


def _number(value: float) -> str:
    said = format(Decimal(repr(value)), "f")
    return said.removesuffix(".0")


def _text(text: Text, marks: str) -> str:
    """Canonical; `marks` are the characters that would mean something where the text stands."""
    said: list[str] = [""]
    for piece in text:
        one = _piece(piece, marks)
        if one.startswith("(") and re.search(r"\bhybrid\Z", said[-1][-7:]):  # no call: words before a bracket
            said[-1] = f"{said[-1][:-6]}\\hybrid"
        said.append(one)
    return "".join(said)


def _piece(piece: Piece, marks: str) -> str:
    match piece:
        case Words(text):
            return re.sub(rf"[\\()\[\]{marks}]|\b(?:AND|NOT|BREAK)\b|<(?=lora(?::|\Z))", r"\\\g<0>", text)
        case Break():
            return " BREAK "
        case Weighted(text, weight) if weight == DOWN:
            return f"[{_text(text, ':|')}]"
        case Weighted(text, weight):
            return f"({_text(text, ':')}{'' if weight == UP else ':' + _number(weight)})"
        case Switch(first, second, at, counted):
            start = f"{_text(first, ':|')}:" if first else ""
            when = f"{at:.0f}" if counted else format(Decimal(repr(at)), "f")
            return f"[{start}{_text(second, ':|')}:{when}]"
        case Turns(choices):
            return f"[{'|'.join(_text(choice, ':|') for choice in choices)}]"
        case Hybrid(first, second, share, method):
            rest = ([_number(share)] if share != 0.5 else []) + ([method] if method else [])
            return f"hybrid({', '.join([_text(first, ','), _text(second, ','), *rest])})"
