"""From the text of a prompt to its tree."""

import re
from dataclasses import replace
from typing import NamedTuple, NoReturn

from unspeckle.errors import InputError
from unspeckle.prompts.syntax_tree import (
    DOWN,
    METHODS,
    UP,
    Break,
    Guess,
    Hybrid,
    Lora,
    Piece,
    Prompt,
    Switch,
    Text,
    Turns,
    Weighted,
    Words,
    merged,
)

LONGEST = 100_000  # characters: more would not be read back from a PNG
HEAVIEST = 5.0  # weight of words
STRONGEST = 20.0  # weight of a guess
DEEPEST = 40  # brackets within brackets
GUESSES, HYBRIDS = 8, 4  # in a prompt: each hybrid can double the work
LORAS, MOST = 16, 100.0  # in a prompt; the weight of one, either way


def parse(source: str, name: str = "prompt") -> Prompt:
    """The tree of a prompt. InputError, naming `name` and showing the place, where it cannot be read."""
    if not isinstance(source, str) or len(source) > LONGEST:
        raise InputError(f"{name}: must be text of at most {LONGEST} characters")
    if any("\ud800" <= c <= "\udfff" for c in source):
        raise InputError(f"{name}: is not valid Unicode; write it as UTF-8")
    return _Parser(source, name).prompt()


_TOKEN = re.compile(
    r"\\(?P<escaped>[\\()\[\]:|,]|(?:AND|NOT|BREAK)\b|hybrid(?=\()|<(?=lora))"
    r"|(?P<mark>\b(?:AND|NOT|BREAK)\b|\bhybrid\(|[()\[\]:|,]|<lora:[^<>\n]*>?)"
    r"|(?P<plain>(?:(?!\b(?:AND|NOT|BREAK)\b|\bhybrid\(|<lora:)[^\\()\[\]:|,])+|\\)",
    re.DOTALL,
)
_NUMBER = re.compile(r"\s*[+-]?(?:\d+\.?\d*|\.\d+)\s*", re.ASCII)


class _Token(NamedTuple):
    text: str
    mark: bool
    start: int
    end: int


class _Part(NamedTuple):
    """Text between two marks, the mark before it, and how it was written."""

    mark: _Token | None
    text: Text
    source: str

    def number(self) -> float | None:
        return float(self.source) if _NUMBER.fullmatch(self.source) else None


class _Parser:
    """Recursive descent. What a bracket means is known only where it closes: its parts are sorted out there."""

    def __init__(self, source: str, name: str) -> None:
        self.source, self.name = source, name
        self.at = self.depth = self.hybrids = 0
        self.loras: list[Lora] = []
        self.tokens = [
            _Token(found["escaped"] or found["mark"] or found["plain"], found["mark"] is not None, *found.span())
            for found in _TOKEN.finditer(source)
        ]

    def refuse(self, message: str, start: int) -> NoReturn:
        before, after = self.source[:start], self.source[start:]
        before = before if len(before) <= 24 else f"…{before[-22:]}"
        after = after if len(after) <= 32 else f"{after[:30]}…"
        place = " ".join(f"{before}>>>{after}".split())
        raise InputError(f"{self.name}: {message} at character {start + 1}: {place}")

    def prompt(self) -> Prompt:
        groups = _groups(self.parts(None, (":", "AND", "NOT")), "AND", "NOT")
        if len(groups) == 1:
            text = _joined(groups[0])
            text = _stripped(text) if self.loras else text
            return Prompt((Guess(text, 1.0, (0, len(self.source))),), tuple(self.loras))
        guesses = tuple(guess for place in range(len(groups)) for guess in self.guess(groups, place))
        if len(guesses) > GUESSES:
            self.refuse(f"more than {GUESSES} guesses", guesses[GUESSES].span[0])
        return Prompt(guesses, tuple(self.loras))

    def guess(self, groups: "list[list[_Part]]", place: int) -> list[Guess]:
        """The guess of a group, or none where nothing stands before NOT."""
        *parts, last = groups[place]
        mark, weight = groups[place][0].mark, last.number()
        if not parts or weight is None:
            parts, weight = [*parts, last], 1.0
        text = _stripped(_joined(parts))
        behind = groups[place + 1][0].mark if place + 1 < len(groups) else None
        if not text and last is groups[place][0] and behind is not None and behind.text == "NOT":
            return []
        start, away = (0, False) if mark is None else (mark.start, mark.text == "NOT")
        if not text:
            self.refuse("nothing to draw beside AND or NOT", start)
        if abs(weight) > STRONGEST or (away and weight <= 0):
            self.refuse(f"a guess has a weight up to {STRONGEST:g}, behind NOT above 0 (a plain colon is \\:)", start)
        return [Guess(text, -weight if away else weight, (start, len(self.source) if behind is None else behind.start))]

    def parts(self, opened: _Token | None, marks: tuple[str, ...]) -> list[_Part]:
        """What stands up to the bracket that closes the opened one, or to the end, cut at the marks."""
        closer = None if opened is None else "]" if opened.text == "[" else ")"
        found: list[_Part] = []
        pieces: list[Piece] = []
        mark, begin = None, 0 if opened is None else opened.end
        while self.at < len(self.tokens):
            token = self.tokens[self.at]
            self.at += 1
            if not token.mark:
                pieces.append(Words(self.rejoined(token, pieces), (token.start, token.end)))
            elif token.text.startswith("<"):
                self.lora(token, opened)
            elif token.text == closer or token.text in marks:
                found.append(_Part(mark, merged(pieces), self.between(begin, token.start)))
                if token.text == closer:
                    return found
                mark, pieces, begin = token, [], token.end
            elif token.text in ("(", "[", "hybrid("):
                pieces += [Words(" ")] if self.rejoined(token, pieces) != token.text else []
                pieces.append(self.bracket(token))
            elif token.text == "BREAK":
                pieces.append(Break((token.start, token.end)))
            elif token.text in ("AND", "NOT"):
                self.refuse(
                    f"{token.text} inside a bracket; write it outside, or \\{token.text} for the word", token.start
                )
            else:  # a mark that means nothing here
                pieces.append(Words(token.text, (token.start, token.end)))
        if opened is not None:
            self.refuse(f'unclosed "{opened.text}" (a plain bracket is \\{opened.text[-1]})', opened.start)
        return [*found, _Part(mark, merged(pieces), self.between(begin, len(self.source)))]

    def lora(self, token: _Token, opened: _Token | None) -> None:
        """Take a tag out: it counts for the whole drawing."""
        plain = "a plain one is \\<lora:"
        if not token.text.endswith(">"):
            self.refuse(f'unclosed "<lora:" ({plain})', token.start)
        if opened is not None:
            self.refuse(
                f"a LoRA inside a bracket; write it outside, as it counts for the whole drawing ({plain})", token.start
            )
        name, colon, said = token.text[len("<lora:") : -1].partition(":")
        try:
            weight = float(said) if colon else 1.0
        except ValueError:
            weight = float("nan")
        if not name.strip() or not abs(weight) <= MOST:
            self.refuse(
                f"a LoRA is <lora:name> or <lora:name:weight>, with one weight up to {MOST:g} ({plain})", token.start
            )
        if re.search(r"[/\\]|\A\s*\.", name):
            self.refuse("a LoRA's name is that of its file, without folders", token.start)
        if len(self.loras) == LORAS:
            self.refuse(f"more than {LORAS} LoRA", token.start)
        self.loras.append(Lora(" ".join(name.split()), weight + 0.0, (token.start, token.end)))

    def rejoined(self, token: _Token, before: list[Piece]) -> str:
        """The token's text. Where a tag stood before it: without a second space, and apart from the word before."""
        if not self.loras or self.loras[-1].span[1] != token.start:
            return token.text
        said = before[-1].text if before and isinstance(before[-1], Words) else ""
        if said[-1:].isspace():
            return token.text.lstrip()
        return " " + token.text if re.fullmatch(r"\w\w", said[-1:] + token.text[:1]) else token.text

    def between(self, start: int, end: int) -> str:
        """That much of the source, without the tags in it."""
        said, at = "", start
        for lora in self.loras:
            if start <= lora.span[0] < end:
                said, at = said + self.source[at : lora.span[0]], lora.span[1]
        return said + self.source[at:end]

    def bracket(self, opened: _Token) -> Piece:
        self.depth += 1
        if self.depth > DEEPEST:
            self.refuse(f"brackets more than {DEEPEST} deep", opened.start)
        read = {"(": self.weighted, "[": self.square, "hybrid(": self.hybrid}[opened.text]
        piece = read(opened)
        self.depth -= 1
        return replace(piece, span=(opened.start, self.tokens[self.at - 1].end))

    def weighted(self, opened: _Token) -> Piece:
        parts = self.parts(opened, (":",))
        weight = parts[-1].number() if len(parts) > 1 else None
        if weight is None:
            return Weighted(_joined(parts), UP)
        if not 0 <= weight <= HEAVIEST:
            self.refuse(f"words have a weight from 0 to {HEAVIEST:g} (a plain colon is \\:)", opened.start)
        return Weighted(_joined(parts[:-1]), abs(weight))

    def square(self, opened: _Token) -> Piece:
        parts = self.parts(opened, (":", "|"))
        choices = _groups(parts, "|")
        when = parts[-1].number() if len(parts) > 1 else None
        if len(choices) > 1:
            return Turns(tuple(map(_joined, choices)))
        if when is None:
            return Weighted(_joined(parts), DOWN)
        counted = "." not in parts[-1].source
        if len(parts) > 3 or when < 0 or when > (1000 if counted else 1):
            self.refuse("a switch is [one:other:when], when a share such as 0.4 or a whole step", opened.start)
        return Switch(parts[0].text if len(parts) == 3 else (), parts[-2].text, abs(when), counted)

    def hybrid(self, opened: _Token) -> Piece:
        self.hybrids += 1
        if self.hybrids > HYBRIDS:
            self.refuse(f"more than {HYBRIDS} hybrids", opened.start)
        parts = self.parts(opened, (",",))
        first, second, *_ = (*(_stripped(part.text) for part in parts), (), ())
        told = parts[2:]
        share = told.pop(0).number() if told and told[0].number() is not None else 0.5
        method = told.pop(0).source.strip() if told else ""
        if not first or not second or told or share is None or not 0 <= share <= 1 or method not in ("", *METHODS):
            known = ", ".join(METHODS)
            self.refuse(f"a hybrid is hybrid(one, other), then a share from 0 to 1, then one of {known}", opened.start)
        return Hybrid(first, second, abs(share), method)


def _groups(parts: list[_Part], *marks: str) -> list[list[_Part]]:
    """The parts cut at some of the marks."""
    groups: list[list[_Part]] = [[]]
    for part in parts:
        if part.mark is not None and part.mark.text in marks:
            groups.append([])
        groups[-1].append(part)
    return groups


def _joined(parts: list[_Part]) -> Text:
    """The parts as one text, with the marks between them as plain words."""
    pieces: list[Piece] = []
    for place, part in enumerate(parts):
        if place and part.mark is not None:
            pieces.append(Words(part.mark.text, (part.mark.start, part.mark.end)))
        pieces += part.text
    return merged(pieces)


def _stripped(text: Text) -> Text:
    """Without the space around it."""
    pieces = list(text)
    if pieces and isinstance(pieces[0], Words):
        pieces[0] = replace(pieces[0], text=pieces[0].text.lstrip())
    if pieces and isinstance(pieces[-1], Words):
        pieces[-1] = replace(pieces[-1], text=pieces[-1].text.rstrip())
    return tuple(piece for piece in pieces if piece != Words(""))
