"""Short trainings for tests, and what they leave."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from unspeckle.old_names import plan_to_old, rename_checkpoint_counters, rename_checkpoint_tensor
from unspeckle.training import checkpoint
from unspeckle.training.measurement import NO_LEARNING_WARMUP_STEPS
from unspeckle.training.options import TrainOptions
from unspeckle.training.plan import Plan
from unspeckle.training.plan_file import PLAN_FILE
from unspeckle.training.text_to_image_updater import TextToImageUpdater
from unspeckle.training.updater import Updater

COLORS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (30, 60, 220)}


def write_color_folder(root: Path, images_per_color: int = 20) -> Path:
    """Images of 16 × 16 pixels in three colors, in a folder for each; their captions are the folders' names."""
    rng = np.random.default_rng(0)
    for name, color in COLORS.items():
        (root / name).mkdir()
        for i in range(images_per_color):
            pixels = np.clip(np.array(color) + rng.integers(-20, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def train_options(folder: Path, out: Path, **changes: Any) -> TrainOptions:
    """Options of a training of 12 steps that takes a second."""
    options = TrainOptions(
        folder, out, steps=12, size="16", preset="nano", batch_size=8, quiet=True, precision="float32"
    )
    return replace(options, **changes)


# The same options as they are typed
TYPED_OPTIONS = [
    "--steps",
    "12",
    "--size",
    "16",
    "--preset",
    "nano",
    "--batch-size",
    "8",
    "--precision",
    "float32",
    "--quiet",
]


def is_measuring(plan: Plan) -> bool:
    """Whether the plan is one of throwaway weights, by which the speed of steps is measured."""
    return plan.optimizer.warmup_steps == NO_LEARNING_WARMUP_STEPS


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int, updater_class: type[Updater] = TextToImageUpdater) -> None:
    """Send Ctrl-C while that step of training is computed."""
    updates = updater_class.updates

    def interrupted_updates(self: Updater, batch: Any, number: int) -> Any:
        if number == step and not is_measuring(self.plan):
            signal.raise_signal(signal.SIGINT)
        return updates(self, batch, number)

    monkeypatch.setattr(updater_class, "updates", interrupted_updates)


def checkpoint_tensors(run: Path) -> dict[str, Tensor]:
    """The tensors of the RUN's newest checkpoint."""
    saved = checkpoint.load_latest_checkpoint(run)
    assert saved is not None
    return saved.tensors


def final_tensors(run: Path, output_file: str = "model.safetensors") -> dict[str, Tensor]:
    """All tensors of a finished RUN's newest checkpoint and of its model."""
    return {**checkpoint_tensors(run), **load_file(run / output_file)}


def tensors_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether both have the same tensors, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def rewrite_as_version_0_1(run: Path, part: str = "") -> None:
    """Rewrite the plan and the checkpoints of a RUN, or of the folder of a part of it, as version 0.1 wrote them."""
    plan_path = run / PLAN_FILE
    if plan_path.exists():
        plan_path.write_text(json.dumps(plan_to_old(json.loads(plan_path.read_text()))))
    for path in (run / "checkpoints").glob("step-*"):
        with safe_open(path, framework="pt") as file:
            values = json.loads(file.metadata()["unspeckle-checkpoint"])
            tensors = {
                rename_checkpoint_tensor(name, part, to_old=True): file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118
            }
        counters = rename_checkpoint_counters(values["counters"], to_old=True)
        metadata = {"unspeckle-checkpoint": json.dumps({"step": values["step"], "counters": counters})}
        save_file(tensors, path, metadata)
