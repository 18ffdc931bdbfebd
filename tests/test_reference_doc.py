"""docs/reference.md and docs/pretext.md name tests as evidence: they are there."""

import re
from pathlib import Path

from shared.config.pretext import TASKS

ROOT = Path(__file__).parents[1]


def rows():
    """(section, behaviour, here, tests) of every table row below "Behaviours"."""
    text = (ROOT / "docs/reference.md").read_text().partition("\n## Behaviours\n")[2]
    for section in text.split("\n### ")[1:]:
        for line in section.splitlines():
            if line.startswith("| ") and not line.startswith("| behaviour"):
                cells = [cell.strip() for cell in line.strip("|").split("|")]
                assert len(cells) == 3, line
                yield section.partition(".")[0], *cells


def test_every_section_has_rows():
    assert list(dict.fromkeys(row[0] for row in rows())) == [str(n) for n in range(1, 15)]


def test_every_named_test_exists():
    for _, behaviour, _, evidence in rows():
        file = ""
        for name in re.findall(r"`([^`]+)`", evidence):
            path, _, test = name.rpartition("::")
            file = path or file
            (place,) = ROOT.glob(f"tests/**/{file.removeprefix('tests/').removesuffix('.py')}.py")
            code = place.read_text()
            assert f"\ndef {test.partition('[')[0]}(" in code, f"{behaviour}: no {name}"


def test_every_pretext_task_has_a_row_and_its_named_tests_exist():
    text = (ROOT / "docs/pretext.md").read_text()
    code = "".join(file.read_text() for file in ROOT.glob("tests/**/test_*.py"))
    assert all(f"\n| `{task}`" in text for task in TASKS)
    names = re.findall(r"test_\w+(?=`)", text)
    assert len(names) >= 4
    assert [name for name in names if f"\ndef {name}(" not in code] == []
