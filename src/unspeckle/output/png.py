"""Images as PNG files with metadata: how each was drawn, and that a trained model made it.

Five text chunks; no path, no name of a machine, no time of day:

    unspeckle       the metadata as JSON (see generation/metadata.py), which `unspeckle replay` reads
    parameters      the same in the form of A1111, for other programs (see a1111_parameters.py)
    Description     the prompt
    Software        this program and its version
    XML:com.adobe.xmp   IPTC's digital source type of generated images
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
from unspeckle.generation.metadata import IMAGE_METADATA_KEY, image_metadata
from unspeckle.output.a1111_parameters import PARAMETERS_KEY, format_parameters
from unspeckle.version import installed_version

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
# Larger files are not read back.
MAX_FILE_BYTES = 64 * 1024 * 1024


def encode_png(image: Image.Image) -> bytes:
    """The image as a PNG file with its metadata (see `generation.metadata.attach_metadata`), and nothing else that
    image.info holds."""
    tool = f"unspeckle {installed_version()}"
    chunks = PngImagePlugin.PngInfo()
    if metadata := image_metadata(image):
        chunks.add_text(IMAGE_METADATA_KEY, json.dumps(metadata, ensure_ascii=True))
        chunks.add_text(PARAMETERS_KEY, format_parameters(metadata).replace("\0", ""))
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
    """Write the image to `path` as PNG with its metadata, atomically, replacing an existing file."""
    atomic.write_bytes(path, encode_png(image))


def save_new_png(image: Image.Image, folder: Path, suffix: str = "") -> Path:
    """Write the image into the folder, named after its prompt and seed; returns the path.

    An existing file of that name is replaced only if it has the same metadata; otherwise -2, -3, … is added."""
    metadata, data = image_metadata(image), encode_png(image)
    stem = f"{file_stem(str(metadata.get('prompt', '')))}-{metadata.get('seed', 0)}{suffix}"
    number = 1
    while True:
        path = folder / (f"{stem}.png" if number == 1 else f"{stem}-{number}.png")
        if atomic.write_new_bytes(path, data):
            return path
        if metadata and _without_batch(_file_metadata(path)) == _without_batch(metadata):
            atomic.write_bytes(path, data)
            return path
        number += 1


def read_png(path: Path) -> Image.Image:
    """The image of a PNG file, RGB. Its info has what the file says of how it was drawn: our metadata, and the
    parameters of A1111 under PARAMETERS_KEY. InputError where it cannot be read, or has neither."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a PNG file that `unspeckle draw` saved")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InputError(f"{path}: is too large; give a PNG file that `unspeckle draw` saved")
    try:
        with Image.open(path, formats=["PNG"]) as opened:
            opened.load()
            text = {**opened.text} if isinstance(opened, PngImagePlugin.PngImageFile) else {}
            image = opened.convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        reason = str(error)[:80]
        raise InputError(f"{path}: cannot be read as PNG ({reason}); give one that `unspeckle draw` saved") from error
    image.info = {key: str(text[key]) for key in (IMAGE_METADATA_KEY, PARAMETERS_KEY) if key in text}
    if not image_metadata(image) and PARAMETERS_KEY not in image.info:
        raise InputError(
            f"{path}: has no metadata (the program that saved it last has dropped them); give the original PNG file"
        )
    return image


def max_pixel_difference(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of any channel of any pixel, 0 to 255; 255 where the sizes differ."""
    if one.size != other.size:
        return 255
    extrema = ImageChops.difference(one.convert("RGB"), other.convert("RGB")).getextrema()
    return max(int(high) for _, high in extrema)  # type: ignore[misc]


def file_stem(prompt: str) -> str:
    """The prompt as a file name: letters and digits of any script, at most 60 characters and 120 bytes."""
    plain = unicodedata.normalize("NFKC", prompt).lower()
    name = "-".join(re.findall(r"[^\W_]+", plain))[:60]
    while len(name.encode("utf-8", "ignore")) > 120:
        name = name[:-1]
    return name.encode("utf-8", "ignore").decode().strip("-") or "image"


def _without_batch(metadata: dict[str, Any]) -> dict[str, Any]:
    """The metadata without what does not decide the image but for rounding."""
    return {name: value for name, value in metadata.items() if name not in ("batch", "version")}


def _file_metadata(path: Path) -> dict[str, Any]:
    try:
        return image_metadata(read_png(path))
    except InputError:
        return {}
