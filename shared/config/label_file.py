"""Of files of labels of one name a run holds what was made from one: its folders are called so.

label_file.json  in a stage's folder: which file of labels it is made from
"""

import filecmp
import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

from shared.config.labelset import LabelSet, parse_folder
from shared.config.methods import CLASSIFIERS
from shared.config.schema import Config
from shared.config.yaml_files import read_yaml
from shared.runtime.errors import UserError
from shared.runtime.files import open_regular
from shared.runtime.records import REDO, read_json, read_record

NOTE = "label_file.json"


class FileNote(TypedDict):
    """The file of labels that a stage is made from.

    Attributes:
        file: its absolute path then.
        run: absolute path of the run then.
        sha256: of its content; empty where it is not known.
    """

    file: str
    run: str
    sha256: str


def file_notes(config: Config, stage: str) -> dict[str, str]:
    """``label_file.json`` for the folder of a stage; nothing where no file of labels matters."""
    file = config.label_set.file
    if file is None or stage == "pretrain":
        return {}
    run = str(config.run_folder.absolute())
    note = FileNote(file=str(file.absolute()), run=run, sha256=_sha256(file))
    return {NOTE: json.dumps(note, indent=1)}


def require_one_file(config: Config) -> None:
    """Refuse a file of labels where the run holds what another file of the same name made.

    The folders of all seeds count, and those of the run whose variant this is. A file that was
    moved is the same file, and so is a copy while the two are equal; one that lies in a copied run
    takes the place of the original's. What ``--force`` asks for may be of another.

    Raises:
        UserError: naming both files; or a note is damaged.
    """
    file = config.label_set.file
    if file is None:
        return
    for name, seed, folder in _folders(config):
        forceable = seed == config.seed
        earlier = None if forceable and config.forces(name) else _made_from(folder)
        if earlier is None or not _takes_the_place(earlier, file, config):
            continue
        anew = f"--force {name} to make it anew" if forceable else "delete that folder"
        raise UserError(
            f"{folder} was made from the labels in {earlier['file']}, and those in {file} differ;"
            " folders are called by the name of the file alone:"
            f" rename {file}, or give another --run, or {anew}"
        )


def is_another(earlier: Path, file: Path) -> bool:
    """Whether two files are there, with other content."""
    with suppress(OSError, ValueError):  # gone, no path, or its reader says why it cannot be read
        return not (earlier.samefile(file) or filecmp.cmp(earlier, file, shallow=False))
    return False


def _takes_the_place(earlier: FileNote, file: Path, config: Config) -> bool:
    """Whether a file is another than that of earlier, and no copy that came with the run."""
    if not is_another(Path(earlier["file"]), file) or earlier["sha256"] == _sha256(file):
        return False
    with suppress(ValueError, OSError):
        within = Path(earlier["file"]).relative_to(earlier["run"])
        return not (config.run_folder / within).samefile(file)
    return True


def _folders(config: Config) -> Iterator[tuple[str, int, Path]]:
    """Method, seed and folder of all that the run has of these labels."""
    for place in dict.fromkeys((config.folder, config.run_folder)):
        for folder in sorted(place.iterdir()) if place.is_dir() else ():
            for name in (*CLASSIFIERS, "assess"):
                tag, seed = parse_folder(folder.name, name) or (None, 0)
                if tag == config.label_set.tag:
                    yield name, seed, folder


def _made_from(folder: Path) -> FileNote | None:
    """The file of labels of what lies in a stage's folder, done or begun; None where none."""
    if (folder / NOTE).exists():
        return read_record(folder / NOTE, FileNote, "delete it")
    given, run = None, Path()  # of an earlier version, which noted what the user typed
    with suppress(UserError, AttributeError, KeyError, TypeError):  # the stage says what is damaged
        if (folder / "config.yaml").exists():
            made_as = read_yaml(folder / "config.yaml")
            given, run = made_as["labels"], Path(made_as.get("output", ""), made_as.get("run", ""))
    with suppress(UserError, AttributeError, KeyError, TypeError):
        if (folder / "meta.json").exists():
            given = read_json(folder / "meta.json", REDO)["labels"]["given"]
        if file := LabelSet.parse(str(given)).file:
            return FileNote(file=str(file.absolute()), run=str(run.absolute()), sha256="")
    return None


def _sha256(file: Path) -> str:
    """Of a file's content; empty where it cannot be read."""
    with suppress(UserError, OSError), open_regular(file) as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
    return ""
