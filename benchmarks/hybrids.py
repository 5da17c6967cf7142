"""Methods to draw one subject that is two: hybrid(first, second, 0.5, METHOD) for every method, side by side.

    python benchmarks/hybrids.py [--model RUN] [--pairs frog-rabbit,dog-lion] [--methods words,guesses] [--seeds 4]
        [--share 0.5] [--steps 24] [--guidance-scale S] [--out hybrids.png] [--corpus FOLDER]

Saves a sheet with a row for each method, and for each pair a group of columns, one for each seed. With a corpus made by
`unspeckle make-corpus emoji` the pairs are all those of faces that it holds out of training, and the detector of the
composition score (trained at the first run, then cached) counts the images that show one subject that is both; a last
row is "A AND B", which should give two subjects.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from unspeckle.generation.request import Request
from unspeckle.model_io.loading import load
from unspeckle.prompts import HYBRID_METHODS
from unspeckle.scoring.composition.composition_test import read_composition_test
from unspeckle.scoring.composition.hybrids import (
    AND_METHOD,
    SECOND_NOUN_SHARE,
    HybridMethodScore,
    NounPair,
    generate_hybrids,
    judge_hybrids,
)
from unspeckle.scoring.composition.train_detector import load_or_train_detector

PAIRS = "frog-rabbit,dog-lion,cat-panda,fox-pig"
SHOWN_IMAGES = 8  # pairs of the sheet, at most


def make_sheet(images_by_method: Mapping[str, Tensor], pairs: Sequence[NounPair], side: int = 96) -> Image.Image:
    """The images of each method, uint8 (pairs, seeds, 3, H, W), as rows."""
    seed_count = next(iter(images_by_method.values())).shape[1]
    group_width, margin, top, gap = seed_count * side, 90, 20, 8
    size = (margin + len(pairs) * (group_width + gap), top + len(images_by_method) * (side + 2))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for column, pair in enumerate(pairs):
        pen.text((margin + column * (group_width + gap), 4), "-".join(pair), fill="black")
    for row, (method, images) in enumerate(images_by_method.items()):
        y = top + row * (side + 2)
        pen.text((4, y + side // 2 - 6), method, fill="black")
        for column, pair_images in enumerate(images):
            for seed, pixels in enumerate(pair_images):
                image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
                x = margin + column * (group_width + gap) + seed * side
                sheet.paste(image.resize((side, side), Image.Resampling.NEAREST), (x, y))
    return sheet


def describe(score: HybridMethodScore, pairs: Sequence[NounPair]) -> str:
    """The score of one method as text."""
    counts = zip(pairs, score.correct_per_pair, strict=True)
    per_pair = "  ".join(f"{first}-{second} {count}" for (first, second), count in counts)
    return f"{score.accuracy:.3f} of {score.image_count} ({score.low:.2f}–{score.high:.2f})   {per_pair}"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--pairs", default=PAIRS)
    parser.add_argument("--methods", default=",".join(HYBRID_METHODS))
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--share", type=float, default=SECOND_NOUN_SHARE)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("hybrids.png"))
    parser.add_argument("--corpus", type=Path)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    model, request = load(args.model), Request(steps=args.steps, guidance_scale=args.guidance_scale)
    pairs = [(first, second) for first, _, second in (pair.partition("-") for pair in args.pairs.split(","))]
    detector, methods = None, args.methods.split(",")
    if args.corpus:
        test = read_composition_test(args.corpus)
        pairs, detector = test.hybrid_pairs, load_or_train_detector(test.library, test.image_size)
        methods.append(AND_METHOD)
    images_by_method = {}
    for method in methods:
        start = time.perf_counter()
        images = generate_hybrids(model, method, pairs, args.seeds, request, args.share)
        line = f"{method:10} {time.perf_counter() - start:6.1f} s"
        if detector is not None:
            line += f"   {describe(judge_hybrids(method, pairs, images, detector), pairs)}"
        print(line, flush=True)
        images_by_method[method] = images[:SHOWN_IMAGES]
        make_sheet(images_by_method, pairs[:SHOWN_IMAGES]).save(args.out)
    print(args.out.absolute())


if __name__ == "__main__":
    main()
