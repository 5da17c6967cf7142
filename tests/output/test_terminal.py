"""What the terminal view writes."""

import io
import itertools
import logging
import os
import re

import pytest
from PIL import Image

from unspeckle.output.terminal import HALF_BLOCK, TerminalView, color_256, color_count, fit_images, half_blocks


class Screen(io.StringIO):
    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


def test_half_blocks_are_the_image() -> None:
    image = Image.new("RGB", (3, 2))
    image.putdata([(1, 2, 3), (1, 2, 3), (7, 8, 9), (4, 5, 6), (4, 5, 6), (250, 0, 0)])
    assert half_blocks(image, 1 << 24) == ["\x1b[38;2;1;2;3;48;2;4;5;6m▀▀\x1b[38;2;7;8;9;48;2;250;0;0m▀\x1b[0m"]


def test_every_pixel_is_there() -> None:
    image = Image.effect_noise((10, 7), 90).convert("RGB")
    lines = half_blocks(image, 1 << 24)
    seen = Image.new("RGB", (10, 8))
    for y, line in enumerate(lines):
        x = 0
        for code, blocks in re.findall(r"\x1b\[([0-9;]+)m(▀*)", line):
            numbers = [int(n) for n in code.split(";")]
            for _ in blocks:
                seen.putpixel((x, 2 * y), tuple(numbers[2:5]))
                seen.putpixel((x, 2 * y + 1), tuple(numbers[7:10]))
                x += 1
        assert x == 10
    assert seen.crop((0, 0, 10, 7)).tobytes() == image.tobytes()


def test_256_colours_are_the_nearest_of_the_cube() -> None:
    levels = (0, 95, 135, 175, 215, 255)
    for rgb in itertools.product(range(0, 256, 17), repeat=3):
        code = int(color_256(rgb).removeprefix("5;")) - 16
        chosen = (levels[code // 36], levels[code // 6 % 6], levels[code % 6])
        for value, level in zip(rgb, chosen, strict=True):
            assert abs(value - level) == min(abs(value - other) for other in levels)


@pytest.mark.parametrize(
    ("environment", "many"),
    [
        ({"TERM": "xterm-256color"}, 256),
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, 1 << 24),
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor", "NO_COLOR": "1"}, 0),
        ({"TERM": "dumb", "COLORTERM": "truecolor"}, 0),
        ({"TERM": "vt100"}, 0),
    ],
)
def test_which_terminals_show_images(environment: dict, many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TERM", "COLORTERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert color_count(Screen()) == many
    assert color_count(io.StringIO()) == 0


@pytest.mark.parametrize("columns", [10, 40, 79, 200])
@pytest.mark.parametrize("rows", [4, 20, 60])
@pytest.mark.parametrize(("size", "number"), [((64, 64), 1), ((64, 64), 9), ((16, 32), 2), ((512, 256), 3)])
def test_images_fit_the_screen(columns: int, rows: int, size: tuple[int, int], number: int) -> None:
    sheet = fit_images([Image.new("RGB", size)] * number, columns, rows)
    assert sheet.width <= columns and sheet.height <= 2 * rows


def test_small_images_are_enlarged_by_whole_factors() -> None:
    image = Image.effect_noise((16, 16), 90).convert("RGB")
    assert fit_images([image], 79, 21).tobytes() == image.resize((32, 32), Image.Resampling.NEAREST).tobytes()


def test_a_pipe_gets_five_lines_and_quiet_none() -> None:
    pipe, silent = io.StringIO(), Screen()
    with TerminalView(pipe) as show:
        for done in range(1, 41):
            show.update(done, 40, "a frog", lambda: pytest.fail("no frame is shown"))
    steps = (1, 10, 20, 30, 40)
    assert pipe.getvalue().splitlines() == [f"a frog: step {done} of 40" for done in steps]
    with TerminalView(silent, quiet=True) as show:
        show.note("psst")
        show.update(40, 40, "a frog", list)
    assert silent.getvalue() == ""


def test_the_cursor_comes_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    screen = Screen()
    with pytest.raises(KeyboardInterrupt), TerminalView(screen):
        raise KeyboardInterrupt
    assert screen.getvalue() == "\x1b[?25l\x1b[0m\x1b[?25h"


def test_without_a_frame_there_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a replay, which shows no images."""
    screen = Screen()
    monkeypatch.setattr("os.get_terminal_size", lambda _: os.terminal_size((60, 20)))
    monkeypatch.setattr(screen, "fileno", lambda: 2)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with TerminalView(screen) as show:
        assert show.color_count
        show.update(1, 2, "a frog", list)
        show.update(2, 2, "a frog", list)
    assert "a frog" in screen.getvalue() and "2/2" in screen.getvalue() and HALF_BLOCK not in screen.getvalue()


def test_warnings_are_logged_again_after_quiet() -> None:
    log = logging.getLogger("unspeckle")
    before = log.level
    with TerminalView(io.StringIO(), quiet=True):
        assert not log.isEnabledFor(logging.WARNING)
    assert log.level == before
