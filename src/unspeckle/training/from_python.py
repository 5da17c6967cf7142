"""Training from Python: `for report in unspeckle.train("photos", "mine", budget="30m"): ...`"""

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from unspeckle import quantities
from unspeckle.errors import InputError, nearest_name
from unspeckle.training.clip_command import CLIPCommand
from unspeckle.training.command import TrainingCommand
from unspeckle.training.distil_command import DistilCommand
from unspeckle.training.gan_command import GANCommand
from unspeckle.training.lora_command import LoraCommand
from unspeckle.training.options import (
    CLIPOptions,
    DistilOptions,
    GANOptions,
    LoraOptions,
    Options,
    TrainOptions,
    UnCLIPOptions,
    UpsamplerOptions,
)
from unspeckle.training.plan_table import PlanSummary
from unspeckle.training.progress import ProgressReport
from unspeckle.training.train_command import TrainCommand
from unspeckle.training.unclip_command import UnCLIPCommand
from unspeckle.training.upsampler_command import UpsamplerCommand

OptionsT = TypeVar("OptionsT", bound=Options)
# By kind of model: the command, and its options
KINDS: dict[str, tuple[type[Any], type[Any]]] = {
    "diffusion": (TrainCommand, TrainOptions),
    "gan": (GANCommand, GANOptions),
    "clip": (CLIPCommand, CLIPOptions),
    "unclip": (UnCLIPCommand, UnCLIPOptions),
    "upsampler": (UpsamplerCommand, UpsamplerOptions),
}
# What only the command line has, and what `budget` stands for
NOT_FROM_PYTHON = ("plan_only", "json", "seconds")


def train(
    folder: str | Path,
    out: str | Path,
    budget: str | None = None,
    *,
    kind: str = "diffusion",
    lora: bool = False,
    **options: Any,
) -> Iterator[ProgressReport]:
    """Train a model on a folder of captioned images; yields a report about every second, and at validations.

    folder: the images, with captions as `unspeckle train` finds them. out: the RUN folder; at the end it holds
    model.safetensors, or with `lora` lora.safetensors. budget: how long, such as "30m"; or give images=N or steps=N.
    kind: "diffusion", "gan", "clip", "unclip" or "upsampler". options: those of TrainOptions, such as size="64" or
    from_model="sd15.safetensors"; with `lora` those of LoraOptions, for a GAN GANOptions, for a CLIP CLIPOptions.

    The same call resumes a run that was stopped, by Ctrl-C, the stop button of a notebook or leaving the loop, and
    yields nothing if the run is finished. InputError if folder or options do not allow it, TrainingError if training
    fails.
    """
    return keep_latest(_training_command(folder, out, budget, kind, lora, options).reports())


def plan(
    folder: str | Path,
    out: str | Path,
    budget: str | None = None,
    *,
    kind: str = "diffusion",
    lora: bool = False,
    **options: Any,
) -> PlanSummary:
    """What train() would do with these arguments, measured on this machine in some seconds: network, images, steps,
    memory and time, which a notebook shows as a table. Nothing is trained or written. Errors as those of train()."""
    values = {"quiet": True, **options}
    return PlanSummary(_training_command(folder, out, budget, kind, lora, values, plan_only=True).plan())


def _training_command(
    folder: str | Path,
    out: str | Path,
    budget: str | None,
    kind: str,
    lora: bool,
    options: dict[str, Any],
    plan_only: bool = False,
) -> TrainingCommand[Any, Any]:
    """The command that trains that kind of model. InputError where an option is unknown or does not fit."""
    values: dict[str, Any] = {"folder": Path(folder), "out": Path(out), **options}
    if values.get("from_model") is not None:
        values["from_model"] = Path(values["from_model"])
    if lora and values.get("from_model") is None:
        raise InputError(": a LoRA needs the Stable Diffusion checkpoint that it is for", "from_model")
    if kind not in KINDS or (lora and kind != "diffusion"):
        choices = "diffusion, and leave out `lora` for others" if lora else f"one of {', '.join(KINDS)}"
        raise InputError(f" {kind!r}: cannot be trained; choose {choices}", "kind")
    command_class, options_class = (LoraCommand, LoraOptions) if lora else KINDS[kind]
    made = make_options(options_class, values, budget)
    return command_class(replace(made, plan_only=plan_only))


def distil(model: str | Path, out: str | Path, budget: str | None = None, **options: Any) -> Iterator[ProgressReport]:
    """Distil a student that draws in 1, 2 or 4 steps from a model that `train` made; yields reports as train() does.

    model: a RUN folder or a file. out: the RUN folder of the student; its model.safetensors holds both networks.
    budget: how long, such as "30m"; or give images=N or steps=N. options: those of DistilOptions, such as
    corpus="photos".
    """
    values: dict[str, Any] = {"model": Path(model), "out": Path(out), **options}
    if values.get("corpus") is not None:
        values["corpus"] = Path(values["corpus"])
    return keep_latest(DistilCommand(make_options(DistilOptions, values, budget)).reports())


def keep_latest(reports: Generator[ProgressReport]) -> Iterator[ProgressReport]:
    """The reports, each with the latest validation and samples of its stage, so that any of them can be shown."""
    latest = None
    with closing(reports):
        for report in reports:
            if latest is not None and latest.stage == report.stage:
                report = replace(
                    report,
                    validation=report.validation or latest.validation,
                    samples_path=report.samples_path or latest.samples_path,
                )
            latest = report
            yield report


def make_options(options_class: type[OptionsT], values: dict[str, Any], budget: str | None) -> OptionsT:
    """The options of these values. InputError where there is no such option, which names the nearest one, and unless
    exactly one value says how long to train."""
    names = [field.name for field in fields(options_class) if field.name not in NOT_FROM_PYTHON]
    for name in values:
        if name not in names:
            raise InputError(f": there is no such option; the nearest is `{nearest_name(name, names)}`", name)
    for name in ("images", "steps"):
        if isinstance(values.get(name), str):
            values = {**values, name: quantities.parse_count(values[name], name)}
    if [budget, values.get("images"), values.get("steps")].count(None) != 2:
        raise InputError('say how long to train by exactly one of budget="30m", images=2_000_000 and steps=5000')
    size = values.get("size")
    if isinstance(size, int | tuple):
        values = {**values, "size": str(size) if isinstance(size, int) else f"{size[0]}x{size[1]}"}
    return options_class(**values, seconds=None if budget is None else quantities.parse_duration(budget, "budget"))
