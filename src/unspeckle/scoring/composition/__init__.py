"""Whether images of emoji scenes hold what their prompts say, judged by a detector that is trained for it."""
