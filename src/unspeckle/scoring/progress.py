"""How far the measurement of a model is, on standard error."""

import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

LOG_INTERVAL = 10.0  # seconds between two lines when standard error is not a terminal


class Progress(Protocol):
    """What a measurement reports to. A unit of work is one call of the network for one image, or as much work."""

    def start_stage(self, name: str) -> None:
        """Another stage begins."""

    def advance(self, units: int) -> None:
        """So many further units of work are done."""

    def show_fraction(self, fraction: float) -> None:
        """This fraction of a stage is done whose work is not counted in units."""


class ProgressBar:
    """A progress bar with the time left, or a line every few seconds when standard error is not a terminal."""

    def __init__(self, console: Console) -> None:
        self.console, self.total, self.completed, self.stage_name = console, 1, 0, ""
        self.start_time = self.last_log_time = time.monotonic()
        columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
        self.bar = RichProgress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task_id = self.bar.add_task("")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bar.stop()

    def restart(self, total: int) -> None:
        """Count from 0 to `total` units."""
        self.total, self.completed = max(1, total), 0
        self.start_time = time.monotonic()
        self.bar.reset(self.task_id, total=self.total)

    def restart_stage(self, name: str, total: int) -> None:
        """Begin a stage that counts its own units, from 0 to `total`."""
        self.restart(total)
        self.start_stage(name)

    def start_stage(self, name: str) -> None:
        """Begin a stage whose units are counted on."""
        self.stage_name = name
        self._refresh(0, force=True)

    def advance(self, units: int) -> None:
        """So many further units are done."""
        self._refresh(units)

    def set_completed(self, completed: int, total: int) -> None:
        """`completed` of `total` units of the stage are done."""
        self.total = total
        self._refresh(completed - self.completed)

    def show_fraction(self, fraction: float) -> None:
        """This fraction of the stage is done; the bar, which counts units, stays where it is."""
        self._refresh(0, suffix=f" ({100 * fraction:.0f} % of this stage)")

    def _refresh(self, units: int, force: bool = False, suffix: str = "") -> None:
        self.completed += units
        description = self.stage_name + suffix
        self.bar.update(self.task_id, description=description, completed=self.completed, total=self.total)
        now = time.monotonic()
        if self.console.is_terminal or not (force or now - self.last_log_time > LOG_INTERVAL):
            return
        self.last_log_time, time_left = now, ""
        if 0 < self.completed < self.total:
            time_left = f", about {(now - self.start_time) * (self.total - self.completed) / self.completed:.0f} s left"
        self.console.print(f"{description}: {100 * self.completed // self.total} %{time_left}", soft_wrap=True)
