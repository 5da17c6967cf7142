"""Ways to draw one subject that is two: hybrid(first, second, 0.5, METHOD) for every method, side by side.

    python benchmarks/hybrids.py [--model RUN] [--pairs frog-rabbit,dog-lion] [--methods words,guesses] [--seeds 4]
                                 [--share 0.5] [--steps 24] [--out hybrids.png] [--judge module:function]

Writes a sheet: a row for each method, and for each pair a group of columns, one a seed. With a judge, a function
(pictures, first, second) -> share of the pictures judged to show both in one, it prints that share for each as well.
"""

import argparse
import importlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from unspeckle.draw import Ask, many
from unspeckle.model import Model, load
from unspeckle.prompts import METHODS

Judge = Callable[[Sequence[Image.Image], str, str], float]
PAIRS = "frog-rabbit,dog-lion,cat-panda,fox-pig"


def drawn(model: Model, method: str, pairs: Sequence[tuple[str, str]], seeds: int, share: float, steps: int | None):
    """The pictures of each pair, by one method, the same seeds for all."""
    prompts = [f"a hybrid({one}, {other}, {share}, {method})" for one, other in pairs for _ in range(seeds)]
    pictures = many(model, prompts, [seed for _ in pairs for seed in range(seeds)], Ask(steps=steps))
    return [pictures[i * seeds : (i + 1) * seeds] for i in range(len(pairs))]


def sheet(rows: dict[str, list[list[Image.Image]]], pairs: Sequence[tuple[str, str]], side: int = 96) -> Image.Image:
    groups = next(iter(rows.values()))
    wide, margin, top, gap = len(groups[0]) * side, 90, 20, 8
    whole = Image.new("RGB", (margin + len(pairs) * (wide + gap), top + len(rows) * (side + 2)), "white")
    pen = ImageDraw.Draw(whole)
    for i, pair in enumerate(pairs):
        pen.text((margin + i * (wide + gap), 4), "-".join(pair), fill="black")
    for j, (method, pictures) in enumerate(rows.items()):
        y = top + j * (side + 2)
        pen.text((4, y + side // 2 - 6), method, fill="black")
        for i, group in enumerate(pictures):
            for k, one in enumerate(group):
                whole.paste(
                    one.resize((side, side), Image.Resampling.NEAREST), (margin + i * (wide + gap) + k * side, y)
                )
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--pairs", default=PAIRS)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("hybrids.png"))
    parser.add_argument("--judge", metavar="MODULE:FUNCTION")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load(args.model)
    module, _, name = (args.judge or "").partition(":")
    judge: Judge | None = getattr(importlib.import_module(module), name) if args.judge else None
    pairs = [(one, other) for one, _, other in (pair.partition("-") for pair in args.pairs.split(","))]
    rows = {}
    for method in args.methods.split(","):
        start = time.perf_counter()
        rows[method] = drawn(model, method, pairs, args.seeds, args.share, args.steps)
        line = f"{method:10} {time.perf_counter() - start:6.1f} s"
        if judge is not None:
            shares = [judge(pictures, *pair) for pictures, pair in zip(rows[method], pairs, strict=True)]
            line += f"   judged both {sum(shares) / len(shares):.3f}   "
            line += "  ".join(f"{'-'.join(pair)} {share:.2f}" for pair, share in zip(pairs, shares, strict=True))
        print(line, flush=True)
        sheet(rows, pairs).save(args.out)
    print(args.out.absolute())


if __name__ == "__main__":
    main()
