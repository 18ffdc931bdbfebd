"""What a section of the page is made of: plain data that ``templates/blocks.html`` lays out.

All texts are plain text. The templates escape them.
"""

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, ParamSpec, TypeAlias, Union

from shared.runtime.errors import UserError

P = ParamSpec("P")


@dataclass(frozen=True)
class Picture:
    """A picture inside the page.

    Attributes:
        name: unique in the page; also the name of its file.
        svg: SVG text.
        alt: what the picture shows, for readers who do not see it.
        caption: below the picture.
    """

    kind: ClassVar = "picture"
    name: str
    svg: str
    alt: str
    caption: str

    @property
    def source(self) -> str:
        """The picture as a ``data:`` URI."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg.encode()).decode()}"


@dataclass(frozen=True)
class Table:
    """A table that a click on a column's title sorts.

    Attributes:
        header: titles of the columns.
        rows: cells; the first cell of a row is its title.
        caption: what the numbers are.
        methods: names of the rows' methods, whose colours mark the rows; empty: no colours.
        images: a picture for the title of each of the first rows, as a ``data:`` URI.
    """

    kind: ClassVar = "table"
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str
    methods: Sequence[str] = ()
    images: Sequence[str] = ()


@dataclass(frozen=True)
class Missing:
    """The place of something that the page cannot show, and the reason."""

    kind: ClassVar = "missing"
    what: str
    why: str


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    kind: ClassVar = "heading"
    text: str


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of text."""

    kind: ClassVar = "paragraph"
    text: str


@dataclass(frozen=True)
class Notes:
    """A list of notes."""

    kind: ClassVar = "notes"
    notes: Sequence[str]


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side, and the places of those that are missing."""

    kind: ClassVar = "gallery"
    blocks: "Sequence[Block]"


@dataclass(frozen=True)
class Card:
    """The classifier to deploy for one label set.

    Attributes:
        title: the label set and its number of labels.
        accuracy: in large letters.
        sentences: what the classifier is, and other classifiers to compare with.
        worth: what the labels are worth.
        parameters: their number.
        folder: of the classifier.
    """

    title: str
    accuracy: str
    sentences: Sequence[str]
    worth: "Sequence[Block]"
    parameters: str
    folder: str


@dataclass(frozen=True)
class Summary:
    """The first part of the page: the data, and a card per label set."""

    kind: ClassVar = "summary"
    data: str
    cards: Sequence[Card]


@dataclass(frozen=True)
class Provenance:
    """How the run was made.

    Attributes:
        commands: shell commands.
        facts: name -> text.
        settings: the configuration as YAML, or why it is missing.
    """

    kind: ClassVar = "provenance"
    commands: str
    facts: Mapping[str, str]
    settings: str | Missing


Block: TypeAlias = Union[  # noqa: UP007 (it refers to itself)
    Picture, Table, Missing, Heading, Paragraph, Notes, Gallery, Summary, Provenance
]


def or_missing(
    what: str, make: Callable[P, Iterable[Block]], *args: P.args, **kwargs: P.kwargs
) -> list[Block]:
    """The blocks that ``make(*args)`` gives, or one that says why it cannot.

    Args:
        what: the name of what would be missing.
        make: a section of the page, or a part of one.
        args: its arguments.
        kwargs: its arguments.
    """
    try:
        return list(make(*args, **kwargs))
    except UserError as error:
        return [Missing(what, str(error))]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        # another version wrote the file, or somebody edited it
        return [Missing(what, f"its data lack what the page needs ({error!r})")]


def pictures_in(blocks: Iterable[Block]) -> Iterator[Picture]:
    """All pictures, those of galleries too."""
    for block in blocks:
        if isinstance(block, Picture):
            yield block
        elif isinstance(block, Gallery):
            yield from pictures_in(block.blocks)
