"""Recipe and flags in, one checked ``Config`` out: the only file that knows jsonargparse."""

import difflib
import io
import json
import os
import re
import sys
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import takewhile
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NoReturn, get_args, get_type_hints

import jsonargparse
import yaml

from shared.config.checks import require_one_of
from shared.config.conditions import options_set, require_read
from shared.config.imported import NAMED_BY, imported_options, named_folders
from shared.config.methods import CLASSIFIERS, FORCEABLE, made_by
from shared.config.optimizers import OPTIMIZERS
from shared.config.pretext import TASK_SECTIONS, TASKS
from shared.config.schema import (
    RECIPES,
    RENAMED,
    SECTIONS,
    WISHES,
    Config,
    as_yaml,
    without_other_tasks,
)
from shared.config.yaml_files import LONGEST_SCALAR, read_yaml, require_bounded
from shared.runtime import output
from shared.runtime.errors import UserError, refuse
from shared.runtime.launcher import launcher_number
from shared.runtime.media import say, say_block

KEPT = "recipe.yaml"  # in a run's folder: what was fitted to own images
OF_ONE_CALL = ("output", "force", "budget", "plan", "table")  # options that it must not hold
UNFITTED = RECIPES / "small_machine.yaml"  # of own images, before anything is fitted to them
AFTERWARDS = """\
afterwards: python -m stages.predict runs/NAME/STAGE IMAGE ... (classes of new images),
  stages.page runs/NAME (a page), stages.report runs/NAME (the table), stages.assess --run NAME"""
Origin = Literal["recipe", "kept", "begun", "open"]
# What an error message calls the types.
TYPES = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "NoneType": "null",
}


class _Parser(jsonargparse.ArgumentParser):
    """One line per error, a suggestion for a misspelt option, and help in portions.

    Attributes:
        recipe: the file that is being read, for messages; empty while flags are.
    """

    recipe = ""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        text = " ".join(str(message).split()).replace('Parser key "config"', "--config")
        wrong = re.search(r'key "([\w.]+)":.*? Expected an? (.+)\. Got value: (.*)', text) or (
            re.search(r'key "([\w.]+)":.*? Subtypes: \[(.+?)\] .* Given value: (.*)', text)
        )
        if wrong:
            kind = re.sub(r"<class '(\w+)'>", lambda match: TYPES.get(match[1], match[1]), wrong[2])
            kind = kind.replace(", null", " or null")
            kind = re.sub(r"typing\.Literal\[(.*)\]", r"one of \1", kind)
            text = f"{wrong[1]} must be {kind}, got {wrong[3]}"
        unknown = re.search(r"(unrecognized arguments?: |[oO]ption ')(--)?([\w.-]+)", text)
        if unknown and unknown[1].startswith("unrecognized") and not unknown[2]:
            text = f"{unknown[3]!r} belongs to no option"
        elif unknown:
            dashes, name = unknown[2] or "", unknown[3]
            section = re.search(r"Group '([\w.]+)'", text)
            text = _unknown(f"{section[1]}.{name}" if section else name, self._actions, dashes)
        elif "Unexpected config" in text or "Problems parsing config" in text:
            text = f"the recipe is not YAML of the form 'labels: 1pct': {text}"
        if self.recipe and self.recipe not in text:
            text = f"{self.recipe}: {text}"
        if not self.exit_on_error:
            raise ValueError(text)
        raise SystemExit(refuse(f"{text} (see --help)"))


def _similar(name: str, actions: Sequence[Any]) -> list[str]:
    """Options that somebody who wrote ``name`` may have meant: misspelt, or of any section."""
    known = [o.removeprefix("--") for action in actions for o in action.option_strings]
    known = [option for option in known if option != name]  # it exists, but not in this place
    return (
        difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        or [option for option in known if option.endswith("." + name.split(".")[-1])]
        or difflib.get_close_matches(name, known, n=1)
    )


def _unknown(name: str, actions: Sequence[Any], dashes: str = "") -> str:
    """What to say of an option that is not known, with those that may be meant."""
    close = [dashes + option for option in _similar(name, actions)]
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    return f"unknown option {dashes}{name}{hint}"


class _Help(jsonargparse.DefaultHelpFormatter):
    """Leaves out the types: choices are listed, and the default shows what else is meant."""

    def _get_help_string(self, action: Any) -> str:
        return super()._get_help_string(action).replace("type: %(type)s, ", "")


def _parser(program: str, description: str) -> _Parser:
    parser = _Parser(
        prog=program,
        description=description,
        default_env=False,
        allow_abbrev=False,
        formatter_class=_Help,
    )
    parser.add_argument(
        "--config",
        action="config",
        help="recipe (a YAML file); unset: configs/digits.yaml, for own images a fitted one",
    )
    parser.add_class_arguments(Config, None)
    for action in parser._actions:
        if hasattr(action, "_check_type"):  # a typed one
            _name_overflow(action)
        if action.dest == "method":
            action.metavar = _choices(made_by("finetune"))
        elif action.dest.endswith(".optimizer"):
            action.metavar = _choices(OPTIMIZERS)
        elif action.dest == "pretrain.task":
            action.metavar = "TASK"
            action.help = f"{action.help} Tasks: {', '.join(TASKS)}."
        elif action.dest == "print_config":
            action.metavar = "[=flags]"  # the parser's own has a control character
            action.help = "print the resolved recipe and exit; flags: skip_default, skip_unset"
        elif action.dest == "force":
            action.help = f"{action.help}: {', '.join(FORCEABLE)} or all"
    return parser


def _name_overflow(action: Any) -> None:
    """Let an option say that it is too large for a float; Python's error does not name it."""
    check = action._check_type

    def named(value: Any, **kwargs: Any) -> Any:
        try:
            return check(value, **kwargs)
        except OverflowError as error:
            raise ValueError(
                f"{action.dest} must be a number of at most 308 digits, got {str(value)[:20]}..."
            ) from error

    action._check_type = named


@cache
def _built_parser() -> _Parser:
    """To build one takes a third of the time of a command line. Help changes its parser."""
    return _parser("", "")


def _reused_parser(program: str, description: str = "") -> _Parser:
    parser = _built_parser()
    parser.prog, parser.description, parser.recipe = program, description, ""
    return parser


def _choices(names: Iterable[str]) -> str:
    """As argparse shows the choices of an option."""
    return "{" + ",".join(names) + "}"


@dataclass(frozen=True)
class CommandLine:
    """What a command line asks for.

    Attributes:
        config: the configuration.
        flags: the options that the line gave (not those of the recipe): ``{"labels",
            "pretrain.temperature", ...}``; and those that an imported network decides.
        arguments: the line without ``--config``, with these.
        origin: where the settings are from: "recipe", one that the line named, or the digits' own;
            "kept", what was fitted to own images before; "begun", the same for stage 1 alone, whose
            options are among the flags; "open", to be fitted yet.
    """

    config: Config
    flags: frozenset[str]
    arguments: tuple[str, ...]
    origin: Origin

    def with_recipe(self, recipe: Path) -> "CommandLine":
        """The same line with another recipe, which the flags win over; the run's name stays."""
        arguments = ["--config", str(recipe), *self.arguments]
        try:
            config = _config(_strict_parser().parse_args(arguments, defaults=False), self.flags)
        except (ValueError, OverflowError) as error:
            raise UserError(f"{recipe.name}, which is for this machine: {error}") from error
        return replace(self, config=replace(config, run=self.config.run))


def load_config(
    argv: Sequence[str] | None, program: str, description: str, sections: Sequence[str] = SECTIONS
) -> tuple[Config, frozenset[str]]:
    """`read_command_line` for a stage alone: the configuration, and the options that were given.

    Settings that nothing was fitted to yet are taken as they are, and a line says so.

    Raises:
        SystemExit: also with code 2 for ``--budget`` and ``--plan``, which are not for it.
    """
    line = read_command_line(argv, program, description, sections)
    if line.config.budget:
        _reused_parser(program).error("--budget is for pipeline.py, which runs all stages")
    if line.config.plan:
        _reused_parser(program).error("--plan is for pipeline.py and stages.pretrain")
    if line.origin in ("open", "begun"):
        _say(
            f"settings: {UNFITTED.name} as it is; pipeline.py fits them to the images, the machine"
            " and the time, and keeps them for all stages"
        )
    return line.config, line.flags


def read_command_line(
    argv: Sequence[str] | None, program: str, description: str, sections: Sequence[str] = SECTIONS
) -> CommandLine:
    """Read recipe and flags.

    Without ``--config`` the recipe is the embedded digits'. Where ``--data.train`` names own
    images, it is what was fitted to them in this run's folder, or else the one for small machines.

    Args:
        argv: the command line without the program's name; ``None`` takes the process's own.
        program: its name, for ``--help``.
        description: one or two sentences for ``--help``.
        sections: the sections that ``--help`` spells out; the others are named, and
            ``--help SECTION`` shows any of them.

    Raises:
        SystemExit: with code 2 and one line for an unknown option or section of ``--help``, a wrong
            type or a value out of range; with code 0 after ``--help`` and ``--print_config``.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if wanted := {"-h", "--help"} & set(arguments):
        asked = arguments[arguments.index(wanted.pop()) + 1 :]
        parser = _parser(program, description)
        of_section = list(takewhile(lambda word: not word.startswith("-"), asked))
        try:
            for name in of_section:
                require_one_of(SECTIONS, "the section of --help", name)
        except ValueError as error:
            raise SystemExit(refuse(str(error))) from error
        if of_section:
            _print_help(parser, of_section, alone=True)
        else:
            _print_help(parser, sections)
        raise SystemExit(0)
    parser = _reused_parser(program, description)
    recipe, flags = _recipe_first(arguments)
    try:
        _require_bounded(recipe, flags)
        # Only the parser can tell a flag from a value: it names those that stand on the line.
        asked = [flag for flag in flags if not flag.startswith("--print_config")]  # which leaves
        given = parser.parse_args(asked, defaults=False)
        typed = frozenset(given.keys())
        origin, place, options = "recipe", [], []
        if not recipe:
            recipe, place, options, origin = _usual_recipe(given)
        parser.recipe = recipe[-1].removeprefix("--config=")  # what is wrong now is in it
        _require_bounded([], options)  # `kept_origin` has read the recipe itself within bounds
        in_recipe = parser.parse_args([*recipe, *place], defaults=False)
        _require_sections(in_recipe)
        if options:
            asked, flags = [*options, *asked], [*options, *flags]
            given = parser.parse_args(asked, defaults=False)
        if least := [f"--{option}=0" for option in _least_passes(frozenset(given.keys()))]:
            asked, flags = [*asked, *least], [*flags, *least]
            given = parser.parse_args(asked, defaults=False)
        parser.recipe = ""
        fixed = frozenset(given.keys())
        config = _config(in_recipe.update(given), fixed)
        folders = [*named_folders(config), config.folder_of("pretrain")]
        renamed = {new for new, old in RENAMED.items() if old in fixed}
        imported = imported_options(config, folders, fixed | renamed)
        own = [f"--{option}={_as_text(value)}" for option, value in imported.items()]
        if imported:
            fixed |= imported.keys()
            config = _config(in_recipe.update(parser.parse_args(own, defaults=False)), fixed)
        if flags != asked:
            _print_config_and_leave(parser, [*recipe, *place, *flags, *own])
        if not config.table:  # whose rows may read them
            require_read(config, options_set(config) | typed)
            if "suggested_by" in typed and not config.label_set.suggested:
                raise ValueError(
                    f"suggested_by={config.suggested_by} is an option of labels=<n>suggested, which"
                    f" is {config.labels}; leave it out, or give --labels 14suggested"
                )
        _say_imported(imported)
        return CommandLine(config, fixed, (*flags, *own), origin)
    except (ValueError, OverflowError) as error:
        parser.error(str(error))


def _print_config_and_leave(parser: _Parser, arguments: Sequence[str]) -> None:
    """What ``--print_config`` asks for; the parser itself says nothing of a full disk."""
    text = io.StringIO()
    try:
        with redirect_stdout(text):
            parser.parse_args(arguments)
    finally:
        output.write(text.getvalue())


def refuse_unknown_options(program: str) -> None:
    """Answer a misspelt option of this process's own command line, and read nothing else.

    A stage that is run alone calls this before it imports torch, and reads its line in ``main``.

    Raises:
        SystemExit: with code 2 and one line for an unknown option or a wrong type.
    """
    _, flags = _recipe_first(sys.argv[1:])
    if {"-h", "--help"} & set(flags):
        return  # ``main`` knows what to say
    parser = _reused_parser(program)
    try:
        _require_bounded([], flags)
        asked = [flag for flag in flags if not flag.startswith("--print_config")]
        parser.parse_args(asked, defaults=False)
    except (ValueError, OverflowError) as error:
        parser.error(str(error))


def _require_bounded(recipe: Sequence[str], flags: Sequence[str]) -> None:
    """ValueError where a recipe or a flag stands for more than options can hold."""
    for name in (argument.removeprefix("--config=") for argument in recipe):
        if name != "--config" and not os.path.isdir(name):  # a folder the parser refuses
            _read_recipe(Path(name))
    for flag in flags:
        if (name := flag.partition("=")[0].removeprefix("--")) in SECTIONS and flag != name:
            raise ValueError(f"--{name} is a section of options, such as --{_options_of(name)[0]}")
        if len(flag) > LONGEST_SCALAR:
            raise ValueError(f"{flag[:40]}... has {len(flag):,} characters; at most 4,096")
        if "&" in flag:
            with suppress(yaml.YAMLError):
                require_bounded(flag.partition("=")[2] or flag)


@cache
def _options_of(section: str) -> list[str]:
    """The options of a section; of the empty one those of no section."""
    names = [action.dest for action in _built_parser()._actions]
    return [
        name
        for name in names
        if name.rpartition(".")[0] == section
        and name not in {*SECTIONS, "config", "help", "print_config"}
    ]


def _read_recipe(file: Path) -> dict[str, Any]:
    """A recipe: options, and sections of options.

    The parser gets nothing else. Of other text in the place of a section it would open the file,
    or import the module, that is called so.

    Raises:
        UserError: it is no YAML, goes beyond the bounds, or holds something else.
    """
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise UserError(f"{file}: not YAML of the form 'labels: 1pct'")
    known = {option for section in ("", *SECTIONS) for option in _options_of(section)}
    for name, value in content.items():
        if name in SECTIONS and not isinstance(value, dict):
            raise UserError(f"{file}: {name} must be a section of options, got {value!r}")
        is_section = isinstance(value, dict) and name not in known
        options = [f"{name}.{key}" for key in value] if is_section else []
        if name not in SECTIONS:
            options = options or [name]
        if unknown := [option for option in options if option not in known]:
            raise UserError(f"{file}: {_unknown(str(unknown[0]), _built_parser()._actions)}")
        given = value.values() if is_section else [value]
        for option, setting in zip(options, given, strict=True):
            if setting is None and option not in _may_be_null():
                raise UserError(f"{file}: {option} has no value; give one, or take the line out")
    return content


@cache
def _may_be_null() -> frozenset[str]:
    """The options of which null is a value; jsonargparse takes it for any in a recipe."""
    classes = {"": Config} | {name: type(getattr(Config(), name)) for name in SECTIONS}
    return frozenset(
        f"{section}.{name}".removeprefix(".")
        for section, options in classes.items()
        for name, kind in get_type_hints(options).items()
        if NoneType in get_args(kind)
    )


def _as_text(value: Any) -> str:
    """The value of an option as a command line has it."""
    return value if isinstance(value, str) else json.dumps(value)


def _say(line: str) -> None:
    """A line, once of several processes."""
    if launcher_number("RANK", 0) == 0:
        say(line)


def _say_imported(options: Mapping[str, Any]) -> None:
    """One line about the options that an imported network decides."""
    if options:
        settings = ", ".join(f"{option} {_as_text(value)}" for option, value in options.items())
        _say(f"from the imported network: {settings} (flags win)")


def read_config(recipe: Path) -> Config:
    """The configuration of a recipe, or of a run's ``config.yaml``.

    Raises:
        UserError: where the file is missing or damaged, or holds an unknown option, a wrong type or
            a value out of range.
    """
    _read_recipe(recipe)
    try:
        arguments = ["--config", str(recipe)]
        return _config(_strict_parser().parse_args(arguments, defaults=False))
    except (ValueError, OverflowError) as error:
        raise UserError(f"{recipe}: {error}") from error


def placed(config: Config, run: Path) -> Config:
    """The configuration of a run as it lies there now: its folder may have been moved.

    Args:
        config: of the run, with the folders as they were.
        run: its folder.

    Raises:
        UserError: no run can be called as the folder is.
    """
    run = Path(os.path.abspath(run)) if run.name in ("", "..") else run
    by = config.suggested_by
    alike = os.path.isabs(config.output) == os.path.isabs(by or "")
    if by and alike and not os.path.exists(by):  # moved along, or seen from elsewhere
        by = os.path.normpath(run.parent / os.path.relpath(by, config.output))
    try:
        return replace(config, output=str(run.parent), run=run.name, suggested_by=by)
    except ValueError as error:
        raise UserError(f"{run}: {error}; rename the folder") from error


def override(config: Config, changes: Mapping[str, Any]) -> Config:
    """The configuration with some options changed, checked as flags are.

    An imported network that is named by one of them decides its input, as on a command line.

    Args:
        config: to start from; not changed.
        changes: ``{"pretrain.temperature": 0.5, ...}``.

    Raises:
        UserError: for an unknown option, a wrong type or a value out of range.
    """
    plain: dict[str, Any] = {}
    for key, value in (dict.fromkeys(_least_passes(changes), 0) | dict(changes)).items():
        section, _, name = key.rpartition(".")
        (plain.setdefault(section, {}) if section else plain)[name] = value
    try:
        base = replace(config, **WISHES)
        changed = _config(_strict_parser().parse_object(plain, defaults=False), base=base)
        folders = named_folders(changed, changes.keys() & set(NAMED_BY))
        options = imported_options(changed, folders, changes)
        require_read(changed, changes)
        return override(config, {**options, **changes}) if options else changed
    except (ValueError, OverflowError) as error:
        raise UserError(str(error)) from error


@cache
def _strict_parser() -> _Parser:
    """A parser that raises ValueError rather than leave."""
    parser = _parser("", "")
    parser.exit_on_error = False
    return parser


def _config(
    namespace: jsonargparse.Namespace, flags: Collection[str] = (), base: Config | None = None
) -> Config:
    """What the parser read, checked; an option's old name counts where its new one is no flag.

    Args:
        namespace: options that were given; the parser knows their types.
        flags: of these, the names of the flags.
        base: has the others, by default the schema's.
    """
    _require_sections(namespace)
    for new, old in RENAMED.items():
        if (value := namespace.get(old)) is not None and new not in flags:
            namespace[new] = value
        namespace[old] = None
    base, values = base or Config(), namespace.clone(with_meta=False).as_dict()
    for name in values.keys() & set(SECTIONS):
        values[name] = replace(getattr(base, name), **values[name])
    values.pop("config", None)
    return replace(base, **values)


def _least_passes(options: Collection[str]) -> list[str]:
    """The recipe's least numbers of passes that do not hold, because steps are given beside."""
    pairs = ((f"{name}.steps", f"{name}.least_epochs") for name in SECTIONS)
    return [least for steps, least in pairs if steps in options and least not in options]


def _require_sections(namespace: jsonargparse.Namespace) -> None:
    for name in SECTIONS:
        if name in namespace and not isinstance(namespace[name], jsonargparse.Namespace):
            raise ValueError(f"{name} must be a section of options, got {namespace[name]!r}")


def _recipe_first(arguments: list[str]) -> tuple[list[str], list[str]]:
    """``--config RECIPE`` (the embedded one by default) and the other flags, which win over it."""
    recipe, rest = [], []
    for i, argument in enumerate(arguments):
        if argument == "--plan" and arguments[i + 1 : i + 2] not in (["true"], ["false"]):
            argument = "--plan=true"
        named = argument == "--config" or (i > 0 and arguments[i - 1] == "--config")
        (recipe if named or argument.startswith("--config=") else rest).append(argument)
    return recipe, rest


def _usual_recipe(
    given: jsonargparse.Namespace,
) -> tuple[list[str], list[str], list[str], Origin]:
    """The recipe where none is named, and how it was chosen.

    Returns:
        The recipe, the run that own images belong to, flags fitted to stage 1, the origin.
    """
    train = given.get("data.train", "digits")
    if train == "digits":
        return ["--config", str(RECIPES / "digits.yaml")], [], [], "recipe"
    run = given.get("run") or run_name(train)
    kept = Path(given.get("output") or Config.output) / run / KEPT
    place, usual = ["--run", run], ["--config", str(UNFITTED)]
    origin, options = kept_origin(kept)
    recipe = {"open": usual, "begun": [*usual, "--config", str(kept)]}
    return recipe.get(origin, ["--config", str(kept)]), place, options, origin


def kept_origin(kept: Path) -> tuple[Origin, list[str]]:
    """What a run's own recipe is now: "open" where there is none, "begun" or "kept".

    Args:
        kept: the file.

    Returns:
        The origin, and the flags that a recipe stands for which was fitted to stage 1 alone.

    Raises:
        UserError: the file is no recipe, goes beyond the bounds, or has an option of one call.
    """
    if not kept.is_file():
        return "open", []
    plain = _read_recipe(kept)
    if others := [name for name in OF_ONE_CALL if plain.get(name)]:
        raise UserError(
            f"{kept}: {others[0]} is not for a run's own recipe; delete the line, and give"
            f" --{others[0]} on the command line"
        )
    if "labels" in plain:
        return "kept", []
    options = {}
    for name, value in plain.items():
        section = value if isinstance(value, dict) else None
        options |= (
            {name: value} if section is None else {f"{name}.{k}": section[k] for k in section}
        )
    try:
        flags = [f"--{key}={_as_text(value)}" for key, value in options.items() if key != "run"]
    except TypeError as error:  # YAML has dates and sets
        raise UserError(f"{kept}: a value that no option takes: {error}") from error
    return ("begun", flags) if flags else ("kept", [])


def run_name(source: str) -> str:
    """The name of a run on own images: that of their folder or file, or of a pattern's folder."""
    path = Path(source)
    while "*" in path.name and not path.exists():
        path = path.parent
    name = re.sub(r"[@:].*", "", path.name)
    name = re.sub(r"[^\w.-]+", "-", name.removesuffix(".parquet")).lstrip("-_.")
    return name or "images"


def recipe_of(config: Config, labels: str | None, flags: Collection[str]) -> str:
    """What is kept of a configuration that was fitted: all but the wishes for one call.

    Args:
        config: what was fitted.
        labels: the recipe's own, which hold where none are given. None where there are none yet and
            stage 1 alone was fitted: of the later stages only the flags are kept then.
        flags: options that were given.
    """
    wishes = {"run", "output", "labels", "suggested_by", "seed", "method", "tracker", *WISHES}
    plain = without_other_tasks(config, asdict(config))
    plain = {name: value for name, value in plain.items() if name not in wishes}
    if labels is not None:
        return as_yaml({"run": config.run, "labels": labels, **plain, "table": None})
    for section in {method.section for method in CLASSIFIERS.values()}:
        plain[section] = {k: v for k, v in plain[section].items() if f"{section}.{k}" in flags}
    return as_yaml({"run": config.run, **plain})


def _print_help(parser: _Parser, sections: Sequence[str], alone: bool = False) -> None:
    """Help for the run and the named sections, or for these alone.

    Each other section gets one line, and what comes after a run another.
    """
    hidden = []
    for group in parser._action_groups:
        destinations = [action.dest for action in group._group_actions]
        section = next((name for name in SECTIONS if name in destinations), None)
        group._group_actions = [a for a in group._group_actions if a.dest not in SECTIONS]
        if section and section not in sections:
            if section not in TASK_SECTIONS:
                hidden.append(f"  --{section}.*  {group.title}")
            group._group_actions = []
            group.title = None
        elif alone and not section:
            group._group_actions, group.title = [], None
        elif section:
            group.title = f"--{section}.*  {group.title}"
    parser.usage = f"{parser.prog} [--config RECIPE.yaml] [--labels 1pct] [--OPTION VALUE ...]"
    parser.epilog = None
    say_block(parser.format_help())
    if hidden and not alone:
        tasks = f"of a task of stage 1, one section each: {', '.join(TASK_SECTIONS)}"
        hidden += textwrap.wrap(tasks, 98, initial_indent="  ", subsequent_indent="    ")
        say_block("more options; --help SECTION lists one of them:\n" + "\n".join(hidden))
        say_block(AFTERWARDS)
