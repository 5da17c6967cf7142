"""The film strip of a drawing: the noisy image, the predicted noise and the denoised image at some of its steps."""

import io
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from unspeckle.generation.codec import decode_to_images
from unspeckle.generation.pipeline import sample_steps
from unspeckle.generation.request import Request, make_request
from unspeckle.generation.resolve import resolve
from unspeckle.model import Model
from unspeckle.output.inline_image import image_html
from unspeckle.samplers import Step

MAX_COLUMNS = 8
# Pixels to which the shorter side of a frame is enlarged, so that its label can be read
MIN_FRAME_SIDE = 96
ROW_LABELS = ("noisy image", "predicted noise", "denoised image")  # x_t, eps, x̂
NOISE_ROW = 1
# Of the animation
FRAME_MILLISECONDS, LAST_FRAME_MILLISECONDS = 300, 2000
_BACKGROUND, _TEXT, _GRAY_TEXT = (250, 250, 247), (30, 30, 34), (110, 110, 118)


@dataclass
class FilmStrip:
    """Records some of the steps of a drawing, evenly spaced, the first and the last among them."""

    model: Model
    # Number of steps of the drawing, which yields one Step more.
    steps: int
    # The recorded Steps so far.
    recorded: list[Step] = field(default_factory=list)
    # Number of Steps seen so far.
    step_count: int = 0

    def __post_init__(self) -> None:
        columns = min(MAX_COLUMNS, self.steps + 1)
        self._recorded_steps = {round(i * self.steps / max(columns - 1, 1)) for i in range(columns)}

    def record(self, step: Step) -> None:
        """Record the next Step if it is one of the film strip's."""
        if self.step_count in self._recorded_steps:
            self.recorded.append(step)
        self.step_count += 1

    def render(self, index: int = 0) -> Image.Image:
        """The film strip of the image at this index of the batch: three rows, and a column for each recorded step."""
        return draw_sheet(self._rows(index), [float(step.t) for step in self.recorded])

    def animation(self, index: int = 0) -> bytes:
        """The image at this index of the batch as it comes out of the noise: an animated WebP file of the recorded
        steps, which begins anew without end."""
        first, *others = self._rows(index)[0]
        durations = [FRAME_MILLISECONDS] * len(others) + [LAST_FRAME_MILLISECONDS]
        file = io.BytesIO()
        first.save(file, "WEBP", save_all=True, append_images=others, duration=durations, loop=0, lossless=True)
        return file.getvalue()

    def _repr_html_(self) -> str:
        """For notebooks: the animation, and the film strip below it."""
        strip = io.BytesIO()
        self.render().save(strip, "PNG")
        animation = image_html(self.animation(), "image/webp")
        return f"<div>{animation}</div><div>{image_html(strip.getvalue(), 'image/png')}</div>"

    @torch.no_grad()
    def _rows(self, index: int) -> list[list[Image.Image]]:
        """The frames of each row, of the image at this index of the batch."""
        rows: list[list[Image.Image]] = [[], [], []]
        for step in self.recorded:
            alpha, sigma = (level.to(step.x) for level in self.model.denoiser.schedule(step.t))
            x, denoised = step.x[index : index + 1], step.denoised[index : index + 1]
            eps = (x - alpha * denoised) / sigma if sigma > 0 else torch.zeros_like(x)
            scale = (alpha**2 + sigma**2) ** -0.5  # x_t of unit variance, as finished images have
            for row, latents in zip(rows, (scale * x, eps, denoised), strict=True):
                row.extend(decode_to_images(self.model, latents))
        return rows


def film(model: Model, request: Request | str, **options: Any) -> FilmStrip:
    """Draw the request and record its steps, to be rendered, or shown by a notebook. The arguments are those of
    `draw`."""
    resolved = resolve(model, make_request(request, options))
    strip = FilmStrip(model, resolved.total_steps)
    for step in sample_steps(resolved):
        strip.record(step)
    return strip


def draw_sheet(rows: list[list[Image.Image]], times: list[float]) -> Image.Image:
    """One image of all frames, with a label for each row and the time of each column."""
    width, height = rows[0][0].size
    scale = max(1, -(-MIN_FRAME_SIDE // min(width, height)))
    width, height = width * scale, height * scale
    gap, size = 6, max(13, min(width, height) // 7)
    font = ImageFont.load_default(size)
    margin = round(max(font.getlength(word) for label in ROW_LABELS for word in label.split())) + 3 * gap
    top = size + 3 * gap
    sheet = Image.new("RGB", (margin + len(times) * (width + gap), top + 3 * (height + gap)), _BACKGROUND)
    canvas = ImageDraw.Draw(sheet)
    for j, t in enumerate(times):
        middle = margin + j * (width + gap) + width // 2
        label = f"t = {t:.2f}" if font.getlength("t = 0.00") <= width else f"{t:.2f}"
        canvas.text((middle, top // 2), label, fill=_TEXT, font=font, anchor="mm")
    for i, (label, row) in enumerate(zip(ROW_LABELS, rows, strict=True)):
        y = top + i * (height + gap)
        words = label.replace(" ", "\n")
        canvas.multiline_text((gap, y + height // 2), words, fill=_TEXT, font=font, anchor="lm", spacing=gap)
        for j, (frame, t) in enumerate(zip(row, times, strict=True)):
            x = margin + j * (width + gap)
            if i == NOISE_ROW and t == 0:
                canvas.text((x + width // 2, y + height // 2), "none left", fill=_GRAY_TEXT, font=font, anchor="mm")
            else:
                sheet.paste(frame.resize((width, height), Image.Resampling.NEAREST), (x, y))
    return sheet
