"""One HTML file that shows a run: results, pictures, tables, and how it was made.

    python -m stages.page runs/digits                 # writes runs/digits/page.html
    python -m stages.page runs/digits docs/pictures   # and its pictures, one SVG file each

It shows what lies in the run's folder: the stages' ``meta.json`` and ``metrics.jsonl``, the tables
of ``pipeline.py --table``, and what ``stages.assess`` measured. The page shows missing parts as
missing, with the command that makes them.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from shared.runtime.errors import CommandParser, exit_code_2
from shared.runtime.media import say


def _parser() -> CommandParser:
    parser = CommandParser(
        "python -m stages.page",
        description="Write one HTML file that shows a run: runs/NAME/page.html.",
    )
    parser.add_argument("run", type=Path, metavar="runs/NAME", help="the folder of a run")
    parser.add_argument(
        "pictures",
        type=Path,
        nargs="?",
        metavar="FOLDER",
        help="also write the pictures of the page into this folder, one SVG file each",
    )
    return parser


@exit_code_2
def main(argv: Sequence[str] | None = None) -> int:
    """Write the page of a run."""
    arguments = _parser().parse_args(argv)
    from stages.page.write import write_page  # imports torch

    say(write_page(arguments.run, arguments.pictures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
