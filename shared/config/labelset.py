"""What ``--labels`` names, parsed once; no other file takes the text apart."""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from shared.config.methods import METHODS
from shared.runtime.errors import UserError

ALLOWED = (
    "1pct, 10pct, 100pct, <x>pct, <n>perclass, <n>random, <n>suggested, or a .txt, .csv"
    " or .tsv file"
)
_SHARE = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,20})?)pct")
_PER_CLASS = re.compile(r"([0-9]{1,12})perclass")
_NUMBER = re.compile(r"([0-9]{1,12})(random|suggested)")
_LONG = re.compile(r"[0-9]+(?:\.[0-9]+)?pct|[0-9]+(?:perclass|random|suggested)")
_FILE = re.compile(r".+\.(?:csv|tsv|txt)", re.IGNORECASE)
LONGEST_TAG = 150  # bytes: folders are called so, with the stage and the seed


@dataclass(frozen=True)
class LabelSet:
    """A label set: a share of the labels, a number per class or in all, or the labels of a file.

    Exactly one of ``share``, ``per_class``, ``random``, ``suggested`` and ``file`` is set.

    Attributes:
        text: as the user wrote it.
        tag: names the label set in folders and results: ``1pct``, or a file's name without its
            suffix; ``file-1pct`` for a file ``1pct.csv``, and ``file-student-x`` for one called
            ``student-x.csv``: other labels, or another method, have folders of these names.
        share: of the labeled images, in [0, 1].
        per_class: images of each class.
        random: images drawn without a look at their classes.
        suggested: images chosen by the features of stage 1 (``stages.suggest``).
        choice: the file in the run's folder that names the suggested images.
        file: a text file of image names, or a CSV file (``shared/data/label_files.py``).
        image_column: of a CSV file, where it cannot be guessed.
        label_column: likewise.
    """

    text: str
    tag: str
    share: float | None = None
    per_class: int | None = None
    random: int | None = None
    suggested: int | None = None
    choice: Path | None = None
    file: Path | None = None
    image_column: str | None = None
    label_column: str | None = None

    @classmethod
    def parse(cls, text: str) -> "LabelSet":
        """Read a value of ``--labels``.

        Raises:
            UserError: where it is none of ``ALLOWED``, or a number is out of range.
        """
        if drawn := cls._drawn(text):
            return drawn
        if _FILE.fullmatch(text):
            tag = Path(text).stem
            if cls.of_tag(tag).file is None or _continues_a_method(tag):
                tag = f"file-{tag}"
            if len(os.fsencode(tag)) > LONGEST_TAG:
                raise UserError(
                    f"labels: the name of {text} is longer than {LONGEST_TAG} bytes, and folders"
                    " are called so; rename the file"
                )
            return cls(text, tag, file=Path(text))
        if _LONG.fullmatch(text):
            raise UserError(
                f"labels={text[:60]}: the number is too long; a share has at most 3 digits and 20"
                " decimals, the others have at most 12 digits"
            )
        raise UserError(f"labels must be {ALLOWED}, got {text!r}")

    @classmethod
    def _drawn(cls, text: str) -> "LabelSet | None":
        """A set that a share or a number names; None for all other texts.

        Raises:
            UserError: the number is out of range.
        """
        if match := _SHARE.fullmatch(text):
            share = float(match[1]) / 100
            if not 0 < share <= 1:
                raise UserError(f"labels={text}: the share must be above 0 and at most 100pct")
            return cls(text, text, share=share)
        if match := _PER_CLASS.fullmatch(text):
            return cls(text, text, per_class=int(match[1]))
        if match := _NUMBER.fullmatch(text):
            if int(match[1]) < 2:
                raise UserError(f"labels={text}: a classifier needs 2 labels or more")
            number = int(match[1])
            if match[2] == "random":
                return cls(text, text, random=number)
            return cls(text, text, suggested=number)
        return None

    @classmethod
    def of_tag(cls, tag: str) -> "LabelSet":
        """The label set that a row of results names, which knows a file by its tag alone."""
        try:
            return cls._drawn(tag) or cls(tag, tag, file=Path(tag))
        except UserError:
            return cls(tag, tag, file=Path(tag))

    @property
    def csv_file(self) -> Path | None:
        """The CSV file, which gives labels to images that have none; None for all others."""
        return self.file if self.file is not None and is_csv(self.file) else None

    @property
    def number(self) -> int | None:
        """How many labels it has in all, where its text says so."""
        return self.random or self.suggested

    @property
    def before_choice(self) -> "LabelSet":
        """As many labels by lot, where images are still to be suggested; else the same.

        Their number alone counts.
        """
        return replace(self, random=self.suggested) if self.suggested else self

    @property
    def title(self) -> str:
        """What text calls it: 1%, 4 per class, 14 at random, 14 suggested, or the file's name."""
        if self.share is not None:
            return f"{self.tag.removesuffix('pct')}%"
        if self.number is not None:
            return f"{self.number} {'at random' if self.random else 'suggested'}"
        return self.tag if self.per_class is None else f"{self.per_class} per class"

    def folder(self, stage: str, seed: int) -> str:
        """Name of the folder of what a stage makes with these labels."""
        return f"{stage}-{self.tag}-seed{seed}"


def _continues_a_method(tag: str) -> bool:
    """Whether a method's folder of this tag is called as that of another method and tag.

    ``supervised`` with ``student-x`` would be called as ``supervised-student`` with ``x``.
    """
    longer = ((name, other) for name in METHODS for other in METHODS if other.startswith(name))
    return any(f"{name}-{tag}".startswith(f"{other}-") for name, other in longer if name != other)


def is_csv(file: Path) -> bool:
    """Whether a file is a table of labels by its suffix: .csv or .tsv, in any case."""
    return file.suffix.lower() in (".csv", ".tsv")


def parse_folder(name: str, stage: str) -> tuple[str, int] | None:
    """Tag and seed of a folder that `LabelSet.folder` named for this stage; None for others."""
    match = re.fullmatch(rf"{re.escape(stage)}-(.+)-seed(0|[1-9][0-9]*)", name)
    return (match[1], int(match[2])) if match else None
