"""From a run to its page: all sections together, laid out by the templates, and written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from shared.config.methods import METHODS
from shared.runtime.files import clean, write_atomically
from shared.runtime.lock import SHORT, held
from shared.runtime.media import html_text
from shared.runtime.progress import Progress
from stages.page.blocks import Block, Picture, or_missing, pictures_in
from stages.page.read import Run, read_run
from stages.page.sections import SECTIONS, summary

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Page:
    """The page as plain data.

    Attributes:
        title: its heading.
        summary: what comes first.
        sections: heading -> blocks; the page links to them.
    """

    title: str
    summary: Sequence[Block]
    sections: Mapping[str, Sequence[Block]]

    @property
    def pictures(self) -> list[Picture]:
        """All pictures of the page."""
        return [p for blocks in self.sections.values() for p in pictures_in(blocks)]


def compose(run: Run) -> Page:
    """All sections of a run's page. A section that fails is shown as missing."""
    drawn = Progress("page", len(SECTIONS), "sections").over(SECTIONS.items())
    sections = {heading: or_missing(heading, section, run) for heading, section in drawn}
    title = f"{run.folder.resolve().name}: a classifier from few labels"
    return Page(title, or_missing("Summary", summary, run), sections)


def render(page: Page) -> str:
    """The page as HTML. Every text is escaped; only our own style and script are not."""
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        finalize=html_text,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html").render(
        page=page,
        methods=METHODS.values(),
        css=Markup((HERE / "page.css").read_text()),
        script=Markup((HERE / "sort.js").read_text()),
    )


def write_page(folder: Path, pictures_folder: Path | None = None) -> Path:
    """Write ``<run>/page.html`` and return its path.

    Args:
        folder: ``<output>/<run>``.
        pictures_folder: gets the page's pictures as SVG files too.

    Raises:
        UserError: where the folder holds no finished run, or cannot be written.
    """
    page = compose(read_run(folder))
    path = folder / "page.html"
    html = render(page)
    with held(path, SHORT, advice="copy the folder of the run elsewhere"):
        clean(folder)
        write_atomically(path, html)
        if pictures_folder:
            for picture in page.pictures:
                write_atomically(pictures_folder / f"{picture.name}.svg", picture.svg)
    return path
