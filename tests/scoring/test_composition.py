"""The words score: what is asked, what is judged right, what the detector finds; a model of real renders gets all."""

import json
import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unspeckle import configuration
from unspeckle.corpus.emoji.held_out import is_allowed_in_training, is_held_out, scene_combinations
from unspeckle.corpus.emoji.make_corpus import build_vocabulary, make_emoji_corpus
from unspeckle.corpus.emoji.painter import BACKGROUND_BRIGHTNESS_RANGE, BACKGROUND_GRADIENT_RANGE, ScenePainter
from unspeckle.corpus.emoji.tints import BACKGROUNDS
from unspeckle.denoiser import Conditioning, Denoiser
from unspeckle.errors import InputError
from unspeckle.generation.request import Request
from unspeckle.model import Model, ModelCard
from unspeckle.networks import PixelAutoencoder, PixelAutoencoderConfig, UNetConfig
from unspeckle.schedule import FlowSchedule
from unspeckle.scoring.composition.detector import Detection, Detector, box_iou, load_detector, save_detector
from unspeckle.scoring.composition.detector_examples import ExamplePainter, paint_blocks
from unspeckle.scoring.composition.prompts import (
    CATEGORIES,
    CompositionPrompt,
    make_hard_negative,
    open_corpus_sprites,
    read_composition_prompts,
    read_composition_test,
    sample_matching_scene,
    scene_matches,
)
from unspeckle.scoring.composition.score import (
    generate_and_judge,
    measure_detector_limits,
    render_prompt,
    score_composition,
    wilson_interval,
)
from unspeckle.scoring.composition.train_detector import degrade_images, train_detector
from unspeckle.scoring.composition.verdicts import find_background, find_directions, judge_detections, judge_images

NOUNS = ["frog", "rabbit", "house", "robot"]  # of these every category has something kept out
SIDE = 32


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words") / "scenes"
    try:
        make_emoji_corpus(folder, scenes=3, seed=1, nouns=NOUNS, size=SIDE)
    except InputError as problem:
        pytest.skip(str(problem))
    return folder


@pytest.fixture(scope="module")
def detector(corpus: Path) -> Detector:
    return train_detector(*open_corpus_sprites(corpus), image_count=5120, workers=0)


def thing(
    *nouns: str, at: Sequence[float] = (0.5, 0.5), side: float = 0.3, heat: float = 0.9, **said: str
) -> Detection:
    box = (at[0] - side / 2, at[1] - side / 2, at[0] + side / 2, at[1] + side / 2)
    return Detection(nouns, box, score=heat, **said)  # type: ignore[arg-type]


def rendered(corpus: Path, asked: Sequence[CompositionPrompt]) -> list[Tensor]:
    library, size = open_corpus_sprites(corpus)
    palette, painter = build_vocabulary(library), ScenePainter(library, size)
    return [render_prompt(question, 2, palette, painter) for question in asked]


FROG, CAR, TREE = thing("frog"), thing("car"), thing("tree")
LEFT, RIGHT, TOP, LOW = (0.2, 0.5), (0.8, 0.5), (0.5, 0.2), (0.5, 0.8)


@pytest.mark.parametrize(
    ("question", "right", "wrong"),
    [
        (
            CompositionPrompt("one object", "", ("frog",), background="pink"),
            [[FROG], [FROG, CAR]],
            [[], [CAR], [thing("frog", "car")]],
        ),
        (
            CompositionPrompt("two objects", "", ("frog", "car")),
            [[FROG, CAR], [CAR, FROG], [CAR, FROG, FROG], [TREE, CAR, FROG]],
            [[], [FROG], [CAR], [FROG, FROG], [FROG, TREE], [thing("frog", "car")]],
        ),
        (
            CompositionPrompt("counting", "", ("frog",), object_count=3),
            [[FROG] * 3, [CAR, *[FROG] * 3]],
            [[FROG] * n for n in (0, 1, 2, 4, 5)] + [[CAR] * 3, [FROG, FROG, CAR], [FROG, FROG, thing("frog", "cat")]],
        ),
        (
            CompositionPrompt("colours", "", ("frog",), ("blue",)),
            [[thing("frog", tint="blue")], [thing("frog", tint="blue"), thing("frog", tint="red")]],
            [[FROG], [thing("frog", tint="red")], [thing("car", tint="blue")], [FROG, thing("car", tint="blue")], []],
        ),
        (
            CompositionPrompt("position", "", ("frog", "car"), relation="left of"),
            [[thing("frog", at=LEFT), thing("car", at=RIGHT)]],
            [
                [thing("frog", at=RIGHT), thing("car", at=LEFT)],
                [thing("frog", at=TOP), thing("car", at=LOW)],
                [thing("frog", at=LOW), thing("car", at=TOP)],
                [thing("frog", at=(0.49, 0.5)), thing("car", at=(0.51, 0.5))],
                [thing("frog", at=LEFT)],
                [thing("frog", at=LEFT), thing("tree", at=RIGHT)],
            ],
        ),
        (
            CompositionPrompt("position", "", ("frog", "car"), relation="above"),
            [[thing("frog", at=TOP), thing("car", at=LOW)]],
            [
                [thing("frog", at=LOW), thing("car", at=TOP)],
                [thing("frog", at=LEFT), thing("car", at=RIGHT)],
                [thing("frog", at=RIGHT), thing("car", at=LEFT)],
            ],
        ),
        (
            CompositionPrompt("colour binding", "", ("frog", "car"), ("blue", "red")),
            [[thing("frog", tint="blue"), thing("car", tint="red")]],
            [
                [thing("frog", tint="red"), thing("car", tint="blue")],
                [thing("frog", tint="blue"), thing("car", tint="blue")],
                [thing("frog", tint="red"), thing("car", tint="red")],
                [thing("frog", tint="blue"), CAR],
                [FROG, thing("car", tint="red")],
                [thing("frog", tint="blue")],
                [thing("frog", tint="blue"), thing("tree", tint="red")],
            ],
        ),
        (
            CompositionPrompt("on stilts", "", ("frog",)),
            [[Detection(("frog",), (0, 0, 1, 1), on_stilts=True)]],
            [[FROG], [Detection(("car",), (0, 0, 1, 1), on_stilts=True)], []],
        ),
        (
            CompositionPrompt("wearing", "", ("frog",), wearing="crown"),
            [[thing("frog", wearing="crown")]],
            [[FROG], [thing("frog", wearing="bow")], [thing("cat", wearing="crown")], []],
        ),
        (
            CompositionPrompt("hybrids", "", ("frog", "cat")),
            [[thing("frog", "cat")], [thing("cat", "frog"), CAR]],
            [[], [FROG], [thing("cat")], [FROG, thing("cat")], [thing("frog", "dog")], [thing("frog", "cat", "dog")]],
        ),
    ],
    ids=lambda value: f"{value.category} {value.relation}".strip() if isinstance(value, CompositionPrompt) else "",
)
def test_verdicts(question: CompositionPrompt, right: list[list[Detection]], wrong: list[list[Detection]]) -> None:
    for found, wanted in [(found, True) for found in right] + [(found, False) for found in wrong]:
        given = judge_detections(question, found, "pink")
        assert given.is_correct is wanted and (given.reason == "") is wanted, (found, given)
        seen = {noun for thing in found for noun in thing.nouns if len(thing.nouns) == 1}
        if question.category != "hybrids":
            assert given.missing_nouns == tuple(noun for noun in question.nouns if noun not in seen)
    if question.background:
        assert all(judge_detections(question, found, "blue").reason == "the background is blue" for found in right)


def test_of_several_things_the_hottest_is_meant_and_others_are_spare() -> None:
    asked = CompositionPrompt("colours", "", ("frog",), ("blue",))
    found = [thing("frog", tint="red", heat=0.9), thing("frog", tint="blue", heat=0.5), CAR, TREE]
    assert (
        judge_detections(asked, found, "white").reason == "the frog is red"
        and judge_detections(asked, found, "white").extra_count == 2
    )


def test_directions_are_genevals() -> None:
    """Along an axis the middles must lie further apart than a tenth of both sides and half of their distance."""
    rng, turned = Random(0), {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    kinds = set()
    for _ in range(2000):
        x, y, u, v, side, other_side = (rng.random() for _ in range(6))
        one, other = thing("x", at=(x, y), side=0.5 * side), thing("y", at=(u, v), side=0.5 * other_side)
        enough = 0.05 * (side + other_side) + 0.5 * math.hypot(x - u, y - v)
        apart = {"left of": u - x, "right of": x - u, "above": v - y, "below": y - v}
        assert find_directions(one, other) == {way for way, distance in apart.items() if distance > enough}
        assert find_directions(other, one) == {turned[way] for way in find_directions(one, other)}
        kinds.add(tuple(sorted(find_directions(one, other))))
    assert len(kinds) == 9  # none, four ways, four ways between two
    assert find_directions(one, one) == set()


def test_every_background_is_named_at_its_brightest_and_darkest() -> None:
    for name, (glow, slope) in product(BACKGROUNDS, product((-1, 1), repeat=2)):
        shade = torch.tensor(BACKGROUNDS[name]).float()[:, None, None].expand(3, 24, 24)
        if name != "white":
            shade = (
                shade
                + BACKGROUND_BRIGHTNESS_RANGE * glow
                + BACKGROUND_GRADIENT_RANGE * slope * torch.linspace(-0.5, 0.5, 24)[:, None]
            )
        picture = shade.clamp(0, 255).byte().clone()
        assert find_background(picture, []) == name
        picture[:, 2:20, 3:20] = 77
        assert find_background(picture, [Detection(("frog",), (0.1, 0.05, 0.85, 0.9))]) == name
        assert find_background(picture, [Detection(("frog",), (0, 0, 1, 1))]) == name


def test_questions_come_from_rows_that_are_held_out_and_from_nothing_else(corpus: Path) -> None:
    asked = read_composition_prompts(corpus, 7)
    rows = [json.loads(line) for line in (corpus / "held-out.jsonl").read_text().splitlines()]
    prompts = {(kind, prompt) for kind, row in ((r["kind"], r) for r in rows) for prompt in row["prompts"]}
    assert [q.category for q in asked] == [name for name in CATEGORIES for _ in range(7)]
    assert all((CATEGORIES[q.category][0], q.text) in prompts for q in asked)
    assert not [q for q in asked if "next to" in q.text or q.relation == "next to"]
    assert len(set(asked)) == len(asked), "a prompt that comes again has another turn, and so other seeds"
    assert read_composition_prompts(corpus, 7) == asked
    few = read_composition_prompts(corpus, 2)
    assert len({q.text for q in few if q.category == "position"}) == 2
    for q in asked:
        kind = CATEGORIES[q.category][0]
        if kind == "colours":
            assert is_held_out(("pair", *q.nouns))
            continue
        said = (*q.tints, q.wearing, q.background, q.relation, str(q.object_count or ""))
        assert is_held_out((kind, *q.nouns, *filter(None, said))), q


def test_scenes_of_a_question_are_kept_out_and_hold_what_it_says(corpus: Path) -> None:
    palette = build_vocabulary(open_corpus_sprites(corpus)[0])
    for question in read_composition_prompts(corpus, 4):
        scene = sample_matching_scene(question, Random(question.text), palette)
        assert scene_matches(scene, question) and not is_allowed_in_training(scene), question
        assert {noun for c in scene_combinations(scene) for noun in question.nouns if noun in c} == set(question.nouns)


def test_a_lure_is_no_true_scene_of_its_question_and_can_be_painted(corpus: Path) -> None:
    palette = build_vocabulary(open_corpus_sprites(corpus)[0])
    for question in read_composition_prompts(corpus, 6):
        near = make_hard_negative(question, palette)
        scene = sample_matching_scene(near, Random(question.text), palette)
        assert scene_matches(scene, near) and not scene_matches(scene, question), (question, near)


def test_a_folder_that_is_no_corpus_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"held-out\.jsonl: cannot be read.*make-corpus emoji"):
        read_composition_prompts(tmp_path)
    (tmp_path / "held-out.jsonl").write_text('{"kind": "pair"}\n')
    with pytest.raises(InputError, match="lacks or garbles 'nouns'"):
        read_composition_prompts(tmp_path)
    with pytest.raises(InputError, match="--each 0"):
        read_composition_prompts(tmp_path, 0)


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),  # statsmodels.stats.proportion.proportion_confint(method="wilson")
    [(8, 10, 0.490162, 0.943318), (0, 10, 0.0, 0.277533), (10, 10, 0.722467, 1.0), (50, 100, 0.403832, 0.596168)],
)
def test_intervals(right: int, count: int, low: float, high: float) -> None:
    assert wilson_interval(right, count) == pytest.approx((low, high), abs=1e-6)


def test_the_interval_holds_the_shares_that_do_not_reject_the_count() -> None:
    """Wilson's interval is the set of p with |right − n p| ≤ z √(n p (1 − p))."""
    for right, count in ((3, 17), (16, 17), (40, 400)):
        for edge in wilson_interval(right, count):
            assert abs(right - count * edge) == pytest.approx(1.959964 * math.sqrt(count * edge * (1 - edge)))


def test_examples_are_a_function_of_the_seed_and_their_boxes_are_the_painters(corpus: Path) -> None:
    library, size = open_corpus_sprites(corpus)
    first, again = ExamplePainter(library, size, 3), ExamplePainter(library, size, 3)
    again.paint_block(5)
    one, other = first.paint_block(2), again.paint_block(2)
    assert np.array_equal(one.images, other.images) and np.array_equal(one.labels, other.labels)
    assert not np.array_equal(one.images, ExamplePainter(library, size, 4).paint_block(2).images)
    apart = next(iter(paint_blocks(library, size, 3, workers=1)))
    assert np.array_equal(apart.images, first.paint_block(0).images)
    shown = torch.from_numpy(one.images).permute(0, 3, 1, 2).float() / 127.5 - 1
    worse = degrade_images(shown, torch.from_numpy(one.labels), torch.Generator().manual_seed(0))
    same = (worse == shown).flatten(1).all(1).float().mean()
    assert 0.1 < same < 0.3 and worse.abs().max() <= 1


def test_a_detector_of_some_seconds_knows_fresh_renders_from_others(corpus: Path, detector: Detector) -> None:
    found = measure_detector_limits(read_composition_test(corpus, 8), detector, 4)
    for category in ("one object", "two objects", "counting", "position"):
        assert found[category].ceiling >= 0.7, found
        assert found[category].render_count == 32
    fooled = {name: limit for name, limit in found.items() if limit.floor > 0.05 or limit.hard_negative_rate > 0.45}
    assert not fooled


def test_a_detectors_file_gives_the_same_detector_and_is_read_strictly(
    corpus: Path, detector: Detector, tmp_path: Path
) -> None:
    save_detector(detector, tmp_path / "d.safetensors")
    again = load_detector(tmp_path / "d.safetensors")
    shown = torch.cat(rendered(corpus, read_composition_prompts(corpus, 1)))
    assert again.config == detector.config and again.detect(shown) == detector.detect(shown)
    raw = (tmp_path / "d.safetensors").read_bytes()
    for name, data in {"cut": raw[:-100], "text": b"hello", "other": raw.replace(b"leave", b"leafe")}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=f"{name}: .*delete it"):
            load_detector(tmp_path / name)
    with pytest.raises(InputError, match=r"absent: .*delete it"):
        load_detector(tmp_path / "absent")


def test_boxes_overlap_by_their_shares() -> None:
    assert box_iou((0, 0, 2, 2), (0, 0, 2, 2)) == 1 and box_iou((0, 0, 1, 1), (1, 0, 2, 1)) == 0
    assert box_iou((0, 0, 2, 1), (1, 0, 3, 1)) == pytest.approx(1 / 3)


class Renders(nn.Module):
    """A network that predicts x to be the true renders of the question whose number its first token is."""

    def __init__(self, pictures: list[Tensor]) -> None:
        super().__init__()
        self.config = UNetConfig(patch_size=1, channel_multipliers=(1, 2))
        self.one, self.pictures = nn.Parameter(torch.ones(())), pictures

    def prepare(self, given: Conditioning) -> Conditioning:
        return given._replace(prepared=True)

    def forward(self, x: Tensor, clock: Tensor, given: Conditioning) -> Tensor:
        return self.one * self.pictures[int(given.tokens[0, 0, 0])]


class Tokens(nn.Module):
    def forward(self, ids: Tensor) -> Conditioning:
        return Conditioning(ids[:, :, None].float())


class Numbered:
    def __init__(self, prompts: list[str]) -> None:
        self.prompts = prompts

    def encode(self, captions: list[str]) -> Tensor:
        return torch.tensor([[self.prompts.index(caption)] for caption in captions])


class Shown(Model):
    hash = "of no file"  # type: ignore[assignment]


def test_a_model_that_draws_true_renders_scores_the_ceiling(corpus: Path, detector: Detector) -> None:
    asked = read_composition_prompts(corpus, 1)
    painted = rendered(corpus, asked)
    denoiser = Denoiser(Renders([shown.float() / 127.5 - 1 for shown in painted]), FlowSchedule(), "x")
    card = ModelCard(name="renders", steps=2, size=(SIDE, SIDE), guidance_scale=1.0)
    words, plain = (
        Numbered([q.text for q in asked]),
        PixelAutoencoder(PixelAutoencoderConfig((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))),
    )
    model = Shown(denoiser, words, Tokens(), plain, card)  # type: ignore[arg-type]
    for answer, shown in zip(generate_and_judge(model, asked, detector, Request(), seed_count=2), painted, strict=True):
        assert torch.equal(answer.images, shown)
        assert answer.verdicts == judge_images(shown, answer.prompt, detector)
    heard: list[tuple[int, int]] = []
    result = score_composition(
        model, read_composition_test(corpus, 1), seed_count=2, detector=detector, progress=lambda *at: heard.append(at)
    )
    assert heard == [(i + 1, 9) for i in range(9)]
    assert [c.name for c in result.categories] == list(CATEGORIES)
    assert all(c.accuracy == c.ceiling and c.image_count == c.render_count == 2 for c in result.categories)
    assert all(c.prompt_count == 1 for c in result.categories)
    assert result.mean == result.ceiling and result.low <= result.mean <= result.high
    said = json.loads(json.dumps(configuration.to_json(result)))
    assert configuration.from_json(type(result), said, "score") == result
