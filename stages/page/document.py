"""A self-contained HTML document: figures, tables that sort, and what is missing.

It needs no other file and no network: styles, script and pictures are inside, and its security
policy forbids every request. It is light or dark as the reader has it, and fits a phone and paper.
"""

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from matplotlib.figure import Figure

from shared.runtime.errors import UserError
from stages.page import pictures

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

# Light or dark as the reader has it; ink on white in print.
CSS = """
:root{color-scheme:light dark;--ink:#24292f;--soft:#59626c;--line:#d0d5da;--paper:#fff;
--card:#f5f7f9;--warn:#a3480a}
@media screen and (prefers-color-scheme:dark){:root{--ink:#e3e6e9;--soft:#a3adb8;--line:#434a52;
--paper:#16191d;--card:#1f242a;--warn:#f0a36b}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem 1rem 4rem;max-width:72rem;color:var(--ink);
background:var(--paper);font:1rem/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.7rem;line-height:1.2;margin:.5rem 0}
h2{font-size:1.25rem;margin:3rem 0 .75rem;padding-top:.75rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1.5rem 0 .5rem}
nav{font-size:.9rem;margin:1.5rem 0}nav a{margin-right:1rem}a{color:inherit}
p{margin:.4rem 0;max-width:44rem}
.lead{margin-bottom:1rem;max-width:none}.lead,figcaption,dt,nav,.notes{color:var(--soft)}
.cards{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,19rem),1fr))}
article{background:var(--card);border-radius:.5rem;padding:.25rem 1.1rem .8rem;font-size:.92rem}
article h3{margin:.75rem 0 0}
.big{font-size:2.4rem;font-weight:650;line-height:1.1;margin:.2rem 0 .5rem;
font-variant-numeric:tabular-nums}
.pictures{display:flex;flex-wrap:wrap;gap:1.5rem 2.5rem;align-items:flex-start}
figure{margin:.5rem 0;max-width:100%;break-inside:avoid}
figure img{display:block;max-width:100%;height:auto}
figcaption{font-size:.85rem;line-height:1.4;margin-top:.5rem;width:0;min-width:100%}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums;
overflow-wrap:normal}
th,td{padding:.3rem 0 .3rem 1rem;text-align:right;white-space:nowrap;
border-bottom:1px solid var(--line)}
th:first-child{text-align:left;padding-left:0}
thead th{vertical-align:bottom;padding-bottom:.15rem}tbody th{font-weight:400}
th button{all:unset;cursor:pointer;font-weight:600}
th button:focus-visible{outline:2px solid}
th button::after{content:"\\a0↕";color:var(--line)}
th[aria-sort=ascending] button::after{content:"\\a0↑";color:inherit}
th[aria-sort=descending] button::after{content:"\\a0↓";color:inherit}
.dot{display:inline-block;width:.6em;height:.6em;border-radius:50%;margin-right:.55em}
.missing,td.gap{color:var(--warn)}
.missing{border-left:3px solid;padding-left:.7rem;font-size:.9rem}
pre{white-space:pre-wrap;background:var(--card);padding:.8rem;border-radius:.5rem;font-size:.82rem}
dt{font-size:.85rem;margin-top:.6rem}dd{margin:0}
summary{cursor:pointer;margin:1rem 0}
@media (max-width:40rem){th:first-child{position:sticky;left:0;background:var(--paper);
white-space:normal;min-width:9rem}}
@media print{body{max-width:none;padding:0;font-size:10pt}:root{color-scheme:light}
nav{display:none}h2,h3{break-after:avoid}tr,article{break-inside:avoid}
.scroll{overflow:visible}table{font-size:.68rem}th,td{padding:.2rem 0 .2rem .5rem}
th:first-child{white-space:normal}
th button::after{content:none}}
"""

# A cell counts as the number it begins with; text comes after all numbers.
JAVASCRIPT = """
const key = (row, i) => {
  const text = row.cells[i].textContent.trim(), number = parseFloat(text.replaceAll(",", ""));
  return Number.isNaN(number) ? [1, text] : [0, number];
};
for (const button of document.querySelectorAll("th button")) button.onclick = () => {
  const head = button.parentElement, body = head.closest("table").tBodies[0];
  const sign = head.ariaSort === "ascending" ? -1 : 1, i = head.cellIndex;
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.ariaSort = sign > 0 ? "ascending" : "descending";
  const order = (a, b) => a[0] - b[0] || sign * (a[0] ? a[1].localeCompare(b[1]) : a[1] - b[1]);
  body.append(...[...body.rows].sort((a, b) => order(key(a, i), key(b, i))));
};
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
"""


def figure(name: str, drawn: Figure, alt: str, caption: str) -> str:
    """A picture inside the page.

    Args:
        name: of this picture alone in the page, letters, digits, "-" and ".".
        drawn: the picture.
        alt: what it shows, for those who do not see it.
        caption: HTML.
    """
    data = base64.b64encode(pictures.svg(drawn).encode()).decode()
    return (
        f'<figure id="{escape(name)}"><img src="data:image/svg+xml;base64,{data}"'
        f' alt="{escape(alt)}"><figcaption>{caption}</figcaption></figure>'
    )


def pictures_of(page: str) -> dict[str, str]:
    """Name -> SVG text of the pictures of a page."""
    found = re.findall(r'<figure id="(.*?)"><img src="data:image/svg\+xml;base64,(.*?)"', page)
    return {name: base64.b64decode(data).decode() for name, data in found}


def html_table(grid: Sequence[Sequence[str]], caption: str, dots: Sequence[str] = ()) -> str:
    """A table that a click on a column's title sorts; all but the first column to the right.

    Args:
        grid: rows of text, the first are the titles.
        caption: what the numbers are, HTML.
        dots: method of each row, to show its colour; none where empty.
    """
    titles = [escape(title) or "&nbsp;" for title in grid[0]]
    head = "".join(
        f'<th scope="col"><button type="button">{title}</button></th>' for title in titles
    )
    body = ""
    for i, (name, *cells) in enumerate(grid[1:]):
        dot = f'<i class="dot {dots[i]}"></i>' if dots else ""
        body += f'<tr><th scope="row">{dot}{escape(name)}</th>'
        for cell in cells:
            gap = " class=gap" if cell.startswith(("missing", "failed")) else ""
            body += f"<td{gap}>{escape(cell)}</td>"
        body += "</tr>"
    return (
        f'<figure><div class="scroll" tabindex="0"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        f"<figcaption>{caption}</figcaption></figure>"
    )


def missing(what: str, why: object) -> str:
    """The place of something that is not there."""
    return f'<p class="missing"><b>{escape(what)}: missing.</b> {escape(str(why))}</p>'


def or_missing(what: str, make: Callable[..., str], *given: Any) -> str:
    """What ``make(*given)`` returns, or why it cannot."""
    try:
        return make(*given)
    except UserError as error:
        return missing(what, error)
    except (KeyError, IndexError, TypeError) as error:  # a file of another version, or edited
        return missing(what, f"its data lack what the page needs ({error!r})")


def document(title: str, summary: str, sections: Mapping[str, str]) -> str:
    """The whole page.

    Args:
        title: its heading, text.
        summary: what comes first, HTML.
        sections: heading -> HTML; the page begins with links to them.
    """
    dots = "".join(
        f".{stage}{{background:{color}}}" for stage, (_, color, _) in pictures.METHODS.items()
    )
    parts, links = "", ""
    for number, (heading, content) in enumerate(sections.items(), 1):
        parts += f'<section id="s{number}"><h2>{escape(heading)}</h2>{content}</section>'
        links += f'<a href="#s{number}">{escape(heading)}</a> '
    title = escape(title)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{title}</title><style>{CSS}{dots}</style></head>'
        f"<body><header><h1>{title}</h1></header><main>{summary}<nav>{links}</nav>{parts}"
        f"</main><script>{JAVASCRIPT}</script></body></html>\n"
    )
