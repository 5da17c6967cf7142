"""Do features that need no download see what a trained judge sees? Real pictures are spoilt in known ways, in four
degrees each, and the kernel distance of the spoilt ones from others is put beside the judge's.

    python benchmarks/features.py FOLDER JUDGE.tflite [--size 64] [--real 1000] [--spoilt 200]

JUDGE is MobileNetV2 1.0 224, quantised, whose pooled features are tensor 172 (needs ai-edge-litert). Printed for each
kind of features: the rank correlation (Spearman) of the distances of all spoilt sets with the judge's; how many steps
to a worse degree raise the distance; for how many ways of spoiling the mildest degree already lies beyond twice what
halves of real pictures lie apart.
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
from unspeckle.scoring.features import ScatteringFeatures, WhitenedFeatures, to_opponent_colors

Pixels = NDArray[np.uint8]  # (N, H, W, 3)
Spoil = Callable[[Pixels, float], NDArray[np.generic]]
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
RNG = np.random.default_rng(0)


def pictures(folder: Path, size: int, count: int) -> tuple[Pixels, list[str]]:
    """The middle squares of some pictures, and the names of their folders."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    files = random.Random(0).sample(files, count)
    found = []
    for file in files:
        picture = Image.open(file).convert("RGB")
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.crop((left, top, left + side, top + side))
        found.append(np.asarray(square.resize((size, size), Image.Resampling.LANCZOS)))
    return np.stack(found), [file.parent.name for file in files]


def each(change: Callable[[Image.Image], Image.Image], x: Pixels) -> Pixels:
    return np.stack([np.asarray(change(Image.fromarray(p))) for p in x])


def compressed(quality: float) -> Callable[[Image.Image], Image.Image]:
    def change(picture: Image.Image) -> Image.Image:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=int(quality))
        return Image.open(file).convert("RGB")

    return change


def warped(x: Pixels, by: float) -> NDArray[np.generic]:
    t = torch.from_numpy(x).permute(0, 3, 1, 2).float()
    away = torch.randn(len(x), 2, 5, 5, generator=torch.Generator().manual_seed(1)) * by * 2 / 64
    away = F.interpolate(away, size=x.shape[1:3], mode="bicubic").permute(0, 2, 3, 1)
    grid = F.affine_grid(torch.eye(2, 3).expand(len(x), 2, 3), list(t.shape), align_corners=False) + away
    moved = F.grid_sample(t, grid, padding_mode="reflection", align_corners=False)
    return np.asarray(moved.permute(0, 2, 3, 1))


def shuffled(x: Pixels, pieces: float) -> Pixels:
    """Each picture cut into pieces × pieces squares, put together in any order."""
    n, side, k = len(x), x.shape[1], int(pieces)
    p = side // k
    cut = x.reshape(n, k, p, k, p, 3).transpose(0, 1, 3, 2, 4, 5).reshape(n, k * k, p, p, 3)
    cut = np.stack([one[RNG.permutation(k * k)] for one in cut])
    return cut.reshape(n, k, k, p, p, 3).transpose(0, 1, 3, 2, 4, 5).reshape(x.shape)


def holed(x: Pixels, share: float) -> Pixels:
    spoilt, side = x.copy(), int(share * x.shape[1])
    for one in spoilt:
        top, left = RNG.integers(0, x.shape[1] - side + 1, 2)
        one[top : top + side, left : left + side] = 128
    return spoilt


WAYS: dict[str, tuple[Spoil, tuple[float, float, float, float]]] = {
    "blur": (lambda x, d: each(lambda p: p.filter(ImageFilter.GaussianBlur(d * p.width / 64)), x), (0.6, 1, 1.7, 3)),
    "noise": (lambda x, d: x + RNG.normal(0, d, x.shape), (6, 14, 30, 60)),
    "jpeg": (lambda x, d: each(compressed(d), x), (40, 20, 10, 4)),
    "colour cast": (lambda x, d: x + np.array([d, -d, d / 2]), (8, 18, 40, 80)),
    "faded": (lambda x, d: d * x + (1 - d) * x.mean(3, keepdims=True), (0.8, 0.6, 0.35, 0.15)),
    "flat": (lambda x, d: d * x + (1 - d) * 128, (0.85, 0.65, 0.4, 0.2)),
    "copies": (lambda x, d: x[np.arange(len(x)) % max(1, int(len(x) / d))], (2, 5, 16, 50)),
    "mixed": (lambda x, d: (1 - d) * x + d * np.roll(x, 1, 0), (0.1, 0.2, 0.35, 0.5)),
    "shuffled": (shuffled, (2, 4, 8, 16)),
    "warped": (warped, (0.7, 1.5, 3, 6)),
    "holes": (holed, (0.12, 0.25, 0.45, 0.75)),
}


def sets(folder: Path, size: int, real: int, spoilt: int) -> dict[str, Pixels]:
    """ "real" is what all are compared with, "same" are others of the kind, the rest are these, spoilt."""
    x, names = pictures(folder, size, real + 2 * spoilt)
    found = {"real": x[:real], "same": x[real : real + spoilt]}
    for way, (spoil, degrees) in WAYS.items():
        for degree, how in enumerate(degrees, 1):
            found[f"{way}/{degree}"] = np.clip(np.round(spoil(found["same"], how)), 0, 255).astype(np.uint8)
    kinds = sorted(set(names), key=lambda name: -names.count(name))
    if 5 <= len(kinds) <= 20:  # class folders: fewer and fewer classes
        for degree, count in enumerate((7, 4, 2, 1), 1):
            chosen = [i for i in range(real, len(x)) if names[i] in kinds[:count]]
            found[f"classes/{degree}"] = x[[chosen[i % len(chosen)] for i in range(spoilt)]]
    return found


class Judge:
    def __init__(self, file: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.net = Interpreter(str(file), num_threads=1, experimental_preserve_all_tensors=True)
        self.net.allocate_tensors()
        self.entry = self.net.get_input_details()[0]
        self.scale, self.zero = next(d for d in self.net.get_tensor_details() if d["index"] == 172)["quantization"]

    def __call__(self, x: Tensor) -> Tensor:
        rows = []
        for one in x.permute(0, 2, 3, 1).contiguous().numpy():
            pixels = np.asarray(Image.fromarray(one).resize((224, 224), Image.Resampling.BICUBIC))[None]
            signed = self.entry["dtype"] == np.int8
            self.net.set_tensor(
                self.entry["index"], (pixels.astype(np.int16) - 128).astype(np.int8) if signed else pixels
            )
            self.net.invoke()
            rows.append((self.net.get_tensor(172).reshape(-1).astype(np.float64) - self.zero) * self.scale)
        return torch.from_numpy(np.stack(rows))


class Layout:
    """The colours of 8 × 8 fields."""

    name = hash = ""

    def __call__(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(to_opponent_colors(x), 8).flatten(1)


class Random:
    """A convolutional network of random weights: means and deviations of each layer (after Naeem et al. 2020)."""

    name = hash = ""

    def __init__(self) -> None:
        widths = (3, 64, 128, 256)
        kernels = [noise_from_seeds([0], (b, a, 3, 3))(i, 0)[0] for i, (a, b) in enumerate(pairwise(widths))]
        self.kernels = [k / k.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * 2**0.5 for k in kernels]

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([self._some(some) for some in torch.split(x, 50)])

    def _some(self, x: Tensor) -> Tensor:
        y, found = to_opponent_colors(x) * 2, []
        for kernel in self.kernels:
            y = F.relu(F.conv2d(F.pad(y, [1] * 4, mode="reflect"), kernel))
            found += [y.mean((2, 3)), y.flatten(2).std(2)]
            y = F.avg_pool2d(y / (y.square().mean(1, keepdim=True) + 0.1).sqrt(), 2)
        return torch.cat(found, 1)


class FirstOrder(ScatteringFeatures):
    """Scattering without what varies from place to place."""

    def __call__(self, x: Tensor) -> Tensor:
        whole, sizes = super().__call__(x), round(np.log2(x.shape[2])) - 2
        places, at = [*range(3)], 3
        for size in range(sizes):
            places += range(at, at + 18)
            at += 18 + 36 * (sizes - 1 - size)
        return whole[:, places]


class WithLayout(ScatteringFeatures):
    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat((super().__call__(x), Layout()(x)), 1)


def ranks(values: list[float]) -> Tensor:
    return torch.tensor(values).argsort().argsort().double()


def judged(distances: dict[str, float], judge: dict[str, float], halves: float) -> str:
    names = [name for name in distances if "/" in name]
    pair = torch.stack([ranks([d[name] for name in names]) for d in (distances, judge)])
    rank = float(torch.corrcoef(pair)[0, 1])
    rising = seen = 0
    ways = dict.fromkeys(name.split("/")[0] for name in names)
    for way in ways:
        row = [distances["same"], *(distances[f"{way}/{degree}"] for degree in (1, 2, 3, 4))]
        rising += sum(b > a for a, b in pairwise(row))
        seen += row[1] > 2 * halves
    return f"rank {rank:.3f}  rising {rising} of {4 * len(ways)}  mildest seen {seen} of {len(ways)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("judge", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--real", type=int, default=1000)
    parser.add_argument("--spoilt", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(1)
    shown = {
        name: torch.from_numpy(x).permute(0, 3, 1, 2)
        for name, x in sets(args.folder, args.size, args.real, args.spoilt).items()
    }
    kinds: dict[str, Callable[[Tensor], Tensor]] = {
        "judge": Judge(args.judge),
        "colours of 8 × 8 fields": Layout(),
        "random convolutions": Random(),
        "scattering, first order": FirstOrder(),
        "scattering": ScatteringFeatures(),
        "scattering and colours of fields": WithLayout(),
    }
    judge: dict[str, float] = {}
    for kind, features in kinds.items():
        begun = time.process_time()
        rows = {name: features(x) for name, x in shown.items()}
        each_took = 1000 * (time.process_time() - begun) / sum(map(len, shown.values()))
        for whitened in (False, True) if judge else (False,):
            some = rows
            if whitened:
                matrix = WhitenedFeatures(features, shown["real"])  # type: ignore[arg-type]
                some = {name: ((r.double() - matrix.mean) @ matrix.whitening_matrix) for name, r in rows.items()}
            distances = {name: kid(some["real"], r) for name, r in some.items() if name != "real"}
            judge = judge or distances
            halves = [kid(*some["real"][torch.randperm(args.real)].split(args.spoilt)[:2]) for _ in range(10)]
            spread = float(torch.tensor(halves).abs().quantile(0.9))
            name = kind + ", whitened" * whitened
            print(
                f"{name:42s} {some['real'].shape[1]:5d}  {each_took:5.1f} ms  {judged(distances, judge, spread)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
