"""The table of a run, or of a grid of runs, from the files in its folder. It trains nothing.

    python -m stages.report runs/digits          # all label sets; mean and spread over the seeds;
                                                 # what to deploy, and whether pretraining paid
    python -m stages.report runs/digits --table label_efficiency   # a grid of runs

A table says which of its cells are missing.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from shared.config.schema import VARIANTS
from shared.runtime.errors import CommandParser, UserError, exit_code_2
from shared.runtime.files import did_you_mean
from shared.runtime.media import say_block


def _parser() -> CommandParser:
    parser = CommandParser(
        "python -m stages.report",
        description="Print the table of a run from the files in its folder. It trains nothing.",
    )
    parser.add_argument("run", type=Path, metavar="runs/NAME", help="the folder of a run")
    parser.add_argument(
        "--table",
        metavar="NAME",
        help="print this grid of runs: a name in configs/tables, or a YAML file of that form",
    )
    return parser


@exit_code_2
def main(argv: Sequence[str] | None = None) -> int:
    """Print the table of a run."""
    arguments = _parser().parse_args(argv)
    if arguments.table is not None:
        from shared.runs import grid  # takes seconds

        say_block(grid.report(arguments.run, arguments.table))
        return 0
    from shared.runs.results import advice_text, collect, results_text  # imports torch

    rows = collect(arguments.run)
    if not rows:
        tables = (arguments.run / VARIANTS).is_dir()
        hint = (
            "; those of its tables come with --table NAME"
            if tables
            else did_you_mean(arguments.run)
        )
        raise UserError(f"no finished classifier in {arguments.run}{hint}")
    say_block(f"{results_text(rows)}\n\n{advice_text(arguments.run, rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
