"""`unspeckle distil`: from a model to one that carries a student, which draws the same in 1, 2 or 4 steps."""

import hashlib
import json
import math
import time

import torch
from rich.console import Console

from unspeckle import configuration
from unspeckle.corpus import read_folder
from unspeckle.errors import InputError
from unspeckle.model import Model
from unspeckle.model_io.model_file import MODEL_FILE
from unspeckle.schedule import SCHEDULES
from unspeckle.training import checkpoint, distillation_task, measurement, memory
from unspeckle.training import plan as plans
from unspeckle.training.check_options import PRECISIONS, check_common_options
from unspeckle.training.command import (
    CAPTIONS_FILE,
    EXIT_DONE,
    MAX_CAPTIONS,
    check_run_folder,
    lock_run,
    run_task,
    stop_on_signal,
)
from unspeckle.training.inputs import load_trainable_model
from unspeckle.training.options import DistilOptions
from unspeckle.training.plan import DistilPlan
from unspeckle.training.planner import PrintLine, finalize_plan
from unspeckle.training.progress_view import plan_table
from unspeckle.training.teacher_trajectories import generate_teacher_trajectories

CPU_BATCH_SIZE, CUDA_BATCH_SIZE = 4, 32  # drawings a step
LEARNING_RATE, MUON_LEARNING_RATE = 3e-4, 1e-3  # below those of training: the student begins as its teacher
FINAL_COST_IMAGES = 60.0  # the teacher's drawings to judge by, the judging at the end, the last samples; in drawings
VALIDATION_MIN_CAPTIONS = 320  # different captions, below which none is held out


def run_distillation(options: DistilOptions) -> int:
    """Do what was asked; returns the exit code. InputError where the options or the model do not allow it."""
    start_time = time.monotonic()
    console = Console(stderr=True, quiet=options.quiet)
    plan = plans.load_plan(options.out, DistilPlan)
    if options.guidance_scale is not None and not math.isfinite(options.guidance_scale):
        raise InputError(
            f"--scale {options.guidance_scale}: must be a finite number; 1 is no guidance, 3 to 7 is usual"
        )
    if plan is None:
        check_common_options(options)
    else:
        plans.check_options_unchanged(plan, options)
        if (options.out / MODEL_FILE).exists() and not options.plan_only:
            console.print(f"this run is finished; draw with --model {options.out}", highlight=False, soft_wrap=True)
            print((options.out / MODEL_FILE).absolute())
            return EXIT_DONE
    check_run_folder(options, plan)
    teacher = load_trainable_model(options.model)
    captions = _load_captions(options)
    fingerprint = hashlib.blake2b("\n".join(captions).encode(), digest_size=16).hexdigest()
    training_captions, validation_captions = _split_captions(captions)
    with lock_run(options):
        is_resumed = plan is not None
        if plan is None:
            plan = _make_distil_plan(
                options,
                teacher,
                training_captions,
                fingerprint,
                start_time,
                lambda line: console.print(line, highlight=False),
            )
        elif plan.teacher_hash != teacher.hash or plan.corpus_fingerprint != fingerprint:
            changed = options.model if plan.teacher_hash != teacher.hash else "its captions"
            raise InputError(f"{options.out}: {changed} changed since this run began; give another --out")
        console.print(plan_table(plan, checkpoint.latest_step(options.out / "checkpoints") if is_resumed else 0))
        if options.plan_only:
            if options.json:
                print(json.dumps(configuration.to_json(plan)))
            return EXIT_DONE
        if not is_resumed:
            plan.save(options.out)
        if plan.threads != torch.get_num_threads() and plan.device == "cpu":
            torch.set_num_threads(plan.threads)
        card = distillation_task.student_card(teacher, plan, _command_line(plan))
        task = distillation_task.DistillationTask(
            plan, options.out, teacher, training_captions, validation_captions, card
        )
        return run_task(task, options, console, stop_on_signal())


def _load_captions(options: DistilOptions) -> list[str]:
    """What the teacher is to draw: the folder's captions, or those that its run kept; at most CAPTIONS_KEPT."""
    if options.corpus is not None:
        captions = [" ".join(caption.split()) for caption in read_folder(options.corpus).all_captions()]
    else:
        folder = options.model if options.model.is_dir() else options.model.parent
        try:
            captions = (folder / CAPTIONS_FILE).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"{options.model}: keeps no {CAPTIONS_FILE}; name its pictures' folder with --corpus"
            ) from error
    if not captions:
        raise InputError(f"{options.corpus or options.model}: has no captions; name a captioned folder with --corpus")
    count = min(len(captions), MAX_CAPTIONS)
    return [captions[i * len(captions) // count] for i in range(count)]


def _split_captions(captions: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Captions to learn from, and others to be judged by, unless there are too few different ones. One in 50 of the
    former is empty, so that the student can draw without words as well."""
    distinct = list(dict.fromkeys(captions))
    validation_captions = tuple(
        distinct[i * len(distinct) // distillation_task.DISTILLATION_VALIDATION_IMAGES]
        for i in range(distillation_task.DISTILLATION_VALIDATION_IMAGES)
    )
    validation_captions = tuple(dict.fromkeys(validation_captions))
    if len(distinct) >= VALIDATION_MIN_CAPTIONS:
        captions = [caption for caption in captions if caption not in validation_captions]
    return (*captions, *[""] * -(-len(captions) // 50)), validation_captions


def _make_distil_plan(
    options: DistilOptions,
    teacher: Model,
    captions: tuple[str, ...],
    fingerprint: str,
    start_time: float,
    print_line: PrintLine,
) -> DistilPlan:
    """Measure, then decide all that was left open."""
    if options.device is None or options.precision is None:
        print_line("measuring this machine …")
    device, precision = measurement.choose_device_and_precision(options.device, PRECISIONS.get(options.precision or ""))
    student, denoiser = distillation_task.init_student(teacher), teacher.denoiser
    plan = DistilPlan(
        options=plans.options_to_json(options), corpus_fingerprint=fingerprint, size=teacher.card.size, preset="as its teacher",
        network_config=student.config, text_config=teacher.text_encoder.config, steps=10**6,  # type: ignore[arg-type]
        batch_size=options.batch_size or (CUDA_BATCH_SIZE if device.startswith("cuda") else CPU_BATCH_SIZE),
        seed=0 if options.seed is None else options.seed, device=device, precision=precision, compile=False,
        threads=torch.get_num_threads(), parameter_count=sum(p.numel() for p in student.parameters()),
        images_per_second=0, total_seconds=0, memory_bytes=0, disk_bytes=0, autoencoder_config=teacher.autoencoder.config,
        schedule=configuration.kind_to_json(SCHEDULES, denoiser.schedule), prediction=denoiser.prediction,
        time_conditioning=str(denoiser.time_conditioning),
        optimizer="muon" if precision == "bfloat16" else "adamw", learning_rate=LEARNING_RATE, muon_learning_rate=MUON_LEARNING_RATE,
        weight_decay=0.0, teacher_hash=teacher.hash, guidance_scale=teacher.card.guidance_scale if options.guidance_scale is None else options.guidance_scale,
    )  # fmt: skip
    plan = memory.fit_batch_size(plan, options.batch_size is not None, print_line)
    ids = teacher.tokenizer.encode(captions).to(device)
    trajectories = generate_teacher_trajectories(
        distillation_task.copy_teacher_in_precision(teacher, plan), ids, plan, 0
    )
    throughput = measurement.measure_steps(
        lambda plan: distillation_task.create_student_updater(plan, teacher), plan, trajectories, 4.0
    )
    return finalize_plan(plan, throughput, options, start_time, FINAL_COST_IMAGES)


def _command_line(plan: DistilPlan) -> str:
    """The command, without paths."""
    options = (plans.format_option(name, value) for name, value in plan.options.items())
    return " ".join(["unspeckle distil MODEL --out RUN", *filter(None, options)])
