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
from upvit_core.models.foreign import foreign_model, foreign_task
from upvit_core.models.names import FORMS, MULTIHEAD, Form
from upvit_core.models.tensors import listed
from upvit_core.models.towers import TOWERS

ALL_FORMS = (*FORMS, *TOWERS)
EMA = re.compile(
    r"(^|[._])(ema|averaged?|avg|moving_average|momentum|swa|polyak|shadow)([._]|$)|[a-z]_?ema\.|^ema_", re.IGNORECASE
)
TEACHER = re.compile(
    r"(^|\.)((\w+_)?teacher(_\w+)?|target_(encoder|network|net|model|backbone)|encoder_k|key_encoder)\."
)
EXCHANGED = re.compile(r"^(ema_state_dict\.steps$|current_model_state\.)")
"""Names in files that hold the average as `state_dict`, and the model's own weights apart (MMEngine, Lightning)."""
QUERIES = re.compile(r"(^|\.)(base_encoder|encoder_q|query_encoder)\.")
"""Names of the encoder by which MoCo is judged, beside its moving average."""
BEST = re.compile(r"(^|[._])best([._]|$)")
USUAL = re.compile(r"(^|\.)(model|state_dict|model_state(_dict)?|student|net|network)\.")
INNER = re.compile(r"(^|(?<=\.))(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module|module)\.")
NO_HEAD = re.compile(r"proj|predict|proto|embed|decoder|queue|center|aux|text|word|head\.mlp|last_layer", re.IGNORECASE)
HEAD = re.compile(
    r"^(?!head\.(probe|attention|layernorm|mlp|last_layer)\b)(heads?|fc|linear|classifier|cls_classifier|distillation_classifier|cls_head|mlp_head|linear_head|visual_projection)\.(\w+\.)*\w+$"
)
NECK = re.compile(r"(^|\.)(bottleneck|neck|bn\w*|\w*norm\w*)\.(running_mean|weight)$", re.IGNORECASE)
UNREAD = re.compile(
    r"(^|\.)(total_ops|total_params|mask_token|position_ids|relative_position_index|num_batches_tracked)$|(^|\.)pooler\.dense\.|"
    r"^(\w+_)?head\.(mlp\.\d|last_layer)\b|^(criterion|loss\w*|metrics?|\w+_metrics?)\."
)
BESIDE = re.compile(r"^(optimizers?|optimizer_states|scaler|lr_schedulers?|amp|scheduler|callbacks|loops)\.")


@dataclass(frozen=True)
class Found:
    """One model's tensors under timm's names.

    `chosen` names it where a file holds `others` too; `left_out` are tensors that are no part of it. `note`
    says what else was taken for granted.
    """

    tensors: dict[str, Tensor]
    form: Form
    prefix: str = ""
    chosen: str = ""
    is_average: bool = False
    others: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    heads: int | None = None
    note: str = ""


def find_model(
    tensors: Mapping[str, Tensor],
    source: str,
    wanted: str | None = None,
    *,
    known: bool = False,
    modules: Iterable[str] = (),
) -> Found:
    """The model in a file, or of several the one called `wanted` (a prefix), else the average, else the plainest.

    `known`: a config names the architecture, so names of tensors that belong to others are no reason to refuse.
    `modules` are the paths of saved modules, which may hold more than tensors.

    Raises UnsupportedModelError where no layout is recognised, CheckpointError where `wanted` is not there.
    """
    tensors, note = _whole_weights(tensors)
    forms = _candidates(tensors)
    if not forms and len(plain := {INNER.sub("", key.replace("/", ".")): tensors[key] for key in tensors}) == len(
        tensors
    ):
        tensors, forms = plain, _candidates(plain)
    if name := foreign_task((*tensors, *modules)):
        raise UnsupportedModelError(f"{source} is {name}, which is not supported; give a ViT, DeiT or PVTv2.")
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
    projector = re.compile(r"head\.\d+\." if QUERIES.search(prefix) else r"(?!)")  # MoCo v3's
    surplus = {key for key in inner if UNREAD.search(key) or projector.match(key)}
    own = {INNER.sub("", key): tensor for key, tensor in inner.items() if key not in surplus}
    outer = _heads_beside(prefix, own, tensors, forms)
    if (
        own
        and not known
        and forms[prefix] not in TOWERS
        and (name := foreign_model(k for k in own if not HEAD.match(k)))
    ):
        raise UnsupportedModelError(f"{source} is {name}, which is not supported; give a ViT, DeiT or PVTv2.")
    if any(forms[prefix].anchor.search(key) and tensor.ndim == 5 for key, tensor in own.items()):
        raise UnsupportedModelError(f"{source} is a model of videos, which is not supported; give a ViT of images.")
    taken = {prefix + key for key in inner} | set(outer.values())
    beside = [
        key
        for key in tensors
        if key not in taken and not BESIDE.match(key) and not any(key.startswith(other) for other in forms if other)
    ]
    if outer and (norm := next((key for key in beside if NECK.search(key) and not NO_HEAD.search(key)), "")):
        raise UnsupportedModelError(
            f"{source} has a norm between backbone and classifier ({norm}), which is not supported; fold it into the "
            "classifier, or leave both out."
        )
    translated, heads = forms[prefix].translate(own | {key: tensors[full] for key, full in outer.items()}, source)
    translated = _with_one_head(translated, source)
    if taken_for := next((full for key, full in outer.items() if key == "head.weight" and not HEAD.search(full)), ""):
        note = "; ".join(filter(None, (note, f"its classifier is taken to be {taken_for.removesuffix('.weight')}")))
    chosen = prefix.rstrip("./") if others else ""
    return Found(translated, forms[prefix], prefix, chosen, is_average, others, (*surplus, *beside), heads, note)


def _whole_weights(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Weights that a file holds in two parts, whole: masked by torch's pruning, or a direction and its length."""
    out, note = dict(tensors), ""
    for key in tensors:
        if key.endswith("_orig") and (mask := f"{key.removesuffix('_orig')}_mask") in out:
            out[key.removesuffix("_orig")] = out.pop(key) * out.pop(mask)
            note = "weights are taken with the masks of torch.nn.utils.prune"
        name, _, part = key.rpartition(".")
        name, part = (name.replace("parametrizations.", ""), "0") if part == "original0" else (key[:-2], key[-2:])
        other = key.replace("original0", "original1") if part == "0" else f"{name}_v"
        if part in ("0", "_g") and other in out:
            length, direction = out.pop(key), out.pop(other)
            axes = [axis for axis, size in enumerate(length.shape) if size == 1]
            out[name] = direction * (length / direction.norm(dim=axes, keepdim=True))
    return out, note


def _with_one_head(tensors: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The tensors with their classifier called `head`, however deep it lies, and with zeros for a bias that it lacks.

    Raises UnsupportedModelError where it has several layers.
    """
    out = dict(tensors)
    if "head.weight" not in out and (parts := sorted(key for key in out if re.match(r"heads?\.", key))):
        layers = [key for key in parts if key.endswith(".weight") and out[key].ndim == 2]
        if len(layers) != 1 or len(parts) > 2:
            raise UnsupportedModelError(
                f"{source} has a classifier of several parts ({listed(parts)}), which is not supported; give one "
                "linear layer."
            )
        out |= {f"head.{key.rpartition('.')[2]}": out.pop(key) for key in parts}
    for head in ("head", "head_dist"):
        if f"{head}.weight" in out and f"{head}.bias" not in out:
            out[f"{head}.bias"] = out[f"{head}.weight"].new_zeros(len(out[f"{head}.weight"]))
    return out


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
    queries = [prefix for prefix in prefixes if QUERIES.search(prefix)]
    averages = averages or [p for p in prefixes if TEACHER.search(p) and _has_twin(p, prefixes, tensors)]
    averages = [prefix for prefix in averages if prefix in (queries or averages)]
    if any(EXCHANGED.match(key) for key in tensors):
        averages = [p for p in prefixes if p.startswith("state_dict.")]
    if wanted is not None:
        named = [p for p in prefixes if p.rstrip("./") == wanted] or [p for p in prefixes if wanted in p.split(".")]
        if not named:
            raise CheckpointError(
                f"{source} has no weights called {wanted!r}; it has "
                f"{', '.join(p.rstrip('./') or 'one state dict' for p in prefixes)}."
            )
        return named[0], named[0] in averages
    pool = averages or [p for p in queries or prefixes if not TEACHER.search(p)] or prefixes
    chosen = next((p for kind in (BEST, USUAL) for p in pool if kind.search(p)), pool[0])
    return chosen, chosen in averages


def _has_twin(teacher: str, prefixes: list[str], tensors: Mapping[str, Tensor]) -> bool:
    """True where a student of the same shape lies beside: such a teacher is the student's average."""

    def shapes(prefix: str) -> dict[str, tuple[int, ...]]:
        return {k.removeprefix(prefix): tuple(t.shape) for k, t in tensors.items() if k.startswith(prefix)}

    return any(other != teacher and shapes(other) == shapes(teacher) for other in prefixes)


def _heads_beside(
    prefix: str, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], forms: Mapping[str, Form]
) -> dict[str, str]:
    """A classifier that lies beside the backbone instead of in it: its name as if it lay inside, and its own.

    One of an unusual name is known by its width, where no other layer beside the backbone reads as many numbers.
    """
    if "head.probe" not in own and any(HEAD.match(key) for key in own):  # else SigLIP's attention pooling
        return {}
    parent = prefix
    while parent:
        parent = parent.rstrip(".").rpartition(".")[0]
        parent += "." if parent else ""
        if heads := {
            k.removeprefix(parent): k for k in tensors if k.startswith(parent) and HEAD.match(k[len(parent) :])
        }:
            return heads
    if forms[prefix] in TOWERS:
        return {}
    width = next((len(t) for k, t in own.items() if forms[prefix].anchor.search(k) and t.ndim == 4), 0)
    beside = {
        key: tensor
        for key, tensor in tensors.items()
        if key.endswith(".weight") and not BESIDE.match(key) and not any(key.startswith(other) for other in forms)
    }
    layers = [
        key.removesuffix(".weight")
        for key, tensor in beside.items()
        if tensor.ndim == 2 and tensor.shape[1] == width and not NO_HEAD.search(key)
    ]
    first = beside.pop(f"{layers[0]}.weight", None) if layers else None
    ahead = first is not None and any(t.ndim == 2 and t.shape[1] == len(first) for t in beside.values())
    names = ("weight", "bias") if len(layers) == 1 and not ahead else ()
    return {f"head.{leaf}": f"{layers[0]}.{leaf}" for leaf in names if f"{layers[0]}.{leaf}" in tensors}
