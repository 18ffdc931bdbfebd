"""The contact sheet: what is typed or clicked is in the saved file, and nothing is sent."""

import base64
import io
import json
import re
from html import unescape

import pytest
import torch
from PIL import Image

from shared.data.label_files import read_csv
from stages.suggest.sheet import sheet, thumbnail

NAMES = ["a/0.png", "=1+1.png", 'a "b", <i>c.png', "naïve\u202e.png", "line\nbreak.png", "'=x.png"]
HOSTILE = '</script><script>document.title = "bad"</script>'
PIXEL = thumbnail(torch.zeros(3, 2, 2, dtype=torch.uint8))


def html(names=NAMES, kept=(), classes=()) -> str:
    return sheet("photos", "to_label.csv", kept, names, [PIXEL] * len(names), classes)


# ------------------------------------------------------------------------------------- as a file
@pytest.mark.parametrize(
    ("shape", "size", "kind"),
    [
        ((8, 8), (8, 8), "PNG"),
        ((64, 10), (10, 64), "PNG"),
        ((300, 600), (192, 96), "JPEG"),
        ((1000, 20), (4, 192), "JPEG"),
    ],
)
def test_thumbnails_keep_the_shape(shape, size, kind):
    source = thumbnail(torch.full((3, *shape), 200, dtype=torch.uint8))
    head, _, content = source.partition(",")
    assert head == f"data:image/{kind.lower()};base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
        assert (picture.size, picture.format) == (size, kind)
        assert picture.convert("RGB").getpixel((1, 1)) == (200, 200, 200)


@pytest.mark.parametrize("place", ["names", "kept", "classes"])
def test_names_are_escaped(place):
    values = {"names": [HOSTILE], "kept": [(HOSTILE, HOSTILE)], "classes": [HOSTILE, "{{ 7 * 7 }}"]}
    page = html(**{place: values[place]})
    assert page.count("<script") == 2  # the data and ours
    assert page.count("</script>") == 2
    assert "<script>document" not in page
    text = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert json.loads(text[0])[place] == json.loads(json.dumps(values[place]))


def test_the_policy_allows_one_script_and_no_request():
    page = html()
    policy = unescape(re.findall(r'Content-Security-Policy" content="(.*?)"', page)[0])
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    assert "://" not in page
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []


# ---------------------------------------------------------------------------------- in a browser
@pytest.fixture
def opened(browser, tmp_path):
    """Opens a sheet; in the end no error was shown and nothing was asked for."""
    messages, requests, address = [], [], []

    def open_(page: str):
        file = tmp_path / "to_label.html"
        file.write_text(page)
        view = browser.new_page()
        view.on("console", lambda message: messages.append(message.text))
        view.on("pageerror", lambda error: messages.append(str(error)))
        view.on("request", lambda request: requests.append(request.url))
        address.append(file.as_uri())
        view.goto(address[0])
        return view

    yield open_
    assert messages == []
    assert {url for url in requests if not url.startswith(("data:", "blob:"))} == {*address}


def saved(view, tmp_path) -> list[tuple[str, str]]:
    """The rows of the file that the page saves, as ``--labels`` reads them."""
    with view.expect_download() as download:
        view.click("#save")
    assert download.value.suggested_filename == "to_label.csv"
    file = tmp_path / "to_label.csv"
    download.value.save_as(file)
    return read_csv(file).rows


def test_typed_and_clicked_and_saved(opened, tmp_path):
    view = opened(html(kept=[("old.png", "=old")], classes=["cat", "dog", "x"]))
    assert view.inner_text("#status") == "0 of 6 labeled"
    view.keyboard.press("1")  # the key of cat
    view.keyboard.type("Zebra")  # a new class: a letter that is no key begins to write
    view.keyboard.press("Enter")
    keys = view.locator("#classes button").all_inner_texts()
    assert [key.split() for key in keys] == [["cat", "1"], ["dog", "2"], ["x"], ["Zebra", "3"]]
    view.click("#classes button:has-text('Zebra')")
    view.keyboard.press("x")
    view.locator(".card").nth(5).click()
    view.fill("#field", '  a, "b"; =c ')
    view.click("#set")
    assert view.inner_text("#name").startswith("5 of 6")  # the first one without a label
    view.fill("#field", "-1")
    view.keyboard.press("Enter")
    assert "-1 means no label" in view.inner_text("#status")
    view.fill("#field", '=HYPERLINK("x")')
    view.keyboard.press("Enter")
    assert view.inner_text("#status") == "6 of 6 labeled, not saved yet"
    view.locator(".card").nth(1).click()
    view.keyboard.press("Backspace")
    expected = ["cat", "", "Zebra", "x", '=HYPERLINK("x")', 'a, "b"; =c']
    rows = [("old.png", "=old"), *zip(NAMES, expected, strict=True)]
    assert saved(view, tmp_path) == rows
    for line in (tmp_path / "to_label.csv").read_text(encoding="utf-8-sig").splitlines():
        assert not re.search(r'(^|,)"?[=+@]', line)
    told = "5 of 6 labeled, saved as to_label.csv where this browser keeps downloads"
    assert view.inner_text("#status") == told


def test_names_do_nothing_in_the_page(opened):
    view = opened(html(names=[HOSTILE, "b.png"], classes=[HOSTILE]))
    view.keyboard.type("<img src=x onerror=alert(1)>")
    view.keyboard.press("Enter")
    assert view.title() == "photos"
    assert view.locator("img").count() == 3
    assert view.inner_text(".card b") == "<img src=x onerror=alert(1)>"


def test_digits_as_classes_are_typed_as_they_are(opened, tmp_path):
    view = opened(html(names=["0.png", "1.png", "2.png"], classes=["0", "1", "7"]))
    for key in ("7", "0", "1"):
        view.keyboard.press(key)
    assert saved(view, tmp_path) == [("0.png", "7"), ("1.png", "0"), ("2.png", "1")]


def test_arrows_move_and_a_reload_keeps_what_was_typed(opened, tmp_path):
    view = opened(html(classes=["cat", "dog"]))
    view.keyboard.press("ArrowRight")
    view.keyboard.press("ArrowRight")
    view.keyboard.press("ArrowLeft")
    view.keyboard.press("2")
    view.on("dialog", lambda dialog: dialog.accept())
    view.reload()
    assert view.inner_text("#status") == "1 of 6 labeled, not saved yet"
    assert saved(view, tmp_path)[1] == (NAMES[1], "dog")
    view.reload()
    assert view.inner_text("#status") == "1 of 6 labeled"


def test_five_hundred_images(opened, tmp_path):
    names = [f"{i}.png" for i in range(500)]
    view = opened(html(names=names, classes=["cat", "dog"]))
    view.locator(".card").nth(480).click()
    for i in range(480, 500):
        view.keyboard.press("12"[i % 2])
    rows = saved(view, tmp_path)
    assert rows == [(n, ("cat", "dog")[i % 2] if i >= 480 else "") for i, n in enumerate(names)]
