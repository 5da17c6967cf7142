"""Named pictures with alpha: glyphs of the system's colour-emoji font, or a folder of sprites."""

from __future__ import annotations

import difflib
import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unspeckle.corpus.emoji.nouns import CURATED_NOUNS, GARMENT_GLYPHS, Noun, all_nouns
from unspeckle.corpus.emoji.tints import color_shares
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
BITMAP_SIZES = (109, 160, 128, 136)  # the bitmap sizes that colour fonts carry; Noto's is the first
CODE_POINT_NAME = re.compile(
    r"(?:00[0-9a-f]{2}|[23][0-9a-f]{3}|1[0-9a-f]{4})(?:_[0-9a-f]{4,5})*"
)  # emoji sets name files so
DEFAULT_CATEGORY = "thing"
SPRITE_SIZE = 128  # px of a sprite's longer side; every drawing shrinks from here


@dataclass(frozen=True)
class Sprite:
    """A noun and its picture: straight-alpha RGBA, trimmed, longer side at most `MASTER` px."""

    noun: Noun
    image: Image.Image
    color_shares: dict[str, float]  # shares of the opaque area by colour name


@dataclass(frozen=True)
class SpriteLibrary:
    """The sprites of a corpus by noun, and what faces may wear."""

    sprites: dict[str, Sprite]
    garments: dict[str, Image.Image]
    source: str

    @property
    def nouns(self) -> list[str]:
        return list(self.sprites)


def open_sprite_library(nouns: Sequence[str] | None, folder: Path | None) -> SpriteLibrary:
    """The wanted nouns from a folder, or from the system's font.

    None = the curated ones that are there, or whatever a folder of plain name.png files holds; ("all",) = all clean.

    An unknown noun, a missing font or an unusable folder is an `InputError`.
    """
    source: EmojiFont | SpriteFolder = SpriteFolder(folder) if folder is not None else EmojiFont.find_system_font()
    noun_by_name = {noun.name: noun for noun in source.available_nouns()}
    wants_all = nouns is not None and [word.lower() for word in nouns] == ["all"]
    if nouns is None:
        chosen = source.default_nouns()
    else:
        chosen = list(noun_by_name.values()) if wants_all else _choose_nouns(nouns, noun_by_name)
    sprites = {}
    for noun in chosen:
        image = source.load_image(noun.name, noun.glyph)
        if image is None:
            if nouns is not None and not wants_all:
                raise InputError(f"{source.source} has no picture of {noun.name!r}: leave it out of --nouns")
            continue
        sprites[noun.name] = Sprite(noun, image, color_shares(image))
    if not sprites:
        raise InputError(f"{source.source} has none of the nouns: name some with --nouns")
    garments = {name: source.load_image(name, glyph) for name, glyph in GARMENT_GLYPHS.items()}
    return SpriteLibrary(sprites, {name: image for name, image in garments.items() if image is not None}, source.source)


def _choose_nouns(words: Iterable[str], noun_by_name: dict[str, Noun]) -> list[Noun]:
    synonyms = {synonym: noun for noun in noun_by_name.values() for synonym in noun.synonyms}
    chosen: dict[str, Noun] = {}
    for word in words:
        name = " ".join(word.lower().split())
        noun = noun_by_name.get(name) or synonyms.get(name)
        if noun is None:
            suggestions = difflib.get_close_matches(name, [*noun_by_name, *synonyms], n=3, cutoff=0.6)
            hint = (
                f"did you mean {', '.join(suggestions)}?"
                if suggestions
                else f"known are {', '.join(list(noun_by_name)[:8])}, …"
            )
            raise InputError(f"--nouns: there is no {word!r}; {hint}")
        chosen[noun.name] = noun
    return list(chosen.values())


class EmojiFont:
    """A colour-emoji font as a shelf of sprites."""

    def __init__(self, path: Path) -> None:
        self.source = path.name
        self._font = _load_bitmap_font(path)
        self._missing_glyph = self._draw_glyph("\U0010fffd")

    @classmethod
    def find_system_font(cls) -> EmojiFont:
        """The system's colour-emoji font; none is an `InputError` that says how to get one."""
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
            "no colour-emoji font was found: install it (Debian: apt install fonts-noto-color-emoji; Fedora: "
            "dnf install google-noto-color-emoji-fonts; macOS: brew install --cask font-noto-color-emoji) "
            "or give a folder of named pictures with --sprites"
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
    raise OSError(f"{path.name} has no bitmap strike of a known size")


class SpriteFolder:
    """A folder of RGBA pictures: with `sprites.jsonl` (file_name, name, category, keywords), or as name.png."""

    def __init__(self, folder: Path) -> None:
        self.source = str(folder.absolute())  # a name alone is a font's
        self._path_by_name: dict[str, Path] = {}
        if not folder.is_dir():
            raise InputError(f"--sprites {folder}: there is no such folder")
        sprite_list = folder / "sprites.jsonl"
        rows = _read_sprite_list(sprite_list) if sprite_list.is_file() else _find_sprites(folder)
        noun_by_glyph = {noun.glyph: noun for noun in all_nouns()}
        noun_by_name = {} if sprite_list.is_file() else {noun.name: noun for noun in all_nouns()}
        nouns: dict[str, Noun] = {}
        for path, name, category in rows:
            noun = (
                noun_by_glyph.get(_glyph_from_file_name(path))
                or noun_by_name.get(name)
                or Noun(name, _glyph_from_file_name(path), category)
            )
            self._path_by_name.setdefault(_glyph_from_file_name(path) or name, path)
            self._path_by_name.setdefault(name, path)
            if noun.glyph in noun_by_glyph:
                self._path_by_name[noun.name] = path
                nouns[noun.name] = noun
            elif not CODE_POINT_NAME.fullmatch(
                path.stem
            ):  # an emoji that is not clean is left out, a person's own never
                nouns.setdefault(name, noun)
        if not nouns:
            raise InputError(f"--sprites {folder}: no pictures there; it takes name.png files or a sprites.jsonl")
        curated = [noun for noun in CURATED_NOUNS if noun.name in nouns]
        other_nouns = [noun for name, noun in nouns.items() if noun not in curated]
        self._nouns = curated + other_nouns
        self._default_nouns = curated if sprite_list.is_file() and curated else self._nouns

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
            raise InputError(f"--sprites: {path} cannot be read ({error})") from None
        return None if image.getbbox() is None else trim_and_shrink(image)


def _read_sprite_list(sprite_list: Path) -> list[tuple[Path, str, str]]:
    rows = []
    for number, line in enumerate(sprite_list.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            path = sprite_list.parent / row["file_name"]
            rows.append((path, str(row["name"]).lower(), str(row.get("category") or DEFAULT_CATEGORY)))
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{sprite_list}, line {number}: it takes JSON with file_name and name") from None
    return rows


def _find_sprites(folder: Path) -> list[tuple[Path, str, str]]:
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in {".png", ".webp"})
    return [(path, path.stem.replace("_", " ").lower(), DEFAULT_CATEGORY) for path in paths]


def _glyph_from_file_name(path: Path) -> str:
    """The character whose hexadecimal code point is the file's name, or ""."""
    return chr(int(path.stem, 16)) if CODE_POINT_NAME.fullmatch(path.stem) and "_" not in path.stem else ""


def trim_and_shrink(image: Image.Image) -> Image.Image:
    """Trimmed to what is visible and shrunk to `MASTER` px on its longer side."""
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
