"""docs/your-images.md: its commands work and print what it says; the notebook is the same."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest

from shared.data.label_files import read_csv
from shared.runtime.artifacts import read_meta

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/your-images.md"
CODE = ("pipeline.py", "shared", "stages", "configs", "docs")
# What depends on the networks, which differ from machine to machine: the choice, and its reasons.
JUDGED = re.compile(
    r"\w+: (Deploy|For now, deploy): |Undecided: |Whether pretraining|Pretraining (paid|did)|note: "
    "|.*not clearly|distill: .* epochs now|  classes of new images "
)


def tutorial():
    """The module docs/tutorial.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("tutorial", ROOT / "docs/tutorial.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TUTORIAL = tutorial()
TEXT = PAGE.read_text()
BLOCKS = TUTORIAL.blocks_of(TEXT)


def stable(line: str) -> str:
    """A line without what differs from run to run: numbers, durations, hashes, spaces."""
    line = re.sub(r"\bhash \w+", "hash #", line)
    line = re.sub(r"[+-]?\d[\d.,]*(e[+-]\d+)?", "#", line)
    return " ".join(re.sub(r"# ?(s|min|hours|kB|MB|GiB)\b", "#", line).split())


def missing(documented: str, printed: str) -> list[str]:
    """The lines that a command should have printed."""
    lines = {stable(line) for line in printed.splitlines()}
    expected = [line for line in documented.splitlines() if not JUDGED.match(line)]
    return [line for line in expected if stable(line) not in lines]


# ------------------------------------------------------------------------------------ the page
@pytest.mark.slow
def test_the_commands_work_and_print_what_the_page_says(tmp_path):
    for name in CODE:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    printed = ""
    for block in BLOCKS:
        if block.kind in ("bash", "python"):
            printed = TUTORIAL.run(block, tmp_path)
        elif block.kind == "text":
            assert missing(block.text, printed) == [], printed
    run = tmp_path / "runs/pictures"
    rows = read_csv(run / "to_label.csv").labeled
    assert (len(rows), len(read_csv(run / "to_test.csv").labeled)) == (30, 50)
    for method in ("features-logistic", "distill"):
        read_meta(run / f"{method}-to_label-seed0", "classifier")
    results = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    assert max(row["top1"] for row in results) > 0.5  # on a busy machine not the student's
    assert "the same class on 200 of 200 pictures" in printed
    assert {f.name for f in (tmp_path / "tutorial").iterdir()} == {
        "pictures",
        "new",
        "predictions.csv",
        "predictions.csv.meta.json",
        "classifier.onnx",
    }
    assert (run / "page.html").stat().st_size > 10_000


def test_every_step_of_the_road_is_in_it():
    commands = "\n".join(block.text for block in BLOCKS if block.kind == "bash")
    steps = ["stages.pretrain", "stages.suggest", "pipeline.py", "stages.assess", "stages.page"]
    steps += ["stages.predict", "stages.export"]
    assert [step for step in steps if step not in commands] == []
    (trained, again) = re.findall(r"python pipeline.py .*", commands)
    assert trained == again
    outputs = [block.text for block in BLOCKS if block.kind == "text"]
    assert any("pretrain: already done" in text for text in outputs)
    assert all(len(text.splitlines()) for text in outputs)
    assert str(Path.home()) not in TEXT


def test_a_failing_command_fails(tmp_path):
    bad = ["```bash\nfalse\ntrue\n```\n", "```bash\nfalse | cat\n```\n", "```python\n1 / 0\n```\n"]
    for text in bad:
        (block,) = TUTORIAL.blocks_of(text)
        with pytest.raises(RuntimeError, match="exit code 1"):
            TUTORIAL.run(block, tmp_path)


@pytest.mark.parametrize(
    ("documented", "printed", "expected"),
    [
        ("pretrain: done in 45 s, a/b", "x\npretrain: done in 2.1 min, a/b", []),
        ("labels (hash 0f1e), 3 steps", "labels (hash aa99), 1,200 steps", []),
        ("a  12.5  -  1.2", "a 100.0 - 9.25", []),
        ("to_label: Deploy: student (a), 9%", "", []),
        ("pretrain: done in 45 s, a/b", "pretrain: done in 45 s, a/c", True),
        ("pretrain: already done", "pretrain: done", True),
    ],
)
def test_what_must_be_printed(documented, printed, expected):
    assert missing(documented, printed) == ([documented] if expected else [])


def test_pictures_are_small_and_there():
    names = re.findall(r"!\[.*?\]\((.*?)\)", TEXT)
    assert len(names) >= 2
    assert sum((PAGE.parent / name).stat().st_size for name in names) < 300_000
    pictures = {f.relative_to(PAGE.parent).as_posix() for f in (ROOT / "docs").rglob("*.png")}
    assert pictures == set(names)


def test_the_readme_leads_to_it():
    assert "docs/your-images.md" in (ROOT / "README.md").read_text()


# -------------------------------------------------------------------------------- the notebook
def test_the_notebook_is_valid_and_says_the_same():
    """After a change of the page: python docs/tutorial.py."""
    notebook = nbformat.read(PAGE.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(notebook)
    assert notebook == TUTORIAL.notebook_of(TEXT, PAGE.parent)


def test_the_notebook_needs_nothing_beside_it():
    cells = TUTORIAL.notebook_of(TEXT, PAGE.parent).cells
    assert cells[0].source.startswith("# Your images")
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    commands = [block.text.strip() for block in BLOCKS if block.kind in ("bash", "python")]
    assert [source.removeprefix("%%bash -e\n") for source in code[1:]] == commands
    for cell in cells:
        pictures = re.findall(r"!\[.*?\]\((.*?)\)", cell.source)
        attached = [f"attachment:{name}" for name in cell.get("attachments", {})]
        assert pictures == attached
    compile(code[0], "the first cell", "exec")


def test_the_first_cell_finds_the_repository(tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    (tmp_path / "pipeline.py").touch()
    monkeypatch.chdir(tmp_path / "docs")
    monkeypatch.setenv("PATH", "/nowhere")
    exec(TUTORIAL.BEGIN, {})
    assert Path.cwd() == tmp_path
    assert shutil.which("python") == str(Path(TUTORIAL.sys.executable).parent / "python")
