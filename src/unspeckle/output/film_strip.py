"""The film of a drawing: x_t, the predicted noise and the predicted picture along the way, as one labelled picture."""

from dataclasses import dataclass, field

import torch
from PIL import Image, ImageDraw, ImageFont

from unspeckle.generation.codec import decode_to_images
from unspeckle.model import Model
from unspeckle.samplers import Step

MAX_COLUMNS = 8
MIN_FRAME_SIDE = 96  # pixels that a frame's shorter side is enlarged to, so that it and its label can be read
ROW_LABELS = ("x_t", "predicted noise", "predicted picture")
_PAPER, _INK, _FAINT = (250, 250, 247), (30, 30, 34), (110, 110, 118)


@dataclass
class FilmStrip:
    """Keeps some of a drawing's steps, evenly along the way, the last always. steps: how many it will have in all."""

    model: Model
    steps: int
    recorded: list[Step] = field(default_factory=list)
    step_count: int = 0

    def __post_init__(self) -> None:
        columns = min(MAX_COLUMNS, self.steps + 1)
        self._recorded_steps = {round(i * self.steps / max(columns - 1, 1)) for i in range(columns)}

    def record(self, step: Step) -> None:
        """Take note of the next step; the samplers give steps + 1 of them."""
        if self.step_count in self._recorded_steps:
            self.recorded.append(step)
        self.step_count += 1

    @torch.no_grad()
    def render(self, index: int = 0) -> Image.Image:
        """The film of the picture at `place` of the batch: a column for each step kept, three rows, times above."""
        rows: list[list[Image.Image]] = [[], [], []]
        for step in self.recorded:
            alpha, sigma = (level.to(step.x) for level in self.model.denoiser.schedule(step.t))
            x, denoised = step.x[index : index + 1], step.denoised[index : index + 1]
            eps = (x - alpha * denoised) / sigma if sigma > 0 else torch.zeros_like(x)
            unit = (alpha**2 + sigma**2) ** -0.5  # shows every schedule's x_t at the contrast of a picture
            for row, shown in zip(rows, (unit * x, eps, denoised), strict=True):
                row.extend(decode_to_images(self.model, shown))
        return draw_sheet(rows, [float(step.t) for step in self.recorded])


def draw_sheet(rows: list[list[Image.Image]], times: list[float]) -> Image.Image:
    width, height = rows[0][0].size
    scale = max(1, -(-MIN_FRAME_SIDE // min(width, height)))
    width, height = width * scale, height * scale
    gap, size = 6, max(13, min(width, height) // 7)
    font = ImageFont.load_default(size)
    margin = round(max(font.getlength(word) for label in ROW_LABELS for word in label.split())) + 3 * gap
    top = size + 3 * gap
    sheet = Image.new("RGB", (margin + len(times) * (width + gap), top + 3 * (height + gap)), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for j, t in enumerate(times):
        middle = margin + j * (width + gap) + width // 2
        label = f"t = {t:.2f}" if font.getlength("t = 0.00") <= width else f"{t:.2f}"
        pen.text((middle, top // 2), label, fill=_INK, font=font, anchor="mm")
    for i, (label, row) in enumerate(zip(ROW_LABELS, rows, strict=True)):
        y = top + i * (height + gap)
        words = label.replace(" ", "\n")
        pen.multiline_text((gap, y + height // 2), words, fill=_INK, font=font, anchor="lm", spacing=gap)
        for j, (frame, t) in enumerate(zip(row, times, strict=True)):
            x = margin + j * (width + gap)
            if i == 1 and t == 0:
                pen.text((x + width // 2, y + height // 2), "none left", fill=_FAINT, font=font, anchor="mm")
            else:
                sheet.paste(frame.resize((width, height), Image.Resampling.NEAREST), (x, y))
    return sheet
