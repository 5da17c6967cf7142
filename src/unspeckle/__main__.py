"""`python -m unspeckle`."""

import sys

from unspeckle.cli import entry

if __name__ == "__main__":
    sys.exit(entry())
