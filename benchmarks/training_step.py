"""Training throughput in one run: ours, the same network in a plain bf16-autocast loop, and diffusers' UNet2DModel.

    python benchmarks/training_step.py [--preset small] [--size 64] [--batch 64] [--rounds 7]
        [--space latents] [--classes 10]

With --space latents all but the peer denoise latents: the plain loop encodes each batch, as anybody would; ours takes
what it kept, as `train` does where pictures are seen often (to encode them once is not timed). With --classes there are
so many different captions, as in a folder of classes; else all differ. The peer's widths are chosen so that its
parameters and its FLOPs per picture (counted, not claimed) come nearest to ours. All take turns, so that a machine
whose speed drifts is fair to all; medians and ratios are printed.
"""

import argparse
import copy
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from unspeckle.training.planner import network_config_for

from unspeckle.corpus import Batch, batches, open_corpus, read_folder
from unspeckle.networks.autoencoder import Autoencoder, PixelAutoencoder, PixelAutoencoderConfig
from unspeckle.networks.unet import UNet, UNetConfig
from unspeckle.presets import get_preset
from unspeckle.text.text_encoder import TextEncoder, TextEncoderConfig
from unspeckle.text.tokenizer import Tokenizer
from unspeckle.training import autoencoder_task, measurement
from unspeckle.training.encoded_corpus import encode_split
from unspeckle.training.master_weights import TextToImageUpdater, TrainableModules, init_modules
from unspeckle.training.plan import Plan

Step = Callable[[Batch], None]


def corpus(folder: Path, size: int, classes: int, count: int = 512):  # type: ignore[no-untyped-def]
    """Noise with captions of a dozen words, or of classes: what is in the pictures does not change the speed."""
    rng = np.random.default_rng(0)
    words = ["frog", "rabbit", "stilts", "red", "blue", "left", "of", "a", "wearing", "hat", "on", "background"]
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        caption = f"a photo of thing {i % classes}" if classes else " ".join(rng.permutation(words))
        (folder / f"{i}.txt").write_text(caption)
    return open_corpus(read_folder(folder), size, cache_dir=folder / "cache")


def plan_for(name: str, size: int, batch: int, tokenizer: Tokenizer, autoencoder: Autoencoder | None = None) -> Plan:
    chosen, autoencoder = get_preset(name), autoencoder or PixelAutoencoder(PixelAutoencoderConfig())
    network = network_config_for(chosen, (size, size), autoencoder)
    text = TextEncoderConfig(tokenizer.vocab_size, tokenizer.context_length, network.text_width, chosen.text_layers)
    return Plan(
        options={}, corpus_fingerprint="", size=(size, size), preset=name, network_config=network, text_config=text, steps=10**6, batch_size=batch,
        seed=0, device="cpu", precision="bfloat16", compile=False, threads=torch.get_num_threads(), parameter_count=0,
        images_per_second=0, total_seconds=0, memory_bytes=0, disk_bytes=0, autoencoder_config=autoencoder.config, optimizer="adamw",
    )  # fmt: skip


def ours(plan: Plan, tokenizer: Tokenizer, autoencoder: Autoencoder) -> Step:
    learner = TextToImageUpdater(plan, init_modules(plan), tokenizer, autoencoder)
    count = itertools.count(1)

    def step(batch: Batch) -> None:
        learner.step(batch, next(count))

    return step


def plain(plan: Plan, tokenizer: Tokenizer, autoencoder: Autoencoder, groups: int) -> Step:
    """The same network as anybody would train it: float32 weights, autocast, AdamW, contiguous memory."""
    autoencoder = copy.deepcopy(autoencoder).to(memory_format=torch.contiguous_format)
    weights = TrainableModules(
        UNet(replace(plan.network_config, norm_norm_groups=groups)), TextEncoder(plan.text_config)
    )
    optimizer = torch.optim.AdamW(weights.parameters(), lr=1e-4)

    def step(batch: Batch) -> None:
        x = batch.images.contiguous().float() / 127.5 - 1
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            x = autoencoder.encode(x).float()
        t, eps = torch.rand(len(x)), torch.randn_like(x)
        level = t.view(-1, 1, 1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            given = weights.network.prepare(weights.text_encoder(tokenizer.encode(batch.captions)))
            estimate = weights.network((1 - level) * x + level * eps, t, given)
        loss = ((estimate.float() - x) / level.clamp(min=0.05)).square().mean()
        loss = loss + weights.network.draft.loss(given.beside, x).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def flops(network: torch.nn.Module, *inputs: object) -> float:
    with FlopCounterMode(display=False) as counted, torch.device("meta"):
        network(*inputs)
    return float(counted.get_total_flops())


def ours_cost(config: UNetConfig, size: int, length: int) -> tuple[float, int]:
    from unspeckle.denoiser import Conditioning

    with torch.device("meta"):
        network = UNet(config)
        given = Conditioning(torch.empty(1, length, config.text_width), None, torch.empty(1, config.vector_width))
        cost = flops(network, torch.empty(1, config.channels, size, size), torch.empty(1), given)
    return cost, sum(p.numel() for p in network.parameters())


def peer(size: int, wanted: tuple[float, int]):  # type: ignore[no-untyped-def]
    """The UNet2DModel nearest to the wanted FLOPs and parameters among plain ones of three or four levels."""
    from diffusers import UNet2DModel

    def made(widths: tuple[int, ...], layers: int, device: str):  # type: ignore[no-untyped-def]
        with torch.device(device):
            return UNet2DModel(
                sample_size=size, layers_per_block=layers, block_out_channels=widths, norm_num_groups=8,
                down_block_types=("DownBlock2D",) * (len(widths) - 1) + ("AttnDownBlock2D",),
                up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (len(widths) - 1),
            )  # fmt: skip

    best = None
    for first, deep, levels, layers in itertools.product(
        (16, 24, 32, 40), (96, 128, 160, 192, 224, 256), (4, 5), (1, 2)
    ):
        widths = (first, *(min(deep, first * 2**i) for i in range(1, levels - 1)), deep)
        network = made(widths, layers, "meta")
        cost = flops(network, torch.empty(1, 3, size, size, device="meta"), torch.empty(1, device="meta"))
        count = sum(p.numel() for p in network.parameters())
        off = abs(np.log(cost / wanted[0])) + abs(np.log(count / wanted[1]))
        if best is None or off < best[0]:
            best = (off, widths, layers, cost, count)
    assert best is not None
    _, widths, layers, cost, count = best
    return made(widths, layers, "cpu"), cost, count, widths


def diffusers_step(network: torch.nn.Module) -> Step:
    """Its unconditional training example's loop, in float32."""
    from diffusers import DDPMScheduler

    noise = DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)

    def step(batch: Batch) -> None:
        x = batch.images.contiguous().float() / 127.5 - 1
        t, eps = torch.randint(0, 1000, (len(x),)), torch.randn_like(x)
        loss = torch.nn.functional.mse_loss(network(noise.add_noise(x, eps, t), t).sample, eps)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--space", choices=["pixels", "latents"], default="pixels")
    parser.add_argument("--classes", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        opened = corpus(Path(folder), args.size, args.classes)
        tokenizer = Tokenizer.train(opened.training_captions())
        standard = PixelAutoencoder(PixelAutoencoderConfig())
        autoencoder = (
            standard if args.space == "pixels" else autoencoder_task.init_autoencoder(0).eval().requires_grad_(False)
        )
        plan = plan_for(args.preset, args.size, args.batch, tokenizer, autoencoder)
        cost, count = ours_cost(
            plan.network_config, args.size // autoencoder.downsampling_factor, tokenizer.context_length
        )
        network, peer_cost, peer_count, widths = peer(args.size, (cost, count))
        print(f"ours       {count / 1e6:6.2f} M parameters, {cost / 1e9:.2f} GFLOP a picture forward")
        print(f"diffusers  {peer_count / 1e6:6.2f} M parameters, {peer_cost / 1e9:.2f} GFLOP, widths {widths}")
        steps = {
            "ours, compiled": ours(replace(plan, compile=measurement.has_compiler()), tokenizer, autoencoder),
            "ours, eager": ours(plan, tokenizer, autoencoder),
            "same network, plain autocast": plain(plan, tokenizer, autoencoder, groups=0),
            "same with group norm, plain autocast": plain(plan, tokenizer, autoencoder, groups=8),
            "diffusers UNet2DModel, float32": diffusers_step(network),
        }
        taken: dict[str, list[float]] = {name: [] for name in steps}
        data = batches(opened.training, args.batch, seed=0, start=0, flip=False)
        split = (
            encode_split(opened.training, autoencoder.with_dtype(torch.bfloat16))
            if args.space == "latents"
            else opened.training
        )
        kept = batches(split, args.batch, seed=0, start=0, flip=False)
        for _ in range(-(-len(split) // args.batch) if args.space == "latents" else 0):
            next(kept)  # all of them encoded, outside of what is timed
        for turn in range(args.rounds + 1):
            for name, step in steps.items():
                start = time.perf_counter()
                batch = next(kept if name.startswith("ours") else data)
                step(batch)
                if turn:
                    taken[name].append(time.perf_counter() - start)
    best = min(statistics.median(times) for name, times in taken.items() if name.startswith("ours"))
    for name, times in taken.items():
        median = statistics.median(times)
        print(f"{name:38s} {args.batch / median:7.1f} pictures/s   ours is {median / best:.2f} times as fast")


if __name__ == "__main__":
    main()
