"""What a person may not choose, said before any long work."""

import torch

from unspeckle import quantities
from unspeckle.errors import InputError
from unspeckle.networks import NetworkConfig
from unspeckle.presets import get_preset
from unspeckle.training.options import Options, TrainOptions
from unspeckle.training.plan import OPTIMIZERS

MIN_SIDE = 16  # pixels of a side: no smaller pictures are drawn
PRECISIONS = {"float32": "float32", "fp32": "float32", "bfloat16": "bfloat16", "bf16": "bfloat16"}


def check_train_options(options: TrainOptions) -> None:
    """InputError for choices that cannot be, before any long work."""
    check_common_options(options)
    if options.preset is not None and options.size is not None:
        size = quantities.parse_size(options.size)
        check_image_size(size, get_preset(options.preset).for_size(size), 1)
    elif options.preset is not None:
        get_preset(options.preset)
    if options.out.resolve().is_relative_to(options.folder.resolve()):
        raise InputError(
            f"--out {options.out}: lies inside {options.folder}, whose pictures it would join; choose another"
        )
    if options.optimizer not in (None, *OPTIMIZERS):
        raise InputError(f"--optimizer {options.optimizer}: unknown; choose {' or '.join(OPTIMIZERS)}")
    check_learning_rate(options.learning_rate, "4e-3 is usual with muon, 1e-3 with adamw")
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


def check_common_options(options: Options) -> None:
    """The same for what all runs have."""
    if [options.seconds, options.images, options.steps].count(None) != 2:
        raise InputError("say how long to train by exactly one of --for 30m, --pictures 2M, --steps N")
    if options.seed is not None and not 0 <= options.seed < 2**64:
        raise InputError(f"--seed {options.seed}: must lie between 0 and {2**64 - 1}")
    if options.precision is not None and options.precision not in PRECISIONS:
        raise InputError(f"--precision {options.precision}: unknown; choose one of {', '.join(PRECISIONS)}")
    for option, value in (("--batch", options.batch_size), ("--steps", options.steps), ("--pictures", options.images)):
        if value is not None and value < 1:
            raise InputError(f"{option} {value}: must be at least 1")
    if options.device is not None and not is_device_usable(options.device):
        raise InputError(f"--device {options.device}: cannot be used here; leave it out, or take cpu")


def check_learning_rate(value: float | None, hint: str) -> None:
    """InputError where nothing can be learnt at that rate."""
    if value is not None and not 0 < value <= 1:
        raise InputError(f"--learning-rate {value:g}: must lie between 0 and 1; {hint}")


def is_device_usable(device: str) -> bool:
    """Whether this machine has the device."""
    try:
        torch.zeros(1, device=device).item()  # which the device "meta" cannot
    except (RuntimeError, AssertionError):
        return False
    return True


def check_image_size(size: tuple[int, int], network_config: NetworkConfig, autoencoder_factor: int) -> None:
    """InputError, naming the nearest size that does, where autoencoder and network cannot halve the pictures evenly, or
    where nothing so small is drawn."""
    factor = network_config.size_multiple * autoencoder_factor
    min_side = -(-MIN_SIDE // factor) * factor
    if any(side % factor or side < min_side for side in size):
        nearest = "x".join(str(max(min_side, round(side / factor) * factor)) for side in size)
        raise InputError(
            f"--size {size[0]}x{size[1]}: sides must be multiples of {factor} here, at least {min_side}; try {nearest}"
        )
