"""Find a model among the tensors of a file: which of several, below which prefix, in whose names.

Every layout has an anchor, the name of its patch embedding; what stands before it is the prefix of that model, however
a file wraps it. An average of weights (EMA) that lies beside a model is taken, since it is what its authors judge.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile

from torch import Tensor

from upvit_core.errors import CheckpointError, UnsupportedModelError
from upvit_core.models.foreign import foreign_model
from upvit_core.models.names import FORMS, MULTIHEAD, Form
from upvit_core.models.tensors import listed
from upvit_core.models.towers import TOWERS

ALL_FORMS = (*FORMS, *TOWERS)
EMA = re.compile(r"(^|[._])(ema|averaged|momentum|swa)([._]|$)|[a-z]_?ema\.|^ema_", re.IGNORECASE)
TEACHER = re.compile(r"(^|\.)(\w+_)?teacher\.")
USUAL = re.compile(r"(^|\.)(model|state_dict|model_state(_dict)?|student|net|network)\.")
HEAD = re.compile(
    r"^(heads?|fc|linear|classifier|cls_classifier|distillation_classifier|cls_head|mlp_head|visual_projection)\.(\w+\.)*\w+$"
)
UNREAD = re.compile(
    r"(^|\.)(total_ops|total_params|mask_token|position_ids|relative_position_index|num_batches_tracked)$|(^|\.)pooler\.dense\.|"
    r"^(criterion|loss\w*|metrics?|\w+_metrics?)\."
)
BESIDE = re.compile(r"^(optimizers?|optimizer_states|scaler|lr_schedulers?|amp|scheduler|callbacks|loops)\.")


@dataclass(frozen=True)
class Found:
    """One model's tensors under timm's names.

    `chosen` names it where a file holds `others` too; `left_out` are tensors that are no part of it.
    """

    tensors: dict[str, Tensor]
    form: Form
    prefix: str = ""
    chosen: str = ""
    is_average: bool = False
    others: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    heads: int | None = None


def find_model(tensors: Mapping[str, Tensor], source: str, wanted: str | None = None, *, known: bool = False) -> Found:
    """The model in a file, or of several the one called `wanted` (a prefix), else the average, else the plainest.

    `known`: a config names the architecture, so names of tensors that belong to others are no reason to refuse.

    Raises UnsupportedModelError where no layout is recognised, CheckpointError where `wanted` is not there.
    """
    forms = _candidates(tensors)
    if not forms:
        if name := foreign_model(tensors):
            raise UnsupportedModelError(f"{source} is {name}, which is not supported; give a ViT, DeiT or PVTv2.")
        raise UnsupportedModelError(
            f"{source} is not a Vision Transformer that is understood: its tensors are {listed(sorted(tensors))}, and "
            "none is a known patch embedding, such as patch_embed.proj.weight; give a ViT, DeiT or PVTv2."
        )
    prefix, is_average = _choose(list(forms), tensors, source, wanted)
    others = tuple(name.rstrip("./") or "the rest" for name in forms if name != prefix)
    inner = {
        key.removeprefix(prefix): tensor
        for key, tensor in tensors.items()
        if key.startswith(prefix)
        and not any(other != prefix and other.startswith(prefix) and key.startswith(other) for other in forms)
    }
    surplus = {key for key in inner if UNREAD.search(key)}
    own = {key: tensor for key, tensor in inner.items() if key not in surplus}
    outer = _heads_beside(prefix, own, tensors)
    if not known and forms[prefix] not in TOWERS and (name := foreign_model(own)):
        raise UnsupportedModelError(f"{source} is {name}, which is not supported; give a ViT, DeiT or PVTv2.")
    taken = {prefix + key for key in inner} | set(outer.values())
    beside = [
        key
        for key in tensors
        if key not in taken and not BESIDE.match(key) and not any(key.startswith(other) for other in forms if other)
    ]
    translated, heads = forms[prefix].translate(own | {key: tensors[full] for key, full in outer.items()}, source)
    chosen = prefix.rstrip("./") if others else ""
    return Found(translated, forms[prefix], prefix, chosen, is_average, others, (*surplus, *beside), heads)


def _candidates(tensors: Mapping[str, Tensor]) -> dict[str, Form]:
    """The layout of every model in the file by its prefix."""
    forms: dict[str, Form] = {}
    for key in tensors:
        for form in ALL_FORMS:
            if match := form.anchor.search(key):
                forms.setdefault(key[: match.start()], form)
    if forms:
        return {prefix: _exact(form, prefix, tensors) for prefix, form in forms.items()}
    stems = list(dict.fromkeys(match["stem"] for match in map(MULTIHEAD.anchor.search, tensors) if match))
    for stem in stems:
        parts = stem.split(".")
        around = ["".join(f"{part}." for part in parts[:size]) for size in range(len(parts))]
        alone = next((p for p in around if not any(s.startswith(p) for s in stems if s != stem)), stem)
        keys = [key for key in tensors if key.startswith(alone) and not BESIDE.match(key) and not UNREAD.search(key)]
        forms[_common(keys)] = MULTIHEAD
    return forms


def _common(keys: list[str]) -> str:
    """The longest prefix of whole parts that all keys have."""
    names = [key.split(".")[:-1] for key in keys]
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*names, strict=False))
    return "".join(f"{parts[0]}." for parts in shared)


def _exact(form: Form, prefix: str, tensors: Iterable[str]) -> Form:
    """Of the forms with one anchor, the one that the other names speak for."""
    keys = [key.removeprefix(prefix) for key in tensors if key.startswith(prefix)]
    for other in ALL_FORMS:
        if other.anchor == form.anchor and any(
            other.mark.search(key) or other.mark.search(prefix + key) for key in keys
        ):
            return other
    return form


def _choose(prefixes: list[str], tensors: Mapping[str, Tensor], source: str, wanted: str | None) -> tuple[str, bool]:
    """The prefix of the model to take, and whether it is an average."""
    averages = [prefix for prefix in prefixes if EMA.search(prefix)]
    averages = averages or [p for p in prefixes if TEACHER.search(p) and _has_twin(p, prefixes, tensors)]
    if wanted is not None:
        named = [p for p in prefixes if p.rstrip("./") == wanted] or [p for p in prefixes if wanted in p.split(".")]
        if not named:
            raise CheckpointError(
                f"{source} has no weights called {wanted!r}; it has "
                f"{', '.join(p.rstrip('./') or 'one state dict' for p in prefixes)}."
            )
        return named[0], named[0] in averages
    students = [prefix for prefix in prefixes if not TEACHER.search(prefix)]
    pool = averages or students or prefixes
    chosen = next((prefix for prefix in pool if USUAL.search(prefix)), pool[0])
    return chosen, chosen in averages


def _has_twin(teacher: str, prefixes: list[str], tensors: Mapping[str, Tensor]) -> bool:
    """True where a student of the same shape lies beside: such a teacher is the student's average."""

    def shapes(prefix: str) -> dict[str, tuple[int, ...]]:
        return {k.removeprefix(prefix): tuple(t.shape) for k, t in tensors.items() if k.startswith(prefix)}

    return any(other != teacher and shapes(other) == shapes(teacher) for other in prefixes)


def _heads_beside(prefix: str, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """A classifier that lies beside the backbone instead of in it: its name as if it lay inside, and its own."""
    if any(HEAD.match(key) for key in own):
        return {}
    parent = prefix
    while parent:
        parent = parent.rstrip(".").rpartition(".")[0]
        parent += "." if parent else ""
        if heads := {
            k.removeprefix(parent): k for k in tensors if k.startswith(parent) and HEAD.match(k[len(parent) :])
        }:
            return heads
    return {}
