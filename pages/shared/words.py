"""Numbers and names as people read them."""

from __future__ import annotations

import math
from dataclasses import replace

from upvit_core.importance.scores import ImportanceScores
from upvit_core.models.judge import judge_of
from upvit_core.models.shape import PVT_VARIANTS, ModelShape, deit_shape, pvt_shape

UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def short(number: float, digits: int = 2) -> str:
    """`22.05 M`, `4.60 G`, `812`."""
    for size, unit in UNITS:
        if abs(number) >= size:
            return f"{number / size:.{digits}f} {unit}"
    return f"{number:.0f}" if number == int(number) else f"{number:.{digits}f}"


def figure(number: float, digits: int = 3) -> str:
    """`4,590`, `12.3`, `0.00012`: significant digits, and no powers of ten below a million."""
    return f"{number:,.0f}" if 10**digits <= abs(number) < 1e6 else f"{number:.{digits}g}"


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def times(factor: float) -> str:
    """`3.93×`, and fewer digits where they say nothing."""
    return f"{factor:.2f}×" if factor < 10 else f"{factor:.1f}×"


def duration(seconds: float | None) -> str:
    """`40 s`, `12 min`, `3.5 h`; nothing where the time is not known."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def model_name(shape: ModelShape) -> str:
    """`DeiT-B` for the well-known shapes, else the shape's own name."""
    for pyramid in PVT_VARIANTS if shape.stages else ():
        if replace(shape, name="") == replace(pvt_shape(pyramid), name=""):
            return f"PVTv2-{pyramid.upper()}"
    for variant, letter in (("base", "B"), ("small", "S"), ("tiny", "T")):
        known = deit_shape(variant)
        if (shape.embed_dim, shape.blocks, shape.img_size) == (known.embed_dim, known.blocks, known.img_size):
            return f"DeiT-{letter}{' distilled' if shape.distilled else ''}"
    return shape.name


def criterion_name(scores: ImportanceScores) -> str:
    """How the scores were made, in a few words."""
    names = {
        "kl": "exact scores",
        "kl (published)": "published scores",
        "fisher": "fast scores",
        "l1": "L1 magnitude",
        "l2": "L2 magnitude",
    }
    return names.get(scores.criterion, f"{scores.criterion} scores")


def scores_words(scores: ImportanceScores | None) -> str:
    """`published scores, 2,000 images`."""
    if scores is None:
        return "not scored yet"
    named = criterion_name(scores)
    return f"{named}, {scores.images:,} {judge_of(scores.shape).items}" if scores.images else named


def data_name(name: str) -> str:
    """The demo's images by their own name."""
    return "Fashion-MNIST" if name == "demo" else name
