"""From a folder of captioned images to training batches: `read_folder`, then `open_corpus`, then `batches`."""

from unspeckle.corpus.batches import Batch, batches
from unspeckle.corpus.captions import read_folder
from unspeckle.corpus.checking import CorpusReport, check_corpus
from unspeckle.corpus.folder_listing import CaptionedImage, FolderListing
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
