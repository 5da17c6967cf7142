"""The text encoder that is trained together with a network."""

import torch

from tiny_networks import randomize
from unspeckle.text.text_encoder import TextEncoder, TextEncoderConfig
from unspeckle.text.tokenizer import PAD_ID

# A short caption and a longer one, which pads the other.
IDS = torch.tensor([[1, 5, 9, PAD_ID, PAD_ID, PAD_ID, PAD_ID, PAD_ID], [1, 7, 4, 8, 6, 5, 9, PAD_ID]])


def test_padding_and_the_rest_of_the_batch_do_not_matter() -> None:
    encoder = randomize(TextEncoder(TextEncoderConfig(10, 8, 32, 2, 16)), std=0.2)
    short_encoder = TextEncoder(TextEncoderConfig(10, 4, 32, 2, 16)).eval()
    short_encoder.load_state_dict({**encoder.state_dict(), "position_embedding": encoder.position_embedding[:4]})
    with torch.no_grad():
        both, alone, short = encoder(IDS), encoder(IDS[:1]), short_encoder(IDS[:1, :4])
    torch.testing.assert_close(both.tokens[:1], alone.tokens)
    torch.testing.assert_close(short.tokens[:, :3], alone.tokens[:, :3])
    torch.testing.assert_close(short.vector, alone.vector)
    assert both.mask is not None and both.mask.sum(1).tolist() == [3, 7]
    assert (both.vector[0] - both.vector[1]).abs().max() > 1e-3
