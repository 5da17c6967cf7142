"""The composition score of a model: how often it draws what prompts say that training never saw, by category.

    python benchmarks/composition.py [MODEL] --corpus FOLDER [--prompts 25] [--seeds 4] [--steps N]
        [--guidance-scale S] [--sampler NAME] [--threads 1] [--sheet FILE.png] [--json FILE]

FOLDER is a corpus made by `unspeckle make-corpus emoji` with the model's nouns; without MODEL the one inside the
package is measured. The detector is trained at the first run for these nouns (some minutes) and then taken from the
cache. --sheet saves images of every category, the correct ones on the left; --json saves the whole score.
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
from unspeckle.scoring.composition.composition_test import CompositionTest, read_composition_test
from unspeckle.scoring.composition.detector import Detection, Detector
from unspeckle.scoring.composition.detector_file import load_detector
from unspeckle.scoring.composition.detector_limits import measure_detector_limits
from unspeckle.scoring.composition.prompts import CATEGORIES
from unspeckle.scoring.composition.score import (
    CategoryScore,
    CompositionScore,
    JudgedImages,
    combine_scores,
    generate_and_judge,
)
from unspeckle.scoring.composition.train_detector import load_or_train_detector

COLUMNS = 8  # correct images in a row of the sheet, and as many wrong ones
WORST_NOUNS = 12  # nouns that are printed


def table(score: CompositionScore) -> list[str]:
    """The score as lines of text."""
    header = ("correct", "95 %", "of", "ceiling", "floor", "hard neg.", "extra", "variety")
    lines = ["{:21s} {:>7s}  {:11s} {:>5s}  {:>7s} {:>6s} {:>9s} {:>6s} {:>8s}".format("", *header)]
    lines += [_category_line(category) for category in score.categories]
    mean = f"{score.mean:7.3f}  {score.low:.3f}–{score.high:.3f} {'':5s}"
    lines.append(f"{'mean of six':21s} {mean}  {score.ceiling:7.3f} {score.floor:6.3f} {score.hard_negative_rate:9.3f}")
    return lines


def _category_line(c: CategoryScore) -> str:
    accuracy = f"{c.accuracy:7.3f}  {c.low:.3f}–{c.high:.3f} {c.image_count:5d}"
    limits = f"{c.ceiling:7.3f} {c.floor:6.3f} {c.hard_negative_rate:9.3f}"
    variety = f"{c.spread / c.render_spread:8.2f}" if c.render_spread else ""
    return f"{c.name:21s} {accuracy}  {limits} {c.extra_object_rate:6.3f} {variety}"


def save_sheet(judged: list[JudgedImages], path: Path) -> None:
    """A row of random images for each category, correct ones, then wrong ones; and a text file that describes them."""
    side = judged[0].images.shape[-1] * 2
    sheet = Image.new("RGB", ((2 * COLUMNS + 1) * side, len(CATEGORIES) * side), "gray")
    descriptions = []
    for row, category in enumerate(CATEGORIES):
        candidates = [
            (item, i) for item in judged if item.prompt.category == category for i in range(len(item.verdicts))
        ]
        Random(row).shuffle(candidates)
        for is_correct, first_column in ((True, 0), (False, COLUMNS + 1)):
            chosen = [(item, i) for item, i in candidates if item.verdicts[i].is_correct == is_correct][:COLUMNS]
            for column, (item, i) in enumerate(chosen, first_column):
                image = Image.fromarray(item.images[i].permute(1, 2, 0).contiguous().numpy())
                sheet.paste(image.resize((side, side), Image.Resampling.NEAREST), (column * side, row * side))
                verdict = item.verdicts[i]
                objects = "; ".join(map(_describe, verdict.detections))
                reason = verdict.reason or "correct"
                descriptions.append(f"{category} {column + 1}: {item.prompt.text!r} {reason} [{objects}]")
    sheet.save(path)
    path.with_suffix(".txt").write_text("\n".join(descriptions) + "\n")


def _describe(detection: Detection) -> str:
    words = (detection.tint, *detection.nouns, detection.wearing, "on stilts" * detection.on_stilts)
    return " ".join(filter(None, words))


def find_detector(path: Path | None, test: CompositionTest, progress: Progress) -> Detector:
    """The detector of a file, or the cached one."""
    if path is not None:
        return load_detector(path)
    task = progress.add_task("training the detector", total=None)
    detector = load_or_train_detector(
        test.library, test.image_size, lambda done, total: progress.update(task, completed=done, total=total)
    )
    progress.remove_task(task)
    return detector


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=25, help="prompts of each category")
    parser.add_argument("--seeds", type=int, default=4, help="images of each prompt")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument("--sampler")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--detector", type=Path, help="a detector's file, instead of the cached one")
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    model = load(args.model)
    request = Request(steps=args.steps, guidance_scale=args.guidance_scale, sampler=args.sampler)
    test = read_composition_test(args.corpus, args.prompts)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        detector = find_detector(args.detector, test, progress)
        task = progress.add_task("measuring the detector", total=len(test.prompts))
        limits = measure_detector_limits(
            test, detector, args.seeds, lambda completed: progress.update(task, completed=completed)
        )
        images = generate_and_judge(model, test.prompts, detector, request, args.seeds)
        judged = list(progress.track(images, len(test.prompts), description="drawing"))
    score = combine_scores(model, request, judged, limits)
    print(f"{score.model} {score.hash}: {score.steps} steps of {score.sampler}, scale {score.guidance_scale:g}")
    print("\n".join(table(score)))
    nouns = [f"{n.noun} ({n.image_count}, {n.missing_count}, {n.wrong_count})" for n in score.nouns[:WORST_NOUNS]]
    print(f"worst nouns (images, missing, wrong for another reason): {', '.join(nouns)}")
    if args.sheet:
        save_sheet(judged, args.sheet)
    if args.json:
        args.json.write_text(json.dumps(configuration.to_json(score), indent=1) + "\n")


if __name__ == "__main__":
    main()
