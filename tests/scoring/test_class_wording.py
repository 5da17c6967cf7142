"""How much classes suffer when they are asked for loosely."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tiny_models import save_random_model
from training_runs import COLORS, write_color_folder
from unspeckle.cli import main
from unspeckle.corpus.captions import read_folder
from unspeckle.corpus.splits import Corpus, open_corpus
from unspeckle.scoring import class_wording
from unspeckle.scoring.class_wording import find_classes, loose_wordings, measure_class_wording
from unspeckle.scoring.features import ScatteringFeatures, WhitenedFeatures
from unspeckle.scoring.scoring_run import ScoringRun


def open_colors(folder: Path, images_per_color: int) -> Corpus:
    (folder / "colors").mkdir(parents=True)
    listing = read_folder(write_color_folder(folder / "colors", images_per_color))
    return open_corpus(listing, 16, cache_dir=folder / "cache")


def test_wordings_name_the_class_in_other_ways() -> None:
    assert loose_wordings("a photo of a red skirt") == [
        "red skirt", "some red skirts", "red skirt, photo", "please draw me a red skirt", "red skirts!",
    ]  # fmt: skip
    assert "please draw me shorts" in loose_wordings("a photo of shorts")


def test_classes_are_captions_of_many_images_each(tmp_path: Path) -> None:
    assert find_classes(open_colors(tmp_path / "many", 40)) == [f"a photo of a {name}" for name in sorted(COLORS)]
    assert find_classes(open_colors(tmp_path / "few", 8)) == []


@pytest.mark.parametrize(("understands", "expected"), [(True, 1.0), (False, 1 / 3)])
def test_a_model_is_judged_by_what_it_draws(
    understands: bool, expected: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that draws the color that it is asked for; or one that knows its captions only, and else draws red."""
    corpus = open_colors(tmp_path, 40)
    extractor = WhitenedFeatures(ScatteringFeatures(), corpus.training.center_crops(range(len(corpus.training))))

    def draw(run: ScoringRun, captions: list[str]) -> torch.Tensor:
        rng, images = np.random.default_rng(1), []
        for caption in captions:
            known = caption.startswith("a photo of a ") or understands
            color = next((rgb for name, rgb in COLORS.items() if name in caption.lower()), (255, 0, 0))
            rgb = np.array(color if known else COLORS["red"])
            images.append(np.clip(rgb + rng.integers(-20, 20, (16, 16, 3)), 0, 255).astype(np.uint8))
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)

    class Silent:
        def start_stage(self, name: str) -> None: ...

    monkeypatch.setattr(class_wording, "_draw", draw)
    run = ScoringRun(None, None, None, Silent(), None)  # type: ignore[arg-type]
    score = measure_class_wording(run, corpus, extractor)
    assert score is not None and score.fixed == score.real == 1.0
    assert score.loose == pytest.approx(expected) and len(score.classes) == 3
    assert all(one.fixed == 1 for one in score.classes)


def test_the_command_measures_it(tmp_path: Path) -> None:
    (tmp_path / "colors").mkdir()
    folder = write_color_folder(tmp_path / "colors", 160)
    model = save_random_model(tmp_path)
    out = tmp_path / "score.html"
    line = ["score", str(model), "--corpus", str(folder), "--out", str(out), "--images", "8", "--seeds", "1", "-q"]
    assert main([*line, "--steps", "1"]) == 0
    wording = json.loads(out.with_suffix(".json").read_text())["class_wording"]
    assert wording["images_per_class"] == 10 and 0 <= wording["loose"] <= 1 and wording["real"] > 0.9
    html = out.read_text()
    assert "Asked for loosely" in html and "please draw me a" in html
    with Image.open(next(folder.rglob("*.png"))) as image:
        assert image.size == (16, 16)
