"""What a scene consists of. All lengths are fractions of the image's side, 0 at the left and at the top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

RELATIONS = ("left of", "right of", "above", "below", "next to", "")
"""Positions of the first of two objects relative to the second; "" if the caption does not mention one."""


@dataclass(frozen=True)
class SceneVocabulary:
    """The nouns and colors that scenes are made of. The colors allowed for a noun do not include its own."""

    nouns: Sequence[str]
    tints: dict[str, list[str]]
    """By noun, the colors in which it may be painted."""
    backgrounds: dict[str, list[str]]
    """By noun, the background colors on which it is visible; under "", all background colors."""
    plurals: dict[str, str]
    """By noun, its plural."""
    synonyms: dict[str, tuple[str, ...]]
    """By noun, other words for it."""
    wearer_nouns: Sequence[str]
    """Nouns that can wear garments."""
    garments: Sequence[str]
    hybrid_nouns: Sequence[str]
    """Nouns of which hybrids can be made."""


@dataclass(frozen=True)
class SceneObject:
    """An object of a scene."""

    noun: str
    x: float = 0.5
    """Center of the square that contains the object."""
    y: float = 0.5
    side: float = 0.62
    """Side of that square."""
    size_word: str = ""
    """Either "big" or "small", or "" if the caption does not mention the size."""
    tint: str = ""
    """The color in which it is painted, or "" for its own colors."""
    wearing: str = ""
    """A garment, or ""."""
    on_stilts: bool = False
    hybrid_of: tuple[str, str] | None = None
    """The two nouns of a hybrid: upper and lower, or left and right part."""
    splice: str = ""
    """Of a hybrid, "top" for an upper part on a lower part, "side" for a left half and a right half."""


@dataclass(frozen=True)
class Scene:
    """Objects on a background."""

    kind: str
    """A key of `scene_sampling.SCENE_KIND_WEIGHTS`, such as "two"."""
    objects: tuple[SceneObject, ...]
    background: str = "white"
    relation: str = ""
    """One of RELATIONS, of the objects of the first noun to those of the second; in a trio, of the third object to the
    first two, the first of which is left of the second."""
    background_variation: tuple[float, float] = (0.0, 0.0)
    """How the brightness of a colored background varies: overall, and from top to bottom; each from -1 to 1."""
