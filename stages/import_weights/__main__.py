"""``python -m stages.import_weights``."""

import sys

from stages.import_weights.command import main

if __name__ == "__main__":
    sys.exit(main())
