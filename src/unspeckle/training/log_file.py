"""What a run tells afterwards: RUN/log.jsonl, a line a report, and TensorBoard events where that is installed."""

import json
import math
import time
from pathlib import Path
from typing import Any

from PIL import Image

from unspeckle import atomic
from unspeckle.training.stage import ProgressReport


def _parse_step_number(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


class TrainingLog:
    """Appends. Lines of steps that a killed process did but did not keep, or did not end, are dropped first."""

    def __init__(self, run_folder: Path, steps_done: int) -> None:
        run_folder.mkdir(parents=True, exist_ok=True)
        path = run_folder / "log.jsonl"
        if path.exists():
            lines = [line for line in path.read_text("utf-8").splitlines() if _parse_step_number(line) <= steps_done]
            atomic.write_bytes(path, "".join(f"{line}\n" for line in lines).encode())
        self.file = path.open("a", encoding="utf-8")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.tensorboard: Any = None
        else:
            self.tensorboard = SummaryWriter(str(run_folder / "tensorboard"), purge_step=steps_done + 1)

    def write_report(self, report: ProgressReport, images_seen: int) -> None:
        record: dict[str, Any] = {"time": round(time.time(), 1), "step": report.step, "pictures": images_seen}
        metrics = {
            "loss": report.loss,
            "norm": report.grad_norm,
            "rate": report.images_per_second,
            "skipped": float(report.skipped_steps),
        }
        metrics["mfu"] = report.mfu
        if report.is_text_stage:
            record["words"] = True
        if report.validation is not None:
            metrics["held_out"] = report.validation.total
            level_errors = zip(report.validation.levels, report.validation.relative_errors, strict=True)
            record["held_out_shares"] = {level: round(error, 5) for level, error in level_errors}
        record |= {name: value for name, value in metrics.items() if math.isfinite(value)}
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        if self.tensorboard is not None:
            for name, value in metrics.items():
                if math.isfinite(value):
                    self.tensorboard.add_scalar(name, value, report.step)
            if report.samples_path is not None:
                import numpy as np

                with Image.open(report.samples_path) as grid:
                    self.tensorboard.add_image(
                        "samples", np.asarray(grid.convert("RGB")), report.step, dataformats="HWC"
                    )

    def close(self) -> None:
        self.file.close()
        if self.tensorboard is not None:
            self.tensorboard.close()
