"""Composition: prompts, verdicts, the detector; and a model that draws real renders has the score of the ceiling."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from detections import CAR, FROG, LEFT, LOW, RIGHT, TOP, TREE, detect
from safetensors.torch import save_file
from torch import Tensor, nn

from unspeckle import configuration
from unspeckle.corpus.emoji.held_out import is_allowed_in_training, is_held_out, scene_combinations
from unspeckle.corpus.emoji.make_corpus import build_vocabulary, make_emoji_corpus
from unspeckle.corpus.emoji.painter import BACKGROUND_BRIGHTNESS_RANGE, BACKGROUND_GRADIENT_RANGE, ScenePainter
from unspeckle.corpus.emoji.tints import BACKGROUNDS
from unspeckle.denoiser import Conditioning, Denoiser, PreparedConditioning
from unspeckle.errors import InputError
from unspeckle.generation.request import Request
from unspeckle.model import Model, ModelCard
from unspeckle.networks import PixelAutoencoder, PixelAutoencoderConfig, UNetConfig
from unspeckle.schedule import FlowSchedule
from unspeckle.scoring.composition.composition_test import read_composition_test
from unspeckle.scoring.composition.degradation import degrade_images
from unspeckle.scoring.composition.detector import Detection, Detector, box_iou
from unspeckle.scoring.composition.detector_examples import ExamplePainter, paint_blocks
from unspeckle.scoring.composition.detector_file import DETECTOR_METADATA_KEY, load_detector, save_detector
from unspeckle.scoring.composition.detector_limits import measure_detector_limits, seed_spread
from unspeckle.scoring.composition.free_wording import FREE_CATEGORIES, GRAMMAR_CATEGORY, HAND_CATEGORY
from unspeckle.scoring.composition.prompt_scenes import (
    _render_seed,
    make_hard_negative,
    render_prompt,
    sample_matching_scene,
    scene_matches,
)
from unspeckle.scoring.composition.prompts import (
    CATEGORIES,
    CompositionPrompt,
    open_corpus_sprites,
    read_composition_prompts,
)
from unspeckle.scoring.composition.score import generate_and_judge, score_composition
from unspeckle.scoring.composition.train_detector import train_detector
from unspeckle.scoring.composition.verdicts import find_background, find_directions, judge_detections, judge_images

NOUNS = ["frog", "rabbit", "house", "robot"]  # every category holds some of their combinations out
SIDE = 32


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("composition") / "scenes"
    try:
        make_emoji_corpus(folder, scenes=3, seed=1, nouns=NOUNS, size=SIDE)
    except InputError as error:
        pytest.skip(str(error))
    return folder


@pytest.fixture(scope="module")
def detector(corpus: Path) -> Detector:
    return train_detector(*open_corpus_sprites(corpus), image_count=5120, workers=0)


def render_prompts(corpus: Path, prompts: Sequence[CompositionPrompt]) -> list[Tensor]:
    library, size = open_corpus_sprites(corpus)
    vocabulary, painter = build_vocabulary(library), ScenePainter(library, size)
    return [render_prompt(prompt, 2, vocabulary, painter) for prompt in prompts]


@pytest.mark.parametrize(
    ("prompt", "correct", "wrong"),
    [
        (
            CompositionPrompt("one object", "", ("frog",), background="pink"),
            [[FROG], [FROG, CAR]],
            [[], [CAR], [detect("frog", "car")]],
        ),
        (
            CompositionPrompt("two objects", "", ("frog", "car")),
            [[FROG, CAR], [CAR, FROG], [CAR, FROG, FROG], [TREE, CAR, FROG]],
            [[], [FROG], [CAR], [FROG, FROG], [FROG, TREE], [detect("frog", "car")]],
        ),
        (
            CompositionPrompt("counting", "", ("frog",), object_count=3),
            [[FROG] * 3, [CAR, *[FROG] * 3]],
            [[FROG] * n for n in (0, 1, 2, 4, 5)] + [[CAR] * 3, [FROG, FROG, CAR], [FROG, FROG, detect("frog", "cat")]],
        ),
        (
            CompositionPrompt("colors", "", ("frog",), ("blue",)),
            [[detect("frog", tint="blue")], [detect("frog", tint="blue"), detect("frog", tint="red")]],
            [
                [FROG],
                [detect("frog", tint="red")],
                [detect("car", tint="blue")],
                [FROG, detect("car", tint="blue")],
                [],
            ],
        ),
        (
            CompositionPrompt("position", "", ("frog", "car"), relation="left of"),
            [[detect("frog", at=LEFT), detect("car", at=RIGHT)]],
            [
                [detect("frog", at=RIGHT), detect("car", at=LEFT)],
                [detect("frog", at=TOP), detect("car", at=LOW)],
                [detect("frog", at=LOW), detect("car", at=TOP)],
                [detect("frog", at=(0.49, 0.5)), detect("car", at=(0.51, 0.5))],
                [detect("frog", at=LEFT)],
                [detect("frog", at=LEFT), detect("tree", at=RIGHT)],
            ],
        ),
        (
            CompositionPrompt("position", "", ("frog", "car"), relation="above"),
            [[detect("frog", at=TOP), detect("car", at=LOW)]],
            [
                [detect("frog", at=LOW), detect("car", at=TOP)],
                [detect("frog", at=LEFT), detect("car", at=RIGHT)],
                [detect("frog", at=RIGHT), detect("car", at=LEFT)],
            ],
        ),
        (
            CompositionPrompt("color binding", "", ("frog", "car"), ("blue", "red")),
            [[detect("frog", tint="blue"), detect("car", tint="red")]],
            [
                [detect("frog", tint="red"), detect("car", tint="blue")],
                [detect("frog", tint="blue"), detect("car", tint="blue")],
                [detect("frog", tint="red"), detect("car", tint="red")],
                [detect("frog", tint="blue"), CAR],
                [FROG, detect("car", tint="red")],
                [detect("frog", tint="blue")],
                [detect("frog", tint="blue"), detect("tree", tint="red")],
            ],
        ),
        (
            CompositionPrompt("on stilts", "", ("frog",)),
            [[Detection(("frog",), (0, 0, 1, 1), on_stilts=True)]],
            [[FROG], [Detection(("car",), (0, 0, 1, 1), on_stilts=True)], []],
        ),
        (
            CompositionPrompt("wearing", "", ("frog",), wearing="crown"),
            [[detect("frog", wearing="crown")]],
            [[FROG], [detect("frog", wearing="bow")], [detect("cat", wearing="crown")], []],
        ),
        (
            CompositionPrompt("hybrids", "", ("frog", "cat")),
            [[detect("frog", "cat")], [detect("cat", "frog"), CAR]],
            [
                [],
                [FROG],
                [detect("cat")],
                [FROG, detect("cat")],
                [detect("frog", "dog")],
                [detect("frog", "cat", "dog")],
            ],
        ),
    ],
    ids=lambda value: f"{value.category} {value.relation}".strip() if isinstance(value, CompositionPrompt) else "",
)
def test_verdicts(prompt: CompositionPrompt, correct: list[list[Detection]], wrong: list[list[Detection]]) -> None:
    cases = [(detections, True) for detections in correct] + [(detections, False) for detections in wrong]
    for detections, is_correct in cases:
        verdict = judge_detections(prompt, detections, "pink")
        assert verdict.is_correct is is_correct and (verdict.reason == "") is is_correct, (detections, verdict)
        detected_nouns = {noun for one in detections for noun in one.nouns if len(one.nouns) == 1}
        if prompt.category != "hybrids":
            assert verdict.missing_nouns == tuple(noun for noun in prompt.nouns if noun not in detected_nouns)
    if prompt.background:
        reasons = {judge_detections(prompt, detections, "blue").reason for detections in correct}
        assert reasons == {"the background is blue"}


def test_of_several_objects_that_of_the_highest_score_counts_and_unnamed_ones_are_extra() -> None:
    prompt = CompositionPrompt("colors", "", ("frog",), ("blue",))
    detections = [detect("frog", tint="red", score=0.9), detect("frog", tint="blue", score=0.5), CAR, TREE]
    verdict = judge_detections(prompt, detections, "white")
    assert verdict.reason == "the frog is red" and verdict.extra_count == 2


def test_directions_are_genevals() -> None:
    """Along an axis the centers must be further apart than a tenth of both sides plus half of their distance."""
    rng, opposite = Random(0), {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    kinds = set()
    for _ in range(2000):
        x, y, u, v, side, other_side = (rng.random() for _ in range(6))
        first, second = detect("x", at=(x, y), side=0.5 * side), detect("y", at=(u, v), side=0.5 * other_side)
        threshold = 0.05 * (side + other_side) + 0.5 * math.hypot(x - u, y - v)
        distances = {"left of": u - x, "right of": x - u, "above": v - y, "below": y - v}
        directions = find_directions(first, second)
        assert directions == {direction for direction, distance in distances.items() if distance > threshold}
        assert find_directions(second, first) == {opposite[direction] for direction in directions}
        kinds.add(tuple(sorted(directions)))
    assert len(kinds) == 9  # none, one of four, and the four pairs of neighboring ones
    assert find_directions(first, first) == set()


def test_every_background_is_named_at_its_brightest_and_darkest() -> None:
    for name, (brightness, gradient) in product(BACKGROUNDS, product((-1, 1), repeat=2)):
        color = torch.tensor(BACKGROUNDS[name]).float()[:, None, None].expand(3, 24, 24)
        if name != "white":
            vertical = torch.linspace(-0.5, 0.5, 24)[:, None]
            color = color + BACKGROUND_BRIGHTNESS_RANGE * brightness + BACKGROUND_GRADIENT_RANGE * gradient * vertical
        image = color.clamp(0, 255).byte().clone()
        assert find_background(image, []) == name
        image[:, 2:20, 3:20] = 77
        assert find_background(image, [Detection(("frog",), (0.1, 0.05, 0.85, 0.9))]) == name
        assert find_background(image, [Detection(("frog",), (0, 0, 1, 1))]) == name


def test_prompts_are_those_of_the_rows_that_are_held_out(corpus: Path) -> None:
    prompts = read_composition_prompts(corpus, 7)
    rows = [json.loads(line) for line in (corpus / "held-out.jsonl").read_text().splitlines()]
    texts = {(row["kind"], text) for row in rows for text in row["prompts"]}
    assert [prompt.category for prompt in prompts] == [name for name in CATEGORIES for _ in range(7)]
    assert all((CATEGORIES[prompt.category][0], prompt.text) in texts for prompt in prompts)
    assert not [prompt for prompt in prompts if "next to" in prompt.text or prompt.relation == "next to"]
    assert len(set(prompts)) == len(prompts), "a prompt that is repeated has another repetition, and so other seeds"
    assert read_composition_prompts(corpus, 7) == prompts
    two_prompts = read_composition_prompts(corpus, 2)
    assert len({prompt.text for prompt in two_prompts if prompt.category == "position"}) == 2
    for prompt in prompts:
        kind = CATEGORIES[prompt.category][0]
        if kind == "colors":
            assert is_held_out(("pair", *prompt.nouns))
            continue
        values = (*prompt.tints, prompt.wearing, prompt.background, prompt.relation, str(prompt.object_count or ""))
        assert is_held_out((kind, *prompt.nouns, *filter(None, values))), prompt


def test_rows_of_version_0_1_are_read(corpus: Path, tmp_path: Path) -> None:
    rows = (corpus / "held-out.jsonl").read_text()
    assert '"kind": "colors"' in rows
    (tmp_path / "held-out.jsonl").write_text(rows.replace('"kind": "colors"', '"kind": "colours"'))
    assert read_composition_prompts(tmp_path, 3) == read_composition_prompts(corpus, 3)


def test_matching_scenes_are_held_out_and_show_what_the_prompt_says(corpus: Path) -> None:
    vocabulary = build_vocabulary(open_corpus_sprites(corpus)[0])
    for prompt in read_composition_prompts(corpus, 4):
        scene = sample_matching_scene(prompt, Random(prompt.text), vocabulary)
        assert scene_matches(scene, prompt) and not is_allowed_in_training(scene), prompt
        combinations = list(scene_combinations(scene))
        assert {noun for c in combinations for noun in prompt.nouns if noun in c} == set(prompt.nouns)


def test_a_hard_negative_contradicts_its_prompt_and_can_be_painted(corpus: Path) -> None:
    vocabulary = build_vocabulary(open_corpus_sprites(corpus)[0])
    for prompt in read_composition_prompts(corpus, 6):
        hard_negative = make_hard_negative(prompt, vocabulary)
        scene = sample_matching_scene(hard_negative, Random(prompt.text), vocabulary)
        assert scene_matches(scene, hard_negative) and not scene_matches(scene, prompt), (prompt, hard_negative)


def test_renders_have_the_seeds_of_version_0_1() -> None:
    """The text is the repr of version 0.1's Question; other text would give other renders, ceilings and floors."""
    prompt = CompositionPrompt(
        "color binding", "a red frog above a blue car", ("frog", "car"), ("red", "blue"), relation="above", repetition=2
    )
    assert _render_seed(prompt) == (
        "unspeckle render Question(category='colour binding', prompt='a red frog above a blue car', "
        "nouns=('frog', 'car'), tints=('red', 'blue'), count=0, relation='above', wearing='', background='', turn=2)"
    )
    single = CompositionPrompt("one object", "it's a frog", ("frog",), object_count=3, wearing="hat", background="pink")
    assert _render_seed(single) == (
        """unspeckle render Question(category='one object', prompt="it's a frog", nouns=('frog',), tints=(), """
        "count=3, relation='', wearing='hat', background='pink', turn=0)"
    )


def test_a_folder_that_is_not_an_emoji_corpus_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"held-out\.jsonl: cannot be read.*make-corpus emoji"):
        read_composition_prompts(tmp_path)
    (tmp_path / "held-out.jsonl").write_text('{"kind": "pair"}\n')
    with pytest.raises(InputError, match="a row has no 'nouns'"):
        read_composition_prompts(tmp_path)
    with pytest.raises(InputError, match="prompts_per_category 0"):
        read_composition_prompts(tmp_path, 0)


def test_examples_depend_on_the_seed_and_on_their_index_alone(corpus: Path) -> None:
    library, size = open_corpus_sprites(corpus)
    painter, other_painter = ExamplePainter(library, size, 3), ExamplePainter(library, size, 3)
    other_painter.paint_block(5)
    block, other_block = painter.paint_block(2), other_painter.paint_block(2)
    assert np.array_equal(block.images, other_block.images) and np.array_equal(block.labels, other_block.labels)
    assert not np.array_equal(block.images, ExamplePainter(library, size, 4).paint_block(2).images)
    from_worker = next(iter(paint_blocks(library, size, 3, workers=1)))
    assert np.array_equal(from_worker.images, painter.paint_block(0).images)
    images = torch.from_numpy(block.images).permute(0, 3, 1, 2).float() / 127.5 - 1
    degraded = degrade_images(images, torch.from_numpy(block.labels), torch.Generator().manual_seed(0))
    unchanged = (degraded == images).flatten(1).all(1).float().mean()
    assert 0.1 < unchanged < 0.3 and degraded.abs().max() <= 1


def test_a_detector_of_some_seconds_tells_real_renders_from_others(corpus: Path, detector: Detector) -> None:
    completed: list[int] = []
    test = read_composition_test(corpus, 8)
    limits = measure_detector_limits(test, detector, 4, completed.append)
    assert completed == [*range(1, len(test.prompts) + 1)] and set(limits) == {*CATEGORIES, *FREE_CATEGORIES}
    for category in ("one object", "two objects", "counting", "position"):
        assert limits[category].ceiling >= 0.7, limits
        assert limits[category].render_count == 32
    assert limits[GRAMMAR_CATEGORY].ceiling >= 0.45 > 5 * limits[GRAMMAR_CATEGORY].floor
    assert limits[HAND_CATEGORY].ceiling > 2 * limits[HAND_CATEGORY].floor
    fixed = {name: limit for name, limit in limits.items() if name in CATEGORIES}
    fooled = {name: limit for name, limit in fixed.items() if limit.floor > 0.05 or limit.hard_negative_rate > 0.45}
    assert not fooled


def test_the_spread_of_images_is_the_mean_difference_of_pairs() -> None:
    images = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    images[1] += 60
    images[2] += 120
    assert seed_spread(images) == pytest.approx((60 + 120 + 60) / 3)
    assert seed_spread(images[:1]) == seed_spread(images[:1].expand(4, -1, -1, -1)) == 0


def test_a_detectors_file_gives_the_same_detector_and_is_read_strictly(
    corpus: Path, detector: Detector, tmp_path: Path
) -> None:
    save_detector(detector, tmp_path / "d.safetensors")
    loaded = load_detector(tmp_path / "d.safetensors")
    images = torch.cat(render_prompts(corpus, read_composition_prompts(corpus, 1)))
    assert loaded.config == detector.config and loaded.detect(images) == detector.detect(images)
    raw = (tmp_path / "d.safetensors").read_bytes()
    for name, data in {"cut": raw[:-100], "text": b"hello", "other": raw.replace(b"neck.", b"nect.")}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=f"{name}: .*delete it"):
            load_detector(tmp_path / name)
    with pytest.raises(InputError, match=r"absent: .*delete it"):
        load_detector(tmp_path / "absent")


def test_a_detectors_file_of_version_0_1_is_read(detector: Detector, tmp_path: Path) -> None:
    """The user's cache may have one: its tensors and its configuration had other names."""
    old_pieces = {
        "conv_in": "enter", "coarse_proj": "up", "neck": "leave", "conv_out": "out", "conv1": "one", "conv2": "other",
    }  # fmt: skip
    tensors = {
        ".".join(old_pieces.get(piece, piece) for piece in name.split(".")): tensor.contiguous()
        for name, tensor in detector.state_dict().items()
    }
    config = configuration.to_json(detector.config)
    config["halves"], config["size"] = config.pop("hybrid_nouns"), config.pop("image_size")
    save_file(tensors, tmp_path / "old.safetensors", {DETECTOR_METADATA_KEY: json.dumps(config)})
    loaded = load_detector(tmp_path / "old.safetensors")
    assert loaded.config == detector.config
    assert all(torch.equal(tensor, detector.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def test_boxes_overlap_by_intersection_over_union() -> None:
    assert box_iou((0, 0, 2, 2), (0, 0, 2, 2)) == 1 and box_iou((0, 0, 1, 1), (1, 0, 2, 1)) == 0
    assert box_iou((0, 0, 2, 1), (1, 0, 3, 1)) == pytest.approx(1 / 3)


class RenderNetwork(nn.Module):
    """A network that predicts x to be the real renders of the prompt whose number its first token is."""

    def __init__(self, renders: list[Tensor]) -> None:
        super().__init__()
        self.config = UNetConfig(patch_size=1, channel_multipliers=(1, 2))
        self.scale, self.renders = nn.Parameter(torch.ones(())), renders

    def prepare(self, conditioning: Conditioning) -> PreparedConditioning:
        return PreparedConditioning(conditioning.tokens)

    def forward(self, x: Tensor, c_noise: Tensor, conditioning: PreparedConditioning) -> Tensor:
        return self.scale * self.renders[int(conditioning.keys_values[0, 0, 0])]


class NumberTextEncoder(nn.Module):
    def forward(self, ids: Tensor) -> Conditioning:
        return Conditioning(ids[:, :, None].float())


class PromptNumberTokenizer:
    """A prompt's only token is its number."""

    def __init__(self, prompts: list[str]) -> None:
        self.prompts = prompts

    def encode(self, captions: list[str]) -> Tensor:
        return torch.tensor([[self.prompts.index(caption)] for caption in captions])


def test_a_model_that_draws_real_renders_has_the_score_of_the_ceiling(corpus: Path, detector: Detector) -> None:
    test = read_composition_test(corpus, 1)
    prompts = [prompt for prompt in test.prompts if "(" not in prompt.text]  # which would mean emphasis
    test = replace(test, prompts=prompts)
    renders = render_prompts(corpus, prompts)
    network = RenderNetwork([images.float() / 127.5 - 1 for images in renders])
    model = Model(
        Denoiser(network, FlowSchedule(), "x"),
        PromptNumberTokenizer([prompt.text for prompt in prompts]),  # type: ignore[arg-type]
        NumberTextEncoder(),
        PixelAutoencoder(PixelAutoencoderConfig((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))),
        ModelCard(name="renders", steps=2, size=(SIDE, SIDE), guidance_scale=1.0),
        stored_hash="none",
    )
    judged = generate_and_judge(model, prompts, detector, Request(), seed_count=2)
    for item, images in zip(judged, renders, strict=True):
        assert torch.equal(item.images, images)
        assert item.verdicts == judge_images(images, item.prompt, detector)
    reports: list[tuple[int, int]] = []
    score = score_composition(model, test, detector, seed_count=2, progress=lambda *at: reports.append(at))
    total = 2 * len(prompts)  # each prompt for the detector, and each for the model
    assert reports == [(i + 1, total) for i in range(total)]
    assert [c.name for c in score.categories] == [*CATEGORIES, *FREE_CATEGORIES]
    assert all(c.accuracy == c.ceiling and c.image_count == c.render_count for c in score.categories)
    assert all(c.spread == pytest.approx(c.render_spread) and c.spread > 5 for c in score.categories)
    assert all((c.prompt_count, c.image_count) == (1, 2) for c in score.categories if c.name in CATEGORIES)
    assert score.mean == score.ceiling and score.low <= score.mean <= score.high
    values = json.loads(json.dumps(configuration.to_json(score)))
    assert configuration.from_json(type(score), values, "score") == score
