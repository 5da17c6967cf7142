"""Durations, counts and sizes as people write them."""

import re

from unspeckle.errors import InputError

_SECONDS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0}
_FACTORS = {"": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000, "b": 1_000_000_000}
_NUMBER = r"[0-9]+(?:\.[0-9]+)?"


def parse_duration(text: str, option: str = "--for") -> float:
    """The seconds in "90s", "30m", "1h30m" or "2d". InputError for a number without a unit and an unknown unit."""
    compact = text.strip().lower().replace(" ", "")
    if re.fullmatch(_NUMBER, compact):
        raise InputError(f"{option} {text}: has no unit; write {compact}m for minutes or {compact}s for seconds")
    if (
        not re.fullmatch(rf"(?:{_NUMBER}d)?(?:{_NUMBER}h)?(?:{_NUMBER}m(?:in)?)?(?:{_NUMBER}s)?", compact)
        or not compact
    ):
        raise InputError(f"{option} {text!r}: is not a duration; write it like 90s, 30m or 1h30m")
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in re.findall(rf"({_NUMBER})([dhms])", compact))
    if not 1 <= seconds <= 366 * _SECONDS["d"]:
        raise InputError(f"{option} {text}: must lie between 1s and 366d")
    return seconds


def parse_count(text: str, option: str) -> int:
    """The number in "150000", "150,000", "150k", "2M" or "1.5M". InputError unless it is an integer of at least 1."""
    found = re.fullmatch(rf"({_NUMBER})([kmgb]?)", text.strip().lower().replace(",", "").replace("_", ""))
    if found is None:
        raise InputError(f"{option} {text!r}: is not a number; write it like 5000, 150k or 2M")
    whole, _, decimals = found[1].partition(".")
    denominator: int = 10 ** len(decimals)
    value, rest = divmod(int(whole + decimals) * _FACTORS[found[2]], denominator)
    if rest or not 1 <= value <= 10**15:
        raise InputError(f"{option} {text}: must be an integer of at least 1")
    return value


def parse_interval(text: str, option: str) -> tuple[float, float]:
    """(low, high) of "0.1,0.8". InputError unless 0 <= low <= high <= 1."""
    found = re.fullmatch(r"([0-9.]+)\s*,\s*([0-9.]+)", text.strip())
    try:
        low, high = (float(number) for number in found.groups()) if found else (1.0, 0.0)
    except ValueError:
        low, high = 1.0, 0.0
    if not 0 <= low <= high <= 1:
        raise InputError(f"{option} {text!r}: must be two numbers from 0 to 1, the lower first, such as 0.1,0.8")
    return low, high


def parse_size(text: str, option: str = "--size") -> tuple[int, int]:
    """(width, height) in pixels of "64" or "96x64". InputError for any other text."""
    found = re.fullmatch(r"([1-9][0-9]{0,5})(?:[x×]([1-9][0-9]{0,5}))?", text.strip().lower())
    if found is None:
        raise InputError(f"{option} {text!r}: is not a size; write 64, or 96x64 with the width first")
    return int(found[1]), int(found[2] or found[1])


def format_duration(seconds: float) -> str:
    """A duration as people say it: 42 s, 7 min, 1 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def format_images_per_second(images_per_second: float) -> str:
    """Images per second, or per minute if they are few."""
    if images_per_second >= 2:
        return f"{images_per_second:.0f} images/s"
    return f"{60 * images_per_second:.1f} images/min"
