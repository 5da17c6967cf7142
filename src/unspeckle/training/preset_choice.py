"""Which network is trained, and whether on pixels or on latents, where the options leave it open."""

import math
from collections.abc import Callable

from unspeckle.networks import PresetConfig
from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.networks.latent_autoencoder import LatentAutoencoderConfig
from unspeckle.presets import PRESETS, UNET_PRESETS, Preset, get_preset
from unspeckle.training.check_options import check_image_size
from unspeckle.training.flops import count_training_flops
from unspeckle.training.options import CLIPOptions, GANOptions, TrainOptions, UnCLIPOptions, UpsamplerOptions

# Images for each parameter, from which on a larger network pays: of few trials, see docs/recipe.md
IMAGES_PER_PARAMETER = 0.02
# Larger networks come nearer to the peak of the machine: seconds grow with this power of the operations
FLOPS_EXPONENT = 0.85
# The network whose speed is measured to estimate that of the others
REFERENCE_PRESET = "tiny"
# The autoencoder of images whose shortest side has at least so many pixels
LARGE_IMAGE_MIN_SIDE = 112
LARGE_IMAGE_AUTOENCODER = LatentAutoencoderConfig(latent_channels=32, downsampling_factor=8, widths=(48, 80, 128))
# Seconds or images of training from which on latents pay, and the shortest side of the images
LATENT_SPACE_MIN_SECONDS, LATENT_SPACE_MIN_IMAGES, LATENT_SPACE_MIN_SIDE = 600.0, 100_000, 64


def autoencoder_config_for(size: tuple[int, int]) -> LatentAutoencoderConfig:
    """The autoencoder that is trained for images of that size (W, H): larger ones are folded further, if both sides
    allow it, so that they make no more latents than images of half the size, with more channels each."""
    multiple = 2 * LARGE_IMAGE_AUTOENCODER.downsampling_factor  # networks halve latents at least once
    is_large = min(size) >= LARGE_IMAGE_MIN_SIDE and all(side % multiple == 0 for side in size)
    return LARGE_IMAGE_AUTOENCODER if is_large else LatentAutoencoderConfig()


def choose_space(options: TrainOptions, size: tuple[int, int]) -> str:
    """What is denoised, "pixels" or "latents": latents if there is time to train an autoencoder, and if images of this
    size (W, H) are large enough. Other kinds of models make or see pixels."""
    if isinstance(options, GANOptions | CLIPOptions | UnCLIPOptions | UpsamplerOptions):
        return "pixels"
    if options.space is not None:
        return options.space
    seconds, images = options.seconds or 0, options.images or 0
    is_long = seconds >= LATENT_SPACE_MIN_SECONDS or images >= LATENT_SPACE_MIN_IMAGES
    is_large = min(size) >= LATENT_SPACE_MIN_SIDE
    return "latents" if is_long and is_large and _latent_space_fits(options.preset, size) else "pixels"


def _latent_space_fits(preset_name: str | None, size: tuple[int, int]) -> bool:
    """Whether the preset, or one of those to choose from, can denoise the latents of images of that size."""
    factor, (width, height) = autoencoder_config_for(size).downsampling_factor, size
    names = [preset_name] if preset_name else UNET_PRESETS
    network_configs = [get_preset(name).for_size((width // factor, height // factor)) for name in names]
    return any(math.gcd(*size) % (factor * config.size_multiple) == 0 for config in network_configs)


def network_config_for(preset: Preset, size: tuple[int, int], autoencoder: Autoencoder) -> PresetConfig:
    """The preset's network for the latents of images of that size (W, H)."""
    width, height = _latent_size(size, autoencoder)
    return preset.for_size((width, height), autoencoder.latent_channels)


def choose_preset(
    options: TrainOptions,
    size: tuple[int, int],
    autoencoder: Autoencoder,
    *,
    token_count: int,
    batch_size: int,
    measure_images_per_second: Callable[[str], float],
) -> str:
    """The name of the largest preset that will be trained on IMAGES_PER_PARAMETER images for each parameter.

    token_count: of a caption; measure_images_per_second: of a preset. InputError if the size fits none.
    """
    configs = {name: network_config_for(PRESETS[name], size, autoencoder) for name in UNET_PRESETS}
    factor = autoencoder.downsampling_factor
    names = [n for n in UNET_PRESETS if all(side % (factor * configs[n].size_multiple) == 0 for side in size)]
    if not names:
        check_image_size(size, configs[REFERENCE_PRESET], factor)
    input_size = _latent_size(size, autoencoder)
    flops = {n: count_training_flops(configs[n], input_size, token_count) for n in {*names, REFERENCE_PRESET}}
    reference_images = options.seconds * measure_images_per_second(REFERENCE_PRESET) if options.seconds else 0.0
    best = names[0]
    for name in names:
        images = options.images or (options.steps or 0) * batch_size
        if options.seconds:
            images = round(reference_images * (flops[REFERENCE_PRESET] / flops[name]) ** FLOPS_EXPONENT)
        if images >= IMAGES_PER_PARAMETER * PRESETS[name].million_parameters * 1e6:
            best = name
    return best


def _latent_size(size: tuple[int, int], autoencoder: Autoencoder) -> tuple[int, int]:
    return size[0] // autoencoder.downsampling_factor, size[1] // autoencoder.downsampling_factor
