"""A drawing parses each of its prompts once and resolves its request once, whichever way it takes."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import unspeckle
from sample_images import make_image, make_mask
from tiny_models import model_with_student, random_model, save_random_model
from unspeckle.cli import main, run_draw, run_replay
from unspeckle.generation import pipeline, resolve
from unspeckle.generation.pipeline import draw_prompts
from unspeckle.model_io.model_file import save
from unspeckle.prompts import parse_prompt

PROMPT, NEGATIVE_PROMPT = "a (frog:1.2) AND [a pizza|a hat]", "a rabbit"
ONCE = {PROMPT: 1, NEGATIVE_PROMPT: 1, "resolve": 1}


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often each text was parsed, and how often a request was resolved."""
    calls: Counter[str] = Counter()

    def count_parse(source: str, name: str = "prompt") -> Any:
        calls[source] += 1
        return parse_prompt(source, name)

    real_resolve = resolve.resolve

    def count_resolve(*arguments: Any) -> Any:
        calls["resolve"] += 1
        return real_resolve(*arguments)

    for module in (pipeline, resolve, run_draw, run_replay):
        monkeypatch.setattr(module, "parse_prompt", count_parse)
        monkeypatch.setattr(module, "resolve", count_resolve)
    yield calls


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"count": 5, "batch_size": 2},
        {"hires_size": 32},
        {"image": make_image(), "strength": 0.7},
        {"image": make_image(), "mask": make_mask(), "count": 2, "batch_size": 1},
        {"guide_model": random_model(), "negative_prompt": ""},
        {"variation_seed": 3, "count": 2},
    ],
)
def test_from_python(options: dict[str, Any], counts: Counter[str]) -> None:
    unspeckle.draw(random_model(steps=2), PROMPT, **{"negative_prompt": NEGATIVE_PROMPT, **options})
    negative_prompt = options.get("negative_prompt", NEGATIVE_PROMPT)
    assert counts == {PROMPT: 1, negative_prompt: 1, "resolve": 1}
    if not options:
        counts.clear()
        list(unspeckle.steps(random_model(steps=2), PROMPT, negative_prompt=NEGATIVE_PROMPT))
        assert counts == ONCE


def test_by_a_student(counts: Counter[str]) -> None:
    unspeckle.draw(model_with_student(), PROMPT, steps=2)
    assert counts == {PROMPT: 1, "": 1, "resolve": 1}


def test_many_prompts(counts: Counter[str]) -> None:
    request = unspeckle.Request(negative_prompt=NEGATIVE_PROMPT, batch_size=2, hires_size=32)
    draw_prompts(random_model(steps=2), ["a frog", "two frogs", "a frog", "a hat"], range(4), request)
    assert counts == {"a frog": 1, "two frogs": 1, "a hat": 1, NEGATIVE_PROMPT: 1, "": 1, "resolve": 1}


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["-n", "5", "--batch-size", "2"],
        ["--hires-size", "32"],
        ["--image", "IMAGE", "--mask", "MASK"],
        ["--film-strip"],
        ["--guidance-scale", "1"],
    ],
)
def test_from_the_command_line_and_by_replay(
    options: list[str], counts: Counter[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"IMAGE": str(tmp_path / "image.png"), "MASK": str(tmp_path / "mask.png")}
    make_image().save(files["IMAGE"])
    make_mask().save(files["MASK"])
    model = ["--model", str(save_random_model(tmp_path))]
    typed = [files.get(option, option) for option in options]
    command = ["draw", PROMPT, "--negative-prompt", NEGATIVE_PROMPT, "--steps", "2", "-o", str(tmp_path / "out"), "-q"]
    assert main([*command, *model, *typed]) == 0
    assert counts == ONCE
    image = capsys.readouterr().out.split()[0]
    counts.clear()
    assert main(["replay", image, *model, "-q", *(typed if "IMAGE" in options else [])]) == 0
    assert counts == ONCE


def test_by_a_student_from_the_command_line(counts: Counter[str], tmp_path: Path) -> None:
    """Also where the student cannot draw it, which the command notes."""
    save(model_with_student(), tmp_path / "both.safetensors")
    command = ["draw", PROMPT, "--steps", "2", "--model", str(tmp_path / "both.safetensors"), "-o", str(tmp_path)]
    for typed in ([], ["--guidance-scale", "3"]):
        counts.clear()
        assert main([*command, *typed]) == 0
        assert counts == {PROMPT: 1, "": 1, "resolve": 1}
