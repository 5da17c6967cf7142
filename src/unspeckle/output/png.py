"""Pictures as PNG files that say how they came to be: the ask as text, and that a trained model made them.

Three text chunks and an XMP packet; no path, no name of a machine, no time of day.
"""

import io
import json
import re
import unicodedata
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, PngImagePlugin, UnidentifiedImageError

from unspeckle import atomic
from unspeckle.errors import InputError
from unspeckle.version import installed_version

METADATA_KEY = "unspeckle"  # of the chunk that holds the ask as JSON
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_XMP_KEY = "XML:com.adobe.xmp"
_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/"'
    ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" xmp:CreatorTool="{tool}">'
    "<Iptc4xmpExt:DigitalSourceType>{source}</Iptc4xmpExt:DigitalSourceType>"
    '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)
MAX_FILE_BYTES = 64 * 1024 * 1024  # bytes of a picture that is read back


def attach_metadata(image: Image.Image, metadata: dict[str, Any]) -> Image.Image:
    """Put the record of a drawing (JSON values) into image.info, from where `encode` writes it; returns the image."""
    image.info[METADATA_KEY] = json.dumps(metadata, ensure_ascii=True)
    return image


def image_metadata(image: Image.Image) -> dict[str, Any]:
    """The record that `stamp` put into a picture, or an empty one."""
    try:
        metadata = json.loads(image.info.get(METADATA_KEY, "{}"))
    except (TypeError, ValueError, RecursionError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def encode_png(image: Image.Image) -> bytes:
    """The picture as PNG with its record: chunks "unspeckle", "Description" (the prompt), "Software", and XMP."""
    tool = f"unspeckle {installed_version()}"
    chunks = PngImagePlugin.PngInfo()
    metadata = image_metadata(image)
    if metadata:
        chunks.add_text(METADATA_KEY, json.dumps(metadata, ensure_ascii=True))
        if prompt := str(metadata.get("prompt", "")).replace("\0", ""):
            chunks.add_itxt("Description", prompt)
    chunks.add_text("Software", tool)
    chunks.add_itxt(_XMP_KEY, _XMP.format(tool=tool, source=SOURCE_TYPE))
    file = io.BytesIO()
    plain = image.copy()
    plain.info = {}
    plain.save(file, "PNG", pnginfo=chunks)
    return file.getvalue()


def write_png(image: Image.Image, path: Path) -> None:
    """Write the picture to `path` as PNG, atomically, replacing what stood there."""
    atomic.write_bytes(path, encode_png(image))


def save_new_png(image: Image.Image, folder: Path, suffix: str = "") -> Path:
    """Write the picture into the folder under a name of its prompt and seed; returns the path.

    A file of that name is replaced only by a picture of the same ask and model; another gets -2, -3, ….
    """
    metadata, data = image_metadata(image), encode_png(image)
    stem = f"{file_stem(str(metadata.get('prompt', '')))}-{metadata.get('seed', 0)}{suffix}"
    number = 1
    while True:
        path = folder / (f"{stem}.png" if number == 1 else f"{stem}-{number}.png")
        if atomic.write_new_bytes(path, data):
            return path
        if metadata and comparable_metadata(metadata_of_file(path)) == comparable_metadata(metadata):
            atomic.write_bytes(path, data)
            return path
        number += 1


def read_png(path: Path) -> Image.Image:
    """The picture of a PNG file, RGB, its record in .info. InputError where it is none, damaged, or carries no ask."""
    if not path.is_file():
        raise InputError(f"{path}: no such picture; give a PNG that `unspeckle draw` wrote")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InputError(f"{path}: is too large for a picture of ours; give a PNG that `unspeckle draw` wrote")
    try:
        with Image.open(path, formats=["PNG"]) as opened:
            opened.load()
            text = {**opened.text} if isinstance(opened, PngImagePlugin.PngImageFile) else {}
            image = opened.convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as e:
        raise InputError(f"{path}: cannot be read as PNG ({str(e)[:80]}); give one that `unspeckle draw` wrote") from e
    image.info = {METADATA_KEY: str(text.get(METADATA_KEY, "{}"))}
    if not image_metadata(image):
        raise InputError(f"{path}: carries no ask (the program that saved it last dropped it); give the original PNG")
    return image


def max_pixel_difference(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of any pixel's channel, 0 to 255; 255 where the sizes differ."""
    if one.size != other.size:
        return 255
    extrema = ImageChops.difference(one.convert("RGB"), other.convert("RGB")).getextrema()
    return max(int(high) for _, high in extrema)  # type: ignore[misc]


def file_stem(prompt: str) -> str:
    """A file name of the prompt's words: letters and digits of any script, at most 60 characters and 120 bytes."""
    plain = unicodedata.normalize("NFKC", prompt).lower()
    name = "-".join(re.findall(r"[^\W_]+", plain))[:60]
    while len(name.encode("utf-8", "ignore")) > 120:
        name = name[:-1]
    return name.encode("utf-8", "ignore").decode().strip("-") or "picture"


def comparable_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metadata.items() if name not in ("batch", "version")}


def metadata_of_file(path: Path) -> dict[str, Any]:
    try:
        return image_metadata(read_png(path))
    except InputError:
        return {}
