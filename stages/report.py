"""The table of a run, or of a grid of runs, from what lies in its folder; nothing is trained.

python -m stages.report runs/digits          # all label sets; mean and spread over the seeds
python -m stages.report runs/digits --table label_efficiency   # what is there of a grid of runs
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from shared.runs.grid import report
from shared.runs.results import collect, results_text
from shared.runtime.errors import UserError, exit_code_2, usage


@exit_code_2
def main(argv: Sequence[str] | None = None) -> int:
    """Print the table of a run."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[2] if len(arguments) == 3 and arguments[1] == "--table" else None
    if (len(arguments) != 1 and not name) or arguments[0] in ("-h", "--help"):
        return usage("python -m stages.report runs/NAME [--table TABLE]", arguments)
    if name:
        print(report(Path(arguments[0]), name))
        return 0
    rows = collect(Path(arguments[0]))
    if not rows:
        raise UserError(f"no finished classifier in {arguments[0]}")
    print(results_text(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
