"""The built wheel in an environment of its own."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from unspeckle.generation.metadata import image_metadata
from unspeckle.output.png import read_png

ROOT = Path(__file__).parent.parent


def run(*command: str | Path, where: Path) -> str:
    return subprocess.run(command, cwd=where, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_a_wheel_holds_all_and_draws_from_any_folder(tmp_path: Path) -> None:
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, ROOT, where=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    source = ROOT / "src"
    there = {str(file.relative_to(source)) for file in source.rglob("*") if file.is_file() and file.suffix != ".pyc"}
    held = set(zipfile.ZipFile(wheel).namelist())
    assert there - held == set() and "unspeckle/models/embedded.safetensors" in held

    run(sys.executable, "-m", "venv", "new", where=tmp_path)
    binaries = tmp_path / "new" / "bin"
    run(binaries / "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel, where=tmp_path)
    (tmp_path / "elsewhere").mkdir()
    said = run(binaries / "unspeckle", "draw", "a frog", "--steps", "2", "-q", where=tmp_path / "elsewhere")
    assert image_metadata(read_png(Path(said.strip())))["prompt"] == "a frog"
