"""The `parameters` text of A1111: other programs read ours, and we read theirs."""

from io import BytesIO
from typing import Any

import pytest
from PIL import Image
from sd_parsers import ParserManager

from unspeckle.errors import InputError
from unspeckle.generation.metadata import attach_metadata
from unspeckle.generation.request import Request
from unspeckle.output.a1111_parameters import (
    SAMPLER_NAMES,
    SCHEDULE_TYPES,
    format_parameters,
    parse_parameters,
    request_options,
)
from unspeckle.output.png import encode_png
from unspeckle.samplers import SAMPLERS
from unspeckle.timesteps import TIMESTEP_SPACINGS

METADATA: dict[str, Any] = {
    "prompt": "a frog on stilts",
    "negative_prompt": "blurry, red",
    "steps": 30,
    "sampler": "dpmpp_2m",
    "timestep_spacing": "karras",
    "guidance_scale": 7.5,
    "seed": 2**64 - 1,
    "size": [512, 768],
    "model": {"name": "tiny", "hash": "0123456789ab"},
    "batch": [2**64 - 1, 1],
    "version": "0.2.0",
}
THEIRS = """masterpiece, (a frog:1.3) on stilts, <lora:ink:0.8>
BREAK
two lines
Negative prompt: blurry, (bad hands:1.2),
text
Steps: 20, Sampler: DPM++ 2M SDE, Schedule type: Exponential, CFG scale: 7, Seed: 1234567890, Size: 512x768, \
Model hash: 6ce0161689, Model: v1-5-pruned-emaonly, VAE hash: 735e4c3a44, Denoising strength: 0.45, Clip skip: 2, \
Hires upscale: 1.5, Hires steps: 10, Hires upscaler: Latent (nearest-exact), Lora hashes: "ink: 0123456789ab, b: 1", \
Version: v1.10.1"""
TEXTS = [
    "a frog",
    "",
    " spaces at both ends ",
    "two\nlines\n",
    'with "quotes", commas: colons\\',
    "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1",
    "a frog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1",
    "ein Frösch, 蛙, 🐸👨‍👩‍👧",
    "Negative prompt: a frog",
    "a\nNegative prompt: b\nNegative prompt: c",
    "[frog:rabbit:0.4] AND hybrid(cat, dog) :0.5 NOT red <lora:ink:0.8>",
]


def metadata(**changes: Any) -> dict[str, Any]:
    return {**METADATA, **changes}


def test_the_text_is_that_of_a1111() -> None:
    assert format_parameters(METADATA) == (
        "a frog on stilts\nNegative prompt: blurry, red\nSteps: 30, Sampler: DPM++ 2M, Schedule type: Karras, "
        "CFG scale: 7.5, Seed: 18446744073709551615, Size: 512x768, Model hash: 0123456789ab, Model: tiny, "
        "Version: unspeckle 0.2.0"
    )
    hires = metadata(strength=0.5, hires_size=[768, 1152], upscaler="latent", clip_skip=2, guidance_scale=7.0)
    text = format_parameters({**hires, "negative_prompt": "", "model": {"name": 'a "b", c', "hash": "1"}})
    assert "Negative" not in text and "CFG scale: 7, " in text and 'Model: "a \\"b\\", c", ' in text
    assert "Denoising strength: 0.5, Clip skip: 2, Hires upscale: 1.5, Hires upscaler: Latent, " in text
    assert "Hires resize: 1024x1024, Hires upscaler: Lanczos" in format_parameters(metadata(hires_size=[1024, 1024]))
    varied = format_parameters(metadata(variation_seed=3, variation_strength=0.2))
    assert "Variation seed: 3, Variation seed strength: 0.2" in varied


def test_every_sampler_and_spacing_has_a_name_or_a_field() -> None:
    assert set(SAMPLER_NAMES) <= set(SAMPLERS)
    assert set(SCHEDULE_TYPES) == set(TIMESTEP_SPACINGS) - {"uniform", "shifted"}


@pytest.mark.parametrize("prompt", TEXTS)
@pytest.mark.parametrize("negative_prompt", [TEXTS[0], *TEXTS[-6:], ""])
def test_prompts_survive(prompt: str, negative_prompt: str) -> None:
    parameters = parse_parameters(format_parameters(metadata(prompt=prompt, negative_prompt=negative_prompt)))
    assert (parameters.prompt, parameters.negative_prompt) == (prompt, negative_prompt)
    assert parameters.settings["Seed"] == "18446744073709551615"


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("spacing", TIMESTEP_SPACINGS)
def test_options_survive(sampler: str, spacing: str) -> None:
    changes = {"sampler": sampler, "timestep_spacing": spacing, "strength": 0.4, "hires_size": [768, 1152]}
    changes |= {"upscaler": "latent", "clip_skip": 2, "variation_seed": 5, "variation_strength": 0.3}
    expected = {**METADATA, **changes, "size": (512, 768), "hires_size": (768, 1152)}
    for name in ("model", "batch", "version"):
        del expected[name]
    parameters = parse_parameters(format_parameters(metadata(**changes)))
    assert request_options(parameters) == expected
    assert Request(**expected) and parameters.unused_settings == []


def test_a_text_of_a1111() -> None:
    parameters = parse_parameters(THEIRS)
    assert request_options(parameters) == {
        "prompt": "masterpiece, (a frog:1.3) on stilts, <lora:ink:0.8>\nBREAK\ntwo lines",
        "negative_prompt": "blurry, (bad hands:1.2),\ntext",
        "steps": 20,
        "sampler": "dpmpp_2m_sde",
        "timestep_spacing": "exponential",
        "guidance_scale": 7.0,
        "seed": 1234567890,
        "size": (512, 768),
        "strength": 0.45,
        "clip_skip": 2,
        "hires_size": (768, 1152),
        "upscaler": "latent",
    }
    assert parameters.settings["Lora hashes"] == "ink: 0123456789ab, b: 1"
    assert parameters.unused_settings == ["VAE hash", "Hires steps", "Lora hashes"]
    assert parameters.model_label == "v1-5-pruned-emaonly (6ce0161689)" and not parameters.starts_from_image


@pytest.mark.parametrize(
    ("settings", "sampler", "spacing"),
    [
        ("Sampler: DPM++ 2M Karras", "dpmpp_2m", "karras"),
        ("Sampler: DPM++ 2M", "dpmpp_2m", "linspace"),
        ("Sampler: DPM++ 2M, Schedule type: Automatic", "dpmpp_2m", "karras"),
        ("Sampler: DPM++ 2M SDE, Schedule type: Automatic", "dpmpp_2m_sde", "exponential"),
        ("Sampler: Euler a, Schedule type: Automatic", "euler_ancestral", "linspace"),
        ("Sampler: Euler a, Schedule type: Uniform", "euler_ancestral", "linspace"),
        ("Sampler: Euler SGM Uniform", "euler", "trailing"),
        ("Sampler: Euler, Schedule type: Simple", "euler", "trailing"),
        ("Sampler: DDIM, Schedule type: Automatic", "ddim", "leading"),
        ("Sampler: ddim", "ddim", "leading"),
        ("Sampler: LCM, Timestep spacing: shifted", "lcm", "shifted"),
    ],
)
def test_samplers_and_schedule_types_of_a1111(settings: str, sampler: str, spacing: str) -> None:
    options = request_options(parse_parameters(f"Steps: 20, {settings}, CFG scale: 7, Seed: 1, Size: 8x8"))
    assert (options["sampler"], options["timestep_spacing"]) == (sampler, spacing)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "do not end with a line such as Steps: 20"),
        ("a frog", "do not end with a line such as"),
        ("Steps: 20, Sampler: DPM adaptive, CFG scale: 7, Seed: 1, Size: 8x8", "sampler 'DPM adaptive' does not exist"),
        ("Steps: 20, Sampler: Euler, Schedule type: Beta, CFG scale: 7, Seed: 1, Size: 8x8", "type 'Beta'"),
        ("Steps: 20, Sampler: Euler, CFG scale: 7, Size: 8x8", "lack 'Seed'"),
        ("Sampler: Euler, CFG scale: 7, Seed: 1, Size: 8x8", "lack 'Steps'"),
        ("Steps: many, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 8x8", "are damaged"),
        ("Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 8", "are damaged"),
        ("Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 8x8, Hires upscale: 2, Hires upscaler: R-ESRGAN 4x+",
         "its hires upscaler 'R-ESRGAN 4x+' does not exist"),
        ("Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 8x8, Hires upscale: inf", "are damaged"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_named(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        request_options(parse_parameters(text))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_some_options_alone() -> None:
    parameters = parse_parameters("a frog\nSteps: 20, Sampler: DPM fast, CFG scale: 7")
    options = request_options(parameters, ("prompt", "steps", "seed"))
    assert options == {"prompt": "a frog", "steps": 20}
    with pytest.raises(InputError, match="DPM fast"):
        request_options(parameters, ("sampler",))


def test_a_drawing_from_an_image_says_so() -> None:
    text = format_parameters(metadata(strength=0.4))
    assert parse_parameters(text).starts_from_image
    assert not parse_parameters(format_parameters(METADATA)).starts_from_image


@pytest.mark.parametrize("prompt", TEXTS)
@pytest.mark.parametrize("negative_prompt", ["", "Negative prompt: Steps: 1, Sampler: x, Seed: 2", "böse\n🐸"])
def test_sd_parsers_reads_our_images(prompt: str, negative_prompt: str) -> None:
    image = attach_metadata(Image.new("RGB", (4, 4)), metadata(prompt=prompt, negative_prompt=negative_prompt))
    info = ParserManager().parse(BytesIO(encode_png(image)))
    assert info is not None
    [sampler] = info.samplers
    assert (sampler.name, sampler.parameters) == (
        "DPM++ 2M",
        {"scheduler": "Karras", "cfg_scale": "7.5", "seed": "18446744073709551615", "steps": "30"},
    )
    assert (sampler.model.name, sampler.model.hash) == ("tiny", "0123456789ab")
    prompts, negative_prompts = ([one.value for one in found] for found in (sampler.prompts, sampler.negative_prompts))
    # A colon that would look like the mark of the negative prompt is written with a backslash
    expected = [text.replace("prompt:", "prompt\\:").strip() for text in (prompt, negative_prompt)]
    assert (prompts, negative_prompts) == tuple([text] if text else [] for text in expected)
    assert info.metadata["Size"] == "512x768" and info.metadata["Version"] == "unspeckle 0.2.0"
