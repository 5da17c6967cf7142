"""From a folder of captioned pictures to batches: `read`, then `open_corpus`, then `batches`."""

from unspeckle.corpus.batches import Batch, batches
from unspeckle.corpus.captions import Captioned, Listing, read
from unspeckle.corpus.splits import Corpus, Split, open_corpus

__all__ = ["Batch", "Captioned", "Corpus", "Listing", "Split", "batches", "open_corpus", "read"]
