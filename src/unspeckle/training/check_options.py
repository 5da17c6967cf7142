"""What a person may not choose, said before any long work."""

import torch

from unspeckle import quantities
from unspeckle.errors import InputError
from unspeckle.networks import Config
from unspeckle.presets import preset
from unspeckle.training.options import Options, TrainOptions
from unspeckle.training.plan import OPTIMIZERS

LEAST = 16  # pixels of a side: no smaller pictures are drawn
PRECISIONS = {"float32": "float32", "fp32": "float32", "bfloat16": "bfloat16", "bf16": "bfloat16"}


def check(options: TrainOptions) -> None:
    """InputError for choices that cannot be, before any long work."""
    check_common(options)
    if options.preset is not None and options.size is not None:
        size = quantities.parse_size(options.size)
        fits(size, preset(options.preset).at(size), 1)
    elif options.preset is not None:
        preset(options.preset)
    if options.out.resolve().is_relative_to(options.folder.resolve()):
        raise InputError(
            f"--out {options.out}: lies inside {options.folder}, whose pictures it would join; choose another"
        )
    if options.optimizer not in (None, *OPTIMIZERS):
        raise InputError(f"--optimizer {options.optimizer}: unknown; choose {' or '.join(OPTIMIZERS)}")
    learning_rate(options.learning_rate, "4e-3 is usual with muon, 1e-3 with adamw")
    if options.space not in (None, "pixels", "latents"):
        raise InputError(f"--space {options.space}: unknown; choose pixels or latents")
    if options.space is not None and options.from_model is not None:
        raise InputError("--space and --from exclude each other: a model brings its own; leave one of them out")
    if options.balance is not None and not 0 <= options.balance <= 1:
        raise InputError(
            f"--balance {options.balance:g}: must lie between 0, as in the folder, and 1, all captions alike"
        )
    if options.preset is not None and options.from_model is not None:
        raise InputError("--preset and --from exclude each other: a model brings its own size; leave one of them out")


def check_common(options: Options) -> None:
    """The same for what all runs have."""
    if [options.seconds, options.pictures, options.steps].count(None) != 2:
        raise InputError("say how long to train by exactly one of --for 30m, --pictures 2M, --steps N")
    if options.seed is not None and not 0 <= options.seed < 2**64:
        raise InputError(f"--seed {options.seed}: must lie between 0 and {2**64 - 1}")
    if options.precision is not None and options.precision not in PRECISIONS:
        raise InputError(f"--precision {options.precision}: unknown; choose one of {', '.join(PRECISIONS)}")
    for flag, count in (("--batch", options.batch), ("--steps", options.steps), ("--pictures", options.pictures)):
        if count is not None and count < 1:
            raise InputError(f"{flag} {count}: must be at least 1")
    if options.device is not None and not usable(options.device):
        raise InputError(f"--device {options.device}: cannot be used here; leave it out, or take cpu")


def learning_rate(rate: float | None, usual: str) -> None:
    """InputError where nothing can be learnt at that rate."""
    if rate is not None and not 0 < rate <= 1:
        raise InputError(f"--learning-rate {rate:g}: must lie between 0 and 1; {usual}")


def usable(device: str) -> bool:
    """Whether this machine has the device."""
    try:
        torch.zeros(1, device=device).item()  # which the device "meta" cannot
    except (RuntimeError, AssertionError):
        return False
    return True


def fits(size: tuple[int, int], network: Config, shrink: int) -> None:
    """InputError, naming the nearest size that does, where autoencoder and network cannot halve the pictures evenly, or
    where nothing so small is drawn."""
    factor = network.factor * shrink
    least = -(-LEAST // factor) * factor
    if any(side % factor or side < least for side in size):
        near = "x".join(str(max(least, round(side / factor) * factor)) for side in size)
        raise InputError(
            f"--size {size[0]}x{size[1]}: sides must be multiples of {factor} here, at least {least}; try {near}"
        )
