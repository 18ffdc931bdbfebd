"""``python -m stages.assess``."""

import sys

from stages.assess.assess import main

if __name__ == "__main__":
    sys.exit(main())
