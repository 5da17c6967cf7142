"""`unspeckle score` with a corpus of emoji scenes: composition and hybrids, and what is left without them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from sprite_files import write_sprites

from unspeckle import configuration
from unspeckle.cli import main
from unspeckle.corpus.emoji.make_corpus import make_emoji_corpus
from unspeckle.prompts import HYBRID_METHODS
from unspeckle.scoring.composition import train_detector
from unspeckle.scoring.composition.free_wording import FREE_CATEGORIES
from unspeckle.scoring.composition.prompts import CATEGORIES, open_corpus_sprites
from unspeckle.scoring.scores import Scores

NOUNS = ["frog", "rabbit", "cat", "car", "tree"]
SMALL = ["--images", "8", "--seeds", "2", "--steps", "1"]
FEW_PROMPTS = ["--prompts", "3"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    (folder / "faces").mkdir()
    write_sprites(folder / "faces")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_emoji_corpus(folder / "scenes", scenes=40, seed=1, nouns=NOUNS, size=32, sprites=Path("faces"))
    return folder / "scenes"


@pytest.fixture(autouse=True)
def short_detector_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """A detector that learns next to nothing."""
    monkeypatch.setattr(train_detector, "TRAINING_IMAGES", 2 * train_detector.BATCH_SIZE)


def score(model_file: Path, corpus: Path, out: Path, *options: str) -> tuple[dict[str, Any], str]:
    """The numbers and the report."""
    assert main(["score", str(model_file), "--corpus", str(corpus), "-o", str(out), *SMALL, *options]) == 0
    return json.loads(out.with_suffix(".json").read_text()), out.read_text()


def test_sprites_of_a_relative_folder_are_found_again(scenes: Path) -> None:
    library, size = open_corpus_sprites(scenes)
    assert library.nouns == NOUNS and size == 32 and Path(library.source).samefile(scenes.parent / "faces")


def test_composition_and_hybrids_are_in_the_report(
    model_file: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores, html = score(model_file, scenes, tmp_path / "a.html", *FEW_PROMPTS)
    progress = capsys.readouterr().err
    assert "the detector of objects" in progress and "\ncomposition: " in progress and "\nhybrids: " in progress
    assert not [line for line in scores["missing"] if "composition" in line]
    categories = scores["composition"]["categories"]
    kinds = {json.loads(line)["kind"] for line in (scenes / "held-out.jsonl").read_text().splitlines()}
    names = [name for name, (kind, _) in CATEGORIES.items() if kind in kinds]
    assert [c["name"] for c in categories] == [*names, *FREE_CATEGORIES]
    assert {"one object", "position", "hybrids"} < set(names)
    assert all((c["prompt_count"], c["image_count"], c["render_count"]) == (3, 6, 6) for c in categories[: len(names)])
    assert all(c["prompt_count"] <= 9 and c["image_count"] == 2 * c["prompt_count"] for c in categories[len(names) :])
    assert "3 prompts of each category, of free wording up to three times as many, 2 images of each; a" in html
    hybrids = scores["hybrids"]
    assert hybrids["held_out_count"] >= 1 and len(hybrids["pairs"]) == 1 and hybrids["seed_count"] == 2
    assert [method["method"] for method in hybrids["methods"]] == [*HYBRID_METHODS, "AND"]
    assert all(method["image_count"] == 2 for method in hybrids["methods"])
    assert f"1 of {hybrids['held_out_count']} pairs, 2 images of each" in html and "Two in one" in html
    assert configuration.to_json(configuration.from_json(Scores, scores, "scores")) == scores
    scores, _ = score(model_file, scenes, tmp_path / "b.html", "--prompts", "0")
    assert scores["composition"] is scores["hybrids"] is None
    assert not [line for line in scores["missing"] if "composition" in line]
    capsys.readouterr()


def test_without_sprites_everything_else_is_measured(
    model_file: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tmp_path / "moved"
    shutil.copytree(scenes, corpus)
    about = json.loads((corpus / "about.json").read_text())
    (corpus / "about.json").write_text(json.dumps({**about, "sprites": str(tmp_path / "gone")}))
    monkeypatch.setenv("HOME", str(tmp_path))
    scores, html = score(model_file, corpus, tmp_path / "a.html", *FEW_PROMPTS)
    (reason,) = [line for line in scores["missing"] if "composition" in line]
    assert reason.startswith("composition and hybrids are not measured: ") and "~/gone" in reason
    assert "about.json" in reason and scores["composition"] is scores["hybrids"] is None and scores["by_steps"]
    assert "~/gone" in html and "<h2>Composition</h2>" not in html
    progress = capsys.readouterr().err
    assert progress.index(f"note: {reason}") < progress.index("generating with other step counts"), (
        "the note comes first"
    )


def test_without_a_detector_everything_else_is_measured(
    model_file: Path,
    scenes: Path,
    scoring_cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(train_detector, "TRAINING_IMAGES", 3 * train_detector.BATCH_SIZE)
    key = train_detector._cache_key(open_corpus_sprites(scenes)[0], 32)
    detector_file = train_detector.image_cache_folder().parent / "detectors" / f"{key}.safetensors"
    assert scoring_cache in detector_file.parents
    detector_file.parent.mkdir(parents=True, exist_ok=True)
    detector_file.write_bytes(b"nothing")
    scores, _ = score(model_file, scenes, tmp_path / "a.html", *FEW_PROMPTS, "-q")
    (reason,) = [line for line in scores["missing"] if "composition" in line]
    assert "cannot be read as a detector" in reason and scores["composition"] is None and scores["by_steps"]
    capsys.readouterr()
