"""Every kind of file is decoded with its colors, upright, at the requested size."""

import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image, ImageOps

from unspeckle.corpus.decoding import ImageDecodeError, covering_size, decode_image

RED, BLUE = (220, 30, 40), (20, 60, 230)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def halves(width: int = 120, height: int = 80) -> Image.Image:
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


MODES_BY_FORMAT = {
    "PNG": ["RGB", "P", "RGBA"],
    "JPEG": ["RGB", "CMYK", "YCbCr"],
    "WEBP": ["RGB", "RGBA"],
    "BMP": ["RGB", "P", "RGBA"],
    "GIF": ["RGB", "P", "RGBA"],
    "TIFF": ["RGB", "P", "CMYK", "RGBA", "YCbCr"],
}


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in MODES_BY_FORMAT.items() for mode in modes])
def test_colors_of_every_format_and_mode(kind: str, mode: str) -> None:
    raw = encode(halves().convert(mode), kind)
    pixels, full_size = decode_image(raw, (40, 40))
    assert full_size == (120, 80) and pixels.shape == (40, 60, 3)
    # GIF and P have palettes of their own.
    assert np.abs(pixels[20, 8].astype(int) - RED).max() <= 16
    assert np.abs(pixels[20, 52].astype(int) - BLUE).max() <= 16


def test_gray_with_many_bits_keeps_its_tone() -> None:
    for value, gray in [(0, 0), (32896, 128), (65535, 255)]:
        deep = Image.fromarray(np.full((10, 10), value, np.uint16))
        for kind in ("PNG", "TIFF"):
            assert set(decode_image(encode(deep, kind), (10, 10))[0].ravel()) == {gray}
    unit = Image.fromarray(np.full((10, 10), 0.5, np.float32))
    assert set(decode_image(encode(unit, "TIFF"), (10, 10))[0].ravel()) == {128}
    for mode, value, gray in [("1", 1, 255), ("L", 77, 77)]:
        assert set(decode_image(encode(Image.new(mode, (10, 10), value), "PNG"), (10, 10))[0].ravel()) == {gray}


def test_alpha_is_composited_on_white() -> None:
    cases = [("RGBA", (255, 0, 0, 128), (255, 127, 127)), ("LA", (0, 0), (255, 255, 255)), ("LA", (0, 51), (204,) * 3)]
    for mode, color, expected in cases:
        pixels, _ = decode_image(encode(Image.new(mode, (8, 8), color), "PNG"), (8, 8))
        assert (pixels == expected).all()
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([9, 9, 9, 200, 0, 0])
    assert (decode_image(encode(palette, "PNG", transparency=1), (8, 8))[0] == 255).all()
    assert (decode_image(encode(Image.new("RGB", (8, 8), RED), "PNG", transparency=RED), (8, 8))[0] == 255).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotated_upright_by_exif(kind: str, orientation: int) -> None:
    image = noise(60, 30).resize((120, 60), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = encode(image, kind, exif=exif, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {}))
    opened = Image.open(io.BytesIO(raw))
    opened.load()
    upright = np.asarray(ImageOps.exif_transpose(opened).convert("RGB")).astype(int)
    pixels, full_size = decode_image(raw, upright.shape[1::-1])
    assert full_size == upright.shape[1::-1] and pixels.shape == upright.shape
    assert np.abs(pixels - upright).max() == 0
    # Higher than wide, however it was stored.
    pixels, _ = decode_image(raw, (20, 40))
    expected = (20, 40) if orientation >= 5 else (40, 40)
    assert pixels.shape[1::-1] == expected


def test_shrinking_is_lanczos_on_the_whole_image() -> None:
    image = noise(130, 200)
    pixels, _ = decode_image(encode(image, "PNG"), (65, 65))
    assert np.array_equal(pixels, np.asarray(image.resize((65, 100), Image.Resampling.LANCZOS)))


def test_the_long_side_is_cut_to_twice_the_crop_around_the_center() -> None:
    image = noise(1000, 40)
    pixels, _ = decode_image(encode(image, "PNG"), (40, 40))
    assert np.array_equal(pixels, np.asarray(image)[:, 460:540])
    assert covering_size((100, 100), (64, 64)) == (64, 64) and covering_size((10, 20), (64, 64)) == (64, 128)
    assert covering_size((1, 10_000), (64, 32)) == (64, 64) and covering_size((300, 200), (64, 64)) == (96, 64)
    assert decode_image(encode(noise(1, 900), "PNG"), (16, 16))[0].shape == (32, 16, 3)


def test_large_jpegs_are_decoded_at_reduced_size_and_look_the_same() -> None:
    smooth = noise(16, 12).resize((1600, 1200), Image.Resampling.BICUBIC)
    pixels, full_size = decode_image(encode(smooth, "JPEG", quality=95), (64, 64))
    exact = np.asarray(smooth.resize((85, 64), Image.Resampling.LANCZOS)).astype(int)
    assert full_size == (1600, 1200) and np.abs(pixels - exact).mean() < 1.5


def test_animations_give_their_first_frame() -> None:
    first, second = Image.new("RGB", (20, 20), RED), Image.new("RGB", (20, 20), BLUE)
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        raw = encode(
            first, kind, save_all=True, append_images=[second], **({"lossless": True} if kind == "WEBP" else {})
        )
        assert np.abs(decode_image(raw, (20, 20))[0].astype(int) - RED).max() <= 1


def make_decompression_bomb(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore")
def test_hostile_and_broken_files_are_refused() -> None:
    jpeg = encode(noise(200, 200), "JPEG")
    png = encode(noise(200, 200), "PNG")
    cases = [
        (b"", "empty"),
        (b"hello", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "not an image"),
        (jpeg[: len(jpeg) // 2], "truncated"),
        (png[: len(png) // 2], "truncated"),
        (jpeg[:20], "not an image"),
        (make_decompression_bomb(14_000, 14_000), "too many pixels"),
        (make_decompression_bomb(100_000, 100_000), "too many pixels"),
    ]
    for raw, reason in cases:
        with pytest.raises(ImageDecodeError, match=reason):
            decode_image(raw, (16, 16))


@pytest.mark.filterwarnings("ignore")
def test_damage_anywhere_raises_only_image_decode_errors() -> None:
    random = np.random.default_rng(1)
    for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"):
        raw = np.frombuffer(encode(noise(20, 20), kind), np.uint8)
        for _ in range(60):
            damaged = raw.copy()
            damaged[random.integers(0, min(len(raw), 300), 4)] = random.integers(0, 256, 4)
            with suppress(ImageDecodeError):  # any other exception fails
                assert decode_image(damaged.tobytes(), (8, 8))[0].shape[2] == 3
