"""RUN/plan.json: a plan written and read, and the options of its command, which must not change in between."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from unspeckle import atomic, configuration
from unspeckle.errors import InputError, option_name
from unspeckle.old_names import is_old_plan, rename_plan
from unspeckle.training.options import Options
from unspeckle.training.plan import (
    OPTIMIZERS,
    CLIPPlan,
    DistillationPlan,
    GANPlan,
    LoraPlan,
    Plan,
    PlanT,
    UnCLIPPlan,
    UpsamplerPlan,
)

PLAN_FILE: Final = "plan.json"
# Options that may differ when a run is continued
CHANGEABLE_OPTIONS: Final = ("plan_only", "json", "quiet", "folder", "model", "corpus", "out")
_COMMANDS: Final = {
    Plan: "train",
    DistillationPlan: "distil",
    LoraPlan: "train --lora",
    GANPlan: "train --kind gan",
    CLIPPlan: "train --kind clip",
    UnCLIPPlan: "train --kind unclip",
    UpsamplerPlan: "train --kind upsampler",
}


def save_plan(plan: Plan, run_folder: Path) -> None:
    """Write RUN/plan.json atomically."""
    atomic.write_bytes(run_folder / PLAN_FILE, json.dumps(configuration.to_json(plan), indent=1).encode())


def load_plan(run_folder: Path, plan_class: type[PlanT]) -> PlanT | None:
    """RUN's plan, or None if there is none. InputError if it cannot be read, or is a plan of another command."""
    plan = load_any_plan(run_folder)
    if plan is None:
        return None
    # A plan that one command wrote is never continued by another, so subclasses do not count.
    if type(plan) is not plan_class:
        raise InputError(
            f"{run_folder / PLAN_FILE}: is the plan of a run of `{_COMMANDS[type(plan)]}`; give another --out"
        )
    return plan


def load_any_plan(run_folder: Path) -> Plan | None:
    """RUN's plan, whichever command wrote it, or None if there is none. InputError if it cannot be read."""
    path = run_folder / PLAN_FILE
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give another --out, or delete this run") from error
    if isinstance(values, dict) and is_old_plan(values):
        values = rename_plan(values)
    sections = values if isinstance(values, dict) else {}
    classes: dict[str, type[Plan]] = {
        "distillation": DistillationPlan,
        "lora": LoraPlan,
        "gan": GANPlan,
        "contrastive": CLIPPlan,
        "parts": UnCLIPPlan,
        "upsampler": UpsamplerPlan,
    }
    plan_class = next((plan_class for section, plan_class in classes.items() if section in sections), Plan)
    try:
        plan = configuration.from_json(plan_class, values, str(path))
    except InputError as error:
        # A section that checks its own fields, such as the objective, does not know the file's name.
        raise error if str(error).startswith(str(path)) else InputError(f"{path}: {error}") from error
    _check_plan(plan, path)
    return plan


def _check_plan(plan: Plan, path: Path) -> None:
    counts = {
        "work.steps": plan.work.steps,
        "work.batch_size": plan.work.batch_size,
        "compute.threads": plan.compute.threads,
        "optimizer.warmup_steps": plan.optimizer.warmup_steps,
        "optimizer.ema_every": plan.optimizer.ema_every,
    }
    for name, value in counts.items():
        if value < 1:
            raise InputError(f"{path}: field {name!r} must be at least 1, not {value}; give another --out")
    if plan.optimizer.name not in OPTIMIZERS:
        raise InputError(
            f"{path}: field 'optimizer.name' must be {' or '.join(OPTIMIZERS)}, not {plan.optimizer.name!r}; "
            "give another --out"
        )


def options_to_json(options: Options) -> dict[str, Any]:
    """The options that decide a run, as JSON values."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(options).items() if k not in CHANGEABLE_OPTIONS}


def check_options_unchanged(plan: Plan, options: Options) -> None:
    """InputError naming the first option that differs from those with which the run began."""
    for name, value in options_to_json(options).items():
        original = plan.options.get(name)
        if value != original:
            raise InputError(
                f"{options.out}: this run began with {format_option(name, original) or f'no {option_name(name)}'}, not "
                f"with {format_option(name, value) or 'none'}; give the same command to continue it, or another --out"
            )


def format_option(name: str, value: Any) -> str:
    """An option as it is typed, such as "--for 1800s"; "" if it was not given."""
    option = option_name(name)
    if value is None:
        return ""
    if name in ("compile", "flip"):
        return option if value else option.replace("--", "--no-", 1)
    if isinstance(value, bool):
        return option if value else ""
    return f"{option} {f'{value:g}s' if name == 'seconds' else shlex.quote(str(value))}"


def format_command_line(command: str, options: dict[str, Any]) -> str:
    """The command with its options, without those that have their default value: for a model's card."""
    given = {name: value for name, value in options.items() if (name, value) != ("captions", "auto")}
    return " ".join([command, *filter(None, (format_option(name, value) for name, value in given.items()))])
