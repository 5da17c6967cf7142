"""The plan of `train`: what the options leave open is decided by measuring training steps on this machine."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from unspeckle.configuration import kind_to_json
from unspeckle.corpus.batches import Batch, batches
from unspeckle.corpus.splits import Corpus, Split
from unspeckle.model import Model
from unspeckle.networks.latent_autoencoder import LatentAutoencoder
from unspeckle.presets import PRESETS, get_preset
from unspeckle.schedule import SCHEDULES
from unspeckle.text.text_encoder import TextEncoderConfig
from unspeckle.training import encoded_corpus, measurement, memory
from unspeckle.training.budget import finalize_plan
from unspeckle.training.check_options import check_image_size
from unspeckle.training.compile_choice import should_compile, try_compile
from unspeckle.training.cost import ImageCost, count_text_steps
from unspeckle.training.inputs import TrainingInputs, uses_caption_augmentation
from unspeckle.training.measurement import PrintLine, Throughput
from unspeckle.training.options import TrainOptions
from unspeckle.training.plan import (
    LATENT_OBJECTIVE,
    PIXEL_OBJECTIVE,
    ComputePlan,
    ModelPlan,
    OptimizerPlan,
    Plan,
    WorkPlan,
)
from unspeckle.training.plan_file import options_to_json
from unspeckle.training.preset_choice import choose_preset, network_config_for
from unspeckle.training.text_to_image_updater import init_modules

CPU_BATCH_SIZE, CUDA_BATCH_SIZE = 32, 256
# The autoencoder's steps as a share of the network's
AUTOENCODER_STEP_FRACTION = 0.2
# How often an image must be seen for mirrored images to help
FLIP_MIN_VIEWS = 4.0
# Of captions that are names of folders
FOLDER_BALANCE = 0.5
# Forward passes after the last step (choosing an EMA, the last samples), in training images
FINAL_COST_IMAGES = 1300.0
# Stands for the number of steps until that is known
_MANY_STEPS = 10**6


@dataclass
class TrainPlanner:
    """Makes the plan of a new run: make_plan()."""

    options: TrainOptions
    inputs: TrainingInputs
    # The time.monotonic() from which --for counts
    start_time: float
    print_line: PrintLine

    def make_plan(self) -> Plan:
        """Measure, then decide all that the options leave open. InputError for options that do not fit together."""
        compute = measurement.choose_compute(self.options, self.print_line)
        plan = self._plan_preset(self._choose_preset(compute), compute, self.print_line)
        throughput = self._measure(plan, measurement.STEPS_SECONDS)
        if should_compile(self.options, plan, throughput, self.print_line):
            measure = partial(self._measure, seconds=measurement.STEPS_SECONDS)
            force = self.options.compile is True
            plan, throughput = try_compile(plan, throughput, measure, force=force, print_line=self.print_line)
        plan = self._with_caption_cost(plan, throughput)
        cost = self._measure_image_cost(plan, throughput, self._batches(plan))
        if self.trains_autoencoder:
            autoencoder_throughput = measurement.measure_autoencoder_training(
                plan, self._batches(plan), measurement.AUTOENCODER_SECONDS
            )
            autoencoder_seconds = AUTOENCODER_STEP_FRACTION / autoencoder_throughput.images_per_second
            cost = cost._replace(autoencoder_seconds=autoencoder_seconds)
            memory_bytes = max(throughput.memory_bytes, autoencoder_throughput.memory_bytes)
            throughput = throughput._replace(memory_bytes=memory_bytes)
        return self._with_latent_cache(plan, throughput, cost)

    @property
    def trains_autoencoder(self) -> bool:
        """Whether an autoencoder is trained before the network."""
        return isinstance(self.inputs.autoencoder, LatentAutoencoder) and self.inputs.base_model is None

    def _choose_preset(self, compute: ComputePlan) -> str:
        if self.inputs.base_model is not None:
            return "as --from"
        if self.options.preset is not None:
            return get_preset(self.options.preset).name

        def measure_images_per_second(preset_name: str) -> float:
            plan = self._plan_preset(preset_name, compute, lambda line: None)
            return self._measure(plan, 0.0).images_per_second

        return choose_preset(
            self.options,
            self.inputs.corpus.training.size,
            self.inputs.autoencoder,
            token_count=self.inputs.tokenizer.context_length,
            batch_size=self._batch_size(compute),
            measure_images_per_second=measure_images_per_second,
        )

    def _batch_size(self, compute: ComputePlan) -> int:
        default = CUDA_BATCH_SIZE if compute.device.startswith("cuda") else CPU_BATCH_SIZE
        return self.options.batch_size or default

    def _plan_preset(self, preset_name: str, compute: ComputePlan, print_line: PrintLine) -> Plan:
        """The plan for a preset, whose number of steps is not yet known, with a batch size that fits into memory."""
        options, corpus = self.options, self.inputs.corpus
        model = self._plan_model(preset_name)
        check_image_size(model.size, model.network, model.autoencoder.downsampling_factor)
        plan = Plan(
            options=options_to_json(options),
            corpus_fingerprint=corpus.fingerprint,
            model=model,
            work=WorkPlan(
                steps=_MANY_STEPS,
                batch_size=self._batch_size(compute),
                seed=0 if options.seed is None else options.seed,
                autoencoder_steps=int(self.trains_autoencoder),
                caption_augmentation=uses_caption_augmentation(corpus, options),
            ),
            compute=compute,
            objective=LATENT_OBJECTIVE if isinstance(self.inputs.autoencoder, LatentAutoencoder) else PIXEL_OBJECTIVE,
            optimizer=plan_optimizer(options),
        )
        with torch.device("meta"):
            parameter_count = sum(parameter.numel() for parameter in init_modules(plan).parameters())
        plan = plan.with_changes(measured={"parameter_count": parameter_count})
        return memory.fit_batch_size(plan, options.batch_size is not None, print_line)

    def _plan_model(self, preset_name: str) -> ModelPlan:
        """The parts of the model: as in the model that is continued, else by the preset."""
        size, autoencoder, base = self.inputs.corpus.training.size, self.inputs.autoencoder, self.inputs.base_model
        if base is not None:
            network: Any = base.network.config
            text_encoder: Any = base.text_encoder.config
        else:
            preset, tokenizer = PRESETS[preset_name], self.inputs.tokenizer
            network = network_config_for(preset, size, autoencoder)
            text_encoder = TextEncoderConfig(
                tokenizer.vocab_size, tokenizer.context_length, network.text_width, preset.text_layers
            )
        return ModelPlan(
            size=size,
            preset=preset_name,
            network=network,
            text_encoder=text_encoder,
            autoencoder=autoencoder.config,
            **({} if base is None else inherit_prediction(base)),
        )

    def _batches(self, plan: Plan, split: Split | None = None) -> Iterator[Batch]:
        """Batches to measure by: of training images, or of their latents."""
        work = plan.work
        augmenter = self.inputs.make_augmenter(work.seed) if work.caption_augmentation else None
        split = self.inputs.corpus.training if split is None else split
        return batches(split, work.batch_size, seed=work.seed, flip=False, augmenter=augmenter)

    def _measure(self, plan: Plan, seconds: float, training_batches: Iterator[Batch] | None = None) -> Throughput:
        """How fast the plan's steps are."""
        training_batches = self._batches(plan) if training_batches is None else training_batches
        return measurement.measure_training(
            plan, training_batches, self.inputs.tokenizer, self.inputs.autoencoder, seconds
        )

    def _with_caption_cost(self, plan: Plan, throughput: Throughput) -> Plan:
        """The plan with what the wordings of captions cost, as measured."""
        if not plan.work.caption_augmentation:
            return plan
        plain_plan = plan.with_changes(work={"caption_augmentation": False})
        plain = self._measure(plain_plan, measurement.CAPTIONS_SECONDS)
        cost = max(0.0, plain.images_per_second / throughput.images_per_second - 1)
        return plan.with_changes(measured={"caption_augmentation_cost": cost})

    def _has_text_stage(self, plan: Plan) -> bool:
        """Whether the text encoder is trained alone at first."""
        return self.inputs.base_model is None and plan.model.network.coarse_predictor_layers > 0

    def _measure_image_cost(self, plan: Plan, throughput: Throughput, training_batches: Iterator[Batch]) -> ImageCost:
        """What an image takes as measured, and what it takes in the text stage, if there is one."""
        cost = ImageCost(1 / throughput.images_per_second)
        if not self._has_text_stage(plan):
            return cost
        text_plan = plan.with_changes(work={"text_steps": plan.work.steps}, compute={"compile": False})
        text_throughput = self._measure(text_plan, measurement.TEXT_STAGE_SECONDS, training_batches)
        return cost._replace(text_seconds=1 / text_throughput.images_per_second)

    def _with_latent_cache(self, plan: Plan, throughput: Throughput, cost: ImageCost) -> Plan:
        """The whole plan, with latents that are cached if that saves time."""
        autoencoder, training = self.inputs.autoencoder, self.inputs.corpus.training
        uncached_plan = self._finalize(plan, throughput, cost)
        if not isinstance(autoencoder, LatentAutoencoder):
            return uncached_plan
        distinct_images = len(training) * (2 if uncached_plan.work.flip else 1)
        cache_bytes = distinct_images * encoded_corpus.latent_cache_bytes(training, autoencoder) // len(training)
        if not encoded_corpus.latent_cache_fits(uncached_plan, distinct_images, cache_bytes):
            return uncached_plan
        encode_seconds, encoded_split = measurement.measure_encoding(plan, training, autoencoder)
        encoded_batches = self._batches(plan, encoded_split)
        cached_throughput = self._measure(plan, measurement.CACHED_LATENTS_SECONDS, encoded_batches)
        cached_cost = self._measure_image_cost(plan, cached_throughput, encoded_batches)
        saved_seconds = cost.network_seconds - cached_cost.network_seconds
        total_images = uncached_plan.work.total_images
        if not encoded_corpus.latent_cache_pays(total_images, distinct_images, encode_seconds, saved_seconds):
            return uncached_plan
        cached_cost = cached_cost._replace(autoencoder_seconds=cost.autoencoder_seconds)
        cached_plan = self._finalize(plan, throughput, cached_cost, distinct_images * encode_seconds)
        return cached_plan.with_changes(
            work={"flip": uncached_plan.work.flip, "cache_latents": True},
            measured={"memory_bytes": cached_plan.measured.memory_bytes + cache_bytes},
        )

    def _finalize(self, plan: Plan, throughput: Throughput, cost: ImageCost, extra_seconds: float = 0.0) -> Plan:
        """The plan with all its steps at this cost."""
        options, corpus = self.options, self.inputs.corpus
        plan = finalize_plan(
            plan,
            throughput._replace(images_per_second=1 / cost.network_seconds),
            options,
            start_time=self.start_time,
            final_cost_images=FINAL_COST_IMAGES,
            step_cost=cost.to_step_cost(),
            extra_seconds=extra_seconds,
        )
        steps, views_per_image = plan.work.steps, plan.work.total_images / max(1, len(corpus.training))
        return plan.with_changes(
            work={
                "flip": views_per_image >= FLIP_MIN_VIEWS if options.flip is None else options.flip,
                "balance": default_balance(corpus) if options.balance is None else options.balance,
                "autoencoder_steps": math.ceil(AUTOENCODER_STEP_FRACTION * steps) if self.trains_autoencoder else 0,
                "text_steps": count_text_steps(steps) if self._has_text_stage(plan) else 0,
            }
        )


def default_balance(corpus: Corpus) -> float:
    """Half-way to all captions alike if captions are names of folders, which happen to hold as many images as they do;
    else 0."""
    return FOLDER_BALANCE if set(corpus.summary["sources"]) == {"folders"} else 0.0


def plan_optimizer(options: TrainOptions) -> OptimizerPlan:
    """The optimizer of the options, or Muon. A learning rate that is given is Muon's if that is the
    optimizer; that of AdamW beside it keeps its ratio to it."""
    usual = OptimizerPlan(name=options.optimizer or "muon")
    usual_learning_rate = usual.muon_learning_rate if usual.name == "muon" else usual.learning_rate
    ratio = (options.learning_rate or usual_learning_rate) / usual_learning_rate
    return replace(
        usual, learning_rate=ratio * usual.learning_rate, muon_learning_rate=ratio * usual.muon_learning_rate
    )


def inherit_prediction(base_model: Model) -> dict[str, Any]:
    """The fields of a ModelPlan that say what a network predicts on which schedule: as the model that is continued."""
    denoiser = base_model.denoiser
    return {
        "schedule": kind_to_json(SCHEDULES, denoiser.schedule),
        "prediction": denoiser.prediction,
        "time_conditioning": str(denoiser.time_conditioning),
    }
