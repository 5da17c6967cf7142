"""Text-to-image diffusion that a person can own whole.

    model = unspeckle.load("model.safetensors")      # no argument: the embedded model
    pictures = unspeckle.draw(model, unspeckle.Ask(prompt="a frog on stilts", seed=7))

Importing the package is light: torch comes with the first of these names that is touched.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .errors import InputError

if TYPE_CHECKING:
    from .draw import Ask, draw, steps
    from .model import Card, Model, load, save

__all__ = ["Ask", "Card", "InputError", "Model", "draw", "load", "save", "steps"]

_HOMES = {"Ask": "draw", "steps": "draw", "Card": "model", "Model": "model", "load": "model", "save": "model"}


class _Package(ModuleType):
    """An imported submodule is bound to its package by name; here `draw` stays the function."""

    def __getattr__(self, name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_HOMES[name]}", self.__name__), name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})

    @property
    def draw(self) -> Any:
        return getattr(import_module(".draw", self.__name__), "draw")  # noqa: B009

    @draw.setter
    def draw(self, module: ModuleType) -> None:
        """Where the import system would bind the module; sys.modules keeps it."""


sys.modules[__name__].__class__ = _Package
