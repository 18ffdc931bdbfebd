"""YAML from anywhere, read within bounds: recipes, tables, and the values of flags.

YAML lets a few lines stand for billions of values: an anchor of anchors, or one that holds itself.
Every part is counted as often as it is named, before anything is built.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from shared.runtime.errors import UserError
from shared.runtime.files import did_you_mean, read_bytes

MOST_BYTES = 2**20
MOST_VALUES = 10_000
DEPTH = 20
LONGEST_SCALAR = 4096  # characters
Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Once(Loader):
    """Refuses a key that a mapping has twice, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if repeated := [key for key, number in keys.items() if number > 1]:
            raise ValueError(f"{repeated[0]} stands there twice")
        return super().construct_mapping(node, deep)


def read_yaml(file: Path) -> Any:
    """What a YAML file says: plain values, lists and mappings.

    Raises:
        UserError: the file cannot be read, is no YAML, or goes beyond the bounds.
    """
    try:
        text = read_bytes(file, MOST_BYTES).decode("utf-8-sig")
        require_bounded(text)
        return yaml.load(text, _Once)  # a safe loader, which makes no objects
    except OSError as error:
        reason = f"{error.strerror or error}{did_you_mean(file)}"
        raise UserError(f"cannot read {file}: {reason}") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{file}: not YAML of the form 'name: value': {reason}") from error
    except Exception as error:  # a tag such as !!float on what is none has its own
        raise UserError(f"{file}: {' '.join(str(error).split())[:300]}") from error


def require_bounded(text: str) -> None:
    """Refuse YAML that stands for more than a recipe or a table can hold.

    Raises:
        ValueError: it has more values than ``MOST_VALUES``, lies deeper than ``DEPTH``, has a value
            longer than ``LONGEST_SCALAR``, or a part of it contains itself.
        yaml.YAMLError: it is no YAML.
    """
    anchored: dict[str, int] = {}  # the number of values below an anchor
    opened: list[tuple[str | None, int]] = []  # of each list and mapping around: anchor, count
    count = 0
    for event in yaml.parse(text, Loader):
        anchor = getattr(event, "anchor", None)
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append((anchor, count))
            if len(opened) > DEPTH:
                raise ValueError(f"its values lie more than {DEPTH} deep in one another")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            if anchor:
                anchored[anchor] = count - before + 1
            count += 1
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == around for around, _ in opened):
                raise ValueError(f"&{anchor} contains itself")
            count += anchored.get(str(anchor), 1)
        elif isinstance(event, yaml.ScalarEvent):
            if len(event.value) > LONGEST_SCALAR:
                raise ValueError(f"it has a value of {len(event.value):,} characters")
            count += 1
            if anchor:
                anchored[anchor] = 1
        if count > MOST_VALUES:
            raise ValueError(f"it stands for more than {MOST_VALUES:,} values")
