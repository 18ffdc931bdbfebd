"""The definition of a table: what its YAML file in ``configs/tables`` says.

A table has rows and columns. Each of them sets some options of the recipe. `shared.runs.grid` makes
the runs of its cells.
"""

import difflib
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Any, TypedDict

import yaml

from shared.config.label_file import is_another
from shared.config.labelset import LabelSet
from shared.config.methods import CLASSIFIERS, METHODS
from shared.config.schema import RECIPES, SECTIONS, Config, hashed_settings
from shared.config.yaml_files import read_yaml
from shared.runs.metrics import ACCURACIES, METRICS
from shared.runtime.errors import UserError
from shared.runtime.files import did_you_mean
from shared.runtime.media import printable

# Rows that scikit-learn makes of the same labels: name -> method and input, as assess.json has them
BASELINES = {
    f"baseline: {method}, {inputs}": (method, inputs)
    for inputs in ("pixels", "features")
    for method in (
        "logistic regression",
        "support vector machine",
        "self-training",
        "label spreading",
    )
}

MOST_CELLS, MOST_SEEDS = 1000, 1000


class Paper(TypedDict):
    """A published table: where it stands, and its cells as row -> column -> value."""

    source: str
    cells: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Table:
    """What a table's YAML file says.

    Attributes:
        name: of the file.
        title: one line.
        rows: label -> the options that the row sets; ``method`` and ``labels`` besides those of the
            recipe.
        columns: likewise. A row with a method of its own keeps it in all columns: so rows that have
            no part in what the columns compare stand beside the others.
        base: options that every cell sets.
        seeds: of the label draws and of stages 2 and 3; a number n means 0 to n - 1.
        vary: option -> one value for each seed. So repetitions can also differ in their pretraining
            or their test images.
        metric: the measurement that the table shows, a key of ``METRICS``.
        against: the row that the others are compared with; unset: the first. Of several rows, each
            column takes the one with the highest mean there, or the lowest where less is better.
        worth: the row whose accuracy over the number of labels says what the labels are worth.
        paper: the published table.
    """

    name: str
    title: str
    rows: dict[str, dict[str, Any]]
    columns: dict[str, dict[str, Any]]
    base: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    vary: dict[str, list[Any]] = field(default_factory=dict)
    metric: str = "top1"
    against: tuple[str, ...] = ()
    worth: str | None = None
    paper: Paper | None = None


def load_table(name: str) -> Table:
    """Read ``configs/tables/<name>.yaml``, or a path.

    Raises:
        UserError: no such file, no YAML of that form, an unknown key or method.
    """
    files = {file.stem: file for file in sorted((RECIPES / "tables").glob("*.yaml"))}
    file = files.get(name, Path(name))
    if not os.path.isfile(file):
        close = difflib.get_close_matches(name, files, n=1)
        hint = f"; did you mean {close[0]}?" if close else did_you_mean(file)
        raise UserError(
            f"no table {name!r}; there are {', '.join(files)}, or give a YAML file{hint}"
        )
    if file.name.startswith("."):  # the table's folder is called as its file
        raise UserError(f"{file}: the name of a table must not begin with a dot; rename the file")
    content = read_yaml(file)
    try:
        return _table(file.stem, content)
    except ValueError as error:
        raise UserError(f"{file}: {error}") from error


def dump_table(table: Table) -> str:
    """The table as YAML, which `load_table` reads."""
    definition = {**asdict(table), "seeds": list(table.seeds), "against": list(table.against)}
    del definition["name"]
    return yaml.safe_dump(definition, sort_keys=False)


def settable_options(config: Config) -> dict[str, Any]:
    """The options of the recipe that a table may set, as ``{"pretrain.temperature": 1.0, ...}``.

    These are the options that decide the result. ``init`` is one of them: its hash counts, not its
    path, but a table may compare several pretrained networks, and several published ones. So is the
    first network of pretrain.task=transitive.
    """
    options: dict[str, Any] = {}
    for section in SECTIONS:
        options |= hashed_settings(getattr(config, section), section)
    for method in METHODS.values():
        if "pretrain" in method.made_from:
            options[f"{method.section}.init"] = getattr(config, method.section).init
        if method.own_input:
            options[method.network] = config.option(method.network)
    return options | {"transitive.init": config.transitive.init}


def _table(name: str, content: Any) -> Table:
    """Check what the file holds; ValueError where a part is wrong."""
    if not isinstance(content, dict):
        raise ValueError("must have title, rows and columns")
    _require_plain(content)
    _require_known(content, [f.name for f in fields(Table) if f.name != "name"], "key")
    parts = {key: value for key, value in content.items() if value is not None}
    if missing := {"title", "rows", "columns"} - parts.keys():
        raise ValueError(f"{', '.join(sorted(missing))} missing")
    if not isinstance(parts["title"], str) or printable(parts["title"]) != parts["title"]:
        raise ValueError(f"title must be one line of text, got {parts['title']!r}")
    for key in ("rows", "columns"):
        if not isinstance(parts[key], dict) or not parts[key]:
            raise ValueError(f"{key} must be a mapping from labels to options")
        lines = {str(label): options or {} for label, options in parts[key].items()}
        if len(lines) < len(parts[key]):  # true and "True"
            raise ValueError(f"{key} has two labels that read the same: {', '.join(lines)}")
        parts[key] = lines
    vary = parts.get("vary", {})
    if (cells := len(parts["rows"]) * len(parts["columns"])) > MOST_CELLS:
        raise ValueError(f"rows and columns have {cells:,} cells; at most {MOST_CELLS:,}")
    _check_options(parts["rows"], parts["columns"], parts.get("base", {}), vary)
    _require_set_once(parts["rows"], parts["columns"], vary)
    parts["seeds"] = _seeds(parts.get("seeds", 5))
    for option, choices in vary.items():
        if not isinstance(choices, list) or len(choices) != len(parts["seeds"]):
            raise ValueError(
                f"vary: {option} must be a list of one value for each of the"
                f" {len(parts['seeds'])} seeds, got {choices!r}"
            )
    _require_known([parts.get("metric", "top1")], METRICS, "metric")
    against = parts.get("against", [])
    against = tuple(map(str, against if isinstance(against, list) else [against]))
    _require_known(against, parts["rows"], "row in against")
    parts["against"] = against or tuple(parts["rows"])[:1]
    if "worth" in parts:
        parts["worth"] = str(parts["worth"])  # as the rows' labels
        _require_known([parts["worth"]], parts["rows"], "row in worth")
        if (metric := parts.get("metric", "top1")) not in ACCURACIES:
            allowed = " or ".join(ACCURACIES)
            raise ValueError(f"worth is of accuracies: metric must be {allowed}, got {metric}")
    _check_paper(parts.get("paper"))
    return Table(name, **parts)


def _check_options(
    rows: Mapping[str, Any], columns: Mapping[str, Any], base: object, vary: object
) -> None:
    """Every row, every column, ``base`` and ``vary`` set options that exist."""
    places = {"base": base, "vary": vary}
    places |= {f"rows: {label}": options for label, options in rows.items()}
    places |= {f"columns: {label}": options for label, options in columns.items()}
    known = ["method", "labels", *settable_options(Config())]
    label_sets: list[tuple[str, Any]] = []  # where, and what is said there
    for place, options in places.items():
        if not isinstance(options, dict):
            raise ValueError(f"{place} must be a mapping from options to values, got {options!r}")
        _require_known(options, known, f"option in {place}")
        if "method" in options:
            methods = (*CLASSIFIERS, *BASELINES)
            _require_known([options["method"]], methods, f"method in {place}")
        if "labels" in options:
            listed = place == "vary" and isinstance(options["labels"], list)
            texts = options["labels"] if listed else [options["labels"]]
            label_sets += [(place, text) for text in texts]
    _check_label_sets(label_sets)


def _check_label_sets(label_sets: Iterable[tuple[str, Any]]) -> None:
    """All can be read, and no two are files of one name with other content."""
    called: dict[str, LabelSet] = {}  # by their tags
    for place, text in label_sets:
        try:
            labels = LabelSet.parse(str(text))
        except ValueError as error:
            message = str(error).replace("labels", f"labels in {place}", 1)
            raise ValueError(message) from error
        other = called.setdefault(labels.tag, labels)
        if other.file and labels.file and is_another(other.file, labels.file):
            raise ValueError(
                f"labels in {place}: {other.text} and {labels.text} have the same name, and"
                " folders are called so; rename one of the files"
            )


def _require_set_once(
    rows: Mapping[str, dict[str, Any]],
    columns: Mapping[str, dict[str, Any]],
    vary: Mapping[str, Any],
) -> None:
    """A row, a column and ``vary`` must not set the same option; a row's method wins."""
    for (row, row_options), (column, column_options) in product(rows.items(), columns.items()):
        if twice := (row_options.keys() & column_options.keys()) - {"method"}:
            raise ValueError(f"row {row!r} and column {column!r} both set {', '.join(twice)}")
        if twice := (row_options.keys() | column_options.keys()) & vary.keys():
            raise ValueError(
                f"vary sets {', '.join(twice)}, which row {row!r} or column {column!r} sets"
            )


def _seeds(seeds: Any) -> tuple[int, ...]:
    """The list of seeds, or 0 to n - 1 for a number n."""
    numbers = list(range(min(seeds, MOST_SEEDS + 1))) if type(seeds) is int else seeds
    is_list = isinstance(numbers, list) and len(numbers) > 0
    if not is_list or not all(type(n) is int and 0 <= n < 2**32 for n in numbers):  # no bool
        raise ValueError(f"seeds must be a number or a list of numbers, got {seeds!r}")
    if len(numbers) > MOST_SEEDS:
        raise ValueError(f"seeds must be {MOST_SEEDS:,} or fewer")
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"seeds must differ from each other, got {numbers}")
    return tuple(numbers)


def _check_paper(paper: Any) -> None:
    if paper is None:
        return
    cells = paper.get("cells") if isinstance(paper, dict) else None
    if not isinstance(cells, dict) or not all(isinstance(row, dict) for row in cells.values()):
        raise ValueError("paper must have source, and cells: row -> column -> value")
    if not isinstance(source := paper.get("source"), str) or printable(source) != source:
        raise ValueError(f"paper: source must be one line of text, got {source!r}")
    for value in (value for row in cells.values() for value in row.values()):
        if not (value is None or isinstance(value, str | int | float)) or value != value:
            raise ValueError(f"paper: a cell must be a number or text, got {value!r}")


def _require_plain(part: Any, place: str = "") -> None:
    """ValueError where a value is a date, bytes or a set, which YAML knows and no option takes."""
    if isinstance(part, dict):
        for key, value in part.items():
            _require_plain(key, place)
            _require_plain(value, f"{place}{': ' * bool(place)}{key}")
    elif isinstance(part, list):
        for value in part:
            _require_plain(value, place)
    elif not (part is None or isinstance(part, str | int | float)):
        kind = type(part).__name__
        raise ValueError(f"{place or 'a key'} has a {kind}; write it as text, in quotes: '{part}'")


def _require_known(names: Iterable[Any], known: Collection[str], what: str) -> None:
    """ValueError for the first name that is not known, with a hint at what may be meant."""
    known = list(known)  # a name may be anything that YAML holds, also what no dictionary takes
    for name in names:
        if name in known:
            continue
        section, _, option = str(name).partition(".")
        if what.startswith("option") and hasattr(getattr(Config(), section, None), option):
            raise ValueError(f"{what}: {name} is for the command line, not for a table")
        close = difflib.get_close_matches(str(name), known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
        raise ValueError(f"unknown {what}: {name}; {hint}")
