"""Plotly shapes and labels from which the drawings of models are put together."""

from dataclasses import replace

import numpy as np

from upvit_core.figures.theme import CLEAR, COLOURS, Spec, Theme, drawn, markers, note
from upvit_core.records.shape import BlockShape, Component, ModelShape
from upvit_core.records.task import task_of


def nothing() -> Spec:
    """Plotly draws no shapes without a trace."""
    return markers([0], [0], {"opacity": 0}, hoverinfo="skip")


class Pen:
    """Collects plotly shapes and labels."""

    def __init__(self, theme: Theme):
        self.theme = theme
        self.shapes: list[Spec] = []
        self.annotations: list[Spec] = []

    def figure(self, bottom: float, top: float, *, height: int, emphasis: Component | None) -> Spec:
        """All that was drawn, 100 wide; with `emphasis` the other components are pale."""
        pale = [COLOURS[component] for component in COLOURS if emphasis is not None and component != emphasis]
        for shape in self.shapes:
            if shape.get("fillcolor") in pale or shape["line"]["color"] in pale:
                shape["opacity"] = 0.25
        layout: Spec = {
            "shapes": self.shapes,
            "annotations": self.annotations,
            "xaxis": {"visible": False, "range": [0, 100], "fixedrange": True},
            "yaxis": {"visible": False, "range": [bottom, top], "fixedrange": True},
        }
        return drawn([nothing()], layout, self.theme, height=height, margin=(4, 4, 4, 4))

    def box(
        self, x0: float, y0: float, x1: float, y1: float, colour: str, *, hollow: bool = False, width: float = 1.5
    ) -> None:
        line: Spec = {"color": colour, "width": width, "dash": "dot" if hollow else "solid"}
        fill = CLEAR if hollow else colour
        self.shapes.append({"type": "rect", "x0": x0, "y0": y0, "x1": x1, "y1": y1, "line": line, "fillcolor": fill})

    def polygon(self, points: list[tuple[float, float]], colour: str, *, hollow: bool = False) -> None:
        path = "M " + " L ".join(f"{x:.3f},{y:.3f}" for x, y in points) + " Z"
        line: Spec = {"color": colour, "width": 1.5, "dash": "dot" if hollow else "solid"}
        fill = CLEAR if hollow else colour
        self.shapes.append({"type": "path", "path": path, "line": line, "fillcolor": fill})

    def line(self, x0: float, y0: float, x1: float, y1: float) -> None:
        self.shapes.append(
            {"type": "line", "x0": x0, "y0": y0, "x1": x1, "y1": y1, "line": {"color": self.theme.quiet, "width": 1.6}}
        )

    def arrow(self, x0: float, y0: float, x1: float, y1: float) -> None:
        places = {"x": x1, "y": y1, "ax": x0, "ay": y0, "xref": "x", "yref": "y", "axref": "x", "ayref": "y"}
        head = {"arrowhead": 2, "arrowsize": 1, "arrowwidth": 1.6, "arrowcolor": self.theme.quiet}
        self.annotations.append({"text": "", "showarrow": True, **places, **head})

    def label(
        self, x: float, y: float, text: str, colour: str | None = None, size: int = 14, anchor: str = "center"
    ) -> None:
        swatch = f'<span style="color:{colour}">■</span> ' if colour else ""
        places = {"xanchor": anchor, "yanchor": "middle", "align": anchor}
        self.annotations.append(note(swatch + text, x, y, self.theme.text, size, **places))

    def image(self, x0: float, x1: float, shape: ModelShape) -> None:
        """The image, cut into patches (at most 8 by 8 are drawn), or a block of text."""
        rows = min(8, shape.img_size[0] // shape.patch_size[0])
        columns = min(8, shape.img_size[1] // shape.patch_size[1])
        half = 3.5
        self.box(x0, -half, x1, half, self.theme.quiet, hollow=False)
        self.shapes[-1]["fillcolor"] = self.theme.panel
        for i in range(1, rows):
            y = -half + 2 * half * i / rows
            self.line(x0, y, x1, y)
        for i in range(1, columns):
            x = x0 + (x1 - x0) * i / columns
            self.line(x, -half, x, half)
        for shape_ in self.shapes[-(rows + columns - 2) :]:
            shape_["line"] = {"color": self.theme.grid, "width": 1}
        task, size = task_of(shape), f"{shape.img_size[0]}×{shape.img_size[1]}×{shape.in_chans}"
        below = size if task.has_pictures else f"of {task.data}"
        self.label(x0, half + 1.7, f"{shape.num_patches:,}<br>{task.units}", size=13, anchor="left")
        self.label(x0, -half - 1.0, below, size=13, anchor="left")

    def band(self, x0: float, x1: float, half: float, half_now: float) -> None:
        if half_now < half:
            self.box(x0, -half, x1, half, COLOURS["residual"], hollow=True)
        self.box(x0, -half_now, x1, half_now, COLOURS["residual"], width=0)

    def panel(self, x0: float, y0: float, x1: float, y1: float) -> None:
        """A pale field behind a part."""
        line = {"color": self.theme.grid, "width": 1.5}
        box = {"type": "rect", "x0": x0, "x1": x1, "y0": y0, "y1": y1, "line": line, "layer": "below"}
        self.shapes.insert(0, {**box, "fillcolor": self.theme.panel})

    def block_outline(self, x0: float, x1: float, y0: float, y1: float, depth: int) -> None:
        self.panel(x0, y0, x1, y1)
        corner = {"xanchor": "right", "yanchor": "top"}
        name = f"<b>one block, × {depth}</b>"
        self.annotations.append(note(name, x1 - 0.7, y1 - 0.5, self.theme.quiet, 14, **corner))

    def branch(self, x: float, x_to: float, stream: float, y: float) -> None:
        """Out of the stream, through a LayerNorm, into a component."""
        self.line(x, stream, x, y)
        self.arrow(x, y, x_to - 0.2, y)
        norm = (stream + y) / 2
        self.box(x - 3.3, norm - 0.85, x + 3.3, norm + 0.85, self.theme.quiet)
        self.shapes[-1]["fillcolor"] = self.theme.surface
        self.label(x, norm, "norm", size=11)

    def join(self, x_from: float, x: float, stream: float, y: float) -> None:
        """Out of a component, added to the stream."""
        self.line(x_from, y, x, y)
        self.arrow(x, y, x, stream + 0.15)
        self.label(x + 1.1, stream + 1.2, "+", size=18)

    def heads(self, x0: float, x1: float, middle: float, unit: float, before: BlockShape, now: BlockShape) -> None:
        """Heads as bands on top of each other; each as tall as it has channels."""
        if now.attention < before.attention or now.num_heads < before.num_heads:
            half = unit * before.attention / 2
            self.box(x0, middle - half, x1, middle + half, COLOURS["attention"], hollow=True)
        each = unit * before.attention / now.num_heads
        tall = unit * now.attention / now.num_heads
        bottom = middle - unit * before.attention / 2
        gap = min(0.16, 0.25 * each)
        for head in range(now.num_heads):
            centre = bottom + each * (head + 0.5)
            self.box(x0, centre - tall / 2 + gap / 2, x1, centre + tall / 2 - gap / 2, COLOURS["attention"], width=0)

    def ffn(
        self, x0: float, x1: float, y: float, outer: float, outer_now: float, hidden: float, hidden_now: float
    ) -> None:
        """Widening to the hidden channels, then narrowing again."""
        if hidden_now < hidden or outer_now < outer:
            self.polygon(_hourglass(x0, x1, y, outer, hidden), COLOURS["ffn"], hollow=True)
        self.polygon(_hourglass(x0, x1, y, outer_now, hidden_now), COLOURS["ffn"])

    def classes(self, x0: float, x1: float, shape: ModelShape) -> None:
        self.box(x0, -2.2, x1, 2.2, self.theme.quiet)
        self.shapes[-1]["fillcolor"] = self.theme.panel
        for number, share in enumerate((0.25, 0.8, 0.4, 0.15)):  # answers of unlike size
            self.line(x0 + 1, 1.5 - number, x0 + 1 + share * (x1 - x0 - 2), 1.5 - number)
            self.shapes[-1]["line"] = {"color": self.theme.quiet, "width": 4}
        self.label(x1, 4.0, f"{shape.num_classes:,}<br>{task_of(shape).outputs}", size=13, anchor="right")


def _hourglass(x0: float, x1: float, y: float, outer: float, hidden: float) -> list[tuple[float, float]]:
    slope = (x1 - x0) / 4
    top = [(x0, y + outer / 2), (x0 + slope, y + hidden / 2), (x1 - slope, y + hidden / 2), (x1, y + outer / 2)]
    return top + [(x, 2 * y - v) for x, v in reversed(top)]


def in_channels(shape: ModelShape, number: int = 0) -> BlockShape:
    """The block `number` with its true numbers of heads and attention channels, even if whole heads are cut."""
    block = shape.blocks[number]
    return replace(block, num_heads=shape.heads_in(block), attention=shape.channels_in(block))


def shape_table(shape: ModelShape, after: ModelShape | None) -> dict[str, np.ndarray]:
    """Widths of every block, of the model and of the thinner one, as columns; of a staged model its reductions too."""
    rows: list[dict[str, object]] = []
    for label, which in (("model", shape), *((("plan", after),) if after else ())):
        for b in range(which.depth):
            stage = which.stage_of(b)
            place = {"model": label, "stage": stage, "block": b, "residual": which.embed_dims[stage]}
            block = in_channels(which, b)
            widths = {"attention": block.attention, "ffn": block.ffn, "reduction": block.reduction}
            rows.append({**place, "heads": block.num_heads, **widths})
    names = [name for name in rows[0] if shape.stages or name not in ("stage", "reduction")]
    return {name: np.array([row[name] for row in rows]) for name in names}
