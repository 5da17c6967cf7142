"""A step's loss: the mean of what each example costs by itself, whatever captions the batch repeats."""

from dataclasses import replace

import pytest
import torch

from tiny_models import CAPTIONS, make_plan
from unspeckle.corpus import Batch
from unspeckle.networks import PixelAutoencoder, PixelAutoencoderConfig
from unspeckle.rng import ExampleRNG
from unspeckle.text.tokenizer import Tokenizer
from unspeckle.training.master_weights import TextToImageUpdater, gather_rows, init_modules


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_a_batch_costs_the_mean_of_its_examples(drop: float, step: int) -> None:
    """Of words alone at step 1, of all at step 2; two captions are alike, one is empty."""
    tokenizer = Tokenizer.train(CAPTIONS, vocab_size=120)
    made = replace(make_plan("nano"), word_steps=1, drop=drop)
    made = replace(
        made, text=replace(made.text_config, vocab_size=tokenizer.vocab_size, context_length=tokenizer.context_length)
    )
    weights = init_modules(made)
    with torch.no_grad():
        for parameter in weights.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    learner = TextToImageUpdater(made, weights, tokenizer, PixelAutoencoder(PixelAutoencoderConfig()))
    pictures = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    captions = [CAPTIONS[1], CAPTIONS[0], "", CAPTIONS[1], CAPTIONS[2]]
    positions = torch.arange(7, 12)
    assert drop == 0 or 0 < int(learner.objective.dropped_captions(ExampleRNG(made.seed, positions)).sum()) < 5

    heard: list[int] = []
    learner.compute_module.text_encoder.register_forward_pre_hook(lambda module, given: heard.append(len(given[0])))

    def cost(rows: list[int]) -> float:
        batch = Batch(pictures[rows], [captions[i] for i in rows], positions[rows])
        loss = learner.loss(batch, step) * len(rows) / 5
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    whole = cost([0, 1, 2, 3, 4])
    assert heard == [4]  # each caption once, and the empty one
    together = [p.grad for p in learner.parameters()]
    weights.zero_grad(set_to_none=True)
    assert sum(cost([i]) for i in range(5)) == pytest.approx(whole, rel=1e-5)
    for one, parameter in zip(together, learner.parameters(), strict=True):
        assert (one is None) == (parameter.grad is None)
        if one is not None and parameter.grad is not None:
            assert torch.allclose(one, parameter.grad, atol=1e-5 * float(one.abs().max()) + 1e-9, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_repeated_rows_are_summed_in_one_order(dtype: torch.dtype) -> None:
    """Large enough for several threads."""
    torch.manual_seed(0)
    part, rows = torch.randn(4, 16, 1024, dtype=dtype, requires_grad=True), torch.randint(4, (32,))
    taken = gather_rows(part, rows)
    assert torch.equal(taken, part[rows])
    weights = torch.randn(taken.shape).to(dtype)
    found = [torch.autograd.grad(gather_rows(part, rows), part, weights)[0] for _ in range(10)]
    assert all(torch.equal(found[0], other) for other in found)
    wanted = torch.zeros(part.shape, dtype=torch.float64).index_add(0, rows, weights.double())
    assert torch.allclose(found[0].double(), wanted, atol=0.05 if dtype == torch.bfloat16 else 1e-5)
