"""Tokenizers and text encoders: text to what the denoiser is conditioned on."""
