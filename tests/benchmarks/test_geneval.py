"""GenEval's folder layout, by the benchmark that draws it: the model inside the package, in one step."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

import unspeckle
from unspeckle.generation.request import Request
from unspeckle.prompts import escape_prompt

MODEL = Path(unspeckle.__file__).parent / "models" / "embedded.safetensors"
PROMPTS = ["a photo of a frog", "a photo of two (red) hats: AND", "a photo of a pizza above a house"]
ROWS = [
    {"tag": "any", "include": [{"class": "thing", "count": n}], "prompt": prompt} for n, prompt in enumerate(PROMPTS)
]


@pytest.fixture(scope="module")
def geneval() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "geneval.py"
    spec = importlib.util.spec_from_file_location("geneval", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def metadata(tmp_path: Path) -> Path:
    path = tmp_path / "metadata.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def arguments(metadata: Path, *options: str) -> list[str]:
    return [str(MODEL), str(metadata), str(metadata.parent / "out"), "--seeds", "2", "--steps", "1", *options]


def read_samples(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.png"))}


def test_folders_are_as_the_scorer_reads_them(
    geneval: ModuleType, metadata: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert geneval.main(arguments(metadata)) == 0
    out = metadata.parent / "out"
    assert capsys.readouterr().out == f"{out}\n"
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["00000", "00001", "00002"]
    model = unspeckle.load()
    for number, row in enumerate(ROWS):
        folder = out / f"{number:05d}"
        assert json.loads((folder / "metadata.jsonl").read_text()) == row
        assert sorted(path.name for path in (folder / "samples").iterdir()) == ["0000.png", "0001.png"]
        request = Request(prompt=escape_prompt(PROMPTS[number]), count=2, steps=1)
        for seed, expected in enumerate(unspeckle.draw(model, request)):
            image = np.asarray(Image.open(folder / "samples" / f"{seed:04d}.png"))
            assert np.abs(image.astype(int) - np.asarray(expected)).max() <= 1


def test_it_continues_where_it_was_stopped(
    geneval: ModuleType, metadata: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[tuple[str, int]]] = []
    draw_prompts = geneval.draw_prompts

    def draw_two_batches(model: Any, prompts: list[str], seeds: list[int], request: Request) -> list[Image.Image]:
        if len(batches) == 2:
            raise KeyboardInterrupt
        batches.append(list(zip(prompts, seeds, strict=True)))
        images: list[Image.Image] = draw_prompts(model, prompts, seeds, request)
        return images

    monkeypatch.setattr(geneval, "images_per_batch", lambda resolved: 2)
    monkeypatch.setattr(geneval, "draw_prompts", draw_two_batches)
    out = metadata.parent / "out"
    assert geneval.main(arguments(metadata)) == 130
    before = read_samples(out)
    assert len(before) == 4 and "continues" in capsys.readouterr().err
    (out / "00000" / "samples" / "0001.png").unlink()
    batches.clear()
    assert geneval.main(arguments(metadata)) == 0
    escaped = [escape_prompt(prompt) for prompt in PROMPTS]
    assert batches == [[(escaped[0], 1), (escaped[2], 0)], [(escaped[2], 1)]]
    after = read_samples(out)
    untouched = {name: data for name, data in before.items() if name != "00000/samples/0001.png"}
    assert len(after) == 6 and {name: after[name] for name in untouched} == untouched
    batches.clear()
    assert geneval.main(arguments(metadata)) == 0 and batches == [] and read_samples(out) == after
    assert geneval.main(arguments(metadata, "--seeds", "3")) == 0 and len(read_samples(out)) == 9
    capsys.readouterr()
    assert geneval.main(arguments(metadata, "--guidance-scale", "2")) == 2
    assert "was started with guidance_scale" in capsys.readouterr().err and len(read_samples(out)) == 9
    metadata.write_text(json.dumps({"prompt": "another"}) + "\n")
    assert geneval.main(arguments(metadata)) == 2
    assert "00000/metadata.jsonl: has another prompt" in capsys.readouterr().err


def test_a_folder_that_version_0_1_started_is_continued(geneval: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "unspeckle.json").write_text(json.dumps({"model": "a", "scale": 3.0, "grid": "uniform"}))
    geneval.prepare_folder(tmp_path, {"model": "a", "guidance_scale": 3.0, "timestep_spacing": "uniform"})
    settings = json.loads((tmp_path / "unspeckle.json").read_text())
    assert settings == {"model": "a", "guidance_scale": 3.0, "timestep_spacing": "uniform"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b'{"prompt": "a frog"}\nnonsense\n', ", line 2: "),
        (b'{"prompt": "a frog"}\n\n{"prompt": "a frog"}\n', ", line 2: "),
        (b'{"tag": "counting"}\n', ", line 1: "),
        (b'{"prompt": 3}\n', ", line 1: "),
        (b'["a frog"]\n', ", line 1: "),
        (b"[" * 100_000, ", line 1: "),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_bad_metadata_is_an_error_of_one_line(
    data: bytes, message: str, geneval: ModuleType, metadata: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata.write_bytes(data)
    assert geneval.main(arguments(metadata)) == 2
    output = capsys.readouterr()
    assert output.out == "" and len(output.err.splitlines()) == 1
    assert str(metadata) in output.err and message in output.err
    assert not (metadata.parent / "out").exists()


def test_a_folder_of_something_else_is_left_alone(
    geneval: ModuleType, metadata: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = metadata.parent / "out"
    out.mkdir()
    (out / "holiday.txt").write_text("mine")
    assert geneval.main(arguments(metadata)) == 2
    assert "give a new folder" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["holiday.txt"]
