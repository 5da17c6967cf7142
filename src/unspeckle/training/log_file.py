"""RUN/log.jsonl, a line of JSON a report, and TensorBoard events if that is installed."""

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unspeckle import atomic
from unspeckle.old_names import LOG, rename_fields
from unspeckle.training.progress import ProgressReport

LOG_FILE = "log.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


class TrainingLog:
    """Appends reports. Lines of steps that a killed process did after its last checkpoint, and lines that it did not
    finish, are removed first."""

    def __init__(self, run_folder: Path, steps_done: int) -> None:
        run_folder.mkdir(parents=True, exist_ok=True)
        path = run_folder / LOG_FILE
        if path.exists():
            records = filter(None, map(_parse_record, path.read_text("utf-8").splitlines()))
            lines = [json.dumps(record) for record in records if record["step"] <= steps_done]
            atomic.write_bytes(path, "".join(f"{line}\n" for line in lines).encode())
        self.file = path.open("a", encoding="utf-8")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.tensorboard: Any = None
        else:
            self.tensorboard = SummaryWriter(str(run_folder / TENSORBOARD_FOLDER), purge_step=steps_done + 1)

    def write_report(self, report: ProgressReport, images_seen: int) -> None:
        """Append a line, without the numbers that are not finite."""
        record: dict[str, Any] = {
            "time": round(time.time(), 1),
            "step": report.step,
            "images_seen": images_seen,
            "stage": report.stage,
        }
        metrics = {
            "loss": report.loss,
            **{f"{name}_loss": loss for name, loss in report.other_losses.items()},
            "grad_norm": report.grad_norm,
            "images_per_second": report.images_per_second,
            "skipped_steps": float(report.skipped_steps),
            "mfu": report.mfu,
        }
        if report.validation is not None:
            metrics["validation_loss"] = report.validation.total
            errors = zip(report.validation.levels, report.validation.relative_errors, strict=True)
            record["validation_errors"] = {level: round(error, 5) for level, error in errors}
        metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self.file.write(json.dumps(record | metrics) + "\n")
        self.file.flush()
        if self.tensorboard is not None:
            self._write_events(report, metrics)

    def _write_events(self, report: ProgressReport, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self.tensorboard.add_scalar(name, value, report.step)
        if report.samples_path is not None:
            with Image.open(report.samples_path) as grid:
                pixels = np.asarray(grid.convert("RGB"))
            self.tensorboard.add_image("samples", pixels, report.step, dataformats="HWC")

    def close(self) -> None:
        """Close the files."""
        self.file.close()
        if self.tensorboard is not None:
            self.tensorboard.close()


def _parse_record(line: str) -> dict[str, Any] | None:
    """The record of a line by the names of today; None if it is not a whole record."""
    try:
        record = rename_fields(json.loads(line), LOG)
        return record if isinstance(record["step"], int) else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
