"""The parser of the prompt language: from a prompt's text to its syntax tree."""

import re
from dataclasses import replace
from typing import NamedTuple, NoReturn

from unspeckle.errors import InputError
from unspeckle.prompts.syntax_tree import (
    DEEMPHASIS_WEIGHT,
    EMPHASIS_WEIGHT,
    HYBRID_METHODS,
    Alternation,
    Break,
    Emphasis,
    Hybrid,
    LoraTag,
    PlainText,
    Prompt,
    PromptEdit,
    PromptNode,
    PromptNodes,
    Subprompt,
    merge_plain_text,
)

# More would not be read back from a PNG.
MAX_CHARACTERS = 100_000
# The largest weight of words in brackets, and of a part that is predicted separately (AND, NOT)
MAX_EMPHASIS, MAX_SUBPROMPT_WEIGHT = 5.0, 20.0
# Brackets within brackets
MAX_DEPTH = 40
# In a prompt; each hybrid can double the number of predictions.
MAX_SUBPROMPTS, MAX_HYBRIDS = 8, 4
# In a prompt, and the largest weight of one, positive or negative
MAX_LORAS, MAX_LORA_STRENGTH = 16, 100.0


def parse_prompt(source: str, name: str = "prompt") -> Prompt:
    """The syntax tree of a prompt. InputError where it cannot be read, which shows the place.

    name: the option that the prompt was given by, for the error."""
    if not isinstance(source, str) or len(source) > MAX_CHARACTERS:
        raise InputError(f": must be text of at most {MAX_CHARACTERS} characters", name)
    if any("\ud800" <= c <= "\udfff" for c in source):
        raise InputError(": is not valid Unicode; write it as UTF-8", name)
    return _Parser(source, name).parse_all()


_TOKEN_PATTERN = re.compile(
    r"\\(?P<escaped>[\\()\[\]:|,]|(?:AND|NOT|BREAK)\b|hybrid(?=\()|<(?=lora))"
    r"|(?P<mark>\b(?:AND|NOT|BREAK)\b|\bhybrid\(|[()\[\]:|,]|<lora:[^<>\n]*>?)"
    r"|(?P<plain>(?:(?!\b(?:AND|NOT|BREAK)\b|\bhybrid\(|<lora:)[^\\()\[\]:|,])+|\\)",
    re.DOTALL,
)
_NUMBER_PATTERN = re.compile(r"\s*[+-]?(?:\d+\.?\d*|\.\d+)\s*", re.ASCII)


class _Token(NamedTuple):
    """A piece of the source: a mark of the language, or plain text, without the backslash of an escaped character."""

    text: str
    is_syntax: bool
    start: int
    end: int


class _Segment(NamedTuple):
    """What stands between two separators: the separator before it, its nodes, and its source."""

    separator: _Token | None
    nodes: PromptNodes
    source: str

    def as_number(self) -> float | None:
        return float(self.source) if _NUMBER_PATTERN.fullmatch(self.source) else None


class _Parser:
    """A recursive descent parser. What a bracket means is known only where it closes, from the separators in it."""

    def __init__(self, source: str, name: str) -> None:
        self.source, self.name = source, name
        self.at = self.depth = self.hybrid_count = 0
        self.lora_tags: list[LoraTag] = []
        self.tokens = [
            _Token(match["escaped"] or match["mark"] or match["plain"], match["mark"] is not None, *match.span())
            for match in _TOKEN_PATTERN.finditer(source)
        ]

    def fail(self, message: str, start: int) -> NoReturn:
        """Raise an InputError that shows the source around the character `start`."""
        before, after = self.source[:start], self.source[start:]
        before = before if len(before) <= 24 else f"…{before[-22:]}"
        after = after if len(after) <= 32 else f"{after[:30]}…"
        excerpt = " ".join(f"{before}>>>{after}".split())
        raise InputError(f": {message} at character {start + 1}: {excerpt}", self.name)

    def parse_all(self) -> Prompt:
        groups = _split_segments(self.parse_segments(None, (":", "AND", "NOT")), "AND", "NOT")
        if len(groups) == 1:
            nodes = _join_segments(groups[0])
            nodes = _strip_nodes(nodes) if self.lora_tags else nodes
            return Prompt((Subprompt(nodes, 1.0, (0, len(self.source))),), tuple(self.lora_tags))
        subprompts = tuple(
            subprompt for index in range(len(groups)) for subprompt in self.parse_subprompt(groups, index)
        )
        if len(subprompts) > MAX_SUBPROMPTS:
            self.fail(f"more than {MAX_SUBPROMPTS} parts", subprompts[MAX_SUBPROMPTS].span[0])
        return Prompt(subprompts, tuple(self.lora_tags))

    def parse_subprompt(self, groups: "list[list[_Segment]]", index: int) -> list[Subprompt]:
        """The part of the prompt that a group of segments is; none where nothing stands before NOT."""
        *segments, last = groups[index]
        operator, weight = groups[index][0].separator, last.as_number()
        if not segments or weight is None:
            segments, weight = [*segments, last], 1.0
        nodes = _strip_nodes(_join_segments(segments))
        next_operator = groups[index + 1][0].separator if index + 1 < len(groups) else None
        if not nodes and last is groups[index][0] and next_operator is not None and next_operator.text == "NOT":
            return []
        start, is_negative = (0, False) if operator is None else (operator.start, operator.text == "NOT")
        if not nodes:
            self.fail("nothing to draw next to AND or NOT", start)
        if abs(weight) > MAX_SUBPROMPT_WEIGHT or (is_negative and weight <= 0):
            self.fail(
                f"a part has a weight up to {MAX_SUBPROMPT_WEIGHT:g}, after NOT above 0 (a plain colon is \\:)", start
            )
        return [
            Subprompt(
                nodes,
                -weight if is_negative else weight,
                (start, len(self.source) if next_operator is None else next_operator.start),
            )
        ]

    def parse_segments(self, opening: _Token | None, separators: tuple[str, ...]) -> list[_Segment]:
        """The segments up to the bracket that closes the opened one, or to the end."""
        closing = None if opening is None else "]" if opening.text == "[" else ")"
        segments: list[_Segment] = []
        nodes: list[PromptNode] = []
        separator, start = None, 0 if opening is None else opening.end
        while self.at < len(self.tokens):
            token = self.tokens[self.at]
            self.at += 1
            if not token.is_syntax:
                nodes.append(PlainText(self.spaced_text(token, nodes), (token.start, token.end)))
            elif token.text.startswith("<"):
                self.parse_lora_tag(token, opening)
            elif token.text == closing or token.text in separators:
                segments.append(
                    _Segment(separator, merge_plain_text(nodes), self.source_without_loras(start, token.start))
                )
                if token.text == closing:
                    return segments
                separator, nodes, start = token, [], token.end
            elif token.text in ("(", "[", "hybrid("):
                nodes += [PlainText(" ")] if self.spaced_text(token, nodes) != token.text else []
                nodes.append(self.parse_bracket(token))
            elif token.text == "BREAK":
                nodes.append(Break((token.start, token.end)))
            elif token.text in ("AND", "NOT"):
                self.fail(
                    f"{token.text} inside a bracket; write it outside, or \\{token.text} for the word", token.start
                )
            else:  # a mark without a meaning in this place
                nodes.append(PlainText(token.text, (token.start, token.end)))
        if opening is not None:
            self.fail(f'unclosed "{opening.text}" (a plain bracket is \\{opening.text[-1]})', opening.start)
        return [
            *segments,
            _Segment(separator, merge_plain_text(nodes), self.source_without_loras(start, len(self.source))),
        ]

    def parse_lora_tag(self, token: _Token, opening: _Token | None) -> None:
        """Record a LoRA tag, which is no part of the text."""
        escape_hint = "a plain one is \\<lora:"
        if not token.text.endswith(">"):
            self.fail(f'unclosed "<lora:" ({escape_hint})', token.start)
        if opening is not None:
            self.fail(
                f"a LoRA inside a bracket; write it outside, as it counts for the whole drawing ({escape_hint})",
                token.start,
            )
        name, colon, strength_text = token.text[len("<lora:") : -1].partition(":")
        try:
            strength = float(strength_text) if colon else 1.0
        except ValueError:
            strength = float("nan")
        if not name.strip() or not abs(strength) <= MAX_LORA_STRENGTH:
            self.fail(
                f"a LoRA is <lora:name> or <lora:name:strength>, with one strength up to {MAX_LORA_STRENGTH:g} "
                f"({escape_hint})",
                token.start,
            )
        if re.search(r"[/\\]|\A\s*\.", name):
            self.fail("a LoRA's name is that of its file, without folders", token.start)
        if len(self.lora_tags) == MAX_LORAS:
            self.fail(f"more than {MAX_LORAS} LoRA", token.start)
        self.lora_tags.append(LoraTag(" ".join(name.split()), strength + 0.0, (token.start, token.end)))

    def spaced_text(self, token: _Token, nodes: list[PromptNode]) -> str:
        """The token's text. After a LoRA tag: without a second space, and separated from the word before the tag."""
        if not self.lora_tags or self.lora_tags[-1].span[1] != token.start:
            return token.text
        previous_text = nodes[-1].text if nodes and isinstance(nodes[-1], PlainText) else ""
        if previous_text[-1:].isspace():
            return token.text.lstrip()
        return " " + token.text if re.fullmatch(r"\w\w", previous_text[-1:] + token.text[:1]) else token.text

    def source_without_loras(self, start: int, end: int) -> str:
        """The source from start to end, without the LoRA tags in it."""
        text, position = "", start
        for tag in self.lora_tags:
            if start <= tag.span[0] < end:
                text, position = text + self.source[position : tag.span[0]], tag.span[1]
        return text + self.source[position:end]

    def parse_bracket(self, opening: _Token) -> PromptNode:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.fail(f"brackets more than {MAX_DEPTH} deep", opening.start)
        parse_content = {"(": self.parse_emphasis, "[": self.parse_square_bracket, "hybrid(": self.parse_hybrid}[
            opening.text
        ]
        node = parse_content(opening)
        self.depth -= 1
        return replace(node, span=(opening.start, self.tokens[self.at - 1].end))

    def parse_emphasis(self, opening: _Token) -> PromptNode:
        segments = self.parse_segments(opening, (":",))
        weight = segments[-1].as_number() if len(segments) > 1 else None
        if weight is None:
            return Emphasis(_join_segments(segments), EMPHASIS_WEIGHT)
        if not 0 <= weight <= MAX_EMPHASIS:
            self.fail(f"words have a weight from 0 to {MAX_EMPHASIS:g} (a plain colon is \\:)", opening.start)
        return Emphasis(_join_segments(segments[:-1]), abs(weight))

    def parse_square_bracket(self, opening: _Token) -> PromptNode:
        segments = self.parse_segments(opening, (":", "|"))
        choices = _split_segments(segments, "|")
        when = segments[-1].as_number() if len(segments) > 1 else None
        if len(choices) > 1:
            return Alternation(tuple(map(_join_segments, choices)))
        if when is None:
            return Emphasis(_join_segments(segments), DEEMPHASIS_WEIGHT)
        in_steps = "." not in segments[-1].source
        if len(segments) > 3 or when < 0 or when > (1000 if in_steps else 1):
            self.fail("a switch is [one:other:when], when a share such as 0.4 or a whole step", opening.start)
        return PromptEdit(segments[0].nodes if len(segments) == 3 else (), segments[-2].nodes, abs(when), in_steps)

    def parse_hybrid(self, opening: _Token) -> PromptNode:
        self.hybrid_count += 1
        if self.hybrid_count > MAX_HYBRIDS:
            self.fail(f"more than {MAX_HYBRIDS} hybrids", opening.start)
        segments = self.parse_segments(opening, (",",))
        first, second, *_ = (*(_strip_nodes(segment.nodes) for segment in segments), (), ())
        arguments = segments[2:]
        ratio = arguments.pop(0).as_number() if arguments and arguments[0].as_number() is not None else 0.5
        method = arguments.pop(0).source.strip() if arguments else ""
        if (
            not first
            or not second
            or arguments
            or ratio is None
            or not 0 <= ratio <= 1
            or method not in ("", *HYBRID_METHODS)
        ):
            methods = ", ".join(HYBRID_METHODS)
            self.fail(f"a hybrid is hybrid(one, other), then a share from 0 to 1, then one of {methods}", opening.start)
        return Hybrid(first, second, abs(ratio), method)


def _split_segments(segments: list[_Segment], *separators: str) -> list[list[_Segment]]:
    """The segments in groups that start at some of the separators."""
    groups: list[list[_Segment]] = [[]]
    for segment in segments:
        if segment.separator is not None and segment.separator.text in separators:
            groups.append([])
        groups[-1].append(segment)
    return groups


def _join_segments(segments: list[_Segment]) -> PromptNodes:
    """The segments as one text, with the separators between them as plain text."""
    nodes: list[PromptNode] = []
    for index, segment in enumerate(segments):
        if index and segment.separator is not None:
            nodes.append(PlainText(segment.separator.text, (segment.separator.start, segment.separator.end)))
        nodes += segment.nodes
    return merge_plain_text(nodes)


def _strip_nodes(nodes: PromptNodes) -> PromptNodes:
    """The nodes without space at either end."""
    stripped = list(nodes)
    if stripped and isinstance(stripped[0], PlainText):
        stripped[0] = replace(stripped[0], text=stripped[0].text.lstrip())
    if stripped and isinstance(stripped[-1], PlainText):
        stripped[-1] = replace(stripped[-1], text=stripped[-1].text.rstrip())
    return tuple(node for node in stripped if node != PlainText(""))
