"""Tables as HTML."""

from collections.abc import Iterable, Sequence
from html import escape


def html_table(
    rows: Iterable[Sequence[str]],
    head: Sequence[str] = (),
    *,
    caption: str = "",
    row_heads: bool = False,
    bold: int | None = None,
    css: str = "",
) -> str:
    """A table of text, escaped; `row_heads` makes the first cell of each row its heading, `bold` sets one row apart."""
    lines = [f"<caption>{escape(caption)}</caption>"] if caption else []
    if head:
        lines.append(_row(f'<th scope="col">{escape(name)}</th>' for name in head))
    for number, row in enumerate(rows):
        texts = [f"<b>{escape(text)}</b>" if number == bold else escape(text) for text in row]
        first = [f'<th scope="row">{escape(row[0])}</th>'] if row_heads else []
        lines.append(_row([*first, *(f"<td>{text}</td>" for text in texts[len(first) :])]))
    opening = f'<table class="{css}">' if css else "<table>"
    return f"{opening}{''.join(lines)}</table>"


def _row(cells: Iterable[str]) -> str:
    return f"<tr>{''.join(cells)}</tr>"
