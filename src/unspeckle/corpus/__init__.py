"""From a folder of captioned pictures to batches: `read`, then `open_corpus`, then `batches`."""

from unspeckle.corpus.batches import Batch, batches
from unspeckle.corpus.captions import Captioned, Listing, read
from unspeckle.corpus.checking import Findings, check
from unspeckle.corpus.splits import Corpus, Split, open_corpus

__all__ = ["Batch", "Captioned", "Corpus", "Findings", "Listing", "Split", "batches", "check", "open_corpus", "read"]
