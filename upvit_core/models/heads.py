"""The number of heads of each block, which no tensor tells: given, from a file, or as in published models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from upvit_core.errors import CheckpointError
from upvit_core.records.shape import ModelShape

Numbers = int | str | Sequence[int] | None
"""One number for every block, or one a block (`6,4,5` or a sequence); None: not given."""
USUAL_WIDTH = 64
PUBLISHED = {
    1152: 16, 1280: 16, 1408: 16, 1536: 24, 1664: 16, 1792: 16, 2048: 16, 2432: 32, 3072: 24, 4096: 32
}  # fmt: skip
"""Heads of the published ViTs (as timm defines them) that are not 64 wide, or whose width others have too, by width."""
PVT_HEADS = (1, 2, 5, 8)


def numbers_of(given: Numbers, what: str) -> tuple[int, ...]:
    """The numbers in an argument. Raises CheckpointError where one is no whole number above 0."""
    if given is None:
        return ()
    parts = (
        given.replace(" ", "").split(",") if isinstance(given, str) else [given] if isinstance(given, int) else given
    )
    try:
        numbers = tuple(int(part) for part in parts)
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise CheckpointError(
            f"{str(given)[:40]!r} is not a number of {what}; give a whole number from 1 up, or one for each block with "
            "commas between."
        )
    return numbers


def with_heads(shape: ModelShape, heads: Sequence[int], source: str) -> ModelShape:
    """The shape with one number of heads for all blocks, or one a stage, or one a block.

    Raises CheckpointError where there are other many, or where they do not divide the attention channels.
    """
    if shape.structure.head_dim:
        raise CheckpointError(
            f"{source} has heads of {shape.structure.head_dim} channels, as its config says; give neither heads nor "
            "their width."
        )
    counts = list(heads) * shape.depth if len(heads) == 1 else list(heads)
    if len(heads) == len(shape.depths) != 1:
        counts = [count for count, depth in zip(heads, shape.depths, strict=True) for _ in range(depth)]
    if len(counts) != shape.depth:
        raise CheckpointError(
            f"{source} has {shape.depth} blocks, and {len(counts)} numbers of heads were given; give one for all or "
            "one for each."
        )
    for index, (block, count) in enumerate(zip(shape.blocks, counts, strict=True)):
        if count < 1 or block.attention % count:
            raise CheckpointError(
                f"{source}: block {index} has {block.attention} attention channels, which {count} heads do not divide; "
                "give a number of heads that does."
            )
    pairs = zip(shape.blocks, counts, strict=True)
    structure = shape.structure
    if structure.pool:
        structure = replace(structure, pool=(structure.pool[0], counts[0], structure.pool[2]))
    blocks = tuple(replace(block, num_heads=count) for block, count in pairs)
    return replace(shape, blocks=blocks, structure=structure)


def given_heads(shape: ModelShape, heads: tuple[int, ...], head_dim: tuple[int, ...], source: str) -> tuple[int, ...]:
    """The heads that were given as numbers or by their width (one for all blocks or one a block); () for neither.

    Raises CheckpointError for both at once, or where a width does not divide the attention channels.
    """
    if not head_dim or shape.structure.head_dim:  # `with_heads` refuses both
        return heads or head_dim
    if heads:
        raise CheckpointError("Both a number of heads and their width were given; give one of them.")
    dims = head_dim * shape.depth if len(head_dim) == 1 else head_dim
    if len(dims) != shape.depth:
        raise CheckpointError(
            f"{source} has {shape.depth} blocks, and {len(dims)} head widths were given; give one for all or "
            "one for each."
        )
    for index, (block, dim) in enumerate(zip(shape.blocks, dims, strict=True)):
        if block.attention % dim:
            raise CheckpointError(
                f"{source}: block {index} has {block.attention} attention channels, which heads {dim} wide do not "
                "divide; give a width that does."
            )
    return tuple(block.attention // dim for block, dim in zip(shape.blocks, dims, strict=True))


def counted(counts: Sequence[int]) -> str:
    """The heads of all blocks in words."""
    return f"{counts[0]} in every block" if len(set(counts)) == 1 else f"{', '.join(map(str, counts))} in the blocks"


def assumed_heads(shape: ModelShape, source: str) -> tuple[tuple[int, ...], str]:
    """The likeliest heads of a model of which only tensors are known, and why.

    Raises CheckpointError where nothing speaks for any.
    """
    if shape.stages:
        if len(shape.stages) != len(PVT_HEADS):
            raise CheckpointError(
                f"{source} has {len(shape.stages)} stages, and no tensor holds their heads; put the model's "
                "config.json beside it."
            )
        return PVT_HEADS, "1, 2, 5 and 8 in the four stages, assumed as in every published PVTv2"
    width = shape.embed_dim
    known = PUBLISHED.get(width)
    if known and all(block.attention == width for block in shape.blocks):
        return (known,), f"{known} in every block, assumed as in published ViTs of width {width}"
    counts = []
    for index, block in enumerate(shape.blocks):
        if block.attention % USUAL_WIDTH:
            raise CheckpointError(
                f"{source}: block {index} has {block.attention} attention channels, not a multiple of the usual head "
                f"width {USUAL_WIDTH}, and no tensor holds the number of heads; give it (num_heads or head_dim, one "
                "number or one for each block), or put the model's config.json beside it."
            )
        counts.append(block.attention // USUAL_WIDTH)
    usual = len(set(counts)) == 1 and all(block.attention == width for block in shape.blocks)
    why = (
        f"as in published ViTs of width {width}" if usual and width in USUAL_WIDTHS else "since most heads are 64 wide"
    )
    return tuple(counts), f"{counted(counts)}, assumed {why}"


USUAL_WIDTHS = (192, 256, 320, 384, 512, 640, 768, 832, 896, 1024)
