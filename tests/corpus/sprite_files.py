"""A folder of simple sprites, from which the tests make corpora of emoji scenes without a font."""

from pathlib import Path

from PIL import Image, ImageDraw

# Color and shape of each sprite. The names are curated nouns, so that faces can wear things and become hybrids.
SPRITES = {
    "frog": ((120, 190, 40), "ellipse"),
    "rabbit": ((170, 175, 180), "tall"),
    "panda": ((240, 240, 240), "ellipse"),
    "pig": ((250, 160, 190), "ellipse"),
    "cat": ((250, 190, 20), "ellipse"),
    "car": ((220, 40, 30), "wide"),
    "tree": ((30, 130, 40), "tall"),
    "book": ((40, 90, 220), "square"),
    "crown": ((250, 200, 40), "wide"),
    "top hat": ((30, 30, 34), "square"),
}
BOXES = {
    "ellipse": (10, 20, 150, 140),
    "tall": (50, 5, 110, 155),
    "wide": (5, 40, 155, 110),
    "square": (20, 20, 140, 140),
}


def write_sprites(folder: Path) -> Path:
    """Write all sprites as name.png; returns the folder."""
    for name, (color, shape) in SPRITES.items():
        image = Image.new("RGBA", (160, 160))
        draw = ImageDraw.Draw(image)
        paint = draw.ellipse if shape in {"ellipse", "tall"} else draw.rectangle
        paint(BOXES[shape], fill=(*color, 255))
        draw.ellipse((60, 60, 70, 70), fill=(20, 20, 20, 255))
        image.save(folder / f"{name}.png")
    return folder
