"""Widths of a plan as one short text, for links, tables and the command line: `48:3x48x192,…` or `48:3x48x192*6`.

The residual's channels, then heads x attention channels x FFN channels of every block; `*n` repeats a block n times.
"""

from itertools import groupby
from math import gcd

from upvit_core.errors import PlanError
from upvit_core.planning.curves import Widths
from upvit_core.planning.ratios import plan_widths
from upvit_core.records.basis import Basis
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import ModelShape, legal_head_counts

LONGEST = 10_000


def widths_of(shape: ModelShape) -> Widths:
    """The widths that a shape has."""
    return Widths(shape.embed_dim, tuple((b.num_heads, b.attention, b.ffn) for b in shape.blocks))


def whole_widths(plan: PruningPlan, round_to: int = 1) -> Widths:
    """The widths of a plan for every block of the model it cuts; half-blocks that go have the mean of those that stay.

    At the plan's depth, these widths and the same scores make the plan again.
    """
    shape, after = plan.shape_before, plan.shape_after
    mean = [round(sum(column) / after.depth) for column in zip(*widths_of(after).blocks, strict=True)]
    blocks = [list(block) for block in nearest_widths(_alike(after.embed_dim, mean, shape), shape, round_to).blocks]
    for block in plan.blocks:
        blocks[block.source][:2] = block.attention.heads, len(block.attention.keep)
        blocks[block.ffn_block][2] = len(block.ffn.keep)
    return Widths(after.embed_dim, tuple((heads, attention, ffn) for heads, attention, ffn in blocks))


def _alike(embed_dim: int, block: list[int], shape: ModelShape) -> Widths:
    return Widths(embed_dim, ((block[0], block[1], block[2]),) * shape.depth)


def write_widths(widths: Widths) -> str:
    """The text of `parse_widths`."""
    runs = [(block, len(list(same))) for block, same in groupby(widths.blocks)]
    blocks = ["x".join(map(str, block)) + (f"*{count}" if count > 1 else "") for block, count in runs]
    return f"{widths.embed_dim}:{','.join(blocks)}"


def parse_widths(text: str, shape: ModelShape) -> Widths:
    """Widths for every block of `shape`, legal there.

    Raises PlanError where the text is malformed, has another number of blocks, or a width that the model cannot have.
    """
    try:
        if len(text) > LONGEST:
            raise ValueError
        first, rest = text.split(":")
        blocks: list[tuple[int, int, int]] = []
        for part in rest.split(","):
            block, _, count = part.partition("*")
            heads, attention, ffn = (int(number) for number in block.split("x"))
            repeats = int(count or 1)
            if not 1 <= repeats <= shape.depth:
                raise ValueError
            blocks += [(heads, attention, ffn)] * repeats
        widths = Widths(int(first), tuple(blocks))
    except ValueError as error:
        raise PlanError(
            f"{text[:80]!r} is no list of widths; give residual:heads x attention x FFN of every block, such as "
            "48:3x48x192*6."
        ) from error
    check_widths(widths, shape)
    return widths


def check_widths(widths: Widths, shape: ModelShape) -> None:
    """Raises PlanError, naming the block and the value, where the model cannot be cut to these widths."""
    if not 1 <= widths.embed_dim <= shape.embed_dim:
        raise PlanError(f"The residual of {shape.name} keeps 1 to {shape.embed_dim} channels, not {widths.embed_dim}.")
    if len(widths.blocks) != shape.depth:
        raise PlanError(f"Widths were given for {len(widths.blocks)} blocks, and {shape.name} has {shape.depth}.")
    for number, ((heads, attention, ffn), full) in enumerate(zip(widths.blocks, shape.blocks, strict=True)):
        if heads not in legal_head_counts(full.num_heads):
            options = ", ".join(map(str, legal_head_counts(full.num_heads)))
            raise PlanError(f"The {full.num_heads} heads of block {number} cannot be merged into {heads}: {options}.")
        if attention % heads or not heads <= attention <= full.attention:
            raise PlanError(
                f"Block {number} keeps a multiple of its {heads} heads of attention channels, at most "
                f"{full.attention}, not {attention}."
            )
        if not 1 <= ffn <= full.ffn:
            raise PlanError(f"Block {number} keeps 1 to {full.ffn} FFN channels, not {ffn}.")


def nearest_widths(widths: Widths, shape: ModelShape, round_to: int = 1) -> Widths:
    """The nearest legal widths: in range, heads that divide, attention that the heads divide, multiples of round_to."""
    blocks = []
    for (heads, attention, ffn), full in zip(widths.blocks, shape.blocks, strict=True):
        legal = min(legal_head_counts(full.num_heads), key=lambda count: abs(count - heads))
        step = legal * round_to // gcd(legal, round_to)
        blocks.append((legal, _nearest(attention, full.attention, step, legal), _nearest(ffn, full.ffn, round_to, 1)))
    return Widths(_nearest(widths.embed_dim, shape.embed_dim, round_to, 1), tuple(blocks))


def _nearest(wanted: int, full: int, step: int, smallest: int) -> int:
    """The multiple of `step` up to `full` nearest to `wanted`; of `smallest` where `step` does not fit at all."""
    step = step if step <= full else smallest
    return min(max(round(wanted / step), 1), full // step) * step


def plan_from_widths(scores: ImportanceScores, text: str, *, basis: Basis = Basis.CHANNELS) -> PruningPlan:
    """The best channels for the widths that a text names. Raises PlanError as `parse_widths` does."""
    widths = parse_widths(text, scores.shape)
    requested = {"allocation": "widths", "widths": write_widths(widths)}
    return plan_widths(scores, widths.embed_dim, list(widths.blocks), requested=requested, basis=basis)
