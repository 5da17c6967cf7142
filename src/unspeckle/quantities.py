"""Durations, counts and sizes as people write them."""

import re

from unspeckle.errors import InputError

_SECONDS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0}
_MANY = {"": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000, "b": 1_000_000_000}
_NUMBER = r"[0-9]+(?:\.[0-9]+)?"


def parse_duration(text: str, option: str = "--for") -> float:
    """Seconds in "90s", "30m", "1h30m", "2d"; InputError for a bare number, an unknown unit or nothing at all."""
    plain = text.strip().lower().replace(" ", "")
    if re.fullmatch(_NUMBER, plain):
        raise InputError(f"{option} {text}: has no unit; write {plain}m for minutes or {plain}s for seconds")
    if not re.fullmatch(rf"(?:{_NUMBER}d)?(?:{_NUMBER}h)?(?:{_NUMBER}m(?:in)?)?(?:{_NUMBER}s)?", plain) or not plain:
        raise InputError(f"{option} {text!r}: is no duration; write it like 90s, 30m or 1h30m")
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in re.findall(rf"({_NUMBER})([dhms])", plain))
    if not 1 <= seconds <= 366 * _SECONDS["d"]:
        raise InputError(f"{option} {text}: must lie between 1s and 366d")
    return seconds


def parse_count(text: str, option: str) -> int:
    """The number in "150000", "150,000", "150k", "2M", "1.5M"; InputError unless it is a whole number of at least 1."""
    found = re.fullmatch(rf"({_NUMBER})([kmgb]?)", text.strip().lower().replace(",", "").replace("_", ""))
    if found is None:
        raise InputError(f"{option} {text!r}: is no count; write it like 5000, 150k or 2M")
    whole, _, part = found[1].partition(".")
    many: int = 10 ** len(part)
    value, rest = divmod(int(whole + part) * _MANY[found[2]], many)
    if rest or not 1 <= value <= 10**15:
        raise InputError(f"{option} {text}: must be a whole number of at least 1")
    return value


def parse_interval(text: str, option: str) -> tuple[float, float]:
    """(low, high) of "0.1,0.8"; InputError unless 0 <= low <= high <= 1."""
    found = re.fullmatch(r"([0-9.]+)\s*,\s*([0-9.]+)", text.strip())
    try:
        low, high = (float(number) for number in found.groups()) if found else (1.0, 0.0)
    except ValueError:
        low, high = 1.0, 0.0
    if not 0 <= low <= high <= 1:
        raise InputError(f"{option} {text!r}: must be two numbers from 0 to 1, the lower first, such as 0.1,0.8")
    return low, high


def parse_size(text: str, option: str = "--size") -> tuple[int, int]:
    """(width, height) in pixels of "64" or "96x64"; InputError otherwise."""
    found = re.fullmatch(r"([1-9][0-9]{0,5})(?:[x×]([1-9][0-9]{0,5}))?", text.strip().lower())
    if found is None:
        raise InputError(f"{option} {text!r}: is no size; write 64 or, width first, 96x64")
    return int(found[1]), int(found[2] or found[1])
