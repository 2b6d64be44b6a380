"""The file itself: headings, tables, plotly figures with plotly.js inside, attachments in links that hold them.

Figures are as wide as the print area of an A4 page, so that paper shows what the screen shows.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html import escape

from plotly.offline import get_plotlyjs

from upvit_core.figures.theme import Chart
from upvit_core.files import as_csv
from upvit_core.tables import html_table

WIDTH = 680  # pixels at 96 a inch: 180 mm, A4 less margins of 15 mm
MOST_TABLE_ROWS = 60_000
CONFIG = '{"displaylogo": false, "responsive": false, "displayModeBar": false}'
STYLE = f"""
:root {{ color-scheme: light; }}
body {{ max-width: {WIDTH}px; margin: 2rem auto; padding: 0 1rem; background: #ffffff; color: #1f2328;
  font: 15px/1.5 "Source Sans", "Source Sans 3", "Segoe UI", system-ui, sans-serif; }}
h1 {{ font-size: 1.7rem; margin: 0 0 0.2rem; }}
h2 {{ font-size: 1.2rem; margin: 1.8rem 0 0.5rem; border-bottom: 1px solid #d5d9df; }}
p.lead {{ color: #59616b; margin: 0; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; vertical-align: top; padding: 0.25rem 0.8rem 0.25rem 0; border-bottom: 1px solid #dfe3e8;
  overflow-wrap: anywhere; }}
th {{ font-weight: 500; width: 38%; color: #444b54; }}
pre {{ background: #f4f5f7; padding: 0.7rem 0.9rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13px; }}
figure {{ margin: 0.6rem 0 1rem; break-inside: avoid; overflow-x: auto; }}
figcaption {{ color: #59616b; font-size: 0.9rem; }}
a {{ color: #005a8e; }}
.note {{ color: #59616b; font-size: 0.9rem; }}
@page {{ size: A4; margin: 15mm; }}
@media print {{ body {{ margin: 0; padding: 0; max-width: none; }} h2 {{ break-after: avoid; }} tr, pre {{ break-inside:
  avoid; }} .screen {{ display: none; }} }}
"""


@dataclass
class Page:
    """Sections in order; `html()` is the whole file."""

    title: str
    lead: str
    _body: list[str] = field(default_factory=list)
    _figures: list[str] = field(default_factory=list)

    def heading(self, text: str) -> None:
        self._body.append(f"<h2>{escape(text)}</h2>")

    def note(self, text: str) -> None:
        self._body.append(f'<p class="note">{escape(text)}</p>')

    def pairs(self, rows: Sequence[tuple[str, str]]) -> None:
        """A table of names and values."""
        self._body.append(html_table(rows, row_heads=True))

    def part(self, html: str) -> None:
        """HTML as it is."""
        self._body.append(html)

    def code(self, text: str) -> None:
        self._body.append(f"<pre><code>{escape(text)}</code></pre>")

    def chart(self, chart: Chart) -> None:
        """An interactive figure with its alternative text, and its table as a link."""
        sized = {**chart.spec, "layout": {**chart.spec["layout"], "width": WIDTH}}
        number = len(self._figures)
        drawn = (replace(chart, spec=sized).figure.to_json() or "").replace("</", "<\\/")
        self._figures.append(f"Plotly.newPlot('figure-{number}', {_trace(drawn)});")
        table = csv_of(chart)
        link = attachment(f"figure-{number}.csv", "text/csv", table, "Table (CSV)") if table else ""
        self._body.append(
            f'<figure role="group" aria-label="{escape(chart.alt)}"><div id="figure-{number}"></div>'
            f"<figcaption>{escape(chart.alt)} {link}</figcaption></figure>"
        )

    def attach(self, name: str, kind: str, content: str, label: str) -> None:
        self._body.append(f"<p>{attachment(name, kind, content, label)}</p>")

    def html(self) -> str:
        library = get_plotlyjs() if self._figures else ""
        scripts = f"<script>{library}</script><script>{''.join(self._figures)}</script>" if self._figures else ""
        return (
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{STYLE}</style></head><body><main>"
            f'<h1>{escape(self.title)}</h1><p class="lead">{escape(self.lead)}</p>{"".join(self._body)}</main>{scripts}'
            "</body></html>"
        )


def _trace(drawn: str) -> str:
    return f"(f => ({{...f, config: {CONFIG}}}))({drawn})"


def csv_of(chart: Chart) -> str:
    """The chart's table as CSV; empty where it is too long to be carried along."""
    table = chart.table()
    if not table or max(len(column) for column in table.values()) > MOST_TABLE_ROWS:
        return ""
    return as_csv(table)


def attachment(name: str, kind: str, content: str, label: str) -> str:
    """A link that holds a file."""
    data = base64.b64encode(content.encode()).decode()
    return f'<a class="screen" download="{escape(name)}" href="data:{kind};base64,{data}">{escape(label)}</a>'
