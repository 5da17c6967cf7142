"""What is written in C++ because torch has nothing as fast. Every kernel has a plain way beside it that is taken where
there is no compiler, no such processor, or no agreement between the two."""
