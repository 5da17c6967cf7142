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

from unspeckle.corpus.emoji.nouns import CURATED, GARMENTS, Noun, every_noun
from unspeckle.corpus.emoji.tints import own_colours
from unspeckle.errors import InputError

FONTS = (
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
STRIKES = (109, 160, 128, 136)  # the bitmap sizes that colour fonts carry; Noto's is the first
CODES = re.compile(r"(?:00[0-9a-f]{2}|[23][0-9a-f]{3}|1[0-9a-f]{4})(?:_[0-9a-f]{4,5})*")  # emoji sets name files so
THING_CATEGORY = "thing"
MASTER = 128  # px of a sprite's longer side; every drawing shrinks from here


@dataclass(frozen=True)
class Sprite:
    """A noun and its picture: straight-alpha RGBA, trimmed, longer side at most `MASTER` px."""

    noun: Noun
    picture: Image.Image
    colours: dict[str, float]  # shares of the opaque area by colour name


@dataclass(frozen=True)
class Library:
    """The sprites of a corpus by noun, and what faces may wear."""

    sprites: dict[str, Sprite]
    garments: dict[str, Image.Image]
    source: str

    @property
    def nouns(self) -> list[str]:
        return list(self.sprites)


def open_library(nouns: Sequence[str] | None, folder: Path | None) -> Library:
    """The wanted nouns from a folder, or from the system's font.

    None = the curated ones that are there, or whatever a folder of plain name.png files holds; ("all",) = all clean.

    An unknown noun, a missing font or an unusable folder is an `InputError`.
    """
    shelf: Font | Folder = Folder(folder) if folder is not None else Font.find()
    known = {noun.name: noun for noun in shelf.nouns()}
    everything = nouns is not None and [word.lower() for word in nouns] == ["all"]
    if nouns is None:
        chosen = shelf.favourites()
    else:
        chosen = list(known.values()) if everything else _choose(nouns, known)
    sprites = {}
    for noun in chosen:
        picture = shelf.picture(noun.name, noun.glyph)
        if picture is None:
            if nouns is not None and not everything:
                raise InputError(f"{shelf.source} has no picture of {noun.name!r}: leave it out of --nouns")
            continue
        sprites[noun.name] = Sprite(noun, picture, own_colours(picture))
    if not sprites:
        raise InputError(f"{shelf.source} has none of the nouns: name some with --nouns")
    worn = {name: shelf.picture(name, glyph) for name, glyph in GARMENTS.items()}
    return Library(sprites, {name: picture for name, picture in worn.items() if picture is not None}, shelf.source)


def _choose(wanted: Iterable[str], known: dict[str, Noun]) -> list[Noun]:
    synonyms = {synonym: noun for noun in known.values() for synonym in noun.synonyms}
    chosen: dict[str, Noun] = {}
    for word in wanted:
        name = " ".join(word.lower().split())
        noun = known.get(name) or synonyms.get(name)
        if noun is None:
            near = difflib.get_close_matches(name, [*known, *synonyms], n=3, cutoff=0.6)
            hint = f"did you mean {', '.join(near)}?" if near else f"known are {', '.join(list(known)[:8])}, …"
            raise InputError(f"--nouns: there is no {word!r}; {hint}")
        chosen[noun.name] = noun
    return list(chosen.values())


class Font:
    """A colour-emoji font as a shelf of sprites."""

    def __init__(self, path: Path) -> None:
        self.source = path.name
        self._font = _strike(path)
        self._blank = self._draw("\U0010fffd")

    @classmethod
    def find(cls) -> Font:
        """The system's colour-emoji font; none is an `InputError` that says how to get one."""
        paths = [Path(path).expanduser() for path in FONTS]
        if shutil.which("fc-list"):
            listed = subprocess.run(["fc-list", ":", "file"], capture_output=True, text=True, check=False).stdout
            paths += [Path(line.split(": ")[0].rstrip(":")) for line in listed.splitlines() if "ColorEmoji" in line]
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

    def nouns(self) -> list[Noun]:
        return list(every_noun())

    def favourites(self) -> list[Noun]:
        return list(CURATED)

    def picture(self, name: str, glyph: str) -> Image.Image | None:
        drawn = self._draw(glyph)
        if drawn.getbbox() is None or drawn.tobytes() == self._blank.tobytes():
            return None
        return master(drawn)

    def _draw(self, glyph: str) -> Image.Image:
        side = int(self._font.size * 1.5)
        canvas = Image.new("RGBA", (side, side))
        ImageDraw.Draw(canvas).text((0, 0), glyph, font=self._font, embedded_color=True)
        return canvas


def _strike(path: Path) -> ImageFont.FreeTypeFont:
    for size in STRIKES:
        try:
            return ImageFont.truetype(str(path), size)
        except OSError:
            continue
    raise OSError(f"{path.name} has no bitmap strike of a known size")


class Folder:
    """A folder of RGBA pictures: with `sprites.jsonl` (file_name, name, category, keywords), or as name.png."""

    def __init__(self, folder: Path) -> None:
        self.source = str(folder.absolute())  # a name alone is a font's
        self._files: dict[str, Path] = {}
        if not folder.is_dir():
            raise InputError(f"--sprites {folder}: there is no such folder")
        listing = folder / "sprites.jsonl"
        rows = _listed(listing) if listing.is_file() else _found(folder)
        by_glyph = {noun.glyph: noun for noun in every_noun()}
        by_name = {} if listing.is_file() else {noun.name: noun for noun in every_noun()}
        nouns: dict[str, Noun] = {}
        for path, name, category in rows:
            noun = by_glyph.get(_glyph(path)) or by_name.get(name) or Noun(name, _glyph(path), category)
            self._files.setdefault(_glyph(path) or name, path)
            self._files.setdefault(name, path)
            if noun.glyph in by_glyph:
                self._files[noun.name] = path
                nouns[noun.name] = noun
            elif not CODES.fullmatch(path.stem):  # an emoji that is not clean is left out, a person's own never
                nouns.setdefault(name, noun)
        if not nouns:
            raise InputError(f"--sprites {folder}: no pictures there; it takes name.png files or a sprites.jsonl")
        curated = [noun for noun in CURATED if noun.name in nouns]
        rest = [noun for name, noun in nouns.items() if noun not in curated]
        self._nouns = curated + rest
        self._favourites = curated if listing.is_file() and curated else self._nouns

    def nouns(self) -> list[Noun]:
        return self._nouns

    def favourites(self) -> list[Noun]:
        return self._favourites

    def picture(self, name: str, glyph: str) -> Image.Image | None:
        path = self._files.get(name) or self._files.get(glyph)
        if path is None:
            return None
        try:
            with Image.open(path) as opened:
                picture = opened.convert("RGBA")
        except (OSError, ValueError, Image.DecompressionBombError) as problem:
            raise InputError(f"--sprites: {path} cannot be read ({problem})") from None
        return None if picture.getbbox() is None else master(picture)


def _listed(listing: Path) -> list[tuple[Path, str, str]]:
    rows = []
    for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            path = listing.parent / row["file_name"]
            rows.append((path, str(row["name"]).lower(), str(row.get("category") or THING_CATEGORY)))
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{listing}, line {number}: it takes JSON with file_name and name") from None
    return rows


def _found(folder: Path) -> list[tuple[Path, str, str]]:
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in {".png", ".webp"})
    return [(path, path.stem.replace("_", " ").lower(), THING_CATEGORY) for path in paths]


def _glyph(path: Path) -> str:
    """The character whose hexadecimal code point is the file's name, or ""."""
    return chr(int(path.stem, 16)) if CODES.fullmatch(path.stem) and "_" not in path.stem else ""


def master(picture: Image.Image) -> Image.Image:
    """Trimmed to what is visible and shrunk to `MASTER` px on its longer side."""
    alpha = np.asarray(picture.getchannel("A"))
    rows, columns = np.flatnonzero((alpha > 8).any(1)), np.flatnonzero((alpha > 8).any(0))
    if len(rows) == 0:
        return picture
    picture = picture.crop((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
    scale = MASTER / max(picture.size)
    if scale == 1:
        return picture
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.convert("RGBa").resize((width, height), Image.Resampling.LANCZOS).convert("RGBA")
