"""Draw the images of the documents into docs/images/, by a model and from fixed seeds.

film.png      one drawing: noisy image, predicted noise, denoised image (as `unspeckle draw … --film-strip` saves it)
guidance.png  the same seeds at four guidance scales
steps.png     the same seeds in 1 to 32 steps
noise.png     one image at six times of the model's schedule
grid.png      PROMPTS, 8 × 8
prompts.png   LANGUAGE_PROMPTS, 6 × 2, for docs/prompts.md
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from unspeckle import Model, Request, draw, load, rng, steps
from unspeckle.generation.codec import decode_to_images
from unspeckle.generation.metadata import attach_metadata, image_metadata
from unspeckle.generation.pipeline import images_with_metadata, sample_steps
from unspeckle.generation.resolve import resolve
from unspeckle.output import png
from unspeckle.output.film_strip import FilmStrip

FOLDER = Path(__file__).parents[1] / "docs/images"
MAX_BYTES = 800_000  # of all six together

# As people write them, by somebody who had seen only the list of nouns; with seed 7 each
PROMPTS = (Path(__file__).parent / "grid_prompts.txt").read_text(encoding="utf-8").splitlines()
GRID_COLUMNS = 8
LANGUAGE_PROMPTS = (
    "a (red:0.5) rabbit", "a (red:1.5) rabbit", "a frog on (stilts:0)", "[a dog:a lion:0.2]", "[a dog|a lion]",
    "a panda AND a pizza", "a red rabbit NOT red", "a cat on a [blue|yellow] background",
    "a hybrid(frog, rabbit)", "a hybrid(dog, lion, 0.5, guesses)", "a frog BREAK on stilts", "a hybrid(fox, pig)",
)  # fmt: skip
SEED = 7
FILM_PROMPT = "a frog on stilts"
COMPARISON_PROMPTS = ("a rabbit on a green background", "a blue frog")  # a row each of guidance.png and steps.png
GUIDANCE_SCALES = (1.0, 2.0, 4.0, 8.0)
STEP_COUNTS = (1, 2, 4, 8, 16, 32)
NOISE_PROMPT = "a frog on a yellow background"
TIMES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)

FRAME_SIDE = 128  # pixels of a frame: an image of 64 pixels, twice enlarged
GAP, FONT_SIZE = 8, 12
PAPER, INK, FAINT = (250, 250, 247), (30, 30, 34), (110, 110, 118)
PALETTE_COLORS = 256  # of a sheet that shows noise, which hardly compresses
KEPT_BITS = 0xF8  # of a color where drawings are compared: 5 of 8
Frames = Sequence[Image.Image]


def film_sheet(model: Model) -> Image.Image:
    """One drawing from noise to image, with the metadata that every film strip has."""
    resolved = resolve(model, Request(FILM_PROMPT, seed=SEED))
    film = FilmStrip(model, resolved.steps)
    for step in sample_steps(resolved):
        film.record(step)
    metadata = image_metadata(images_with_metadata(resolved, step)[0])
    return attach_metadata(reduce_colors(film.render()), {**metadata, "film": True})


def guidance_sheet(model: Model) -> Image.Image:
    """A row for each prompt, a column for each guidance scale."""
    titles = [f"scale {scale:g}" for scale in GUIDANCE_SCALES]
    return comparison_sheet(model, titles, [{"guidance_scale": scale} for scale in GUIDANCE_SCALES])


def steps_sheet(model: Model) -> Image.Image:
    """A row for each prompt, a column for each number of steps."""
    titles = [f"{count} step{'s' * (count > 1)}" for count in STEP_COUNTS]
    # An explicit guidance scale makes the full model draw, not its student, at 1, 2 and 4 steps.
    scale = model.card.guidance_scale
    return comparison_sheet(model, titles, [{"steps": count, "guidance_scale": scale} for count in STEP_COUNTS])


def comparison_sheet(model: Model, titles: Sequence[str], columns: Sequence[dict[str, Any]]) -> Image.Image:
    """A row for each of COMPARISON_PROMPTS, a column for each of the options."""
    rows = []
    for prompt in COMPARISON_PROMPTS:
        images = [draw(model, prompt, seed=SEED, **options)[0] for options in columns]
        rows.append([image.point(lambda value: value & KEPT_BITS) for image in images])
    return frame_sheet(rows, titles, COMPARISON_PROMPTS)


@torch.no_grad()
def noise_sheet(model: Model) -> Image.Image:
    """x_t = alpha_t x + sigma_t eps at TIMES, for one x and one eps, all at the contrast of an image."""
    for step in steps(model, NOISE_PROMPT, seed=SEED):
        x = step.x
    eps = rng.noise_from_seeds([SEED], x.shape[1:], x.device)(-1, 0)
    frames, titles = [], []
    for t in torch.tensor(TIMES, dtype=torch.float64):
        alpha, sigma = (float(level) for level in model.denoiser.schedule(t))
        frames += decode_to_images(model, (alpha * x + sigma * eps) / (alpha**2 + sigma**2) ** 0.5)
        titles.append(f"t = {float(t):.1f}\nalpha {alpha:.2f}, sigma {sigma:.2f}")
    return reduce_colors(frame_sheet([frames], titles))


def grid_sheet(model: Model) -> Image.Image:
    """PROMPTS, each with its image."""
    return captioned_sheet(model, PROMPTS, GRID_COLUMNS)


def language_sheet(model: Model) -> Image.Image:
    """LANGUAGE_PROMPTS, each with its image."""
    return captioned_sheet(model, LANGUAGE_PROMPTS, 6)


def captioned_sheet(model: Model, prompts: Sequence[str], columns: int) -> Image.Image:
    """The images of the prompts, each with its prompt below."""
    frames = [draw(model, prompt, seed=SEED)[0] for prompt in prompts]
    font = ImageFont.load_default(FONT_SIZE)
    caption_height = 2 * FONT_SIZE + 12
    rows = len(prompts) // columns
    size = (GAP + columns * (FRAME_SIDE + GAP), GAP + rows * (FRAME_SIDE + caption_height))
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, (frame, prompt) in enumerate(zip(frames, prompts, strict=True)):
        left, top = GAP + i % columns * (FRAME_SIDE + GAP), GAP + i // columns * (FRAME_SIDE + caption_height)
        sheet.paste(enlarge(frame), (left, top))
        caption = "\n".join(wrap_text(prompt, font))
        place = (left + FRAME_SIDE // 2, top + FRAME_SIDE + 3)
        pen.multiline_text(place, caption, INK, font, "ma", spacing=2, align="center")
    return reduce_colors(sheet)


def frame_sheet(rows: Sequence[Frames], titles: Sequence[str], names: Sequence[str] = ()) -> Image.Image:
    """Rows of frames below their titles; the names, if any, stand in small letters above the rows."""
    font = ImageFont.load_default(FONT_SIZE)
    title_height = GAP + (FONT_SIZE + 4) * max(title.count("\n") + 1 for title in titles)
    name_height = FONT_SIZE + 8 if names else 0
    width = GAP + len(titles) * (FRAME_SIDE + GAP)
    height = title_height + len(rows) * (name_height + FRAME_SIDE + GAP)
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    for j, title in enumerate(titles):
        middle = GAP + j * (FRAME_SIDE + GAP) + FRAME_SIDE // 2
        pen.multiline_text((middle, GAP), title, INK, font, "ma", spacing=4, align="center")
    for i, row in enumerate(rows):
        top = title_height + i * (name_height + FRAME_SIDE + GAP)
        if names:
            pen.text((GAP, top + name_height - 5), names[i], FAINT, font, "ls")
        for j, frame in enumerate(row):
            sheet.paste(enlarge(frame), (GAP + j * (FRAME_SIDE + GAP), top + name_height))
    return sheet


def reduce_colors(sheet: Image.Image) -> Image.Image:
    """The sheet with a palette, which has a third of the bytes where it shows noise."""
    return sheet.quantize(PALETTE_COLORS, dither=Image.Dither.NONE)


def enlarge(frame: Image.Image) -> Image.Image:
    """The frame as a square of FRAME_SIDE pixels, in which each of its pixels stays visible."""
    return frame.resize((FRAME_SIDE, FRAME_SIDE), Image.Resampling.NEAREST)


def wrap_text(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> list[str]:
    """The text in lines no wider than a frame."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= FRAME_SIDE:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


SHEETS: dict[str, Callable[[Model], Image.Image]] = {
    "film": film_sheet,
    "guidance": guidance_sheet,
    "steps": steps_sheet,
    "noise": noise_sheet,
    "grid": grid_sheet,
    "prompts": language_sheet,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, help="a RUN folder or a .safetensors file; without it, the embedded model"
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help="the folder to write to")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    model, total_bytes = load(args.model), 0
    for name, make_sheet in SHEETS.items():
        path = args.out / f"{name}.png"
        png.write_png(make_sheet(model), path)
        total_bytes += path.stat().st_size
        print(f"{path}: {path.stat().st_size:,} bytes")
    if total_bytes > MAX_BYTES:
        raise SystemExit(f"{args.out}: {total_bytes:,} bytes together, more than {MAX_BYTES:,}")


if __name__ == "__main__":
    main()
