"""Do features that need no download see what a trained network sees?

    python benchmarks/features.py FOLDER JUDGE.tflite [--size 64] [--real 1000] [--corrupted 200]

Real images are corrupted in known ways, to four degrees each, and the kernel distance of the corrupted images from
other real ones is compared with that of a judge. JUDGE is MobileNetV2 1.0 224, quantized, whose pooled features are
tensor 172 (needs ai-edge-litert). For each kind of features are printed: the rank correlation (Spearman) of the
distances of all corrupted sets with the judge's; how many steps to a higher degree raise the distance; and for how many
corruptions the mildest degree is already beyond twice the distance between halves of the real images.
"""

import argparse
import io
import random
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn import functional as F

from unspeckle.rng import noise_from_seeds
from unspeckle.scoring.distances import kid
from unspeckle.scoring.features import FeatureExtractor, ScatteringFeatures, WhitenedFeatures, to_opponent_colors

Pixels = NDArray[np.uint8]  # (N, H, W, 3)
Corruption = Callable[[Pixels, float], NDArray[np.generic]]
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
RNG = np.random.default_rng(0)


def read_images(folder: Path, size: int, count: int) -> tuple[Pixels, list[str]]:
    """Center squares of random images, and the names of their folders."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    files = random.Random(0).sample(files, count)
    squares = []
    for file in files:
        image = Image.open(file).convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        squares.append(np.asarray(square.resize((size, size), Image.Resampling.LANCZOS)))
    return np.stack(squares), [file.parent.name for file in files]


def map_images(change: Callable[[Image.Image], Image.Image], x: Pixels) -> Pixels:
    return np.stack([np.asarray(change(Image.fromarray(pixels))) for pixels in x])


def compress(quality: float) -> Callable[[Image.Image], Image.Image]:
    def change(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=int(quality))
        return Image.open(buffer).convert("RGB")

    return change


def warp(x: Pixels, degree: float) -> NDArray[np.generic]:
    t = torch.from_numpy(x).permute(0, 3, 1, 2).float()
    displacement = torch.randn(len(x), 2, 5, 5, generator=torch.Generator().manual_seed(1)) * degree * 2 / 64
    displacement = F.interpolate(displacement, size=x.shape[1:3], mode="bicubic").permute(0, 2, 3, 1)
    grid = F.affine_grid(torch.eye(2, 3).expand(len(x), 2, 3), list(t.shape), align_corners=False) + displacement
    warped = F.grid_sample(t, grid, padding_mode="reflection", align_corners=False)
    return np.asarray(warped.permute(0, 2, 3, 1))


def shuffle(x: Pixels, pieces: float) -> Pixels:
    """Each image cut into pieces × pieces squares that change places."""
    n, side, k = len(x), x.shape[1], int(pieces)
    p = side // k
    tiles = x.reshape(n, k, p, k, p, 3).transpose(0, 1, 3, 2, 4, 5).reshape(n, k * k, p, p, 3)
    tiles = np.stack([image_tiles[RNG.permutation(k * k)] for image_tiles in tiles])
    return tiles.reshape(n, k, k, p, p, 3).transpose(0, 1, 3, 2, 4, 5).reshape(x.shape)


def cut_holes(x: Pixels, share: float) -> Pixels:
    """A gray square in each image; share is its side's share of the image's."""
    holed, side = x.copy(), int(share * x.shape[1])
    for pixels in holed:
        top, left = RNG.integers(0, x.shape[1] - side + 1, 2)
        pixels[top : top + side, left : left + side] = 128
    return holed


def blur(x: Pixels, radius: float) -> Pixels:
    return map_images(lambda image: image.filter(ImageFilter.GaussianBlur(radius * image.width / 64)), x)


# Each corruption and its four degrees, the mildest first
CORRUPTIONS: dict[str, tuple[Corruption, tuple[float, float, float, float]]] = {
    "blur": (blur, (0.6, 1, 1.7, 3)),
    "noise": (lambda x, d: x + RNG.normal(0, d, x.shape), (6, 14, 30, 60)),
    "jpeg": (lambda x, d: map_images(compress(d), x), (40, 20, 10, 4)),
    "color cast": (lambda x, d: x + np.array([d, -d, d / 2]), (8, 18, 40, 80)),
    "faded": (lambda x, d: d * x + (1 - d) * x.mean(3, keepdims=True), (0.8, 0.6, 0.35, 0.15)),
    "flat": (lambda x, d: d * x + (1 - d) * 128, (0.85, 0.65, 0.4, 0.2)),
    "copies": (lambda x, d: x[np.arange(len(x)) % max(1, int(len(x) / d))], (2, 5, 16, 50)),
    "mixed": (lambda x, d: (1 - d) * x + d * np.roll(x, 1, 0), (0.1, 0.2, 0.35, 0.5)),
    "shuffled": (shuffle, (2, 4, 8, 16)),
    "warped": (warp, (0.7, 1.5, 3, 6)),
    "holes": (cut_holes, (0.12, 0.25, 0.45, 0.75)),
}


def make_sets(folder: Path, size: int, real_count: int, corrupted_count: int) -> dict[str, Pixels]:
    """ "real" is what all sets are compared with, "same" has other real images, the rest are these, corrupted."""
    x, folder_names = read_images(folder, size, real_count + 2 * corrupted_count)
    sets = {"real": x[:real_count], "same": x[real_count : real_count + corrupted_count]}
    for name, (corrupt, degrees) in CORRUPTIONS.items():
        for number, degree in enumerate(degrees, 1):
            corrupted = np.clip(np.round(corrupt(sets["same"], degree)), 0, 255)
            sets[f"{name}/{number}"] = corrupted.astype(np.uint8)
    classes = sorted(set(folder_names), key=lambda name: -folder_names.count(name))
    if 5 <= len(classes) <= 20:  # the folders are classes: fewer and fewer of them
        for number, count in enumerate((7, 4, 2, 1), 1):
            indices = [i for i in range(real_count, len(x)) if folder_names[i] in classes[:count]]
            sets[f"classes/{number}"] = x[[indices[i % len(indices)] for i in range(corrupted_count)]]
    return sets


class JudgeFeatures:
    """The pooled features of a quantized MobileNetV2."""

    name = hash = ""

    def __init__(self, file: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.network = Interpreter(str(file), num_threads=1, experimental_preserve_all_tensors=True)
        self.network.allocate_tensors()
        self.input = self.network.get_input_details()[0]
        details = next(d for d in self.network.get_tensor_details() if d["index"] == 172)
        self.scale, self.zero = details["quantization"]

    def __call__(self, images: Tensor) -> Tensor:
        rows = []
        for pixels in images.permute(0, 2, 3, 1).contiguous().numpy():
            resized = np.asarray(Image.fromarray(pixels).resize((224, 224), Image.Resampling.BICUBIC))[None]
            if self.input["dtype"] == np.int8:
                resized = (resized.astype(np.int16) - 128).astype(np.int8)
            self.network.set_tensor(self.input["index"], resized)
            self.network.invoke()
            rows.append((self.network.get_tensor(172).reshape(-1).astype(np.float64) - self.zero) * self.scale)
        return torch.from_numpy(np.stack(rows))


class LayoutFeatures:
    """The mean colors of 8 × 8 cells."""

    name = hash = ""

    def __call__(self, images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(to_opponent_colors(images), 8).flatten(1)


class RandomFeatures:
    """Means and standard deviations of each layer of a random convolutional network (after Naeem et al. 2020)."""

    name = hash = ""

    def __init__(self) -> None:
        widths = (3, 64, 128, 256)
        kernels = [noise_from_seeds([0], (b, a, 3, 3))(i, 0)[0] for i, (a, b) in enumerate(pairwise(widths))]
        self.kernels = [k / k.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * 2**0.5 for k in kernels]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        return torch.cat([self._extract_batch(batch) for batch in torch.split(images, 50)])

    def _extract_batch(self, images: Tensor) -> Tensor:
        y, features = to_opponent_colors(images) * 2, []
        for kernel in self.kernels:
            y = F.relu(F.conv2d(F.pad(y, [1] * 4, mode="reflect"), kernel))
            features += [y.mean((2, 3)), y.flatten(2).std(2)]
            y = F.avg_pool2d(y / (y.square().mean(1, keepdim=True) + 0.1).sqrt(), 2)
        return torch.cat(features, 1)


class FirstOrderFeatures(ScatteringFeatures):
    """Scattering without the second order."""

    def __call__(self, images: Tensor) -> Tensor:
        features, scale_count = super().__call__(images), round(np.log2(images.shape[2])) - 2
        columns, start = [*range(3)], 3
        for scale in range(scale_count):
            columns += range(start, start + 18)
            start += 18 + 36 * (scale_count - 1 - scale)
        return features[:, columns]


class ScatteringAndLayoutFeatures(ScatteringFeatures):
    def __call__(self, images: Tensor) -> Tensor:
        return torch.cat((super().__call__(images), LayoutFeatures()(images)), 1)


def ranks(values: list[float]) -> Tensor:
    return torch.tensor(values).argsort().argsort().double()


def compare(distances: dict[str, float], judge: dict[str, float], half_distance: float) -> str:
    """How well the distances agree with the judge's, as text."""
    names = [name for name in distances if "/" in name]
    both = torch.stack([ranks([d[name] for name in names]) for d in (distances, judge)])
    correlation = float(torch.corrcoef(both)[0, 1])
    rising = noticed = 0
    corruptions = dict.fromkeys(name.split("/")[0] for name in names)
    for corruption in corruptions:
        by_degree = [distances["same"], *(distances[f"{corruption}/{number}"] for number in (1, 2, 3, 4))]
        rising += sum(b > a for a, b in pairwise(by_degree))
        noticed += by_degree[1] > 2 * half_distance
    count = len(corruptions)
    return f"rank {correlation:.3f}  rising {rising} of {4 * count}  mildest noticed {noticed} of {count}"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("judge", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--real", type=int, default=1000)
    parser.add_argument("--corrupted", type=int, default=200)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(1)
    sets = make_sets(args.folder, args.size, args.real, args.corrupted)
    images = {name: torch.from_numpy(x).permute(0, 3, 1, 2) for name, x in sets.items()}
    extractors: dict[str, FeatureExtractor] = {
        "judge": JudgeFeatures(args.judge),
        "colors of 8 × 8 cells": LayoutFeatures(),
        "random convolutions": RandomFeatures(),
        "scattering, first order": FirstOrderFeatures(),
        "scattering": ScatteringFeatures(),
        "scattering and colors of cells": ScatteringAndLayoutFeatures(),
    }
    judge: dict[str, float] = {}
    for kind, extractor in extractors.items():
        start = time.process_time()
        features = {name: extractor(x) for name, x in images.items()}
        ms_per_image = 1000 * (time.process_time() - start) / sum(map(len, images.values()))
        for whitened in (False, True) if judge else (False,):
            values = features
            if whitened:
                whitening = WhitenedFeatures(extractor, images["real"])
                matrix, mean = whitening.whitening_matrix, whitening.mean
                values = {name: (rows.double() - mean) @ matrix for name, rows in features.items()}
            real = values["real"]
            distances = {name: kid(real, rows) for name, rows in values.items() if name != "real"}
            judge = judge or distances
            halves = [kid(*real[torch.randperm(args.real)].split(args.corrupted)[:2]) for _ in range(10)]
            half_distance = float(torch.tensor(halves).abs().quantile(0.9))
            label = f"{kind}, whitened" if whitened else kind
            result = compare(distances, judge, half_distance)
            print(f"{label:42s} {real.shape[1]:5d}  {ms_per_image:5.1f} ms  {result}", flush=True)


if __name__ == "__main__":
    main()
