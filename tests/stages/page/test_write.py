"""The page of a run: complete, honest about what is missing, and at home in a real browser."""

import json
import re
import tomllib
from html import unescape
from pathlib import Path

import pytest

from shared.runs.text import percent
from stages.page.facts import accuracy, groups
from stages.page.read import read_run
from stages.page.write import compose, render, write_page
from tests.support.run_folder import assess, fill_table, make_run


@pytest.fixture(scope="module")
def full(config, tmp_path_factory):
    """A run with everything; its page is written once."""
    run = make_run(tmp_path_factory.mktemp("runs") / "digits", config)
    assess(run)
    fill_table(run)
    assert write_page(run, run / "pictures") == run / "page.html"
    return run


def missing(html: str) -> list[str]:
    return re.findall(r'class="missing"><b>(.*?): missing', html)


def test_everything_is_there(full):
    html = (full / "page.html").read_text()
    assert missing(html) == ["Transfer"]  # and why it failed
    assert "no such folder or file: elsewhere" in html
    run = read_run(full)
    for labels in ("1pct", "10pct"):
        group = groups(run.rows)[labels, "distill"]
        assert f"{percent(accuracy(group.measurements('top1'), 360).mean)}%" in html
    assert "3 label draws" in html
    assert "1,437 training images, 360 test images, 10 classes, 8 × 8 pixels" in html
    assert "This equals supervised training from scratch on more than 144 labels (10%)" in html
    for stage in ("Pretraining", "Supervised from scratch", "Fine-tuned teacher"):
        assert f"{stage}; " in html  # the caption of its learning curves
    assert "--labels 10pct --seed $seed" in html
    assert html.count('<i class="dot distill">') == 2
    assert ".dot.distill { background: #D55E00 }" in html
    assert "abc123" in html  # the commit
    assert "torch 2.15.0" in html


def test_every_picture_says_what_it_shows(full):
    html = (full / "page.html").read_text()
    pictures = re.findall(r"<img src[^>]*>", html)
    assert len(pictures) == 16
    thumbnails = re.findall(r'<th scope="row"><img class="thumbnail" src="(.*?)" alt="">', html)
    assert len(thumbnails) == 5  # beside the names that say what they show
    assert all(source.startswith("data:image/png;base64,") for source in thumbnails)
    assert all(len(re.search(r'alt="(.*?)"', tag)[1]) > 20 for tag in pictures)
    files = sorted(path.name for path in (full / "pictures").iterdir())
    assert len(files) == 16  # each under a name of its own
    assert {"label-efficiency.svg", "confusion-1pct.svg", "learning-distill.svg"} <= set(files)


def test_table_cells_that_failed_or_are_missing_are_shown(full):
    html = (full / "page.html").read_text()
    assert "A small table" in html
    assert '<td class="gap">missing</td>' in html
    assert '<td class="gap">failed [1]</td>' in html
    assert "the loss is nan &lt;at&gt; step 3" in html


def test_nothing_lies_outside_the_file(full):
    html = (full / "page.html").read_text()
    links = re.findall(r"(?:src=|href=|url\()[\"']?([^\"'>)]+)", html)
    assert len(links) > 20
    assert all(link.startswith(("data:", "#s")) for link in links)
    assert "default-src 'none'" in html


def test_what_is_missing_is_said(bare):
    """And one draw has the interval over the test images."""
    (bare / "distill-1pct-seed0/metrics.jsonl").unlink()
    (bare / "distill-1pct-seed1").mkdir()
    (bare / "distill-1pct-seed1/settings.json").write_text("{}")
    html = render(compose(read_run(bare)))
    assert missing(html) == [
        "What these labels are worth",
        "distill-1pct-seed1",
        "A curve",
        "Tables",
        "Calibration, confusion, mistakes, map, retrieval, robustness, transfer",
        "Learning curve, distilled student",
    ]
    assert "1 label draw, 360 test images" in html


def test_edited_assessment_costs_its_part_alone(bare):
    where = assess(bare)
    numbers = json.loads((where / "assess.json").read_text())
    del numbers["clusters"]["nmi"]
    (where / "assess.json").write_text(json.dumps(numbers))
    html = render(compose(read_run(bare)))
    assert missing(html)[-2:] == ["Clusters", "Transfer"]
    assert "KeyError('nmi')" not in html
    assert "KeyError('nmi')" in unescape(html)


def test_a_damaged_result_costs_its_sections_alone(bare):
    """The whole summary may be missing."""
    for file in bare.glob("*-1pct-seed0/meta.json"):
        meta = json.loads(file.read_text())
        del meta["result"]["parameters"]
        file.write_text(json.dumps(meta))
    html = render(compose(read_run(bare)))
    assert missing(html)[:3] == ["Summary", "Results", "What the labels are worth"]
    assert "1 run" in html  # learning curves


HOSTILE = "<script>alert('1')</script> \"&{{ 7 * 7 }}"


def test_names_from_files_are_escaped(config, tmp_path):
    """Classes, label sets, messages, captions, alternative texts, the name of the run."""
    run = make_run(tmp_path / "a <b> & 'c'", config, draws=1, labels=('mine <i> "x"', "1pct"))
    where = assess(run, 'mine <i> "x"')
    numbers = json.loads((where / "assess.json").read_text())
    numbers["about"]["classes"] = [f"{HOSTILE} {i}" for i in range(10)]
    numbers["about"]["encoder"] = HOSTILE
    numbers["failed"] = {"transfer": HOSTILE}
    numbers["baselines"]["rows"][0]["method"] = HOSTILE
    numbers["labels"]["suspects"][0] |= dict.fromkeys(("file", "label", "suggested"), HOSTILE)
    numbers["labels"]["twins"][0][0]["file"] = f"{HOSTILE}\x1b[2J"
    (where / "assess.json").write_text(json.dumps(numbers))
    table = fill_table(run)
    summary = json.loads((table / "summary.json").read_text())
    summary |= {"title": HOSTILE, "messages": [HOSTILE]}
    (table / "summary.json").write_text(json.dumps(summary))
    html = render(compose(read_run(run)))
    assert html.count("<script>") == 1  # ours
    assert "<i>" not in html
    assert "<b>" not in re.sub('<p class="missing"><b>', "", html)
    assert unescape(html).count(HOSTILE) >= 5
    pages = re.findall(r'<figure id="(confusion-.*?)">', html)
    assert list(map(unescape, pages)) == ['confusion-mine <i> "x"']
    assert "\x1b" not in html
    for tag in re.findall(r"<img src[^>]*>", html):
        assert re.fullmatch(r'<img src="data:image/svg\+xml;base64,[\w+/=]+" alt="[^"<>]+">', tag)


@pytest.mark.parametrize(("stage", "number"), [("page", 4), ("suggest", 3)])
def test_templates_are_part_of_the_package(stage, number):
    """What is no Python file must be named in pyproject.toml."""
    project = Path(__file__).parents[3]
    tool = tomllib.loads((project / "pyproject.toml").read_text())["tool"]
    patterns = tool["setuptools"]["package-data"][f"stages.{stage}"]
    room = project / "stages" / stage
    packaged = {path for pattern in patterns for path in room.glob(pattern)}
    files = {path for path in room.rglob("*") if path.suffix in (".html", ".css", ".js")}
    assert len(files) == number
    assert files == packaged


def test_in_a_browser(full, browser):
    """Pictures, sorting, a phone's width, dark and print; no error, no request."""
    view = browser.new_page(viewport={"width": 1200, "height": 900})
    messages, requests = [], []
    view.on("console", lambda message: messages.append(message.text))
    view.on("pageerror", lambda error: messages.append(str(error)))
    view.on("request", lambda request: requests.append(request.url))
    address = (full / "page.html").as_uri()
    view.route(re.compile("^(?!data:|file:)"), lambda route: route.abort())
    view.goto(address)

    sizes = view.evaluate("[...document.images].map(i => [i.complete, i.naturalWidth])")
    assert len(sizes) == 16
    assert all(done and width > 100 for done, width in sizes)

    table = view.locator("table").first
    column = "table => [...table.tBodies[0].rows].map(row => row.cells[3].textContent)"
    before = table.evaluate(column)
    order = sorted(range(len(before)), key=lambda i: float(before[i].split()[0]))
    head = table.locator("th button").nth(3)
    head.click()
    assert table.evaluate(column) == [before[i] for i in order]
    assert table.locator("thead th").nth(3).get_attribute("aria-sort") == "ascending"
    head.click()
    assert [float(v.split()[0]) for v in table.evaluate(column)] == sorted(
        (float(v.split()[0]) for v in before), reverse=True
    )
    assert table.locator("[aria-sort=descending]").count() == 1

    overflow = "document.documentElement.scrollWidth - innerWidth"
    ground = "getComputedStyle(document.body).backgroundColor"
    assert view.evaluate(overflow) <= 0
    view.set_viewport_size({"width": 390, "height": 844})
    assert view.evaluate(overflow) <= 0
    view.emulate_media(color_scheme="dark")
    assert view.evaluate(ground) == "rgb(22, 25, 29)"
    view.emulate_media(media="print", color_scheme="dark")
    assert view.evaluate(ground) == "rgb(255, 255, 255)"  # paper is white
    assert not view.locator("nav").is_visible()
    view.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert view.locator("details:not([open])").count() == 0
    assert view.pdf().startswith(b"%PDF")

    assert messages == []
    assert [url for url in requests if not url.startswith("data:")] == [address]
    view.close()
