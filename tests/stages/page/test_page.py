"""The page of a run: complete, honest about what is missing, and at home in a real browser."""

import json
import re
import shutil
from dataclasses import replace

import pytest

from shared.config.command_line import load_config
from shared.runtime.errors import UserError
from stages.page import page
from tests.support.run_folder import assess, fill_table, make_run


@pytest.fixture(scope="module")
def config():
    return load_config([], "test", "")[0]


@pytest.fixture(scope="module")
def full(config, tmp_path_factory):
    """A run with everything; its page is written once."""
    run = make_run(tmp_path_factory.mktemp("runs") / "digits", config)
    assess(run)
    fill_table(run)
    assert page.main([str(run), str(run / "pictures")]) == 0
    return run


@pytest.fixture
def bare(config, tmp_path):
    """One label set, one draw, no assessment, no table."""
    return make_run(tmp_path / "bare", config, draws=1, labels=("1pct",))


def missing(html: str) -> list[str]:
    return re.findall(r'class="missing"><b>(.*?): missing', html)


def test_everything_is_there(full):
    html = (full / "page.html").read_text()
    assert missing(html) == ["Transfer"]  # and why it failed
    assert "no such folder or file: elsewhere" in html
    run = page.read_run(full)
    for labels in ("1pct", "10pct"):
        rows = page.groups(run.rows)[labels, "distill"]
        assert f"{page.percent(page.accuracy(rows, 360)['mean'])}%" in html
    assert "3 label draws" in html
    assert "1,437 training images, 360 test images, 10 classes, 8 × 8 pixels" in html
    assert "This equals supervised training from scratch on more than 144 labels (10%)" in html
    for stage in ("Pretraining", "Supervised from scratch", "Fine-tuned teacher"):
        assert f"{stage}; " in html  # the caption of its learning curves
    assert "--labels 10pct --seed $seed" in html
    assert "abc123" in html  # the commit
    assert "torch 2.15.0" in html


def test_every_picture_says_what_it_shows(full):
    html = (full / "page.html").read_text()
    pictures = re.findall(r"<img [^>]*>", html)
    assert len(pictures) == 16
    assert all(len(re.search(r'alt="(.*?)"', tag)[1]) > 20 for tag in pictures)
    files = sorted(path.name for path in (full / "pictures").iterdir())
    assert len(files) == 16  # each under a name of its own
    assert {"label-efficiency.svg", "confusion-1pct.svg", "learning-distill.svg"} <= set(files)


def test_table_cells_that_failed_or_are_missing_are_shown(full):
    html = (full / "page.html").read_text()
    assert "A small table" in html
    assert "<td class=gap>missing</td>" in html
    assert "<td class=gap>failed [1]</td>" in html
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
    html = page.page(page.read_run(bare))
    assert missing(html) == [
        "What these labels are worth",
        "distill-1pct-seed1",
        "A curve",
        "Tables",
        "Calibration, confusion, mistakes, map, retrieval, robustness, transfer",
        "Learning curve, distilled student",
    ]
    assert "1 label draw, 360 test images" in html


def test_outdated_results_are_named(bare):
    """What the student was made from has other weights now."""
    file = bare / "distill-1pct-seed0/meta.json"
    told = json.loads(file.read_text())
    told |= {"parent": "../pretrain", "settings": {"parent": "other weights"}}
    file.write_text(json.dumps(told))
    html = page.results(page.read_run(bare))
    assert missing(html) == ["distill-1pct-seed0"]
    assert "distilled student" not in html


def test_unknown_data_and_damaged_files_cost_their_part_alone(bare, config):
    where = assess(bare)
    whole = (where / "assess.npz").read_bytes()
    (where / "assess.npz").write_bytes(whole[: len(whole) // 2])
    (bare / "config.yaml").write_text("labls: 1pct\n")
    with (bare / "finetune-1pct-seed0/metrics.jsonl").open("a") as file:
        file.write('{"step": 15')
    run = page.read_run(bare)
    assert "labls" in run.config
    assert "damaged" in page.assessments(run)
    assert "1 damaged lines left out" in page.learning(run)
    assert "numbers of images unknown" in page.summary(run)
    assert "labls" in page.provenance(run)
    with pytest.raises(UserError, match="labls"):
        page.views(run)


def test_edited_assessment_costs_its_part_alone(bare):
    where = assess(bare)
    told = json.loads((where / "assess.json").read_text())
    del told["map"], told["clusters"]["nmi"]
    (where / "assess.json").write_text(json.dumps(told))
    html = page.assessments(page.read_run(bare))
    assert missing(html) == ["Map of the features", "Clusters", "Transfer"]
    assert "--assess.parts map" in html
    assert "KeyError(&#x27;nmi&#x27;)" in html


def test_views_are_those_of_pretraining(bare, config, monkeypatch):
    """Step 0 of the same generator; the images shown are in [0, 1] again after normalisation."""
    seen = {}
    monkeypatch.setattr(page.pictures, "pairs", lambda *a: seen.update(images=a) or None)
    monkeypatch.setattr(page, "figure", lambda *a: "")
    run = page.read_run(bare)
    page.views(run)
    plain = seen["images"]
    data = replace(config.data, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    page.views(replace(run, config=replace(config, data=data)))
    for before, after in zip(plain, seen["images"], strict=True):
        assert before.shape == (6, 8, 8, 3)
        assert abs(before - after).max() < 1e-6
    assert abs(plain[1] - plain[2]).max() > 0.1  # two views


USAGE = "usage: python -m stages.page runs/NAME [FOLDER FOR THE PICTURES]\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere"], 2, "error: no such run: nowhere\n"),
        (["."], 2, "error: no finished classifier in .; run pipeline.py first\n"),
        ([], 2, USAGE),
        (["--help"], 0, USAGE),
    ],
)
def test_bad_input(arguments, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert page.main(arguments) == code
    assert capsys.readouterr().err == message


def row(stage: str, n: int, seed: int, top1: float) -> dict:
    return {"stage": stage, "labels": f"{n}perclass", "n_labels": n, "seed": seed, "top1": top1}


def test_labels_worth():
    """Half way between 10 and 1000 labels, on the logarithm, are 100."""
    rows = [
        row("supervised", 10, 0, 0.5),
        row("supervised", 1000, 0, 0.9),
        row("distill", 10, 0, 0.7),
    ]
    found = page.labels_worth(rows, "10perclass", "distill", 1000)
    assert found == "100 labels (10%) (1 label draw; supervised results at 10 and 1,000 labels)"
    rows += [
        row("supervised", 10, 1, 0.5),
        row("supervised", 1000, 1, 0.9),
        row("distill", 10, 1, 0.7),
        row("distill", 10, 2, 0.1),
        row("supervised", 10, 2, 0.1),
    ]
    found = page.labels_worth(rows, "10perclass", "distill", None)  # seed 2 is not complete
    assert found.startswith("100 labels, in every resample (2 label draws;")
    with pytest.raises(UserError, match="several label counts"):
        page.labels_worth(rows[1:3], "10perclass", "distill", None)


def test_interval():
    assert page.wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    one = [row("distill", 10, 0, 0.5)]
    assert page.accuracy(one, 10)["low"] == pytest.approx(0.2366, abs=1e-4)
    assert page.accuracy(one, None)["low"] == 0.5  # nothing known of the spread
    two = page.accuracy([*one, row("distill", 10, 1, 0.6)], 10)
    assert (two["mean"], two["n"], two["of"]) == (0.55, 2, "2 label draws")
    assert (two["low"], two["high"]) == (0, 1)  # Student's t: 0.55 ± 0.64
    assert page.accuracy([{"stage": "distill"}], 10) is None


def test_student_is_deployed_else_the_most_accurate():
    rows = [row("finetune", 10, 0, 0.9), row("linear", 10, 0, 0.8)]
    assert page.winner(rows) == "finetune"
    assert page.winner([*rows, row("distill", 10, 0, 0.7)]) == "distill"


def browser_path(playwright) -> str | None:
    """An installed Chromium; playwright's own, if somebody has fetched it."""
    found = map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))
    own = playwright.chromium.executable_path
    return next(filter(None, found), own if shutil.which(own) else None)


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        path = browser_path(playwright)
        if path is None:
            pytest.skip("no Chromium or Chrome is installed")
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def test_in_a_browser(full, browser):
    """Pictures, sorting, a phone's width, dark and print; no error, no request."""
    view = browser.new_page(viewport={"width": 1200, "height": 900})
    said, requests = [], []
    view.on("console", lambda message: said.append(message.text))
    view.on("pageerror", lambda error: said.append(str(error)))
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

    assert said == []
    assert [url for url in requests if not url.startswith("data:")] == [address]
    view.close()
