"""``python -m stages.assess``."""

import sys

from shared.config.command_line import refuse_unknown_options

if __name__ == "__main__":
    refuse_unknown_options("stages.assess")  # before torch is imported, which takes seconds
    from stages.assess.assess import main

    sys.exit(main())
