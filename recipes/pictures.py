"""The pictures of docs/how-it-works.md and of the README, drawn by a model from fixed seeds into docs/pictures/.

film.png      one drawing: x_t, predicted noise, predicted picture (as `unspeckle draw … --strip` saves it)
guidance.png  the same seeds at four guidance scales
steps.png     the same seeds in 1 to 32 steps
noise.png     one picture at six times of the model's schedule
grid.png      PROMPTS, 8 × 8
prompts.png   LANGUAGE, 6 × 2, for docs/prompts.md
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from unspeckle import Model, Request, draw, load, rng, steps
from unspeckle.generation.codec import decode_to_images
from unspeckle.generation.pipeline import images_with_metadata
from unspeckle.generation.request import resolve
from unspeckle.output import png
from unspeckle.output.film_strip import FilmStrip

FOLDER = Path(__file__).parents[1] / "docs/pictures"
LARGEST = 800_000  # bytes of all six together

PROMPTS = (  # with seed 7 each; held-out.jsonl says which of them training never showed
    "a frog", "a rabbit", "a panda", "a cat", "a dog", "a bear", "a fox", "a lion",
    "a monkey", "a pig", "a mouse", "a koala", "a cow", "an elephant", "a turtle", "a fish",
    "an octopus", "a crab", "a penguin", "a butterfly", "a tree", "a cactus", "a sunflower", "a mushroom",
    "an apple", "a banana", "a strawberry", "a carrot", "a pizza", "a hamburger", "a doughnut", "a car",
    "a rocket", "a sailboat", "a house", "a balloon", "a star", "a heart", "a guitar", "a robot",
    "a frog on stilts", "a penguin on stilts", "a frog-rabbit hybrid", "a dog-lion hybrid",
    "a blue frog", "a red panda", "a purple elephant", "a green heart",
    "a cat wearing a top hat", "a pig wearing sunglasses", "a bear wearing a crown", "a rabbit wearing a bow",
    "two green apples", "three carrots", "four stars", "two foxes",
    "an apple to the left of a banana", "a heart above a star", "a rocket above a house", "a crab next to a fish",
    "a yellow car and a blue house", "a pizza on a blue background", "a small mouse and a big cow", "a bunny",
)  # fmt: skip
ACROSS = 8  # in a row of grid.png
LANGUAGE = (
    "a (red:0.5) rabbit", "a (red:1.5) rabbit", "a frog on (stilts:0)", "[a dog:a lion:0.2]", "[a dog|a lion]",
    "a panda AND a pizza", "a red rabbit NOT red", "a cat on a [blue|yellow] background",
    "a hybrid(frog, rabbit)", "a hybrid(dog, lion, 0.5, guesses)", "a frog BREAK on stilts", "a hybrid(fox, pig)",
)  # fmt: skip
SEED = 7
FILMED = "a frog on stilts"
COMPARED = ("a rabbit on a green background", "a blue frog")  # a row each of guidance.png and steps.png
SCALES = (1.0, 2.0, 4.0, 8.0)
STEPS = (1, 2, 4, 8, 16, 32)
SPECKLED = "a frog on a yellow background"
TIMES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)

SIDE = 128  # of a frame: a picture of 64 pixels twice enlarged
GAP, SMALL = 8, 12
PAPER, INK, FAINT = (250, 250, 247), (30, 30, 34), (110, 110, 118)
COLOURS = 256  # of a sheet that shows noise, which hardly compresses
BITS = 0xF8  # kept of a colour where drawings are compared: 5 of 8
Frames = Sequence[Image.Image]


def film(model: Model) -> Image.Image:
    """One drawing from noise to picture; the ask stands in its metadata as in every film's."""
    order = resolve(model, Request(FILMED, seed=SEED))
    reel = FilmStrip(model, order.steps)
    for step in steps(model, order):
        reel.record(step)
    said = png.image_metadata(images_with_metadata(order, step)[0])
    return png.attach_metadata(few_colours(reel.render()), {**said, "film": True})


def guidance(model: Model) -> Image.Image:
    """A row for each prompt, a column for each guidance scale."""
    return compared(model, [f"scale {scale:g}" for scale in SCALES], [{"scale": scale} for scale in SCALES])


def few_steps(model: Model) -> Image.Image:
    """A row for each prompt, a column for each number of steps."""
    named = [f"{count} step{'s' * (count > 1)}" for count in STEPS]
    scale = model.card.guidance_scale  # said, so that the teacher draws and not its student
    return compared(model, named, [{"steps": count, "scale": scale} for count in STEPS])


def compared(model: Model, titles: Sequence[str], changes: Sequence[dict[str, float | int]]) -> Image.Image:
    rows = []
    for prompt in COMPARED:
        drawn = [draw(model, replace(Request(prompt, seed=SEED), **change))[0] for change in changes]  # type: ignore[arg-type]
        rows.append([frame.point(lambda value: value & BITS) for frame in drawn])
    return sheet(rows, titles, COMPARED)


@torch.no_grad()
def noise(model: Model) -> Image.Image:
    """x_t = alpha_t x + sigma_t eps, one x and one eps, at the contrast of a picture whatever the schedule."""
    for step in steps(model, Request(SPECKLED, seed=SEED)):
        x = step.x
    eps = rng.noise_from_seeds([SEED], x.shape[1:], x.device)(-1, 0)
    frames, titles = [], []
    for t in torch.tensor(TIMES, dtype=torch.float64):
        alpha, sigma = (float(level) for level in model.denoiser.schedule(t))
        frames += decode_to_images(model, (alpha * x + sigma * eps) / (alpha**2 + sigma**2) ** 0.5)
        titles.append(f"t = {float(t):.1f}\nalpha {alpha:.2f}, sigma {sigma:.2f}")
    return few_colours(sheet([frames], titles))


def grid(model: Model) -> Image.Image:
    return captioned(model, PROMPTS, ACROSS)


def language(model: Model) -> Image.Image:
    return captioned(model, LANGUAGE, 6)


def captioned(model: Model, prompts: Sequence[str], across: int) -> Image.Image:
    """The prompts' pictures, each with its words below."""
    frames = [draw(model, Request(prompt, seed=SEED))[0] for prompt in prompts]
    font = ImageFont.load_default(SMALL)
    below = 2 * SMALL + 12
    rows = len(prompts) // across
    page = Image.new("RGB", (GAP + across * (SIDE + GAP), GAP + rows * (SIDE + below)), PAPER)
    pen = ImageDraw.Draw(page)
    for i, (frame, prompt) in enumerate(zip(frames, prompts, strict=True)):
        left, top = GAP + i % across * (SIDE + GAP), GAP + i // across * (SIDE + below)
        page.paste(enlarged(frame), (left, top))
        words = "\n".join(wrapped(prompt, font))
        pen.multiline_text((left + SIDE // 2, top + SIDE + 3), words, INK, font, "ma", spacing=2, align="center")
    return few_colours(page)


def sheet(rows: Sequence[Frames], titles: Sequence[str], names: Sequence[str] = ()) -> Image.Image:
    """Rows of frames under their titles; the names, if any, stand small above the rows."""
    font = ImageFont.load_default(SMALL)
    head = GAP + (SMALL + 4) * max(title.count("\n") + 1 for title in titles)
    above = SMALL + 8 if names else 0
    width, height = GAP + len(titles) * (SIDE + GAP), head + len(rows) * (above + SIDE + GAP)
    page = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(page)
    for j, title in enumerate(titles):
        middle = GAP + j * (SIDE + GAP) + SIDE // 2
        pen.multiline_text((middle, GAP), title, INK, font, "ma", spacing=4, align="center")
    for i, row in enumerate(rows):
        top = head + i * (above + SIDE + GAP)
        if names:
            pen.text((GAP, top + above - 5), names[i], FAINT, font, "ls")
        for j, frame in enumerate(row):
            page.paste(enlarged(frame), (GAP + j * (SIDE + GAP), top + above))
    return page


def few_colours(page: Image.Image) -> Image.Image:
    """The page with a palette: a third of the bytes where it shows noise."""
    return page.quantize(COLOURS, dither=Image.Dither.NONE)


def enlarged(frame: Image.Image) -> Image.Image:
    """The frame as a square of SIDE pixels, every pixel of it kept visible."""
    return frame.resize((SIDE, SIDE), Image.Resampling.NEAREST)


def wrapped(words: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> list[str]:
    """The words in lines no wider than a frame."""
    lines: list[str] = []
    for word in words.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= SIDE:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


SHEETS: dict[str, Callable[[Model], Image.Image]] = {
    "film": film, "guidance": guidance, "steps": few_steps, "noise": noise, "grid": grid,
    "prompts": language,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a RUN or a .safetensors file; without it, the embedded model")
    parser.add_argument("--out", type=Path, default=FOLDER)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    model, total = load(args.model), 0
    for name, make in SHEETS.items():
        path = args.out / f"{name}.png"
        png.write_png(make(model), path)
        total += path.stat().st_size
        print(f"{path}: {path.stat().st_size:,} bytes")
    if total > LARGEST:
        raise SystemExit(f"{args.out}: {total:,} bytes together, more than {LARGEST:,}")


if __name__ == "__main__":
    main()
