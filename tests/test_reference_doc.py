"""docs/reference.md names tests as evidence: they are there."""

import re
from pathlib import Path

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
