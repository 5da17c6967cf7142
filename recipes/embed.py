"""Put a trained model, and its student if it has one, into the package, with their licence and recipe."""

import argparse
from dataclasses import replace
from pathlib import Path

from unspeckle.model import load, save
from unspeckle.storage import DTYPES

INSIDE = Path(__file__).parents[1] / "src/unspeckle/models/embedded.safetensors"
LICENCE = "Apache-2.0. Trained on scenes drawn from Noto Color Emoji (Google, SIL Open Font License 1.1)."
LARGEST = 24_000_000  # bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a RUN or a .safetensors file")
    parser.add_argument("--corpus-seed", type=int, required=True)
    parser.add_argument("--recipe", default="recipes/embedded.sh", help="the script that made it")
    parser.add_argument("--steps", type=int, default=24, help="of a drawing, where the ask says nothing")
    parser.add_argument("--scale", type=float, default=5.0)
    parser.add_argument("--dtype", choices=DTYPES, default="int8", help="of the weights")
    parser.add_argument("--without-student", action="store_true")
    parser.add_argument("--out", type=Path, default=INSIDE)
    args = parser.parse_args()
    model = load(args.model)
    corpus = {**model.card.corpus, "made_by": "unspeckle make-corpus emoji", "corpus_seed": args.corpus_seed}
    model.card = replace(
        model.card, name="unspeckle emoji 64", licence=LICENCE, recipe=args.recipe, corpus=corpus,
        steps=args.steps, scale=args.scale,
    )  # fmt: skip
    if args.without_student:
        model.student = None
    if (student := model.student) is not None:
        said = {"name": f"{model.card.name}, few steps", "licence": LICENCE, "recipe": model.card.recipe}
        student.card = replace(student.card, **said)
    beside = args.out.with_suffix(".new")
    save(model, beside, args.dtype)
    size = beside.stat().st_size
    if size > LARGEST:
        beside.unlink()
        raise SystemExit(f"{args.model}: {size:,} bytes in {args.dtype}, more than {LARGEST:,}")
    beside.replace(args.out)
    print(f"{args.out}: {size:,} bytes, hash {load(args.out).hash}")


if __name__ == "__main__":
    main()
