"""Training as a person watches it: a live panel in a terminal, a line now and then elsewhere. All on standard error."""

import time

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from unspeckle.training.progress import ProgressReport
from unspeckle.training.validation import ValidationResult

# Seconds between lines if there is no terminal
LINE_INTERVAL = 30.0
# Characters of a bar that shows an error as large as the mean image's
ERROR_BAR_WIDTH = 30


class ProgressView:
    """A context manager: `with ProgressView(steps, console, quiet) as view: view.show_report(report)`."""

    def __init__(self, steps: int, console: Console, quiet: bool) -> None:
        self.console, self.quiet = console, quiet
        self.validation: ValidationResult | None = None
        self.last_print = 0.0
        self.progress = Progress(
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:3.0f} %"),
            TextColumn("{task.description}"),
            console=console,
            expand=True,
        )
        self.bar = self.progress.add_task("", total=steps)
        self.live = Live(console=console, transient=True, refresh_per_second=4)

    def __enter__(self) -> "ProgressView":
        if self.console.is_terminal and not self.quiet:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def print_line(self, line: str) -> None:
        """Print a line that stays."""
        if not self.quiet:
            self.console.print(line, highlight=False, soft_wrap=True)

    def show_report(self, report: ProgressReport) -> None:
        """Update the panel, or print a line if it is time for one."""
        if report.validation is not None:
            self.validation = report.validation
        if self.quiet:
            return
        status = report.status
        if self.live.is_started:
            self.progress.update(self.bar, completed=report.step, description=status)
            self.live.update(self._panel())
        elif report.validation is not None or time.monotonic() - self.last_print > LINE_INTERVAL:
            self.last_print = time.monotonic()
            validation_text = "" if report.validation is None else f" · {report.validation.summary}"
            # The last report comes after all steps.
            if report.images_per_second:
                percentage = 100 * report.step / report.steps
                self.print_line(f"{percentage:3.0f} % · step {report.step:,} · {status}{validation_text}")
        if report.samples_path is not None:
            self.print_line(f"samples: {report.samples_path}")

    def _panel(self) -> RenderableType:
        if self.validation is None:
            return self.progress
        heading = "validation error, as a share of the mean image's"
        table = Table(self.validation.levels_heading, heading, box=None, expand=False)
        for level, error in zip(self.validation.levels, self.validation.relative_errors, strict=True):
            table.add_row(level, f"{error:6.1%} {'█' * round(ERROR_BAR_WIDTH * min(error, 1.0))}")
        return Group(self.progress, Text(self.validation.summary), table)
