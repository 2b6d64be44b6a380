"""The model as a drawing: patches, one block drawn once with its three components to scale, classifier.

The height of a part is its width in channels. With a second shape, the thinner model is drawn inside the outline of the
first.
"""

from upvit_core.figures.diagram_primitives import Pen, in_channels, shape_table
from upvit_core.figures.theme import COLOURS, Chart, Theme
from upvit_core.records.family import load
from upvit_core.records.shape import Component, ModelShape
from upvit_core.records.task import task_of

TALLEST = 10.0
ATTENTION_AT, FFN_AT = (28.5, 43.5), (55.0, 73.0)


def draw_model(
    shape: ModelShape,
    theme: Theme,
    after: ModelShape | None = None,
    *,
    emphasis: Component | None = None,
    height: int = 350,
) -> Chart:
    """Draw `shape`, or `after` inside the outline of `shape`; with `emphasis` the other components are pale."""
    chart: Chart = load(shape.architecture.diagram)(shape, theme, after, emphasis=emphasis, height=height)
    return chart


def draw_plain(
    shape: ModelShape, theme: Theme, after: ModelShape | None, *, emphasis: Component | None, height: int
) -> Chart:
    """A model without stages: its first block stands for all."""
    now = after or shape
    block, first = in_channels(now), in_channels(shape)
    unit = TALLEST / max(shape.embed_dim, first.attention, first.ffn)
    stream, base = unit * shape.embed_dim / 2, unit * shape.embed_dim / 2 + 3.2
    pen = Pen(theme)

    pen.image(0.5, 11.3, now)
    pen.arrow(11.6, 0, 14.2, 0)
    pen.band(14.4, 87.5, stream, unit * now.embed_dim / 2)
    pen.block_outline(20.2, 79.5, -stream - 3.4, base + TALLEST + 5.2, now.depth)
    middle = base + TALLEST / 2
    pen.branch(23.9, ATTENTION_AT[0], unit * now.embed_dim / 2, middle)
    pen.heads(*ATTENTION_AT, middle, unit, first, block)
    pen.join(ATTENTION_AT[1], 46.4, unit * now.embed_dim / 2, middle)
    pen.branch(51.0, FFN_AT[0], unit * now.embed_dim / 2, middle)
    pen.ffn(*FFN_AT, middle, unit * shape.embed_dim, unit * now.embed_dim, unit * first.ffn, unit * block.ffn)
    pen.join(FFN_AT[1], 75.9, unit * now.embed_dim / 2, middle)
    pen.arrow(87.6, 0, 90.4, 0)
    pen.classes(90.5, 99, now)

    heads = f"{block.num_heads}{f' of {first.num_heads}' if block.num_heads != first.num_heads else ''} heads"
    total = "" if after else f" = {block.attention}"  # beside what it was there is no room for it
    attention = f"<b>Attention</b><br>{heads} × {block.head_dim}{total}"
    hidden = f"<b>FFN</b><br>{block.ffn:,}{f' of {first.ffn:,}' if after else ' hidden'}"
    pen.label(sum(ATTENTION_AT) / 2, base + TALLEST + 1.7, attention, COLOURS["attention"])
    pen.label(sum(FFN_AT) / 2, base + TALLEST + 1.7, hidden, COLOURS["ffn"])
    of = f" of {shape.embed_dim}" if after else ""
    pen.label(
        50, -stream - 1.5, f"<b>Residual</b> · {now.embed_dim}{of} channels, shared by all blocks", COLOURS["residual"]
    )
    figure = pen.figure(-stream - 3.8, base + TALLEST + 5.8, height=height, emphasis=emphasis)
    return Chart(figure, "The model", _alt(shape, after), lambda: shape_table(shape, after))


def _alt(shape: ModelShape, after: ModelShape | None) -> str:
    now, block, task = after or shape, in_channels(after or shape), task_of(shape)
    pixels = f"{now.img_size[0]} by {now.img_size[1]} pixels in patches of {now.patch_size[0]} by {now.patch_size[1]}"
    size = pixels if task.has_pictures else f"{now.num_patches} {task.units} of {task.data}"
    text = (
        f"Drawing of {now.name}: {size}, a residual stream of {now.embed_dim} channels through {now.depth} blocks, "
        "each with "
        f"attention of {block.num_heads} heads times {block.head_dim} channels and an FFN of {block.ffn} hidden "
        f"channels, then a choice of {now.num_classes} {task.outputs}."
    )
    if after:
        first = in_channels(shape)
        text += f" Before: {shape.embed_dim} channels, {first.num_heads} heads, {first.ffn} hidden channels."
    return text
