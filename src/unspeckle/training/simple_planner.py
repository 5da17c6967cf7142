"""The part of a plan that kinds of training without choices of network and space have in common."""

from collections.abc import Callable

from unspeckle.corpus.batches import batches
from unspeckle.corpus.caption_augmentation import CaptionAugmenter
from unspeckle.errors import InputError
from unspeckle.training import measurement, memory
from unspeckle.training.budget import finalize_plan
from unspeckle.training.inputs import TrainingInputs
from unspeckle.training.measurement import PrintLine, Throughput
from unspeckle.training.options import TrainOptions
from unspeckle.training.plan import PlanT
from unspeckle.training.train_planner import FLIP_MIN_VIEWS, default_balance
from unspeckle.training.updater import Updater

# Forward passes after the last step, in training images
FINAL_COST_IMAGES = 500.0
# Stands for the number of steps until that is known
MANY_STEPS = 10**6


def refuse_options(options: TrainOptions, names: tuple[str, ...], kind: str) -> None:
    """InputError for options of `train` that a kind of training does not have."""
    for name in names:
        if getattr(options, name) is not None:
            raise InputError(f": does not go with --kind {kind}; leave it out", name)


def finish_plan(
    plan: PlanT,
    options: TrainOptions,
    inputs: TrainingInputs,
    create_updater: Callable[[PlanT], Updater],
    *,
    start_time: float,
    print_line: PrintLine,
) -> PlanT:
    """The plan with a batch size that fits into memory, the number of its steps, measured on this machine, and how
    images are shown. create_updater: makes throwaway weights for a plan.

    InputError if there is no time, memory or disk space for it."""
    plan = memory.fit_batch_size(plan, options.batch_size is not None, print_line)
    work, measured_plan = plan.work, measurement.without_learning(plan)

    def measure(augmenter: CaptionAugmenter | None, seconds: float) -> Throughput:
        images = batches(inputs.corpus.training, work.batch_size, seed=work.seed, flip=False, augmenter=augmenter)
        return measurement.measure_steps(lambda: create_updater(measured_plan), images, seconds)

    if work.caption_augmentation:
        throughput = measure(inputs.make_augmenter(work.seed), measurement.STEPS_SECONDS)
        plain = measure(None, measurement.CAPTIONS_SECONDS)
        cost = max(0.0, plain.images_per_second / throughput.images_per_second - 1)
        plan = plan.with_changes(measured={"caption_augmentation_cost": cost})
    else:
        throughput = measure(None, measurement.STEPS_SECONDS)
    plan = finalize_plan(plan, throughput, options, start_time=start_time, final_cost_images=FINAL_COST_IMAGES)
    views_per_image = plan.work.total_images / max(1, len(inputs.corpus.training))
    return plan.with_changes(
        work={
            "flip": views_per_image >= FLIP_MIN_VIEWS if options.flip is None else options.flip,
            "balance": default_balance(inputs.corpus) if options.balance is None else options.balance,
        }
    )
