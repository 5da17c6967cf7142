"""The words and options of `train` and `distil`."""

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from unspeckle import quantities
from unspeckle.cli.options import Captions, Device, Quiet
from unspeckle.errors import InputError

_LORA: dict[str, Any] = {"rich_help_panel": "LoRA"}


def train(
    folder: Annotated[Path, typer.Argument(help="Captioned pictures.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The RUN: model, plan, log, checkpoints, samples.")],
    for_: Annotated[str | None, typer.Option("--for", help="How long you will wait: 90s, 30m, 1h30m.")] = None,
    pictures: Annotated[str | None, typer.Option(help="Or how many pictures to learn from: 150k, 2M.")] = None,
    steps: Annotated[str | None, typer.Option(help="Or how many steps.")] = None,
    size: Annotated[str | None, typer.Option(help="Pixels: 64 or WxH.")] = None,
    preset: Annotated[str | None, typer.Option(help="Of the network.  [default: what the time allows]")] = None,
    space: Annotated[str | None, typer.Option(help="Denoise pixels or learnt latents.  [default: by the time]")] = None,
    captions: Captions = "auto",
    caption: Annotated[str | None, typer.Option(help="One caption for all pictures.")] = None,
    template: Annotated[str | None, typer.Option(help='Around the name of a folder: "a photo of a {name}".')] = None,
    from_model: Annotated[Path | None, typer.Option("--from", help="Go on from this model.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="muon or adamw.  [default: muon in bfloat16]")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="At its highest.  [default: muon 4e-3, adamw 1e-3, --lora 1e-4]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of all that is random.")] = None,
    batch: Annotated[int | None, typer.Option(help="Pictures a step.")] = None,
    device: Device = None,
    precision: Annotated[str | None, typer.Option(help="float32 or bfloat16.")] = None,
    compile: Annotated[bool | None, typer.Option("--compile/--no-compile", help="torch.compile.")] = None,
    mirror: Annotated[
        bool | None,
        typer.Option("--mirror/--no-mirror", help="Half of the pictures.  [default: where few are seen often]"),
    ] = None,
    balance: Annotated[
        float | None,
        typer.Option(help="Show rare captions more often: 0 to 1.  [default: .5 for names of folders]"),
    ] = None,
    licence: Annotated[str | None, typer.Option(help="Of the model, for its card: CC0-1.0, …")] = None,
    lora: Annotated[
        bool, typer.Option("--lora", help="Fine-tune the Stable Diffusion of --from, by a small file.", **_LORA)
    ] = False,
    rank: Annotated[int | None, typer.Option(help="How much it can hold.  [default: 8]", **_LORA)] = None,
    text_encoder: Annotated[bool, typer.Option("--text-encoder", help="Its text encoders learn too.", **_LORA)] = False,
    layout: Annotated[str | None, typer.Option(help="Of the file: kohya or peft.  [default: kohya]", **_LORA)] = None,
    prediction: Annotated[str | None, typer.Option(help="Where it does not tell: eps or v.", **_LORA)] = None,
    trust_pickle: Annotated[bool, typer.Option("--trust-pickle", help="Read the tensors of a .ckpt.", **_LORA)] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Only print the plan.")] = False,
    json: Annotated[bool, typer.Option("--json", help="With --plan: print it as JSON.")] = False,
    quiet: Quiet = False,
) -> int:
    """Train a model on a folder of captioned pictures, as long as you will wait.

    Ctrl-C stops at a clean point; the same command goes on from there, bit for bit.
    """
    common: dict[str, Any] = {
        "folder": folder, "out": out, "seconds": None if for_ is None else quantities.parse_duration(for_),
        "pictures": None if pictures is None else quantities.parse_count(pictures, "--pictures"),
        "steps": None if steps is None else quantities.parse_count(steps, "--steps"), "size": size, "captions": captions,
        "caption": caption, "template": template, "from_model": from_model, "licence": licence,
        "learning_rate": learning_rate, "seed": seed, "batch": batch,
        "device": device, "precision": precision, "plan_only": plan, "json": json, "quiet": quiet,
    }  # fmt: skip
    alone = {"--preset": preset, "--space": space, "--optimizer": optimizer, "--compile": compile, "--mirror": mirror,
             "--balance": balance}  # fmt: skip
    tuned = {"--rank": rank, "--text-encoder": text_encoder or None, "--layout": layout,
             "--prediction": prediction, "--trust-pickle": trust_pickle or None}  # fmt: skip
    for name, value in (alone if lora else tuned).items():
        if value is not None:
            raise InputError(f"{name}: is {'not ' if lora else 'only '}for --lora; leave it out")
    if lora and from_model is None:
        raise InputError("--lora: wants the Stable Diffusion that it is for; name it with --from")
    if lora:
        from unspeckle.commands.tune import run_lora_training as tune
        from unspeckle.training.options import LoraOptions

        options = LoraOptions(
            **common, rank=8 if rank is None else rank, train_text_encoder=text_encoder, layout=layout or "kohya",
            prediction=prediction, trust_pickle=trust_pickle,
        )  # fmt: skip
        return tune(options)
    from unspeckle.training.command import run_training
    from unspeckle.training.options import TrainOptions

    chosen = TrainOptions(
        **common, preset=preset, space=space, optimizer=optimizer, compile=compile, flip=mirror, balance=balance
    )  # fmt: skip
    return run_training(chosen)


def distil(
    model: Annotated[Path, typer.Argument(help="The teacher: a RUN of train, or a file.", show_default=False)],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", "-o", help="The RUN: model, plan, log, …  [default: the teacher's name and -few]"),
    ] = None,
    for_: Annotated[str | None, typer.Option("--for", help="How long you will wait: 90s, 30m, 1h30m.")] = None,
    pictures: Annotated[str | None, typer.Option(help="Or how many pictures the teacher is to draw: 5k.")] = None,
    steps: Annotated[str | None, typer.Option(help="Or how many steps of learning.")] = None,
    corpus: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A folder, for its captions.  [default: those that the teacher's RUN kept]"),
    ] = None,
    scale: Annotated[float | None, typer.Option(help="Of guidance, baked in.  [default: the teacher's]")] = None,
    seed: Annotated[int | None, typer.Option(help="Of all that is random.")] = None,
    batch: Annotated[int | None, typer.Option(help="Pictures that the teacher draws for a step.")] = None,
    device: Device = None,
    precision: Annotated[str | None, typer.Option(help="float32 or bfloat16.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only print the plan.")] = False,
    json: Annotated[bool, typer.Option("--json", help="With --plan: print it as JSON.")] = False,
    quiet: Quiet = False,
) -> int:
    """Teach a student to draw in 1, 2 or 4 steps what a model draws in many.

    The new file carries both; draw --steps 4 asks the student. Ctrl-C stops at a clean point; the same command goes on.
    """
    from unspeckle.training.options import DistilOptions

    options = DistilOptions(
        model=model,
        out=out or _few(model),
        corpus=corpus,
        seconds=None if for_ is None else quantities.parse_duration(for_),
        images=None if pictures is None else quantities.parse_count(pictures, "--pictures"),
        steps=None if steps is None else quantities.parse_count(steps, "--steps"),
        guidance_scale=scale,
        seed=seed,
        batch_size=batch,
        device=device,
        precision=precision,
        plan_only=plan,
        json=json,
        quiet=quiet,
    )
    from unspeckle.commands.distil import run_distillation

    return run_distillation(options)


def _few(model: Path) -> Path:
    """The RUN beside the teacher, and named after it, where no other is named."""
    place = model.resolve()
    if not place.name:
        raise InputError(f"{model}: holds no model; name a RUN of `train`, or a file")
    return place.with_name(f"{place.stem}-few")
