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

import numpy as np
import torch
from PIL import Image, ImageDraw

from unspeckle.draw import Ask, many
from unspeckle.model import Model, load
from unspeckle.prompts import METHODS
from unspeckle.scoring.detector import Detector
from unspeckle.scoring.judging import judge
from unspeckle.scoring.questions import Question, library_of, questions
from unspeckle.scoring.teaching import detector_for
from unspeckle.scoring.words import wilson

PAIRS = "frog-rabbit,dog-lion,cat-panda,fox-pig"
TOGETHER = "AND"  # the last row: two subjects
Pair = tuple[str, str]


def prompt(method: str, pair: Pair, share: float) -> str:
    one, other = pair
    return f"a {one} AND a {other}" if method == TOGETHER else f"a hybrid({one}, {other}, {share}, {method})"


def drawn(model: Model, method: str, pairs: Sequence[Pair], seeds: int, share: float, ask: Ask):
    """The pictures of each pair, by one method, the same seeds for all."""
    prompts = [prompt(method, pair, share) for pair in pairs for _ in range(seeds)]
    pictures = many(model, prompts, [seed for _ in pairs for seed in range(seeds)], ask)
    return [pictures[i * seeds : (i + 1) * seeds] for i in range(len(pairs))]


def unseen(corpus: Path) -> list[Pair]:
    """The pairs whose hybrid the corpus keeps out of training."""
    asked = [question for question in questions(corpus, 10_000) if question.category == "hybrids"]
    return sorted({(question.nouns[0], question.nouns[1]) for question in asked})


def right(pictures: Sequence[Image.Image], method: str, pair: Pair, detector: Detector) -> int:
    """How many show one subject that is both; of "A AND B", both subjects."""
    shown = torch.from_numpy(np.stack([np.asarray(one) for one in pictures])).permute(0, 3, 1, 2)
    question = Question("two objects" if method == TOGETHER else "hybrids", "", pair)
    return sum(verdict.right for verdict in judge(shown, question, detector))


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
    parser.add_argument("--scale", type=float)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("hybrids.png"))
    parser.add_argument("--corpus", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, ask = load(args.model), Ask(steps=args.steps, scale=args.scale)
    pairs = [(one, other) for one, _, other in (pair.partition("-") for pair in args.pairs.split(","))]
    detector, methods = None, args.methods.split(",")
    if args.corpus:
        pairs, detector = unseen(args.corpus), detector_for(*library_of(args.corpus))
        methods.append(TOGETHER)
    rows = {}
    for method in methods:
        start = time.perf_counter()
        rows[method] = drawn(model, method, pairs, args.seeds, args.share, ask)
        line = f"{method:10} {time.perf_counter() - start:6.1f} s"
        if detector is not None:
            counts = [right(some, method, pair, detector) for some, pair in zip(rows[method], pairs, strict=True)]
            whole = len(pairs) * args.seeds
            low, high = wilson(sum(counts), whole)
            line += f"   {sum(counts) / whole:.3f} of {whole} ({low:.2f}–{high:.2f})   "
            line += "  ".join(f"{'-'.join(pair)} {count}" for pair, count in zip(pairs, counts, strict=True))
        print(line, flush=True)
        sheet({name: some[:8] for name, some in rows.items()}, pairs[:8]).save(args.out)
    print(args.out.absolute())


if __name__ == "__main__":
    main()
