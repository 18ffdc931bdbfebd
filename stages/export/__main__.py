"""``python -m stages.export``."""

import sys

from stages.export.export import main

if __name__ == "__main__":
    sys.exit(main())
