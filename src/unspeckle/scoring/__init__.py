"""How near drawn pictures are to real ones."""
