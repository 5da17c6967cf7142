"""How well held-out images and captions find each other, and what that looks like."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from unspeckle.corpus.splits import Split
from unspeckle.text.image_text_encoder import ImageTextModel

BATCH_SIZE = 64
# Of the samples: captions, images that are shown of each, and the least side of an image and the width of a caption in
# pixels
SAMPLE_ROWS, SAMPLE_COLUMNS = 8, 6
SAMPLE_SIDE, CAPTION_WIDTH, FONT_SIZE = 64, 220, 14


class RetrievalResult(NamedTuple):
    """How well N held-out images and their M different captions find each other."""

    # The mean cross-entropy of the right caption of an image among all, as a share of that of guessing, log M
    total: float
    # The share of images that are nearest to their own caption ("zero-shot accuracy"), and of captions that are
    # nearest to an image of theirs, also among the five nearest
    image_to_text: float
    text_to_image: float
    text_to_image_5: float
    images: int
    captions: int

    @property
    def levels(self) -> tuple[str, ...]:
        return ("image to text", "text to image")

    @property
    def levels_heading(self) -> str:
        return "search"

    @property
    def relative_errors(self) -> tuple[float, ...]:
        """The share of wrong ones, as a share of that of guessing."""
        return tuple(
            (1 - right) / max(1e-9, 1 - 1 / count)
            for right, count in ((self.image_to_text, self.captions), (self.text_to_image, self.images))
        )

    @property
    def summary(self) -> str:
        return (
            f"of {self.images} held-out images, {self.image_to_text:.1%} are nearest to their own of {self.captions} "
            f"captions; of the captions, {self.text_to_image:.1%} find an image of theirs first and "
            f"{self.text_to_image_5:.1%} among five; loss {self.total:.1%} of guessing's"
        )


class RetrievalValidation:
    """Compares the first images of a split with their first captions."""

    def __init__(self, split: Split, max_images: int) -> None:
        count = min(max_images, len(split))
        indices = torch.arange(count) * len(split) // count
        self.images = split.center_crops(indices)  # (N, 3, H, W) uint8
        image_captions = split.first_captions(indices)
        self.captions = list(dict.fromkeys(image_captions))
        places = {caption: place for place, caption in enumerate(self.captions)}
        self.caption_indices = torch.tensor([places[caption] for caption in image_captions])

    @torch.no_grad()
    def __call__(self, model: ImageTextModel) -> RetrievalResult:
        logits = self.logits(model)  # (N, M)
        own = self.caption_indices
        matches = F.one_hot(own, len(self.captions)).bool()
        first_image = logits.argmax(dim=0)
        nearest = logits.topk(min(5, len(logits)), dim=0).indices  # (5, M)
        return RetrievalResult(
            total=float(F.cross_entropy(logits, own)) / max(1e-9, math.log(len(self.captions))),
            image_to_text=float((logits.argmax(dim=1) == own).float().mean()),
            text_to_image=float(matches[first_image, torch.arange(len(self.captions))].float().mean()),
            text_to_image_5=float(matches[nearest, torch.arange(len(self.captions))].any(dim=0).float().mean()),
            images=len(self.images),
            captions=len(self.captions),
        )

    @torch.no_grad()
    def logits(self, model: ImageTextModel) -> Tensor:
        """How well each image goes with each caption, (N, M) float32."""
        batches = (batch.to(model.device).float() / 127.5 - 1 for batch in torch.split(self.images, BATCH_SIZE))
        images = torch.cat([model.encoder.encode_images(batch) for batch in batches])
        return model.encoder.logits(images, model.embed_texts(self.captions)).cpu()

    def draw_samples(self, model: ImageTextModel) -> Image.Image:
        """Captions, and beside each the held-out images that are nearest to it; those that have it are framed."""
        logits = self.logits(model)
        rows = [i * len(self.captions) // SAMPLE_ROWS for i in range(min(SAMPLE_ROWS, len(self.captions)))]
        height, width = self.images.shape[2:]
        scale = max(1, -(-SAMPLE_SIDE // min(height, width)))
        cell_width, cell_height = width * scale + 8, height * scale + 8
        sheet = Image.new("RGB", (CAPTION_WIDTH + SAMPLE_COLUMNS * cell_width, len(rows) * cell_height), "white")
        canvas, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
        for row, caption_index in enumerate(rows):
            y = row * cell_height
            text = wrap_text(self.captions[caption_index], CAPTION_WIDTH - 16, font)
            canvas.multiline_text((8, y + cell_height // 2), text, fill="black", font=font, anchor="lm")
            for column, image_index in enumerate(
                logits[:, caption_index].topk(min(SAMPLE_COLUMNS, len(logits))).indices
            ):
                x = CAPTION_WIDTH + column * cell_width
                if self.caption_indices[image_index] == caption_index:
                    canvas.rectangle((x, y, x + cell_width - 1, y + cell_height - 1), fill=(40, 140, 60))
                image = Image.fromarray(self.images[image_index].permute(1, 2, 0).contiguous().numpy())
                sheet.paste(image.resize((width * scale, height * scale), Image.Resampling.NEAREST), (x + 4, y + 4))
        return sheet


def wrap_text(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """The text in lines of at most that many pixels, where words allow it."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)
