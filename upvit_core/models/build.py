"""Between a `ModelShape` and a live model: build one of any shape, read the shape of one, adapt one.

What no `ModelShape` can say is refused by name rather than dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn

from upvit_core.errors import UnsupportedModelError
from upvit_core.models.adapter import Adapter
from upvit_core.models.layout import layout
from upvit_core.models.parallel import side_by_side
from upvit_core.records.family import FAMILIES, load
from upvit_core.records.shape import ModelShape

Value = TypeVar("Value")
Untyped = Any
"""A module of another library, whose attributes have no types."""


def expected_tensors(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Name and dimensions of every tensor that the library's model of this shape holds."""
    return {name: part.size for name, part in layout(shape).items()}


def build_model(
    shape: ModelShape,
    *,
    seed: int = 0,
    weight_init: str = "",
    drop_path_rate: float = 0.0,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """A fresh model of any shape, in training mode, its weights drawn by `seed` (global RNG untouched).

    `weight_init` is timm's (`""`, `"jax"`, …) for Vision Transformers; other families leave it out. On the device
    `"meta"` nothing is drawn or stored.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = load(shape.architecture.build)(
            shape, weight_init=weight_init, drop_path_rate=drop_path_rate, device=device
        )
    return model


def with_state(shape: ModelShape, state: Mapping[str, Tensor]) -> nn.Module:
    """A model of this shape in training mode that holds the tensors of `state` themselves, not copies."""
    model = build_model(shape, device="meta")
    model.load_state_dict(state, assign=True)
    for module in model.modules():
        lost = [name for name, each in module.named_buffers(recurse=False) if each.is_meta]
        for name in lost:
            module.register_buffer(name, torch.empty_like(module.get_buffer(name), device="cpu"), persistent=False)
        if lost:
            module.init_non_persistent_buffers()  # type: ignore[operator]
    return model


def shape_of(model: nn.Module, name: str = "model") -> ModelShape:
    """Shape of a live timm model of a known architecture.

    Raises UnsupportedModelError, naming the part, where the model has anything that a `ModelShape` cannot say.
    """
    kind = f"{type(model).__module__}:{type(model).__name__}"
    for family in FAMILIES.values():
        if kind in family.live:
            shape: ModelShape = load(family.live[kind])(model, name)
            return shape
    raise UnsupportedModelError(
        f"{name} is a {type(model).__name__}, not a plain Vision Transformer; give a ViT, DeiT or PVTv2 of timm's "
        "classes VisionTransformer, VisionTransformerDistilled or PyramidVisionTransformerV2."
    )


def live_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a live timm model, under the names that `build_model` gives a model of its shape."""
    return _joined(model.state_dict())


def canonical(tensors: Mapping[str, Tensor], shape: ModelShape) -> dict[str, Tensor]:
    """Tensors of a file under the names that the model of `shape` has.

    Layer scale is renamed to the layout's name; queries, keys and values are joined in one layer (EVA and BEiT).
    """
    wanted, out = layout(shape), _joined(tensors)
    names = {key: re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", key) for key in out if key not in wanted}
    return {names[key] if names.get(key) in wanted else key: tensor for key, tensor in out.items()}


def _joined(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join layers that are one in our model, and split tensors that it has by block; others stay.

    Parallel attentions and FFNs are joined, and so are EVA's and BEiT's queries, keys and values, with zeros as the
    bias of keys that have none. Learned rotary frequencies, one tensor (2, blocks, heads, d/2) in timm, are split.
    """
    out = side_by_side(tensors)
    if "rope.freqs" in out:
        out |= {f"blocks.{b}.attn.freqs": each for b, each in enumerate(out.pop("rope.freqs").unbind(1))}
    for key in tensors:
        stem, _, leaf = key.rpartition("attn.")
        if leaf == "q_proj.weight" and f"{stem}attn.v_proj.weight" in out:
            parts = [out.pop(f"{stem}attn.{part}_proj.weight") for part in "qkv"]
            out[f"{stem}attn.qkv.weight"] = torch.cat(parts)
        elif leaf in ("q_bias", "q_proj.bias") and f"{stem}attn.{leaf.replace('q', 'v')}" in out:
            q, v = out.pop(key), out.pop(f"{stem}attn.{leaf.replace('q', 'v')}")
            k = out.pop(f"{stem}attn.{leaf.replace('q', 'k')}", torch.zeros_like(q))
            out[f"{stem}attn.qkv.bias"] = torch.cat([q, k, v])
    return out


def adapt(model: nn.Module, shape: ModelShape) -> Adapter:
    """The adapter of a model that `load_model` accepted."""
    adapter: Adapter = load(shape.architecture.adapter)(model, shape)
    return adapter


def mlp_ratio(hidden: int, width: int) -> float:
    """The ratio from which timm's `int(width * ratio)` gives exactly `hidden`."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


AT_ONCE = "attention and FFN share one norm and one sum, so they cannot be cut apart"
AFTER = "the norms come after attention and FFN, so removing one channel changes all the others"
TWICE = "differential attention: a head is the difference of two softmaxes, under a norm of its own"
UNLIKE = {
    "ParallelScalingBlock": AT_ONCE,
    "DiffParallelScalingBlock": f"{AT_ONCE}; {TWICE}",
    "ResPostBlock": AFTER,
    "EvaBlockPostNorm": AFTER,
    "DiffAttention": TWICE,
}
"""Structures of timm's modules that no adapter has, by class, in words."""


class Reader:
    """Checks of a live model called `name`; each raises UnsupportedModelError that names the part."""

    def __init__(self, name: str):
        self.name = name

    def refuse(self, part: str, value: object, wanted: str) -> NoReturn:
        raise UnsupportedModelError(f"{self.name}: {part} is {value}, which is not understood; expected {wanted}.")

    def check(self, part: str, module: object, *kinds: type) -> None:
        if type(module) not in kinds:
            found = type(module).__name__
            told = f"{found} ({UNLIKE[found]})" if found in UNLIKE else found
            self.refuse(part, told, " or ".join(dict.fromkeys(kind.__name__ for kind in kinds)))

    def one(self, part: str, found: Iterable[Value]) -> Value:
        """The one value in `found`. Raises UnsupportedModelError, naming `part`, where there are several."""
        values = set(found)
        if len(values) > 1:
            self.refuse(part, sorted(map(str, values)), "one for all")
        return values.pop()

    def check_tensors(self, model: nn.Module, shape: ModelShape) -> None:
        """The model's tensors are exactly those of the shape."""
        expected = expected_tensors(shape)
        sizes = {key: tuple(tensor.shape) for key, tensor in live_tensors(model).items()}
        for key in [*expected, *sizes]:
            if expected.get(key) != sizes.get(key):
                self.refuse(key, sizes.get(key, "absent"), str(expected.get(key, "a model without it")))
