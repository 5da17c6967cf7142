"""Articles and plurals."""

import pytest

from unspeckle.corpus.english import pluralize, with_article


@pytest.mark.parametrize(
    ("singular", "plural"),
    [
        ("frog", "frogs"),
        ("bus", "buses"),
        ("fox", "foxes"),
        ("puppy", "puppies"),
        ("monkey", "monkeys"),
        ("slice of pizza", "slices of pizza"),
        ("wolf", "wolves"),
        ("snowman", "snowmen"),
        ("goose", "geese"),
        ("sheep", "sheep"),
    ],
)
def test_plurals(singular: str, plural: str) -> None:
    assert pluralize(singular) == plural


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("frog", "a frog"),
        ("owl", "an owl"),
        ("unicorn", "a unicorn"),
        ("orange frog", "an orange frog"),
        ("hourglass", "an hourglass"),
        ("house", "a house"),
        ("sunglasses", "sunglasses"),
        ("x-ray", "an x-ray"),
        ("user", "a user"),
        ("honest dog", "an honest dog"),
    ],
)
def test_articles(phrase: str, expected: str) -> None:
    assert with_article(phrase) == expected
