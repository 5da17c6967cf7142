"""LoRA files of other programs (kohya, peft, diffusers): read into adapters, and written."""
