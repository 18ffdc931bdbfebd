"""The whole path: many images and few labels in, a small classifier and a table out.

    python pipeline.py --labels 1pct                   # the embedded digits, offline
    python pipeline.py --data.train photos --labels labels.csv --budget 30min
    accelerate launch pipeline.py --table label_efficiency   # a grid of runs, and its table

It runs every stage and every comparison that is not done yet. The command line is read before torch
is imported: a misspelt option, an unknown table or a missing file of labels is answered at once.
"""

import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from shared.config.command_line import CommandLine, read_command_line
from shared.config.imported import pretraining_is_imported
from shared.config.label_file import require_one_file
from shared.config.methods import CLASSIFIERS, DEPLOYED, METHODS
from shared.config.schema import Config
from shared.runs.table import load_table
from shared.runtime.errors import UserError, exit_code_2
from shared.runtime.files import did_you_mean
from shared.runtime.imports import no_garbage
from shared.runtime.media import abbreviated, say, say_block

if TYPE_CHECKING:
    from accelerate import Accelerator

    from shared.data.images import Splits
    from shared.training.stage import RunStage


def stages() -> dict[str, "RunStage"]:
    """What makes the artifact of each method, in the order in which they run."""
    every: dict[str, RunStage] = {
        name: partial(run_stage, f"stages.{method.stage}", method=name)
        for name, method in METHODS.items()
    }
    return {
        name: stage if name == "pretrain" else partial(with_choice, stage)
        for name, stage in every.items()
    }


def run_stage(module: str, config: Config, accelerator: "Accelerator", **options: object) -> object:
    """Import a stage and run it: those that fit with scikit-learn take a second to import."""
    return import_module(module).run(config, accelerator, **options)


def with_choice(stage: "RunStage", config: Config, accelerator: "Accelerator") -> object:
    """Run a stage that needs labels; suggested ones are chosen before, by stage 1's features."""
    if config.label_set.suggested:
        suggest = import_module("stages.suggest.suggest")
        suggest.choose(config, accelerator)
    return stage(config, accelerator)


def to_train(line: CommandLine) -> dict[str, "RunStage"]:
    """The same, but for stage 1 where imported weights take its place; it alone without labels."""
    every = stages()
    if pretraining_is_imported(line.config):
        del every["pretrain"]
    elif lacks_labels(line):
        return {"pretrain": every["pretrain"]}
    return every


def lacks_labels(line: CommandLine) -> bool:
    """Whether there are own images, no label of any, and no option that may give them.

    A recipe that the line names says itself which labels there are; without them it is refused.
    """
    from shared.data.sources import look_at

    config = line.config
    if line.origin == "recipe" or "labels" in line.flags or config.label_set.file or config.table:
        return False
    if not Path(config.data.train).expanduser().exists():  # the hub's, and the digits
        return False
    train = look_at(config.data, config.label_set).train
    return not train.classes


def run(config: Config, accelerator: "Accelerator", line: CommandLine, began: float) -> None:
    """Three stages and the rows to compare with; then the table of this label set and seed.

    Args:
        config: the run; with ``table`` a grid of runs instead.
        accelerator: of this process.
        line: the command line, whose flags win over a table's and over what is fitted.
        began: when the command was called, in seconds since 1970.
    """
    with no_garbage():
        from shared.networks.build import require_weights
        from shared.runs.fit import fit, settings_as_before
        from shared.runs.forecast import forecast
        from shared.runs.redo import refusal_of
        from shared.runtime.artifacts import read_meta

    if not config.suggests_itself:
        read_meta(config.suggesting, "encoder")
    pace, every = None, to_train(line)
    alone = not every.keys() & CLASSIFIERS
    if config.budget and (config.table or line.origin == "recipe"):
        raise UserError(
            "--budget chooses the lengths of a run on own images: give --data.train, and neither"
            " --config nor --table"
        )
    if line.origin == "open" or (line.origin == "begun" and not alone):
        done = (config.folder_of("pretrain") / "meta.json").exists() and line.origin == "begun"
        to_fit = {name: stage for name, stage in every.items() if not (done and name == "pretrain")}
        config, pace = fit(line, accelerator, to_fit, began)
    elif line.origin != "recipe":
        accelerator.print(settings_as_before(config))
    if config.table:
        from shared.runs.grid import fill

        assess = partial(with_choice, partial(run_stage, "stages.assess.assess"))
        fill(config, accelerator, {**stages(), "assess": assess}, line.flags)
        return
    if pretraining_is_imported(config):
        stages()["pretrain"](config, accelerator)  # says so
    wanted = {name: stage for name, stage in every.items() if config.asks_for(name)}
    for name in wanted:
        require_weights(config, name)
    if config.classical.published:
        read_meta(Path(config.classical.published), "encoder")
    if config.plan:
        forecast(config, accelerator, wanted)
        if refusal := refusal_of(config):
            say(f"as it is, the run will be refused: {refusal}")
        return
    train(config, accelerator, wanted, pace.before if pace else None)


def train(
    config: Config,
    accelerator: "Accelerator",
    wanted: Mapping[str, "RunStage"],
    paced: "Callable[[str, Config, Accelerator], Config] | None" = None,
) -> None:
    """Check data, labels and schedules; run the stages; print the table.

    Args:
        config: the run.
        accelerator: of this process.
        wanted: the stages by their names, in order.
        paced: gives the configuration for a stage, by the time that is left.
    """
    from shared.data.labels import draw_labels, notes_on_list
    from shared.data.sources import open_run
    from shared.runs.cost import Counts
    from shared.runs.deployment import advise
    from shared.runs.fit import warnings_for
    from shared.runs.metrics import legend
    from shared.runs.redo import all_to_redo, pretraining_is_kept, require_same_options
    from shared.runs.results import advice_text, results_text, write_results
    from shared.runtime.progress import counted
    from shared.runtime.stage_folder import OtherSettingsError
    from shared.training.stage import to_follow

    require_same_options(config)
    splits = open_run(config, accelerator)
    # bad labels, impossible schedules and too many processes stop the run before it pretrains
    if not wanted.keys() & CLASSIFIERS:
        return train_alone(config, accelerator, wanted["pretrain"], splits)
    labels = draw_labels(splits, config.label_set.before_choice, config.seed)
    train = splits.train
    apart = "pretrain" in wanted and len(train.held_out)  # imported weights saw none of them
    images = len(train.training_ids)
    require_all_possible(config, wanted, splits, len(labels.ids), accelerator)
    tested = len(splits.test) if splits.test else 0
    accelerator.print(
        f"data: {counted(images, 'image')} for training, {len(labels.ids):,} of them with a label;"
        f" {tested:,} for testing{', which stage 1 sees too, without labels' * bool(apart)}",
        *[] if config.label_set.suggested else labels.notes(train.classes),
        *notes_on_list(splits, config.label_set),
        sep="\n",
    )
    outdated = to_follow(config, splits, labels)
    if outdated and pretraining_is_kept(config, train):
        accelerator.print(
            f"the labels or the images have changed: {', '.join(outdated)} are made again;"
            " the pretraining is kept"
        )
    counts = Counts(images, len(labels.ids), tested, len(train.classes))
    for warning in warnings_for(config, counts, accelerator):
        accelerator.print(warning)
    for name, stage in wanted.items():
        config = paced(name, config, accelerator) if paced else config
        try:
            stage(config, accelerator)
        except OtherSettingsError as error:
            raise all_to_redo(config, error, train) from error

    if accelerator.is_main_process:
        rows = write_results(config.folder)
        this_run = (config.label_set.tag, config.seed)
        own = [row for row in rows if (row["labels"], row["seed"]) == this_run]
        if tested:
            seen = " (stage 1 saw them without their labels)" if apart else ""
            say_block(f"\non {tested:,} test images{seen}; {legend()}")
        say_block(f"\n{results_text(own)}\n\n{advice_text(config.folder, own)}")
        say_block(f"\nrows of all label sets: {config.folder / 'results.jsonl'}")
        advice = advise(config.folder, own)
        say_block(next_commands(config, (advice and advice.ready) or DEPLOYED))


def train_alone(
    config: Config, accelerator: "Accelerator", stage: "RunStage", splits: "Splits"
) -> None:
    """Stage 1, where no image has a label yet; then how to get labels, and to go on."""
    from shared.runs.redo import same_run
    from shared.runtime.progress import counted

    require_all_possible(config, ["pretrain"], splits, 0, accelerator)
    images, columns = splits.train, ""
    if images.columns:
        named = abbreviated(images.columns, 12)
        columns = f" (if a column has them: --data.label_column, of {named})"
    accelerator.print(
        f"data: {counted(len(images), 'image')}, none with a label{columns}: stage 1 alone is"
        " trained"
    )
    stage(config, accelerator)
    folder = shlex.quote(str(config.folder))
    table = f"{folder}/to_label.csv"
    accelerator.print(
        f"next, images to label and a sheet for it:  python -m stages.suggest {folder} --budget 50",
        f"  then stages 2 and 3:  {same_run(config)} --labels {table}",
        sep="\n",
    )


def require_all_possible(
    config: Config,
    wanted: Iterable[str],
    splits: "Splits",
    labels: int,
    accelerator: "Accelerator",
) -> None:
    """Refuse what any stage would refuse, all in one line, before the first one trains."""
    from shared.runs.possible import require_possible
    from shared.runtime.distributed import gather_all

    wanted = [*wanted]
    own = [config.folder_of(name) for name in wanted]
    refused: dict[str, None] = {}  # in order, each once
    for name in wanted:
        try:
            require_possible(config, name, splits, labels, accelerator, own)
        except UserError as error:
            refused[str(error)] = None
    refused = gather_all([refused])[0]  # free memory may differ: all go by the main process
    if refused:
        raise UserError("; ".join(refused))


def next_commands(config: Config, deployed: str) -> str:
    """What to do with a finished run and the method to deploy, one command a line."""
    folder, label_set = shlex.quote(str(config.folder)), config.label_set
    model = config.folder / label_set.folder(deployed, config.seed)
    recipe = f"--config {shlex.quote(str(config.folder / 'config.yaml'))}"
    commands = {
        "classes of new images": f"stages.predict {shlex.quote(str(model))} IMAGE ...",
        "a page with pictures": f"stages.page {folder}",
        "this table again, of all label sets": f"stages.report {folder}",
        "how good features and classifiers are": f"stages.assess {recipe}",
    }
    width = max(map(len, commands))
    lines = (f"  {what:{width}}  python -m {command}" for what, command in commands.items())
    return "next:\n" + "\n".join(lines)


def refuse_missing_files(config: Config) -> None:
    """UserError where the table or the file of labels cannot be read, or is another than before."""
    file = config.label_set.file
    if config.table:
        load_table(config.table)
    elif file and not file.is_file():
        hint = did_you_mean(file)
        raise UserError(f"cannot read the label file {file}: there is no such file{hint}")
    elif file:
        require_one_file(config)


@exit_code_2
def main(argv: Sequence[str] | None = None) -> int:
    """Run the pipeline from a command line."""
    purpose = (
        "Pretrain on all images, fine-tune on few labels, distill into a small student; what is"
        " already done is not done again."
    )
    began = time.time()
    line = read_command_line(argv, "pipeline.py", purpose, ())
    refuse_missing_files(line.config)
    with no_garbage():
        from shared.config.command import run_command  # imports torch

    return run_command(partial(run, line=line, began=began), line.config)


if __name__ == "__main__":
    sys.exit(main())
