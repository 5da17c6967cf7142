"""The plan of `train --kind unclip`: how the time is shared among its parts, and each of them measured."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from unspeckle.corpus.batches import Batch
from unspeckle.corpus.shrunk_split import shrink_corpus
from unspeckle.networks.transformer import TransformerConfig
from unspeckle.networks.unet import UNetConfig
from unspeckle.objective import Objective
from unspeckle.text.text_encoder import TextEncoderConfig
from unspeckle.training import measurement
from unspeckle.training.clip_planner import make_clip_plan
from unspeckle.training.clip_updater import init_encoder
from unspeckle.training.cost import ImageCost
from unspeckle.training.decoder_updater import DecoderUpdater
from unspeckle.training.inputs import TrainingInputs
from unspeckle.training.measurement import PrintLine, Throughput
from unspeckle.training.options import CLIPOptions, UnCLIPOptions
from unspeckle.training.plan import CLIPPlan, ModelPlan, Plan, UnCLIPParts, UnCLIPPlan
from unspeckle.training.plan_file import options_to_json
from unspeckle.training.prior_task import empty_embedding_space
from unspeckle.training.simple_planner import MANY_STEPS, finish_plan
from unspeckle.training.text_to_image_updater import TextToImageUpdater, init_modules
from unspeckle.training.train_planner import TrainPlanner, plan_optimizer
from unspeckle.training.upsampler_planner import UpsamplerPlanner, check_factor

# Shares of the time; the rest is the decoder's
CLIP_SHARE, PRIOR_SHARE, UPSAMPLER_SHARE = 0.2, 0.1, 0.25
# The decoder draws images whose shorter side has this many pixels, if those of the corpus are at least twice as large
SMALL_SIDE = 64
# Embeddings have no fine details, which only low noise would leave
PRIOR_OBJECTIVE = Objective("logit_normal", mean=0.0, std=1.0)
# The decoder has learnt what a caption says from the embedding, and is to draw from that alone too
DECODER_CAPTION_DROPOUT = 0.3
PRIOR_BATCH_SIZES = {"cpu": 128, "cuda": 1024}
PRIOR_WIDTH, PRIOR_LAYERS = 256, 6


def make_unclip_plan(
    options: UnCLIPOptions, inputs: TrainingInputs, *, start_time: float, print_line: PrintLine
) -> UnCLIPPlan:
    """Measure each part, then decide all that the options leave open. start_time: the time.monotonic() from which --for
    counts."""
    factor = upsampling_factor(inputs.corpus.training.size)
    check_factor(inputs.corpus.training.size, factor)
    large_inputs, inputs = inputs, inputs._replace(corpus=shrink_corpus(inputs.corpus, factor))
    upsampler_share = UPSAMPLER_SHARE if factor > 1 else 0.0
    elapsed = time.monotonic() - start_time
    left = None if options.seconds is None else max(1.0, options.seconds - elapsed)

    def share_of(share: float) -> float | None:
        return None if left is None else share * left

    clip_options = CLIPOptions(**{**vars(options), "seconds": share_of(CLIP_SHARE), "loss": "infonce"})
    clip = make_clip_plan(clip_options, inputs, start_time=time.monotonic(), print_line=print_line)
    options_without_seconds = replace(options, seconds=share_of(PRIOR_SHARE))
    prior = make_prior_plan(options_without_seconds, inputs, clip, print_line)
    decoder_options = replace(options, seconds=share_of(1 - CLIP_SHARE - PRIOR_SHARE - upsampler_share))
    decoder = DecoderPlanner(decoder_options, inputs, time.monotonic(), print_line, clip).make_plan()
    plans, upsampler = [clip, prior, decoder], None
    if factor > 1:
        upsampler_options = replace(options, seconds=share_of(upsampler_share))
        planner = UpsamplerPlanner(upsampler_options, large_inputs, time.monotonic(), print_line, factor)
        upsampler = planner.make_plan()
        plans.append(upsampler)
    total_seconds = sum(plan.measured.total_seconds for plan in plans)
    disk_bytes = sum(plan.measured.disk_bytes for plan in plans)
    decoder = decoder.with_changes(
        measured={"total_seconds": options.seconds or total_seconds + elapsed, "disk_bytes": disk_bytes}
    )
    return UnCLIPPlan(
        **{**vars(decoder), "options": options_to_json(options)}, parts=UnCLIPParts(clip, prior, upsampler)
    )


def upsampling_factor(size: tuple[int, int]) -> int:
    """How many times smaller than the corpus's images of that size (W, H) those are that the decoder draws."""
    return max(1, min(size) // SMALL_SIDE)


def make_prior_plan(options: UnCLIPOptions, inputs: TrainingInputs, clip: CLIPPlan, print_line: PrintLine) -> Plan:
    """The plan of a prior for the embeddings of that CLIP."""
    encoder = init_encoder(clip)
    space = empty_embedding_space(encoder)
    text_encoder = clip.model.text_encoder
    assert isinstance(text_encoder, TextEncoderConfig)
    kind = "cuda" if clip.compute.device.startswith("cuda") else "cpu"
    plan = Plan(
        options=options_to_json(options),
        corpus_fingerprint=clip.corpus_fingerprint,
        model=ModelPlan(
            size=clip.model.size,
            preset="prior",
            network=TransformerConfig(
                channels=space.latent_channels,
                patch_size=1,
                widths=(PRIOR_WIDTH,),
                depths=(PRIOR_LAYERS,),
                text_width=text_encoder.width,
                vector_width=text_encoder.width,
            ),
            text_encoder=text_encoder,
            autoencoder=space.config,
        ),
        work=replace(
            clip.work, steps=MANY_STEPS, batch_size=options.batch_size or PRIOR_BATCH_SIZES[kind], balance=0.0
        ),
        compute=clip.compute,
        objective=PRIOR_OBJECTIVE,
        optimizer=plan_optimizer(options),
    )
    parameter_count = sum(parameter.numel() for parameter in init_modules(plan).parameters())
    plan = plan.with_changes(measured={"parameter_count": parameter_count})
    space_inputs = inputs._replace(autoencoder=space)

    def create_updater(plan: Plan) -> TextToImageUpdater:
        return TextToImageUpdater(plan, init_modules(plan), inputs.tokenizer, space)

    return finish_plan(plan, options, space_inputs, create_updater, start_time=time.monotonic(), print_line=print_line)


class DecoderPlanner(TrainPlanner):
    """Plans a decoder as `train` plans a model, but that its network takes the embeddings of a CLIP."""

    def __init__(
        self, options: UnCLIPOptions, inputs: TrainingInputs, start_time: float, print_line: PrintLine, clip: CLIPPlan
    ) -> None:
        super().__init__(options, inputs, start_time, print_line)
        self.image_text = init_encoder(clip)
        self.space = empty_embedding_space(self.image_text)

    def _plan_preset(self, preset_name: str, compute: Any, print_line: PrintLine) -> Plan:
        plan = super()._plan_preset(preset_name, compute, print_line)
        return plan.with_changes(objective={"caption_dropout": DECODER_CAPTION_DROPOUT})

    def _plan_model(self, preset_name: str) -> ModelPlan:
        model = super()._plan_model(preset_name)
        network: Any = model.network
        assert isinstance(network, UNetConfig | TransformerConfig)
        # No coarse image from the words alone: the embedding says what the image looks like.
        network = replace(
            network,
            vector_width=network.vector_width + self.space.latent_channels,
            coarse_predictor_layers=0,
        )
        return replace(model, network=network)

    def _measure(self, plan: Plan, seconds: float, training_batches: Iterator[Batch] | None = None) -> Throughput:
        training_batches = self._batches(plan) if training_batches is None else training_batches
        plan = measurement.without_learning(plan)

        def create_updater() -> DecoderUpdater:
            return DecoderUpdater(plan, self.inputs.tokenizer, self.inputs.autoencoder, self.image_text, self.space)

        return measurement.measure_steps(create_updater, training_batches, seconds)

    def _with_latent_cache(self, plan: Plan, throughput: Throughput, cost: ImageCost) -> Plan:
        return self._finalize(plan, throughput, cost)
