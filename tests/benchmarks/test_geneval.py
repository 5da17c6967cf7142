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

MODEL = Path(unspeckle.__file__).parent / "models" / "embedded.safetensors"
PROMPTS = ["a photo of a frog", "a photo of two (red) hats: AND", "a photo of a pizza above a house"]
ROWS = [
    {"tag": "any", "include": [{"class": "thing", "count": n}], "prompt": prompt} for n, prompt in enumerate(PROMPTS)
]


@pytest.fixture(scope="module")
def geneval() -> ModuleType:
    path = Path(__file__).parents[1].parent / "benchmarks" / "geneval.py"
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


def line(metadata: Path, *more: str) -> list[str]:
    return [str(MODEL), str(metadata), str(metadata.parent / "out"), "--seeds", "2", "--steps", "1", *more]


def samples(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.png"))}


def test_folders_are_as_the_scorer_reads_them(
    geneval: ModuleType, metadata: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert geneval.main(line(metadata)) == 0
    out = metadata.parent / "out"
    assert capsys.readouterr().out == f"{out}\n"
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["00000", "00001", "00002"]
    model = unspeckle.load()
    for number, row in enumerate(ROWS):
        folder = out / f"{number:05d}"
        assert json.loads((folder / "metadata.jsonl").read_text()) == row
        assert sorted(path.name for path in (folder / "samples").iterdir()) == ["0000.png", "0001.png"]
        words = unspeckle.prompts.escape(PROMPTS[number])
        expected = unspeckle.draw(model, Request(prompt=words, count=2, steps=1))
        for seed, one in enumerate(expected):
            drawn = np.asarray(Image.open(folder / "samples" / f"{seed:04d}.png"))
            assert np.abs(drawn.astype(int) - np.asarray(one)).max() <= 1


def test_it_goes_on_where_it_was_stopped(
    geneval: ModuleType, metadata: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[tuple[str, int]]] = []
    inner = geneval.many

    def many(model: Any, prompts: list[str], seeds: list[int], ask: Request) -> list[Image.Image]:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(list(zip(prompts, seeds, strict=True)))
        return inner(model, prompts, seeds, ask)

    monkeypatch.setattr(geneval, "together", lambda model, order: 2)
    monkeypatch.setattr(geneval, "many", many)
    out = metadata.parent / "out"
    assert geneval.main(line(metadata)) == 130
    before = samples(out)
    assert len(before) == 4 and "goes on" in capsys.readouterr().err
    (out / "00000" / "samples" / "0001.png").unlink()
    asked.clear()
    assert geneval.main(line(metadata)) == 0
    escaped = [unspeckle.prompts.escape(prompt) for prompt in PROMPTS]
    assert asked == [[(escaped[0], 1), (escaped[2], 0)], [(escaped[2], 1)]]
    after = samples(out)
    assert len(after) == 6 and {name: after[name] for name in before if name != "00000/samples/0001.png"} == {
        name: data for name, data in before.items() if name != "00000/samples/0001.png"
    }
    asked.clear()
    assert geneval.main(line(metadata)) == 0 and asked == [] and samples(out) == after
    assert geneval.main(line(metadata, "--seeds", "3")) == 0 and len(samples(out)) == 9
    capsys.readouterr()
    assert geneval.main(line(metadata, "--scale", "2")) == 2
    assert "was begun with scale" in capsys.readouterr().err and len(samples(out)) == 9
    metadata.write_text(json.dumps({"prompt": "another"}) + "\n")
    assert geneval.main(line(metadata)) == 2
    assert "00000/metadata.jsonl: tells of another prompt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "said"),
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
def test_bad_metadata_is_one_line(
    data: bytes, said: str, geneval: ModuleType, metadata: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata.write_bytes(data)
    assert geneval.main(line(metadata)) == 2
    found = capsys.readouterr()
    assert found.out == "" and len(found.err.splitlines()) == 1
    assert str(metadata) in found.err and said in found.err
    assert not (metadata.parent / "out").exists()


def test_a_folder_of_something_else_is_left_alone(
    geneval: ModuleType, metadata: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = metadata.parent / "out"
    out.mkdir()
    (out / "holiday.txt").write_text("mine")
    assert geneval.main(line(metadata)) == 2
    assert "give a new folder" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["holiday.txt"]
