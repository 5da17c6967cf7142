"""Write a trained model (and its student, if any) as the model inside the package, with its license and recipe."""

import argparse
from dataclasses import replace
from pathlib import Path

from unspeckle import Model, load, save
from unspeckle.formats.weight_dtypes import STORED_DTYPES

EMBEDDED_MODEL = Path(__file__).parents[1] / "src/unspeckle/models/embedded.safetensors"
LICENSE = "Apache-2.0. Trained on scenes drawn from Noto Color Emoji (Google, SIL Open Font License 1.1)."
MAX_BYTES = 24_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a RUN folder or a .safetensors file")
    parser.add_argument("--corpus-seed", type=int, required=True, help="the seed of the corpus, for the model card")
    parser.add_argument("--recipe", default="recipes/embedded.sh", help="the script that made the model")
    parser.add_argument("--steps", type=int, default=24, help="the default number of sampling steps")
    parser.add_argument("--guidance-scale", type=float, default=5.0, help="the default guidance scale")
    parser.add_argument("--dtype", choices=STORED_DTYPES, default="int8", help="the type of the stored weights")
    parser.add_argument("--without-student", action="store_true", help="leave the student out")
    parser.add_argument(
        "--allow-separate-student",
        action="store_true",
        help="if both are too large for one file, write the student to NAME-few.safetensors next to the model",
    )
    parser.add_argument("--out", type=Path, default=EMBEDDED_MODEL, help="the file to write")
    args = parser.parse_args()

    model = with_release_card(load(args.model), args)
    student, student_file = model.student, args.out.with_stem(f"{args.out.stem}-few")
    if args.allow_separate_student:
        student_file.unlink(missing_ok=True)
    is_written = write_models({args.out: model}, args.dtype)
    if not is_written and args.allow_separate_student and student is not None:
        is_written = write_models({args.out: replace(model, student=None), student_file: student}, args.dtype)
    if not is_written:
        raise SystemExit(f"{args.model}: has more than {MAX_BYTES:,} bytes as {args.dtype}")


def with_release_card(model: Model, args: argparse.Namespace) -> Model:
    """The model with the card that is published: name, license, recipe, corpus and the defaults of a drawing."""
    card = replace(
        model.card,
        name=f"unspeckle emoji {model.card.size[0]}",
        license=LICENSE,
        recipe=args.recipe,
        corpus={**model.card.corpus, "made_by": "unspeckle make-corpus emoji", "corpus_seed": args.corpus_seed},
        steps=args.steps,
        guidance_scale=args.guidance_scale,
        sampler="dpmpp_2m",
        timestep_spacing="uniform",
    )
    student = None if args.without_student else model.student
    if student is not None:
        student_card = replace(student.card, name=f"{card.name}, few steps", license=LICENSE, recipe=args.recipe)
        student = replace(student, card=student_card)
    return replace(model, card=card, student=student)


def write_models(models: dict[Path, Model], dtype: str) -> bool:
    """Write all of the models; none, and False, if one of them has more than MAX_BYTES."""
    temporary_files = {path: path.with_suffix(".new") for path in models}
    for path, model in models.items():
        save(model, temporary_files[path], dtype)
    sizes = {path: file.stat().st_size for path, file in temporary_files.items()}
    fits = max(sizes.values()) <= MAX_BYTES
    for path, file in temporary_files.items():
        if fits:
            file.replace(path)
            print(f"{path}: {sizes[path]:,} bytes, hash {load(path).hash}")
        else:
            file.unlink()
    return fits


if __name__ == "__main__":
    main()
