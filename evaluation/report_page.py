"""One self-contained HTML page: figures by matplotlib as SVG that follow the reader's colours, with hover and keys."""

import base64
import html
import io
import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

LIMIT = 5_000_000  # bytes of a page, media included
POINTS = 300  # of a line that can be hovered over
DRAWN = 1500  # points of a line that are drawn
# Okabe and Ito (2008): told apart by the colour-blind, on a light and on a dark page. report.css has them too.
OKABE_ITO = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES = ("-", "--", ":", "-.")
MARKERS = "osD^vP"
INK, RULE = "#222222", "#d8d8d8"


@dataclass
class Figure:
    """What stands under one heading of a figure: an SVG, and what is said at its points.

    `points`: (x, y, words) with x and y as fractions of the width and height, from the upper left corner; a fourth
    value is the number of a picture on the page's sheet of small pictures.
    """

    title: str
    svg: str
    points: list[tuple] = field(default_factory=list)

    def html(self, sheet: str = "") -> str:
        title, points = words(self.title), html.escape(json.dumps(self.points, separators=(",", ":")))
        how = "Arrow keys go from point to point." if self.points else ""
        return (
            f"<figure data-points='{points}'{sheet}><figcaption>{title}</figcaption>"
            f'<div class="plot" tabindex="0" role="img" aria-label="{title}. {how}">{self.svg}</div></figure>'
        )


class Line(NamedTuple):
    """`colour`: lines of one number have one colour, where several runs are shown; `dash`: tells these apart."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int | None = None
    dash: int = 0


def words(text: object) -> str:
    """Text as HTML."""
    return html.escape(str(text), quote=True)


def style() -> dict:
    return {
        "svg.fonttype": "none",  # text stays text, in the page's own font
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "text.parse_math": False,  # a label may have any signs, dollars too
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": RULE,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.grid": True,
        "grid.color": RULE,
        "grid.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.formatter.useoffset": False,
        "legend.frameon": False,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
    }


def drawn(title: str, draw: Callable, size: tuple[float, float] = (4.6, 2.5)) -> Figure:
    """A figure of one axes. `draw(axes)` returns the points of it that can be hovered over, in data coordinates."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Canvas

    with rc_context(style()):
        canvas = Canvas(figsize=size, layout="constrained")
        axes = canvas.subplots()
        found = draw(axes)
        file = io.StringIO()
        canvas.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    width, height = canvas.bbox.size
    points = []
    if found:
        at = axes.transData.transform([(x, y) for x, y, *_ in found])
        for (x, y), (_, _, *said) in zip(at, found, strict=True):
            points.append((round(float(x / width), 4), round(float(1 - y / height), 4), *said))
    return Figure(title, themed(file.getvalue()), points)


COUNTER = itertools.count()


def themed(svg: str) -> str:
    """matplotlib's SVG as part of a page: no header, no names that are elsewhere on the page, the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    own = f"f{next(COUNTER)}-"
    svg = re.sub(r'\bid="', f'id="{own}', svg)
    svg = svg.replace('href="#', f'href="#{own}').replace("url(#", f"url(#{own}")
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace(INK, "var(--ink)").replace(RULE, "var(--rule)")
    return re.sub(r"font: [^;\"]*?px [^;\"]*", lambda m: re.sub(r"px .*", "px system-ui, sans-serif", m[0]), svg)


def in_legend(name: str) -> str:
    """A name as matplotlib lists it: one that begins with a line at its foot would be left out."""
    return f"\u200b{name}" if name.startswith("_") else name


def lines(axes, series: list[Line], unit: str = "", log: bool = False) -> list[tuple]:
    """Draw lines over steps; returns what can be hovered over. Values that are not finite leave gaps."""
    said = []
    for number, line in enumerate(series):
        x, y = np.asarray(line.x, dtype=float), np.asarray(line.y, dtype=float)
        keep = thinned(len(x), DRAWN)
        few = {"marker": "o", "markersize": 3} if len(x) <= 40 else {}
        number = number if line.colour is None else line.colour
        dash = DASHES[(line.dash + number // len(OKABE_ITO)) % len(DASHES)]
        axes.plot(
            x[keep], y[keep], dash, color=OKABE_ITO[number % len(OKABE_ITO)], lw=1.4, label=in_legend(line.name), **few
        )
        name = f"{line.name}: " if len(series) > 1 else ""
        said += [
            (x[i], y[i], f"step {x[i]:,.0f}: {name}{y[i]:.4g}{unit}")
            for i in thinned(len(x), POINTS // len(series))
            if np.isfinite(y[i])
        ]
    positive = [v for line in series for v in line.y if np.isfinite(v) and v > 0]
    if log and positive and max(positive) > 30 * min(positive):
        logarithmic(axes)
    if len(series) > 1:
        axes.legend(fontsize=8)
    axes.margins(x=0.02)
    return said


def logarithmic(axes) -> None:
    """A logarithmic axis of values, with plain numbers: matplotlib writes formulas, which `style` leaves unread."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def thinned(count: int, most: int) -> np.ndarray:
    """Evenly spaced numbers of at most so many of `count` points, the last one among them."""
    return np.arange(count) if count <= most else np.unique(np.linspace(0, count - 1, most).round().astype(int))


def data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def table(rows: list[tuple], head: tuple = ()) -> str:
    def whole(cell: object) -> str:
        return words(cell).replace(" ± ", "\u00a0±\u00a0")  # on one line

    kind = " class=figures" if any("±" in str(cell) for row in rows for cell in row) else ""
    made = "".join(f"<th scope=col>{words(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{whole(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table{kind}>{f"<tr>{made}</tr>" if head else ""}{body}</table></div>'


class Section(NamedTuple):
    """A part of the page. `body` is HTML."""

    title: str
    body: str
    note: str = ""


def grid(figures: list[Figure]) -> str:
    return f'<div class="grid">{"".join(f.html() for f in figures)}</div>'


def page(title: str, lead: str, sections: list[Section]) -> str:
    """The whole page. A section that does not fit any more is left out, and that is said."""
    css, js = (Path(__file__).with_name(f"report.{kind}").read_text() for kind in ("css", "js"))
    made, room = [], LIMIT - len(lead.encode()) - len(css) - len(js) - 20_000
    for number, section in enumerate(sections):
        if len(section.body.encode()) > room:
            section = section._replace(body=f"<p>left out: the page would be larger than {LIMIT / 1e6:.0f} MB</p>")
        room -= len(section.body.encode())
        note = f"<p class=note>{words(section.note)}</p>" if section.note else ""
        made.append(f'<section id="s{number}"><h2>{words(section.title)}</h2>{note}{section.body}</section>')
    links = " ".join(f'<a href="#s{i}">{words(s.title)}</a>' for i, s in enumerate(sections))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{words(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<style>{css}</style></head><body><header><h1>{words(title)}</h1>{lead}</header>"
        f"<nav aria-label=Contents>{links}</nav><main>{''.join(made)}</main>"
        f'<div id="tip" role="status" aria-live="polite" hidden></div><script>{js}</script></body></html>'
    )
