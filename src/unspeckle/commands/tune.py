"""`unspeckle train --lora`: from a Stable Diffusion and a folder to RUN/lora.safetensors, or on from where it was."""

import json
import time
from dataclasses import replace
from itertools import repeat

import torch
from rich.console import Console

from unspeckle import configuration, quantities
from unspeckle.corpus import Corpus, read_folder
from unspeckle.errors import InputError, prefix_with_option
from unspeckle.formats.lora.layer_names import LORA_LAYOUTS
from unspeckle.formats.stable_diffusion.add_ons import require_stable_diffusion
from unspeckle.formats.stable_diffusion.model import StableDiffusionModel
from unspeckle.model_io.device import resolve_device
from unspeckle.model_io.loading import load
from unspeckle.networks.unet import UNetConfig
from unspeckle.networks.vae import VAE
from unspeckle.schedule import SCHEDULES
from unspeckle.text.clip import CLIPTextEncoders
from unspeckle.training import cached_latents, checkpoint, measurement, memory
from unspeckle.training import plan as plans
from unspeckle.training.check_options import PRECISIONS, check_common_options, check_image_size, check_learning_rate
from unspeckle.training.command import EXIT_DONE, check_run_folder, lock_run, run_task, stop_on_signal
from unspeckle.training.inputs import decode_corpus
from unspeckle.training.lora_task import (
    LORA_VALIDATION_IMAGES,
    OUTPUT_FILE,
    SAMPLE_PROMPTS,
    SAMPLE_STEPS,
    LoraTask,
    LoraUpdater,
    cast_base_model,
)
from unspeckle.training.options import LoraOptions
from unspeckle.training.plan import LoraPlan
from unspeckle.training.planner import PrintLine, finalize_plan
from unspeckle.training.progress_view import plan_table

DEFAULT_BATCH_SIZE = 4
LEARNING_RATE = 1e-4
FINAL_COST_IMAGES = (
    LORA_VALIDATION_IMAGES * 8 / 3 + SAMPLE_PROMPTS * SAMPLE_STEPS * 2 / 3
)  # examination and samples at the end, in training pictures
MEASURE_SECONDS = 4.0  # seconds of steps that say how fast it is
MAX_RANK = 256  # of the rank


def run_lora_training(options: LoraOptions) -> int:
    """Do what was asked; returns the exit code. InputError where options, folder or model do not allow it."""
    start_time = time.monotonic()
    console = Console(stderr=True, quiet=options.quiet)
    plan = plans.load_plan(options.out, LoraPlan)
    if plan is None:
        _check_lora_options(options)
    else:
        plans.check_options_unchanged(plan, options)
        if (options.out / OUTPUT_FILE).exists() and not options.plan_only:
            console.print(
                f"this run is finished; draw with --lora {options.out / OUTPUT_FILE}", highlight=False, soft_wrap=True
            )
            print((options.out / OUTPUT_FILE).absolute())
            return EXIT_DONE
    check_run_folder(options, plan)
    listing = read_folder(options.folder, options.captions, options.caption, options.template)
    base_model = _load_base_model(options)
    size = plan.size if plan else base_model.card.size if options.size is None else quantities.parse_size(options.size)
    config = base_model.network.config
    assert isinstance(config, UNetConfig)
    check_image_size(size, config, base_model.autoencoder.downsampling_factor)
    with lock_run(options):
        is_resumed = plan is not None
        for line in () if is_resumed else listing.describe():
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        corpus = decode_corpus(listing, size, console)
        if plan is None:
            plan = _make_lora_plan(
                options, base_model, corpus, start_time, lambda line: console.print(line, highlight=False)
            )
        elif plan.base_hash != base_model.hash or plan.corpus_fingerprint != corpus.fingerprint:
            changed = options.from_model if plan.base_hash != base_model.hash else options.folder
            raise InputError(f"{changed}: changed since {options.out} began; give another --out")
        console.print(plan_table(plan, checkpoint.latest_step(options.out / "checkpoints") if is_resumed else 0))
        if options.plan_only:
            if options.json:
                print(json.dumps(configuration.to_json(plan)))
            return EXIT_DONE
        if not is_resumed:
            plan.save(options.out)
        if plan.threads != torch.get_num_threads() and plan.device == "cpu":
            torch.set_num_threads(plan.threads)
        base_model = cast_base_model(base_model, plan)
        latents = cached_latents.load_or_encode_latents(options.out, plan, corpus, base_model.autoencoder, console)
        task = LoraTask(plan, options.out, base_model, corpus, latents, _file_metadata(options, plan))
        return run_task(task, options, console, stop_on_signal())


def _check_lora_options(options: LoraOptions) -> None:
    """InputError for choices that cannot be, before any long work."""
    check_common_options(options)
    if options.out.resolve().is_relative_to(options.folder.resolve()):
        raise InputError(
            f"--out {options.out}: lies inside {options.folder}, whose pictures it would join; choose another"
        )
    if not 1 <= options.rank <= MAX_RANK:
        raise InputError(f"--rank {options.rank}: must lie between 1 and {MAX_RANK}; 8 is usual")
    if options.layout not in LORA_LAYOUTS:
        raise InputError(f"--layout {options.layout}: unknown; choose {' or '.join(LORA_LAYOUTS)}")
    check_learning_rate(options.learning_rate, "1e-4 is usual")


def _load_base_model(options: LoraOptions) -> StableDiffusionModel:
    """The Stable Diffusion that stays as it is. InputError where adapters for it are not learnt here."""
    with prefix_with_option("--from", options.from_model):
        model = load(options.from_model, prediction=options.prediction, trust_pickle=options.trust_pickle)
    base_model = require_stable_diffusion(model, "lora")
    config = base_model.network.config
    assert isinstance(config, UNetConfig)
    if config.concat_channels or config.guidance_width:
        kind = "an inpainting model" if config.concat_channels else "a consistency model (LCM)"
        raise InputError(f"--from {options.from_model}: is {kind}; fine-tune the plain one, its LoRA fits this one too")
    base_model.hash  # noqa: B018  # kept from here on, while the weights lie in another precision
    return base_model


def _make_lora_plan(
    options: LoraOptions, base_model: StableDiffusionModel, corpus: Corpus, start_time: float, print_line: PrintLine
) -> LoraPlan:
    """Measure, then decide all that was left open."""
    if options.device is None or options.precision is None:
        print_line("measuring this machine …")
    requested_device = None if options.device is None else resolve_device(options.device)
    device, precision = measurement.choose_device_and_precision(
        requested_device, PRECISIONS.get(options.precision or "")
    )
    network, text_encoder, autoencoder, denoiser = (
        base_model.network.config,
        base_model.text_encoder,
        base_model.autoencoder,
        base_model.denoiser,
    )
    assert (
        isinstance(network, UNetConfig) and isinstance(text_encoder, CLIPTextEncoders) and isinstance(autoencoder, VAE)
    )
    plan = LoraPlan(
        options=plans.options_to_json(options), corpus_fingerprint=corpus.fingerprint, size=corpus.training.size,
        preset=f"a LoRA of rank {options.rank} for {base_model.card.name}", network_config=network, text_config=text_encoder.config, steps=10**6,
        batch_size=options.batch_size or DEFAULT_BATCH_SIZE, seed=options.seed or 0, device=device, precision=precision, compile=False,
        threads=torch.get_num_threads(), parameter_count=0, images_per_second=0, total_seconds=0, memory_bytes=0, disk_bytes=0,
        autoencoder_config=autoencoder.config, schedule=configuration.kind_to_json(SCHEDULES, denoiser.schedule),
        prediction=denoiser.prediction, time_conditioning=str(denoiser.time_conditioning), learning_rate=options.learning_rate or LEARNING_RATE,
        ema_widths=(), base_hash=base_model.hash, rank=options.rank, train_text_encoder=options.train_text_encoder, layout=options.layout,
        guidance_scale=base_model.card.guidance_scale,
    )  # fmt: skip
    base_model = cast_base_model(base_model, plan)
    plan = _with_parameter_count(plan, base_model)
    plan = memory.fit_batch_size(plan, options.batch_size is not None, print_line)
    start = time.monotonic()
    image_count = min(plan.batch_size, len(corpus.training))
    x = cached_latents.encode_images_alone(corpus.training, base_model.autoencoder, range(image_count))
    encode_seconds = (time.monotonic() - start) / image_count * (len(corpus.training) + len(corpus.validation))
    x = x[torch.arange(plan.batch_size) % image_count]
    captions = corpus.training.first_captions(torch.arange(plan.batch_size) % image_count)
    sample_batch = cached_latents.LatentBatch(x, captions, torch.arange(plan.batch_size))
    updaters: list[LoraUpdater] = []

    def create_updater(plan: LoraPlan) -> LoraUpdater:
        updaters.append(LoraUpdater(plan, base_model))
        return updaters[-1]

    throughput = measurement.measure_steps(create_updater, plan, repeat(sample_batch), MEASURE_SECONDS)
    for updater in updaters:
        updater.detach_adapters()
    return finalize_plan(plan, throughput, options, start_time - encode_seconds, FINAL_COST_IMAGES)


def _with_parameter_count(plan: LoraPlan, base_model: StableDiffusionModel) -> LoraPlan:
    """The plan with the number of parameters that learn."""
    updater = LoraUpdater(plan, base_model)
    updater.detach_adapters()
    return replace(plan, parameter_count=sum(p.numel() for p in updater.parameters()))


def _file_metadata(options: LoraOptions, plan: LoraPlan) -> dict[str, str]:
    """What the file's metadata tell besides, without paths."""
    values = {**plan.options, "from_model": "MODEL"}
    values = {name: value for name, value in values.items() if (name, value) != ("captions", "auto")}
    options_text = filter(None, (plans.format_option(name, value) for name, value in values.items()))
    return {
        "modelspec.title": options.out.absolute().name,
        "ss_network_alpha": str(plan.rank),
        **({"modelspec.license": options.license} if options.license else {}),
        "unspeckle.recipe": " ".join(["unspeckle train FOLDER --lora --out RUN", *options_text]),
    }
