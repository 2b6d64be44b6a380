"""A slow, obvious second opinion on scores, cuts and costs of stock timm ViT / DeiT models.

Written from METHOD.md and the timm sources alone, to check the fast code against. Nothing here is shared with it.
"""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import Attention, LayerNorm, LayerScale, Mlp
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

Masks = dict[str, Tensor]


def kl_scores(model: VisionTransformer, images: Tensor, only: str = "") -> dict[str, Tensor]:
    """Eq. 1 for every channel, one at a time: KL(teacher || without the channel) in nats, SUMMED over images.

    images (B, 3, H, W) -> 'residual' (D,), 'attention.{b}' (A_b,), 'ffn.{b}' (H_b,). METHOD.md, 'Score (Eq. 1)':
    residual and ffn channels are removed, attention channels masked to 0 in q, k and v at the original softmax scale.
    only: the key of the one component to score.
    """
    teacher = _evaluation_copy(model)
    teacher_logits = _logits(teacher, images)

    def score_of(student: nn.Module) -> Tensor:
        return _summed_kl(teacher_logits, _logits(student, images))

    students = {"residual": (teacher.embed_dim, partial(_without_residual_channel, teacher))}
    for b, block in enumerate(teacher.blocks):
        attention = partial(_with_attention_channel_zero, teacher, b)
        students[f"attention.{b}"] = (block.attn.proj.in_features, attention)
        students[f"ffn.{b}"] = (block.mlp.fc1.out_features, partial(_without_ffn_channel, teacher, b))
    return {
        key: torch.stack([score_of(without(channel)) for channel in range(width)])
        for key, (width, without) in students.items()
        if key.startswith(only)
    }


def block_removal_kl(model: VisionTransformer, images: Tensor, removed: tuple[int, int]) -> Tensor:
    """KL (scalar, nats, summed over images) when the neighbouring half-blocks (i, i+1) of A0 F0 A1 F1 ... are removed.

    images (B, 3, H, W). METHOD.md, 'Progressive block pruning and hybrid blocks'.
    """
    teacher = _evaluation_copy(model)
    first, second = removed
    if second != first + 1 or first < 0 or second >= 2 * len(teacher.blocks):
        raise ValueError(f"{removed} are not two neighbouring half-blocks of {2 * len(teacher.blocks)}")
    with torch.no_grad():
        x = teacher.norm_pre(teacher._pos_embed(teacher.patch_embed(images)))
        for b, block in enumerate(teacher.blocks):
            if 2 * b not in removed:
                x = x + block.ls1(block.attn(block.norm1(x)))
            if 2 * b + 1 not in removed:
                x = x + block.ls2(block.mlp(block.norm2(x)))
        student_logits = teacher.forward_head(teacher.norm(x))
    return _summed_kl(_logits(teacher, images), student_logits)


def thin(model: VisionTransformer, residual_keep: Sequence[int], blocks: Sequence[dict[str, Any]]) -> VisionTransformer:
    """The thinner model, cut by hand from a copy; METHOD.md, 'Three components' and 'Plan'.

    residual_keep: kept channels of D. blocks: one {"source": b, "heads": h_t, "attention_keep": [...], "ffn_keep":
    [...]} per block of the result; every A_t / h_t consecutive entries of "attention_keep" make one merged head and
    must lie inside it. old_scale / new_scale is folded into the q rows, so q·k·scale is what it was.
    """
    thinner = _slice_residual(_checked(copy.deepcopy(model)), list(residual_keep))
    new_blocks = []
    for spec in blocks:
        block = copy.deepcopy(thinner.blocks[spec["source"]])
        block.attn = _slice_attention(block.attn, spec["heads"], list(spec["attention_keep"]))
        block.mlp = _slice_mlp(block.mlp, list(spec["ffn_keep"]))
        new_blocks.append(block)
    thinner.blocks = nn.Sequential(*new_blocks)
    thinner.feature_info = [
        dict(thinner.feature_info[0], module=f"blocks.{b}", num_chs=len(residual_keep)) for b in range(len(new_blocks))
    ]
    return thinner


def merged_head_attention(attn_module: Attention, x: Tensor, heads: int, keep: Sequence[int]) -> Tensor:
    """Output (B, N, D) of one attention after neighbouring heads are merged into `heads` and only `keep` is left.

    x (B, N, D): the normalised input. q·k runs over the kept channels of the merged head, times the ORIGINAL head's
    scale. METHOD.md, 'Plan', attention and softmax scale.
    """
    width = attn_module.proj.in_features
    groups = _heads_of(keep, heads, attn_module)
    original_scale = (width / attn_module.num_heads) ** -0.5
    weight, bias = attn_module.qkv.weight, attn_module.qkv.bias
    if bias is None:
        bias = torch.zeros_like(weight[:, 0])
    outputs = []
    for image in x:
        out = attn_module.proj.bias.expand(len(image), -1) if attn_module.proj.bias is not None else 0.0
        for group in groups:
            q = image @ weight[group].T + bias[group]
            k = image @ weight[[width + c for c in group]].T + bias[[width + c for c in group]]
            v = image @ weight[[2 * width + c for c in group]].T + bias[[2 * width + c for c in group]]
            attention = torch.softmax(q @ k.T * original_scale, dim=-1)
            out = out + attention @ v @ attn_module.proj.weight[:, group].T
        outputs.append(out)
    return torch.stack(outputs)


def fisher_scores(model: VisionTransformer, images: Tensor, num_directions: int | None = None) -> dict[str, Tensor]:
    """½ Σ_i Σ_r (∂ sqrt(λ_r) u_r·logits_i / ∂m_i)² per channel, in nats, summed over images; keys as in kl_scores.

    images (B, 3, H, W). F_i = diag(q_i) - q_i q_iᵀ = Σ_r λ_r u_r u_rᵀ; the `num_directions` largest λ_r, None = all.
    One image and one direction at a time. METHOD.md, 'The same score, thousands of times cheaper'.
    """
    teacher = _evaluation_copy(model)
    scores = {name: torch.zeros_like(mask) for name, mask in _unit_masks(teacher).items()}
    for image in images:
        masks = {name: mask.requires_grad_() for name, mask in _unit_masks(teacher).items()}
        logits = _masked_logits(teacher, image[None], masks)[0]
        probabilities = torch.softmax(logits.detach(), dim=0)
        fisher = torch.diag(probabilities) - torch.outer(probabilities, probabilities)
        eigenvalues, eigenvectors = torch.linalg.eigh(fisher)
        order = list(reversed(range(len(eigenvalues))))[:num_directions]
        for r in order:
            direction = eigenvalues[r].clamp(min=0).sqrt() * eigenvectors[:, r]
            gradients = torch.autograd.grad(direction @ logits, list(masks.values()), retain_graph=True)
            for name, gradient in zip(masks, gradients, strict=True):
                scores[name] += 0.5 * gradient**2
    return scores


def count_parameters(model: nn.Module) -> int:
    """Number of scalars in all parameters, trainable or not, each parameter counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, image: Tensor) -> int:
    """Multiply-accumulates of one forward of ONE image (3, H, W) or (1, 3, H, W).

    Convolutions, linear layers, QKᵀ and AV; not softmax, LayerNorm, bias, GELU or LayerScale.
    """
    if image.dim() == 3:
        image = image[None]
    if len(image) != 1:
        raise ValueError(f"count_macs takes one image, not {len(image)}")
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Linear):
            total += output.numel() * module.in_features
        elif isinstance(module, nn.Conv2d):
            height, width = module.kernel_size
            total += output.numel() * (module.in_channels // module.groups) * height * width
        elif isinstance(module, Attention):
            tokens = inputs[0].shape[1]
            total += 2 * module.num_heads * tokens * tokens * module.head_dim

    handles = [module.register_forward_hook(count) for module in model.modules()]
    try:
        _logits(model, image)
    finally:
        for handle in handles:
            handle.remove()
    return total


def _checked(model: VisionTransformer) -> VisionTransformer:
    """The same model, or ValueError where it has a part this file does not describe."""

    def demand(condition: bool, what: str) -> None:
        if not condition:
            raise ValueError(f"the oracle does not describe {what}")

    demand(type(model) in (VisionTransformer, VisionTransformerDistilled), type(model).__name__)
    demand(model.attn_pool is None, "attention pooling")
    demand(isinstance(model.patch_embed.norm, nn.Identity), "a norm in the patch embedding")
    demand(isinstance(model.head, nn.Linear), "a model without a head")
    norms = [model.norm, model.norm_pre, model.fc_norm]
    read_last = [model.norm] if isinstance(model, VisionTransformerDistilled) else [model.norm, model.fc_norm]
    demand(any(isinstance(norm, nn.LayerNorm) for norm in read_last), "a model without a final LayerNorm")
    for block in model.blocks:
        demand(type(block) is Block, type(block).__name__)
        demand(type(block.attn) is Attention and getattr(block.attn, "gate", None) is None, "this attention")
        for norm in (block.attn.q_norm, block.attn.k_norm, block.attn.norm):
            demand(isinstance(norm, nn.Identity), "norms inside attention")
        demand(type(block.mlp) is Mlp and isinstance(block.mlp.norm, nn.Identity), "this FFN")
        norms += [block.norm1, block.norm2]
    demand(all(type(norm) in (nn.LayerNorm, LayerNorm, nn.Identity) for norm in norms), "norms other than LayerNorm")
    return model


def _evaluation_copy(model: VisionTransformer) -> VisionTransformer:
    return _checked(copy.deepcopy(model)).eval()


@torch.no_grad()
def _logits(model: nn.Module, images: Tensor) -> Tensor:
    was_training = model.training
    model.eval()
    logits = model(images)
    model.train(was_training)
    return logits


def _summed_kl(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    log_q = torch.log_softmax(teacher_logits, dim=-1)
    log_p = torch.log_softmax(student_logits, dim=-1)
    return (log_q.exp() * (log_q - log_p)).sum()


def _without_residual_channel(model: VisionTransformer, channel: int) -> VisionTransformer:
    return _slice_residual(copy.deepcopy(model), [c for c in range(model.embed_dim) if c != channel])


def _with_attention_channel_zero(model: VisionTransformer, b: int, channel: int) -> VisionTransformer:
    masked = copy.deepcopy(model)
    attn = masked.blocks[b].attn
    with torch.no_grad():
        for row in (channel, attn.attn_dim + channel, 2 * attn.attn_dim + channel):
            attn.qkv.weight[row] = 0.0
            if attn.qkv.bias is not None:
                attn.qkv.bias[row] = 0.0
    return masked


def _without_ffn_channel(model: VisionTransformer, b: int, channel: int) -> VisionTransformer:
    removed = copy.deepcopy(model)
    mlp = removed.blocks[b].mlp
    removed.blocks[b].mlp = _slice_mlp(mlp, [c for c in range(mlp.fc1.out_features) if c != channel])
    return removed


def _parameter(values: Tensor, like: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(values.detach().clone(), requires_grad=like.requires_grad)


def _slice_linear(linear: nn.Linear, rows: list[int] | None = None, columns: list[int] | None = None) -> nn.Linear:
    sliced = copy.deepcopy(linear)
    if rows is not None:
        sliced.weight = _parameter(sliced.weight[rows], linear.weight)
        if linear.bias is not None:
            sliced.bias = _parameter(linear.bias[rows], linear.bias)
    if columns is not None:
        sliced.weight = _parameter(sliced.weight[:, columns], linear.weight)
    sliced.out_features, sliced.in_features = sliced.weight.shape
    return sliced


def _slice_conv_outputs(conv: nn.Conv2d, keep: list[int]) -> nn.Conv2d:
    sliced = copy.deepcopy(conv)
    sliced.weight = _parameter(conv.weight[keep], conv.weight)
    if conv.bias is not None:
        sliced.bias = _parameter(conv.bias[keep], conv.bias)
    sliced.out_channels = len(keep)
    return sliced


def _slice_norm(norm: nn.Module, keep: list[int]) -> nn.Module:
    sliced = copy.deepcopy(norm)
    if isinstance(norm, nn.LayerNorm):
        if norm.weight is not None:
            sliced.weight = _parameter(norm.weight[keep], norm.weight)
        if norm.bias is not None:
            sliced.bias = _parameter(norm.bias[keep], norm.bias)
        sliced.normalized_shape = (len(keep),)
    return sliced


def _slice_layer_scale(layer_scale: nn.Module, keep: list[int]) -> nn.Module:
    sliced = copy.deepcopy(layer_scale)
    if isinstance(layer_scale, LayerScale):
        sliced.gamma = _parameter(layer_scale.gamma[keep], layer_scale.gamma)
    return sliced


def _slice_residual(model: VisionTransformer, keep: list[int]) -> VisionTransformer:
    """`model` itself with every tensor that carries a residual channel cut to `keep`."""
    if len(set(keep)) != len(keep):
        raise ValueError("a residual channel is kept twice")
    model.patch_embed.proj = _slice_conv_outputs(model.patch_embed.proj, keep)
    for name in ("cls_token", "dist_token", "reg_token", "pos_embed"):
        token = getattr(model, name, None)
        if token is not None:
            setattr(model, name, _parameter(token[..., keep], token))
    model.norm_pre = _slice_norm(model.norm_pre, keep)
    for block in model.blocks:
        block.norm1 = _slice_norm(block.norm1, keep)
        block.attn.qkv = _slice_linear(block.attn.qkv, columns=keep)
        block.attn.proj = _slice_linear(block.attn.proj, rows=keep)
        block.ls1 = _slice_layer_scale(block.ls1, keep)
        block.norm2 = _slice_norm(block.norm2, keep)
        block.mlp.fc1 = _slice_linear(block.mlp.fc1, columns=keep)
        block.mlp.fc2 = _slice_linear(block.mlp.fc2, rows=keep)
        block.ls2 = _slice_layer_scale(block.ls2, keep)
    model.norm = _slice_norm(model.norm, keep)
    model.fc_norm = _slice_norm(model.fc_norm, keep)
    model.head = _slice_linear(model.head, columns=keep)
    if isinstance(model, VisionTransformerDistilled):
        model.head_dist = _slice_linear(model.head_dist, columns=keep)
    model.embed_dim = model.num_features = model.head_hidden_size = len(keep)
    for info in model.feature_info:
        info["num_chs"] = len(keep)
    return model


def _heads_of(keep: Sequence[int], heads: int, attn: Attention) -> list[list[int]]:
    """`keep` cut into `heads` equal lists, each inside its merged head; ValueError where that cannot be."""
    width = attn.proj.in_features
    if attn.num_heads % heads or len(keep) % heads or len(set(keep)) != len(keep):
        raise ValueError(f"{len(keep)} different channels in {heads} heads, from {attn.num_heads}, cannot be")
    merged_width, new_width = width // heads, len(keep) // heads
    groups = [list(keep[h * new_width : (h + 1) * new_width]) for h in range(heads)]
    for h, group in enumerate(groups):
        if not all(h * merged_width <= c < (h + 1) * merged_width for c in group):
            raise ValueError(f"merged head {h} keeps a channel of another head")
    return groups


def _slice_attention(attn: Attention, heads: int, keep: list[int]) -> Attention:
    _heads_of(keep, heads, attn)
    width, new_width = attn.proj.in_features, len(keep)
    old_scale, new_scale = (width // attn.num_heads) ** -0.5, (new_width // heads) ** -0.5
    sliced = copy.deepcopy(attn)
    sliced.qkv = _slice_linear(attn.qkv, rows=keep + [width + c for c in keep] + [2 * width + c for c in keep])
    if old_scale != new_scale:
        with torch.no_grad():
            sliced.qkv.weight[:new_width] *= old_scale / new_scale
            if sliced.qkv.bias is not None:
                sliced.qkv.bias[:new_width] *= old_scale / new_scale
    sliced.proj = _slice_linear(attn.proj, columns=keep)
    sliced.num_heads = heads
    sliced.head_dim = new_width // heads
    sliced.attn_dim = new_width
    sliced.scale = new_scale
    return sliced


def _slice_mlp(mlp: Mlp, keep: list[int]) -> Mlp:
    if len(set(keep)) != len(keep):
        raise ValueError("an FFN channel is kept twice")
    sliced = copy.deepcopy(mlp)
    sliced.fc1 = _slice_linear(mlp.fc1, rows=keep)
    sliced.fc2 = _slice_linear(mlp.fc2, columns=keep)
    return sliced


def _unit_masks(model: VisionTransformer) -> Masks:
    def ones(count: int) -> Tensor:
        return torch.ones(count, dtype=model.head.weight.dtype, device=model.head.weight.device)

    masks = {"residual": ones(model.embed_dim)}
    for b, block in enumerate(model.blocks):
        masks[f"attention.{b}"] = ones(block.attn.proj.in_features)
        masks[f"ffn.{b}"] = ones(block.mlp.fc1.out_features)
    return masks


def _weighted_norm(norm: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """LayerNorm over channels that count `weight` each; METHOD.md: mean = Σwx/Σw, var = Σw(x-mean)²/Σw, output · w."""
    if isinstance(norm, nn.Identity):
        return x
    mean = (weight * x).sum(dim=-1, keepdim=True) / weight.sum()
    variance = (weight * (x - mean) ** 2).sum(dim=-1, keepdim=True) / weight.sum()
    y = (x - mean) / (variance + norm.eps).sqrt()
    if norm.weight is not None:
        y = y * norm.weight
    if norm.bias is not None:
        y = y + norm.bias
    return y * weight


def _masked_attention(attn: Attention, x: Tensor, mask: Tensor) -> Tensor:
    """Attention with `mask` (A,) on the channels of q and v, not of k."""
    q, k, v = attn.qkv(x).chunk(3, dim=-1)
    q, v = q * mask, v * mask
    width = attn.proj.in_features // attn.num_heads
    outputs = []
    for h in range(attn.num_heads):
        head = slice(h * width, (h + 1) * width)
        scores = q[..., head] @ k[..., head].transpose(-2, -1) * width**-0.5
        outputs.append(torch.softmax(scores, dim=-1) @ v[..., head])
    return attn.proj(torch.cat(outputs, dim=-1))


def _masked_logits(model: VisionTransformer, images: Tensor, masks: Masks) -> Tensor:
    """Logits (B, C) with `masks` on every component; all ones gives the model's own."""
    w = masks["residual"]
    x = _weighted_norm(model.norm_pre, model._pos_embed(model.patch_embed(images)), w)
    for b, block in enumerate(model.blocks):
        x = x + block.ls1(_masked_attention(block.attn, _weighted_norm(block.norm1, x, w), masks[f"attention.{b}"]))
        hidden = block.mlp.act(block.mlp.fc1(_weighted_norm(block.norm2, x, w)))
        x = x + block.ls2(block.mlp.fc2(hidden * masks[f"ffn.{b}"]))
    x = _weighted_norm(model.norm, x, w)
    if isinstance(model, VisionTransformerDistilled):
        return (model.head(x[:, 0]) + model.head_dist(x[:, 1])) / 2
    return model.head(_weighted_norm(model.fc_norm, model.pool(x), w))
