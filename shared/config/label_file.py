"""Of files of labels of one name a run holds what was made from one: its folders are called so."""

import filecmp
from contextlib import suppress
from pathlib import Path

from shared.config.labelset import LabelSet
from shared.config.methods import CLASSIFIERS
from shared.config.schema import Config
from shared.config.yaml_files import read_yaml
from shared.runtime.errors import UserError
from shared.runtime.records import REDO, read_json


def require_one_file(config: Config) -> None:
    """Refuse a file of labels where the run holds what another file of the same name made.

    A file that was moved is the same file, and so is a copy while the two are equal; one that lies
    in a copied run takes the place of the original's. What ``--force`` asks for may be of another.

    Raises:
        UserError: naming both files.
    """
    file = config.label_set.file
    if file is None:
        return
    for name in (*CLASSIFIERS, "assess"):
        folder = config.folder_of(name)
        earlier = None if config.forces(name) else _made_from(folder)
        if earlier is None or not _is_another(earlier, file):
            continue
        if not _came_with_the_run(earlier, file, config, folder):
            raise UserError(
                f"{folder} was made from the labels in {earlier}, and those in {file} differ;"
                f" folders are called by the name of the file alone: rename {file}, or delete"
                f" {earlier} if the other takes its place"
            )


def _made_from(folder: Path) -> Path | None:
    """The file of labels of what lies in a stage's folder, done or begun; None where none."""
    with suppress(UserError, AttributeError, KeyError, TypeError):  # the stage says what is damaged
        if (folder / "meta.json").exists():
            return LabelSet.parse(read_json(folder / "meta.json", REDO)["labels"]["given"]).file
        if (folder / "config.yaml").exists():
            return LabelSet.parse(read_yaml(folder / "config.yaml")["labels"]).file
    return None


def _is_another(earlier: Path, file: Path) -> bool:
    """Whether two files are there, with other content."""
    with suppress(OSError):  # it is gone, or whoever reads it says why it cannot be read
        return not (earlier.samefile(file) or filecmp.cmp(earlier, file, shallow=False))
    return False


def _came_with_the_run(earlier: Path, file: Path, config: Config, folder: Path) -> bool:
    """Whether a run was copied with its file of labels, which may have been corrected since."""
    with suppress(UserError, KeyError, TypeError, ValueError, OSError):
        made_as = read_yaml(folder / "config.yaml")
        run = Path(made_as["output"], made_as["run"]).absolute()
        return (config.folder / earlier.absolute().relative_to(run)).samefile(file)
    return False
