"""`unspeckle score`: numbers that fit what was drawn, on standard output; everything else beside it."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import unspeckle
from tiny_models import make_plan, random_model, save_random_model
from unspeckle import configuration
from unspeckle.cli import main
from unspeckle.corpus import open_corpus, read_folder
from unspeckle.generation.conditioning import denoise_prompts
from unspeckle.generation.request import Request
from unspeckle.generation.resolve import resolve
from unspeckle.model import SamplingSetup
from unspeckle.model_io.model_file import save
from unspeckle.prompts import escape_prompt, parse_prompt
from unspeckle.rng import ExampleRNG
from unspeckle.scoring.distances import compute_prdc, kid
from unspeckle.scoring.features import ScatteringFeatures
from unspeckle.scoring.image_generation import generate_images
from unspeckle.scoring.measure import count_network_calls, measure_scores
from unspeckle.scoring.scores import Scores
from unspeckle.scoring.scoring_run import ScoreSettings
from unspeckle.scoring.sweeps import (
    ReferenceFeatures,
    guidance_scale_variants,
    network_calls_per_image,
    run_sweep,
    step_count_variants,
)

SMALL = ["--pictures", "16", "--seeds", "2", "--steps", "2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "blots"
    path.mkdir()
    rng = np.random.default_rng(0)
    for i in range(640):
        pixels = np.full((16, 16, 3), rng.integers(0, 256, 3), np.uint8)
        y, x = rng.integers(0, 9, 2)
        pixels[y : y + 7, x : x + 7] = rng.integers(0, 256, 3)
        Image.fromarray(pixels).save(path / f"{i:03d}.png")
        (path / f"{i:03d}.txt").write_text(f"a frog\n{('a blue rabbit', 'two red frogs')[i % 2]}\n")
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def test_many_captions_in_a_batch_are_drawn_as_draw_draws_each() -> None:
    model = random_model(steps=3)
    captions, numbers = ["a frog", "two red frogs", "a blue rabbit left of a pizza"], [7, 3, 11]
    for ask in (
        Request(),
        Request(sampler="euler_ancestral", guidance_scale=1.0),
        Request(sampler="heun", timestep_spacing="karras", steps=4),
    ):
        told: list[int] = []
        found = generate_images(model, captions, numbers, ask, told.append)
        assert sum(told) == 3 and found.seconds_per_image > 0
        for picture, caption, number in zip(found.images, captions, numbers, strict=True):
            (one,) = unspeckle.draw(model, replace(ask, prompt=caption, seed=number))
            difference = np.abs(np.asarray(one).astype(int) - picture.permute(1, 2, 0).numpy())
            assert difference.max() <= 1


def test_ways_of_drawing_cost_what_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """`calls` is what the network is really asked, rows of a batch counted one by one."""
    model = random_model()
    rows: list[int] = []
    inner = model.network.forward
    monkeypatch.setattr(model.network, "forward", lambda x, *rest: rows.append(len(x)) or inner(x, *rest))
    for sampler, scale, steps in (("dpmpp_2m", 3.0, 4), ("ddim", 1.0, 3), ("heun", 2.0, 3)):
        rows.clear()
        order = resolve(model, Request(sampler=sampler, guidance_scale=scale, steps=steps))
        generate_images(model, ["a frog"] * 5, range(5), Request(sampler=sampler, guidance_scale=scale, steps=steps))
        spared = 5 * (1 if scale == 1 else 2) * (2 if sampler == "heun" else 0)  # at pure noise and at the picture
        assert sum(rows) == 5 * network_calls_per_image(order) - spared


def test_sweeps_cover_the_model_s_own_way_once() -> None:
    model = random_model(steps=24)
    order = resolve(model, Request(guidance_scale=4.0))
    steps, scales = step_count_variants(model, order), guidance_scale_variants(model, order)
    assert steps.count(order) == scales.count(order) == 1
    assert {(o.sampler, o.steps) for o in steps if o.sampler == "heun"} == {("heun", n) for n in (2, 4, 8, 12, 24)}
    assert [o.guidance_scale for o in scales] == [1, 2, 3, 4, 5, 7]
    few = step_count_variants(model, resolve(random_model(steps=1), Request()))
    assert {o.steps for o in few} == {1, 2}


@pytest.mark.parametrize("alone", [False, True])
def test_sweeps_never_mix_a_student_with_its_teacher(alone: bool) -> None:
    from tiny_models import model_with_student
    from unspeckle.generation.few_step import select_network

    both = model_with_student()
    model = both.student if alone else both
    for ask in (Request(steps=2), Request(steps=4)):
        order = resolve(model, ask)
        assert step_count_variants(model, order) == [replace(order, steps=count) for count in (1, 2, 4)]
        assert guidance_scale_variants(model, order) == []
    for ask in (
        Request(),
        Request(steps=4, guidance_scale=3.0, sampler="ddim", timestep_spacing="shifted"),
        Request(steps=6, sampler="ddim"),
    ):
        order = resolve(both, ask)
        orders = [*step_count_variants(both, order), *guidance_scale_variants(both, order)]
        assert orders.count(order) >= 1 and not any(select_network(both, o).card.step_counts for o in orders)


def test_a_sweep_s_numbers_are_those_of_its_pictures() -> None:
    model, features = random_model(), ScatteringFeatures()
    held = features(torch.randint(0, 256, (30, 3, 16, 16), dtype=torch.uint8))
    order = resolve(model, Request(steps=2))
    captions, numbers = ["a frog"] * 16, range(16)
    ((point, shown),) = run_sweep(
        model, [order], captions, numbers, ReferenceFeatures(features, held), lambda count: None
    )
    rows = features(generate_images(model, captions, numbers, Request(steps=2)).images)
    near = compute_prdc(held, rows)
    assert (point.kid, point.precision, point.recall) == pytest.approx((kid(held, rows), near.precision, near.recall))
    assert len(shown) == 8 and point.kid_standard_error is not None and point.kid_standard_error > 0


def test_scores_of_a_corpus(model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.html"
    assert main(["score", str(model), "--corpus", str(folder), "-o", str(out), *SMALL]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [str(out), str(out.with_suffix(".json"))]
    assert "held out, at 16x16" in said.err and "note: " in said.err and "s left" in said.err
    found = configuration.from_json(Scores, json.loads(out.with_suffix(".json").read_text()), "scores")
    assert found.hash == random_model().hash and (found.images_per_seed, found.seeds, found.steps) == (16, (0, 1), 2)
    assert (
        found.corpus is not None
        and not found.corpus.is_training_corpus
        and "another corpus" in " ".join(found.warnings)
    )
    assert [d.name for d in found.distances] == ["kid", "frechet", "precision", "recall", "density", "coverage"]
    assert found.loss is not None and found.bits_per_dim is not None and found.memorization is not None
    distance = found.find_distance("kid")
    assert distance is not None and distance.generated.mean > 10 * abs(distance.floor.mean)  # an untrained model
    assert all(p.kid is not None for p in (*found.by_steps, *found.by_guidance_scale))
    html = out.read_text()
    assert "How well tiny draws" in html and found.corpus.fingerprint in html

    # the same once more: the same numbers, but for the clock; and as JSON on standard output
    assert main(["score", str(model), "--corpus", str(folder), "-o", str(out), *SMALL, "--json", "-q"]) == 0
    said = capsys.readouterr()
    again = configuration.from_json(Scores, json.loads(said.out), "scores")
    assert said.err == "" and len(said.out.splitlines()) == 1

    def timeless(scores: Scores) -> Scores:
        points = {k: tuple(replace(p, seconds=0.0) for p in getattr(scores, k)) for k in ("by_steps", "by_scale")}
        return replace(scores, seconds=0.0, **points)

    assert timeless(again) == timeless(found)


def test_distances_are_those_of_the_drawn_pictures(folder: Path, tmp_path: Path) -> None:
    model = random_model(steps=2)
    corpus = open_corpus(read_folder(folder), 16, cache_dir=tmp_path)
    said: list[str] = []
    told: list[int] = []

    class Watch:
        stage, tell = staticmethod(said.append), staticmethod(told.append)

    wishes = ScoreSettings(images_per_seed=16, seed_count=2)
    scores, album = measure_scores(model, corpus, "blots", wishes, Watch())
    assert sum(told) == count_network_calls(model, corpus, wishes)
    assert len(said) == len(set(said)) == 9 and scores.corpus is not None
    held = corpus.validation.center_crops(range(len(corpus.validation)))
    assert (
        album.generated_images is not None and album.validation_images is not None and len(album.generated_images) == 16
    )
    places = torch.arange(16) * len(held) // 16
    assert torch.equal(album.validation_images, held[places])
    for caption, place in zip(album.captions, places.tolist(), strict=True):
        assert caption in corpus.validation.captions[place]
    expected = generate_images(model, album.captions, range(16), Request()).images
    assert (expected.int() - album.generated_images.int()).abs().max() <= 1
    assert album.nearest_pairs == sorted(album.nearest_pairs, key=lambda p: p.distance)
    own = next(p for p in scores.by_steps if (p.sampler, p.steps) == (scores.sampler, scores.steps))
    other = next(p for p in scores.by_guidance_scale if p.guidance_scale == scores.guidance_scale)
    assert own.kid == pytest.approx(other.kid, rel=1e-6)


def test_without_a_corpus(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["score", str(model), *SMALL, "--json"]) == 0
    said = capsys.readouterr()
    found = configuration.from_json(Scores, json.loads(said.out), "scores")
    assert found.corpus is None and found.distances == () and "--corpus" in found.missing[0]
    assert all(p.kid is None and p.seconds_per_image > 0 for p in (*found.by_steps, *found.by_guidance_scale))
    assert found.seconds_per_image > 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny-score.html", "tiny-score.json"]
    assert str(tmp_path / "tiny-score.html") in said.err


def test_a_corpus_that_holds_too_little_out(
    model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(folder.iterdir())[:60]:
        (few / path.name).write_bytes(path.read_bytes())
    out = tmp_path / "few.html"
    assert main(["score", str(model), "--corpus", str(few), "-o", str(out), *SMALL, "-q"]) == 0
    capsys.readouterr()
    found = json.loads(out.with_suffix(".json").read_text())
    assert "20 are the least" in found["missing"][0] and found["distances"] == []


def test_a_run_s_plan_says_how_captions_were_read(
    model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Held-out loss at the plan's own times; captions as `train` was told to read them, unless told otherwise."""
    from tiny_models import make_plan

    run = tmp_path / "run"
    run.mkdir()
    corpus = open_corpus(read_folder(folder, "auto", "a blot"), 16, cache_dir=tmp_path / "cache")
    trained = random_model()
    trained.card = replace(trained.card, corpus={"fingerprint": corpus.fingerprint})
    save(trained, run / "model.safetensors")
    replace(make_plan(), asked={"captions": "auto", "caption": "a blot", "template": None}, times=(1.0, 0.5)).save(run)
    out = tmp_path / "run.html"
    assert main(["score", str(run), "--corpus", str(folder), "-o", str(out), *SMALL, "-q"]) == 0
    found = json.loads(out.with_suffix(".json").read_text())
    assert found["corpus"]["same"] and not any("another corpus" in line for line in found["warnings"])
    middle = torch.tensor(0.5 / 8, dtype=torch.float64)
    assert found["loss"]["times"][0] == pytest.approx(
        float((1.0 + 0.5 * torch.special.ndtri(middle)).sigmoid()), rel=1e-5
    )
    assert main(["score", str(run), "--corpus", str(folder), "--caption", "a", "-o", str(out), *SMALL, "-q"]) == 0
    assert not json.loads(out.with_suffix(".json").read_text())["corpus"]["same"]
    capsys.readouterr()


def test_a_student_is_scored_and_says_whose_loss_it_is(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tiny_models import model_with_student

    both, out, found = model_with_student(), tmp_path / "a.html", []
    for model in (both, both.student, random_model()):
        save(model, tmp_path / "model.safetensors")
        line = ["score", str(tmp_path / "model.safetensors"), "--corpus", str(folder), "-o", str(out), *SMALL, "-q"]
        assert main(line) == 0
        found.append(json.loads(out.with_suffix(".json").read_text()))
        assert ("Guidance scale" in out.read_text()) == (model.card.name == "tiny" and model.student is None
                                                         and not model.card.step_counts)  # fmt: skip
    capsys.readouterr()
    whole, alone, teacher = found
    assert whole["loss"] == teacher["loss"] and whole["bits"] == teacher["bits"] and whole["missing"] == []
    assert any("its teacher's" in line for line in whole["warnings"])
    assert alone["loss"] is alone["bits"] is None and "no held-out loss" in alone["missing"][0]
    assert [point["steps"] for point in whole["by_steps"]] == [1, 2, 4] and whole["by_scale"] == []
    assert [d["drawn"] for d in whole["distances"]] == [d["drawn"] for d in alone["distances"]]


@pytest.mark.parametrize("family", ["xl", "xl-refiner", "1-lcm", "1-inpaint"])
@torch.no_grad()
def test_stable_diffusions_that_want_to_be_told_more_are_scored(family: str, folder: Path, tmp_path: Path) -> None:
    """And their held-out loss is the error of the estimates that a drawing of the same captions would go by."""
    stable_diffusion_files = pytest.importorskip("stable_diffusion_files", reason="needs diffusers")
    pipe = stable_diffusion_files.tiny_pipeline(family, tmp_path / "scratch")
    pipe.save_pretrained(tmp_path / "pipe")
    model = unspeckle.load(tmp_path / "pipe")
    corpus = open_corpus(read_folder(folder), 16, cache_dir=tmp_path)

    class Watch:
        stage, tell = staticmethod(lambda name: None), staticmethod(lambda units: None)

    wishes = ScoreSettings(images_per_seed=8, seed_count=1, request=Request(steps=1, size=16))
    scores, _ = measure_scores(model, corpus, "blots", wishes, Watch())
    assert scores.loss is not None and scores.bits_per_dim is None and "latents" in scores.missing[0]
    split, order = corpus.validation, resolve(model, wishes.request)
    x = model.autoencoder.encode(split.center_crops(range(len(split))).float() / 127.5 - 1)
    t = torch.tensor(scores.loss.times[5])
    (alpha, sigma), eps = model.denoiser.schedule(t), ExampleRNG(0, torch.arange(len(x))).normal(5, x.shape[1:])
    way = SamplingSetup(torch.tensor([1.0, 0.0]), 1.0, model.denoiser)
    prompts = [parse_prompt(escape_prompt(caption)) for caption in split.first_captions(range(len(split)))]
    complete = partial(model.add_conditioning, guidance_scale=order.guidance_scale, size=order.size)
    estimate = denoise_prompts(model, prompts, parse_prompt(""), way, None, complete)(alpha * x + sigma * eps, t)
    share = (estimate - x).square().mean() / x.square().mean()
    assert scores.loss.relative_errors[5] == pytest.approx(float(share), rel=1e-4)


def test_a_run_of_distil_is_scored_as_one_of_train(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:

    run = tmp_path / "run"
    run.mkdir()
    (run / "model.safetensors").write_bytes(model.read_bytes())
    make_plan(asked={"steps": 3}).save(run)
    assert main(["score", str(run), "-o", str(tmp_path / "run.html"), *SMALL, "-q"]) == 0
    capsys.readouterr()
    (run / "plan.json").write_text("[" * 100_000)
    assert main(["score", str(run), "-o", str(tmp_path / "run.html"), *SMALL, "-q"]) == 2
    said = capsys.readouterr().err
    assert "plan.json: cannot be read" in said and len(said.splitlines()) == 1


def test_the_precision_is_that_asked_for_and_is_named(
    model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its cost is to be seen: the same captions and seeds, and numbers that are near, but not the same."""
    found = {}
    for name in ("float32", "bfloat16"):
        out, more = tmp_path / f"{name}.html", [] if name == "float32" else ["--precision", name]
        assert main(["score", str(model), "--corpus", str(folder), "-o", str(out), *SMALL, *more, "-q"]) == 0
        found[name] = json.loads(out.with_suffix(".json").read_text())
        assert found[name]["precision"] == name and f"guidance scale 5, in {name}" in out.read_text()
        assert ("--precision bfloat16</code>" in out.read_text()) == (name == "bfloat16")
    exact, low = found["float32"], found["bfloat16"]
    assert low["hash"] == exact["hash"]
    for name in ("loss", "bits"):
        assert low[name]["total"] != exact[name]["total"] == pytest.approx(low[name]["total"], rel=0.02)
    kids = [next(d for d in one["distances"] if d["name"] == "kid")["drawn"]["mean"] for one in (exact, low)]
    assert kids[0] != kids[1] == pytest.approx(kids[0], rel=0.1)
    capsys.readouterr()


def test_a_stable_diffusion_is_scored_in_what_it_would_be_drawn_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stable_diffusion_files = pytest.importorskip("stable_diffusion_files", reason="needs diffusers")
    stable_diffusion_files.tiny_pipeline("1-lcm", tmp_path / "scratch").save_pretrained(tmp_path / "pipe")
    monkeypatch.setattr("unspeckle.model_io.precision.pays", lambda device, dtype: True)
    line = ["score", str(tmp_path / "pipe"), "-o", str(tmp_path / "a.html"), "--pictures", "8", "--steps", "1", "-q"]
    for more, name in ([], "bfloat16"), (["--precision", "float32"], "float32"):
        assert main([*line, *more]) == 0
        assert json.loads((tmp_path / "a.json").read_text())["precision"] == name
        assert f"--precision {name}</code>" in (tmp_path / "a.html").read_text()
    capsys.readouterr()


BAD = [
    ("score HERE/nothing.safetensors", "HERE/nothing.safetensors"),
    ("score MODEL --corpus HERE/nothing", "HERE/nothing"),
    ("score MODEL --features magic", "scattering, inception"),
    ("score MODEL --features scattering:x", "leave it out"),
    ("score MODEL --features inception:", "inception:FILE"),
    ("score MODEL --features inception:HERE/nothing --corpus FOLDER", "no such file"),
    ("score MODEL --features inception", "--corpus"),
    ("score MODEL --pictures 3", "--pictures 3"),
    ("score MODEL --pictures many", "--pictures"),
    ("score MODEL --seeds 0", "--seeds 0"),
    ("score MODEL --steps 0", "steps 0"),
    ("score MODEL --sampler magic", "dpmpp_2m"),
    ("score MODEL --scale inf", "scale inf"),
    ("score MODEL --out HERE/report.pdf", "ends in .html"),
    ("score MODEL --out HERE/nowhere/report.html", "HERE/nowhere"),
    ("score MODEL --device abacus", "abacus"),
    ("score MODEL --precision magic", "--precision 'magic'"),
]


@pytest.mark.parametrize(("line", "names"), BAD)
def test_bad_input(
    line: str, names: str, model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        w.replace("MODEL", str(model)).replace("HERE", str(tmp_path)).replace("FOLDER", str(folder))
        for w in line.split()
    ]
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == "" and names.replace("HERE", str(tmp_path)) in said.err
    assert len([line for line in said.err.splitlines() if line.startswith("unspeckle: ")]) == 1
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_is_130_and_leaves_nothing(model: Path, tmp_path: Path) -> None:
    line = [
        sys.executable,
        "-m",
        "unspeckle",
        "score",
        str(model),
        "--pictures",
        "100000",
        "-o",
        str(tmp_path / "a.html"),
    ]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stderr is not None
        running.stderr.readline()
        time.sleep(0.5)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert running.returncode == 130 and out == b"" and b"Traceback" not in err
    assert list(tmp_path.iterdir()) == []
