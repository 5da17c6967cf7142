"""The plan of `train --kind gan`: what the options leave open is decided by measuring steps on this machine."""

from dataclasses import replace

from unspeckle.errors import InputError
from unspeckle.networks.gan import GeneratorConfig
from unspeckle.text.text_encoder import TextEncoderConfig
from unspeckle.training import measurement
from unspeckle.training.check_options import PRECISIONS, check_image_size
from unspeckle.training.gan_updater import GANUpdater, init_discriminator
from unspeckle.training.inputs import TrainingInputs, uses_caption_augmentation
from unspeckle.training.measurement import PrintLine
from unspeckle.training.options import GANOptions
from unspeckle.training.plan import ComputePlan, GANPlan, GANSettings, ModelPlan, OptimizerPlan, WorkPlan
from unspeckle.training.plan_file import options_to_json
from unspeckle.training.simple_planner import MANY_STEPS, finish_plan
from unspeckle.training.text_to_image_updater import init_modules

CPU_BATCH_SIZE, CUDA_BATCH_SIZE = 32, 256
LEARNING_RATE, ADAMW_BETAS = 2e-4, (0.0, 0.99)
TEXT_LAYERS = 1
# Sides of the coarsest feature maps are about so many places
COARSEST_SIDE = 4
# Channels of the finest feature maps; each coarser one has twice as many, up to a limit
FINEST_WIDTH, MAX_WIDTH = 32, 128


def make_gan_plan(options: GANOptions, inputs: TrainingInputs, *, start_time: float, print_line: PrintLine) -> GANPlan:
    """Measure, then decide all that the options leave open. start_time: the time.monotonic() from which --for counts.

    Gradients of gradients are too small for 16 bits, so the networks compute in float32."""
    if options.precision is not None and PRECISIONS[options.precision] != "float32":
        raise InputError(f" {options.precision}: a GAN is trained in float32; leave it out", "precision")
    compute = measurement.choose_compute(replace(options, precision="float32"), print_line)
    plan = _plan_networks(options, inputs, compute)

    def create_updater(plan: GANPlan) -> GANUpdater:
        return GANUpdater(plan, inputs.tokenizer, inputs.autoencoder)

    plan = finish_plan(plan, options, inputs, create_updater, start_time=start_time, print_line=print_line)
    return plan.with_changes(work={"balance": 0.0}) if options.unconditional else plan


def _plan_networks(options: GANOptions, inputs: TrainingInputs, compute: ComputePlan) -> GANPlan:
    """The plan, whose number of steps is not yet known."""
    corpus, tokenizer = inputs.corpus, inputs.tokenizer
    size, network = corpus.training.size, generator_config(corpus.training.size)
    check_image_size(size, network, 1)
    default_batch_size = CUDA_BATCH_SIZE if compute.device.startswith("cuda") else CPU_BATCH_SIZE
    plan = GANPlan(
        options=options_to_json(options),
        corpus_fingerprint=corpus.fingerprint,
        model=ModelPlan(
            size=size,
            preset="GAN",
            network=network,
            text_encoder=TextEncoderConfig(
                tokenizer.vocab_size, tokenizer.context_length, network.text_width, TEXT_LAYERS
            ),
            autoencoder=inputs.autoencoder.config,
            prediction="x",
        ),
        work=WorkPlan(
            steps=MANY_STEPS,
            batch_size=options.batch_size or default_batch_size,
            seed=options.seed or 0,
            caption_augmentation=not options.unconditional and uses_caption_augmentation(corpus, options),
        ),
        compute=compute,
        optimizer=OptimizerPlan(
            learning_rate=options.learning_rate or LEARNING_RATE,
            adamw_betas=ADAMW_BETAS,
            weight_decay=0.0,
            max_grad_norm=0.0,
        ),
        gan=GANSettings(loss=options.loss, unconditional=options.unconditional),
    )
    modules = (init_modules(plan), init_discriminator(plan))
    parameter_count = sum(parameter.numel() for module in modules for parameter in module.parameters())
    return plan.with_changes(measured={"parameter_count": parameter_count})


def generator_config(size: tuple[int, int]) -> GeneratorConfig:
    """The generator for images of that size (W, H): each resolution has half the side of the next finer one, and the
    coarsest about COARSEST_SIDE. Its size_multiple is what sides must be multiples of."""
    count = 1
    while min(size) >= COARSEST_SIDE << count:
        count += 1
    widths = tuple(min(MAX_WIDTH, FINEST_WIDTH << level) for level in reversed(range(count)))
    return GeneratorConfig(size=size, widths=widths)
