"""A request with every choice made: options checked, prompts parsed, the network and its timesteps chosen.

Every drawing is resolved once, before its first step; what draws it needs nothing but the ResolvedRequest."""

from dataclasses import dataclass, field, replace

from unspeckle.errors import InputError
from unspeckle.generation.checks import (
    check_bool,
    check_choice,
    check_dynamic_threshold,
    check_fraction,
    check_guidance_interval,
    check_guidance_scale,
    check_guide_model,
    check_integer,
    check_loras,
    check_seeds,
    check_strength,
    check_tile_size,
    check_upsampler,
)
from unspeckle.generation.conditioning import prediction_weights
from unspeckle.generation.few_step import GUIDANCE_DEFAULTS, select_network
from unspeckle.generation.image_prompts import check_image_prompts
from unspeckle.generation.image_size import check_hires_size, choose_size
from unspeckle.generation.request import GUIDANCE_METHODS, UPSCALERS, Request
from unspeckle.model import Model, SamplingSetup
from unspeckle.prompts import Prompt, parse_prompt
from unspeckle.samplers import SAMPLERS
from unspeckle.timesteps import TIMESTEP_SPACINGS


@dataclass(frozen=True, kw_only=True)
class ResolvedRequest(Request):
    """A Request whose options are all chosen and checked, with what was derived from them."""

    steps: int
    sampler: str
    timestep_spacing: str
    guidance_scale: float
    size: tuple[int, int]
    strength: float
    hires_size: tuple[int, int] | None = None
    # The model as it was loaded: its name and hash go into the metadata, its autoencoder decodes.
    model: Model = field(repr=False)
    # The model whose network draws: `model` or its few-step student, with clip_skip applied.
    drawing_model: Model = field(repr=False, compare=False)
    # The guide model with clip_skip applied.
    drawing_guide: Model | None = field(default=None, repr=False, compare=False)
    parsed_prompt: Prompt = field(repr=False, compare=False)
    parsed_negative_prompt: Prompt = field(repr=False, compare=False)
    # The times of a whole drawing, from noise, and the denoiser that is evaluated at them.
    setup: SamplingSetup = field(repr=False, compare=False)

    @property
    def steps_after_strength(self) -> int:
        """Number of steps of a pass that starts from an image, counted as diffusers does."""
        return min(int(self.steps * self.strength), self.steps)

    @property
    def steps_per_pass(self) -> tuple[int, ...]:
        """Number of steps of each pass. With hires_size there are two, before and after the image is enlarged."""
        if self.hires_size:
            return (self.steps, self.steps_after_strength)
        return (self.steps_after_strength if self.image else self.steps,)

    @property
    def total_steps(self) -> int:
        """Number of Steps that are yielded before the last one."""
        return sum(self.steps_per_pass) + len(self.steps_per_pass) - 1

    @property
    def final_size(self) -> tuple[int, int]:
        """(width, height) of the resulting images in pixels."""
        if self.upsampler is not None:
            return self.size[0] * self.upsampler.factor, self.size[1] * self.upsampler.factor
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
    """The request with its open options chosen by the model's card, its prompts parsed and its network selected.

    prompt: the request's prompt, where it has been parsed already.
    InputError, naming the option, where the model cannot draw it; TypeError where it is resolved already."""
    if isinstance(request, ResolvedRequest):
        raise TypeError("this request is resolved already; give it to sample_steps")
    selected = select_network(model, request)
    parsed_prompt = parse_prompt(request.prompt) if prompt is None else prompt
    parsed_negative_prompt = parse_prompt(request.negative_prompt, "negative_prompt")
    check_loras(selected, parsed_prompt, parsed_negative_prompt)
    checked = _check_options(selected, request)
    guide = check_guide_model(selected, request.guide_model, request.negative_prompt)
    assert checked.sampler is not None and checked.timestep_spacing is not None and checked.steps is not None
    resolved = ResolvedRequest(
        **vars(checked),
        model=model,
        drawing_model=selected.with_clip_skip(checked.clip_skip),
        drawing_guide=None if guide is None else guide.with_clip_skip(checked.clip_skip),
        parsed_prompt=parsed_prompt,
        parsed_negative_prompt=parsed_negative_prompt,
        setup=selected.sampling_setup(checked.sampler, checked.timestep_spacing, checked.steps),
    )
    if resolved.steps_after_strength < 1:
        raise InputError(
            f" {resolved.strength:g}: leaves none of {resolved.steps} steps; choose more of either", "strength"
        )
    if selected.cfg_scale(2.0) == 1 and (names := ignored_options(resolved)):
        mend = "write NOT in the prompt" if resolved.negative_prompt else "leave it out"
        raise InputError(
            f": this model takes the guidance scale as an input and predicts once, which cannot be changed; {mend}",
            names[0],
        )
    return resolved


def _check_options(model: Model, request: Request) -> Request:
    """The request with every option chosen and checked, but for its prompts and its guide model."""
    card = model.card
    sampler = check_choice("sampler", card.sampler if request.sampler is None else request.sampler, SAMPLERS)
    check_seeds(request.seed, request.variation_seed, check_integer("count", request.count, 1, 1_000_000))
    size = choose_size(model, request.size, request.image, request.mask)
    steps = check_integer("steps", card.steps if request.steps is None else request.steps, 1, 1000)
    spacing = model.default_timestep_spacing(sampler) if request.timestep_spacing is None else request.timestep_spacing
    scale = card.guidance_scale if request.guidance_scale is None else request.guidance_scale
    hires_size = check_hires_size(model, request.hires_size, size)
    if request.batch_size is not None:
        check_integer("batch_size", request.batch_size, 1, 1_000_000)
    return replace(
        request,
        steps=steps,
        sampler=sampler,
        timestep_spacing=check_choice("timestep_spacing", spacing, TIMESTEP_SPACINGS),
        clip_skip=check_integer("clip_skip", request.clip_skip, 1, 100),
        guidance_scale=check_guidance_scale(scale),
        size=size,
        mix=check_image_prompts(model, request),
        guidance_method=check_choice("guidance_method", request.guidance_method, GUIDANCE_METHODS),
        guidance_rescale=check_fraction("guidance_rescale", request.guidance_rescale),
        guidance_interval=check_guidance_interval(request.guidance_interval),
        paste_original=check_bool("paste_original", request.paste_original),
        strength=check_strength(request),
        variation_strength=check_fraction("variation_strength", request.variation_strength),
        hires_size=hires_size,
        upsampler=check_upsampler(model, request),
        upscaler=check_choice("upscaler", request.upscaler, UPSCALERS),
        tile_size=check_tile_size(model, request.tile_size),
        dynamic_threshold=check_dynamic_threshold(model, request.dynamic_threshold, hires_size or size),
    )


def ignored_options(resolved: ResolvedRequest) -> list[str]:
    """The options of guidance that have no effect: at guidance scale 1, and in a model that takes the scale as an
    input. Where a prompt's weights do not sum to 1 (AND, NOT), the negative prompt counts without guidance too."""
    if resolved.drawing_model.cfg_scale(resolved.guidance_scale) != 1:
        return []
    names = [name for name, default in GUIDANCE_DEFAULTS.items() if getattr(resolved, name) != default]
    if resolved.negative_prompt:
        model, prompt = resolved.drawing_model, resolved.parsed_prompt
        weights = [sum(w) for count in resolved.steps_per_pass for w in prediction_weights(model, prompt, count)]
        names += ["negative_prompt"] if all(abs(1 - weight) < 1e-9 for weight in weights) else []
    return names
