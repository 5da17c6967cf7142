"""The command line. Each command has a file that declares its options; what it does is imported when it runs, so that
help needs no torch."""

from unspeckle.cli.app import entry, main

__all__ = ["entry", "main"]
