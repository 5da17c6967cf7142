"""The pipeline: an image is what its request asks for, drawn alone or in a batch."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tiny_models import gray_model, random_model
from unspeckle.denoiser import map_fields
from unspeckle.errors import InputError
from unspeckle.generation import pipeline
from unspeckle.generation.codec import decode_to_images
from unspeckle.generation.metadata import image_metadata, request_from_metadata
from unspeckle.generation.pipeline import draw, draw_prompts, images_per_batch, split_into_batches, steps
from unspeckle.generation.request import Request
from unspeckle.generation.resolve import ignored_options, resolve
from unspeckle.guidance import build_guided_denoise, clamp_denoised, classifier_free_guidance
from unspeckle.model import Model
from unspeckle.networks import PixelAutoencoder, PixelAutoencoderConfig
from unspeckle.output.film_strip import MAX_COLUMNS, FilmStrip
from unspeckle.output.png import max_pixel_difference
from unspeckle.rng import noise_from_seeds
from unspeckle.samplers import SAMPLERS
from unspeckle.schedule import VESchedule
from unspeckle.timesteps import timesteps


@dataclass
class ScaleConditionedModel(Model):
    """A model whose network takes the guidance scale as an input."""

    def cfg_scale(self, guidance_scale: float) -> float:
        return 1.0


@pytest.mark.parametrize(
    "option",
    [
        {"negative_prompt": "0.5"},
        {"guidance_method": "apg"},
        {"guidance_rescale": 0.5},
        {"guidance_interval": (0.2, 0.8)},
        {"guide_model": gray_model()},
    ],
)
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_options_of_guidance_are_refused_where_the_network_takes_the_scale(
    option: dict[str, Any], scale: float
) -> None:
    plain = gray_model()
    conditioned = ScaleConditionedModel(
        plain.denoiser, plain.tokenizer, plain.text_encoder, plain.autoencoder, plain.card
    )
    resolve(conditioned, Request("0.3", guidance_scale=scale))
    (name,) = option
    with pytest.raises(InputError, match=f"^{name}: this model takes the guidance scale as an input"):
        resolve(conditioned, Request("0.3", guidance_scale=scale, **option))
    resolved = resolve(plain, Request("0.3", guidance_scale=scale, **option))
    assert ignored_options(resolved) == ([name] if scale == 1 else [])


def test_ignored_options_change_no_image() -> None:
    """And the others do: the negative prompt counts without guidance where a prompt's weights do not sum to 1."""
    model = random_model()
    for prompt in ("a frog", "a frog AND two frogs", "a frog NOT red", "[a frog:a pizza:0.5] AND red :0.5"):
        plain, away = (Request(prompt, negative_prompt=text, guidance_scale=1.0) for text in ("", "a blue rabbit"))
        same = draw(model, plain)[0].tobytes() == draw(model, away)[0].tobytes()
        assert same == ("negative_prompt" in ignored_options(resolve(model, away)))
        assert same == (prompt == "a frog")


def last(model, request):
    for step in steps(model, request):
        found = step
    return found


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_known_answer_is_reached_by_every_sampler(sampler: str) -> None:
    """A denoiser that always says "gray 0.375" must end there exactly, whatever the noise on the way."""
    found = last(gray_model(), Request("0.375", seed=5, count=2, sampler=sampler))
    assert found.t == 0
    assert torch.allclose(found.x, torch.full_like(found.x, 0.375), atol=1e-6)


def test_guidance_is_one_call_and_its_formula() -> None:
    model = gray_model()
    found = last(model, Request("0.4", negative_prompt="0.1", guidance_scale=3.0, count=3))
    assert torch.allclose(found.x, torch.full_like(found.x, 0.1 + 3 * (0.4 - 0.1)), atol=1e-6)
    assert model.network.batch_sizes == [6] * 5


def test_no_guidance_is_half_the_work_and_prompts_are_encoded_once() -> None:
    model = gray_model()
    last(model, Request("0.4", count=3))
    assert model.network.batch_sizes == [3] * 5
    assert (model.text_encoder.calls, model.network.prepare_calls) == (1, 1)


def test_denoised_images_stay_within_bounds() -> None:
    model = gray_model()  # its colors have deviation 0.5: white is x = 2
    assert last(model, Request("1.5", guidance_scale=4.0)).x.max() == 2
    model.card = replace(model.card, clamp_denoised=False)
    assert torch.allclose(last(model, Request("1.5", guidance_scale=4.0)).x, torch.tensor(6.0))


def test_greys_are_rounded_to_the_nearest() -> None:
    model = gray_model()
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0, 9.0, torch.nan]).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    assert [image.getpixel((0, 0))[0] for image in decode_to_images(model, x)] == [0, 64, 128, 191, 255, 255, 128]


def test_drawn_twice_is_the_same() -> None:
    model, request = random_model(), Request("a frog", seed=11)
    assert max_pixel_difference(draw(model, request)[0], draw(model, request)[0]) == 0


def test_alone_as_in_a_batch() -> None:
    model = random_model(steps=12)
    together = draw(model, Request("a frog", seed=20, count=5, sampler="euler_ancestral"))
    for i, image in enumerate(together):
        alone = draw(model, Request("a frog", seed=20 + i, sampler="euler_ancestral"))[0]
        apart = np.abs(np.asarray(alone, dtype=int) - np.asarray(image, dtype=int))
        assert apart.mean() <= 0.5 and apart.max() <= 8
    assert max_pixel_difference(together[0], together[1]) > 50


@pytest.mark.parametrize("batch", [None, 1, 2, 9])
def test_batch_sizes(batch: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "BATCH_PIXELS", {"cpu": 3 * 16 * 16})
    model, request = random_model(steps=12), Request("a frog", seed=20, count=5, batch_size=batch)
    counts = {None: [3, 2], 1: [1] * 5, 2: [2, 2, 1], 9: [5]}[batch]
    assert [one.count for one in split_into_batches(resolve(model, request))] == counts
    rows: list[int] = []
    model.network.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    drawn = draw(model, request)
    assert list(dict.fromkeys(rows)) == [2 * count for count in dict.fromkeys(counts)]  # with the prompt and without it
    assert [image_metadata(one)["batch"][1] for one in drawn] == [count for count in counts for _ in range(count)]
    rows.clear()
    again = draw_prompts(model, ["a frog"] * 5, range(20, 25), request)
    assert list(dict.fromkeys(rows)) == [2 * count for count in dict.fromkeys(counts)]
    for ours, one, theirs in zip(
        drawn, again, draw(random_model(steps=12), replace(request, batch_size=5)), strict=True
    ):
        apart = [np.abs(np.asarray(each, dtype=int) - np.asarray(theirs, dtype=int)) for each in (ours, one)]
        assert max(far.mean() for far in apart) <= 0.5 and max(far.max() for far in apart) <= 8


def test_a_gpu_has_larger_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model()
    small, large = resolve(model, Request(size=64)), resolve(model, Request(size=64, hires_size=512))
    assert (images_per_batch(small), images_per_batch(large)) == (16, 1)
    monkeypatch.setattr(Model, "device", torch.device("cuda:1"))
    assert (images_per_batch(small), images_per_batch(large)) == (256, 4)
    assert images_per_batch(replace(small, batch_size=3)) == 3


def test_many_prompts_in_one_batch_are_drawn_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "BATCH_PIXELS", {"cpu": 4 * 16 * 16})  # two batches
    model, request = (
        random_model(steps=12),
        Request(negative_prompt="a pizza", guidance_scale=3.0, sampler="euler_ancestral"),
    )
    prompts, seeds = ["a frog", "two red frogs", "a frog", "a blue rabbit", "", "a frog"], [3, 3, 2**64 - 1, 9, 0, 3]
    together = draw_prompts(model, prompts, seeds, request)
    for image, prompt, seed in zip(together, prompts, seeds, strict=True):
        alone = draw(model, replace(request, prompt=prompt, seed=seed))[0]
        apart = np.abs(np.asarray(alone, dtype=int) - np.asarray(image, dtype=int))
        assert apart.mean() <= 0.5 and apart.max() <= 8
        assert image_metadata(image) == {}
    assert max_pixel_difference(together[0], together[1]) > 50 and max_pixel_difference(together[0], together[2]) > 50
    assert draw_prompts(model, [], []) == []
    with pytest.raises(InputError, match="one seed for each"):
        draw_prompts(model, ["a frog"], [1, 2])


def test_many_prompts_are_encoded_once_each_and_share_the_calls() -> None:
    model = gray_model()
    grays = draw_prompts(model, ["0.25", "0.5", "0.25", "-0.5"], [0, 1, 2, 3])
    assert [image.getpixel((0, 0))[0] for image in grays] == [143, 159, 143, 96]
    assert model.text_encoder.calls == model.network.prepare_calls == 3
    assert model.network.batch_sizes == [4] * 5


def test_plain_prompts_are_drawn_as_without_a_prompt_language() -> None:
    """Bit for bit, against the few lines that draw without one; also prompts whose syntax changes nothing."""
    model = random_model()
    for request in (
        Request("a frog, on stilts: x", "a pizza", seed=3, count=2),
        Request("two red frogs", guidance_scale=1.0),
    ):
        resolved = resolve(model, request)
        texts = [resolved.prompt, resolved.negative_prompt] if resolved.guidance_scale != 1 else [resolved.prompt]
        count = resolved.count
        noise = noise_from_seeds(range(resolved.seed, resolved.seed + count), (3, 16, 16))
        with torch.no_grad():
            conditionings = []
            for text in texts:
                one = model.denoiser.prepare(model.text_encoder(model.tokenizer.encode([text])))
                conditionings.append(map_fields(one, lambda field, count=count: field.expand(count, *field.shape[1:])))
            plain = clamp_denoised(
                build_guided_denoise(model.denoiser, conditionings, classifier_free_guidance(resolved.guidance_scale)),
                *model.autoencoder.latent_bounds,
            )
            times = timesteps(resolved.timestep_spacing, model.denoiser.schedule, resolved.steps)
            *_, before = SAMPLERS[resolved.sampler](plain, model.denoiser.schedule, times, noise(-1, 0), noise)
        assert torch.equal(last(model, request).x, before.x)
        for same in ("({}:1)", "[{}|{}]", "[{}::1.0]", "[x:{}:0]", "[x:{}:0.0]", "[{}:x:1.0]", "hybrid({}, x, 0)"):
            if "hybrid" not in same or "," not in request.prompt:
                again = replace(request, prompt=same.replace("{}", request.prompt.replace(":", "\\:")))
                assert torch.equal(last(model, again).x, before.x), same


def test_and_not_and_hybrids_are_sums_of_predictions_in_one_call() -> None:
    model = gray_model()
    for prompt, scale, gray, rows in (
        ("0.4 AND 0.2", 1.0, 0.4 + 0.2 - 0.1, 3),
        ("0.4 AND 0.2", 2.0, 0.1 + 2 * (0.3 + 0.1), 3),
        ("0.4 AND 0.2 :0.5 NOT 0.3", 2.0, 0.1 + 2 * (0.3 + 0.05 - 0.2), 4),
        ("NOT 0.3 :0.25", 2.0, 0.1 - 0.5 * 0.2, 2),
        ("hybrid(0.4, 0.2, 0.25, guesses)", 1.0, 0.35, 2),
        ("hybrid(0.4, 0.2, 0.25, guesses)", 2.0, 0.6, 3),
        ("hybrid(0.4, 0.2, 0.25, embeddings)", 2.0, 0.6, 2),
    ):
        model.network.batch_sizes.clear()
        found = last(model, Request(prompt, negative_prompt="0.1", guidance_scale=scale))
        assert torch.allclose(found.x, torch.full_like(found.x, gray), atol=1e-6), prompt
        assert model.network.batch_sizes == [rows] * 5
    found = last(
        model, Request("0.4", negative_prompt="0.1 AND 0.2 :2", guidance_scale=2.0)
    )  # away from two things, from nothing at 0
    assert torch.allclose(found.x, torch.full_like(found.x, 0.3), atol=1e-6)


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpmpp_sde", "unipc"])
def test_the_conditioning_depends_on_the_time_alone(sampler: str) -> None:
    """Each call of the network, a sampler's own in the middle of a step too, sees the prompt of the step it lies in."""
    model, seen = gray_model(), []
    model.denoiser.network.forward = lambda x, c_noise, conditioning: (
        seen.append((c_noise[0], conditioning.keys_values[0, 0, 0])) or x * 0
    )
    list(steps(model, Request("[0.1|[0.2:0.3:3]]", sampler=sampler, steps=6, count=2)))
    prompts = ["0.1", "0.2", "0.1", "0.3", "0.1", "0.3"]
    for t, token in seen:
        step = min(5, math.floor(6 * (1 - float(t)) + 1e-6))
        assert f"{float(token):.1f}" == prompts[step], (float(t), float(token))
    assert len(seen) >= 6 and model.text_encoder.calls == 3 and model.network.prepare_calls == 3


def test_prompts_of_many_kinds_are_drawn_together() -> None:
    model, request = random_model(), Request(guidance_scale=2.0, steps=3)
    prompts = [
        "a (frog:1.4)",
        "a frog AND a rabbit",
        "[a frog|a pizza]",
        "a pizza AND a frog",
        "a BREAK frog",
        "x NOT y",
    ]
    model.network.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    calls: list[int] = []
    together = draw_prompts(model, prompts, range(6), request)
    assert calls == [6] * 3 + [6] * 3 + [3] * 3  # three rows of one prediction, two of two, one with a NOT
    for image, prompt, seed in zip(together, prompts, range(6), strict=True):
        alone = draw(model, replace(request, prompt=prompt, seed=seed))[0]
        assert max_pixel_difference(alone, image) <= 8
    assert len({image.tobytes() for image in together}) == 6


def test_weights_words_and_guidance_matter() -> None:
    model = random_model()
    base = Request("a frog on stilts", seed=1, guidance_scale=4.0, steps=3)
    others = [replace(base, prompt=prompt) for prompt in (
        "a (frog:1.4) on stilts", "a [frog] on stilts", "a frog BREAK stilts", "a frog AND stilts", "a frog NOT stilts",
        "a [frog:rabbit:0.5] on stilts", "a [frog|rabbit] on stilts", "hybrid(frog, rabbit, 0.5, switch)",
        "hybrid(frog, rabbit, 0.5, embeddings)", "hybrid(frog, rabbit, 0.5, guesses)", "hybrid(frog, rabbit, turns)",
    )]  # fmt: skip
    others += [
        replace(base, guidance_method="apg"),
        replace(base, guidance_rescale=0.5),
        replace(base, guidance_interval=(0.3, 0.6)),
    ]
    drawn = {draw(model, request)[0].tobytes() for request in (base, *others)}
    assert len(drawn) == 1 + len(others)


def weaker_model() -> Model:
    model = random_model()
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.mul_(0.9)
    return model


def test_a_guide_model_is_autoguidance_and_goes_into_the_metadata() -> None:
    model, guide = random_model(), weaker_model()
    request = Request("a frog AND a pizza", seed=2, count=2, guidance_scale=2.5, guide_model=guide)
    guided = last(model, request)
    assert torch.equal(
        last(model, replace(request, guide_model=model)).x,
        last(model, replace(request, guide_model=None, guidance_scale=1.0)).x,
    )
    assert not torch.equal(guided.x, last(model, replace(request, guide_model=None)).x)
    metadata = image_metadata(draw(model, request)[0])
    assert metadata["guide_model"] == {"name": "tiny", "hash": guide.hash} != metadata["model"]
    again, place = request_from_metadata(metadata)
    assert place == 0 and resolve(model, replace(again, guide_model=guide)) == resolve(model, request)
    assert "guide_model" not in image_metadata(draw(model, replace(request, guide_model=None, steps=1))[0])
    guide.denoiser.schedule = VESchedule()
    with pytest.raises(InputError, match="another schedule or in another latent space"):
        resolve(model, request)
    other = random_model()
    other.autoencoder = PixelAutoencoder(PixelAutoencoderConfig())
    with pytest.raises(InputError, match="another schedule or in another latent space"):
        resolve(model, replace(request, guide_model=other))
    with pytest.raises(InputError, match="NOT"):
        resolve(model, replace(request, guide_model=model, negative_prompt="x"))


def test_guidance_goes_into_the_metadata() -> None:
    model = random_model(steps=2)
    request = Request("x", guidance_method="apg", guidance_rescale=0.5, guidance_interval=(0.25, 1))
    metadata = image_metadata(draw(model, request)[0])
    assert (metadata["guidance_method"], metadata["guidance_rescale"], metadata["guidance_interval"]) == (
        "apg",
        0.5,
        [0.25, 1.0],
    )
    assert resolve(model, request_from_metadata(metadata)[0]) == resolve(model, request)
    plain = set(image_metadata(draw(model, Request("x"))[0]))
    assert not {"guidance_method", "guidance_rescale", "guidance_interval", "guide_model"} & plain
    with pytest.raises(InputError):
        resolve(model, request_from_metadata({**metadata, "guidance_interval": "ab"})[0])


def test_prompts_scale_and_seed_matter() -> None:
    model = random_model()
    plain = Request("a frog", seed=1)
    for other in (
        replace(plain, prompt="two red rabbits"),
        replace(plain, negative_prompt="a pizza"),
        replace(plain, guidance_scale=1.0),
        replace(plain, seed=2),
        replace(plain, steps=5),
        replace(plain, timestep_spacing="karras"),
    ):
        assert max_pixel_difference(draw(model, plain)[0], draw(model, other)[0]) > 0, other


def test_size_is_width_then_height() -> None:
    assert draw(random_model(), Request(size=(32, 16)))[0].size == (32, 16)
    assert draw(random_model(), Request(size=24))[0].size == (24, 24)


def test_large_requests_are_cut_and_lose_no_seed() -> None:
    batches = split_into_batches(resolve(random_model(), Request(seed=2**64 - 1000, count=1000)))
    assert [seed for batch in batches for seed in batch.seeds()[0]] == list(range(2**64 - 1000, 2**64))
    assert all(batch.count * 16 * 16 <= 1 << 16 for batch in batches) and len(batches) == 4
    assert [one.count for one in split_into_batches(resolve(random_model(), Request(count=2, size=512)))] == [1, 1]


def test_a_step_leaves_the_consumers_gradients_on() -> None:
    for step in steps(random_model(), Request()):
        assert torch.is_grad_enabled() and not step.x.requires_grad


def test_the_random_state_is_left_alone() -> None:
    model = random_model()
    before = torch.get_rng_state()
    draw(model, Request(sampler="euler_ancestral"))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("bad_request", "message"),
    [
        (Request(steps=0), "steps 0: must be a whole number from 1"),
        (Request(steps=2.5), "steps 2.5"),  # type: ignore[arg-type]
        (Request(steps=True), "steps True"),
        (Request(count=0), "count 0"),
        (Request(seed=-1), "seed -1"),
        (Request(seed=2**64), "seed 18446744073709551616"),
        (Request(seed=2**64 - 1, count=2), "seeds end"),
        (Request(sampler="magic"), "choose one of ddpm, ddim"),
        (Request(timestep_spacing="magic"), "choose one of uniform"),
        (Request(guidance_scale=float("nan")), "guidance_scale nan"),
        (Request(guidance_scale="3"), "guidance_scale '3'"),  # type: ignore[arg-type]
        (Request(size=30), "the nearest that fits is 32x32"),
        (Request(size=(33, 16)), "the nearest that fits is 32x16"),
        (Request(size=(0, -5)), "the nearest that fits is 16x16"),
        (Request(size=(16, 16, 3)), "a pair"),  # type: ignore[arg-type]
        (Request(size=1 << 20), "smaller"),
        (Request(guidance_method="magic"), "choose one of cfg, apg"),
        (Request(guidance_rescale=1.5), "guidance_rescale 1.5"),
        (Request(guidance_rescale=True), "guidance_rescale True"),
        (Request(guidance_interval=(0.8, 0.2)), "the lower time comes first"),
        (Request(guidance_interval=(0.2,)), "two times"),  # type: ignore[arg-type]
        (Request(guidance_interval=(0.2, 2)), "guidance_interval 2"),
        (Request(prompt="a (frog"), 'prompt: unclosed "("'),
        (Request(negative_prompt="a (frog"), 'negative_prompt: unclosed "("'),
        (Request(prompt="a \udcff frog"), "Unicode"),
        (Request(prompt=None), "prompt"),  # type: ignore[arg-type]
        (Request(negative_prompt="x" * 200_000), "negative_prompt: must be text"),
    ],
)
def test_requests_that_cannot_be_drawn(bad_request: Request, message: str) -> None:
    with pytest.raises(InputError) as caught:
        steps(random_model(), bad_request)  # at once, not at the first step
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_metadata_give_their_request_again() -> None:
    model = random_model()
    request = Request(
        "ein Frösch 🐸",
        negative_prompt="x",
        seed=2**63,
        count=3,
        steps=3,
        sampler="heun",
        guidance_scale=2,
        size=(16, 32),
    )
    for place, image in enumerate(draw(model, request)):
        again, found = request_from_metadata(image_metadata(image))
        assert (resolve(model, again), found) == (resolve(model, request), place)
        assert image_metadata(image)["seed"] == 2**63 + place
        assert image_metadata(image)["model"] == {"name": "tiny", "hash": model.hash}


@pytest.mark.parametrize("broken", [{"batch": 3}, {"size": None}, {"seed": "x"}, {"seed": 7}, {"batch": None}])
def test_broken_metadata(broken: dict) -> None:
    whole = image_metadata(draw(random_model(steps=1), Request())[0])
    with pytest.raises(InputError):
        request_from_metadata({**whole, **broken})


def test_a_drawing_starts_at_the_noise_of_its_seed_at_the_schedules_sigma() -> None:
    model = gray_model()
    model.denoiser.schedule = VESchedule(sigma_max=40.0)
    first = next(steps(model, Request("0.5", seed=9, count=2)))
    assert torch.equal(first.x, 40 * noise_from_seeds([9, 10], (3, 16, 16))(-1, 0))


def test_the_film_shows_the_law() -> None:
    """With a denoiser that knows x, the predicted noise is the one it started from at every time, and the denoised
    image never changes."""
    model, film = gray_model(), FilmStrip(gray_model(), 5)
    for step in steps(model, Request("0.5", seed=4, count=2)):
        film.record(step)
    strip = film.render(1)

    def frame(row: int, column: int) -> np.ndarray:
        x, y = strip.width - (6 - column) * 102, strip.height - (3 - row) * 102
        return np.asarray(strip)[y : y + 96, x : x + 96].astype(int)

    eps = np.asarray(
        decode_to_images(model, noise_from_seeds([5], (3, 16, 16))(-1, 0))[0].resize((96, 96), Image.Resampling.NEAREST)
    )
    gray = decode_to_images(model, torch.full((1, 3, 1, 1), 0.5))[0].getpixel((0, 0))
    assert (frame(0, 0) == eps).all()
    assert (frame(0, 5) == gray).all()
    for column in range(5):
        assert abs(frame(1, column) - eps).max() <= 1
    for column in range(6):
        assert (frame(2, column) == gray).all()


def test_a_film_has_few_columns_and_the_ends() -> None:
    film, request = FilmStrip(random_model(), 30), Request(steps=30)
    every = list(steps(random_model(), request))
    for step in every:
        film.record(step)
    assert len(film.recorded) == MAX_COLUMNS
    assert film.recorded[0] is every[0] and film.recorded[-1] is every[-1]
