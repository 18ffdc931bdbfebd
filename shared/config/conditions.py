"""Options that are read only where another one makes them count: set in vain, they are refused.

A field says its condition with `only_with`, a section of options of stage 1 in TASK_SECTIONS. The
condition of a condition counts too: colour.bin needs colour.target=classes, and this the task
colour.
"""

from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

from shared.config.pretext import TASK_SECTIONS, TASKS


class Condition(NamedTuple):
    """What makes an option count.

    Attributes:
        option: another one, as ``section.name``.
        values: that it must have, one of them; none: neither 0 nor unset.
    """

    option: str
    values: tuple[Any, ...]


def unmet(config: Any, option: str) -> Condition | None:
    """The first condition of an option that does not hold.

    Args:
        config: a ``Config``.
        option: ``section.name``, or a section.

    Returns:
        None where the option is read.
    """
    condition = _condition(config, option)
    if condition is None:
        return None
    name, values = condition
    if before := unmet(config, name):
        return before
    chosen = config.tasks if name == "pretrain.task" else (config.option(name),)
    holds = any(value in values for value in chosen) if values else bool(chosen[0])
    return None if holds else condition


def _condition(config: Any, option: str) -> Condition | None:
    section, _, name = option.partition(".")
    known = getattr(type(getattr(config, section)), "__dataclass_fields__", {})
    if "only_with" in (metadata := known[name].metadata if name in known else {}):
        other, values = metadata["only_with"]
        return Condition(other if "." in other else f"{section}.{other}", values)
    if section not in TASK_SECTIONS:
        return None
    if named := getattr(TASK_SECTIONS[section], "only_with", None):
        return Condition(*named)
    users = (kind.name for kind in TASKS.values() if section in (kind.section, *kind.uses))
    return Condition("pretrain.task", tuple(users))


def options_set(config: Any) -> set[str]:
    """Options that differ from their defaults, but for those that recipes set for any choice."""
    return {
        f"{section.name}.{f.name}"
        for section in fields(config)
        if is_dataclass(part := getattr(config, section.name))
        for f in fields(part)
        if not f.metadata.get("recipes") and getattr(part, f.name) != f.default
    }


def require_read(config: Any, options: Iterable[str]) -> None:
    """Refuse options that are set in vain.

    Args:
        config: a ``Config``.
        options: that are set, as ``section.name``.

    Raises:
        ValueError: one is not read; the message says what would make it count.
    """
    for option in sorted(option for option in options if "." in option):
        if condition := unmet(config, option):
            name, values = condition
            wanted = "=" + " or ".join(map(str, values)) if values else ""
            choice = f" {values[0]}" if values else ""
            raise ValueError(
                f"{option}={config.option(option)!r} is an option of {name}{wanted}, which is"
                f" {config.option(name)}; leave it out, or give --{name}{choice}"
            )
