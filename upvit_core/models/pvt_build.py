"""Between a `ModelShape` with stages and a live timm PVTv2: build one of any widths, read the shape of one.

timm's attention knows one width for residual, attention and reduction; where a plan makes them differ, `Attention` here
takes its place, with the same tensors under the same names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from timm.layers.norm import LayerNorm
from timm.models import pvt_v2
from timm.models.pvt_v2 import MlpWithDepthwiseConv, OverlapPatchEmbed, PyramidVisionTransformerV2
from torch import Tensor, nn
from torch.nn import functional as F

from upvit_core.errors import CheckpointError, UnsupportedModelError
from upvit_core.files import Json
from upvit_core.models.build import Reader, Untyped, mlp_ratio
from upvit_core.records.known_shapes import staged_shape
from upvit_core.records.shape import BlockShape, ModelShape, StageShape

OPENINGS = ((7, 4), (3, 2))  # kernel and stride of the first patch embedding, and of the later ones
INNER_EPS = 1e-5  # of the norms of patch embeddings and reductions, whatever the blocks' own


class Attention(pvt_v2.Attention):
    """timm's, with free widths of attention and of the reduction of keys and values."""

    def __init__(self, dim: int, block: BlockShape, ratio: int, *, qkv_bias: bool, device: torch.device | str = "cpu"):
        super().__init__(block.num_heads, block.num_heads, qkv_bias=qkv_bias, linear_attn=not ratio, device=device)
        self.dim, self.head_dim = dim, block.head_dim
        self.scale = self.head_dim**-0.5
        source = block.reduction or dim
        self.q = nn.Linear(dim, block.attention, bias=qkv_bias, device=device)
        self.kv = nn.Linear(source, 2 * block.attention, bias=qkv_bias, device=device)
        self.proj = nn.Linear(block.attention, dim, device=device)
        if block.reduction:
            self.sr = nn.Conv2d(dim, source, kernel_size=ratio or 1, stride=ratio or 1, device=device)
            self.norm = nn.LayerNorm(source, device=device)

    def forward(self, x: Tensor, feat_size: list[int]) -> Tensor:
        """x: (B, N, D), of a map of `feat_size`."""
        B, N, _ = x.shape
        q = self.q(x).reshape(B, N, self.num_heads, self.head_dim).transpose(1, 2)
        if self.sr is not None:
            grid = x.transpose(1, 2).reshape(B, self.dim, feat_size[0], feat_size[1])
            x = self.norm(self.sr(grid if self.pool is None else self.pool(grid)).flatten(2).transpose(1, 2))
            x = x if self.act is None else self.act(x)
        k, v = self.kv(x).reshape(B, -1, 2, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_drop.p if self.training else 0.0)
        return self.proj_drop(self.proj(out.transpose(1, 2).reshape(B, N, -1)))


def timm_arguments(shape: ModelShape) -> Json:
    """Arguments of timm's class for a uniform shape."""
    firsts = [shape.blocks[shape.first_block(stage)] for stage in range(len(shape.stages))]
    return {
        "in_chans": shape.in_chans,
        "depths": list(shape.depths),
        "embed_dims": list(shape.embed_dims),
        "num_heads": [block.num_heads for block in firsts],
        "sr_ratios": [stage.reduction_ratio for stage in shape.stages],
        "mlp_ratios": [
            block.ffn // width if block.ffn % width == 0 else mlp_ratio(block.ffn, width)
            for block, width in zip(firsts, shape.embed_dims, strict=True)
        ],
        "qkv_bias": shape.qkv_bias,
        "linear": shape.stages[0].is_linear,
    }


def build_pvt(
    shape: ModelShape, *, weight_init: str = "", drop_path_rate: float = 0.0, device: torch.device | str = "cpu"
) -> nn.Module:
    """A fresh model in training mode, its weights drawn from the global generator."""
    stock = shape.is_uniform
    arguments = timm_arguments(shape)
    if not stock:
        arguments |= {"num_heads": [1] * len(shape.stages), "mlp_ratios": [1.0] * len(shape.stages)}
    norm_layer: Untyped = partial(LayerNorm, eps=shape.norm_eps)
    arguments |= {"num_classes": shape.num_classes, "drop_path_rate": drop_path_rate}
    model: Untyped = PyramidVisionTransformerV2(norm_layer=norm_layer, device=device, **arguments)
    if not stock:
        blocks = [(module, number) for number, stage in enumerate(model.stages) for module in stage.blocks]
        for (module, number), block in zip(blocks, shape.blocks, strict=True):
            stage = shape.stages[number]
            module.attn = Attention(
                stage.embed_dim, block, stage.reduction_ratio, qkv_bias=shape.qkv_bias, device=device
            )
            module.mlp = MlpWithDepthwiseConv(stage.embed_dim, block.ffn, extra_relu=stage.is_linear, device=device)
        if torch.device(device).type != "meta":
            model.apply(model._init_weights)
    model.pretrained_cfg = {"input_size": (shape.in_chans, *shape.img_size)}  # no tensor depends on it
    built: nn.Module = model
    return built


def shape_of_pvt(model: nn.Module, name: str) -> ModelShape:
    """Shape of a live timm PVTv2, at the image size of its configuration.

    Raises UnsupportedModelError, naming the part, where the model has anything that a `ModelShape` cannot say.
    """
    pvt: Untyped = model
    read = Reader(name)
    refuse = read.refuse
    read.check("head", pvt.head, nn.Linear if pvt.num_classes else nn.Identity)
    if pvt.global_pool != "avg":
        refuse("global_pool", repr(pvt.global_pool), "'avg'")
    stages, blocks, norms = [], [], [stage.norm for stage in pvt.stages]
    for number, stage in enumerate(pvt.stages):
        opening: OverlapPatchEmbed = stage.downsample if number else pvt.patch_embed
        kernel, stride = opening.proj.kernel_size[0], opening.proj.stride[0]
        if (kernel, stride) != OPENINGS[min(number, 1)] or opening.norm.eps != INNER_EPS:
            refuse(f"the patch embedding of stage {number}", f"{kernel} wide with stride {stride}", "timm's own")
        ratios = set()
        for index, block in enumerate(stage.blocks):
            stem, attn = f"stages.{number}.blocks.{index}", block.attn
            if type(attn) not in (pvt_v2.Attention, Attention) or type(block.mlp) is not MlpWithDepthwiseConv:
                refuse(stem, f"{type(attn).__name__} with {type(block.mlp).__name__}", "timm's PVTv2 block")
            if type(block.mlp.act) is not nn.GELU or block.mlp.act.approximate != "none":
                refuse(f"{stem}.mlp.act", repr(block.mlp.act), "exact GELU")
            norms += [block.norm1, block.norm2]
            ratios.add(1 if attn.sr is None else 0 if attn.pool is not None else attn.sr.stride[0])
            reduction = 0 if attn.sr is None else attn.sr.out_channels
            blocks.append(BlockShape(attn.num_heads, attn.q.out_features, block.mlp.fc1.out_features, reduction))
        if len(ratios) != 1:
            refuse(f"the reduction of stage {number}", sorted(ratios) or "absent", "one ratio for all its blocks")
        stages.append(StageShape(opening.proj.out_channels, len(stage.blocks), kernel, stride, ratios.pop()))
    height, width = (getattr(pvt, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))[1:]
    shape = staged_shape(
        name,
        stages,
        blocks,
        img_size=(height, width),
        in_chans=pvt.patch_embed.proj.in_channels,
        num_classes=pvt.num_classes,
        qkv_bias=pvt.stages[0].blocks[0].attn.q.bias is not None,
        norm_eps=read.one("the norms' eps", (norm.eps for norm in norms)),
    )
    check_size(shape)
    read.check_tensors(model, shape)
    return shape


def check_size(shape: ModelShape) -> None:
    """Raises UnsupportedModelError where an image is too small for a stage's spatial reduction."""
    for number, stage in enumerate(shape.stages):
        if min(shape.map_size(number)) < stage.reduction_ratio:
            height, width = shape.img_size
            raise UnsupportedModelError(
                f"{shape.name}: images of {height} by {width} pixels leave a map of {min(shape.map_size(number))} in "
                f"stage {number}, which its spatial reduction by {stage.reduction_ratio} needs larger; give larger "
                "images."
            )


def check_resized(
    tensors: dict[str, Tensor] | None, shape: ModelShape, img_size: tuple[int, int]
) -> dict[str, Tensor] | None:
    """The tensors as they are: no tensor depends on the image size. Raises UnsupportedModelError as `check_size`."""
    check_size(replace(shape, img_size=img_size))
    return tensors


def is_pvt(tensors: Mapping[str, Tensor]) -> bool:
    """True for the state dict of a PVTv2, in timm's names or the authors'."""
    return any(re.search(r"(^|\.)mlp\.dwconv\.", key) for key in tensors) and any(
        key.startswith(("stages.0.blocks.0.", "block1.0.")) for key in tensors
    )


def from_authors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's names for `patch_embed1`, `block1.0`, `norm1`, `mlp.dwconv.dwconv`, as timm itself translates them."""
    return dict(pvt_v2.checkpoint_filter_fn(dict(tensors), None))


def shape_of_pvt_tensors(
    tensors: Mapping[str, Tensor], source: str, *, img_size: tuple[int, int] | None, norm_eps: float
) -> ModelShape:
    """Architecture of a state dict in timm's names, with one head in every block, since no tensor tells how many.

    Raises CheckpointError where tensors that determine the architecture are missing or contradictory.
    """
    size = dict[str, tuple[int, ...]]((key, tuple(tensor.shape)) for key, tensor in tensors.items())

    def take(key: str, dims: int) -> tuple[int, ...]:
        if key not in size or len(size[key]) != dims:
            raise CheckpointError(
                f"{source} has {f'a tensor of shape {size[key]}' if key in size else 'no tensor'} {key}, without "
                "which the architecture of a PVTv2 is unknown; give a complete checkpoint of one classifier."
            )
        return size[key]

    numbers = sorted(
        {tuple(map(int, m.groups())) for m in (re.match(r"stages\.(\d+)\.blocks\.(\d+)\.", k) for k in size) if m}
    )
    depths = [sum(1 for s, _ in numbers if s == number) for number in range(1 + max(s for s, _ in numbers))]
    if numbers != [(s, b) for s, depth in enumerate(depths) for b in range(depth)] or 0 in depths:
        raise CheckpointError(f"{source} misses blocks of a stage; give a complete checkpoint of one classifier.")
    stages, blocks = [], []
    for number, depth in enumerate(depths):
        opening = "patch_embed" if number == 0 else f"stages.{number}.downsample"
        width, _, kernel, _ = take(f"{opening}.proj.weight", 4)
        ratio = 1
        for index in range(depth):
            stem = f"stages.{number}.blocks.{index}"
            attention, _ = take(f"{stem}.attn.q.weight", 2)
            hidden, _ = take(f"{stem}.mlp.fc1.weight", 2)
            reduction = 0
            if f"{stem}.attn.sr.weight" in size:
                reduction, _, ratio, _ = take(f"{stem}.attn.sr.weight", 4)
            blocks.append(BlockShape(1, attention, hidden, reduction))
        if ratio == 1 and f"stages.{number}.blocks.0.attn.sr.weight" in size:
            ratio = 0  # linear attention
        stages.append(StageShape(width, depth, kernel, OPENINGS[min(number, 1)][1], ratio))
    shape = staged_shape(
        source,
        stages,
        blocks,
        img_size=img_size or (224, 224),
        in_chans=take("patch_embed.proj.weight", 4)[1],
        num_classes=take("head.weight", 2)[0] if "head.weight" in size else 0,
        qkv_bias="stages.0.blocks.0.attn.q.bias" in size,
        norm_eps=norm_eps,
    )
    check_size(shape)
    return shape
