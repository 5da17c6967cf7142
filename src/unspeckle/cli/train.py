"""`unspeckle train`: its options, for a model of its own, a GAN and a LoRA."""

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unspeckle import quantities
from unspeckle.cli import options as shared
from unspeckle.cli.options import LORA_TRAINING, OTHER_KINDS
from unspeckle.errors import InputError

if TYPE_CHECKING:
    from unspeckle.training.options import TrainOptions

OUT_HELP = (
    "The RUN folder, for the model (model.safetensors), the plan (plan.json), the log (log.jsonl), checkpoints and "
    "samples. If it holds an unfinished run, the same command resumes that; to train a finished model further, use "
    "--from and another RUN folder."
)
IMAGES_HELP = "Train for this many images, counting repetitions, instead of --for: 150k or 2M."
STEPS_HELP = "Train for this many steps, instead of --for: 5000 or 20k."
SIZE_HELP = (
    "Width and height of the images in pixels, such as 64 or 96x64.  [default: the size of --from, else 128 with a "
    "CUDA GPU and 64 without]"
)
PRESET_HELP = (
    "Size of the network: nano, micro, tiny, small, base, large or huge; or t-nano, t-tiny or t-small, which are "
    "transformers.  [default: the largest for which there is enough training]"
)
SPACE_HELP = (
    "What is denoised: pixels, or the latents of an autoencoder that is trained first.  [default: latents for images "
    "of 64 pixels or more, trained for 10 minutes or 100k images or longer; otherwise pixels]"
)
FROM_HELP = (
    "Begin a new run with the weights of this model (fine-tuning): a file or a RUN folder, which stays as it is. To "
    "resume a run that was stopped, repeat its command instead. With --lora, the Stable Diffusion checkpoint that "
    "the LoRA is for.  [default: random weights]"
)
OPTIMIZER_HELP = (
    "Optimizer: adamw, or muon, which needs fewer steps (it updates the matrices; all other weights are updated by "
    "adamw).  [default: muon; with --lora, adamw]"
)
LEARNING_RATE_HELP = (
    "Learning rate between the warm-up, in which it rises to this value, and the last part of the run, in which it "
    "falls to 0.  [default: muon 4e-3, adamw 1e-3, with --lora 1e-4]"
)
BATCH_SIZE_HELP = (
    "Number of images in each training step. More need more memory.  [default: 32 on a CPU, 256 on a GPU, 4 with "
    "--lora]"
)
COMPILE_HELP = (
    "Whether torch.compile is used, which makes steps faster but takes time first.  [default: used if training takes "
    "10 minutes or longer, on a CPU an hour, and steps then measure faster]"
)
FLIP_HELP = (
    "Whether images are mirrored, left to right, half of the times that they are used, except those whose captions "
    "say left or right.  [default: mirrored if each image is used 4 times or more]"
)
BALANCE_HELP = (
    "How much more often images with a rare caption are used, from 0 (each image equally often) to 1 (each caption "
    "equally often).  [default: 0.5 if all captions are names of folders, otherwise 0]"
)
LICENSE_HELP = "License of the model, which is recorded in its file, such as CC0-1.0.  [default: none]"
LORA_HELP = (
    "Train a LoRA for the Stable Diffusion checkpoint that --from names. The checkpoint itself is not changed; the "
    "result is RUN/lora.safetensors."
)
KIND_HELP = (
    "What is trained: a model that denoises (diffusion); a generative adversarial network (gan), which draws in one "
    "step and cannot be guided; a CLIP (clip), which draws nothing but says how well an image and a text go together; "
    "all parts of DALL-E 2 (unclip): a CLIP, a prior and a decoder, which also draws variations of an image, and from "
    "128 pixels on an upsampler; or an upsampler alone (upsampler), which enlarges what other models draw."
)
LOSS_HELP = (
    "Of a GAN: relativistic (of R3GAN) or original (of the first GANs).  [default: relativistic]  Of a CLIP: infonce "
    "or siglip.  [default: infonce]"
)
UNCONDITIONAL_HELP = "Train the GAN without captions: the model then draws without a prompt."
FACTOR_HELP = "How many times an upsampler multiplies the sides of an image; --size is the larger size.  [default: 2]"
RANK_HELP = "Rank of the LoRA's matrices: a higher one can learn more and makes a larger file."
TEXT_ENCODER_HELP = "Train the text encoders as well as the network."
CAPTION_AUGMENTATION_HELP = (
    "Whether each caption is read in many wordings (without articles, with typing errors, with words around it that "
    "say nothing), so that the model understands prompts as people type them.  [default: used if the captions are "
    "English and have at most 3000 different words]"
)
LAYOUT_HELP = "Names of the tensors in the LoRA file: kohya, which most programs read, or peft, those of diffusers."


def train(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of captioned images.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="RUN", help=OUT_HELP)],
    duration: shared.Duration = None,
    images: Annotated[str | None, typer.Option(metavar="N", help=IMAGES_HELP)] = None,
    steps: Annotated[str | None, typer.Option(metavar="N", help=STEPS_HELP)] = None,
    size: Annotated[str | None, typer.Option(metavar="N|WxH", help=SIZE_HELP)] = None,
    preset: Annotated[str | None, typer.Option(metavar="NAME", help=PRESET_HELP)] = None,
    space: Annotated[str | None, typer.Option(metavar="pixels|latents", help=SPACE_HELP)] = None,
    captions: shared.Captions = "auto",
    caption: shared.Caption = None,
    template: shared.Template = None,
    from_model: Annotated[Path | None, typer.Option("--from", metavar="MODEL", help=FROM_HELP)] = None,
    optimizer: Annotated[str | None, typer.Option(metavar="muon|adamw", help=OPTIMIZER_HELP)] = None,
    learning_rate: Annotated[float | None, typer.Option(metavar="RATE", help=LEARNING_RATE_HELP)] = None,
    seed: shared.TrainingSeed = None,
    batch_size: Annotated[int | None, typer.Option(metavar="N", help=BATCH_SIZE_HELP)] = None,
    device: shared.Device = None,
    precision: shared.TrainingPrecision = None,
    compile: Annotated[bool | None, typer.Option("--compile/--no-compile", help=COMPILE_HELP)] = None,
    flip: Annotated[bool | None, typer.Option("--flip/--no-flip", help=FLIP_HELP)] = None,
    balance: Annotated[float | None, typer.Option(metavar="FRACTION", help=BALANCE_HELP)] = None,
    caption_augmentation: Annotated[
        bool | None, typer.Option("--caption-augmentation/--no-caption-augmentation", help=CAPTION_AUGMENTATION_HELP)
    ] = None,
    license: Annotated[str | None, typer.Option(metavar="NAME", help=LICENSE_HELP)] = None,
    lora: Annotated[bool, typer.Option("--lora", help=LORA_HELP, rich_help_panel=LORA_TRAINING)] = False,
    rank: Annotated[int, typer.Option(metavar="N", help=RANK_HELP, rich_help_panel=LORA_TRAINING)] = 8,
    train_text_encoder: Annotated[
        bool, typer.Option("--train-text-encoder", help=TEXT_ENCODER_HELP, rich_help_panel=LORA_TRAINING)
    ] = False,
    layout: Annotated[
        str, typer.Option(metavar="kohya|peft", help=LAYOUT_HELP, rich_help_panel=LORA_TRAINING)
    ] = "kohya",
    prediction: Annotated[
        str | None, typer.Option(metavar="eps|v", help=shared.PREDICTION_HELP, rich_help_panel=LORA_TRAINING)
    ] = None,
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help=shared.TRUST_PICKLE_HELP, rich_help_panel=LORA_TRAINING)
    ] = False,
    kind: Annotated[str, typer.Option(metavar="KIND", help=KIND_HELP, rich_help_panel=OTHER_KINDS)] = "diffusion",
    loss: Annotated[str | None, typer.Option(metavar="NAME", help=LOSS_HELP, rich_help_panel=OTHER_KINDS)] = None,
    factor: Annotated[int | None, typer.Option(metavar="N", help=FACTOR_HELP, rich_help_panel=OTHER_KINDS)] = None,
    unconditional: Annotated[
        bool, typer.Option("--unconditional", help=UNCONDITIONAL_HELP, rich_help_panel=OTHER_KINDS)
    ] = False,
    plan: shared.PlanOnly = False,
    json: shared.PlanJson = False,
    quiet: shared.Quiet = False,
) -> int:
    """Train a model on a folder of captioned images.

    Give one of --for, --images and --steps; the rest is chosen for your machine. Ctrl-C saves a checkpoint and
    stops, and the same command resumes from there; the result is the same as without the stop.
    """
    shared.refuse_hidden_plan(plan, json, quiet)
    seconds = None if duration is None else quantities.parse_duration(duration)
    image_count = None if images is None else quantities.parse_count(images, "--images")
    step_count = None if steps is None else quantities.parse_count(steps, "--steps")
    from unspeckle.training.options import LoraOptions, TrainOptions

    options = TrainOptions(
        folder=folder,
        out=out,
        seconds=seconds,
        images=image_count,
        steps=step_count,
        size=size,
        preset=preset,
        space=space,
        captions=captions,
        caption=caption,
        template=template,
        from_model=from_model,
        optimizer=optimizer,
        learning_rate=learning_rate,
        seed=seed,
        batch_size=batch_size,
        device=device,
        precision=precision,
        compile=compile,
        flip=flip,
        balance=balance,
        caption_augmentation=caption_augmentation,
        license=license,
        plan_only=plan,
        json=json,
        quiet=quiet,
    )
    if kind != "diffusion" or loss or unconditional or factor:
        return _train_other_kind(options, kind, lora=lora, loss=loss, unconditional=unconditional, factor=factor)
    if not lora:
        from unspeckle.training.train_command import run_training

        return run_training(options)
    _check_lora_options(options)
    from unspeckle.training.lora_command import run_lora_training

    common: dict[str, Any] = {f.name: getattr(options, f.name) for f in fields(LoraOptions) if hasattr(options, f.name)}
    return run_lora_training(
        LoraOptions(
            **common,
            rank=rank,
            train_text_encoder=train_text_encoder,
            layout=layout,
            prediction=prediction,
            trust_pickle=trust_pickle,
        )
    )


def _train_other_kind(
    options: "TrainOptions", kind: str, *, lora: bool, loss: str | None, unconditional: bool, factor: int | None
) -> int:
    """`train --kind gan`, clip, unclip or upsampler. InputError for another kind, with --lora, and for options of
    another kind."""
    kinds = ("diffusion", "gan", "clip", "unclip", "upsampler")
    if kind not in kinds:
        raise InputError(f" {kind}: unknown; choose one of {', '.join(kinds)}", "kind")
    for name, value, owners in (
        ("loss", loss, ("gan", "clip")),
        ("unconditional", unconditional, ("gan",)),
        ("factor", factor, ("upsampler",)),
    ):
        if value and kind not in owners:
            needed = " or ".join(f"--kind {owner}" for owner in owners)
            raise InputError(f": goes with {needed} only; add that, or leave it out", name)
    if lora:
        raise InputError(f"--lora: does not go with --kind {kind}; leave one of them out")
    from unspeckle.training.from_python import KINDS

    command_class, options_class = KINDS[kind]
    given = {"loss": loss, "unconditional": unconditional, "factor": factor}
    own = {field.name for field in fields(options_class)}
    own_values = {name: value for name, value in given.items() if value and name in own}
    exit_code: int = command_class(options_class(**vars(options), **own_values)).run()
    return exit_code


def _check_lora_options(options: "TrainOptions") -> None:
    """InputError for options that do not go with --lora, and if the checkpoint is missing."""
    for name in ("preset", "space", "optimizer", "compile", "flip", "balance", "caption_augmentation"):
        if getattr(options, name) is not None:
            raise InputError(": does not go with --lora; leave it out", name)
    if options.from_model is None:
        raise InputError("--lora: needs the Stable Diffusion checkpoint that the LoRA is for; name it with --from")
