"""What notebooks show of models, requests and films; and the notebooks themselves, run from top to bottom."""

import base64
import io
import json
import re
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

import unspeckle
from conftest import SDFolder
from tiny_models import model_with_student, random_model

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
# What Colab's runtime has, as far as the notebooks use it
FAKE_COLAB = {
    "__init__.py": "",
    "drive.py": "def mount(path):\n    print('mounted', path)\n",
    "files.py": "def upload():\n    return {'photos.zip': b''}\ndef download(path):\n    print('downloaded', path)\n",
}
# Plans are measured in less time, and reports come often
QUICK = """
import torch
from unspeckle.training import measurement, progress, train_planner
for name in ("STEPS", "CACHED_LATENTS", "TEXT_STAGE", "CAPTIONS", "AUTOENCODER"):
    setattr(measurement, f"{name}_SECONDS", 0.1)
progress.REPORT_INTERVAL = 0.1
train_planner.CPU_BATCH_SIZE = 4
"""


def run_notebook(name: str, settings: dict[str, Any], folder: Path, first_cell: str = "", drive: str = "") -> list[Any]:
    """Run every cell in the folder with other values of the settings, after a cell that comes first; gives the code
    cells with their outputs. drive: what stands for /content/drive."""
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None, (
            "a notebook is committed without outputs"
        )
        cell.source = cell.source.replace("/content/drive", drive or "/content/drive")
    settings_cell = next(cell for cell in notebook.cells if cell.cell_type == "code")
    for setting, value in settings.items():
        lines = f"^{setting} = .*$"
        assert len(re.findall(lines, settings_cell.source, re.MULTILINE)) == 1, setting
        settings_cell.source = re.sub(
            lines, lambda _, line=f"{setting} = {value!r}": line, settings_cell.source, flags=re.MULTILINE
        )
    notebook.cells.insert(0, nbformat.v4.new_code_cell(first_cell + QUICK))
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def output_of(cells: list[Any], source: str) -> str:
    """All that the cell whose source holds that text shows, as text and HTML."""
    (cell,) = (cell for cell in cells if source in cell.source)
    shown = [output.get("text") or json.dumps(output.get("data", {})) for output in cell.outputs]
    return "\n".join(shown)


@pytest.mark.parametrize("name", sorted(path.name for path in NOTEBOOKS.glob("*.ipynb")))
def test_notebooks_install_this_version(name: str) -> None:
    sources = [cell.source for cell in nbformat.read(NOTEBOOKS / name, as_version=4).cells if cell.cell_type == "code"]
    version = re.escape(metadata.version("unspeckle"))
    assert re.search(rf'^SOURCE = "unspeckle(\[hub\])?=={version}"$', sources[0], re.MULTILINE)
    (install,) = (source for source in sources if "pip" in source)
    assert install.endswith('\n    %pip install --quiet "{SOURCE}"')


def test_train_your_own_in_colab_and_once_more(color_folder: Path, tmp_path: Path) -> None:
    """A .zip is uploaded, the run is kept on the Drive, and a second time there is nothing left to do but draw."""
    colab, drive = tmp_path / "colab" / "google" / "colab", tmp_path / "drive"
    colab.mkdir(parents=True)
    for file, source in FAKE_COLAB.items():
        (colab / file).write_text(source)
    shutil.make_archive(str(tmp_path / "photos"), "zip", color_folder)
    settings = {"PICTURES": "upload", "BUDGET": "8s", "SIZE": 16, "PROMPTS": ["red", "a blue dot"]}
    first_cell = f"import sys\nsys.path.insert(0, {str(tmp_path / 'colab')!r})\nimport google.colab\n"
    for time in ("first", "second"):
        cells = run_notebook("train_your_own.ipynb", settings, tmp_path, first_cell, str(drive))
        assert "This machine" in output_of(cells, "machine = unspeckle.machine()")
        assert f"mounted {drive}" in output_of(cells, "drive.mount")
        assert "images with captions" in output_of(cells, "unspeckle.check(")
        assert output_of(cells, "unspeckle.plan(").count("of training</b>") == 3
        live = output_of(cells, "unspeckle.train(")
        assert ("<progress" in live and "data:image/webp" in live) if time == "first" else "finished" in live
        assert output_of(cells, "unspeckle.grid(").count("image/png") == 2
        assert "data:image/webp" in output_of(cells, "unspeckle.film(")
        assert f"downloaded {drive}" in output_of(cells, "files.download")
    assert (drive / "MyDrive" / "unspeckle" / "my-model" / "model.safetensors").is_file()


def test_stable_diffusion(sd_folder: SDFolder, tmp_path: Path) -> None:
    settings = {"MODEL": str(sd_folder("1")), "SIZE": 16, "STEPS": 2, "BUDGET": "10s"}
    cells = run_notebook("stable_diffusion.ipynb", settings, tmp_path)
    for source in ("images = unspeckle.draw", "changed = ", "inpainted = ", "tuned = "):
        assert "image/png" in output_of(cells, source)
    assert "<progress" in output_of(cells, "unspeckle.train(")
    assert (tmp_path / "unspeckle" / "my-lora" / "lora.safetensors").is_file()
    assert "unspeckle/my-lora/lora.safetensors" in output_of(cells, "FileLink")


def test_a_model_says_what_it_is() -> None:
    page = model_with_student()._repr_html_()
    assert "16 × 16 pixels" in page and "million, in float32 on cpu" in page and "draws in 1, 2, 4 steps" in page


def test_a_request_shows_what_it_asks_for_and_nothing_can_hide_in_it() -> None:
    page = unspeckle.Request("a <b>frog</b> & co", seed=7, negative_prompt="<script>")._repr_html_()
    assert "a &lt;b&gt;frog&lt;/b&gt; &amp; co" in page and "&lt;script&gt;" in page and "<script>" not in page
    assert re.findall(r"<th [^>]*>(\w+)</th>", page) == ["negative_prompt", "seed"]


def test_a_film_shows_the_steps_of_a_drawing() -> None:
    model = random_model()
    film = unspeckle.film(model, "a frog", seed=3, steps=5)
    found = re.findall(r"data:image/(\w+);base64,([^\"]+)", film._repr_html_())
    assert [kind for kind, _ in found] == ["webp", "png"]
    animation = Image.open(io.BytesIO(base64.b64decode(found[0][1])))
    # Five steps and the result; the last frame is the image that `draw` gives.
    assert getattr(animation, "n_frames", 1) == 6
    animation.seek(5)
    assert animation.convert("RGB").tobytes() == unspeckle.draw(model, "a frog", seed=3, steps=5)[0].tobytes()
