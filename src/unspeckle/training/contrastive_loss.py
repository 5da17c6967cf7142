"""The losses that bring images and texts into one space, of how well each image of a batch goes with each text."""

import torch.nn.functional as F
from torch import Tensor

LOSSES = ("infonce", "siglip")


def contrastive_loss(logits: Tensor, matches: Tensor, loss: str) -> Tensor:
    """(B,) for logits (B, B) of images (rows) and texts (columns), and matches (B, B), true where the text is said of
    the image: a caption that several images of the batch have matches all of them.

    "infonce": the cross-entropy of the right texts for an image, and of the right images for a text, the mean of both
    (Radford et al. 2021, figure 3; with several right ones Khosla et al. 2020, eq. 2). "siglip": a yes or no for each
    pair (Zhai et al. 2023, eq. 1)."""
    if loss == "siglip":
        signs = 2.0 * matches - 1  # (B, B)
        return -F.logsigmoid(signs * logits).sum(dim=1)
    targets = matches / matches.sum(dim=1, keepdim=True)  # symmetric, as are the matches
    texts_of_images = -(targets * logits.log_softmax(dim=1)).sum(dim=1)
    images_of_texts = -(targets * logits.T.log_softmax(dim=1)).sum(dim=1)
    return (texts_of_images + images_of_texts) / 2
