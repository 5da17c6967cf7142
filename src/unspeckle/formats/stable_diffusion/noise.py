"""The noise from which other programs draw."""

from collections.abc import Sequence

import torch

from unspeckle.rng import Noise, seed_keys


def torch_generator_noise(seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> Noise:
    """The noise that other programs draw: a CPU torch.Generator for each picture, asked in order, whatever the step."""
    seed_keys(seeds)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return lambda step, draw: torch.stack([torch.randn(tuple(shape), generator=g) for g in generators]).to(device)
