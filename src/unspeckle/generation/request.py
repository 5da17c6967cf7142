"""What to draw, as a person asks for it, and the same with every choice made: resolved once, then only drawn."""

from dataclasses import dataclass, field, fields, replace
from typing import Any

from PIL import Image

from unspeckle.errors import InputError
from unspeckle.generation import image_size
from unspeckle.generation.checks import (
    MAX_SEED,
    check_bool,
    check_choice,
    check_fraction,
    check_guide_model,
    check_integer,
    check_interval,
    check_loras,
    check_scale,
    check_strength,
    check_threshold,
    check_tile_size,
)
from unspeckle.generation.conditioning import prediction_weights
from unspeckle.generation.few_step import GUIDANCE_DEFAULTS, select_network
from unspeckle.model import Model, SamplingSetup
from unspeckle.prompts import Prompt, parse_prompt
from unspeckle.samplers import SAMPLERS
from unspeckle.timesteps import TIMESTEP_SPACINGS

GUIDANCE_METHODS = ("cfg", "apg")
UPSCALERS = ("lanczos", "latent")


@dataclass(frozen=True)
class Request:
    """What to draw. None means: as the model's card says."""

    prompt: str = ""  # in the prompt language of docs/prompts.md
    negative_prompt: str = ""  # what to draw away from; needs guidance
    seed: int = 0  # images have the seeds seed, seed + 1, … seed + count - 1
    count: int = 1  # how many images
    steps: int | None = None  # of the sampler; a step count that the model's student knows (1, 2 or 4) is drawn by it
    sampler: str | None = None  # a name of samplers.SAMPLERS
    timestep_spacing: str | None = None  # a name of timesteps.TIMESTEP_SPACINGS
    guidance_scale: float | None = None  # how strongly the image follows the prompt; 1 is no guidance
    size: int | tuple[int, int] | None = None  # (width, height) in pixels, or one number for both
    guidance_method: str = "cfg"  # classifier-free guidance, or "apg", adaptive projected guidance
    guidance_rescale: float = 0.0  # 0 to 1: bring the guided contrast back to that of the unguided prediction
    guidance_interval: tuple[float, float] | None = None  # guide only at times (low, high); 0 is the image, 1 is noise
    guide_model: Model | None = field(default=None, repr=False)  # autoguidance: a weaker model, no negative prompt
    dynamic_threshold: float | None = None  # share of values kept within bounds, for models of pixels; 0.995 is usual
    image: Image.Image | None = field(default=None, repr=False)  # image-to-image: what to start from
    mask: Image.Image | None = field(default=None, repr=False)  # inpainting: white is painted anew, black is kept
    strength: float | None = None  # how far to leave the image, over 0 to 1: the last int(steps · strength) steps run
    paste_original: bool = True  # with a mask: put the image's own pixels back where the mask is black
    variation_seed: int | None = None  # a second seed, toward whose noise the first one's is turned; this one counts up
    variation_strength: float = 0.2  # how far it is turned, 0 not at all, 1 wholly
    hires_size: int | tuple[int, int] | None = None  # draw at `size`, enlarge to this, and continue from there
    upscaler: str = "lanczos"  # how hires enlarges: "lanczos" the image, "latent" the latents
    clip_skip: int = 1  # 1 reads the whole CLIP text encoder, 2 leaves out its last layer, as A1111 counts
    tile_size: int = 0  # side in pixels of the tiles in which the autoencoder works; 0 decodes the image as a whole
    batch_size: int | None = None  # images drawn together; None: as many as are usual at their size on the device


@dataclass(frozen=True, kw_only=True)
class ResolvedRequest(Request):
    """A request with every choice made and checked, its prompts parsed, and the network chosen that draws it."""

    steps: int
    sampler: str
    timestep_spacing: str
    guidance_scale: float
    size: tuple[int, int]
    strength: float
    hires_size: tuple[int, int] | None = None
    model: Model = field(repr=False)  # as it was loaded: its name and hash are recorded, its autoencoder decodes
    selected: Model = field(repr=False)  # whose network draws: the model, or its few-step student; clip_skip applied
    guide: Model | None = field(default=None, repr=False)  # the guide model, with clip_skip applied
    parsed_prompt: Prompt = field(repr=False)
    parsed_negative: Prompt = field(repr=False)
    setup: SamplingSetup = field(repr=False)  # the times of a whole drawing, and the denoiser that is asked

    @property
    def img2img_steps(self) -> int:
        """How many of the steps are taken by a drawing that starts from an image, as diffusers counts them."""
        return min(int(self.steps * self.strength), self.steps)

    @property
    def steps_per_pass(self) -> tuple[int, ...]:
        """How many steps each pass takes: one pass, or with hires two, before and after the image is enlarged."""
        if self.hires_size:
            return (self.steps, self.img2img_steps)
        return (self.img2img_steps if self.image else self.steps,)

    @property
    def total_steps(self) -> int:
        """How many Steps are yielded before the last one."""
        return sum(self.steps_per_pass) + len(self.steps_per_pass) - 1

    @property
    def final_size(self) -> tuple[int, int]:
        """(width, height) of the resulting images in pixels."""
        return self.hires_size or self.size

    @property
    def first_seed(self) -> int:
        """The first of the seeds that count up: the image's, or its variation's."""
        return self.seed if self.variation_seed is None else self.variation_seed

    def seeds(self) -> tuple[list[int], list[int] | list[None]]:
        """Each image's seed, and each image's variation seed."""
        counted = list(range(self.first_seed, self.first_seed + self.count))
        if self.variation_seed is None:
            return counted, [None] * self.count
        return [self.seed] * self.count, counted

    def slice(self, start: int, count: int) -> "ResolvedRequest":
        """The request for `count` of its images, from number `start` on."""
        if self.variation_seed is None:
            return replace(self, seed=self.seed + start, count=count)
        return replace(self, variation_seed=self.variation_seed + start, count=count)


def resolve(model: Model, request: Request, prompt: Prompt | None = None) -> ResolvedRequest:
    """The request with the model card's choices filled in, its prompts parsed and its network chosen.

    prompt: the request's prompt, where it has been parsed already.
    InputError, naming the argument, where it cannot be drawn by this model."""
    if isinstance(request, ResolvedRequest):
        raise TypeError("this request is resolved already; give it to sample_steps")
    loaded, model = model, select_network(model, request)
    card = model.card
    sampler = check_choice("sampler", card.sampler if request.sampler is None else request.sampler, SAMPLERS)
    parsed_prompt = parse_prompt(request.prompt) if prompt is None else prompt
    parsed_negative = parse_prompt(request.negative_prompt, "negative_prompt")
    for name, parsed in (("prompt", parsed_prompt), ("negative_prompt", parsed_negative)):
        check_loras(model, parsed.lora_tags, name)
    count, seed = check_integer("count", request.count, 1, 1_000_000), check_integer("seed", request.seed, 0, MAX_SEED)
    _check_seeds(request, count, seed)
    size = image_size.choose_size(model, request.size, request.image, request.mask)
    steps = check_integer("steps", card.steps if request.steps is None else request.steps, 1, 1000)
    spacing = model.default_timestep_spacing(sampler) if request.timestep_spacing is None else request.timestep_spacing
    spacing = check_choice("timestep_spacing", spacing, TIMESTEP_SPACINGS)
    clip_skip = check_integer("clip_skip", request.clip_skip, 1, 100)
    guide = check_guide_model(model, request.guide_model, request.negative_prompt)
    choices: dict[str, Any] = {
        "steps": steps,
        "sampler": sampler,
        "timestep_spacing": spacing,
        "guidance_scale": check_scale(
            card.guidance_scale if request.guidance_scale is None else request.guidance_scale
        ),
        "size": size,
        "guidance_method": check_choice("guidance_method", request.guidance_method, GUIDANCE_METHODS),
        "guidance_rescale": check_fraction("guidance_rescale", request.guidance_rescale),
        "guidance_interval": check_interval(request.guidance_interval),
        "paste_original": check_bool("paste_original", request.paste_original),
        "strength": check_strength(request.strength, request.image, request.mask, request.hires_size),
        "variation_strength": check_fraction("variation_strength", request.variation_strength),
        "hires_size": image_size.check_hires_size(model, request.hires_size, size),
        "upscaler": check_choice("upscaler", request.upscaler, UPSCALERS),
        "clip_skip": clip_skip,
        "tile_size": check_tile_size(model, request.tile_size),
    }
    choices["dynamic_threshold"] = check_threshold(model, request.dynamic_threshold, choices["hires_size"] or size)
    if request.batch_size is not None:
        check_integer("batch_size", request.batch_size, 1, 1_000_000)
    resolved = ResolvedRequest(
        **{**{one.name: getattr(request, one.name) for one in fields(Request)}, **choices},
        model=loaded,
        selected=model.with_clip_skip(clip_skip),
        guide=None if guide is None else guide.with_clip_skip(clip_skip),
        parsed_prompt=parsed_prompt,
        parsed_negative=parsed_negative,
        setup=model.sampling_setup(sampler, spacing, steps),
    )
    if resolved.img2img_steps < 1:
        raise InputError(f" {resolved.strength:g}: leaves none of {steps} steps; choose more of either", "strength")
    if model.cfg_scale(2.0) == 1 and (names := ignored_options(resolved)):
        why = "this model takes the guidance scale as an input and predicts once, which cannot be changed"
        mend = "write NOT in the prompt" if resolved.negative_prompt else "leave it out"
        raise InputError(f": {why}; {mend}", names[0])
    return resolved


def ignored_options(resolved: ResolvedRequest) -> list[str]:
    """The options of guidance that change nothing: at guidance scale 1, and in a model that takes the scale as an input.
    Prompts whose weights do not sum to 1 (AND, NOT) draw away from the negative prompt without guidance too."""
    if resolved.selected.cfg_scale(resolved.guidance_scale) != 1:
        return []
    names = [name for name, default in GUIDANCE_DEFAULTS.items() if getattr(resolved, name) != default]
    if resolved.negative_prompt:
        weights = map(sum, prediction_weights(resolved.selected, resolved.parsed_prompt, resolved.steps))
        names += ["negative_prompt"] if all(abs(1 - weight) < 1e-9 for weight in weights) else []
    return names


def _check_seeds(request: Request, count: int, seed: int) -> None:
    """InputError where the seeds of the images run past the last one there is."""
    varied = request.variation_seed is not None
    first, name = (request.variation_seed, "variation_seed") if varied else (seed, "seed")
    if check_integer(name, first, 0, MAX_SEED) + count > 2**64:
        raise InputError(f" {first} with count {count}: seeds end at 2^64 - 1; take a smaller one", name)
