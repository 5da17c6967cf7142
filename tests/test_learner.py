"""A step's loss: the mean of what each example costs by itself, whatever captions the batch repeats."""

from dataclasses import replace

import pytest
import torch

from tiny import CAPTIONS, plan
from unspeckle.corpus import Batch
from unspeckle.networks import Identity, IdentityConfig
from unspeckle.seeds import Stream
from unspeckle.text.tokenizer import Tokenizer
from unspeckle.training.learner import Learner, fresh


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_a_batch_costs_the_mean_of_its_examples(drop: float, step: int) -> None:
    """Of words alone at step 1, of all at step 2; two captions are alike, one is empty."""
    tokenizer = Tokenizer.learn(CAPTIONS, size=120)
    made = replace(plan("nano"), word_steps=1, drop=drop)
    made = replace(made, text=replace(made.text, vocabulary=tokenizer.size, length=tokenizer.length))
    weights = fresh(made)
    with torch.no_grad():
        for parameter in weights.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    learner = Learner(made, weights, tokenizer, Identity(IdentityConfig()))
    pictures = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    captions = [CAPTIONS[1], CAPTIONS[0], "", CAPTIONS[1], CAPTIONS[2]]
    positions = torch.arange(7, 12)
    assert drop == 0 or 0 < int(learner.objective.drops(Stream(made.seed, positions)).sum()) < 5

    def cost(rows: list[int]) -> float:
        batch = Batch(pictures[rows], [captions[i] for i in rows], positions[rows])
        loss = learner.loss(batch, step) * len(rows) / 5
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    whole = cost([0, 1, 2, 3, 4])
    together = [p.grad for p in learner.parameters()]
    weights.zero_grad(set_to_none=True)
    assert sum(cost([i]) for i in range(5)) == pytest.approx(whole, rel=1e-5)
    for one, parameter in zip(together, learner.parameters(), strict=True):
        assert (one is None) == (parameter.grad is None)
        if one is not None and parameter.grad is not None:
            assert torch.allclose(one, parameter.grad, atol=1e-5 * float(one.abs().max()) + 1e-9, rtol=1e-4)
