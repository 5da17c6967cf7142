"""Put a trained model, and its student if it has one, into the package, with their licence and recipe.

Where both are too large for one file, the student lies apart: embedded-few.safetensors beside embedded.safetensors.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from unspeckle.model import Model
from unspeckle.model_io.loading import load
from unspeckle.model_io.model_file import save
from unspeckle.model_io.weight_dtypes import STORED_DTYPES

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
    parser.add_argument("--dtype", choices=STORED_DTYPES, default="int8", help="of the weights")
    parser.add_argument("--without-student", action="store_true")
    parser.add_argument("--apart", action="store_true", help="the student in a file of its own if one is too small")
    parser.add_argument("--out", type=Path, default=INSIDE)
    args = parser.parse_args()
    model = load(args.model)
    corpus = {**model.card.corpus, "made_by": "unspeckle make-corpus emoji", "corpus_seed": args.corpus_seed}
    model.card = replace(
        model.card, name=f"unspeckle emoji {model.card.size[0]}", licence=LICENCE, recipe=args.recipe, corpus=corpus,
        steps=args.steps, scale=args.scale, sampler="dpmpp_2m", grid="uniform",
    )  # fmt: skip
    if args.without_student:
        model.student = None
    if (student := model.student) is not None:
        said = {"name": f"{model.card.name}, few steps", "licence": LICENCE, "recipe": model.card.recipe}
        student.card = replace(student.card, **said)
    few = args.out.with_stem(f"{args.out.stem}-few")
    if args.apart:
        few.unlink(missing_ok=True)
    if not put({args.out: model}, args.dtype) and not (
        args.apart and student is not None and put({args.out: replace(model, student=None), few: student}, args.dtype)
    ):
        raise SystemExit(f"{args.model}: in {args.dtype}, is more than {LARGEST:,} bytes")


def put(models: dict[Path, Model], dtype: str) -> bool:
    """Write all of the models, or none where one is too large."""
    beside = {path: path.with_suffix(".new") for path in models}
    for path, model in models.items():
        save(model, beside[path], dtype)
    fits = all(one.stat().st_size <= LARGEST for one in beside.values())
    for path, one in beside.items():
        size = one.stat().st_size
        if fits:
            one.replace(path)
            print(f"{path}: {size:,} bytes, hash {load(path).hash}")
        else:
            one.unlink()
    return fits


if __name__ == "__main__":
    main()
