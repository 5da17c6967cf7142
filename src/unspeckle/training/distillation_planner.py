"""The plan of `distil`: what the options leave open is decided by measuring training steps on this machine."""

from unspeckle.model import Model
from unspeckle.text.tokenizer import Tokenizer
from unspeckle.training import measurement, memory
from unspeckle.training.budget import finalize_plan
from unspeckle.training.distillation_task import copy_teacher_in_precision
from unspeckle.training.measurement import PrintLine
from unspeckle.training.options import DistilOptions
from unspeckle.training.plan import (
    ComputePlan,
    DistillationPlan,
    DistillationSettings,
    Measurements,
    ModelPlan,
    OptimizerPlan,
    WorkPlan,
)
from unspeckle.training.plan_file import options_to_json
from unspeckle.training.student_updater import StudentUpdater, init_student
from unspeckle.training.teacher_trajectories import generate_teacher_trajectories
from unspeckle.training.train_planner import inherit_prediction

# Images that the teacher draws for a step
CPU_BATCH_SIZE, CUDA_BATCH_SIZE = 4, 32
# Lower than in training, as the student begins as its teacher
LEARNING_RATE, MUON_LEARNING_RATE = 3e-4, 1e-3
# Images to validate with, validation at the end and the last samples, in images that the teacher draws
FINAL_COST_IMAGES = 60.0
# Stands for the number of steps until that is known
_MANY_STEPS = 10**6


def make_distillation_plan(
    options: DistilOptions,
    teacher: Model,
    captions: tuple[str, ...],
    *,
    fingerprint: str,
    start_time: float,
    print_line: PrintLine,
) -> DistillationPlan:
    """Measure, then decide all that the options leave open.

    fingerprint: of the captions; start_time: the time.monotonic() from which --for counts."""
    compute = measurement.choose_compute(options, print_line)
    plan = _plan_student(options, teacher, compute, fingerprint)
    plan = memory.fit_batch_size(plan, options.batch_size is not None, print_line)
    teacher_in_precision = copy_teacher_in_precision(teacher, plan)
    ids = teacher.tokenizer.encode(captions).to(compute.device)
    trajectories = generate_teacher_trajectories(teacher_in_precision, ids, plan, first_index=0)
    measured_plan = measurement.without_learning(plan)
    throughput = measurement.measure_steps(
        lambda: StudentUpdater(measured_plan, teacher), trajectories, measurement.STEPS_SECONDS
    )
    return finalize_plan(plan, throughput, options, start_time=start_time, final_cost_images=FINAL_COST_IMAGES)


def _plan_student(options: DistilOptions, teacher: Model, compute: ComputePlan, fingerprint: str) -> DistillationPlan:
    """The plan of the student, whose number of steps is not yet known."""
    student, text_encoder, guidance_scale = init_student(teacher), teacher.text_encoder, options.guidance_scale
    default_batch_size = CUDA_BATCH_SIZE if compute.device.startswith("cuda") else CPU_BATCH_SIZE
    return DistillationPlan(
        options=options_to_json(options),
        corpus_fingerprint=fingerprint,
        model=ModelPlan(
            size=teacher.card.size,
            preset="as its teacher",
            network=student.config,  # type: ignore[arg-type]
            text_encoder=text_encoder.config,  # type: ignore[arg-type]
            autoencoder=teacher.autoencoder.config,
            **inherit_prediction(teacher),
        ),
        work=WorkPlan(
            steps=_MANY_STEPS,
            batch_size=options.batch_size or default_batch_size,
            seed=0 if options.seed is None else options.seed,
            # The student is to understand what the teacher does.
            caption_augmentation=isinstance(teacher.tokenizer, Tokenizer) and bool(teacher.tokenizer.meaningless_words),
        ),
        compute=compute,
        optimizer=OptimizerPlan(
            name="muon" if compute.precision == "bfloat16" else "adamw",
            learning_rate=LEARNING_RATE,
            muon_learning_rate=MUON_LEARNING_RATE,
            weight_decay=0.0,
        ),
        measured=Measurements(parameter_count=sum(parameter.numel() for parameter in student.parameters())),
        distillation=DistillationSettings(
            teacher_hash=teacher.hash,
            guidance_scale=teacher.card.guidance_scale if guidance_scale is None else guidance_scale,
        ),
    )
