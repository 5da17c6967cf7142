"""The loss of a step is the mean of the losses of its examples, whatever captions the batch repeats."""

import pytest
import torch
from torch import Tensor

from tiny_models import CAPTIONS, make_plan
from unspeckle.corpus.batches import Batch
from unspeckle.networks import PixelAutoencoder, PixelAutoencoderConfig
from unspeckle.rng import ExampleRNG
from unspeckle.text.text_encoder import TextEncoderConfig
from unspeckle.text.tokenizer import Tokenizer
from unspeckle.training.measurement import without_learning
from unspeckle.training.text_to_image_updater import TextToImageUpdater, gather_rows, init_modules
from unspeckle.training.trainer import training_step


def make_updater(caption_dropout: float) -> TextToImageUpdater:
    """An updater with a text stage of one step, without layers that are zero."""
    tokenizer = Tokenizer.train(CAPTIONS, vocab_size=120)
    plan = make_plan("nano").with_changes(work={"text_steps": 1}, objective={"caption_dropout": caption_dropout})
    text_width = plan.model.network.text_width
    text_encoder = type(plan.model.text_encoder)(tokenizer.vocab_size, tokenizer.context_length, text_width)
    plan = plan.with_changes(model={"text_encoder": text_encoder})
    modules = init_modules(plan)
    with torch.no_grad():
        for parameter in modules.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return TextToImageUpdater(plan, modules, tokenizer, PixelAutoencoder(PixelAutoencoderConfig()))


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("caption_dropout", [0.0, 0.5])
def test_the_loss_of_a_batch_is_the_mean_of_its_examples(caption_dropout: float, step: int) -> None:
    """Step 1 is of the text stage, step 2 of the network; two captions are alike, one is empty."""
    updater = make_updater(caption_dropout)
    images = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    captions = [CAPTIONS[1], CAPTIONS[0], "", CAPTIONS[1], CAPTIONS[2]]
    example_indices = torch.arange(7, 12)
    dropped = updater.objective.dropped_captions(ExampleRNG(updater.plan.work.seed, example_indices))
    assert caption_dropout == 0 or 0 < int(dropped.sum()) < 5

    encoded_counts: list[int] = []

    def count_captions(module: torch.nn.Module, args: tuple[Tensor]) -> None:
        encoded_counts.append(len(args[0]))

    updater.compute_modules.text_encoder.register_forward_pre_hook(count_captions)

    def loss_of(rows: list[int]) -> float:
        batch = Batch(images[rows], [captions[i] for i in rows], example_indices[rows])
        loss = updater.loss(batch, step) * len(rows) / 5
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    total = loss_of([0, 1, 2, 3, 4])
    # Each caption once, and the empty one
    assert encoded_counts == [4]
    gradients = [parameter.grad for parameter in updater.weights.parameters()]
    updater.weights.zero_grad()
    assert sum(loss_of([i]) for i in range(5)) == pytest.approx(total, rel=1e-5)
    for gradient, parameter in zip(gradients, updater.weights.parameters(), strict=True):
        assert (gradient is None) == (parameter.grad is None)
        if gradient is not None and parameter.grad is not None:
            atol = 1e-5 * float(gradient.abs().max()) + 1e-9
            assert torch.allclose(gradient, parameter.grad, atol=atol, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_repeated_rows_are_summed_in_one_order(dtype: torch.dtype) -> None:
    """Of rows that are large enough for several threads."""
    torch.manual_seed(0)
    tensor, indices = torch.randn(4, 16, 1024, dtype=dtype, requires_grad=True), torch.randint(4, (32,))
    rows = gather_rows(tensor, indices)
    assert torch.equal(rows, tensor[indices])
    weights = torch.randn(rows.shape).to(dtype)
    gradients = [torch.autograd.grad(gather_rows(tensor, indices), tensor, weights)[0] for _ in range(10)]
    assert all(torch.equal(gradients[0], other) for other in gradients)
    expected = torch.zeros(tensor.shape, dtype=torch.float64).index_add(0, indices, weights.double())
    assert torch.allclose(gradients[0].double(), expected, atol=0.05 if dtype == torch.bfloat16 else 1e-5)


def test_steps_that_are_only_timed_have_no_slow_numbers() -> None:
    """Denormal numbers: some CPUs multiply them a hundred times as slowly, so a plan would promise a quarter of the
    steps."""
    torch.set_flush_denormal(False)
    plan = without_learning(make_plan("nano"))
    tokenizer = Tokenizer.train(CAPTIONS, vocab_size=120)
    text_encoder = TextEncoderConfig(tokenizer.vocab_size, tokenizer.context_length, plan.model.network.text_width)
    plan = plan.with_changes(model={"text_encoder": text_encoder})
    autoencoder = PixelAutoencoder(PixelAutoencoderConfig())
    updater = TextToImageUpdater(plan, init_modules(plan), tokenizer, autoencoder)
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        training_step(updater, Batch(images, (2 * CAPTIONS)[:4], torch.arange(4)), 1)
    states = {**updater.optimizer.state_dict(), **dict(updater.weights.module.named_parameters())}
    smallest_normal = torch.finfo(torch.float32).tiny
    denormal = {n: int(((x != 0) & (x.abs() < smallest_normal)).sum()) for n, x in states.items()}
    assert sum(denormal.values()) < 1e-3 * sum(x.numel() for x in states.values())
