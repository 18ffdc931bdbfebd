"""The tutorial ``docs/your-images.md`` as a notebook, and with output of a run on this machine.

    python docs/tutorial.py          # writes docs/your-images.ipynb
    python docs/tutorial.py --run    # in the root of a checkout: runs all commands, about eight
                                     # minutes, and writes their output into the Markdown as well

A block of ``bash`` or ``python`` is a command, and a block of ``text`` behind it what it printed.
``tests/test_tutorial.py`` runs the same blocks.
"""

import argparse
import base64
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import nbformat
from nbformat import v4

DOCS = Path(__file__).parent
TUTORIAL = DOCS / "your-images.md"
FENCED = re.compile(r"^```(bash|python|text)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
PROGRESS = re.compile(r".*: [\d,]+ of [\d,]+ \w+, .* left")  # a line of shared.runtime.progress
# A notebook is opened in its own folder, and a kernel need not be the first Python on the path.
BEGIN = """\
import os
import sys
from pathlib import Path

here = Path.cwd()
root = next(folder for folder in (here, *here.parents) if (folder / "pipeline.py").exists())
os.chdir(root)
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])"""


class Block(NamedTuple):
    """A part of the tutorial.

    Attributes:
        kind: markdown, bash, python, or text: what the block before it printed.
        text: without the fence.
    """

    kind: str
    text: str


def blocks_of(tutorial: str) -> list[Block]:
    """The parts of a Markdown text, in order; no part is blank."""
    parts = FENCED.split(tutorial)  # Markdown, then kind, text, Markdown, and so on
    every = [Block("markdown", parts[0])]
    for place in range(1, len(parts), 3):
        every += [Block(parts[place], parts[place + 1]), Block("markdown", parts[place + 2])]
    return [block for block in every if block.text.strip()]


def run(block: Block, folder: Path) -> str:
    """Run a command in a folder.

    Returns:
        What it printed on both streams, without lines of progress.

    Raises:
        RuntimeError: it failed; the message has what it printed.
    """
    shell = ["bash", "-e", "-o", "pipefail", "-c"]
    command = shell if block.kind == "bash" else [sys.executable, "-c"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [*command, block.text],
        cwd=folder,
        env={**os.environ, "PATH": path, "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode} of\n{block.text}\n{done.stdout}")
    lines = done.stdout.strip().splitlines(keepends=True)
    return "".join(line for line in lines if not PROGRESS.match(line)) + "\n"


def with_output(tutorial: str, run: Callable[[Block], str]) -> str:
    """The Markdown text with what its commands print here."""
    printed = ""

    def replaced(match: re.Match) -> str:
        nonlocal printed
        block = Block(match[1], match[2])
        if block.kind == "text":
            return f"```text\n{printed}```\n"
        printed = run(block)
        return match[0]

    return FENCED.sub(replaced, tutorial)


def notebook_of(tutorial: str, folder: Path) -> nbformat.NotebookNode:
    """The Markdown text as a notebook; pictures, which lie below ``folder``, are inside of it."""
    cells = [v4.new_code_cell(BEGIN)]
    for block in blocks_of(tutorial):
        text = block.text.strip("\n")
        if block.kind == "text":
            cells[-1].outputs = [v4.new_output("stream", name="stdout", text=block.text)]
        elif block.kind == "markdown":
            cells.append(_markdown_cell(text, folder))
        else:
            magic = "%%bash -e\n" if block.kind == "bash" else ""
            cells.append(v4.new_code_cell(magic + text))
    cells.insert(0, cells.pop(1))  # the title comes first
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"  # by lot otherwise
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def _markdown_cell(text: str, folder: Path) -> nbformat.NotebookNode:
    attachments = {}

    def attached(match: re.Match) -> str:
        picture = folder / match[2]
        content = base64.b64encode(picture.read_bytes()).decode()
        attachments[picture.name] = {"image/png": content}
        return f"![{match[1]}](attachment:{picture.name})"

    cell = v4.new_markdown_cell(re.sub(r"!\[(.*?)\]\((.*?)\)", attached, text))
    if attachments:
        cell.attachments = attachments
    return cell


def main() -> None:
    """Write the notebook, and before it the output, if that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", action="store_true", help="run all commands and take their output")
    arguments = parser.parse_args()
    text = TUTORIAL.read_text()
    if arguments.run:
        text = with_output(text, lambda block: run(block, DOCS.parent))
        TUTORIAL.write_text(text)
    nbformat.write(notebook_of(text, DOCS), TUTORIAL.with_suffix(".ipynb"))


if __name__ == "__main__":
    main()
