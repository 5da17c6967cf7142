"""The plan of `train --kind clip`: what the options leave open is decided by measuring steps on this machine."""

from unspeckle.networks.autoencoder import PixelAutoencoderConfig
from unspeckle.networks.image_encoder import PATCH_SIZE, ImageEncoderConfig
from unspeckle.text.text_encoder import TextEncoderConfig
from unspeckle.training import measurement
from unspeckle.training.check_options import check_image_size
from unspeckle.training.clip_updater import CLIPUpdater, init_encoder
from unspeckle.training.inputs import TrainingInputs, uses_caption_augmentation
from unspeckle.training.measurement import PrintLine
from unspeckle.training.options import CLIPOptions
from unspeckle.training.plan import CLIPPlan, ContrastiveSettings, ModelPlan, WorkPlan
from unspeckle.training.plan_file import options_to_json
from unspeckle.training.simple_planner import MANY_STEPS, finish_plan
from unspeckle.training.train_planner import plan_optimizer

# Each image is compared with the captions of all others, so batches are larger than elsewhere
CPU_BATCH_SIZE, CUDA_BATCH_SIZE = 128, 1024
TEXT_LAYERS = 2
# The coarsest feature maps have sides of at least so many places, and at most so many levels lie above them
COARSEST_SIDE, MAX_LEVELS = 4, 4
FINEST_WIDTH, WIDTH_STEP = 64, 64


def make_clip_plan(
    options: CLIPOptions, inputs: TrainingInputs, *, start_time: float, print_line: PrintLine
) -> CLIPPlan:
    """Measure, then decide all that the options leave open. start_time: the time.monotonic() from which --for
    counts."""
    compute = measurement.choose_compute(options, print_line)
    corpus, tokenizer = inputs.corpus, inputs.tokenizer
    network = image_encoder_config(corpus.training.size)
    check_image_size(corpus.training.size, network, 1)
    default_batch_size = CUDA_BATCH_SIZE if compute.device.startswith("cuda") else CPU_BATCH_SIZE
    plan = CLIPPlan(
        options=options_to_json(options),
        corpus_fingerprint=corpus.fingerprint,
        model=ModelPlan(
            size=corpus.training.size,
            preset="CLIP",
            network=network,
            text_encoder=TextEncoderConfig(
                tokenizer.vocab_size, tokenizer.context_length, network.text_width, TEXT_LAYERS
            ),
            autoencoder=PixelAutoencoderConfig(),
        ),
        work=WorkPlan(
            steps=MANY_STEPS,
            batch_size=options.batch_size or min(default_batch_size, max(1, len(corpus.training))),
            seed=options.seed or 0,
            caption_augmentation=uses_caption_augmentation(corpus, options),
        ),
        compute=compute,
        optimizer=plan_optimizer(options),
        contrastive=ContrastiveSettings(loss=options.loss),
    )
    parameter_count = sum(parameter.numel() for parameter in init_encoder(plan).parameters())
    plan = plan.with_changes(measured={"parameter_count": parameter_count})

    def create_updater(plan: CLIPPlan) -> CLIPUpdater:
        return CLIPUpdater(plan, tokenizer)

    return finish_plan(plan, options, inputs, create_updater, start_time=start_time, print_line=print_line)


def image_encoder_config(size: tuple[int, int]) -> ImageEncoderConfig:
    """The image encoder for images of that size (W, H)."""
    levels = 1
    while levels < MAX_LEVELS and min(size) >= PATCH_SIZE * COARSEST_SIDE << levels:
        levels += 1
    return ImageEncoderConfig(size=size, widths=tuple(FINEST_WIDTH + WIDTH_STEP * level for level in range(levels)))
