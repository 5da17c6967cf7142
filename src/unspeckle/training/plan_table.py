"""A plan as a person reads it, before the first step."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from rich.table import Table
from rich.text import Text

from unspeckle import configuration
from unspeckle.corpus.caption_augmentation import WORDINGS
from unspeckle.networks.autoencoder import PixelAutoencoderConfig
from unspeckle.quantities import format_duration, format_images_per_second
from unspeckle.training.plan import DistillationPlan, LoraPlan, Plan, UnCLIPPlan


def plan_table(plan: Plan, steps_done: int) -> Table:
    """The plan of a new run, or of one that continues after some steps."""
    table = Table.grid(padding=(0, 2))
    for name, value in describe_plan(plan, steps_done).items():
        table.add_row(Text(name, style="bold"), value)
    return table


@dataclass(frozen=True)
class PlanSummary:
    """A plan that a notebook shows as a table."""

    plan: Plan

    def _repr_html_(self) -> str:
        return configuration.to_html(
            f"{format_duration(self.plan.measured.total_seconds)} of training", describe_plan(self.plan)
        )


def describe_plan(plan: Plan, steps_done: int = 0) -> dict[str, str]:
    """What a person wants to know of a plan, by headings."""
    work, measured = plan.work, plan.measured
    # Steps of the text stage take next to no time.
    remaining_share = min(1, (work.steps - steps_done) / max(1, work.steps - work.text_steps))
    seconds = measured.total_seconds * remaining_share
    end = datetime.now() + timedelta(seconds=seconds)
    fields = {
        "computes on": _describe_compute(plan),
        **({"reaches": _describe_mfu(plan)} if measured.peak_flops else {}),
        "network": _describe_network(plan),
        **_describe_parts(plan),
        "denoises": _describe_space(plan),
        "images": _describe_images(plan),
        **({"captions": _describe_captions(plan)} if work.caption_augmentation else {}),
        "optimizer": _describe_optimizer(plan),
        "memory": f"{measured.memory_bytes / 2**30:.1f} GiB at the peak",
        "disk": f"{measured.disk_bytes / 2**20:,.0f} MiB in the run's folder",
        "time": f"{format_duration(seconds)}, until about {end:%H:%M}"
        + (f", from step {steps_done + 1:,}" if steps_done else ""),
    }
    if work.text_steps:
        fields["text"] = f"the text encoder is trained alone in the first {work.text_steps:,} steps, which are short"
    return fields


def format_small_number(value: float) -> str:
    """As people write small numbers: 4e-3."""
    digits, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(digits):g}e{int(exponent)}"


def _describe_compute(plan: Plan) -> str:
    compute, rate = plan.compute, format_images_per_second(plan.measured.images_per_second)
    return f"{compute.device}, {compute.precision}, {'compiled' if compute.compile else 'eager'}, {rate} measured"


def _describe_mfu(plan: Plan) -> str:
    measured = plan.measured
    reached, peak = measured.flops_per_image * measured.images_per_second / 1e12, measured.peak_flops / 1e12
    return f"{reached:.2f} of {peak:.2f} TFLOP/s measured, {measured.mfu:.0%} (MFU)"


def _describe_network(plan: Plan) -> str:
    if isinstance(plan, LoraPlan):
        trains_text_encoder = plan.lora.train_text_encoder
    else:
        trains_text_encoder = not isinstance(plan, DistillationPlan)
    text = " with its text encoder" if trains_text_encoder else ""
    return f"{plan.model.preset}, {plan.measured.parameter_count / 1e6:.1f} M parameters{text}"


def _describe_parts(plan: Plan) -> dict[str, str]:
    """The parts of an unCLIP model, in the order in which they are trained."""
    if not isinstance(plan, UnCLIPPlan):
        return {}
    parts: dict[str, Plan | None] = {"a CLIP": plan.parts.clip, "a prior": plan.parts.prior}
    parts |= {"an upsampler": plan.parts.upsampler, "this decoder": plan}
    texts = [
        f"{name} ({part.measured.parameter_count / 1e6:.1f} M parameters, {part.work.steps:,} steps)"
        for name, part in parts.items()
        if part is not None
    ]
    return {"parts": "; ".join(texts)}


def _describe_space(plan: Plan) -> str:
    autoencoder, (width, height) = plan.model.autoencoder, plan.model.input_size
    if isinstance(autoencoder, PixelAutoencoderConfig):
        return "pixels"
    steps = plan.work.autoencoder_steps
    origin = f"whose autoencoder is trained in {steps:,} steps before" if steps else "of the model that is continued"
    return f"latents of {width}x{height}x{autoencoder.latent_channels}, {origin}"


def _describe_images(plan: Plan) -> str:
    work, (width, height) = plan.work, plan.model.size
    text = f"{width}x{height}, {work.total_images:,} in {work.steps:,} steps of {work.batch_size}"
    # Neither teachers' drawings nor the latents that a LoRA is trained on are mirrored.
    if work.flip and not isinstance(plan, LoraPlan | DistillationPlan):
        text += ", half of them mirrored"
    return text + (", those of rare captions more often" if work.balance else "")


def _describe_captions(plan: Plan) -> str:
    if isinstance(plan, DistillationPlan):
        return "each in one of many wordings, as people type them"
    cost = plan.measured.caption_augmentation_cost
    return (
        f"each in up to {WORDINGS} wordings, as people type them; steps take {cost:.0%} longer for it "
        "(--no-caption-augmentation: as they are)"
    )


def _describe_optimizer(plan: Plan) -> str:
    optimizer = plan.optimizer
    adamw = f"AdamW, learning rate {format_small_number(optimizer.learning_rate)}"
    if optimizer.name != "muon":
        return adamw
    muon = f"Muon, learning rate {format_small_number(optimizer.muon_learning_rate)}"
    return f"{muon}, for matrices and kernels; {adamw}, for the rest"
