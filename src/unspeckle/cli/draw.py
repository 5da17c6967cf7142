"""`unspeckle draw`: its options."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from unspeckle import quantities
from unspeckle.cli import options as shared
from unspeckle.cli.options import GUIDANCE, STABLE_DIFFUSION, STARTING_IMAGE, UNCLIP, VARIATIONS, ModelOptions
from unspeckle.errors import InputError

SEED_HELP = "Seed of the noise: with the same seed, model and options, a prompt gives the same image.  [default: 0]"
PROMPT_HELP = (
    "Text that describes the image. It needs quotes only if it contains characters to which your shell gives a "
    "meaning, such as ( ) [ ] < | ! or '. If it is left out, the PNG file given by --image must hold a prompt, from "
    "`unspeckle draw` or AUTOMATIC1111; its negative prompt, seed, steps, sampler and guidance scale are then used "
    "too, unless options give others."
)
COUNT_HELP = "Number of images. Their seeds are SEED, SEED + 1, SEED + 2, and so on."
BATCH_SIZE_HELP = (
    "How many images are drawn at the same time. Fewer need less memory.  [default: chosen by the size of the images]"
)
NEGATIVE_PROMPT_HELP = "What the image should not show. Has an effect where guidance is on.  [default: nothing]"
SIZE_HELP = (
    "Width and height in pixels, such as 64 or 96x64.  [default: the size of --image, or the value stored with the "
    "model]"
)
OUT_HELP = "Folder for the PNG files. It is created if it does not exist.  [default: the current folder]"
FILM_STRIP_HELP = (
    "Save a second image next to each one, which shows the noisy image, the predicted noise and the denoised image "
    "at up to 8 of the steps."
)
GUIDANCE_METHOD_HELP = (
    "How the predictions with and without the prompt are combined: cfg (classifier-free guidance) or apg (adaptive "
    "projected guidance, which oversaturates less at high scales)."
)
GUIDANCE_RESCALE_HELP = (
    "How much of the contrast that guidance adds is removed again, from 0 (none) to 1 (all); as guidance_rescale in "
    "diffusers.  [default: 0]"
)
GUIDANCE_INTERVAL_HELP = (
    "Guide only at times from LOW to HIGH, where 1 is pure noise and 0 the finished image, such as 0.1,0.8.  "
    "[default: at all times]"
)
DYNAMIC_THRESHOLD_HELP = (
    "Scale each denoised image so that this fraction of its values, such as 0.995, stays in range (dynamic "
    "thresholding). For models that denoise pixels.  [default: values out of range are clamped]"
)
GUIDE_MODEL_HELP = (
    "Guide away from a weaker model of the same kind instead of the negative prompt (autoguidance): a file or a RUN "
    "folder.  [default: none]"
)
IMAGE_HELP = "Image file to start from (img2img).  [default: start from noise]"
STRENGTH_HELP = (
    "How much the image is changed, from just above 0 (hardly) to 1 (completely): this fraction of the steps is "
    "taken.  [default: 0.8, or 1 if --mask is given, or 0.5 if --hires-size is given]"
)
MASK_HELP = "Image file that is white where --image is to be redrawn (inpainting) and black where it stays."
PASTE_ORIGINAL_HELP = "Whether the original pixels of --image are put back where the mask is black."
LIKE_HELP = (
    "Image file to draw variations of, with a model of `train --kind unclip`: what is drawn means the same, and looks "
    "different. Given twice, what is drawn lies between the two. A prompt is not needed then."
)
MIX_HELP = (
    "How far toward the second --like, or toward --to-words: 0 (not at all) to 1.  [default: 0.5, with --to-words 0.4]"
)
FROM_WORDS_HELP = 'Words for what --like shows, such as "a cat"; goes with --to-words.'
TO_WORDS_HELP = 'Words for what it is to show instead, such as "a dog".'
VARIATION_SEED_HELP = (
    "Make a variation of the image of --seed, by mixing the noise of --seed with the noise of this second seed "
    "(spherical interpolation). With --count, this seed counts up, and --seed stays the same.  [default: no variation]"
)
VARIATION_STRENGTH_HELP = (
    "How different the variation is: 0 gives the image of --seed, and 1 the image of --variation-seed."
)
HIRES_SIZE_HELP = (
    "Draw at --size, enlarge the image to this width and height in pixels, and draw it again from there with "
    "--strength (hires fix).  [default: draw once]"
)
UPSAMPLER_HELP = (
    "A model of `train --kind upsampler` (its file or RUN folder) that enlarges each image once it is drawn."
)
UPSCALER_HELP = "How the image is enlarged to --hires-size: lanczos (its pixels) or latent (its latents)."
PREVIEW_HELP = (
    "Tiny autoencoder (TAESD) that decodes what the terminal shows while the image is drawn. The saved image is still "
    "decoded by the model's own autoencoder.  [default: a fast approximation]"
)
CLIP_SKIP_HELP = (
    "Which layer of the CLIP text encoder the prompt is read from, counted from the end as A1111 does: 2 leaves out "
    "the last layer."
)
TILE_SIZE_HELP = (
    "Decode the image in tiles with sides of N pixels, which needs less memory; 512 is usual.  "
    "[default: 0, the whole image at once]"
)

EPILOG = """In a prompt, these forms have a special meaning (put the prompt in quotes):

\b
  (frog:1.3)            more weight for the word, or less: (frog:0.7)
  [frog:rabbit:0.4]     a frog for the first 0.4 of the steps, then a rabbit
  [frog|rabbit]         a frog and a rabbit in alternate steps
  a frog AND a hat      both descriptions, predicted separately
  a forest NOT trees    away from what follows NOT
  a frog BREAK a hat    two parts of text that are read separately
  hybrid(frog, rabbit)  one subject that is both
  <lora:ink:0.8>        the LoRA ink.safetensors with strength 0.8; give
                        --lora FOLDER, the folder that holds it, unless it is
                        next to the model
  \\( \\) \\[ \\]           brackets without a special meaning

They are described in docs/prompts.md.

Example: unspeckle draw "a blue frog" --count 4 --seed 7 --out images
"""


def draw(
    prompt: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT...", help=PROMPT_HELP, show_default=False)
    ] = None,
    model: shared.ModelPath = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help=SEED_HELP)] = None,
    count: Annotated[int, typer.Option("--count", "-n", metavar="N", help=COUNT_HELP)] = 1,
    batch_size: Annotated[int | None, typer.Option(metavar="N", help=BATCH_SIZE_HELP)] = None,
    steps: shared.Steps = None,
    sampler: shared.Sampler = None,
    timestep_spacing: shared.TimestepSpacing = None,
    guidance_scale: shared.GuidanceScale = None,
    negative_prompt: Annotated[str, typer.Option(metavar="TEXT", help=NEGATIVE_PROMPT_HELP, show_default=False)] = "",
    size: Annotated[str | None, typer.Option(metavar="N|WxH", help=SIZE_HELP)] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help=OUT_HELP, show_default=False)] = Path(),
    film_strip: Annotated[bool, typer.Option("--film-strip", help=FILM_STRIP_HELP)] = False,
    guidance_method: Annotated[
        str, typer.Option(metavar="cfg|apg", help=GUIDANCE_METHOD_HELP, rich_help_panel=GUIDANCE)
    ] = "cfg",
    guidance_rescale: Annotated[
        float,
        typer.Option(metavar="FRACTION", help=GUIDANCE_RESCALE_HELP, show_default=False, rich_help_panel=GUIDANCE),
    ] = 0.0,
    guidance_interval: Annotated[
        str | None, typer.Option(metavar="LOW,HIGH", help=GUIDANCE_INTERVAL_HELP, rich_help_panel=GUIDANCE)
    ] = None,
    dynamic_threshold: Annotated[
        float | None, typer.Option(metavar="FRACTION", help=DYNAMIC_THRESHOLD_HELP, rich_help_panel=GUIDANCE)
    ] = None,
    guide_model: Annotated[
        Path | None, typer.Option(metavar="MODEL", help=GUIDE_MODEL_HELP, rich_help_panel=GUIDANCE)
    ] = None,
    image: Annotated[Path | None, typer.Option(metavar="FILE", help=IMAGE_HELP, rich_help_panel=STARTING_IMAGE)] = None,
    strength: Annotated[
        float | None, typer.Option(metavar="FRACTION", help=STRENGTH_HELP, rich_help_panel=STARTING_IMAGE)
    ] = None,
    mask: Annotated[Path | None, typer.Option(metavar="FILE", help=MASK_HELP, rich_help_panel=STARTING_IMAGE)] = None,
    paste_original: Annotated[
        bool,
        typer.Option("--paste-original/--no-paste-original", help=PASTE_ORIGINAL_HELP, rich_help_panel=STARTING_IMAGE),
    ] = True,
    like: Annotated[list[Path] | None, typer.Option(metavar="FILE", help=LIKE_HELP, rich_help_panel=UNCLIP)] = None,
    mix: Annotated[float | None, typer.Option(metavar="FRACTION", help=MIX_HELP, rich_help_panel=UNCLIP)] = None,
    from_words: Annotated[
        str, typer.Option(metavar="TEXT", help=FROM_WORDS_HELP, show_default=False, rich_help_panel=UNCLIP)
    ] = "",
    to_words: Annotated[
        str, typer.Option(metavar="TEXT", help=TO_WORDS_HELP, show_default=False, rich_help_panel=UNCLIP)
    ] = "",
    variation_seed: Annotated[
        int | None, typer.Option(metavar="N", help=VARIATION_SEED_HELP, rich_help_panel=VARIATIONS)
    ] = None,
    variation_strength: Annotated[
        float, typer.Option(metavar="FRACTION", help=VARIATION_STRENGTH_HELP, rich_help_panel=VARIATIONS)
    ] = 0.2,
    hires_size: Annotated[
        str | None, typer.Option(metavar="N|WxH", help=HIRES_SIZE_HELP, rich_help_panel=VARIATIONS)
    ] = None,
    upsampler: Annotated[
        Path | None, typer.Option(metavar="MODEL", help=UPSAMPLER_HELP, rich_help_panel=VARIATIONS)
    ] = None,
    upscaler: Annotated[
        str, typer.Option(metavar="lanczos|latent", help=UPSCALER_HELP, rich_help_panel=VARIATIONS)
    ] = "lanczos",
    prediction: shared.Prediction = None,
    trust_pickle: shared.TrustPickle = False,
    lora: shared.Loras = None,
    embedding: shared.Embeddings = None,
    vae: shared.Vae = None,
    preview: Annotated[
        Path | None, typer.Option(metavar="FILE|FOLDER", help=PREVIEW_HELP, rich_help_panel=STABLE_DIFFUSION)
    ] = None,
    clip_skip: Annotated[int, typer.Option(metavar="N", help=CLIP_SKIP_HELP, rich_help_panel=STABLE_DIFFUSION)] = 1,
    tile_size: Annotated[
        int, typer.Option(metavar="N", help=TILE_SIZE_HELP, show_default=False, rich_help_panel=STABLE_DIFFUSION)
    ] = 0,
    precision: shared.Precision = "auto",
    device: shared.Device = None,
    quiet: shared.Quiet = False,
) -> int:
    """Draw images of a prompt and save them as PNG files.

    The terminal shows how the images emerge from noise, and then the paths of the files.
    """
    parsed_size = None if size is None else quantities.parse_size(size)
    parsed_hires_size = None if hires_size is None else quantities.parse_size(hires_size, "--hires-size")
    interval = (
        None if guidance_interval is None else quantities.parse_interval(guidance_interval, "--guidance-interval")
    )
    shared.check_sampler_name(sampler)
    if quiet and preview is not None:
        raise InputError("--preview: has no effect with --quiet; leave one of the two out")
    shared.limit_thread_spinning()
    from unspeckle.cli.recorded_options import options_of_image
    from unspeckle.cli.run_draw import DrawOptions, run_draw
    from unspeckle.generation.request import Request

    request = Request(
        prompt=" ".join(prompt or ()),
        negative_prompt=negative_prompt,
        seed=seed or 0,
        count=count,
        steps=steps,
        sampler=sampler,
        timestep_spacing=timestep_spacing,
        guidance_scale=guidance_scale,
        size=parsed_size,
        guidance_method=guidance_method,
        guidance_rescale=guidance_rescale,
        guidance_interval=interval,
        dynamic_threshold=dynamic_threshold,
        strength=strength,
        paste_original=paste_original,
        variation_seed=variation_seed,
        variation_strength=variation_strength,
        hires_size=parsed_hires_size,
        upscaler=upscaler,
        clip_skip=clip_skip,
        tile_size=tile_size,
        batch_size=batch_size,
        mix=mix,
        from_words=from_words,
        to_words=to_words,
    )
    add_ons: dict[str, Any] = {"loras": tuple(lora or ()), "embeddings": tuple(embedding or ()), "vae": vae}
    model_options = ModelOptions(model, device, precision, prediction, trust_pickle, **add_ons)
    files: dict[str, Any] = {"guide_model": guide_model, "image": image, "mask": mask, "upsampler": upsampler}
    files |= {"like": tuple(like or ()), "preview": preview}
    options = DrawOptions(request, model_options, out, film_strip=film_strip, quiet=quiet, **files)
    if not prompt and not like:
        options = replace(options, options_of_image=options_of_image(image, request, seed))
    return run_draw(options)
