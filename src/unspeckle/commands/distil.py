"""`unspeckle distil`: from a model to one that carries a student, which draws the same in 1, 2 or 4 steps."""

import hashlib
import json
import math
import time

import torch
from rich.console import Console

from unspeckle import configuration
from unspeckle.corpus import read
from unspeckle.errors import InputError
from unspeckle.model import MODEL_FILE, Model
from unspeckle.schedule import SCHEDULES
from unspeckle.training import checkpoint, distillation_task, measurement, memory
from unspeckle.training import plan as plans
from unspeckle.training.check_options import PRECISIONS, check_common
from unspeckle.training.command import CAPTIONS, CAPTIONS_KEPT, DONE, alone, follow, listen, usable
from unspeckle.training.inputs import own
from unspeckle.training.options import DistilOptions
from unspeckle.training.plan import DistilPlan
from unspeckle.training.planner import Say, finished
from unspeckle.training.progress_view import table
from unspeckle.training.teacher_trajectories import lessons

BATCH, BATCH_CUDA = 4, 32  # drawings a step
LEARNING_RATE, MUON_RATE = 3e-4, 1e-3  # below those of training: the student begins as its teacher
CLOSING = 60.0  # the teacher's drawings to judge by, the judging at the end, the last samples; in drawings
HELD_OUT_FROM = 320  # different captions, below which none is held out


def run(options: DistilOptions) -> int:
    """Do what was asked; returns the exit code. InputError where the options or the model do not allow it."""
    started = time.monotonic()
    console = Console(stderr=True, quiet=options.quiet)
    plan = plans.load(options.out, DistilPlan)
    if options.scale is not None and not math.isfinite(options.scale):
        raise InputError(f"--scale {options.scale}: must be a finite number; 1 is no guidance, 3 to 7 is usual")
    if plan is None:
        check_common(options)
    else:
        plans.refuse_changes(plan, options)
        if (options.out / MODEL_FILE).exists() and not options.plan_only:
            console.print(f"this run is finished; draw with --model {options.out}", highlight=False, soft_wrap=True)
            print((options.out / MODEL_FILE).absolute())
            return DONE
    usable(options, plan)
    teacher = own(options.model)
    captions = _captions(options)
    fingerprint = hashlib.blake2b("\n".join(captions).encode(), digest_size=16).hexdigest()
    taught, held_out = _divided(captions)
    with alone(options):
        begun = plan is not None
        if plan is None:
            plan = _choose(
                options, teacher, taught, fingerprint, started, lambda line: console.print(line, highlight=False)
            )
        elif plan.teacher != teacher.hash or plan.corpus != fingerprint:
            changed = options.model if plan.teacher != teacher.hash else "its captions"
            raise InputError(f"{options.out}: {changed} changed since this run began; give another --out")
        console.print(table(plan, checkpoint.steps_done(options.out / "checkpoints") if begun else 0))
        if options.plan_only:
            if options.json:
                print(json.dumps(configuration.to_json(plan)))
            return DONE
        if not begun:
            plan.save(options.out)
        if plan.threads != torch.get_num_threads() and plan.device == "cpu":
            torch.set_num_threads(plan.threads)
        card = distillation_task.card(teacher, plan, _recipe(plan))
        course = distillation_task.Distilling(plan, options.out, teacher, taught, held_out, card)
        return follow(course, options, console, listen())


def _captions(options: DistilOptions) -> list[str]:
    """What the teacher is to draw: the folder's captions, or those that its run kept; at most CAPTIONS_KEPT."""
    if options.corpus is not None:
        captions = [" ".join(caption.split()) for caption in read(options.corpus).captions()]
    else:
        folder = options.model if options.model.is_dir() else options.model.parent
        try:
            captions = (folder / CAPTIONS).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"{options.model}: keeps no {CAPTIONS}; name its pictures' folder with --corpus"
            ) from error
    if not captions:
        raise InputError(f"{options.corpus or options.model}: has no captions; name a captioned folder with --corpus")
    count = min(len(captions), CAPTIONS_KEPT)
    return [captions[i * len(captions) // count] for i in range(count)]


def _divided(captions: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Captions to learn from, and others to be judged by, unless there are too few different ones. One in 50 of the
    former is empty, so that the student can draw without words as well."""
    distinct = list(dict.fromkeys(captions))
    held_out = tuple(
        distinct[i * len(distinct) // distillation_task.HELD_OUT] for i in range(distillation_task.HELD_OUT)
    )
    held_out = tuple(dict.fromkeys(held_out))
    if len(distinct) >= HELD_OUT_FROM:
        captions = [caption for caption in captions if caption not in held_out]
    return (*captions, *[""] * -(-len(captions) // 50)), held_out


def _choose(
    options: DistilOptions, teacher: Model, captions: tuple[str, ...], fingerprint: str, started: float, say: Say
) -> DistilPlan:
    """Measure, then decide all that was left open."""
    if options.device is None or options.precision is None:
        say("measuring this machine …")
    device, precision = measurement.device_and_precision(options.device, PRECISIONS.get(options.precision or ""))
    student, denoiser = distillation_task.beginner(teacher), teacher.denoiser
    plan = DistilPlan(
        asked=plans.asked(options), corpus=fingerprint, size=teacher.card.size, preset="as its teacher",
        network=student.config, text=teacher.text_encoder.config, steps=10**6,  # type: ignore[arg-type]
        batch=options.batch or (BATCH_CUDA if device.startswith("cuda") else BATCH),
        seed=0 if options.seed is None else options.seed, device=device, precision=precision, compile=False,
        threads=torch.get_num_threads(), parameters=sum(p.numel() for p in student.parameters()),
        rate=0, seconds=0, memory=0, disk=0, autoencoder=teacher.autoencoder.config,
        schedule=configuration.kind_to_json(SCHEDULES, denoiser.schedule), prediction=denoiser.prediction,
        clock=str(denoiser.clock),
        optimizer="muon" if precision == "bfloat16" else "adamw", learning_rate=LEARNING_RATE, muon_rate=MUON_RATE,
        weight_decay=0.0, teacher=teacher.hash, scale=teacher.card.guidance_scale if options.scale is None else options.scale,
    )  # fmt: skip
    plan = memory.fitted(plan, options.batch is not None, say)
    ids = teacher.tokenizer.encode(captions).to(device)
    shown = lessons(distillation_task.hired(teacher, plan), ids, plan, 0)
    measured = measurement.steps(lambda plan: distillation_task.pupil(plan, teacher), plan, shown, 4.0)
    return finished(plan, measured, options, started, CLOSING)


def _recipe(plan: DistilPlan) -> str:
    """The command, without paths."""
    flags = (plans.flag(name, value) for name, value in plan.asked.items())
    return " ".join(["unspeckle distil MODEL --out RUN", *filter(None, flags)])
