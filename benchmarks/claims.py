"""The paired differences of a committed table, from its CSV file alone.

    T=docs/results/digits/headline/table.csv
    python -m benchmarks.claims $T "distilled student" "linear evaluation"

prints, for each column of the table, a line of Markdown with the first row minus the second one in
points of top-1: mean ± half the 95% interval by Student's t over the pairs of the same repetition,
in how many pairs the first row is ahead, the verdict, and the smallest true difference that as many
pairs of this spread find in four of five cases (noncentral t). A test compares the tables of claims
in docs/results to it.

    python -m benchmarks.claims $T "ResNet-14 2x" "ResNet-8 1x" --gain 1% 10%

prints by how much the gain of the first row over the second one is larger in the first column than
in the second one: the interaction of rows and columns.
"""

import argparse
import csv
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from statistics import mean

from scipy.optimize import root_scalar
from scipy.stats import nct, t

from shared.runs.statistics import ROUNDING, interval

LEAST = 3  # pairs of a claim
Accuracy = dict[tuple[str, str], dict[str, float]]  # (row, column) -> repetition -> top-1 in %


def smallest_found(half: float, pairs: int) -> float:
    """The true difference that a paired t test at 5% finds in four of five cases.

    Args:
        half: half the 95% interval of the mean difference; the result has its unit.
        pairs: number of pairs, 3 or more.
    """
    quantile = float(t.ppf(0.975, pairs - 1))
    # the power is above 80% at 1.7 times the quantile; much farther out nct is not a number
    power = partial(nct.sf, quantile, pairs - 1)
    found = root_scalar(lambda shift: power(shift) - 0.8, bracket=(0, 1.7 * quantile))
    return half * float(found.root) / quantile


def top1(paths: Iterable[Path]) -> Accuracy:
    """``{(row, column): {seed: top-1 in %}}`` of all runs that are done."""
    accuracy: Accuracy = {}
    for path in paths:
        with path.open(newline="") as lines:
            for run in csv.DictReader(lines):
                if run["status"] == "done":
                    of_cell = accuracy.setdefault((run["row"], run["column"]), {})
                    of_cell[run["seed"]] = 100 * float(run["top1"])
    return accuracy


def pairs_of(accuracy: Accuracy, column: str, row: str, rival: str) -> list[float]:
    """Top-1 of the row minus that of the rival, in points, of each repetition that both have."""
    ours, rivals = accuracy.get((row, column), {}), accuracy.get((rival, column), {})
    return [ours[seed] - rivals[seed] for seed in ours if seed in rivals]


def gains(accuracy: Accuracy, first: str, second: str) -> Accuracy:
    """A column ``first minus second``, in points: of two rows in it the difference of their gains.

    Args:
        accuracy: of `top1`.
        first: a column.
        second: another one.
    """
    return {
        (row, f"{first} minus {second}"): {
            seed: more - less[seed] for seed, more in of_cell.items() if seed in less
        }
        for (row, column), of_cell in accuracy.items()
        if column == first and (less := accuracy.get((row, second)))
    }


def claim(accuracy: Accuracy, column: str, row: str, rival: str) -> str:
    """A line of a table of claims: mean ± half, pairs ahead, verdict, smallest difference found.

    Args:
        accuracy: of `top1`.
        column: of the table, or of `gains`.
        row: its accuracy minus that of ``rival`` is claimed.
        rival: another row.

    Raises:
        ValueError: where there are fewer than three pairs: two say next to nothing of the spread.
    """
    pairs = pairs_of(accuracy, column, row, rival)
    if len(pairs) < LEAST:
        raise ValueError(f"{column}: {row} minus {rival}: {len(pairs)} of the {LEAST} pairs needed")
    middle, half = interval(pairs)
    assert half is not None
    unsure = half < ROUNDING or abs(middle) <= half  # equal pairs say nothing of the spread
    verdict = "undecided" if unsure else "holds" if middle > 0 else "**behind**"
    ahead = sum(difference > 0 for difference in pairs)
    return (
        f"| {column}: {row} minus {rival} | {middle:+.1f} ± {half:.1f} | {ahead} of {len(pairs)} |"
        f" {verdict} | {smallest_found(half, len(pairs)):.1f} |"
    )


def best(accuracy: Accuracy, column: str, row: str, rivals: Iterable[str]) -> str:
    """The rival with the highest mean in a column, over the repetitions that ``row`` has too.

    Raises:
        ValueError: where no rival shares three repetitions with the row.
    """
    behind = {rival: pairs_of(accuracy, column, row, rival) for rival in rivals}
    enough = {rival: pairs for rival, pairs in behind.items() if len(pairs) >= LEAST}
    if not enough:
        raise ValueError(f"{column}: {row}: no rival has {LEAST} of its repetitions")
    return min(enough, key=lambda rival: mean(enough[rival]))


def main() -> None:
    """Print one line for each column."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", type=Path, help="table.csv")
    parser.add_argument("row")
    parser.add_argument("rival", nargs="+", help="of several the best one in each column")
    parser.add_argument(
        "--and", type=Path, nargs="*", default=[], dest="others", help="tables of the same draws"
    )
    parser.add_argument(
        "--gain",
        nargs=2,
        metavar="COLUMN",
        help="the difference in the first column minus that in the second one, alone",
    )
    options = parser.parse_args()
    try:
        accuracy = top1([options.table, *options.others])
    except (OSError, KeyError, ValueError) as error:
        parser.error(f"cannot read the columns row, column, seed, status and top1: {error!r}")
    rows = dict.fromkeys(row for row, _ in accuracy)
    for name in (options.row, *options.rival):
        if name not in rows:
            parser.error(f"no row {name!r} is done; there are {', '.join(rows)}")
    columns = dict.fromkeys(column for _, column in accuracy)
    if options.gain:
        if len(options.rival) > 1:
            parser.error(f"--gain takes one rival, got {len(options.rival)}")
        for name in options.gain:
            if name not in columns:
                parser.error(f"no column {name!r} is done; there are {', '.join(columns)}")
        accuracy = gains(accuracy, *options.gain)
        columns = dict.fromkeys(column for _, column in accuracy)
    for column in columns:
        try:
            rival = best(accuracy, column, options.row, options.rival)
            print(claim(accuracy, column, options.row, rival))
        except ValueError as error:
            print(error)


if __name__ == "__main__":
    main()
