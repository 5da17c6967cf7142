"""A transformer that predicts, from the text alone, what the images of a caption look like on average, at 8 × 8 pixels.

Which of two nouns is on the left is a single bit, and only the noisiest images leave it to the text: a denoiser that
has to learn it from noisy images learns the colors, and hardly ever the order of the words. A network that is trained
only to predict the mean image learns it soon. Its prediction is concatenated to the noisy image at every time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unspeckle.denoiser import Conditioning, PreparedConditioning
from unspeckle.networks.layers import Attention, GatedFeedForward, SelfAttention

COARSE_SIZE = 8  # height and width of the prediction


class CoarsePredictorLayer(nn.Module):
    """A pre-norm transformer layer: attention to the text, then self-attention, then a feed-forward layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.cross_attn, self.self_attn = Attention(width, heads), SelfAttention(width, heads)
        self.feed_forward = GatedFeedForward(width)

    def forward(self, x: Tensor, conditioning: Conditioning) -> Tensor:
        """x (B, N, width) -> (B, N, width)."""
        keys_values = self.cross_attn.project_keys_values(conditioning.tokens)
        x = x + self.cross_attn(self.norm1(x), keys_values, conditioning.mask)
        x = x + self.self_attn(self.norm2(x))
        out: Tensor = x + self.feed_forward(self.norm3(x))
        return out


class CoarseImagePredictor(nn.Module):
    """Text tokens (B, L, text_width) to the mean of x over each of 8 × 8 parts, (B, channels, 8, 8)."""

    def __init__(self, channels: int, text_width: int, num_layers: int, head_width: int = 32) -> None:
        super().__init__()
        self.position_embedding = nn.Parameter(torch.empty(COARSE_SIZE**2, text_width))
        heads = max(1, text_width // head_width)
        self.layers = nn.ModuleList(CoarsePredictorLayer(text_width, heads) for _ in range(num_layers))
        self.norm_out, self.proj_out = nn.LayerNorm(text_width), nn.Linear(text_width, channels)
        nn.init.normal_(self.position_embedding, std=0.5)
        init_output_projections(self)

    def forward(self, conditioning: Conditioning) -> Tensor:
        x = self.position_embedding.expand(conditioning.tokens.shape[0], -1, -1)  # (B, N, text_width)
        for layer in self.layers:
            x = layer(x, conditioning)
        coarse: Tensor = self.proj_out(self.norm_out(x))  # (B, N, channels)
        return coarse.transpose(1, 2).reshape(coarse.shape[0], -1, COARSE_SIZE, COARSE_SIZE)

    def loss(self, coarse_images: Tensor, x: Tensor) -> Tensor:
        """The mean squared error (B,) of predictions (B, C, 8, 8) for the images x (B, C, H, W)."""
        return (coarse_images.float() - F.adaptive_avg_pool2d(x, COARSE_SIZE)).square().mean((1, 2, 3))


def concat_images(x: Tensor, conditioning: PreparedConditioning) -> Tensor:
    """x (B, C, H, W) and the images of the conditioning, along the channels: the predicted coarse image, upsampled, or
    what the caller gave to be concatenated; x alone if there is neither. The denoising loss has no gradient with
    respect to the prediction, which must stay the mean image."""
    if conditioning.coarse_image is not None:
        coarse_image, size = conditioning.coarse_image.detach().to(x.dtype), (x.shape[2], x.shape[3])
        return torch.cat([x, F.interpolate(coarse_image, size, mode="bilinear", align_corners=False)], dim=1)
    if conditioning.concat is not None:
        return torch.cat([x, conditioning.concat.to(x.dtype)], dim=1)
    return x


def init_output_projections(module: nn.Module) -> None:
    """Initialize the output projections of all attention and feed-forward layers in the module at random rather than
    with zeros: the order of words can only be learned from layers that mix tokens from the start."""
    for layer in module.modules():
        if isinstance(layer, Attention | GatedFeedForward):
            projection = layer.to_out if isinstance(layer, Attention) else layer.proj_out
            nn.init.normal_(projection.weight, std=projection.weight.shape[1] ** -0.5)
