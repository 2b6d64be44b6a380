"""A staged model as a drawing: its stages side by side, one block of each drawn with its components to scale.

As in `drawing`, the height of a part is its width in channels, and a thinner model lies inside the first one's outline.
"""

from upvit_core.figures.diagram_primitives import Pen, shape_table
from upvit_core.figures.theme import COLOURS, TITLES, Chart, Theme
from upvit_core.records.shape import BlockShape, Component, ModelShape

TALLEST = 11.0
FIRST, LAST, GAP = 15.0, 90.0, 1.6


def draw_stages(
    shape: ModelShape, theme: Theme, after: ModelShape | None, *, emphasis: Component | None, height: int
) -> Chart:
    """Draw `shape`, or `after` inside the outline of `shape`; with `emphasis` the other components are pale."""
    now = after or shape
    unit = TALLEST / max(max(block.attention, block.ffn, block.reduction) for block in shape.blocks)
    stream = unit * max(shape.embed_dims) / 2
    pen = Pen(theme)
    pen.image(0.5, 10.3, now)
    pen.arrow(10.5, 0, FIRST - 0.4, 0)
    wide = (LAST - FIRST - GAP * (len(shape.stages) - 1)) / len(shape.stages)
    base = stream + 0.6
    for number, (before, own) in enumerate(zip(shape.stages, now.stages, strict=True)):
        x0 = FIRST + number * (wide + GAP)
        x1 = x0 + wide
        first, block = shape.blocks[shape.first_block(number)], now.blocks[now.first_block(number)]
        pen.panel(x0, -stream - 5.2, x1, base + TALLEST + 4.6)
        pen.band(x0, x1, unit * before.embed_dim / 2, unit * own.embed_dim / 2)
        _bars(pen, x0, x1, base, unit, first, block)
        rows, columns = now.map_size(number)
        pen.label((x0 + x1) / 2, base + TALLEST + 2.8, f"<b>stage {number}</b><br>{rows}×{columns} tokens", size=12)
        narrowed = f" of {before.embed_dim}" if after else ""
        pen.label((x0 + x1) / 2, -stream - 1.6, f"{own.embed_dim}{narrowed}", COLOURS["residual"], size=13)
        pen.label((x0 + x1) / 2, -stream - 3.6, f"{own.depth} block{'s' * (own.depth > 1)}", size=13)
    pen.arrow(LAST + 0.2, 0, LAST + 2.2, 0)
    pen.classes(LAST + 2.3, 99.6, now)
    names = (f'<span style="color:{COLOURS[c]}">■</span> {TITLES[c]}' for c in shape.components)
    pen.label((FIRST + LAST) / 2, -stream - 6.7, "channels:  " + "  ".join(names), size=13)
    figure = pen.figure(-stream - 7.7, base + TALLEST + 5, height=height, emphasis=emphasis)
    return Chart(figure, "The model", _alt(shape, after), lambda: shape_table(shape, after))


def _bars(pen: Pen, x0: float, x1: float, base: float, unit: float, first: BlockShape, block: BlockShape) -> None:
    """The components of one block as bars that stand beside each other, each with its width."""
    parts: tuple[Component, ...] = ("reduction", "attention", "ffn") if first.reduction else ("attention", "ffn")
    step = (x1 - x0) / len(parts)
    for number, component in enumerate(parts):
        left, right = x0 + step * (number + 0.18), x0 + step * (number + 0.82)
        whole, kept = getattr(first, component), getattr(block, component)
        if kept < whole:
            pen.box(left, base, right, base + unit * whole, COLOURS[component], hollow=True)
        pen.box(left, base, right, base + unit * kept, COLOURS[component], width=0)
        if component == "attention":
            for head in range(1, block.num_heads):
                y = base + unit * kept * head / block.num_heads
                pen.line(left, y, right, y)
                pen.shapes[-1]["line"] = {"color": pen.theme.panel, "width": 2}
        pen.label((left + right) / 2, base + unit * whole + 0.7, f"{kept:,}", size=12)


def _alt(shape: ModelShape, after: ModelShape | None) -> str:
    now = after or shape
    stages = "; ".join(
        f"stage {number}: {stage.depth} blocks, {stage.embed_dim} channels, attention "
        f"{now.blocks[now.first_block(number)].attention}, FFN {now.blocks[now.first_block(number)].ffn}"
        for number, stage in enumerate(now.stages)
    )
    return (
        f"Drawing of {now.name}: {now.img_size[0]} by {now.img_size[1]} pixels through {len(now.stages)} stages "
        f"({stages}), then a classifier of {now.num_classes} classes."
    )
