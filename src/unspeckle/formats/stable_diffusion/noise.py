"""The noise from which other programs draw, so that the same seed gives the same image."""

from collections.abc import Sequence

import torch

from unspeckle.rng import NoiseFunction, seed_keys


def torch_generator_noise(
    seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu"
) -> NoiseFunction:
    """The noise of other programs: each image has a torch.Generator on the CPU, whose numbers are used up in the order
    of the calls, whatever the step. shape: of x without the batch, (C, h, w); what is returned gives (B, C, h, w)."""
    seed_keys(seeds)  # which checks that they are seeds
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return lambda step, draw: torch.stack([torch.randn(tuple(shape), generator=g) for g in generators]).to(device)
