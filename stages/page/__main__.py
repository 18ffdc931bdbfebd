"""``python -m stages.page``."""

import sys

from stages.page.page import main

if __name__ == "__main__":
    sys.exit(main())
