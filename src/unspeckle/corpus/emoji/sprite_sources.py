"""Where sprites come from: the glyphs of a color-emoji font, or a folder of images with alpha."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unspeckle.corpus.emoji.nouns import CURATED_NOUNS, Noun, all_nouns
from unspeckle.errors import InputError

FONT_PATHS = (
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/google-noto-emoji/NotoColorEmoji.ttf",
    "/usr/share/fonts/google-noto-color-emoji-fonts/NotoColorEmoji.ttf",
    "/usr/share/fonts/noto-emoji/NotoColorEmoji.ttf",
    "~/.local/share/fonts/NotoColorEmoji.ttf",
    "~/.fonts/NotoColorEmoji.ttf",
    "/Library/Fonts/NotoColorEmoji.ttf",
    "~/Library/Fonts/NotoColorEmoji.ttf",
    "/System/Library/Fonts/Apple Color Emoji.ttc",
)
BITMAP_SIZES = (109, 160, 128, 136)
"""Sizes of the bitmaps that color fonts contain; Noto's is the first."""
CODE_POINT_NAME = re.compile(r"(?:00[0-9a-f]{2}|[23][0-9a-f]{3}|1[0-9a-f]{4})(?:_[0-9a-f]{4,5})*")
"""File names in sets of emoji: the code points in hexadecimal."""
DEFAULT_CATEGORY = "thing"
SPRITE_SIZE = 128
"""Pixels of a sprite's longer side; scenes are painted with sprites shrunk from this size."""

_UNASSIGNED_CHARACTER = "\U0010fffd"


class SpriteSource(Protocol):
    """Gives the image of a noun."""

    name: str
    """A font's file name, or a folder's absolute path."""

    def available_nouns(self) -> list[Noun]:
        """All nouns that it may have an image of."""

    def default_nouns(self) -> list[Noun]:
        """The nouns of a corpus for which none are chosen."""

    def load_image(self, name: str, glyph: str) -> Image.Image | None:
        """The trimmed sprite of a noun, RGBA; None if there is none."""


class EmojiFont:
    """The glyphs of a color-emoji font as sprites. Raises OSError if the font has no bitmaps of a known size."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._font = _load_bitmap_font(path)
        self._missing_glyph = self._draw_glyph(_UNASSIGNED_CHARACTER)

    @classmethod
    def find_system_font(cls) -> EmojiFont:
        """The system's color-emoji font. Raises InputError that says how to install one if there is none."""
        paths = [Path(path).expanduser() for path in FONT_PATHS]
        if shutil.which("fc-list"):
            font_list = subprocess.run(["fc-list", ":", "file"], capture_output=True, text=True, check=False).stdout
            paths += [Path(line.split(": ")[0].rstrip(":")) for line in font_list.splitlines() if "ColorEmoji" in line]
        for path in paths:
            if path.is_file():
                try:
                    return cls(path)
                except OSError:
                    continue
        raise InputError(
            "no color-emoji font was found: install it (Debian: apt install fonts-noto-color-emoji; Fedora: "
            "dnf install google-noto-color-emoji-fonts; macOS: brew install --cask font-noto-color-emoji) "
            "or give a folder of named images with --sprites"
        )

    def available_nouns(self) -> list[Noun]:
        return list(all_nouns())

    def default_nouns(self) -> list[Noun]:
        return list(CURATED_NOUNS)

    def load_image(self, name: str, glyph: str) -> Image.Image | None:
        image = self._draw_glyph(glyph)
        if image.getbbox() is None or image.tobytes() == self._missing_glyph.tobytes():
            return None
        return trim_and_shrink(image)

    def _draw_glyph(self, glyph: str) -> Image.Image:
        side = int(self._font.size * 1.5)
        canvas = Image.new("RGBA", (side, side))
        ImageDraw.Draw(canvas).text((0, 0), glyph, font=self._font, embedded_color=True)
        return canvas


def _load_bitmap_font(path: Path) -> ImageFont.FreeTypeFont:
    for size in BITMAP_SIZES:
        try:
            return ImageFont.truetype(str(path), size)
        except OSError:
            continue
    raise OSError(f"{path.name} contains no bitmaps of a known size")


class _SpriteFile(NamedTuple):
    path: Path
    name: str
    category: str

    @property
    def glyph(self) -> str:
        """The character whose hexadecimal code point is the file's name, or ""."""
        stem = self.path.stem
        return chr(int(stem, 16)) if CODE_POINT_NAME.fullmatch(stem) and "_" not in stem else ""


class SpriteFolder:
    """A folder of RGBA images as sprites.

    Either the folder has a `sprites.jsonl` with a file_name, a name and perhaps a category in each line, or the files
    are called name.png. Raises InputError if the folder does not exist, has no images, or a line cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        # An absolute path, so that it is not taken for a font's name.
        self.name = str(folder.absolute())
        self._path_by_name: dict[str, Path] = {}
        if not folder.is_dir():
            raise InputError(f" {folder}: there is no such folder", "sprites")
        sprite_list = folder / "sprites.jsonl"
        has_list = sprite_list.is_file()
        noun_by_glyph = {noun.glyph: noun for noun in all_nouns()}
        noun_by_name = {} if has_list else {noun.name: noun for noun in all_nouns()}
        nouns: dict[str, Noun] = {}
        for file in _read_sprite_list(sprite_list) if has_list else _find_sprites(folder):
            noun = noun_by_glyph.get(file.glyph) or noun_by_name.get(file.name)
            noun = noun or Noun(file.name, file.glyph, file.category)
            self._path_by_name.setdefault(file.glyph or file.name, file.path)
            self._path_by_name.setdefault(file.name, file.path)
            if noun.glyph in noun_by_glyph:
                self._path_by_name[noun.name] = file.path
                nouns[noun.name] = noun
            elif not CODE_POINT_NAME.fullmatch(file.path.stem):
                # Of a set of emoji, those that are not clean are left out; a user's own images are all kept.
                nouns.setdefault(file.name, noun)
        if not nouns:
            hint = "give a folder with name.png files or a sprites.jsonl"
            raise InputError(f" {folder}: contains no images; {hint}", "sprites")
        curated = [noun for noun in CURATED_NOUNS if noun.name in nouns]
        self._nouns = curated + [noun for noun in nouns.values() if noun not in curated]
        self._default_nouns = curated if has_list and curated else self._nouns

    def available_nouns(self) -> list[Noun]:
        return self._nouns

    def default_nouns(self) -> list[Noun]:
        return self._default_nouns

    def load_image(self, name: str, glyph: str) -> Image.Image | None:
        path = self._path_by_name.get(name) or self._path_by_name.get(glyph)
        if path is None:
            return None
        try:
            with Image.open(path) as file_image:
                image = file_image.convert("RGBA")
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(f": {path} cannot be read ({error})", "sprites") from None
        return None if image.getbbox() is None else trim_and_shrink(image)


def _read_sprite_list(sprite_list: Path) -> list[_SpriteFile]:
    files = []
    for number, line in enumerate(sprite_list.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            path = sprite_list.parent / row["file_name"]
            category = str(row.get("category") or DEFAULT_CATEGORY)
            files.append(_SpriteFile(path, str(row["name"]).lower(), category))
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{sprite_list}, line {number}: must be JSON with file_name and name") from None
    return files


def _find_sprites(folder: Path) -> list[_SpriteFile]:
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in {".png", ".webp"})
    return [_SpriteFile(path, path.stem.replace("_", " ").lower(), DEFAULT_CATEGORY) for path in paths]


def trim_and_shrink(image: Image.Image) -> Image.Image:
    """The image cropped to its visible part, then resized so that its longer side is `SPRITE_SIZE` pixels."""
    alpha = np.asarray(image.getchannel("A"))
    rows, columns = np.flatnonzero((alpha > 8).any(1)), np.flatnonzero((alpha > 8).any(0))
    if len(rows) == 0:
        return image
    image = image.crop((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
    scale = SPRITE_SIZE / max(image.size)
    if scale == 1:
        return image
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.convert("RGBa").resize((width, height), Image.Resampling.LANCZOS).convert("RGBA")
