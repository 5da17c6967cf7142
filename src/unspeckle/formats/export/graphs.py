"""What a graph for another program is, and the helpers by which models are cut into graphs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

BATCH_AXIS = ("batch_size", 1)
DynamicAxes = dict[
    int, tuple[str, int]
]  # the dimensions whose size is free: a name, and what the size is a multiple of
TensorTuple = tuple[Tensor, ...]


@dataclass(frozen=True)
class ExportGraph:
    """One part of a model as a graph."""

    # also that of its folder
    name: str
    # builds the module in float32, which takes the inputs in order
    build_module: Callable[[], nn.Module]
    # the free dimensions of each input, by its name
    inputs: dict[str, DynamicAxes]
    # the names of what the module returns
    outputs: tuple[str, ...]
    # inputs of the sizes to trace the graph with (False), or of other sizes to check it with (True)
    example_inputs: Callable[[bool], TensorTuple]
    # the content of its config.json, if it has one
    config: dict[str, Any] = field(default_factory=dict)


def expand_to_batch(t: Tensor, x: Tensor) -> Tensor:
    """t (1,) or (B,) as (B,), by indices that are right for both, since a graph cannot branch."""
    return t[torch.minimum(torch.arange(x.shape[0]), torch.arange(t.shape[0])[-1])]


def random_tensor(*shape: int) -> Tensor:
    """Standard normal numbers, the same at each call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def image_axes(multiple: int) -> DynamicAxes:
    """The free dimensions of a batch of images or feature maps whose sides are multiples of that many pixels."""
    return {0: BATCH_AXIS, 2: ("height", multiple), 3: ("width", multiple)}


def random_feature_maps(channels: int, multiple: int, alternate: bool) -> Tensor:
    """Two feature maps of 2 × 3 units, or the alternate three of 4 × 2. multiple: the side of a unit."""
    batch_size, rows, columns = (3, 4, 2) if alternate else (2, 2, 3)
    return random_tensor(batch_size, channels, rows * multiple, columns * multiple)
