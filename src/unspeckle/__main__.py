"""`python -m unspeckle`."""

import sys

from unspeckle.cli.app import entry

if __name__ == "__main__":
    sys.exit(entry())
