"""Whether torch.compile is used, where the options leave it open."""

from collections.abc import Callable

from unspeckle.training import measurement
from unspeckle.training.measurement import PrintLine, Throughput
from unspeckle.training.options import TrainOptions
from unspeckle.training.plan import Plan

# Seconds of training below which compiling does not pay: see docs/recipe.md
COMPILE_MIN_SECONDS = {"cpu": 3600.0, "cuda": 600.0}
# Compiled steps must be faster by this factor
COMPILE_MIN_SPEEDUP = 1.05


def should_compile(options: TrainOptions, plan: Plan, throughput: Throughput, print_line: PrintLine) -> bool:
    """Whether compiling is worth a try: if it was asked for, or if there is time; and if there is a compiler."""
    if options.compile is False:
        return False
    images = options.images or (options.steps or 0) * plan.work.batch_size
    seconds = options.seconds or images / throughput.images_per_second
    min_seconds = COMPILE_MIN_SECONDS.get(plan.compute.device.split(":")[0], COMPILE_MIN_SECONDS["cuda"])
    if options.compile is None and seconds < min_seconds:
        return False
    if not measurement.has_compiler():
        print_line("no C++ compiler found, so torch.compile is not used (on Debian: apt-get install g++)")
        return False
    return True


def try_compile(
    plan: Plan, eager: Throughput, measure: Callable[[Plan], Throughput], *, force: bool, print_line: PrintLine
) -> tuple[Plan, Throughput]:
    """The plan with compiled steps if these are faster, measured, or if they work (force)."""
    print_line("compiling the network, to see whether that is faster …")
    compiled_plan = plan.with_changes(compute={"compile": True})
    try:
        compiled = measure(compiled_plan)
    except Exception as error:
        # Whatever a compiler can do wrong
        print_line(f"torch.compile failed ({type(error).__name__}), so it is not used")
        return plan, eager
    use_compiled = force or compiled.images_per_second > COMPILE_MIN_SPEEDUP * eager.images_per_second
    print_line(
        f"compiled {compiled.images_per_second:.1f} images/s, eager {eager.images_per_second:.1f}: "
        f"{'compiled' if use_compiled else 'eager'} steps are used"
    )
    return (compiled_plan, compiled) if use_compiled else (plan, eager)
