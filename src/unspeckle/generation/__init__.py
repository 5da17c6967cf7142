"""From a request to images: resolved options, conditioning, sampling, inpainting, decoding."""
