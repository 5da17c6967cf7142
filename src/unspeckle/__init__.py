"""Text-to-image diffusion that a person can own whole.

    model = unspeckle.load("model.safetensors")      # no argument: the model inside the package
    images = unspeckle.draw(model, "a frog on stilts", seed=7)

Importing the package is light: torch is imported when one of these names is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import InputError

if TYPE_CHECKING:
    from .corpus.checking import check
    from .generation.pipeline import draw, steps
    from .generation.request import Request
    from .model import Model, ModelCard
    from .model_io.loading import load
    from .model_io.model_file import save
    from .output.film_strip import film
    from .output.grid import grid
    from .training.from_python import distil, plan, train
    from .training.machine import machine

__all__ = [
    "InputError",
    "Model",
    "ModelCard",
    "Request",
    "check",
    "distil",
    "draw",
    "film",
    "grid",
    "load",
    "machine",
    "plan",
    "save",
    "steps",
    "train",
]

_HOMES = {
    "Model": "model",
    "ModelCard": "model",
    "Request": "generation.request",
    "check": "corpus.checking",
    "distil": "training.from_python",
    "draw": "generation.pipeline",
    "film": "output.film_strip",
    "grid": "output.grid",
    "load": "model_io.loading",
    "machine": "training.machine",
    "plan": "training.from_python",
    "save": "model_io.model_file",
    "steps": "generation.pipeline",
    "train": "training.from_python",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
