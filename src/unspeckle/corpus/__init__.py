"""From a folder of captioned pictures to batches: `read`, then `open_corpus`, then `batches`."""

from unspeckle.corpus.batches import Batch, batches
from unspeckle.corpus.captions import CaptionedImage, FolderListing, read_folder
from unspeckle.corpus.checking import CorpusReport, check_corpus
from unspeckle.corpus.splits import Corpus, Split, open_corpus

__all__ = [
    "Batch",
    "CaptionedImage",
    "Corpus",
    "CorpusReport",
    "FolderListing",
    "Split",
    "batches",
    "check_corpus",
    "open_corpus",
    "read_folder",
]
