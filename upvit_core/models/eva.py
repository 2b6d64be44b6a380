"""timm's Eva (EVA, EVA-02, DINOv3, PE and ViTs with rotary positions) and Beit, as one architecture.

timm has three attention classes for them. All compute what its `AttentionRope` computes once queries, keys and values
are in one layer (`canonical` in `build.py` joins them); BEiT's adds a table of relative positions. Attention is cut by
whole heads, so a head's rotary or relative positions do not change.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.layers.attention import AttentionRope
from timm.layers.patch_embed import PatchEmbed
from timm.layers.pos_embed_sincos import (
    RotaryEmbeddingCat,
    RotaryEmbeddingDinoV3,
    RotaryEmbeddingMixed,
    apply_rot_embed_cat,
    get_mixed_freqs,
    get_mixed_grid,
    init_random_2d_freqs,
)
from timm.models import beit
from timm.models.beit import gen_relative_position_index
from timm.models.eva import Eva, EvaAttention, EvaBlock
from torch import Tensor, nn

from upvit_core.errors import UnsupportedModelError
from upvit_core.files import Json
from upvit_core.models.build import Reader, Untyped, mlp_ratio
from upvit_core.models.parts import NORMS, build_ffn, build_pool, norm_layer, read_activation
from upvit_core.models.resize import resample_positions
from upvit_core.models.vit import ViTAdapter
from upvit_core.models.vit_build import INIT_VALUES, norms_of, plain_facts, projects, read_blocks
from upvit_core.records.shape import ModelShape

ROPES = {"cat": RotaryEmbeddingCat, "dinov3": RotaryEmbeddingDinoV3, "mixed": RotaryEmbeddingMixed}
SETTINGS = ("temperature", "ref_feat_shape", "grid_offset", "grid_indexing", "rotate_half")


class RelativeAttention(AttentionRope):
    """Attention that adds BEiT's table of relative positions, a column per head, to the products q·k."""

    relative_position_index: Tensor

    def __init__(self, grid: tuple[int, int], dim: int, **named: Any):
        super().__init__(dim, **named)
        self.grid, device = grid, named.get("device")
        distances = (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3
        self.relative_position_bias_table = nn.Parameter(torch.zeros(distances, self.num_heads, device=device))
        tokens = grid[0] * grid[1] + 1
        index = torch.empty(tokens, tokens, dtype=torch.long, device=device)
        self.register_buffer("relative_position_index", index, persistent=False)
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        if not self.relative_position_index.is_meta:
            self.relative_position_index.copy_(gen_relative_position_index(self.grid))

    def relative(self) -> Tensor:
        """The bias of the products q·k, (heads, tokens, tokens)."""
        table: Tensor = self.relative_position_bias_table
        return table[self.relative_position_index].permute(2, 0, 1)

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        mask = self.relative() if attn_mask is None else attn_mask + self.relative()
        out: Tensor = super().forward(x, rope, mask, is_causal)
        return out


class MixedAttention(AttentionRope):
    """Attention with rotary positions whose frequencies are learned for every head."""

    t_x: Tensor
    t_y: Tensor

    def __init__(self, grid: tuple[int, int], settings: Json, dim: int, **named: Any):
        super().__init__(dim, **named)
        self.grid, self.settings, device = grid, settings, named.get("device")
        made = init_random_2d_freqs(self.head_dim, 1, self.num_heads, settings["temperature"], device=device)
        self.freqs = nn.Parameter(made[:, 0])
        for name in ("t_x", "t_y"):
            self.register_buffer(name, torch.empty(grid[0] * grid[1], device=device), persistent=False)
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        if not self.t_x.is_meta:
            x, y = get_mixed_grid(list(self.grid), self.settings["grid_indexing"])
            self.t_x.copy_(x)
            self.t_y.copy_(y)

    def angles(self) -> Tensor:
        """Sines and cosines, (heads, patches, 2 d)."""
        made: Tensor = get_mixed_freqs(self.freqs, self.t_x, self.t_y)
        return made

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        out: Tensor = super().forward(x, self.angles(), attn_mask, is_causal)
        return out


def timm_arguments(shape: ModelShape) -> Json:
    """Arguments of timm's `Eva` for a uniform shape, in values that JSON keeps."""
    block, own = shape.blocks[0], shape.structure
    rope = dict(own.rope)
    arguments = {
        "img_size": list(shape.img_size),
        "patch_size": shape.patch_size[0] if len(set(shape.patch_size)) == 1 else list(shape.patch_size),
        "in_chans": shape.in_chans,
        "embed_dim": shape.embed_dim,
        "depth": shape.depth,
        "num_heads": shape.heads_in(block),
        "mlp_ratio": mlp_ratio(block.ffn, shape.embed_dim),
        "qkv_bias": shape.qkv_bias,
        "qkv_fused": True,
        "attn_type": "rope",
        "swiglu_mlp": bool(own.gate),
        "swiglu_align_to": int(own.gate == "split"),
        "scale_mlp": own.ffn_norm,
        "scale_attn_inner": own.attention_norm,
        "init_values": INIT_VALUES if shape.layer_scale else None,
        "class_token": shape.class_token,
        "num_reg_tokens": shape.num_reg_tokens,
        "no_embed_class": shape.no_embed_class,
        "use_abs_pos_emb": own.positions,
        "use_rot_pos_emb": bool(own.rope),
        "dynamic_img_size": False,
        "use_pre_transformer_norm": shape.pre_norm,
        "use_post_transformer_norm": shape.final_norm and not shape.fc_norm,
        "use_fc_norm": shape.fc_norm,
        "global_pool": "map" if own.pool else "token" if shape.head_tokens else "avg",
    }
    for name, value in rope.items():
        arguments[name if name == "ref_feat_shape" else f"rope_{name}"] = list(value) if type(value) is tuple else value
    return arguments


def build_eva(
    shape: ModelShape, *, weight_init: str = "", drop_path_rate: float = 0.0, device: torch.device | str = "cpu"
) -> nn.Module:
    """A fresh model in training mode, its weights drawn from the global generator."""
    own, stock = shape.structure, shape.is_uniform
    arguments = timm_arguments(shape)
    if not stock:
        arguments |= {"num_heads": 1, "mlp_ratio": 2.0, "use_rot_pos_emb": False, "swiglu_mlp": False}
    model: Untyped = Eva(
        **arguments,
        num_classes=shape.num_classes,
        norm_layer=norm_layer(shape),
        drop_path_rate=drop_path_rate,
        device=device,
    )
    built: nn.Module = model
    if stock:
        return built
    if own.rope and not own.learns_angles:
        model.rope = _rope(shape, device)
    for module, block in zip(model.blocks, shape.blocks, strict=True):
        arguments = {
            "num_heads": shape.heads_in(block),
            "attn_head_dim": own.head_dim or block.head_dim,
            "qkv_bias": shape.qkv_bias,
            "num_prefix_tokens": shape.num_prefix_tokens,
            "norm_layer": norm_layer(shape),
            "scale_norm": own.attention_norm,
            "rotate_half": bool(dict(own.rope).get("rotate_half")),
            "device": device,
        }
        made: Untyped = AttentionRope
        if own.relative:
            made = partial(RelativeAttention, model.patch_embed.grid_size)
        elif own.learns_angles:
            made = partial(MixedAttention, model.patch_embed.grid_size, dict(own.rope))
        module.attn = made(shape.embed_dim, **arguments)
        module.mlp = build_ffn(shape, block.ffn, device)
    if own.pool:
        model.attn_pool = build_pool(shape, device)
        model.head = nn.Linear(own.pool[0], shape.num_classes, device=device) if shape.num_classes else model.head
    model.init_weights(needs_reset=False)
    return built


OURS = (AttentionRope, RelativeAttention, MixedAttention)


def _rope(shape: ModelShape, device: torch.device | str) -> nn.Module:
    settings = dict(shape.structure.rope)
    grid = [side // patch for side, patch in zip(shape.img_size, shape.patch_size, strict=True)]
    kind = settings.pop("type")
    more: Json = {"in_pixels": False} if kind == "cat" else {}
    rope: nn.Module = ROPES[kind](shape.structure.head_dim, feat_shape=grid, device=device, **settings, **more)
    return rope


def shape_of_eva(model: nn.Module, name: str) -> ModelShape:
    """Shape of a live timm Eva or Beit.

    Raises UnsupportedModelError, naming the part, where the model has anything that a `ModelShape` cannot say.
    """
    vit: Untyped = model
    read = Reader(name)
    _check(vit, read)
    layer_scale = read.one("the layer scales", (block.gamma_1 is not None for block in vit.blocks))
    first = vit.blocks[0].attn
    relative = getattr(first, "relative_position_bias_table", None) is not None
    blocks, structure = read_blocks(vit, read, rope=_read_rope(vit, read), relative=relative)
    bias = first.qkv.bias if first.qkv is not None else first.q_proj.bias
    shape = ModelShape(
        **plain_facts(vit, name),
        blocks=blocks,
        head_tokens=int(vit.global_pool == "token"),
        qkv_bias=bias is not None or getattr(first, "q_bias", None) is not None,
        layer_scale=layer_scale,
        no_embed_class=bool(getattr(vit, "no_embed_class", False)),
        final_norm=not (isinstance(vit.norm, nn.Identity) and isinstance(vit.fc_norm, nn.Identity)),
        class_token=vit.cls_token is not None,
        fc_norm=not isinstance(vit.fc_norm, nn.Identity),
        norm_eps=read.one("the norms' eps", (norm.eps for norm in norms_of(vit))),
        pre_norm=not isinstance(getattr(vit, "norm_pre", nn.Identity()), nn.Identity),
        act=read_activation(vit.blocks, read),
        features=not vit.num_classes or projects(vit),
        family="eva",
        structure=structure,
    )
    read.check_tensors(model, shape)
    return shape


def _check(vit: Untyped, read: Reader) -> None:
    read.check("patch_embed", vit.patch_embed, PatchEmbed)
    for part in ("norm", "fc_norm"):
        read.check(part, getattr(vit, part), nn.Identity, *NORMS)
    read.check("head", vit.head, nn.Linear if vit.num_classes else nn.Identity)
    read.check("rel_pos_bias", getattr(vit, "rel_pos_bias", None), type(None))
    if vit.global_pool not in ("token", "avg", "map"):
        read.refuse("global_pool", repr(vit.global_pool), "'token', 'avg' or 'map'")
    if not isinstance(vit.norm, nn.Identity) and not isinstance(vit.fc_norm, nn.Identity):
        read.refuse("fc_norm", "a second norm", "one norm before the head")
    for b, block in enumerate(vit.blocks):
        read.check(f"blocks.{b}", block, EvaBlock, beit.Block)
        read.check(f"blocks.{b}.attn", block.attn, *OURS, EvaAttention, beit.Attention)
        read.check(f"blocks.{b}.attn.gate", getattr(block.attn, "gate", None), type(None))
        if getattr(block.attn, "num_kv_groups", 1) > 1:
            read.refuse(
                f"blocks.{b}.attn",
                "attention of fewer keys than queries "
                "(several heads share their keys, so no head can be removed alone)",
                "as many of both",
            )
        if (block.gamma_1 is None) != (block.gamma_2 is None):
            read.refuse(f"blocks.{b}.gamma_2", "absent", "layer scale of both halves")


def _read_rope(vit: Untyped, read: Reader) -> tuple[tuple[str, Any], ...]:
    rope, first = getattr(vit, "rope", None), vit.blocks[0].attn
    read.check("rope", rope, type(None), *ROPES.values())
    if isinstance(first, MixedAttention):
        return tuple(first.settings.items())
    if rope is None:
        return ()
    kind = next(kind for kind, made in ROPES.items() if type(rope) is made)
    usual = {"cat": ("grid_type", "index"), "dinov3": ("normalize_coords", "separate"), "mixed": ("aug_active", False)}
    part, wanted = usual[kind]
    odd = getattr(rope, "in_pixels", False) or getattr(rope, "min_period", None) is not None
    if odd or getattr(rope, part) != wanted:
        read.refuse("rope", "rotary positions of unusual coordinates", "timm's usual settings")
    found = {name: getattr(rope, name, None) for name in SETTINGS}
    known = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    return (("type", kind), *((name, value) for name, value in known.items() if value is not None))


def eva_shapes(shape: ModelShape) -> dict[str, ModelShape]:
    """Empty: timm has no set of standard sizes for these models to compare with."""
    return {}


def resample_eva(
    tensors: dict[str, Tensor] | None, shape: ModelShape, img_size: tuple[int, int]
) -> dict[str, Tensor] | None:
    """Resample learned positions; rotary ones are computed anew. Raises UnsupportedModelError for relative ones."""
    if shape.structure.relative:
        raise UnsupportedModelError(
            f"{shape.name} has relative positions, which cannot be resized; keep its image size."
        )
    return resample_positions(tensors, shape, img_size)


class EvaAdapter(ViTAdapter):
    """Adapter of a model made by `build_eva`. Raises UnsupportedModelError for timm's own modules."""

    def __init__(self, model: nn.Module, shape: ModelShape):
        super().__init__(model, shape)
        if {type(block.attn) for block in self.vit.blocks} - set(OURS) or shape.structure.learns_angles != any(
            isinstance(block.attn, MixedAttention) for block in self.vit.blocks
        ):
            raise UnsupportedModelError(
                f"{shape.name} has blocks of other modules than ours; open it with load_model to run it."
            )

    def positioned(self, patches: Tensor) -> Tensor:
        x: Tensor = self.vit._pos_embed(patches)[0]
        return x

    def queries_keys_values(self, block: int, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().queries_keys_values(block, normed)
        if not self.shape.structure.rope:
            return q, k, v
        first, half = self.shape.num_prefix_tokens, self.blocks[block].attn.rotate_half
        mixed = self.shape.structure.learns_angles
        angles = (self.blocks[block].attn.angles() if mixed else self.vit.rope.get_embed()).to(q)

        def turned(x: Tensor) -> Tensor:
            heads = self.split_heads(block, x)
            after = apply_rot_embed_cat(heads[:, :, first:], angles, half=half)
            return torch.cat([heads[:, :, :first], after], 2).transpose(1, 2).flatten(2)

        return turned(q), turned(k), v

    def bias(self, block: int, tokens: int) -> Tensor | None:
        attn = self.blocks[block].attn
        return attn.relative()[:, :tokens] if self.shape.structure.relative else None
