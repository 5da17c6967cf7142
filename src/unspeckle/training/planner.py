"""From a person's options and a measured machine to a plan."""

import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from unspeckle.configuration import kind_to_json
from unspeckle.corpus import Batch, Corpus, batches
from unspeckle.errors import InputError
from unspeckle.model import Model
from unspeckle.networks import NetworkConfig
from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.networks.latent_autoencoder import LatentAutoencoder, LatentAutoencoderConfig
from unspeckle.networks.transformer import TransformerConfig
from unspeckle.networks.unet import UNetConfig
from unspeckle.presets import PRESETS, UNET_PRESETS, Preset, get_preset
from unspeckle.schedule import SCHEDULES
from unspeckle.text.text_encoder import TextEncoderConfig
from unspeckle.text.tokenizer import Tokenizer
from unspeckle.training import encoded_corpus, measurement, memory
from unspeckle.training.check_options import PRECISIONS, check_image_size, check_train_options
from unspeckle.training.cost import UNIFORM_COST, ImageCost, StepCost, count_text_steps
from unspeckle.training.master_weights import init_modules
from unspeckle.training.options import Options, TrainOptions
from unspeckle.training.plan import Plan, PlanT, options_to_json

IMAGES_PER_PARAMETER = 0.02  # to learn from, before a larger network pays: of few trials, see docs/recipe.md
COMPILE_MIN_SECONDS = {
    "cpu": 3600.0,
    "cuda": 600.0,
}  # seconds of training below which it is not tried: see docs/recipe.md
TIME_RESERVE = 0.05  # share of the time for held-out losses, samples and checkpoints
LATENT_SPACE_MIN_SECONDS, LATENT_SPACE_MIN_IMAGES = 600.0, 100_000  # seconds or pictures from which latents pay
AUTOENCODER_STEP_FRACTION = 0.2  # of the network's steps, which the autoencoder learns for beforehand
PIXEL_TIME_MEAN_STD, LATENT_TIME_MEAN_STD = (
    (0.3, 1.0),
    (0.8, 1.2),
)  # of few and smooth numbers, words tell at more noise
FLIP_MIN_VIEWS = 4.0  # times that a picture is seen, from which mirrored ones are as good as new ones
FOLDER_BALANCE = 0.5  # of captions that are the names of folders
FINAL_COST_IMAGES = 1300.0  # forward passes at the end, in training pictures: choosing an average, the last samples

PrintLine = Callable[[str], None]


def make_train_plan(
    options: TrainOptions, size: tuple[int, int], corpus: Corpus, tokenizer: Tokenizer, autoencoder: Autoencoder,
    base_model: Model | None, start_time: float, print_line: PrintLine,
) -> Plan:  # fmt: skip
    """Measure, then decide all that was left open. `started` is the time.monotonic() from which `--for` counts."""
    check_train_options(options)
    if options.device is None or options.precision is None:
        print_line("measuring this machine …")
    device, precision = measurement.choose_device_and_precision(options.device, PRECISIONS.get(options.precision or ""))
    seed = 0 if options.seed is None else options.seed
    batch = options.batch_size or (256 if device.startswith("cuda") else 32)

    def training_batches(plan: Plan) -> Iterator[Batch]:
        return batches(corpus.training, plan.batch_size, seed=seed, start=0)

    trains_autoencoder = isinstance(autoencoder, LatentAutoencoder) and base_model is None

    def build_plan(preset_name: str, print_line: PrintLine) -> Plan:
        network, text = _model_configs_for(PRESETS.get(preset_name), size, tokenizer, autoencoder, base_model)
        check_image_size(size, network, autoencoder.downsampling_factor)
        plan = Plan(
            options=options_to_json(options), corpus_fingerprint=corpus.fingerprint, size=size, preset=preset_name, network_config=network, text_config=text,
            steps=10**6, batch_size=batch, seed=seed, device=device, precision=precision, compile=False,
            threads=torch.get_num_threads(), parameter_count=0, images_per_second=0, total_seconds=0, memory_bytes=0, disk_bytes=0,
            autoencoder_config=autoencoder.config, autoencoder_steps=int(trains_autoencoder),
            **_optimizer_settings(options, precision), **_inherited_settings(base_model),
            time_mean_std=LATENT_TIME_MEAN_STD if isinstance(autoencoder, LatentAutoencoder) else PIXEL_TIME_MEAN_STD,
        )  # fmt: skip
        with torch.device("meta"):
            plan = replace(plan, parameter_count=sum(p.numel() for p in init_modules(plan).parameters()))
        return memory.fit_batch_size(plan, options.batch_size is not None, print_line)

    def measure_images_per_second(preset_name: str) -> float:
        plan = build_plan(preset_name, lambda line: None)
        return measurement.measure_training(plan, training_batches(plan), tokenizer, autoencoder, 0.0).images_per_second

    if base_model is not None:
        preset_name = "as --from"
    elif options.preset is not None:
        preset_name = get_preset(options.preset).name
    else:
        preset_name = _choose_preset(options, size, batch, tokenizer, autoencoder, measure_images_per_second)
    plan = build_plan(preset_name, print_line)
    throughput = measurement.measure_training(plan, training_batches(plan), tokenizer, autoencoder, 4.0)
    expected_seconds = (
        options.seconds or (options.images or (options.steps or 0) * plan.batch_size) / throughput.images_per_second
    )
    if _should_compile(options, plan.device, expected_seconds, print_line):
        plan, throughput = _try_compile(
            plan, throughput, training_batches(plan), tokenizer, autoencoder, print_line, options.compile is True
        )
    has_text_stage = base_model is None and plan.network_config.coarse_predictor_layers > 0
    cost_per_image = _measure_image_cost(
        plan, throughput, training_batches(plan), tokenizer, autoencoder, has_text_stage
    )
    if trains_autoencoder:
        autoencoder_throughput = measurement.measure_autoencoder_training(plan, training_batches(plan), 3.0)
        cost_per_image = cost_per_image._replace(
            autoencoder_seconds=AUTOENCODER_STEP_FRACTION / autoencoder_throughput.images_per_second
        )
        throughput = throughput._replace(memory_bytes=max(throughput.memory_bytes, autoencoder_throughput.memory_bytes))

    def plan_for_cost(image_cost: ImageCost, extra_seconds: float) -> Plan:
        adjusted_throughput = throughput._replace(images_per_second=1 / image_cost.network_seconds)
        finished_plan = finalize_plan(
            plan, adjusted_throughput, options, start_time, FINAL_COST_IMAGES, image_cost.to_step_cost(), extra_seconds
        )
        views_per_image = finished_plan.total_images / max(1, len(corpus.training))
        return replace(
            finished_plan,
            flip=views_per_image >= FLIP_MIN_VIEWS if options.flip is None else options.flip,
            balance=default_balance(corpus) if options.balance is None else options.balance,
            autoencoder_steps=math.ceil(AUTOENCODER_STEP_FRACTION * finished_plan.steps) if trains_autoencoder else 0,
            text_steps=count_text_steps(finished_plan.steps) if has_text_stage else 0,
        )

    uncached_plan = plan_for_cost(cost_per_image, 0.0)
    distinct_images = len(corpus.training) * (2 if uncached_plan.flip else 1)  # pictures, mirrored ones among them
    cache_bytes = (
        distinct_images * encoded_corpus.latent_cache_bytes(corpus.training, autoencoder) // len(corpus.training)
    )
    if not (
        isinstance(autoencoder, LatentAutoencoder)
        and encoded_corpus.latent_cache_fits(uncached_plan, distinct_images, cache_bytes)
    ):
        return uncached_plan
    encode_seconds, encoded_split = measurement.measure_encoding(plan, corpus.training, autoencoder)
    encoded_batches = batches(encoded_split, plan.batch_size, seed=seed, flip=False)
    cached_cost = _measure_image_cost(
        plan,
        measurement.measure_training(plan, encoded_batches, tokenizer, autoencoder, 3.0),
        encoded_batches,
        tokenizer,
        autoencoder,
        has_text_stage,
    )
    if not encoded_corpus.latent_cache_pays(
        uncached_plan.total_images,
        distinct_images,
        encode_seconds,
        cost_per_image.network_seconds - cached_cost.network_seconds,
    ):
        return uncached_plan
    cached_plan = plan_for_cost(
        cached_cost._replace(autoencoder_seconds=cost_per_image.autoencoder_seconds), distinct_images * encode_seconds
    )
    return replace(
        cached_plan, flip=uncached_plan.flip, cache_latents=True, memory_bytes=cached_plan.memory_bytes + cache_bytes
    )


def _measure_image_cost(
    plan: Plan, throughput: measurement.Throughput, training_batches: Iterator[Batch], tokenizer: Tokenizer, autoencoder: Autoencoder,
    has_text_stage: bool,
) -> ImageCost:  # fmt: skip
    """What a picture takes as measured, and what it takes where the words learn alone, if they do."""
    cost = ImageCost(1 / throughput.images_per_second)
    if not has_text_stage:
        return cost
    text_plan = replace(plan, text_steps=plan.steps, compile=False)
    return cost._replace(
        text_seconds=1
        / measurement.measure_training(text_plan, training_batches, tokenizer, autoencoder, 2.0).images_per_second
    )


def default_balance(corpus: Corpus) -> float:
    """Where folders are classes, as many as there happen to be of each: half-way to all alike."""
    return FOLDER_BALANCE if set(corpus.summary["sources"]) == {"folders"} else 0.0


def _optimizer_settings(options: TrainOptions, precision: str) -> dict[str, Any]:
    """The optimiser and its rates. The rate asked for is Muon's where that is the optimiser; what AdamW takes beside
    it keeps its share of that."""
    optimizer = options.optimizer or ("muon" if precision == "bfloat16" else "adamw")
    default_learning_rate = Plan.muon_learning_rate if optimizer == "muon" else Plan.learning_rate
    ratio = (options.learning_rate or default_learning_rate) / default_learning_rate
    return {
        "optimizer": optimizer,
        "learning_rate": ratio * Plan.learning_rate,
        "muon_learning_rate": ratio * Plan.muon_learning_rate,
    }


def _inherited_settings(base_model: Model | None) -> dict[str, Any]:
    """What the origin's network predicts, on which schedule: it goes on so."""
    if base_model is None:
        return {}
    denoiser = base_model.denoiser
    return {
        "schedule": kind_to_json(SCHEDULES, denoiser.schedule),
        "prediction": denoiser.prediction,
        "time_conditioning": denoiser.time_conditioning,
    }


def choose_space(options: TrainOptions, size: tuple[int, int]) -> str:
    """Where to denoise, "pixels" or "latents": where the person said nothing, in latents if there is time to learn them
    and the pictures are large enough."""
    if options.space is not None:
        return options.space
    has_enough_training = (options.seconds or 0) >= LATENT_SPACE_MIN_SECONDS or (
        options.images or 0
    ) >= LATENT_SPACE_MIN_IMAGES
    return (
        "latents" if has_enough_training and min(size) >= 64 and _latent_space_fits(options.preset, size) else "pixels"
    )


def _latent_space_fits(preset_name: str | None, size: tuple[int, int]) -> bool:
    """Whether the preset, or one of those to choose from, can denoise the latents of such pictures."""
    factor, (width, height) = LatentAutoencoderConfig().downsampling_factor, size
    network_configs = [
        get_preset(name).for_size((width // factor, height // factor))
        for name in ([preset_name] if preset_name else UNET_PRESETS)
    ]
    return any(math.gcd(*size) % (factor * config.size_multiple) == 0 for config in network_configs)


def network_config_for(network_preset: Preset, size: tuple[int, int], autoencoder: Autoencoder) -> NetworkConfig:
    """The preset's network for the latents of pictures of that size."""
    width, height = size
    return network_preset.for_size(
        (width // autoencoder.downsampling_factor, height // autoencoder.downsampling_factor),
        autoencoder.latent_channels,
    )


def _model_configs_for(
    network_preset: Preset | None,
    size: tuple[int, int],
    tokenizer: Tokenizer,
    autoencoder: Autoencoder,
    base_model: Model | None,
) -> tuple[NetworkConfig, TextEncoderConfig]:
    if base_model is not None:
        base_configs = base_model.network.config, base_model.text_encoder.config
        assert isinstance(base_configs[0], UNetConfig | TransformerConfig) and isinstance(
            base_configs[1], TextEncoderConfig
        )
        return base_configs[0], base_configs[1]
    assert network_preset is not None
    network_config = network_config_for(network_preset, size, autoencoder)
    text_config = TextEncoderConfig(
        tokenizer.vocab_size, tokenizer.context_length, network_config.text_width, network_preset.text_layers
    )
    return network_config, text_config


def _choose_preset(
    options: TrainOptions, size: tuple[int, int], batch_size: int, tokenizer: Tokenizer, autoencoder: Autoencoder,
    measure_images_per_second: Callable[[str], float],
) -> str:  # fmt: skip
    """The largest preset that will see PICTURES_A_PARAMETER pictures for each of its parameters."""
    reference_preset = "tiny"
    network_configs = {name: network_config_for(PRESETS[name], size, autoencoder) for name in UNET_PRESETS}
    autoencoder_factor, input_size = (
        autoencoder.downsampling_factor,
        (size[0] // autoencoder.downsampling_factor, size[1] // autoencoder.downsampling_factor),
    )
    names = [
        name
        for name in UNET_PRESETS
        if all(side % (autoencoder_factor * network_configs[name].size_multiple) == 0 for side in size)
    ]
    if not names:
        check_image_size(size, network_configs[reference_preset], autoencoder_factor)
    flops = {
        name: measurement.count_training_flops(network_configs[name], input_size, tokenizer.context_length)
        for name in {*names, reference_preset}
    }
    reference_images_per_second = measure_images_per_second(reference_preset) if options.seconds else 0.0
    best = names[0]
    for name in names:
        images = options.images or (options.steps or 0) * batch_size
        if options.seconds:  # larger networks run nearer to the machine's peak
            images = round(
                options.seconds * reference_images_per_second * (flops[reference_preset] / flops[name]) ** 0.85
            )
        if images >= IMAGES_PER_PARAMETER * PRESETS[name].million_parameters * 1e6:
            best = name
    return best


def _should_compile(options: TrainOptions, device: str, seconds: float, print_line: PrintLine) -> bool:
    min_seconds = COMPILE_MIN_SECONDS.get(device.split(":")[0], COMPILE_MIN_SECONDS["cuda"])
    if options.compile is False or (options.compile is None and seconds < min_seconds):
        return False
    if not measurement.has_compiler():
        print_line("no C++ compiler found, so torch.compile is not used (on Debian: apt-get install g++)")
        return False
    return True


def _try_compile(
    plan: Plan, eager_throughput: measurement.Throughput, training_batches: Iterator[Batch], tokenizer: Tokenizer, autoencoder: Autoencoder,
    print_line: PrintLine, force: bool,
) -> tuple[Plan, measurement.Throughput]:  # fmt: skip
    """The plan with compiled steps if these are the faster ones, measured."""
    print_line("compiling the network, to see whether it pays …")
    try:
        compiled_throughput = measurement.measure_training(
            replace(plan, compile=True), training_batches, tokenizer, autoencoder, 4.0
        )
    except Exception as error:  # whatever a compiler can do wrong
        print_line(f"torch.compile failed ({type(error).__name__}), so it is not used")
        return plan, eager_throughput
    use_compiled = force or compiled_throughput.images_per_second > 1.05 * eager_throughput.images_per_second
    print_line(
        f"compiled {compiled_throughput.images_per_second:.1f} pictures/s, eager {eager_throughput.images_per_second:.1f}: {'compiled' if use_compiled else 'eager'} it is"
    )
    return (replace(plan, compile=True), compiled_throughput) if use_compiled else (plan, eager_throughput)


def finalize_plan(
    plan: PlanT, throughput: measurement.Throughput, options: Options, start_time: float, final_cost_images: float, step_cost: StepCost = UNIFORM_COST,
    extra_seconds: float = 0.0,
) -> PlanT:  # fmt: skip
    """The plan with its number of steps. closing: the work after the last one, in training pictures; cost: what the
    steps take; before: seconds of other work."""
    plan = replace(
        plan,
        flops_per_image=measurement.count_flops_per_image(plan),
        peak_flops=measurement.measure_peak_flops(plan.device, plan.precision),
    )
    elapsed = time.monotonic() - start_time + extra_seconds
    if options.steps:
        steps = options.steps
    elif options.images:
        steps = -(-options.images // plan.batch_size)
    else:
        assert options.seconds is not None
        recompile_seconds = 0.3 * throughput.startup_seconds  # what was compiled is found again, but not for nothing
        remaining = (
            options.seconds
            - elapsed
            - min(final_cost_images / throughput.images_per_second, 0.2 * options.seconds)
            - recompile_seconds
        ) * (1 - TIME_RESERVE)
        if remaining <= 0:
            raise InputError(f"--for {options.seconds:g}s: was used up by preparing; give more time, or --steps")
        steps = step_cost.steps_within(remaining * throughput.images_per_second / plan.batch_size)
    seconds = options.seconds or elapsed + step_cost.total(steps) * plan.batch_size / throughput.images_per_second * (
        1 + TIME_RESERVE
    )
    disk_bytes = _run_disk_bytes(plan)
    free_disk_bytes = shutil.disk_usage(_existing_ancestor(options)).free
    if disk_bytes > free_disk_bytes:
        raise InputError(
            f"{options.out}: the run needs {disk_bytes / 2**20:,.0f} MiB, {free_disk_bytes / 2**20:,.0f} MiB are free; "
            "free some, or give an --out elsewhere"
        )
    return replace(
        plan, steps=steps, warmup_steps=max(1, min(200, steps // 20)), images_per_second=throughput.images_per_second, total_seconds=seconds,
        memory_bytes=throughput.memory_bytes, disk_bytes=disk_bytes, mfu=plan.compute_mfu(throughput.images_per_second),
    )  # fmt: skip


def _run_disk_bytes(plan: Plan) -> int:
    """Bytes of the model and of three checkpoints, a third while it is written, of the network and of an autoencoder
    that learns; one that has learnt is kept once."""
    autoencoder_parameter_count = memory.count_autoencoder_parameters(plan)
    return 4 * (
        plan.parameter_count * (3 * (3 + len(plan.ema_widths)) + 1)
        + autoencoder_parameter_count * (3 * 3 + 1 if plan.autoencoder_steps else 2)
    )


def _existing_ancestor(options: Options) -> str:
    path = options.out.absolute()
    while not path.exists():
        path = path.parent
    return str(path)
