"""``python -m stages.export``."""

import sys
from collections.abc import Sequence

from shared.runtime.errors import exit_code_2
from shared.runtime.imports import no_garbage
from stages.export.arguments import parser


@exit_code_2
def main(argv: Sequence[str] | None = None) -> int:
    """Answer a bad call at once: torch and its company, which take seconds, come after it."""
    parser().parse_args(argv)
    with no_garbage():
        from stages.export.export import main as run
    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
