"""A page of HTML that needs no other file: headings, text, tables, figures."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from sbtt_jax.run.files import Row, atomic_write
from sbtt_jax.run.plots import png

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; margin: 0 auto; max-width: 64rem;
       padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
h1 { overflow-wrap: anywhere; }
figure { margin: 1rem 0; } .wide { overflow-x: auto; }
img { max-width: 100%; min-width: 40rem; height: auto; }
figcaption, footer { color: #555; font-size: .9rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .2rem .7rem; border-bottom: 1px solid #ddd;
         white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.note { border-left: 4px solid #D55E00; padding: .2rem .8rem; margin: .5rem 0;
        background: #fdf4ee; }
"""


class Picture(NamedTuple):
    """A figure as it stands in the page."""

    png: bytes
    caption: str


def picture(figure: Figure, caption: str) -> Picture:
    """A Matplotlib figure and what it shows."""
    return Picture(png(figure, dpi=110), caption)


class Section(NamedTuple):
    """A heading and what is below it."""

    title: str
    pictures: Sequence[Picture] = ()
    lines: Sequence[str] = ()
    table: Sequence[Row] = ()


def write(path: Path, title: str, notes: Sequence[str], sections: Sequence[Section]) -> None:
    """Write the page. notes: what to know first, each in a box of its own."""
    boxes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in notes)
    body = "".join(map(_section, sections))
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><h1>{html.escape(title)}</h1>{boxes}{body}"
        "<footer>Made by sbtt-jax.</footer></body></html>\n"
    )
    with atomic_write(path) as part:
        part.write_text(page, encoding="utf-8")


def _section(section: Section) -> str:
    parts = [f"<h2>{html.escape(section.title)}</h2>"]
    parts += [f"<p>{html.escape(line)}</p>" for line in section.lines]
    for content, caption in section.pictures:
        source = base64.b64encode(content).decode()
        text = html.escape(caption)
        image = f'<img alt="{text}" src="data:image/png;base64,{source}">'
        shown = f'<div class="wide">{image}</div><figcaption>{text}</figcaption>'
        parts.append(f"<figure>{shown}</figure>")
    if section.table:
        parts.append(_table(section.table))
    return "".join(parts)


def _table(rows: Sequence[Row]) -> str:
    def line(cells, tag):
        return f"<tr>{''.join(f'<{tag}>{html.escape(str(cell))}</{tag}>' for cell in cells)}</tr>"

    body = "".join(line(row.values(), "td") for row in rows)
    return f'<div class="wide"><table>{line(rows[0], "th")}{body}</table></div>'
