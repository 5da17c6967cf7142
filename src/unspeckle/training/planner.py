"""From a person's options and a measured machine to a plan."""

import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from unspeckle.configuration import kind_to_json
from unspeckle.corpus import Batch, Corpus, batches
from unspeckle.errors import InputError
from unspeckle.model import Model
from unspeckle.networks import Config
from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.networks.latent_autoencoder import LatentConfig, Latents
from unspeckle.networks.transformer import TransformerConfig
from unspeckle.networks.unet import UNetConfig
from unspeckle.presets import LADDER, PRESETS, Preset, preset
from unspeckle.schedule import SCHEDULES
from unspeckle.text.text_encoder import TextConfig
from unspeckle.text.tokenizer import Tokenizer
from unspeckle.training import encoded_corpus, measurement, memory
from unspeckle.training.check_options import PRECISIONS, check, fits
from unspeckle.training.cost import ALIKE, Cost, PictureCost, word_steps
from unspeckle.training.master_weights import fresh
from unspeckle.training.options import Options, TrainOptions
from unspeckle.training.plan import AnyPlan, Plan, asked

PICTURES_A_PARAMETER = 0.02  # to learn from, before a larger network pays: of few trials, see docs/recipe.md
COMPILES_AFTER = {"cpu": 3600.0, "cuda": 600.0}  # seconds of training below which it is not tried: see docs/recipe.md
RESERVE = 0.05  # share of the time for held-out losses, samples and checkpoints
LATENTS_AFTER, LATENTS_AFTER_PICTURES = 600.0, 100_000  # seconds or pictures from which latents pay
LATENT_SHARE = 0.2  # of the network's steps, which the autoencoder learns for beforehand
PIXEL_TIMES, LATENT_TIMES = (0.3, 1.0), (0.8, 1.2)  # of few and smooth numbers, words tell at more noise
MIRRORS_FROM = 4.0  # times that a picture is seen, from which mirrored ones are as good as new ones
BALANCE = 0.5  # of captions that are the names of folders
CLOSING = 1300.0  # forward passes at the end, in training pictures: choosing an average, the last samples

Say = Callable[[str], None]


def choose(
    options: TrainOptions, size: tuple[int, int], corpus: Corpus, tokenizer: Tokenizer, autoencoder: Autoencoder,
    origin: Model | None, started: float, say: Say,
) -> Plan:  # fmt: skip
    """Measure, then decide all that was left open. `started` is the time.monotonic() from which `--for` counts."""
    check(options)
    if options.device is None or options.precision is None:
        say("measuring this machine …")
    device, precision = measurement.device_and_precision(options.device, PRECISIONS.get(options.precision or ""))
    seed = 0 if options.seed is None else options.seed
    batch = options.batch or (256 if device.startswith("cuda") else 32)

    def data(plan: Plan) -> Iterator[Batch]:
        return batches(corpus.training, plan.batch, seed=seed, start=0)

    learns = isinstance(autoencoder, Latents) and origin is None

    def plan_for(name: str, say: Say) -> Plan:
        network, text = _sizes(PRESETS.get(name), size, tokenizer, autoencoder, origin)
        fits(size, network, autoencoder.factor)
        plan = Plan(
            asked=asked(options), corpus=corpus.fingerprint, size=size, preset=name, network=network, text=text,
            steps=10**6, batch=batch, seed=seed, device=device, precision=precision, compile=False,
            threads=torch.get_num_threads(), parameters=0, rate=0, seconds=0, memory=0, disk=0,
            autoencoder=autoencoder.config, latent_steps=int(learns),
            **_learning(options, precision), **_kind(origin),
            times=LATENT_TIMES if isinstance(autoencoder, Latents) else PIXEL_TIMES,
        )  # fmt: skip
        with torch.device("meta"):
            plan = replace(plan, parameters=sum(p.numel() for p in fresh(plan).parameters()))
        return memory.fitted(plan, options.batch is not None, say)

    def rate(name: str) -> float:
        plan = plan_for(name, lambda line: None)
        return measurement.training(plan, data(plan), tokenizer, autoencoder, 0.0).rate

    if origin is not None:
        name = "as --from"
    elif options.preset is not None:
        name = preset(options.preset).name
    else:
        name = _fitting(options, size, batch, tokenizer, autoencoder, rate)
    plan = plan_for(name, say)
    measured = measurement.training(plan, data(plan), tokenizer, autoencoder, 4.0)
    wish = options.seconds or (options.pictures or (options.steps or 0) * plan.batch) / measured.rate
    if _compiles(options, plan.device, wish, say):
        plan, measured = _compiled(plan, measured, data(plan), tokenizer, autoencoder, say, options.compile is True)
    drafts = origin is None and plan.network.draft > 0
    cost = _cost(plan, measured, data(plan), tokenizer, autoencoder, drafts)
    if learns:
        learnt = measurement.latents(plan, data(plan), 3.0)
        cost = cost._replace(latents=LATENT_SHARE / learnt.rate)
        measured = measured._replace(memory=max(measured.memory, learnt.memory))

    def planned(each: PictureCost, before: float) -> Plan:
        rated = measured._replace(rate=1 / each.network)
        made = finished(plan, rated, options, started, CLOSING, each.of_steps(), before)
        often = made.pictures / max(1, len(corpus.training))
        return replace(
            made,
            mirror=often >= MIRRORS_FROM if options.mirror is None else options.mirror,
            balance=usual_balance(corpus) if options.balance is None else options.balance,
            latent_steps=math.ceil(LATENT_SHARE * made.steps) if learns else 0,
            word_steps=word_steps(made.steps) if drafts else 0,
        )

    made = planned(cost, 0.0)
    once = len(corpus.training) * (2 if made.mirror else 1)  # pictures, mirrored ones among them
    held = once * encoded_corpus.size(corpus.training, autoencoder) // len(corpus.training)
    if not (isinstance(autoencoder, Latents) and encoded_corpus.fits(made, once, held)):
        return made
    alone, few = measurement.encoding(plan, corpus.training, autoencoder)
    kept = batches(few, plan.batch, seed=seed, flips=False)
    quick = _cost(
        plan, measurement.training(plan, kept, tokenizer, autoencoder, 3.0), kept, tokenizer, autoencoder, drafts
    )
    if not encoded_corpus.pays(made.pictures, once, alone, cost.network - quick.network):
        return made
    again = planned(quick._replace(latents=cost.latents), once * alone)
    return replace(again, mirror=made.mirror, encode_once=True, memory=again.memory + held)


def _cost(
    plan: Plan, measured: measurement.Measured, data: Iterator[Batch], tokenizer: Tokenizer, autoencoder: Autoencoder,
    drafts: bool,
) -> PictureCost:  # fmt: skip
    """What a picture takes as measured, and what it takes where the words learn alone, if they do."""
    cost = PictureCost(1 / measured.rate)
    if not drafts:
        return cost
    words = replace(plan, word_steps=plan.steps, compile=False)
    return cost._replace(words=1 / measurement.training(words, data, tokenizer, autoencoder, 2.0).rate)


def usual_balance(corpus: Corpus) -> float:
    """Where folders are classes, as many as there happen to be of each: half-way to all alike."""
    return BALANCE if set(corpus.summary["sources"]) == {"folders"} else 0.0


def _learning(options: TrainOptions, precision: str) -> dict[str, Any]:
    """The optimiser and its rates. The rate asked for is Muon's where that is the optimiser; what AdamW takes beside
    it keeps its share of that."""
    optimizer = options.optimizer or ("muon" if precision == "bfloat16" else "adamw")
    usual = Plan.muon_rate if optimizer == "muon" else Plan.learning_rate
    share = (options.learning_rate or usual) / usual
    return {
        "optimizer": optimizer,
        "learning_rate": share * Plan.learning_rate,
        "muon_rate": share * Plan.muon_rate,
    }


def _kind(origin: Model | None) -> dict[str, Any]:
    """What the origin's network predicts, on which schedule: it goes on so."""
    if origin is None:
        return {}
    denoiser = origin.denoiser
    return {
        "schedule": kind_to_json(SCHEDULES, denoiser.schedule),
        "prediction": denoiser.prediction,
        "clock": denoiser.clock,
    }


def space(options: TrainOptions, size: tuple[int, int]) -> str:
    """Where to denoise, "pixels" or "latents": where the person said nothing, in latents if there is time to learn them
    and the pictures are large enough."""
    if options.space is not None:
        return options.space
    long = (options.seconds or 0) >= LATENTS_AFTER or (options.pictures or 0) >= LATENTS_AFTER_PICTURES
    return "latents" if long and min(size) >= 64 and _latents_fit(options.preset, size) else "pixels"


def _latents_fit(name: str | None, size: tuple[int, int]) -> bool:
    """Whether the preset, or one of those to choose from, can denoise the latents of such pictures."""
    factor, (width, height) = LatentConfig().factor, size
    sized = [preset(one).at((width // factor, height // factor)) for one in ([name] if name else LADDER)]
    return any(math.gcd(*size) % (factor * network.factor) == 0 for network in sized)


def network_for(chosen: Preset, size: tuple[int, int], autoencoder: Autoencoder) -> Config:
    """The preset's network for the latents of pictures of that size."""
    width, height = size
    return chosen.at((width // autoencoder.factor, height // autoencoder.factor), autoencoder.channels)


def _sizes(
    chosen: Preset | None, size: tuple[int, int], tokenizer: Tokenizer, autoencoder: Autoencoder, origin: Model | None
) -> tuple[Config, TextConfig]:
    if origin is not None:
        made = origin.network.config, origin.text_encoder.config
        assert isinstance(made[0], UNetConfig | TransformerConfig) and isinstance(made[1], TextConfig)
        return made[0], made[1]
    assert chosen is not None
    network = network_for(chosen, size, autoencoder)
    text = TextConfig(tokenizer.size, tokenizer.length, network.text_width, chosen.text_layers)
    return network, text


def _fitting(
    options: TrainOptions, size: tuple[int, int], batch: int, tokenizer: Tokenizer, autoencoder: Autoencoder,
    rate: Callable[[str], float],
) -> str:  # fmt: skip
    """The largest preset that will see PICTURES_A_PARAMETER pictures for each of its parameters."""
    measured_name = "tiny"
    sized = {name: network_for(PRESETS[name], size, autoencoder) for name in LADDER}
    unit, extent = autoencoder.factor, (size[0] // autoencoder.factor, size[1] // autoencoder.factor)
    names = [name for name in LADDER if all(side % (unit * sized[name].factor) == 0 for side in size)]
    if not names:
        fits(size, sized[measured_name], unit)
    cost = {n: measurement.flops(sized[n], extent, tokenizer.length) for n in {*names, measured_name}}
    base = rate(measured_name) if options.seconds else 0.0
    best = names[0]
    for name in names:
        pictures = options.pictures or (options.steps or 0) * batch
        if options.seconds:  # larger networks run nearer to the machine's peak
            pictures = round(options.seconds * base * (cost[measured_name] / cost[name]) ** 0.85)
        if pictures >= PICTURES_A_PARAMETER * PRESETS[name].millions * 1e6:
            best = name
    return best


def _compiles(options: TrainOptions, device: str, seconds: float, say: Say) -> bool:
    after = COMPILES_AFTER.get(device.split(":")[0], COMPILES_AFTER["cuda"])
    if options.compile is False or (options.compile is None and seconds < after):
        return False
    if not measurement.compiler():
        say("no C++ compiler found, so torch.compile is not used (on Debian: apt-get install g++)")
        return False
    return True


def _compiled(
    plan: Plan, eager: measurement.Measured, data: Iterator[Batch], tokenizer: Tokenizer, autoencoder: Autoencoder,
    say: Say, forced: bool,
) -> tuple[Plan, measurement.Measured]:  # fmt: skip
    """The plan with compiled steps if these are the faster ones, measured."""
    say("compiling the network, to see whether it pays …")
    try:
        fast = measurement.training(replace(plan, compile=True), data, tokenizer, autoencoder, 4.0)
    except Exception as error:  # whatever a compiler can do wrong
        say(f"torch.compile failed ({type(error).__name__}), so it is not used")
        return plan, eager
    pays = forced or fast.rate > 1.05 * eager.rate
    say(f"compiled {fast.rate:.1f} pictures/s, eager {eager.rate:.1f}: {'compiled' if pays else 'eager'} it is")
    return (replace(plan, compile=True), fast) if pays else (plan, eager)


def finished(
    plan: AnyPlan, measured: measurement.Measured, options: Options, started: float, closing: float, cost: Cost = ALIKE,
    before: float = 0.0,
) -> AnyPlan:  # fmt: skip
    """The plan with its number of steps. closing: the work after the last one, in training pictures; cost: what the
    steps take; before: seconds of other work."""
    plan = replace(plan, work=measurement.work(plan), peak=measurement.peak(plan.device, plan.precision))
    spent = time.monotonic() - started + before
    if options.steps:
        steps = options.steps
    elif options.pictures:
        steps = -(-options.pictures // plan.batch)
    else:
        assert options.seconds is not None
        again = 0.3 * measured.ready  # what was compiled is found again, but not for nothing
        left = (options.seconds - spent - min(closing / measured.rate, 0.2 * options.seconds) - again) * (1 - RESERVE)
        if left <= 0:
            raise InputError(f"--for {options.seconds:g}s: was used up by preparing; give more time, or --steps")
        steps = cost.steps(left * measured.rate / plan.batch)
    seconds = options.seconds or spent + cost.of(steps) * plan.batch / measured.rate * (1 + RESERVE)
    disk = _disk(plan)
    room = shutil.disk_usage(_existing(options)).free
    if disk > room:
        raise InputError(
            f"{options.out}: the run needs {disk / 2**20:,.0f} MiB, {room / 2**20:,.0f} MiB are free; "
            "free some, or give an --out elsewhere"
        )
    return replace(
        plan, steps=steps, warmup=max(1, min(200, steps // 20)), rate=measured.rate, seconds=seconds,
        memory=measured.memory, disk=disk, mfu=plan.utilisation(measured.rate),
    )  # fmt: skip


def _disk(plan: Plan) -> int:
    """Bytes of the model and of three checkpoints, a third while it is written, of the network and of an autoencoder
    that learns; one that has learnt is kept once."""
    latent = memory.autoencoder_parameters(plan)
    return 4 * (plan.parameters * (3 * (3 + len(plan.averages)) + 1) + latent * (3 * 3 + 1 if plan.latent_steps else 2))


def _existing(options: Options) -> str:
    path = options.out.absolute()
    while not path.exists():
        path = path.parent
    return str(path)
