"""``python -m stages.suggest``."""

import sys

from stages.suggest.suggest import main

if __name__ == "__main__":
    sys.exit(main())
