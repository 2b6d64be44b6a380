"""Published scores: folders of text files with one number a line, as released for DeiT-B by the letter's authors.

File names carry the component, its width, the block and the size of the image set:
`Deit_base_12_neck_768_kl_2k.txt` (residual), `Deit_base_12_attn_768_kl_3_2k.txt`, `Deit_base_12_ffn_3072_kl_3_2k.txt`.
The lists of channels to delete end in `…importance_rank_768.txt`, `…importance_rank_multihead3.txt`, and for the
residual in the width that stays, `…kl_2k_192.txt`.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from upvit_core.errors import ScoresError
from upvit_core.importance.ranking import keep_best, keep_in_merged_heads
from upvit_core.limits import MOST_BLOCKS
from upvit_core.records.known_shapes import deit_shape
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import BlockShape, ModelShape

SCORE_FILE = re.compile(
    r"(?P<model>.+)_(?P<depth>\d+)_(?P<kind>neck|attn|ffn)_(?P<width>\d+)_kl(?:_B)?(?:_(?P<block>\d+))?_(?P<images>\d+)k\.txt"
)
RANK_FILE = re.compile(
    r".+_(?P<depth>\d+)_(?P<kind>neck|attn|ffn)_(?P<width>\d+)_kl(?:_(?P<block>\d+))?_(?P<images>\d+)k"
    r"(?:_importance_rank)?_(?P<multihead>multihead)?(?P<target>\d+)\.txt"
)
COMPONENT = {"neck": "residual", "attn": "attention", "ffn": "ffn"}


def import_scores(folder: str | Path) -> ImportanceScores:
    """Read a folder of published score files into a record; the width of a head is taken to be 64.

    Raises ScoresError naming the file (and line) that is missing, doubled, of the wrong length, or not numeric.
    """
    folder = Path(folder)
    if (folder / "importance").is_dir():
        folder = folder / "importance"
    if not folder.is_dir():
        raise ScoresError(f"There is no folder {folder}; give the folder that holds the published score files.")
    values: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    depths, images = set(), set()
    for path in sorted(folder.glob("*.txt")):
        match = SCORE_FILE.fullmatch(path.name)
        if match is None:
            continue
        key = _key(match["kind"], match["block"], path)
        if key in values:
            raise ScoresError(f"Both {origin[key]} and {path.name} hold the scores of {key}; remove one of them.")
        values[key], origin[key] = _numbers(path, int(match["width"])), path.name
        depths.add(int(match["depth"]))
        images.add(int(match["images"]) * 1000)
    if not values:
        raise ScoresError(f"{folder} holds no published score file, such as Deit_base_12_neck_768_kl_2k.txt.")
    if len(depths) > 1 or len(images) > 1:
        raise ScoresError(f"{folder} mixes depths {sorted(depths)} or image sets of {sorted(images)}; separate them.")
    depth = depths.pop()
    if depth > MOST_BLOCKS:
        raise ScoresError(f"The names in {folder} speak of {depth} blocks; models have at most {MOST_BLOCKS}.")
    for key in ["residual", *(f"{c}.{b}" for b in range(depth) for c in ("attention", "ffn"))]:
        if key not in values:
            raise ScoresError(f"{folder} lacks the file with the scores of {key}; a model of {depth} blocks needs it.")
    surplus = [key for key in values if "." in key and int(key.split(".")[1]) >= depth]
    if surplus:
        raise ScoresError(f"{origin[surplus[0]]} names a block that a model of {depth} blocks does not have.")
    return ImportanceScores(
        values=values,
        criterion="kl (published)",
        unit="nats, summed over images",
        shape=_shape(values, depth, folder),
        model="DeiT-B" if len(values["residual"]) == 768 and depth == 12 else "DeiT",
        data="ImageNet-1k",
        images=images.pop(),
        notes={"source": "score files released with arXiv 2111.15127"},
    )


def _shape(values: dict[str, np.ndarray], depth: int, folder: Path) -> ModelShape:
    D = len(values["residual"])
    blocks = []
    for b in range(depth):
        A, H = len(values[f"attention.{b}"]), len(values[f"ffn.{b}"])
        if A % 64:
            raise ScoresError(f"{folder}: block {b} has {A} attention channels, which heads of 64 do not divide.")
        blocks.append(BlockShape(A // 64, A, H))
    known = deit_shape("base")
    if (D, tuple(blocks)) == (known.embed_dim, known.blocks):
        return known
    return replace(known, name="DeiT (published scores)", embed_dim=D, blocks=tuple(blocks))


def _key(kind: str, block: str | None, path: Path) -> str:
    if (kind == "neck") != (block is None):
        raise ScoresError(f"{path.name}: only the residual (neck) file goes without a block number; rename it.")
    return COMPONENT[kind] if block is None else f"{COMPONENT[kind]}.{int(block)}"


def _numbers(path: Path, width: int) -> np.ndarray:
    lines = path.read_text().splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    if len(lines) != width:
        raise ScoresError(f"{path.name} has {len(lines)} lines, its name promises {width}.")
    numbers = np.empty(width)
    for number, line in enumerate(lines):
        try:
            numbers[number] = float(line)
        except ValueError as error:
            raise ScoresError(f"{path.name}, line {number + 1}: {line.strip()!r} is not a number.") from error
        if not np.isfinite(numbers[number]):
            raise ScoresError(f"{path.name}, line {number + 1}: {line.strip()!r} is not finite.")
    return numbers


@dataclass(frozen=True)
class RankCheck:
    """A published list beside its scores, which would have removed `not_chosen` of the `kept` channels."""

    key: str
    kept: int
    not_chosen: int


def check_rank_lists(scores: ImportanceScores, folder: str | Path) -> list[RankCheck]:
    """For each list of channels to delete, the number of kept channels that its scores would not have chosen.

    Blocks without a list are left out. Raises ScoresError for a list that is malformed.
    """
    folder, checks = Path(folder), []
    for path in sorted(folder.glob("*.txt")):
        match = RANK_FILE.fullmatch(path.name)
        if match is None:
            continue
        key = _key(match["kind"], match["block"], path)
        if key not in scores.values:
            raise ScoresError(f"{path.name} is a list for {key}, of which there are no scores.")
        values = scores.values[key]
        listed = _numbers(path, len(path.read_text().split()))
        deleted = listed.astype(int)
        if len(set(deleted)) != len(deleted) or (deleted != listed).any() or not (deleted >= 0).all():
            raise ScoresError(f"{path.name} must list channel numbers, each once.")
        if len(deleted) and deleted.max() >= len(values):
            raise ScoresError(f"{path.name} deletes channel {deleted.max()}, but {key} has {len(values)}.")
        kept = set(range(len(values))) - set(deleted.tolist())
        if match["multihead"]:
            heads = scores.shape.blocks[int(match["block"])].num_heads
            ours = keep_in_merged_heads(values, heads, int(match["target"]), len(kept))
        else:
            ours = keep_best(values, len(kept))
        checks.append(RankCheck(key, len(kept), len(kept - set(ours.tolist()))))
    components = list(COMPONENT.values())
    return sorted(checks, key=lambda c: (components.index(c.key.split(".")[0]), int(c.key.partition(".")[2] or 0)))
