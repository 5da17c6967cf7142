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
from unspeckle.corpus.emoji.held_out import allowed, combinations_of, is_held_out
from unspeckle.corpus.emoji.make_corpus import make_emoji, palette_of
from unspeckle.corpus.emoji.painter import BRIGHTNESS, GRADIENT, Painter
from unspeckle.corpus.emoji.tints import BACKGROUNDS
from unspeckle.denoiser import Denoiser, Conditioning
from unspeckle.errors import InputError
from unspeckle.generation.pipeline import Request
from unspeckle.model import ModelCard, Model
from unspeckle.networks import Identity, IdentityConfig, UNetConfig
from unspeckle.schedule import Flow
from unspeckle.scoring.composition.detector import Detection, Detector, load, overlap, save
from unspeckle.scoring.composition.examples import Easel, blocks
from unspeckle.scoring.composition.questions import (
    CATEGORIES,
    Question,
    exam_of,
    holds,
    library_of,
    lure,
    questions,
    scene_for,
)
from unspeckle.scoring.composition.score import answers, limits, renders, wilson, words_score
from unspeckle.scoring.composition.train_detector import teach, worsened
from unspeckle.scoring.composition.verdicts import directions, ground, judge, verdict

NOUNS = ["frog", "rabbit", "house", "robot"]  # of these every category has something kept out
SIDE = 32


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words") / "scenes"
    try:
        make_emoji(folder, scenes=3, seed=1, nouns=NOUNS, size=SIDE)
    except InputError as problem:
        pytest.skip(str(problem))
    return folder


@pytest.fixture(scope="module")
def detector(corpus: Path) -> Detector:
    return teach(*library_of(corpus), pictures=5120, workers=0)


def thing(
    *nouns: str, at: Sequence[float] = (0.5, 0.5), side: float = 0.3, heat: float = 0.9, **said: str
) -> Detection:
    box = (at[0] - side / 2, at[1] - side / 2, at[0] + side / 2, at[1] + side / 2)
    return Detection(nouns, box, heat=heat, **said)  # type: ignore[arg-type]


def rendered(corpus: Path, asked: Sequence[Question]) -> list[Tensor]:
    library, size = library_of(corpus)
    palette, painter = palette_of(library), Painter(library, size)
    return [renders(question, 2, palette, painter) for question in asked]


FROG, CAR, TREE = thing("frog"), thing("car"), thing("tree")
LEFT, RIGHT, TOP, LOW = (0.2, 0.5), (0.8, 0.5), (0.5, 0.2), (0.5, 0.8)


@pytest.mark.parametrize(
    ("question", "right", "wrong"),
    [
        (
            Question("one object", "", ("frog",), background="pink"),
            [[FROG], [FROG, CAR]],
            [[], [CAR], [thing("frog", "car")]],
        ),
        (
            Question("two objects", "", ("frog", "car")),
            [[FROG, CAR], [CAR, FROG], [CAR, FROG, FROG], [TREE, CAR, FROG]],
            [[], [FROG], [CAR], [FROG, FROG], [FROG, TREE], [thing("frog", "car")]],
        ),
        (
            Question("counting", "", ("frog",), count=3),
            [[FROG] * 3, [CAR, *[FROG] * 3]],
            [[FROG] * n for n in (0, 1, 2, 4, 5)] + [[CAR] * 3, [FROG, FROG, CAR], [FROG, FROG, thing("frog", "cat")]],
        ),
        (
            Question("colours", "", ("frog",), ("blue",)),
            [[thing("frog", tint="blue")], [thing("frog", tint="blue"), thing("frog", tint="red")]],
            [[FROG], [thing("frog", tint="red")], [thing("car", tint="blue")], [FROG, thing("car", tint="blue")], []],
        ),
        (
            Question("position", "", ("frog", "car"), relation="left of"),
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
            Question("position", "", ("frog", "car"), relation="above"),
            [[thing("frog", at=TOP), thing("car", at=LOW)]],
            [
                [thing("frog", at=LOW), thing("car", at=TOP)],
                [thing("frog", at=LEFT), thing("car", at=RIGHT)],
                [thing("frog", at=RIGHT), thing("car", at=LEFT)],
            ],
        ),
        (
            Question("colour binding", "", ("frog", "car"), ("blue", "red")),
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
            Question("on stilts", "", ("frog",)),
            [[Detection(("frog",), (0, 0, 1, 1), stilts=True)]],
            [[FROG], [Detection(("car",), (0, 0, 1, 1), stilts=True)], []],
        ),
        (
            Question("wearing", "", ("frog",), wearing="crown"),
            [[thing("frog", wearing="crown")]],
            [[FROG], [thing("frog", wearing="bow")], [thing("cat", wearing="crown")], []],
        ),
        (
            Question("hybrids", "", ("frog", "cat")),
            [[thing("frog", "cat")], [thing("cat", "frog"), CAR]],
            [[], [FROG], [thing("cat")], [FROG, thing("cat")], [thing("frog", "dog")], [thing("frog", "cat", "dog")]],
        ),
    ],
    ids=lambda value: f"{value.category} {value.relation}".strip() if isinstance(value, Question) else "",
)
def test_verdicts(question: Question, right: list[list[Detection]], wrong: list[list[Detection]]) -> None:
    for found, wanted in [(found, True) for found in right] + [(found, False) for found in wrong]:
        given = verdict(question, found, "pink")
        assert given.right is wanted and (given.why == "") is wanted, (found, given)
        seen = {noun for thing in found for noun in thing.nouns if len(thing.nouns) == 1}
        if question.category != "hybrids":
            assert given.missing == tuple(noun for noun in question.nouns if noun not in seen)
    if question.background:
        assert all(verdict(question, found, "blue").why == "the background is blue" for found in right)


def test_of_several_things_the_hottest_is_meant_and_others_are_spare() -> None:
    asked = Question("colours", "", ("frog",), ("blue",))
    found = [thing("frog", tint="red", heat=0.9), thing("frog", tint="blue", heat=0.5), CAR, TREE]
    assert verdict(asked, found, "white").why == "the frog is red" and verdict(asked, found, "white").spare == 2


def test_directions_are_genevals() -> None:
    """Along an axis the middles must lie further apart than a tenth of both sides and half of their distance."""
    rng, turned = Random(0), {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    kinds = set()
    for _ in range(2000):
        x, y, u, v, side, other_side = (rng.random() for _ in range(6))
        one, other = thing("x", at=(x, y), side=0.5 * side), thing("y", at=(u, v), side=0.5 * other_side)
        enough = 0.05 * (side + other_side) + 0.5 * math.hypot(x - u, y - v)
        apart = {"left of": u - x, "right of": x - u, "above": v - y, "below": y - v}
        assert directions(one, other) == {way for way, distance in apart.items() if distance > enough}
        assert directions(other, one) == {turned[way] for way in directions(one, other)}
        kinds.add(tuple(sorted(directions(one, other))))
    assert len(kinds) == 9  # none, four ways, four ways between two
    assert directions(one, one) == set()


def test_every_background_is_named_at_its_brightest_and_darkest() -> None:
    for name, (glow, slope) in product(BACKGROUNDS, product((-1, 1), repeat=2)):
        shade = torch.tensor(BACKGROUNDS[name]).float()[:, None, None].expand(3, 24, 24)
        if name != "white":
            shade = shade + BRIGHTNESS * glow + GRADIENT * slope * torch.linspace(-0.5, 0.5, 24)[:, None]
        picture = shade.clamp(0, 255).byte().clone()
        assert ground(picture, []) == name
        picture[:, 2:20, 3:20] = 77
        assert ground(picture, [Detection(("frog",), (0.1, 0.05, 0.85, 0.9))]) == name
        assert ground(picture, [Detection(("frog",), (0, 0, 1, 1))]) == name


def test_questions_come_from_rows_that_are_held_out_and_from_nothing_else(corpus: Path) -> None:
    asked = questions(corpus, 7)
    rows = [json.loads(line) for line in (corpus / "held-out.jsonl").read_text().splitlines()]
    prompts = {(kind, prompt) for kind, row in ((r["kind"], r) for r in rows) for prompt in row["prompts"]}
    assert [q.category for q in asked] == [name for name in CATEGORIES for _ in range(7)]
    assert all((CATEGORIES[q.category][0], q.prompt) in prompts for q in asked)
    assert not [q for q in asked if "next to" in q.prompt or q.relation == "next to"]
    assert len(set(asked)) == len(asked), "a prompt that comes again has another turn, and so other seeds"
    assert questions(corpus, 7) == asked
    few = questions(corpus, 2)
    assert len({q.prompt for q in few if q.category == "position"}) == 2
    for q in asked:
        kind = CATEGORIES[q.category][0]
        if kind == "colours":
            assert is_held_out(("pair", *q.nouns))
            continue
        said = (*q.tints, q.wearing, q.background, q.relation, str(q.count or ""))
        assert is_held_out((kind, *q.nouns, *filter(None, said))), q


def test_scenes_of_a_question_are_kept_out_and_hold_what_it_says(corpus: Path) -> None:
    palette = palette_of(library_of(corpus)[0])
    for question in questions(corpus, 4):
        scene = scene_for(question, Random(question.prompt), palette)
        assert holds(scene, question) and not allowed(scene), question
        assert {noun for c in combinations_of(scene) for noun in question.nouns if noun in c} == set(question.nouns)


def test_a_lure_is_no_true_scene_of_its_question_and_can_be_painted(corpus: Path) -> None:
    palette = palette_of(library_of(corpus)[0])
    for question in questions(corpus, 6):
        near = lure(question, palette)
        scene = scene_for(near, Random(question.prompt), palette)
        assert holds(scene, near) and not holds(scene, question), (question, near)


def test_a_folder_that_is_no_corpus_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"held-out\.jsonl: cannot be read.*make-corpus emoji"):
        questions(tmp_path)
    (tmp_path / "held-out.jsonl").write_text('{"kind": "pair"}\n')
    with pytest.raises(InputError, match="lacks or garbles 'nouns'"):
        questions(tmp_path)
    with pytest.raises(InputError, match="--each 0"):
        questions(tmp_path, 0)


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),  # statsmodels.stats.proportion.proportion_confint(method="wilson")
    [(8, 10, 0.490162, 0.943318), (0, 10, 0.0, 0.277533), (10, 10, 0.722467, 1.0), (50, 100, 0.403832, 0.596168)],
)
def test_intervals(right: int, count: int, low: float, high: float) -> None:
    assert wilson(right, count) == pytest.approx((low, high), abs=1e-6)


def test_the_interval_holds_the_shares_that_do_not_reject_the_count() -> None:
    """Wilson's interval is the set of p with |right − n p| ≤ z √(n p (1 − p))."""
    for right, count in ((3, 17), (16, 17), (40, 400)):
        for edge in wilson(right, count):
            assert abs(right - count * edge) == pytest.approx(1.959964 * math.sqrt(count * edge * (1 - edge)))


def test_examples_are_a_function_of_the_seed_and_their_boxes_are_the_painters(corpus: Path) -> None:
    library, size = library_of(corpus)
    first, again = Easel(library, size, 3), Easel(library, size, 3)
    again.paint(5)
    one, other = first.paint(2), again.paint(2)
    assert np.array_equal(one.pictures, other.pictures) and np.array_equal(one.things, other.things)
    assert not np.array_equal(one.pictures, Easel(library, size, 4).paint(2).pictures)
    apart = next(iter(blocks(library, size, 3, workers=1)))
    assert np.array_equal(apart.pictures, first.paint(0).pictures)
    shown = torch.from_numpy(one.pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    worse = worsened(shown, torch.from_numpy(one.things), torch.Generator().manual_seed(0))
    same = (worse == shown).flatten(1).all(1).float().mean()
    assert 0.1 < same < 0.3 and worse.abs().max() <= 1


def test_a_detector_of_some_seconds_knows_fresh_renders_from_others(corpus: Path, detector: Detector) -> None:
    found = limits(exam_of(corpus, 8), detector, 4)
    for category in ("one object", "two objects", "counting", "position"):
        assert found[category].ceiling >= 0.7, found
        assert found[category].renders == 32
    fooled = {name: limit for name, limit in found.items() if limit.floor > 0.05 or limit.lured > 0.45}
    assert not fooled


def test_a_detectors_file_gives_the_same_detector_and_is_read_strictly(
    corpus: Path, detector: Detector, tmp_path: Path
) -> None:
    save(detector, tmp_path / "d.safetensors")
    again = load(tmp_path / "d.safetensors")
    shown = torch.cat(rendered(corpus, questions(corpus, 1)))
    assert again.config == detector.config and again.detect(shown) == detector.detect(shown)
    raw = (tmp_path / "d.safetensors").read_bytes()
    for name, data in {"cut": raw[:-100], "text": b"hello", "other": raw.replace(b"leave", b"leafe")}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=f"{name}: .*delete it"):
            load(tmp_path / name)
    with pytest.raises(InputError, match=r"absent: .*delete it"):
        load(tmp_path / "absent")


def test_boxes_overlap_by_their_shares() -> None:
    assert overlap((0, 0, 2, 2), (0, 0, 2, 2)) == 1 and overlap((0, 0, 1, 1), (1, 0, 2, 1)) == 0
    assert overlap((0, 0, 2, 1), (1, 0, 3, 1)) == pytest.approx(1 / 3)


class Renders(nn.Module):
    """A network that predicts x to be the true renders of the question whose number its first token is."""

    def __init__(self, pictures: list[Tensor]) -> None:
        super().__init__()
        self.config = UNetConfig(patch=1, multipliers=(1, 2))
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
    asked = questions(corpus, 1)
    painted = rendered(corpus, asked)
    denoiser = Denoiser(Renders([shown.float() / 127.5 - 1 for shown in painted]), Flow(), "x")
    card = ModelCard(name="renders", steps=2, size=(SIDE, SIDE), guidance_scale=1.0)
    words, plain = Numbered([q.prompt for q in asked]), Identity(IdentityConfig((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    model = Shown(denoiser, words, Tokens(), plain, card)  # type: ignore[arg-type]
    for answer, shown in zip(answers(model, asked, detector, Request(), seeds=2), painted, strict=True):
        assert torch.equal(answer.pictures, shown)
        assert answer.verdicts == judge(shown, answer.question, detector)
    heard: list[tuple[int, int]] = []
    result = words_score(model, exam_of(corpus, 1), seeds=2, detector=detector, progress=lambda *at: heard.append(at))
    assert heard == [(i + 1, 9) for i in range(9)]
    assert [c.name for c in result.categories] == list(CATEGORIES)
    assert all(c.share == c.ceiling and c.pictures == c.renders == 2 for c in result.categories)
    assert all(c.prompts == 1 for c in result.categories)
    assert result.mean == result.ceiling and result.low <= result.mean <= result.high
    said = json.loads(json.dumps(configuration.to_json(result)))
    assert configuration.from_json(type(result), said, "score") == result
