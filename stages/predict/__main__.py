"""``python -m stages.predict``."""

import sys

from stages.predict.command import main

if __name__ == "__main__":
    sys.exit(main())
