"""Checkpoints of other programs, and their conventions: everything that is not ours is translated in this room."""
