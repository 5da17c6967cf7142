"""Autoencoder trials: train one for some minutes on a folder, then measure what it loses and what it costs.

    python benchmarks/autoencoder.py FOLDER --size 128 --minutes 10 [--threads 1] [--batch-size 32] [--out AE.pt]
        [--picture FILE.png] [FIELD=VALUE ...]

FIELD is one of LatentAutoencoderConfig, such as downsampling_factor=8, widths=[32,64,128] or latent_channels=16.
Prints, over validation images: PSNR; PSNR where the image changes most (the tenth of the pixels with the largest
gradient), which is where a small autoencoder fails first; the standard deviation of what it makes of flat grounds, in
255ths; PSNR with a tenth of noise on the latents; and the milliseconds to decode one image. --picture saves images
above their reconstructions.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from training_step import plan_for

from unspeckle.corpus.captions import read_folder
from unspeckle.corpus.splits import Corpus, open_corpus
from unspeckle.networks.latent_autoencoder import LatentAutoencoder, LatentAutoencoderConfig
from unspeckle.text.tokenizer import Tokenizer
from unspeckle.training.autoencoder_task import AutoencoderTask, init_autoencoder
from unspeckle.training.inputs import image_cache_folder
from unspeckle.training.trainer import fit, training_step

SHOWN_IMAGES, MEASURED_IMAGES = 12, 256
LATENT_NOISE_STD = 0.1


def train(corpus: Corpus, autoencoder: LatentAutoencoder, args: argparse.Namespace) -> int:
    """Train for the minutes given, with a rate that falls to zero by the clock's own estimate; the number of steps."""
    tokenizer = Tokenizer.train(corpus.training_captions())
    plan = plan_for("tiny", args.size, args.batch_size, tokenizer, autoencoder)
    plan = plan.with_changes(optimizer={"name": "muon"}, work={"seed": args.seed, "autoencoder_steps": 10**6})
    with tempfile.TemporaryDirectory() as folder:
        trial = AutoencoderTask(plan, Path(folder), corpus, init_autoencoder(args.seed, autoencoder.config))
        training_batches = trial.batches(0)
        for step in range(1, 4):
            training_step(trial, next(training_batches), step)
        start = time.perf_counter()
        for step in range(4, 12):
            training_step(trial, next(training_batches), step)
        steps = round(60 * args.minutes / ((time.perf_counter() - start) / 8))
        plan = plan.with_changes(work={"autoencoder_steps": steps})
        for report in fit(AutoencoderTask(plan, Path(folder) / "run", corpus, autoencoder)):
            print(f"\r{report.step} of {steps} steps, loss {report.loss:.4f}", end="", flush=True)
    print()
    return steps


@torch.no_grad()
def measure(corpus: Corpus, autoencoder: LatentAutoencoder) -> dict[str, float]:
    """What is printed."""
    images = shown_images(corpus, MEASURED_IMAGES)
    latents = autoencoder.encode(images)
    error = (autoencoder.decode(latents).clamp(-1, 1) - images).square().mean(1)  # (B, H, W)
    noisy = autoencoder.decode(latents + LATENT_NOISE_STD * torch.randn_like(latents)).clamp(-1, 1) - images
    slope = edge_strength(images)
    is_edge = slope >= torch.quantile(slope.flatten()[:: max(1, slope.numel() // 1_000_000)], 0.9)
    is_flat = F.max_pool2d(slope[:, None], 9, 1, 4)[:, 0] < 0.02
    start = time.perf_counter()
    for _ in range(20):
        autoencoder.decode(latents[:1])
    return {
        "PSNR": psnr(error),
        "PSNR at edges": psnr(error[is_edge]),
        "grain of flat grounds": float(127.5 * error[is_flat].mean().sqrt()),
        "PSNR with noise": psnr(noisy.square()),
        "decode ms": (time.perf_counter() - start) / 20 * 1000,
    }


def shown_images(corpus: Corpus, count: int) -> Tensor:
    """Validation images (B, 3, H, W) in [-1, 1]."""
    split = corpus.validation
    return split.center_crops(np.arange(min(count, len(split)))).float() / 127.5 - 1


def edge_strength(images: Tensor) -> Tensor:
    """(B, H, W): the largest difference of a pixel to its right and lower neighbors."""
    padded = F.pad(images, (0, 1, 0, 1), mode="replicate")
    right, below = padded[:, :, :-1, 1:] - images, padded[:, :, 1:, :-1] - images
    return torch.maximum(right.abs().amax(1), below.abs().amax(1))


def psnr(squared_errors: Tensor) -> float:
    """Decibels, for values in [-1, 1]."""
    return float(10 * torch.log10(4 / squared_errors.mean()))


@torch.no_grad()
def save_picture(corpus: Corpus, autoencoder: LatentAutoencoder, path: Path) -> None:
    """Images above their reconstructions."""
    images = shown_images(corpus, SHOWN_IMAGES)
    rows = [torch.cat(list(x), dim=2) for x in (images, autoencoder.decode(autoencoder.encode(images)).clamp(-1, 1))]
    pixels = ((torch.cat(rows, dim=1) + 1) * 127.5).round().to(torch.uint8)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("changes", nargs="*", metavar="FIELD=VALUE")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where to keep the weights")
    parser.add_argument("--picture", type=Path, help="where to save images and their reconstructions")
    args = parser.parse_intermixed_args()
    torch.set_num_threads(args.threads)
    corpus = open_corpus(read_folder(args.folder), args.size, cache_dir=image_cache_folder())
    config = replace(LatentAutoencoderConfig(), **dict(map(parse_change, args.changes)))
    autoencoder = init_autoencoder(args.seed, config)
    steps = train(corpus, autoencoder, args)
    if args.out:
        torch.save(autoencoder.state_dict(), args.out)
    if args.picture:
        save_picture(corpus, autoencoder, args.picture)
    parameters = sum(parameter.numel() for parameter in autoencoder.parameters())
    numbers = "  ".join(f"{name} {value:.2f}" for name, value in measure(corpus, autoencoder).items())
    print(f"{' '.join(args.changes)}: {parameters:,} parameters, {steps} steps  {numbers}", flush=True)


def parse_change(change: str) -> tuple[str, Any]:
    """A field and its value."""
    name, _, text = change.partition("=")
    value = json.loads(text)
    return name, tuple(value) if isinstance(value, list) else value


if __name__ == "__main__":
    main()
