"""One guidance step of Stable Diffusion 1.5 in bfloat16, for a benchmark that hands out a diffusers state dict:

    ours(state) -> call(x (B, 4, H, W), t (B,), context (B, 77, 768)) -> eps, float32

Or by itself, our plain layers against the packed ones, in turns: python benchmarks/sd_step.py --rounds 3
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unspeckle.denoiser import Given
from unspeckle.formats import diffusers
from unspeckle.formats.checkpoint import fetched, table
from unspeckle.networks.packing import lowered
from unspeckle.networks.unet import UNet, UNetConfig
from unspeckle.precision import keep_memory
from unspeckle.presets import STABLE_DIFFUSION

Call = Callable[[Tensor, Tensor, Tensor], Tensor]


def network(state: Mapping[str, Tensor] | None) -> tuple[UNet, UNetConfig]:
    """The U-Net with these weights, named as diffusers does, or with random ones."""
    config = STABLE_DIFFUSION["1.5"]
    if state is None:
        torch.manual_seed(0)
        made = UNet(config)
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(std=parameter[0].numel() ** -0.5)
    else:
        with torch.device("meta"):
            made = UNet(config)
        made.load_state_dict(
            fetched(UNet, config, table(UNet, config, diffusers.UNET), state, Path("state")), assign=True
        )
    return made.eval().requires_grad_(False), config


def ours(state: Mapping[str, Tensor]) -> Call:
    """As `unspeckle draw --precision bfloat16` runs it; the words' keys and values are made anew at each call."""
    keep_memory()
    low = lowered(network(state)[0], torch.bfloat16)
    return lambda x, t, context: low(x.bfloat16(), t, Given(context.bfloat16())).float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds: int = parser.parse_args().rounds
    keep_memory()
    plain = network(None)[0].to(torch.bfloat16, memory_format=torch.channels_last)
    rows: dict[str, Any] = {"plain": plain, "packed": lowered(network(None)[0], torch.bfloat16)}
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    with torch.inference_mode():
        for turn in range(rounds + 1):
            x, words = torch.randn(2, 4, 64, 64).bfloat16(), torch.randn(2, 77, 768).bfloat16()
            for name, call in rows.items():
                start = time.perf_counter()
                call(x, torch.full((2,), 500.0), Given(words))
                if turn:
                    seconds[name].append(time.perf_counter() - start)
    for name, taken in seconds.items():
        print(f"{name:8s} {statistics.median(taken):7.3f} s")


if __name__ == "__main__":
    main()
