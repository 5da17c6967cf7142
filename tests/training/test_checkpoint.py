"""Checkpoints: the newest whole one counts, and other files are left alone."""

from pathlib import Path

import torch

from unspeckle.training.checkpoint import Checkpoint, latest_step, load_latest_checkpoint, save_checkpoint


def load_step(run: Path) -> int:
    saved = load_latest_checkpoint(run)
    assert saved is not None
    return saved.step


def test_files_that_are_no_checkpoints_are_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "step-final.safetensors").touch()
    for step in (7, 8, 100_000_000, 100_000_001):
        save_checkpoint(tmp_path, Checkpoint(step, {"a": torch.ones(1)}, {}))
    assert latest_step(tmp_path) == load_step(tmp_path) == 100_000_001
    assert len(list(folder.iterdir())) == 3


def test_a_torn_checkpoint_is_passed_over(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, Checkpoint(step, {"a": torch.tensor([float(step)])}, {"skipped_steps": 0}))
    paths = sorted((tmp_path / "checkpoints").iterdir())
    assert [path.name for path in paths] == ["step-00000002.safetensors", "step-00000003.safetensors"]
    paths[1].write_bytes(paths[1].read_bytes()[:-2])
    assert latest_step(tmp_path) == load_step(tmp_path) == 2
