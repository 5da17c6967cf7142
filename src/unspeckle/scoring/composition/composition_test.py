"""The composition test of a corpus: all its prompts, and what the detector is trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unspeckle.corpus.emoji.nouns import plural_name
from unspeckle.corpus.emoji.sprites import SpriteLibrary
from unspeckle.scoring.composition.free_wording import grammar_prompts, read_hand_prompts
from unspeckle.scoring.composition.prompts import (
    PROTOCOL_PROMPTS,
    CompositionPrompt,
    open_corpus_sprites,
    read_composition_prompts,
    read_held_out_rows,
)

FREE_WORDING_FACTOR = 3  # prompts of each kind of free wording, for one of a category


@dataclass(frozen=True)
class CompositionTest:
    """The composition test of a corpus, and what the detector is trained on."""

    prompts: list[CompositionPrompt]
    hybrid_pairs: list[tuple[str, str]]  # pairs of nouns whose hybrid training never showed
    library: SpriteLibrary  # the sprites that the corpus was made of
    image_size: int  # of the corpus's images, pixels a side


def read_composition_test(corpus: Path, prompts_per_category: int = PROTOCOL_PROMPTS) -> CompositionTest:
    """The test of a folder that `unspeckle make-corpus emoji` made.

    InputError if the folder is not such a corpus or its sprites cannot be opened.
    """
    every_prompt = read_composition_prompts(corpus, 10_000)
    hybrid_nouns = {prompt.nouns for prompt in every_prompt if prompt.category == "hybrids"}
    library, image_size = open_corpus_sprites(corpus)
    prompts = read_composition_prompts(corpus, prompts_per_category)
    return CompositionTest(
        prompts=prompts + read_free_wording_prompts(corpus, library, FREE_WORDING_FACTOR * prompts_per_category),
        hybrid_pairs=sorted((first, second) for first, second in hybrid_nouns),
        library=library,
        image_size=image_size,
    )


def read_free_wording_prompts(corpus: Path, library: SpriteLibrary, count: int) -> list[CompositionPrompt]:
    """Prompts as people write them: so many of the grammar, and at most so many, evenly spaced, of the list by hand."""
    plurals = {sprite.noun.name: plural_name(sprite.noun) for sprite in library.sprites.values()}
    by_hand = read_hand_prompts(library)
    if len(by_hand) > count:
        by_hand = [by_hand[i * len(by_hand) // count] for i in range(count)]
    return grammar_prompts(read_held_out_rows(corpus), plurals, count) + by_hand
