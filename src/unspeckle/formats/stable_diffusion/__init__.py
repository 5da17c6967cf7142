"""Stable Diffusion checkpoints: recognized, read, run as a Model, and written in the layouts of other programs."""
