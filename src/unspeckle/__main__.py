"""`python -m unspeckle`."""

import sys

from unspeckle.cli import main

if __name__ == "__main__":
    sys.exit(main())
