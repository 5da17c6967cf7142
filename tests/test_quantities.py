"""Durations, counts, sizes and intervals as people write them."""

import pytest

from unspeckle.errors import InputError
from unspeckle.quantities import parse_count, parse_duration, parse_interval, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("1h30m", 5400), ("1.5h", 5400), ("2d", 172_800), ("1H 5s", 3605), ("30min", 1800)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["45", "", "m", "30m1h", "-5m", "5x", "0m", "1000d", "1h30", "nan", "٣m", "5m extra"])
def test_text_that_is_not_a_duration(text: str) -> None:
    with pytest.raises(InputError, match=r"^--for "):
        parse_duration(text)


def test_a_number_without_a_unit_gets_advice() -> None:
    with pytest.raises(InputError, match="write 45m for minutes or 45s for seconds"):
        parse_duration("45")


@pytest.mark.parametrize(
    ("text", "number"),
    [("1", 1), ("150000", 150_000), ("150,000", 150_000), ("150k", 150_000), ("2M", 2_000_000), ("0.0015M", 1500)],
)
def test_counts(text: str, number: int) -> None:
    assert parse_count(text, "--images") == number


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "2 million", "", "1e6", "0.0001k", "9" * 30])
def test_text_that_is_not_a_count(text: str) -> None:
    with pytest.raises(InputError, match=r"^--images "):
        parse_count(text, "--images")


def test_sizes() -> None:
    assert [parse_size(text) for text in ("64", "96x64", "96X64", "96×64", " 8 ")] == [
        (64, 64),
        *[(96, 64)] * 3,
        (8, 8),
    ]
    for text in ("", "64x", "x64", "64x64x3", "-64", "6.4", "64px"):
        with pytest.raises(InputError, match=r"^--size "):
            parse_size(text)


def test_intervals() -> None:
    assert [parse_interval(text, "--guidance-interval") for text in ("0.1,0.8", " 0, 1 ", ".5,.5")] == [
        (0.1, 0.8),
        (0, 1),
        (0.5, 0.5),
    ]
    for text in ("", "0.1", "0.8,0.1", "0,1,1", "-1,1", "0,2", "0,1.2.3", "a,b", "nan,1"):
        with pytest.raises(InputError, match=r"^--guidance-interval "):
            parse_interval(text, "--guidance-interval")
