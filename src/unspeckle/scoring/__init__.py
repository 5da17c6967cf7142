"""How good a model is: distances from real images, losses, memorization, composition, and the report of them all."""
