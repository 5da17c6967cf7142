"""Which choices of a person cannot be, found before any long work."""

from unspeckle import quantities
from unspeckle.errors import InputError
from unspeckle.model_io.device import resolve_device
from unspeckle.networks import NetworkConfig
from unspeckle.presets import get_preset
from unspeckle.training.options import LoraOptions, Options, TrainOptions
from unspeckle.training.plan import OPTIMIZERS

# The shortest side of an image, in pixels
MIN_SIDE = 16
PRECISIONS = {
    "float32": "float32",
    "fp32": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
}
SPACES = ("pixels", "latents")


def check_train_options(options: TrainOptions) -> None:
    """InputError for options of `train` that cannot be."""
    check_common_options(options)
    check_out_of_corpus(options)
    if options.preset is not None and options.size is not None:
        size = quantities.parse_size(options.size)
        check_image_size(size, get_preset(options.preset).for_size(size), 1)
    elif options.preset is not None:
        get_preset(options.preset)
    if options.optimizer not in (None, *OPTIMIZERS):
        raise InputError(f" {options.optimizer}: unknown; choose {' or '.join(OPTIMIZERS)}", "optimizer")
    check_learning_rate(options.learning_rate, "4e-3 is usual with muon, 1e-3 with adamw")
    if options.space not in (None, *SPACES):
        raise InputError(f" {options.space}: unknown; choose {' or '.join(SPACES)}", "space")
    if options.balance is not None and not 0 <= options.balance <= 1:
        raise InputError(
            f" {options.balance:g}: must be between 0 (each image equally often) and 1 (each caption equally often)",
            "balance",
        )
    for name, value in (("space", options.space), ("preset", options.preset)):
        if value is not None and options.from_model is not None:
            raise InputError(f" and --from exclude each other: a model has its own {name}; leave one of them out", name)


def check_common_options(options: Options) -> None:
    """InputError for options that all commands of training have."""
    if [options.seconds, options.images, options.steps].count(None) != 2:
        raise InputError("say how long to train by exactly one of --for 30m, --images 2M and --steps N")
    if options.seed is not None and not 0 <= options.seed < 2**64:
        raise InputError(f" {options.seed}: must be between 0 and {2**64 - 1}", "seed")
    if options.precision is not None and options.precision not in PRECISIONS:
        raise InputError(f" {options.precision}: unknown; choose float32, bfloat16 or float16", "precision")
    for name in ("batch_size", "steps", "images"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f" {value}: must be at least 1", name)
    resolve_device(options.device)


def check_output_options(options: Options) -> None:
    """InputError for --json without --plan: only the plan is printed as JSON."""
    if options.json and not options.plan_only:
        raise InputError(": has an effect only with --plan; add it, or leave --json out", "json")


def check_out_of_corpus(options: TrainOptions | LoraOptions) -> None:
    """InputError if RUN would lie in the folder of images, which its samples would then join."""
    if options.out.resolve().is_relative_to(options.folder.resolve()):
        raise InputError(f" {options.out}: lies inside {options.folder}, whose images it would join", "out")


def check_learning_rate(value: float | None, hint: str) -> None:
    """InputError for a learning rate at which nothing can be learned."""
    if value is not None and not 0 < value <= 1:
        raise InputError(f" {value:g}: must be greater than 0, and at most 1; {hint}", "learning_rate")


def check_image_size(size: tuple[int, int], network_config: NetworkConfig, autoencoder_factor: int) -> None:
    """InputError naming the nearest size that is possible, if autoencoder and network cannot halve images of this size
    (W, H) evenly, or if it is too small."""
    factor = network_config.size_multiple * autoencoder_factor
    min_side = -(-MIN_SIDE // factor) * factor
    if any(side % factor or side < min_side for side in size):
        nearest = "x".join(str(max(min_side, round(side / factor) * factor)) for side in size)
        raise InputError(
            f" {size[0]}x{size[1]}: sides must be multiples of {factor} here, at least {min_side}; try {nearest}",
            "size",
        )
