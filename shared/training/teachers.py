"""Which classifiers teach a student, and whether they can teach it."""

from collections.abc import Collection
from pathlib import Path

from shared.config.labelset import LabelSet
from shared.config.schema import Config
from shared.data.images import Splits
from shared.networks.build import require_same_input
from shared.runtime.artifacts import ClassifierMeta, read_meta
from shared.runtime.errors import UserError


def teacher_folders(config: Config, method: str) -> list[Path]:
    """The classifiers that teach: the self-distilled one for a student with ``self_first``."""
    given = config.given_teachers(method)
    return list(map(Path, given) if given else map(config.folder_of, config.parents_of(method)))


def read_teachers(
    config: Config, method: str, apart_from: Collection[Path] = ()
) -> dict[Path, ClassifierMeta]:
    """The classifiers that teach, and what each is; all see the run's images, and agree on labels.

    Args:
        config: of the student.
        method: of ``METHODS``.
        apart_from: resolved folders that are left out, as they are not made yet.

    Raises:
        UserError: one was made for other images, or two of them are the same network, know other
            classes or were made from other labels.
    """
    teachers: dict[Path, ClassifierMeta] = {}
    for folder in teacher_folders(config, method):
        if folder.resolve() in apart_from:
            continue
        meta = read_meta(folder, "classifier")
        require_same_input(meta, config.data, folder)
        for other, its in teachers.items():
            both = f"the teachers {other} and {folder}"
            if its["weights_sha256"] == meta["weights_sha256"]:
                raise UserError(f"{both} are the same network; give one of them")
            if its["classes"] != meta["classes"]:
                raise UserError(
                    f"{both} know other classes ({len(its['classes'])} and"
                    f" {len(meta['classes'])}), or in another order; they must be the same"
                )
            hashes = {its["labels"]["hash"], meta["labels"]["hash"]} - {None}  # None: imported
            if len(hashes) > 1:
                raise UserError(
                    f"{both} were made from other labels; give teachers of one label draw: of one"
                    " --seed, or of one file of --labels"
                )
        teachers[folder] = meta
    return teachers


def require_same_task(
    teacher: ClassifierMeta, folder: Path, splits: Splits, label_set: LabelSet
) -> None:
    """UserError where the teacher knows other classes, or was made from another label set."""
    classes = splits.train.classes or (splits.test.classes if splits.test else ())
    if classes and list(classes) != teacher["classes"]:
        raise UserError(
            f"the teacher {folder} knows {len(teacher['classes'])} classes"
            f" ({', '.join(teacher['classes'][:3])}, ...), the images have"
            f" {len(classes)} ({', '.join(classes[:3])}, ...); they must be the same"
        )
    taught_with = teacher["labels"]
    if taught_with["number"] and LabelSet.parse(taught_with["given"]).tag != label_set.tag:
        raise UserError(
            f"the teacher {folder} was trained with --labels {taught_with['given']}, now it is"
            f" {label_set.text}; give the same"
        )
