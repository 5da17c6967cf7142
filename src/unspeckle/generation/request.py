"""What to draw: a prompt and the options of a drawing, as a user gives them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from PIL import Image

from unspeckle import configuration
from unspeckle.errors import InputError, nearest_name
from unspeckle.model import Model
from unspeckle.old_names import IMAGE_METADATA
from unspeckle.upsampler import UpsamplerModel

GUIDANCE_METHODS = ("cfg", "apg")
UPSCALERS = ("lanczos", "latent")


@dataclass(frozen=True)
class Request:
    """A prompt and the options of a drawing. None leaves the choice to the model's card."""

    # Text that describes the image, in the language of docs/prompts.md.
    prompt: str = ""
    # What the image should not look like; it has an effect where guidance is on.
    negative_prompt: str = ""
    # Seed of the noise, 0 to 2^64 - 1. The images have the seeds seed, seed + 1, …, seed + count - 1.
    seed: int = 0
    # Number of images.
    count: int = 1
    # Number of sampling steps. A few-step student draws the step counts that it was trained for, such as 1, 2 and 4.
    steps: int | None = None
    # A name of samplers.SAMPLERS.
    sampler: str | None = None
    # A name of timesteps.TIMESTEP_SPACINGS.
    timestep_spacing: str | None = None
    # How strongly the image follows the prompt; 1 disables guidance.
    guidance_scale: float | None = None
    # (width, height) in pixels, or one number for both.
    size: int | tuple[int, int] | None = None
    # How predictions are guided: "cfg" (classifier-free) or "apg" (adaptive projected guidance).
    guidance_method: str = "cfg"
    # How far the contrast of guided predictions is brought back to that of unguided ones, 0 to 1.
    guidance_rescale: float = 0.0
    # Guide only at times in (low, high), where 1 is noise and 0 the image.
    guidance_interval: tuple[float, float] | None = None
    # A weaker model that guides in place of the negative prompt (autoguidance).
    guide_model: Model | None = field(default=None, repr=False)
    # Share of each prediction's values that is scaled into bounds, over 0 to 1, for models of pixels; 0.995 is usual.
    dynamic_threshold: float | None = None
    # The image to start from (img2img).
    image: Image.Image | None = field(default=None, repr=False)
    # Of an unCLIP model: one or two images whose embeddings it draws from, instead of what its prior makes of the
    # prompt.
    like: Image.Image | Sequence[Image.Image] = field(default=(), repr=False)
    # How far the second of two images counts, or how far an image is moved by words; 0 to 1.
    mix: float | None = None
    # Words that describe the image in `like`; go with to_words.
    from_words: str = ""
    # Words that the new image should fit instead.
    to_words: str = ""
    # White where the image is redrawn (inpainting), black where it stays.
    mask: Image.Image | None = field(default=None, repr=False)
    # How much of the image changes, over 0 to 1: the last int(steps · strength) steps are taken.
    strength: float | None = None
    # With a mask: whether the image's own pixels are put back where the mask is black.
    paste_original: bool = True
    # A second seed, toward whose noise that of `seed` is turned. With count, this one counts up and `seed` stays.
    variation_seed: int | None = None
    # How far the noise is turned, 0 (not at all) to 1 (fully).
    variation_strength: float = 0.2
    # Draw at `size`, enlarge the image to this (width, height), and continue from there.
    hires_size: int | tuple[int, int] | None = None
    # A model of `train --kind upsampler` that enlarges the image once it is drawn; None: the one in the model, if any.
    upsampler: UpsamplerModel | None = field(default=None, repr=False)
    # How the image is enlarged to hires_size: "lanczos" (its pixels) or "latent" (its latents).
    upscaler: str = "lanczos"
    # Layer of CLIP that the prompt is read from, counted from the end: 1 is the last, 2 the one before, as in A1111.
    clip_skip: int = 1
    # Side in pixels of the tiles in which the autoencoder encodes and decodes; 0 takes the image as a whole.
    tile_size: int = 0
    # Number of images drawn together; None chooses it by their size and the device.
    batch_size: int | None = None

    def __post_init__(self) -> None:
        """`like` becomes a tuple, of however many images."""
        like = (self.like,) if isinstance(self.like, Image.Image) else tuple(self.like)
        object.__setattr__(self, "like", like)

    @property
    def images_like(self) -> tuple[Image.Image, ...]:
        """`like`, as the tuple that it is."""
        return self.like  # type: ignore[return-value]

    def _repr_html_(self) -> str:
        """For notebooks: the prompt, and the options that are not left to the model."""
        options = {
            one.name: getattr(self, one.name)
            for one in fields(Request)
            if one.repr and one.name != "prompt" and getattr(self, one.name) != one.default
        }
        return configuration.to_html(self.prompt or "no prompt", options)


def make_request(request: Request | str, options: Mapping[str, object]) -> Request:
    """A Request of a prompt and options, or the Request with those options changed.

    InputError where there is no such option; it names the nearest one."""
    names = [one.name for one in fields(Request)]
    for name in options:
        if name not in names:
            nearest = IMAGE_METADATA.get(name) or nearest_name(name, names)  # the names that version 0.1 had, too
            raise InputError(f": a drawing has no such option; the nearest is `{nearest}`", name)
    if isinstance(request, str):
        request = Request(request)
    return replace(request, **options)  # type: ignore[arg-type]
