"""Foreign checkpoints and their conventions, translated at this edge."""
