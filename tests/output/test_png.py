"""A PNG file holds how its image was drawn, and nothing about the machine that drew it."""

import getpass
import io
import json
import socket
import struct
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from unspeckle.errors import InputError
from unspeckle.generation.metadata import IMAGE_METADATA_KEY, attach_metadata, image_metadata
from unspeckle.output.png import encode_png, file_stem, max_pixel_difference, read_png, save_new_png, write_png

METADATA = {"prompt": 'a „frog" on\nstilts 🐸 <&>', "seed": 2**64 - 1, "size": [4, 4], "model": {"hash": "abc"}}


def sample(color: int = 7, **changes: object) -> Image.Image:
    return attach_metadata(Image.new("RGB", (4, 4), (color, 100, 200)), {**METADATA, **changes})


def chunks(data: bytes) -> list[tuple[str, bytes]]:
    found, start = [], 8
    while start < len(data):
        (length,) = struct.unpack(">I", data[start : start + 4])
        found.append((data[start + 4 : start + 8].decode(), data[start + 8 : start + 8 + length]))
        start += 12 + length
    return found


def test_round_trip(tmp_path: Path) -> None:
    write_png(sample(), tmp_path / "a.png")
    again = read_png(tmp_path / "a.png")
    assert image_metadata(again) == METADATA
    assert again.tobytes() == sample().tobytes()


def test_other_programs_find_prompt_and_source_type() -> None:
    text = Image.open(io.BytesIO(encode_png(sample()))).text
    assert text["Description"] == METADATA["prompt"]
    assert json.loads(text[IMAGE_METADATA_KEY]) == METADATA
    packet = text["XML:com.adobe.xmp"]
    root = ET.fromstring(packet[packet.index("<x:") : packet.rindex("<?xpacket")])
    source = root.find(".//{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")
    assert source is not None
    assert source.text == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def test_nothing_else_is_in_the_file(tmp_path: Path) -> None:
    image = sample()
    image.info["dpi"] = (72, 72)
    image.info["exif"] = b"Exif\0\0home"
    image.info["icc_profile"] = b"bought by a person"
    write_png(image, tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    assert [kind for kind, _ in chunks(data)] == ["IHDR", "tEXt", "iTXt", "iTXt", "tEXt", "iTXt", "IDAT", "IEND"]
    for secret in (str(tmp_path), str(Path.home()), socket.gethostname(), f"{getpass.getuser()}@"):
        assert secret.encode() not in data


def test_only_a_file_of_the_same_metadata_is_replaced(tmp_path: Path) -> None:
    first = save_new_png(sample(batch=[1, 1]), tmp_path)
    assert first.name == "a-frog-on-stilts-18446744073709551615.png"
    assert save_new_png(sample(batch=[0, 5]), tmp_path) == first
    second = save_new_png(sample(8, steps=50), tmp_path)
    assert second.name == "a-frog-on-stilts-18446744073709551615-2.png"
    assert image_metadata(read_png(first))["batch"] == [0, 5]
    (tmp_path / "else-1.png").write_text("mine")
    assert save_new_png(sample(prompt="else", seed=1), tmp_path).name == "else-1-2.png"
    assert (tmp_path / "else-1.png").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([first.name, second.name, "else-1.png", "else-1-2.png"])


def test_images_that_cannot_be_replayed(tmp_path: Path) -> None:
    path, whole = tmp_path / "x.png", encode_png(sample())

    def error_of(data: bytes) -> str:
        path.write_bytes(data)
        with pytest.raises(InputError) as caught:
            read_png(path)
        line = str(caught.value)
        assert "\n" not in line and str(path) in line
        return line

    bare, damaged, bomb = io.BytesIO(), PngImagePlugin.PngInfo(), PngImagePlugin.PngInfo()
    opened = Image.open(io.BytesIO(whole))
    opened.save(bare, "PNG")
    assert "has no metadata" in error_of(bare.getvalue())
    jpeg = io.BytesIO()
    opened.save(jpeg, "JPEG")
    assert "cannot be read as PNG" in error_of(jpeg.getvalue())
    assert "cannot be read as PNG" in error_of(b"hello")
    assert "cannot be read as PNG" in error_of(b"")
    for length in range(9, len(whole) - 20, 61):  # all pixels are there in one that is cut later
        assert error_of(whole[:length])
    for text in ("[1, 2]", "{", '"x"', "[" * 50_000):
        damaged.add_text(IMAGE_METADATA_KEY, text)
        file = io.BytesIO()
        opened.save(file, "PNG", pnginfo=damaged)
        assert "has no metadata" in error_of(file.getvalue())
    bomb.add_text(IMAGE_METADATA_KEY, "x" * (80 << 20), zip=True)
    file = io.BytesIO()
    opened.save(file, "PNG", pnginfo=bomb)
    assert error_of(file.getvalue())
    huge = whole[:16] + struct.pack(">II", 1 << 30, 1 << 30) + whole[24:]
    assert error_of(huge)
    with pytest.raises(InputError, match="no such file"):
        read_png(tmp_path)


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A frog, on stilts!", "a-frog-on-stilts"),
        ("../../etc/passwd", "etc-passwd"),
        ("", "image"),
        ("🐸", "image"),
        ("Fröschlein  Ärger", "fröschlein-ärger"),
        ("蛙", "蛙"),
        ("ﬁsh_and-chips\n\0", "fish-and-chips"),
        ("-rf", "rf"),
        ("蛙" * 100, "蛙" * 40),
        ("x" * 100, "x" * 60),
        ("a" * 59 + " b", "a" * 59),
    ],
)
def test_names_of_files(prompt: str, name: str) -> None:
    assert file_stem(prompt) == name


def test_difference() -> None:
    one, other = Image.new("RGB", (3, 3)), Image.new("RGB", (3, 3))
    assert max_pixel_difference(one, other) == 0
    other.putpixel((2, 1), (0, 0, 9))
    assert max_pixel_difference(one, other) == max_pixel_difference(other, one) == 9
    assert max_pixel_difference(one, Image.new("RGB", (3, 4))) == 255
