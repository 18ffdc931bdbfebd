"""Optional stage 4: how good are the features and the classifiers of a run?

    accelerate launch -m stages.assess --labels 1pct
    accelerate launch -m stages.assess --assess.parts map,ood --assess.ood photos/
    accelerate launch -m stages.assess --labels 100pct --assess.parts labels   # wrong labels, twins

It reads the run's ``pretrain`` (or ``--linear.init``) and every finished classifier of the run. It
writes ``<output>/<run>/assess-<labels>-seed<seed>``; ``shared/runs/assessment.py`` says what is in
it. No network is trained: their hashes before and after are kept. A part is not measured again
while its networks, data and options stay the same. A part that fails does not stop the others, and
the next call tries it again.
"""

import json
import time
import traceback
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from accelerate import Accelerator

from shared.config.command import run_command
from shared.config.command_line import load_config
from shared.config.label_file import file_notes
from shared.config.schema import Config, dump
from shared.runs.assessment import Assessment, read_arrays, read_assessment, save_assessment
from shared.runtime.distributed import lost_contact, refuse_together
from shared.runtime.errors import UserError, exit_code_2, out_of_memory
from shared.runtime.files import clean, delete, write_atomically
from shared.runtime.lock import clear, release, take
from shared.runtime.media import say, say_block
from shared.runtime.progress import Progress
from shared.runtime.provenance import provenance
from shared.runtime.stop import Stopped, StopRequest
from stages.assess import label_part
from stages.assess.inputs import Arrays, Inputs, open_inputs
from stages.assess.parts import PARTS, settings_of_parts, wanted_parts
from stages.assess.text import assessment_text


def run(config: Config, accelerator: Accelerator) -> Path:
    """Measure what is not measured yet, part by part, and print the table.

    Args:
        config: the run's configuration.
        accelerator: of this process. All processes apply the networks; the main process does the
            rest.

    Returns:
        The folder ``<output>/<run>/assess-<labels>-seed<seed>``.

    Raises:
        UserError: on bad input; and where a part failed, after all others are saved.
        Stopped: after saving the current part, where a signal asked for it.
    """
    inputs = open_inputs(config, accelerator)
    wanted = wanted_parts(config, inputs)
    path = config.folder_of("assess")
    settings = settings_of_parts(inputs)
    again = wanted if config.forces("assess") else []
    if not all(file.exists() for file in label_part.files(config)):
        again = [*again, "labels"]
    earlier, arrays = load(path, settings, again)
    todo = missing(wanted, earlier)
    if todo or not (path / "meta.json").exists():  # written last, so an earlier call may lack it
        refuse_together(partial(take, path), accelerator.is_main_process)
        earlier, arrays = load(path, settings, again)  # now nobody else writes it
        todo = missing(wanted, earlier)
    done = not todo and (path / "meta.json").exists()
    accelerator.wait_for_everyone()  # all have read before one writes
    if earlier is not None and done:
        if inputs.is_main:
            release(path)
            clear(path)
        accelerator.print(f"assess: already done, {path}\n\n{_text(config, earlier, wanted)}")
        return path

    empty: Assessment = {"about": inputs.about(), "seconds": {}, "made_from": {}, "failed": {}}
    assessment = earlier or empty
    assessment["about"], assessment["failed"] = empty["about"], {}
    assessment.setdefault("seconds", {})  # the file of an earlier version may lack it
    if inputs.is_main:
        _begin(path, config)
    before = inputs.hashes()
    bar = Progress("assess", len(todo), "parts", shown=inputs.is_main)
    for part in bar.over(todo):
        bar.note(f"last {part}")
        measure(part, inputs, settings[part], assessment, arrays)
        if inputs.is_main:
            save_assessment(path, assessment, arrays)
        if StopRequest.agreed(0):
            raise Stopped(
                "stopped as asked after a part of assess, which is saved: run the same"
                " command to go on"
            )
    after = inputs.hashes()
    if after != before:
        raise AssertionError("the assessment changed a network")
    if inputs.is_main:
        assessment["hashes"] = {
            name: {"before": before[name], "after": after[name]} for name in after
        }
        save_assessment(path, assessment, arrays)
        if not assessment["failed"]:
            write_meta(path, inputs, settings)
        release(path)
        text = _text(config, assessment, wanted)
        say_block(f"{text}\n\nnumbers and arrays: {path / 'assess'}.json, .npz")
    if failed := assessment["failed"]:
        messages = "; ".join(f"{part}: {message}" for part, message in failed.items())
        raise UserError(
            f"{len(failed)} of {len(todo)} parts failed, the others are saved, and the"
            f" same command tries again: {messages}"
        )
    return path


def missing(wanted: Sequence[str], assessment: Assessment | None) -> list[str]:
    """The parts that are not measured yet."""
    return [part for part in wanted if assessment is None or part not in assessment]


def _begin(path: Path, config: Config) -> None:
    """The folder says what is measured, and no longer that all is done."""
    clean(path, alone=True)
    delete(path / "meta.json")
    for name, text in {"config.yaml": dump(config), **file_notes(config, "assess")}.items():
        write_atomically(path / name, text)


def _text(config: Config, assessment: Assessment, wanted: Sequence[str]) -> str:
    """The tables of the wanted parts, and what to do with the labels that may be wrong."""
    others = PARTS.keys() - set(wanted)
    shown = {key: value for key, value in assessment.items() if key not in others}
    text = assessment_text(cast(Assessment, shown))
    return f"{text}\n\n{label_part.next_command(config)}" if "labels" in shown else text


def measure(
    part: str, inputs: Inputs, setting: str, assessment: Assessment, arrays: Arrays
) -> None:
    """Measure one part; the main process adds its numbers, or why it failed, and its arrays."""
    began = time.perf_counter()
    measured = None
    try:
        measured = PARTS[part](inputs)
    except Exception as error:  # the other parts are measured all the same
        if lost_contact(error):
            raise
        if not (isinstance(error, UserError) or out_of_memory(error)):
            traceback.print_exc()
        assessment["failed"][part] = " ".join(f"{error or type(error).__name__}".split())
    inputs.accelerator.wait_for_everyone()
    if inputs.is_main and measured is not None:
        numbers, arrays_of_part = measured
        cast(dict[str, Any], assessment)[part] = numbers
        assessment["made_from"][part] = setting
        assessment["seconds"][part] = round(time.perf_counter() - began, 1)
        arrays |= {f"{part}/{name}": array for name, array in arrays_of_part.items()}


def write_meta(path: Path, inputs: Inputs, settings: dict[str, str]) -> None:
    """``meta.json``: every part is done."""
    network = inputs.pretrained_meta
    meta = {
        "kind": "assessment",
        "stage": "assess",
        "seed": inputs.config.seed,
        "encoder": network["encoder"],
        "image_size": network["image_size"],
        "weights_sha256": network["weights_sha256"],
        "labels": {
            "given": inputs.config.labels,
            "hash": inputs.labels.hash,
            "number": len(inputs.labels.ids),
        },
        "settings": settings,
        **provenance(),
    }
    write_atomically(path / "meta.json", json.dumps(meta, indent=1))


def load(
    path: Path, settings: dict[str, str], again: Collection[str]
) -> tuple[Assessment | None, Arrays]:
    """The parts of an earlier call that still hold; None where there is none, or it is damaged.

    Args:
        path: the folder.
        settings: part -> hash of everything that its numbers depend on.
        again: parts that are to be measured again.
    """
    if not ((path / "assess.json").exists() and (path / "assess.npz").exists()):
        return None, {}
    try:
        assessment, arrays = read_assessment(path), read_arrays(path)
        made_from = assessment["made_from"]
        outdated = {part for part, setting in made_from.items() if setting != settings[part]}
        outdated |= made_from.keys() & set(again)
        outdated |= {part for part in made_from if part not in assessment}  # also damaged ones
        for part in outdated:
            cast(dict[str, Any], assessment).pop(part, None)
            del made_from[part]
    except (UserError, KeyError, AttributeError) as error:
        reason = error.__cause__ or error
        say(f"{path} is damaged ({reason}); all of it is measured again", error=True)
        return None, {}
    kept = {name: array for name, array in arrays.items() if name.partition("/")[0] not in outdated}
    return assessment, kept


@exit_code_2
def main(argv: Sequence[str] | None = None) -> int:
    """Run this stage alone."""
    purpose = (
        "Optional stage 4: how good the features and the classifiers of a run are; writes"
        " <output>/<run>/assess-<labels>-seed<seed>."
    )
    config, _ = load_config(argv, "stages.assess", purpose, ("assess",))
    return run_command(run, config)
