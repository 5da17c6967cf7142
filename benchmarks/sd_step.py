"""One guidance step of Stable Diffusion 1.5 in bfloat16 or int8, for a benchmark that hands out a diffusers state dict:

    ours(state), in_int8(state) -> call(x (B, 4, H, W), t (B,), context (B, 77, 768)) -> eps, float32

Or by itself, our plain layers, the packed ones and those of bytes in turns, with their errors against float32:

    python benchmarks/sd_step.py --rounds 3 --size 512

Seconds by the clock, and of the processor at best: the latter hardly depend on what else runs.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from unspeckle.denoiser import Conditioning
from unspeckle.formats.rename_tables import BlockLayout, build_name_table, to_our_names
from unspeckle.formats.stable_diffusion import diffusers_names
from unspeckle.kernels.inference import cast_for_inference
from unspeckle.model_io.process_memory import keep_freed_memory
from unspeckle.networks.unet import UNet, UNetConfig
from unspeckle.presets import STABLE_DIFFUSION_CONFIGS
from unspeckle.quantization.int8_layers import quantize_layers

Call = Callable[[Tensor, Tensor, Tensor], Tensor]


def network(state: Mapping[str, Tensor] | None) -> tuple[UNet, UNetConfig]:
    """The U-Net with these weights, named as diffusers does, or with random ones."""
    config = STABLE_DIFFUSION_CONFIGS["1.5"]
    if state is None:
        torch.manual_seed(0)
        made = UNet(config)
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(std=parameter[0].numel() ** -0.5)
    else:
        with torch.device("meta"):
            made = UNet(config)
        has_transformer = tuple(depth > 0 for depth in config.transformer_depths)
        layout = BlockLayout(config.blocks_per_level, len(config.channel_multipliers), has_transformer)
        table = build_name_table(made.state_dict(), diffusers_names.UNET, layout)
        made.load_state_dict(to_our_names(table, state), assign=True)
    return made.eval().requires_grad_(False), config


def ours(state: Mapping[str, Tensor]) -> Call:
    """As `unspeckle draw --precision bfloat16` runs it; the words' keys and values are made anew at each call."""
    keep_freed_memory()
    low = cast_for_inference(network(state)[0], torch.bfloat16)
    return lambda x, t, context: low(x.bfloat16(), t, Conditioning(context.bfloat16())).float()


def in_int8(state: Mapping[str, Tensor]) -> Call:
    """As `unspeckle draw --precision int8` runs it."""
    keep_freed_memory()
    low = cast_for_inference(quantize_layers(network(state)[0]), torch.bfloat16)
    return lambda x, t, context: low(x.bfloat16(), t, Conditioning(context.bfloat16())).float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=512, help="of the image, in pixels")
    parser.add_argument("--rows", default="plain,packed,int8")
    asked = parser.parse_args()
    keep_freed_memory()
    make: dict[str, Callable[[], Any]] = {
        "plain": lambda: network(None)[0].to(torch.bfloat16, memory_format=torch.channels_last),
        "packed": lambda: cast_for_inference(network(None)[0], torch.bfloat16),
        "int8": lambda: cast_for_inference(quantize_layers(network(None)[0]), torch.bfloat16),
    }
    generator, side = torch.Generator().manual_seed(1), asked.size // 8
    given = [
        (torch.randn(2, 4, side, side, generator=generator), torch.randn(2, 77, 768, generator=generator))
        for _ in range(asked.rounds + 1)
    ]
    clock, seconds, work, error = torch.full((2,), 500.0), dict[str, list[float]](), dict[str, list[float]](), {}
    with torch.inference_mode():
        exact = network(None)[0]
        truth = exact(given[0][0], clock, Conditioning(given[0][1]))
        del exact
        rows = {name: make[name]() for name in asked.rows.split(",")}
        for turn, (x, words) in enumerate(given):
            for name, call in rows.items():
                start, own = time.perf_counter(), time.process_time()
                said = call(x.bfloat16(), clock, Conditioning(words.bfloat16()))
                if turn:
                    seconds.setdefault(name, []).append(time.perf_counter() - start)
                    work.setdefault(name, []).append(time.process_time() - own)
                else:
                    error[name] = float((said.float() - truth).norm() / truth.norm())
    for name, taken in seconds.items():
        spent = f"{statistics.median(taken):7.3f} s, of the processor {min(work[name]):7.3f} s"
        print(f"{name:8s} {spent}   error {error[name]:.1e}")


if __name__ == "__main__":
    main()
