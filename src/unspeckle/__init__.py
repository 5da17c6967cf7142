"""Text-to-image diffusion that a person can own whole."""
