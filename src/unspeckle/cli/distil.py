"""`unspeckle distil`: its options."""

from pathlib import Path
from typing import Annotated

import typer

from unspeckle import quantities
from unspeckle.cli import options as shared
from unspeckle.errors import InputError

MODEL_HELP = "The model to distil (the teacher): a RUN folder of `train`, or a file."
OUT_HELP = (
    "The RUN folder, for the model (model.safetensors), the plan (plan.json), the log (log.jsonl), checkpoints and "
    "samples. If it holds an unfinished run, the same command resumes that.  [default: MODEL-few, next to MODEL]"
)
IMAGES_HELP = "Train on this many images that the teacher draws, instead of --for: 5000 or 5k."
STEPS_HELP = "Train for this many steps, instead of --for: 5000 or 20k."
CORPUS_HELP = (
    "Folder of captioned images, whose captions are used as prompts.  [default: the captions in the teacher's RUN "
    "folder]"
)
GUIDANCE_SCALE_HELP = (
    "Guidance scale that the student learns; it cannot draw with another one later.  [default: the value stored with "
    "the teacher]"
)
BATCH_SIZE_HELP = "Number of images that the teacher draws for one step.  [default: 4 on a CPU, 32 on a GPU]"


def distil(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="RUN", help=OUT_HELP)] = None,
    duration: shared.Duration = None,
    images: Annotated[str | None, typer.Option(metavar="N", help=IMAGES_HELP)] = None,
    steps: Annotated[str | None, typer.Option(metavar="N", help=STEPS_HELP)] = None,
    corpus: Annotated[Path | None, typer.Option(metavar="FOLDER", help=CORPUS_HELP)] = None,
    guidance_scale: Annotated[float | None, typer.Option(metavar="SCALE", help=GUIDANCE_SCALE_HELP)] = None,
    seed: shared.TrainingSeed = None,
    batch_size: Annotated[int | None, typer.Option(metavar="N", help=BATCH_SIZE_HELP)] = None,
    device: shared.Device = None,
    precision: shared.TrainingPrecision = None,
    plan: shared.PlanOnly = False,
    json: shared.PlanJson = False,
    quiet: shared.Quiet = False,
) -> int:
    """Train a student that draws in 1, 2 or 4 steps.

    The student learns to draw what the model draws in many steps. Give one of --for, --images and --steps. The new
    model file contains both: with --steps 1, 2 or 4, `unspeckle draw` then uses the student, with any other number
    the full model. Ctrl-C saves a checkpoint and stops, and the same command resumes from there.
    """
    shared.refuse_hidden_plan(plan, json, quiet)
    from unspeckle.training.options import DistilOptions

    options = DistilOptions(
        model=model,
        out=out or default_run_folder(model),
        corpus=corpus,
        seconds=None if duration is None else quantities.parse_duration(duration),
        images=None if images is None else quantities.parse_count(images, "--images"),
        steps=None if steps is None else quantities.parse_count(steps, "--steps"),
        guidance_scale=guidance_scale,
        seed=seed,
        batch_size=batch_size,
        device=device,
        precision=precision,
        plan_only=plan,
        json=json,
        quiet=quiet,
    )
    from unspeckle.training.distil_command import run_distillation

    return run_distillation(options)


def default_run_folder(model: Path) -> Path:
    """The RUN folder beside the teacher and named after it. InputError where the teacher's path has no name."""
    path = model.resolve()
    if not path.name:
        raise InputError(f"{model}: contains no model; give a RUN folder of `train`, or a file")
    return path.with_name(f"{path.stem}-few")
