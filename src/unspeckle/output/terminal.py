"""A drawing in the terminal: images as colored half blocks where the terminal can show them, else plain progress.

All of it goes to standard error; standard output is for the paths of results.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TextIO

from PIL import Image

HALF_BLOCK = "▀"  # its foreground is the upper pixel, its background the lower one
FRAMES_PER_SECOND = 12.0
_LOG = logging.getLogger("unspeckle")


def color_count(stream: TextIO) -> int:
    """How many colors the stream's terminal can show half blocks in: 2²⁴, 256, or 0 where it cannot show images."""
    term = os.environ.get("TERM", "")
    if not stream.isatty() or os.environ.get("NO_COLOR") or term in ("dumb", "unknown"):
        return 0
    if "utf" not in (stream.encoding or "").lower():
        return 0
    if os.environ.get("COLORTERM", "").lower() in ("truecolor", "24bit") or term.endswith("-direct"):
        return 1 << 24
    if os.name == "nt":
        return 1 << 24 if enable_windows_escapes() else 0
    return 256 if "256" in term or term in ("xterm-kitty", "alacritty", "foot") else 0


def half_blocks(image: Image.Image, color_count: int) -> list[str]:
    """The image as lines of text: a character for two pixels, one above the other."""
    pixels = image.convert("RGB")
    if pixels.height % 2:
        taller = Image.new("RGB", (pixels.width, pixels.height + 1))
        taller.paste(pixels)
        pixels = taller
    code: Callable[[tuple[int, ...]], str] = true_color if color_count > 256 else color_256
    data = pixels.tobytes()
    row = 3 * pixels.width
    lines = []
    for y in range(0, pixels.height, 2):
        line, previous = [], None
        for x in range(y * row, (y + 1) * row, 3):
            pair = (data[x : x + 3], data[x + row : x + row + 3])
            if pair != previous:
                line.append(f"\x1b[38;{code(tuple(pair[0]))};48;{code(tuple(pair[1]))}m")
                previous = pair
            line.append(HALF_BLOCK)
        lines.append("".join(line) + "\x1b[0m")
    return lines


def fit_images(images: Sequence[Image.Image], columns: int, rows: int) -> Image.Image:
    """As many images side by side as fit into columns × rows of text, at a size at which they can be recognized. Small
    images are enlarged by whole factors, large ones reduced."""
    width, height = images[0].size
    count = next((n for n in range(len(images), 1, -1) if (columns - n + 1) // n >= min(width, 32)), 1)
    scale = min((columns - count + 1) // count / width, 2 * rows / height)
    scale = min(4.0, float(int(scale))) if scale >= 1 else scale
    size = (max(1, int(width * scale)), max(2, int(height * scale) // 2 * 2))
    resampling = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    sheet = Image.new("RGB", (count * (size[0] + 1) - 1, size[1]))
    for i, image in enumerate(images[:count]):
        sheet.paste(image.resize(size, resampling), (i * (size[0] + 1), 0))
    return sheet


class TerminalView:
    """Shows the progress of a drawing on a stream, as a context manager: call `update` after each step.

    While it is quiet, the package's warnings are not logged either."""

    def __init__(self, stream: TextIO | None = None, quiet: bool = False) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.quiet = quiet
        self.color_count = 0 if quiet else color_count(self.stream)
        self.is_terminal = not quiet and self.stream.isatty()
        self._lines = 0
        self._shown = 0.0
        self._quarter = -1

    def __enter__(self) -> "TerminalView":
        self._level = _LOG.level
        if self.quiet:
            _LOG.setLevel(logging.ERROR)
        if self.color_count:
            self._write("\x1b[?25l")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        _LOG.setLevel(self._level)
        if self.color_count:
            self._write("\x1b[0m\x1b[?25h")
        elif self._lines:
            self._write("\n")

    def update(self, done: int, total: int, label: str, frame: Callable[[], Sequence[Image.Image]]) -> None:
        """Show that `done` of `total` steps are done.

        label: what is drawn. frame: a function that makes the images of the step, or none, which leaves only a progress
        bar; it is called only when they are shown. The first and the last frame always are."""
        last = done >= total
        if self.quiet:
            return
        if not self.is_terminal:  # a file or a pipe gets five lines
            if (quarter := 4 * done // max(total, 1)) != self._quarter:
                self._quarter = -1 if last else quarter
                self._write(f"{label}: step {done} of {total}\n")
            return
        now = time.monotonic()
        if not last and now - self._shown < 1 / FRAMES_PER_SECOND:
            return
        self._shown = now
        size = os.get_terminal_size(self.stream.fileno())
        bar = progress_bar(done, total, label, max(20, size.columns - 1))
        images = frame() if self.color_count else ()
        if images:
            lines = half_blocks(fit_images(images, max(8, size.columns - 1), max(4, size.lines - 3)), self.color_count)
            cursor_up = f"\x1b[{self._lines}A\r" if self._lines else ""
            self._write(cursor_up + "".join(f"{line}\x1b[K\n" for line in [*lines, bar]) + "\x1b[J")
            self._lines = 0 if last else len(lines) + 1
        else:
            self._write(f"\r{bar}" + ("\n" if last else ""))
            self._lines = 0 if last else 1

    def note(self, line: str) -> None:
        """Write a line above the progress."""
        if not self.quiet:
            self._write(line + "\n")

    def _write(self, text: str) -> None:
        encoding = self.stream.encoding or "utf-8"
        self.stream.write(text.encode(encoding, "replace").decode(encoding))
        self.stream.flush()


def progress_bar(done: int, total: int, label: str, columns: int) -> str:
    """A line of at most so many columns: the label, a bar, and the number of steps."""
    count = f" {done}/{total}"
    room = columns - len(count) - 3
    label = "".join(c for c in label if c.isprintable())[: max(0, room - 12)]
    wide = max(8, min(40, room - len(label)))
    full = wide * done // max(total, 1)
    return f"{label} [{'#' * full}{'.' * (wide - full)}]{count}"


def true_color(rgb: tuple[int, ...]) -> str:
    """The escape code of a color in a terminal with 2²⁴ colors."""
    return f"2;{rgb[0]};{rgb[1]};{rgb[2]}"


def color_256(rgb: tuple[int, ...]) -> str:
    """The escape code of the nearest of the 6 × 6 × 6 colors of a terminal with 256: levels 0, 95, 135, … 255."""
    levels = [0 if c < 48 else 1 if c < 115 else (c - 35) // 40 for c in rgb]
    return f"5;{16 + 36 * levels[0] + 6 * levels[1] + levels[2]}"


def enable_windows_escapes() -> bool:
    """Let a Windows console interpret escape sequences; returns whether it can."""
    if sys.platform == "win32":
        import ctypes

        kernel = ctypes.windll.kernel32
        handle, mode = kernel.GetStdHandle(-12), ctypes.c_ulong()
        return bool(kernel.GetConsoleMode(handle, ctypes.byref(mode)) and kernel.SetConsoleMode(handle, mode.value | 4))
    return False
