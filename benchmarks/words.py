"""How often a model draws what unseen combinations of words say, by category, with ceiling and floor of the judge.

    python benchmarks/words.py [MODEL] --corpus FOLDER [--each 25] [--seeds 4] [--steps N] [--scale S] [--threads 1]

FOLDER is a corpus of `unspeckle make-corpus emoji` with the model's nouns. No MODEL is the one inside the package. The
detector is trained at the first call for these nouns (some minutes), then lies in the cache. --sheet FILE.png saves
pictures of every category, those judged right on the left; --json FILE the whole score.
"""

import argparse
import json
from pathlib import Path
from random import Random

import torch
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from unspeckle import configuration
from unspeckle.generation.request import Request
from unspeckle.model_io.loading import load
from unspeckle.scoring.composition.detector import load_detector as load_detector
from unspeckle.scoring.composition.prompts import CATEGORIES, read_composition_test
from unspeckle.scoring.composition.score import (
    CompositionScore,
    JudgedImages,
    combine_scores,
    generate_and_judge,
    measure_detector_limits,
)
from unspeckle.scoring.composition.train_detector import load_or_train_detector

COLUMNS = 8  # of pictures judged right, and as many of those judged wrong


def table(result: CompositionScore) -> list[str]:
    lines = [
        f"{'':15s} {'right':>6s}  {'95 %':11s} {'of':>5s}  {'ceiling':>7s} {'floor':>6s} {'lured':>6s} {'spare':>6s}"
    ]
    for c in result.categories:
        lines.append(
            f"{c.name:15s} {c.accuracy:6.3f}  {c.low:.3f}–{c.high:.3f} {c.image_count:5d}  {c.ceiling:7.3f} {c.floor:6.3f} "
            f"{c.hard_negative_rate:6.3f} {c.extra_object_rate:6.3f}"
        )
    lines.append(
        f"{'mean of six':15s} {result.mean:6.3f}  {result.low:.3f}–{result.high:.3f} {'':5s}  {result.ceiling:7.3f} "
        f"{result.floor:6.3f} {result.hard_negative_rate:6.3f}"
    )
    return lines


def sheet(kept: list[JudgedImages], path: Path) -> None:
    """A row of pictures for each category, chosen by chance: right ones, then wrong ones; and a list of them."""
    side = kept[0].images.shape[-1] * 2
    whole = Image.new("RGB", ((2 * COLUMNS + 1) * side, len(CATEGORIES) * side), "grey")
    listed = []
    for row, category in enumerate(CATEGORIES):
        pairs = [(a, i) for a in kept if a.prompt.category == category for i in range(len(a.verdicts))]
        Random(row).shuffle(pairs)
        for right in (True, False):
            chosen = [(a, i) for a, i in pairs if a.verdicts[i].is_correct == right][:COLUMNS]
            for column, (answer, i) in enumerate(chosen):
                picture = Image.fromarray(answer.images[i].permute(1, 2, 0).numpy())
                place = column + (0 if right else COLUMNS + 1)
                whole.paste(picture.resize((side, side), Image.Resampling.NEAREST), (place * side, row * side))
                verdict = answer.verdicts[i]
                things = "; ".join(
                    " ".join((t.tint, *t.nouns, t.wearing, "stilts" * t.on_stilts)) for t in verdict.detections
                )
                listed.append(f"{category} {place + 1}: {answer.prompt.text!r} {verdict.reason or 'right'} [{things}]")
    whole.save(path)
    path.with_suffix(".txt").write_text("\n".join(listed) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--each", type=int, default=25)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--scale", type=float)
    parser.add_argument("--sampler")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--detector", type=Path, help="a detector's file, instead of the cached one")
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, ask = load(args.model), Request(steps=args.steps, guidance_scale=args.scale, sampler=args.sampler)
    exam = read_composition_test(args.corpus, args.each)
    kept: list[JudgedImages] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        if args.detector:
            detector = load_detector(args.detector)
        else:
            task = progress.add_task("training the detector", total=None)
            detector = load_or_train_detector(
                exam.library, exam.image_size, lambda done, of: progress.update(task, completed=done, total=of)
            )
            progress.remove_task(task)
        bounds = measure_detector_limits(exam, detector, args.seeds)
        given = generate_and_judge(model, exam.prompts, detector, ask, args.seeds)
        for answer in progress.track(given, len(exam.prompts), description="drawing"):
            kept.append(answer)
    result = combine_scores(model, ask, kept, bounds)
    print(f"{result.model} {result.hash}: {result.steps} steps of {result.sampler}, scale {result.guidance_scale:g}")
    print("\n".join(table(result)))
    print("worst nouns (asked, missing, wrong otherwise): " + ", ".join(
        f"{n.noun} ({n.image_count}, {n.missing_count}, {n.wrong_count})" for n in result.nouns[:12]
    ))  # fmt: skip
    if args.sheet:
        sheet(kept, args.sheet)
    if args.json:
        args.json.write_text(json.dumps(configuration.to_json(result), indent=1) + "\n")


if __name__ == "__main__":
    main()
