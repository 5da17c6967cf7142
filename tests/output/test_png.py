"""A PNG says how it came to be, and nothing about whose machine it came from."""

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
from unspeckle.output.png import (
    METADATA_KEY,
    attach_metadata,
    encode_png,
    file_stem,
    image_metadata,
    max_pixel_difference,
    read_png,
    save_new_png,
    write_png,
)

RECORD = {"prompt": 'a „frog" on\nstilts 🐸 <&>', "seed": 2**64 - 1, "size": [4, 4], "model": {"hash": "abc"}}


def sample(color: int = 7, **changed: object) -> Image.Image:
    return attach_metadata(Image.new("RGB", (4, 4), (color, 100, 200)), {**RECORD, **changed})


def chunks(data: bytes) -> list[tuple[str, bytes]]:
    found, at = [], 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        found.append((data[at + 4 : at + 8].decode(), data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    write_png(sample(), tmp_path / "a.png")
    again = read_png(tmp_path / "a.png")
    assert image_metadata(again) == RECORD
    assert again.tobytes() == sample().tobytes()


def test_other_programs_find_prompt_and_source_type() -> None:
    text = Image.open(io.BytesIO(encode_png(sample()))).text
    assert text["Description"] == RECORD["prompt"]
    assert json.loads(text[METADATA_KEY]) == RECORD
    packet = text["XML:com.adobe.xmp"]
    root = ET.fromstring(packet[packet.index("<x:") : packet.rindex("<?xpacket")])
    source = root.find(".//{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")
    assert source is not None
    assert source.text == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def test_nothing_else_is_told(tmp_path: Path) -> None:
    image = sample()
    image.info["dpi"] = (72, 72)
    image.info["exif"] = b"Exif\0\0home"
    image.info["icc_profile"] = b"bought by a person"
    write_png(image, tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    assert [kind for kind, _ in chunks(data)] == ["IHDR", "tEXt", "iTXt", "tEXt", "iTXt", "IDAT", "IEND"]
    for secret in (str(tmp_path), str(Path.home()), socket.gethostname(), f"{getpass.getuser()}@"):
        assert secret.encode() not in data


def test_the_same_request_takes_its_own_place_and_no_other(tmp_path: Path) -> None:
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

    def says(data: bytes) -> str:
        path.write_bytes(data)
        with pytest.raises(InputError) as caught:
            read_png(path)
        line = str(caught.value)
        assert "\n" not in line and str(path) in line
        return line

    bare, spoilt, bomb = io.BytesIO(), PngImagePlugin.PngInfo(), PngImagePlugin.PngInfo()
    read_back = Image.open(io.BytesIO(whole))
    read_back.save(bare, "PNG")
    assert "carries no request" in says(bare.getvalue())
    jpeg = io.BytesIO()
    read_back.save(jpeg, "JPEG")
    assert "cannot be read as PNG" in says(jpeg.getvalue())
    assert "cannot be read as PNG" in says(b"hello")
    assert "cannot be read as PNG" in says(b"")
    for length in range(9, len(whole) - 12, 61):
        assert says(whole[:length])
    for text in ("[1, 2]", "{", '"x"', "[" * 50_000):
        spoilt.add_text(METADATA_KEY, text)
        file = io.BytesIO()
        read_back.save(file, "PNG", pnginfo=spoilt)
        assert "carries no request" in says(file.getvalue())
    bomb.add_text(METADATA_KEY, "x" * (80 << 20), zip=True)
    file = io.BytesIO()
    read_back.save(file, "PNG", pnginfo=bomb)
    assert says(file.getvalue())
    huge = whole[:16] + struct.pack(">II", 1 << 30, 1 << 30) + whole[24:]
    assert says(huge)
    with pytest.raises(InputError, match="no such image"):
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
