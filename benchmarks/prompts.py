"""How often a model draws what each prompt of a list says, judged by the detector of a corpus's nouns.

    python benchmarks/prompts.py [MODEL] --corpus FOLDER [--prompts benchmarks/asked.jsonl] [--seeds 32]
        [--first-seed 20] [--steps N] [--guidance-scale S] [--threads 1] [--sheet FILE.png]

The list has a JSON object a line, as scoring/composition/free_wording.jsonl has: a prompt, and what its image must
hold. FOLDER is a corpus made by `unspeckle make-corpus emoji` with the model's nouns. --sheet saves eight images of
each prompt.
"""

import argparse
import json
from pathlib import Path

import torch
from PIL import Image

from unspeckle.generation.request import Request
from unspeckle.model_io.loading import load
from unspeckle.scoring.composition.free_wording import prompt_from_facts
from unspeckle.scoring.composition.prompts import open_corpus_sprites
from unspeckle.scoring.composition.score import JudgedImages, generate_and_judge
from unspeckle.scoring.composition.train_detector import load_or_train_detector
from unspeckle.scoring.intervals import wilson_interval

COLUMNS = 8  # images of a prompt on the sheet


def save_sheet(judged: list[JudgedImages], path: Path) -> None:
    """A row of images for each prompt, in its order."""
    side = judged[0].images.shape[-1]
    sheet = Image.new("RGB", (COLUMNS * (side + 2), len(judged) * (side + 2)), "gray")
    for row, item in enumerate(judged):
        for column, pixels in enumerate(item.images[:COLUMNS]):
            place = column * (side + 2), row * (side + 2)
            sheet.paste(Image.fromarray(pixels.permute(1, 2, 0).numpy()), place)
    sheet.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, default=Path(__file__).with_name("asked.jsonl"))
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--first-seed", type=int, default=20)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sheet", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, (library, size) = load(args.model), open_corpus_sprites(args.corpus)
    detector = load_or_train_detector(library, size)
    prompts = [prompt_from_facts(json.loads(line)) for line in args.prompts.read_text("utf-8").splitlines()]
    request = Request(seed=args.first_seed, steps=args.steps, guidance_scale=args.guidance_scale)
    judged, correct = [], 0
    for item in generate_and_judge(model, prompts, detector, request, args.seeds):
        count = sum(verdict.is_correct for verdict in item.verdicts)
        low, high = wilson_interval(count, args.seeds)
        reasons = sorted({verdict.reason for verdict in item.verdicts if verdict.reason})[:3]
        print(
            f"{count / args.seeds:5.3f}  {low:.2f}–{high:.2f}  {item.prompt.text:40s} {'; '.join(reasons)}", flush=True
        )
        judged.append(item)
        correct += count
    low, high = wilson_interval(correct, len(prompts) * args.seeds)
    print(f"{correct / (len(prompts) * args.seeds):5.3f}  {low:.2f}–{high:.2f}  all of {len(prompts)} prompts")
    if args.sheet:
        save_sheet(judged, args.sheet)


if __name__ == "__main__":
    main()
