"""File names and counts as they are shown to a person, in a terminal that must not be harmed by them."""

from collections.abc import Sequence


def make_printable(text: str, max_length: int = 60) -> str:
    """The text without control characters and unpaired surrogates, cut to `max_length` characters."""
    printable = "".join(c if c.isprintable() else "�" for c in text)
    return printable if len(printable) <= max_length else printable[: max_length - 1] + "…"


def summarize_names(names: Sequence[str], max_names: int = 3) -> str:
    """The first `max_names` names, and "…" if there are more."""
    return ", ".join(make_printable(name) for name in names[:max_names]) + (", …" if len(names) > max_names else "")


def format_count(count: int, noun: str) -> str:
    """`1 image`, `1,234 images`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
