"""`unspeckle train --lora`: from a Stable Diffusion and a folder to RUN/lora.safetensors, or on from where it was."""

import json
import time
from dataclasses import replace
from itertools import repeat

import torch
from rich.console import Console

from unspeckle import configuration, quantities
from unspeckle.commands.draw import resolve_device
from unspeckle.corpus import Corpus, read
from unspeckle.errors import InputError, prefix_with_option
from unspeckle.formats.lora.layer_names import LAYOUTS
from unspeckle.formats.stable_diffusion.add_ons import stable
from unspeckle.formats.stable_diffusion.model import Foreign
from unspeckle.model import load
from unspeckle.networks.unet import UNetConfig
from unspeckle.networks.vae import Vae
from unspeckle.schedule import SCHEDULES
from unspeckle.text.clip import ClipTexts
from unspeckle.training import cached_latents, checkpoint, measurement, memory
from unspeckle.training import plan as plans
from unspeckle.training.check_options import PRECISIONS, check_common, fits, learning_rate
from unspeckle.training.command import DONE, alone, follow, listen, usable
from unspeckle.training.inputs import decoded
from unspeckle.training.lora_task import FILE, HELD_OUT, PROMPTS, STEPS, Tuner, Tuning, hired
from unspeckle.training.options import LoraOptions
from unspeckle.training.plan import LoraPlan
from unspeckle.training.planner import Say, finished
from unspeckle.training.progress_view import table

BATCH = 4
LEARNING_RATE = 1e-4
CLOSING = HELD_OUT * 8 / 3 + PROMPTS * STEPS * 2 / 3  # examination and samples at the end, in training pictures
MEASURED = 4.0  # seconds of steps that say how fast it is
MOST = 256  # of the rank


def run(options: LoraOptions) -> int:
    """Do what was asked; returns the exit code. InputError where options, folder or model do not allow it."""
    started = time.monotonic()
    console = Console(stderr=True, quiet=options.quiet)
    plan = plans.load(options.out, LoraPlan)
    if plan is None:
        _check(options)
    else:
        plans.refuse_changes(plan, options)
        if (options.out / FILE).exists() and not options.plan_only:
            console.print(
                f"this run is finished; draw with --lora {options.out / FILE}", highlight=False, soft_wrap=True
            )
            print((options.out / FILE).absolute())
            return DONE
    usable(options, plan)
    listing = read(options.folder, options.captions, options.caption, options.template)
    base = _base(options)
    size = plan.size if plan else base.card.size if options.size is None else quantities.parse_size(options.size)
    config = base.network.config
    assert isinstance(config, UNetConfig)
    fits(size, config, base.autoencoder.factor)
    with alone(options):
        begun = plan is not None
        for line in () if begun else listing.describe():
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        corpus = decoded(listing, size, console)
        if plan is None:
            plan = _choose(options, base, corpus, started, lambda line: console.print(line, highlight=False))
        elif plan.origin != base.hash or plan.corpus != corpus.fingerprint:
            changed = options.from_model if plan.origin != base.hash else options.folder
            raise InputError(f"{changed}: changed since {options.out} began; give another --out")
        console.print(table(plan, checkpoint.steps_done(options.out / "checkpoints") if begun else 0))
        if options.plan_only:
            if options.json:
                print(json.dumps(configuration.to_json(plan)))
            return DONE
        if not begun:
            plan.save(options.out)
        if plan.threads != torch.get_num_threads() and plan.device == "cpu":
            torch.set_num_threads(plan.threads)
        base = hired(base, plan)
        latents = cached_latents.kept(options.out, plan, corpus, base.autoencoder, console)
        course = Tuning(plan, options.out, base, corpus, latents, _said(options, plan))
        return follow(course, options, console, listen())


def _check(options: LoraOptions) -> None:
    """InputError for choices that cannot be, before any long work."""
    check_common(options)
    if options.out.resolve().is_relative_to(options.folder.resolve()):
        raise InputError(
            f"--out {options.out}: lies inside {options.folder}, whose pictures it would join; choose another"
        )
    if not 1 <= options.rank <= MOST:
        raise InputError(f"--rank {options.rank}: must lie between 1 and {MOST}; 8 is usual")
    if options.layout not in LAYOUTS:
        raise InputError(f"--layout {options.layout}: unknown; choose {' or '.join(LAYOUTS)}")
    learning_rate(options.learning_rate, "1e-4 is usual")


def _base(options: LoraOptions) -> Foreign:
    """The Stable Diffusion that stays as it is. InputError where adapters for it are not learnt here."""
    with prefix_with_option("--from", options.from_model):
        found = load(options.from_model, prediction=options.prediction, trust_pickle=options.trust_pickle)
    base = stable(found, "--lora")
    config = base.network.config
    assert isinstance(config, UNetConfig)
    if config.beside or config.guidance_width:
        kind = "an inpainting model" if config.beside else "a consistency model (LCM)"
        raise InputError(f"--from {options.from_model}: is {kind}; fine-tune the plain one, its LoRA fits this one too")
    base.hash  # noqa: B018  # kept from here on, while the weights lie in another precision
    return base


def _choose(options: LoraOptions, base: Foreign, corpus: Corpus, started: float, say: Say) -> LoraPlan:
    """Measure, then decide all that was left open."""
    if options.device is None or options.precision is None:
        say("measuring this machine …")
    wanted = None if options.device is None else resolve_device(options.device)
    device, precision = measurement.device_and_precision(wanted, PRECISIONS.get(options.precision or ""))
    network, text, autoencoder, denoiser = base.network.config, base.text_encoder, base.autoencoder, base.denoiser
    assert isinstance(network, UNetConfig) and isinstance(text, ClipTexts) and isinstance(autoencoder, Vae)
    plan = LoraPlan(
        asked=plans.asked(options), corpus=corpus.fingerprint, size=corpus.training.size,
        preset=f"a LoRA of rank {options.rank} for {base.card.name}", network=network, text=text.config, steps=10**6,
        batch=options.batch or BATCH, seed=options.seed or 0, device=device, precision=precision, compile=False,
        threads=torch.get_num_threads(), parameters=0, rate=0, seconds=0, memory=0, disk=0,
        autoencoder=autoencoder.config, schedule=configuration.kind_to_json(SCHEDULES, denoiser.schedule),
        prediction=denoiser.prediction, clock=str(denoiser.clock), learning_rate=options.learning_rate or LEARNING_RATE,
        averages=(), origin=base.hash, rank=options.rank, words=options.words, layout=options.layout,
        scale=base.card.guidance_scale,
    )  # fmt: skip
    base = hired(base, plan)
    plan = _counted(plan, base)
    plan = memory.fitted(plan, options.batch is not None, say)
    before = time.monotonic()
    some = min(plan.batch, len(corpus.training))
    x = cached_latents.encoded(corpus.training, base.autoencoder, range(some))
    encoding = (time.monotonic() - before) / some * (len(corpus.training) + len(corpus.heldout))
    x = x[torch.arange(plan.batch) % some]
    captions = corpus.training.captions(torch.arange(plan.batch) % some)
    sample = cached_latents.LatentBatch(x, captions, torch.arange(plan.batch))
    made: list[Tuner] = []

    def learns(plan: LoraPlan) -> Tuner:
        made.append(Tuner(plan, base))
        return made[-1]

    measured = measurement.steps(learns, plan, repeat(sample), MEASURED)
    for tuner in made:
        tuner.leave()
    return finished(plan, measured, options, started - encoding, CLOSING)


def _counted(plan: LoraPlan, base: Foreign) -> LoraPlan:
    """The plan with the number of parameters that learn."""
    tuner = Tuner(plan, base)
    tuner.leave()
    return replace(plan, parameters=sum(p.numel() for p in tuner.parameters()))


def _said(options: LoraOptions, plan: LoraPlan) -> dict[str, str]:
    """What the file's metadata tell besides, without paths."""
    given = {**plan.asked, "from_model": "MODEL"}
    given = {name: value for name, value in given.items() if (name, value) != ("captions", "auto")}
    flags = filter(None, (plans.flag(name, value) for name, value in given.items()))
    return {
        "modelspec.title": options.out.absolute().name,
        "ss_network_alpha": str(plan.rank),
        **({"modelspec.license": options.licence} if options.licence else {}),
        "unspeckle.recipe": " ".join(["unspeckle train FOLDER --lora --out RUN", *flags]),
    }
