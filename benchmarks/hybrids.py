"""Ways to draw one subject that is two: hybrid(first, second, 0.5, METHOD) for every method, side by side.

    python benchmarks/hybrids.py [--model RUN] [--pairs frog-rabbit,dog-lion] [--methods words,guesses] [--seeds 4]
                                 [--share 0.5] [--steps 24] [--scale S] [--out hybrids.png] [--corpus FOLDER]

Writes a sheet: a row for each method, and for each pair a group of columns, one a seed. With a corpus of
`unspeckle make-corpus emoji` the pairs are all those of faces that it keeps out of training, and the detector of the
words score (trained at the first call, then cached) says of how many pictures that they show one subject that is both;
a last row is "A AND B", judged as two subjects.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from unspeckle.generation.request import Request
from unspeckle.model_io.loading import load
from unspeckle.prompts import SCORED_METHODS
from unspeckle.scoring.composition.hybrids import AND_METHOD, SECOND_NOUN_SHARE, generate_hybrids, judge_hybrids
from unspeckle.scoring.composition.prompts import read_composition_test
from unspeckle.scoring.composition.train_detector import load_or_train_detector

PAIRS = "frog-rabbit,dog-lion,cat-panda,fox-pig"


def sheet(rows: dict[str, Tensor], pairs: Sequence[tuple[str, str]], side: int = 96) -> Image.Image:
    """rows: of each way its pictures, uint8 (pairs, seeds, 3, H, W)."""
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
                shown = Image.fromarray(one.permute(1, 2, 0).contiguous().numpy())
                place = (margin + i * (wide + gap) + k * side, y)
                whole.paste(shown.resize((side, side), Image.Resampling.NEAREST), place)
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--pairs", default=PAIRS)
    parser.add_argument("--methods", default=",".join(SCORED_METHODS))
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--share", type=float, default=SECOND_NOUN_SHARE)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--scale", type=float)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("hybrids.png"))
    parser.add_argument("--corpus", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, ask = load(args.model), Request(steps=args.steps, guidance_scale=args.scale)
    pairs = [(one, other) for one, _, other in (pair.partition("-") for pair in args.pairs.split(","))]
    detector, methods = None, args.methods.split(",")
    if args.corpus:
        exam = read_composition_test(args.corpus)
        pairs, detector = exam.hybrid_pairs, load_or_train_detector(exam.library, exam.image_size)
        methods.append(AND_METHOD)
    rows = {}
    for method in methods:
        start = time.perf_counter()
        rows[method] = generate_hybrids(model, method, pairs, args.seeds, ask, args.share)
        line = f"{method:10} {time.perf_counter() - start:6.1f} s"
        if detector is not None:
            way = judge_hybrids(method, pairs, rows[method], detector)
            line += f"   {way.accuracy:.3f} of {way.image_count} ({way.low:.2f}–{way.high:.2f})   "
            line += "  ".join(
                f"{'-'.join(pair)} {count}" for pair, count in zip(pairs, way.correct_per_pair, strict=True)
            )
        print(line, flush=True)
        sheet({name: some[:8] for name, some in rows.items()}, pairs[:8]).save(args.out)
    print(args.out.absolute())


if __name__ == "__main__":
    main()
