"""Training throughput in one run: ours, the same network in a plain bf16-autocast loop, and diffusers' UNet2DModel.

    python benchmarks/training_step.py [--preset small] [--size 64] [--batch-size 64] [--rounds 7]
        [--space latents] [--classes 10]

With --space latents all but the peer denoise latents: the plain loop encodes each batch, as anybody would; ours takes
cached latents, as `train` does where images are seen often (encoding them once is not timed). With --classes there are
that many different captions, as in a folder of classes; otherwise all differ. The peer's widths are chosen so that its
parameters and its FLOPs per image (counted, not claimed) come nearest to ours. All take turns, so that a machine whose
speed drifts is fair to all; medians and ratios are printed.
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

from unspeckle.corpus.batches import Batch, batches
from unspeckle.corpus.captions import read_folder
from unspeckle.corpus.splits import Corpus, open_corpus
from unspeckle.denoiser import Conditioning
from unspeckle.networks.autoencoder import Autoencoder, PixelAutoencoder, PixelAutoencoderConfig
from unspeckle.networks.unet import UNet, UNetConfig
from unspeckle.presets import get_preset
from unspeckle.text.text_encoder import TextEncoder, TextEncoderConfig
from unspeckle.text.tokenizer import Tokenizer
from unspeckle.training import measurement
from unspeckle.training.autoencoder_task import init_autoencoder
from unspeckle.training.encoded_corpus import encode_split
from unspeckle.training.plan import ComputePlan, ModelPlan, Plan, WorkPlan
from unspeckle.training.preset_choice import network_config_for
from unspeckle.training.text_to_image_updater import TextToImageUpdater, TrainableModules, init_modules
from unspeckle.training.trainer import training_step

Step = Callable[[Batch], None]
WORDS = ["frog", "rabbit", "stilts", "red", "blue", "left", "of", "a", "wearing", "hat", "on", "background"]


def corpus(folder: Path, size: int, classes: int, count: int = 512) -> Corpus:
    """Noise with captions of a dozen words, or of classes: what the images show does not change the speed."""
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        caption = f"a photo of thing {i % classes}" if classes else " ".join(rng.permutation(WORDS))
        (folder / f"{i}.txt").write_text(caption)
    return open_corpus(read_folder(folder), size, cache_dir=folder / "cache")


def plan_for(
    preset_name: str, size: int, batch_size: int, tokenizer: Tokenizer, autoencoder: Autoencoder | None = None
) -> Plan:
    """A plan in bfloat16 on the CPU, of which nothing was measured."""
    preset, autoencoder = get_preset(preset_name), autoencoder or PixelAutoencoder(PixelAutoencoderConfig())
    network = network_config_for(preset, (size, size), autoencoder)
    text_encoder = TextEncoderConfig(
        tokenizer.vocab_size, tokenizer.context_length, network.text_width, preset.text_layers
    )
    return Plan(
        options={},
        corpus_fingerprint="",
        model=ModelPlan((size, size), preset_name, network, text_encoder, autoencoder.config),
        work=WorkPlan(steps=10**6, batch_size=batch_size),
        compute=ComputePlan("cpu", "bfloat16", threads=torch.get_num_threads()),
    )


def ours(plan: Plan, tokenizer: Tokenizer, autoencoder: Autoencoder) -> Step:
    """Steps as `train` takes them."""
    updater = TextToImageUpdater(plan, init_modules(plan), tokenizer, autoencoder)
    steps = itertools.count(1)
    return lambda batch: training_step(updater, batch, next(steps)) and None


def plain(plan: Plan, tokenizer: Tokenizer, autoencoder: Autoencoder, norm_groups: int) -> Step:
    """The same network as anybody would train it: float32 weights, autocast, AdamW, contiguous memory."""
    autoencoder = copy.deepcopy(autoencoder).to(memory_format=torch.contiguous_format)
    network = UNet(replace(plan.model.network, norm_groups=norm_groups))
    modules = TrainableModules(network, TextEncoder(plan.model.text_encoder))
    optimizer = torch.optim.AdamW(modules.parameters(), lr=1e-4)

    def step(batch: Batch) -> None:
        x = batch.images.contiguous().float() / 127.5 - 1
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            x = autoencoder.encode(x).float()
        t, eps = torch.rand(len(x)), torch.randn_like(x)
        sigma = t.view(-1, 1, 1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            prepared = network.prepare(modules.text_encoder(tokenizer.encode(batch.captions)))
            denoised = network((1 - sigma) * x + sigma * eps, t, prepared)
        loss = ((denoised.float() - x) / sigma.clamp(min=0.05)).square().mean()
        loss = loss + network.coarse_predictor.loss(prepared.coarse_image, x).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def count_flops(network: torch.nn.Module, *inputs: object) -> float:
    """Floating-point operations of a call of the network."""
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        network(*inputs)
    return float(counter.get_total_flops())


def cost_of_ours(config: UNetConfig, size: int, context_length: int) -> tuple[float, int]:
    """FLOPs for an image of that size, forward, and parameters."""
    with torch.device("meta"):
        network = UNet(config)
        tokens, vector = torch.empty(1, context_length, config.text_width), torch.empty(1, config.vector_width)
        x = torch.empty(1, config.channels, size, size)
        flops = count_flops(network, x, torch.empty(1), Conditioning(tokens, None, vector))
    return flops, sum(p.numel() for p in network.parameters())


def peer(size: int, target: tuple[float, int]):  # type: ignore[no-untyped-def]
    """The UNet2DModel nearest to the target's FLOPs and parameters among plain ones of four or five levels."""
    from diffusers import UNet2DModel

    def build(widths: tuple[int, ...], layers: int, device: str):  # type: ignore[no-untyped-def]
        with torch.device(device):
            return UNet2DModel(
                sample_size=size,
                layers_per_block=layers,
                block_out_channels=widths,
                norm_num_groups=8,
                down_block_types=("DownBlock2D",) * (len(widths) - 1) + ("AttnDownBlock2D",),
                up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (len(widths) - 1),
            )

    best = None
    shapes = itertools.product((16, 24, 32, 40), (96, 128, 160, 192, 224, 256), (4, 5), (1, 2))
    for first, last, levels, layers in shapes:
        widths = (first, *(min(last, first * 2**i) for i in range(1, levels - 1)), last)
        network = build(widths, layers, "meta")
        x, t = torch.empty(1, 3, size, size, device="meta"), torch.empty(1, device="meta")
        flops, count = count_flops(network, x, t), sum(p.numel() for p in network.parameters())
        distance = abs(np.log(flops / target[0])) + abs(np.log(count / target[1]))
        if best is None or distance < best[0]:
            best = (distance, widths, layers, flops, count)
    assert best is not None
    _, widths, layers, flops, count = best
    return build(widths, layers, "cpu"), flops, count, widths


def diffusers_step(network: torch.nn.Module) -> Step:
    """The loop of its unconditional training example, in float32."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)

    def step(batch: Batch) -> None:
        x = batch.images.contiguous().float() / 127.5 - 1
        t, eps = torch.randint(0, 1000, (len(x),)), torch.randn_like(x)
        loss = torch.nn.functional.mse_loss(network(scheduler.add_noise(x, eps, t), t).sample, eps)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(args: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Seconds of the steps of each, in turns; the first turn is not counted."""
    opened = corpus(folder, args.size, args.classes)
    tokenizer = Tokenizer.train(opened.training_captions())
    autoencoder: Autoencoder = PixelAutoencoder(PixelAutoencoderConfig())
    if args.space == "latents":
        autoencoder = init_autoencoder(0).eval().requires_grad_(False)
    plan = plan_for(args.preset, args.size, args.batch_size, tokenizer, autoencoder)
    cost = cost_of_ours(plan.model.network, args.size // autoencoder.downsampling_factor, tokenizer.context_length)
    network, peer_flops, peer_count, widths = peer(args.size, cost)
    print(f"ours       {cost[1] / 1e6:6.2f} M parameters, {cost[0] / 1e9:.2f} GFLOP an image forward")
    print(f"diffusers  {peer_count / 1e6:6.2f} M parameters, {peer_flops / 1e9:.2f} GFLOP, widths {widths}")
    compiled_plan = plan.with_changes(compute={"compile": measurement.has_compiler()})
    steps = {
        "ours, compiled": ours(compiled_plan, tokenizer, autoencoder),
        "ours, eager": ours(plan, tokenizer, autoencoder),
        "same network, plain autocast": plain(plan, tokenizer, autoencoder, norm_groups=0),
        "same with group norm, plain autocast": plain(plan, tokenizer, autoencoder, norm_groups=8),
        "diffusers UNet2DModel, float32": diffusers_step(network),
    }
    plain_batches = our_batches = batches(opened.training, args.batch_size, seed=0, start=0, flip=False)
    if args.space == "latents":
        split = encode_split(opened.training, autoencoder.with_dtype(torch.bfloat16))
        our_batches = batches(split, args.batch_size, seed=0, start=0, flip=False)
        # All images are encoded outside of what is timed.
        for _ in range(-(-len(split) // args.batch_size)):
            next(our_batches)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(args.rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step(next(our_batches if name.startswith("ours") else plain_batches))
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--space", choices=["pixels", "latents"], default="pixels")
    parser.add_argument("--classes", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        medians = {name: statistics.median(times) for name, times in measure(args, Path(folder)).items()}
    best = min(median for name, median in medians.items() if name.startswith("ours"))
    for name, median in medians.items():
        print(f"{name:38s} {args.batch_size / median:7.1f} images/s   ours is {median / best:.2f} times as fast")


if __name__ == "__main__":
    main()
