"""Training as a person watches it: a live panel in a terminal, a line now and then elsewhere. All on standard error."""

import time
from datetime import datetime, timedelta

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from unspeckle.networks.autoencoder import PixelAutoencoderConfig
from unspeckle.training.plan import LoraPlan, Plan
from unspeckle.training.stage import ProgressReport
from unspeckle.training.validation import ValidationResult

LINE_INTERVAL = 30.0  # seconds, where there is no terminal


def format_duration(seconds: float) -> str:
    """A duration as people say it: 42 s, 7 min, 1 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def format_images_per_second(images_per_second: float) -> str:
    """Pictures a second, or a minute where they are few."""
    return (
        f"{images_per_second:.0f} pictures/s"
        if images_per_second >= 2
        else f"{60 * images_per_second:.1f} pictures/min"
    )


def plan_table(plan: Plan, steps_done: int) -> Table:
    """The plan, before the first step or the one after `done`."""
    width, height = plan.size
    seconds = plan.total_seconds * min(
        1, (plan.steps - steps_done) / max(1, plan.steps - plan.text_steps)
    )  # the words' are quick
    end = datetime.now() + timedelta(seconds=seconds)
    compute = f"{plan.device}, {plan.precision}, {'compiled' if plan.compile else 'eager'}"
    fields = {
        "works on": f"{compute}, {format_images_per_second(plan.images_per_second)} measured",
        **({"reaches": _describe_mfu(plan)} if plan.peak_flops else {}),
        "network": f"{plan.preset}, {plan.parameter_count / 1e6:.1f} M parameters{_describe_text_encoder(plan)}",
        "denoises": _describe_space(plan),
        "pictures": f"{width}x{height}, {plan.total_images:,} in {plan.steps:,} steps of {plan.batch_size}{_describe_images(plan)}",
        "optimiser": _describe_optimizer(plan),
        "memory": f"{plan.memory_bytes / 2**30:.1f} GiB at the peak",
        "disk": f"{plan.disk_bytes / 2**20:,.0f} MiB in the run's folder",
        "time": f"{format_duration(seconds)}, until about {end:%H:%M}"
        + (f", from step {steps_done + 1:,}" if steps_done else ""),
    }
    if plan.text_steps:
        fields["words"] = f"learn alone for the first {plan.text_steps:,} of these steps, which are quick"
    grid = Table.grid(padding=(0, 2))
    for name, value in fields.items():
        grid.add_row(Text(name, style="bold"), value)
    return grid


def _describe_mfu(plan: Plan) -> str:
    return f"{plan.flops_per_image * plan.images_per_second / 1e12:.2f} of {plan.peak_flops / 1e12:.2f} TFLOP/s measured, {plan.mfu:.0%} (MFU)"


def _describe_optimizer(plan: Plan) -> str:
    if plan.optimizer == "muon":
        return f"Muon, rate {format_small_number(plan.muon_learning_rate)}; AdamW, rate {format_small_number(plan.learning_rate)}, for what is no matrix"
    return f"AdamW, rate {format_small_number(plan.learning_rate)}"


def format_small_number(value: float) -> str:
    """As people write small numbers: 4e-3."""
    digits, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(digits):g}e{int(exponent)}"


def _describe_text_encoder(plan: Plan) -> str:
    return " with its words" if not isinstance(plan, LoraPlan) or plan.train_text_encoder else ""


def _describe_images(plan: Plan) -> str:
    flip_text = ", half of them mirrored" if type(plan) is Plan and plan.flip else ""
    return flip_text + (", those of rare captions more often" if plan.balance else "")


def _describe_space(plan: Plan) -> str:
    if isinstance(plan.autoencoder_config, PixelAutoencoderConfig):
        return "pixels"
    width, height = plan.input_size
    origin_text = (
        f"learnt in {plan.autoencoder_steps:,} steps before"
        if plan.autoencoder_steps
        else "of the model it goes on from"
    )
    return f"latents of {width}x{height}x{plan.autoencoder_config.latent_channels}, {origin_text}"


class ProgressView:
    """A context manager: `with View(plan, quiet) as view: view.show(report)`."""

    def __init__(self, plan: Plan, console: Console, quiet: bool) -> None:
        self.plan, self.console, self.quiet = plan, console, quiet
        self.validation: ValidationResult | None = None
        self.last_print = 0.0
        self.progress = Progress(
            BarColumn(bar_width=None), TextColumn("{task.percentage:3.0f} %"), TextColumn("{task.description}"),
            console=console, expand=True,
        )  # fmt: skip
        self.bar = self.progress.add_task("", total=plan.steps)
        self.live = Live(console=console, transient=True, refresh_per_second=4)

    def __enter__(self) -> "ProgressView":
        if self.console.is_terminal and not self.quiet:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def print_line(self, line: str) -> None:
        """A line that stays."""
        if not self.quiet:
            self.console.print(line, highlight=False, soft_wrap=True)

    def show_report(self, report: ProgressReport) -> None:
        if report.validation is not None:
            self.validation = report.validation
        if self.quiet:
            return
        status = (
            ("words alone · " if report.is_text_stage else "")
            + f"{format_images_per_second(report.images_per_second)} · loss {report.loss:.4f} · {format_duration(report.seconds_left)} left"
            + (f" · {report.skipped_steps} steps skipped" if report.skipped_steps else "")
        )  # fmt: skip
        if self.live.is_started:
            self.progress.update(self.bar, completed=report.step, description=status)
            self.live.update(self._panel())
        elif report.validation is not None or time.monotonic() - self.last_print > LINE_INTERVAL:
            self.last_print = time.monotonic()
            validation_text = "" if report.validation is None else f" · {report.validation.summary}"
            if report.images_per_second:
                self.print_line(
                    f"{100 * report.step / report.steps:3.0f} % · step {report.step:,} · {status}{validation_text}"
                )
        if report.samples_path is not None:
            self.print_line(f"samples: {report.samples_path}")

    def _panel(self) -> RenderableType:
        if self.validation is None:
            return self.progress
        heading = "held-out error, of predicting the mean picture"
        level_table = Table(self.validation.levels_heading, heading, box=None, expand=False)
        for level, error in zip(self.validation.levels, self.validation.relative_errors, strict=True):
            task_id = "█" * round(30 * min(error, 1.0))
            level_table.add_row(level, f"{error:6.1%} {task_id}")
        return Group(self.progress, Text(self.validation.summary), level_table)
