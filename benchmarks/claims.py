"""The paired differences of a committed table, from its CSV file alone.

    T=docs/results/digits/headline/table.csv
    python -m benchmarks.claims $T "distilled student" "linear evaluation"

prints, for each column of the table, the first row minus the second one in points of top-1: mean ±
half the 95% interval by Student's t over the pairs of the same repetition, the smallest true
difference that as many pairs of this spread find in four of five cases (noncentral t), and in how
many pairs the first row is ahead.
"""

import argparse
import csv
from pathlib import Path

from scipy.optimize import brentq
from scipy.stats import nct, t

from shared.runs.statistics import interval


def smallest_found(half: float, pairs: int) -> float:
    """The true difference that a paired t test at 5% finds in four of five cases.

    Args:
        half: half the 95% interval of the mean difference; the result has its unit.
        pairs: number of pairs, 3 or more.
    """
    quantile = float(t.ppf(0.975, pairs - 1))
    # the power is above 80% at 1.7 times the quantile; much farther out nct is not a number
    shift = brentq(lambda shift: float(nct.sf(quantile, pairs - 1, shift)) - 0.8, 0, 1.7 * quantile)
    return half * float(shift) / quantile


def top1(paths: list[Path]) -> dict[tuple[str, str], dict[str, float]]:
    """``{(row, column): {seed: top-1 in %}}`` of all runs that are done."""
    accuracy: dict[tuple[str, str], dict[str, float]] = {}
    for path in paths:
        with path.open(newline="") as lines:
            for run in csv.DictReader(lines):
                if run["status"] == "done":
                    of_cell = accuracy.setdefault((run["row"], run["column"]), {})
                    of_cell[run["seed"]] = 100 * float(run["top1"])
    return accuracy


def main() -> None:
    """Print one line for each column."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", type=Path, nargs="+", help="table.csv, of the same draws")
    parser.add_argument("row")
    parser.add_argument("rival")
    arguments = parser.parse_args()
    accuracy = top1(arguments.tables)
    for column in dict.fromkeys(column for _, column in accuracy):
        ours = accuracy.get((arguments.row, column), {})
        rivals = accuracy.get((arguments.rival, column), {})
        pairs = [ours[seed] - rivals[seed] for seed in ours if seed in rivals]
        if not pairs:
            continue
        mean, half = interval(pairs)
        ahead = sum(difference > 0 for difference in pairs)
        line = f"{column}: {mean:+.2f}"
        if half is not None and len(pairs) > 2:  # two pairs say next to nothing of the spread
            line += f" ± {half:.2f}, found from {smallest_found(half, len(pairs)):.2f} on"
        print(f"{line}, ahead in {ahead} of {len(pairs)}")


if __name__ == "__main__":
    main()
