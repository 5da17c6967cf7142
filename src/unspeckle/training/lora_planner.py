"""The plan of `train --lora`: what the options leave open is decided by measuring training steps on this machine."""

import time
from itertools import repeat

import torch

from unspeckle.corpus.splits import Corpus
from unspeckle.formats.stable_diffusion.model import StableDiffusionModel
from unspeckle.networks.unet import UNetConfig
from unspeckle.networks.vae import VAE
from unspeckle.text.clip import CLIPTextEncoders
from unspeckle.training import measurement, memory
from unspeckle.training.budget import finalize_plan
from unspeckle.training.cached_latents import LatentBatch, encode_images_alone
from unspeckle.training.lora_task import SAMPLE_PROMPTS, SAMPLE_STEPS, VALIDATION_IMAGES, cast_base_model
from unspeckle.training.lora_updater import LoraUpdater
from unspeckle.training.measurement import PrintLine
from unspeckle.training.options import LoraOptions
from unspeckle.training.plan import (
    LORA_OBJECTIVE,
    ComputePlan,
    LoraPlan,
    LoraSettings,
    ModelPlan,
    OptimizerPlan,
    WorkPlan,
)
from unspeckle.training.plan_file import options_to_json
from unspeckle.training.train_planner import inherit_prediction
from unspeckle.training.validation import NOISE_LEVELS

DEFAULT_BATCH_SIZE = 4
LEARNING_RATE = 1e-4
# Validation and samples at the end, in training images: a forward pass is a third of a training image, and samples are
# drawn with guidance
FINAL_COST_IMAGES = VALIDATION_IMAGES * NOISE_LEVELS / 3 + SAMPLE_PROMPTS * SAMPLE_STEPS * 2 / 3
# Stands for the number of steps until that is known
_MANY_STEPS = 10**6


def make_lora_plan(
    options: LoraOptions,
    base_model: StableDiffusionModel,
    corpus: Corpus,
    *,
    start_time: float,
    print_line: PrintLine,
) -> LoraPlan:
    """Measure, then decide all that the options leave open. The base model is then in the precision of the plan.

    start_time: the time.monotonic() from which --for counts."""
    compute = measurement.choose_compute(options, print_line)
    plan = _plan_adapters(options, base_model, corpus, compute)
    base_model = cast_base_model(base_model, compute)
    plan = plan.with_changes(measured={"parameter_count": _count_parameters(plan, base_model)})
    plan = memory.fit_batch_size(plan, options.batch_size is not None, print_line)
    batch, seconds_per_image = _encode_sample_batch(plan, base_model, corpus)
    encode_seconds = seconds_per_image * (len(corpus.training) + len(corpus.validation))
    updater = LoraUpdater(measurement.without_learning(plan), base_model)
    throughput = measurement.measure_steps(lambda: updater, repeat(batch), measurement.STEPS_SECONDS)
    updater.detach_adapters()
    return finalize_plan(
        plan, throughput, options, start_time=start_time - encode_seconds, final_cost_images=FINAL_COST_IMAGES
    )


def _plan_adapters(
    options: LoraOptions, base_model: StableDiffusionModel, corpus: Corpus, compute: ComputePlan
) -> LoraPlan:
    """The plan, whose number of steps is not yet known."""
    network, text_encoder, autoencoder = base_model.network.config, base_model.text_encoder, base_model.autoencoder
    assert isinstance(network, UNetConfig)
    assert isinstance(text_encoder, CLIPTextEncoders) and isinstance(autoencoder, VAE)
    return LoraPlan(
        options=options_to_json(options),
        corpus_fingerprint=corpus.fingerprint,
        model=ModelPlan(
            size=corpus.training.size,
            preset=f"a LoRA of rank {options.rank} for {base_model.card.name}",
            network=network,
            text_encoder=text_encoder.config,
            autoencoder=autoencoder.config,
            **inherit_prediction(base_model),
        ),
        work=WorkPlan(steps=_MANY_STEPS, batch_size=options.batch_size or DEFAULT_BATCH_SIZE, seed=options.seed or 0),
        compute=compute,
        objective=LORA_OBJECTIVE,
        optimizer=OptimizerPlan(learning_rate=options.learning_rate or LEARNING_RATE, ema_widths=()),
        lora=LoraSettings(
            base_hash=base_model.hash,
            rank=options.rank,
            train_text_encoder=options.train_text_encoder,
            layout=options.layout,
            guidance_scale=base_model.card.guidance_scale,
        ),
    )


def _count_parameters(plan: LoraPlan, base_model: StableDiffusionModel) -> int:
    """How many parameters the adapters have."""
    updater = LoraUpdater(plan, base_model)
    updater.detach_adapters()
    return sum(parameter.numel() for parameter in updater.weights.parameters())


def _encode_sample_batch(plan: LoraPlan, base_model: StableDiffusionModel, corpus: Corpus) -> tuple[LatentBatch, float]:
    """A batch to measure with, and the seconds in which each of its images was encoded."""
    start = time.monotonic()
    batch_size = plan.work.batch_size
    image_count = min(batch_size, len(corpus.training))
    x = encode_images_alone(corpus.training, base_model.autoencoder, range(image_count))
    seconds_per_image = (time.monotonic() - start) / image_count
    indices = torch.arange(batch_size) % image_count
    captions = corpus.training.first_captions(indices)
    return LatentBatch(x[indices], captions, torch.arange(batch_size)), seconds_per_image
