"""`unspeckle score` with a corpus of emoji scenes: words and hybrids from end to end, and what is lost without them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from sprite_files import write_sprites

from tiny_models import save_random_model
from unspeckle import configuration
from unspeckle.cli import main
from unspeckle.corpus.emoji.make_corpus import make_emoji_corpus
from unspeckle.prompts import HYBRID_METHODS
from unspeckle.scoring.composition import train_detector
from unspeckle.scoring.composition.prompts import CATEGORIES, open_corpus_sprites
from unspeckle.scoring.scores import Scores

NOUNS = ["frog", "rabbit", "cat", "car", "tree"]
SMALL = ["--pictures", "8", "--seeds", "2", "--steps", "1", "--prompts", "3"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("scenes")
    (place / "faces").mkdir()
    write_sprites(place / "faces")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        make_emoji_corpus(place / "scenes", scenes=40, seed=1, nouns=NOUNS, size=32, sprites=Path("faces"))
    return place / "scenes"


@pytest.fixture(autouse=True)
def quick(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A detector that learns next to nothing, into a cache of the tests."""
    monkeypatch.setattr(train_detector, "PICTURES", 2 * train_detector.BATCH_SIZE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache of scenes"))


def scored(model: Path, scenes: Path, out: Path, *more: str) -> tuple[dict[str, Any], str]:
    assert main(["score", str(model), "--corpus", str(scenes), "-o", str(out), *SMALL, *more]) == 0
    return json.loads(out.with_suffix(".json").read_text()), out.read_text()


def test_a_corpus_of_a_folder_given_without_its_path_finds_it_again(scenes: Path) -> None:
    library, size = open_corpus_sprites(scenes)
    assert library.nouns == NOUNS and size == 32 and Path(library.source).samefile(scenes.parent / "faces")


def test_words_and_hybrids_stand_in_the_report(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, html = scored(save_random_model(tmp_path), scenes, tmp_path / "a.html")
    said = capsys.readouterr().err
    assert "the detector of words learns" in said and "\nwords: " in said and "\nhybrids: " in said
    assert not [line for line in found["missing"] if "words" in line]
    categories = found["words"]["categories"]
    kinds = {json.loads(line)["kind"] for line in (scenes / "held-out.jsonl").read_text().splitlines()}
    asked = [name for name, (kind, _) in CATEGORIES.items() if kind in kinds]
    assert [c["name"] for c in categories] == asked and {"one object", "position", "hybrids"} < set(asked)
    assert all((c["prompts"], c["pictures"], c["renders"]) == (3, 6, 6) for c in categories)
    assert "3 prompts of each kind, 2 pictures of each; the protocol has 100 by 4" in html
    crossed = found["hybrids"]
    assert crossed["held_out"] >= 1 and len(crossed["pairs"]) == 1 and crossed["seeds"] == 2
    assert [way["way"] for way in crossed["ways"]] == [*HYBRID_METHODS, "AND"]
    assert all(way["pictures"] == 2 for way in crossed["ways"])
    assert f"1 of {crossed['held_out']} pairs, 2 pictures of each" in html and "Two in one" in html
    assert configuration.to_json(configuration.from_json(Scores, found, "scores")) == found
    few = scored(save_random_model(tmp_path), scenes, tmp_path / "b.html", "--prompts", "0")[0]
    assert few["words"] is few["hybrids"] is None and not [line for line in few["missing"] if "words" in line]
    capsys.readouterr()


def test_without_sprites_or_a_detector_the_rest_is_kept(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out, moved = save_random_model(tmp_path), tmp_path / "a.html", tmp_path / "moved"
    shutil.copytree(scenes, moved)
    about = json.loads((moved / "about.json").read_text())
    (moved / "about.json").write_text(json.dumps({**about, "sprites": str(tmp_path / "gone")}))
    monkeypatch.setenv("HOME", str(tmp_path))
    found, html = scored(model, moved, out)
    (why,) = [line for line in found["missing"] if "words" in line]
    assert why.startswith("no words and no hybrids: ") and "~/gone: there is no such folder" in why
    assert "about.json" in why and found["words"] is found["hybrids"] is None and found["by_steps"]
    assert "there is no such folder" in html and "What the words say" not in html
    said = capsys.readouterr().err
    assert said.index(f"note: {why}") < said.index("drawing with other steps")  # at once, and again at the end
    monkeypatch.setattr(train_detector, "PICTURES", 3 * train_detector.BATCH_SIZE)
    key = train_detector._cache_key(open_corpus_sprites(scenes)[0], 32)
    detector = train_detector.image_cache_folder().parent / "detectors" / f"{key}.safetensors"
    detector.parent.mkdir(parents=True, exist_ok=True)
    detector.write_bytes(b"nothing")
    found, html = scored(model, scenes, out, "-q")
    (why,) = [line for line in found["missing"] if "words" in line]
    assert "cannot be read as a detector" in why and found["words"] is None and found["by_steps"]
    capsys.readouterr()
