"""GPT-2 of Hugging Face `transformers` (Radford et al. 2019), built in any widths, and run part by part.

Its blocks are `transformers`' own modules; where attention or FFN are not as wide as `GPT2Config` can say, their linear
maps are replaced by narrower ones. The output layer is the token embedding, so a residual channel that leaves takes its
column of both. A block of T tokens is to a language model what an image is to a ViT: `img_size` is (1, T), every token
is a patch, and the classes are the tokens that can come next, at each of the T places.

`transformers` is an optional install (see requirements.txt) and is imported when the first model is built.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upvit_core.errors import UnsupportedModelError
from upvit_core.models.adapter import NormSite, Sensitivities
from upvit_core.models.vit import weighted_layer_norm
from upvit_core.records.shape import BlockShape, ModelShape

STD = 0.02
UNEVEN = "upvit_uneven"
STANDARD: dict[str, Any] = {
    "activation_function": "gelu_new", "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False, "add_cross_attention": False, "tie_word_embeddings": True,
}  # fmt: skip


class Readout(nn.Identity):
    """What the output layer reads, named as a classifier is, so that the last feature is found in one way."""

    def __init__(self, width: int):
        super().__init__()
        self.in_features = width


class GPT2(nn.Module):
    """Token ids (B, T) to logits of each next token (B, T, vocabulary); parameters are named as in GPT2LMHeadModel."""

    def __init__(self, config: Any):
        super().__init__()
        from transformers import GPT2Model

        self.transformer: Any = GPT2Model(config)
        self.head = Readout(config.n_embd)

    def forward(self, ids: Tensor) -> Tensor:
        stream = self.transformer(input_ids=ids, use_cache=False).last_hidden_state
        return F.linear(self.head(stream), self.transformer.wte.weight)


def language_shape(
    name: str, *, vocabulary: int, context: int, embed_dim: int, blocks: tuple[BlockShape, ...], norm_eps: float = 1e-5
) -> ModelShape:
    """Shape of a GPT-2 that reads blocks of `context` tokens."""
    return ModelShape(
        name=name, embed_dim=embed_dim, blocks=blocks, img_size=(1, context), patch_size=(1, 1), in_chans=1,
        num_classes=vocabulary, num_prefix_tokens=0, head_tokens=0, class_token=False, norm_eps=norm_eps, family="gpt2",
    )  # fmt: skip


def random_inputs(shape: ModelShape, count: int, seed: int = 0) -> Tensor:
    """Inputs that any model of this shape takes: noise (B, C, H, W), or token ids (B, T)."""
    generator = torch.Generator().manual_seed(seed)
    if shape.is_language:
        return torch.randint(0, shape.num_classes, (count, shape.img_size[1]), generator=generator)
    return torch.randn(count, shape.in_chans, *shape.img_size, generator=generator)


def gpt2_config(shape: ModelShape) -> dict[str, Any]:
    """What `GPT2Config` needs to build this shape, where it can (`shape.is_uniform`); without dropout."""
    block = shape.blocks[0]
    return {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": shape.num_classes,
        "n_positions": shape.img_size[1], "n_embd": shape.embed_dim, "n_layer": shape.depth,
        "n_head": block.num_heads, "n_inner": block.ffn, "layer_norm_epsilon": shape.norm_eps, "resid_pdrop": 0.0,
        "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": None, "eos_token_id": None, **STANDARD,
    }  # fmt: skip


def shape_of_config(values: Mapping[str, Any], name: str) -> ModelShape:
    """Shape of a `config.json` of GPT-2. Raises UnsupportedModelError where it asks for something else."""
    for key, wanted in STANDARD.items():
        if values.get(key, wanted) != wanted:
            raise UnsupportedModelError(
                f"{name}: {key} is {values[key]!r}, which is not understood; only {wanted!r} is."
            )
    width = int(values["n_embd"])
    block = BlockShape(int(values["n_head"]), width, int(values.get("n_inner") or 4 * width))
    return language_shape(
        name, vocabulary=int(values["vocab_size"]), context=int(values["n_positions"]), embed_dim=width,
        blocks=(block,) * int(values["n_layer"]), norm_eps=float(values.get("layer_norm_epsilon", 1e-5)),
    )  # fmt: skip


def gpt2_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors by our names: with the prefix, without masks and the tied copy of the embedding."""
    found = {}
    for name, tensor in tensors.items():
        full = name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"
        if not full.startswith("lm_head.") and not full.endswith((".attn.bias", ".attn.masked_bias")):
            found[full] = tensor
    return found


def refuse_resize(
    tensors: dict[str, Tensor] | None, shape: ModelShape, img_size: tuple[int, int]
) -> dict[str, Tensor] | None:
    raise UnsupportedModelError(f"{shape.name} reads text, so it has no image size; leave the image size out.")


def text_preprocessing(values: Mapping[str, Any] | None, shape: ModelShape) -> dict[str, Any]:
    """The tokenizer (empty: none is known) and the number of tokens in a block of text."""
    return {"tokenizer": "", **(values or {}), "context": shape.img_size[1]}


def folder_config(shape: ModelShape, cfg: Mapping[str, Any], name: str, class_names: object) -> dict[str, Any]:
    """The `config.json` of a folder: that of `transformers`, with our shape beside it.

    Where `GPT2Config` cannot say the widths, the architecture is one that transformers does not know.
    """
    values = gpt2_config(shape) | {"upvit_name": name, "upvit_shape": replace(shape, name=name).to_dict()}
    return values | ({} if shape.is_uniform else {"architectures": [UNEVEN]})


def require_transformers() -> None:
    """Raises UnsupportedModelError where `transformers`, and the tokenizers that come with it, are not installed."""
    try:
        import tokenizers  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise UnsupportedModelError(
            "Language models need Hugging Face's transformers; install it with pip install 'transformers>=4.50,<6'."
        ) from error


def build_gpt2(
    shape: ModelShape, *, weight_init: str = "", drop_path_rate: float = 0.0, device: torch.device | str = "cpu"
) -> nn.Module:
    """A model with fresh weights by the global generator, as GPT-2 draws them, in training mode.

    Raises UnsupportedModelError where `transformers` is not installed.
    """
    require_transformers()
    from transformers import GPT2Config
    from transformers.pytorch_utils import Conv1D

    values = {k: v for k, v in gpt2_config(shape).items() if k not in ("model_type", "architectures")}
    with torch.device(device):
        model = GPT2(GPT2Config(**{**values, "n_head": 1, "n_inner": 1}))
        for module, block in zip(model.transformer.h, shape.blocks, strict=True):
            attn = module.attn
            attn.c_attn = Conv1D(3 * block.attention, shape.embed_dim)
            attn.c_proj = Conv1D(shape.embed_dim, block.attention)
            attn.embed_dim = attn.split_size = block.attention
            attn.num_heads, attn.head_dim = block.num_heads, block.head_dim
            attn.scaling = block.head_dim**-0.5
            module.mlp.c_fc = Conv1D(block.ffn, shape.embed_dim)
            module.mlp.c_proj = Conv1D(shape.embed_dim, block.ffn)
        if torch.device(device).type != "meta":
            _draw(model, shape.depth)
    return model.train()


def _draw(model: nn.Module, depth: int) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, STD / math.sqrt(2 * depth) if name.endswith("c_proj.weight") else STD)
            elif ".ln_" in name and name.endswith("weight"):
                parameter.fill_(1)
            else:
                parameter.zero_()


@dataclass(frozen=True)
class GPT2Trace:
    """One block's forward pass. q, k, v: (B, heads, T, head_dim); weights: causal softmax attention (B, heads, T, T);
    after_attention and output: (B, T, D); hidden: (B, T, H)."""

    q: Tensor
    k: Tensor
    v: Tensor
    weights: Tensor
    after_attention: Tensor
    hidden: Tensor
    output: Tensor


class GPT2Adapter:
    """Adapter of a GPT-2; the model is neither changed nor copied. Logits are (B, T, vocabulary)."""

    def __init__(self, model: nn.Module, shape: ModelShape):
        self.model, self.shape = model, shape
        self._t: Any = model.transformer

    def embed(self, ids: Tensor) -> Tensor:
        return self._t.wte(ids) + self._t.wpe.weight[: ids.shape[1]]  # (B, T, D)

    def logits(self, ids: Tensor) -> Tensor:
        return self.model(ids)

    def _split(self, block: int, normed: Tensor) -> list[Tensor]:
        attn = self._t.h[block].attn
        qkv = attn.c_attn(normed).unflatten(-1, (3, attn.num_heads, attn.head_dim))  # (B, T, 3, h, d)
        return list(qkv.permute(2, 0, 3, 1, 4).unbind(0))  # (B, h, T, d) each

    def _attend(self, block: int, x: Tensor, weight: Tensor | None = None) -> Tensor:
        blk = self._t.h[block]
        q, k, v = self._split(block, weighted_layer_norm(x, blk.ln_1, weight))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=blk.attn.scaling)
        return x + blk.attn.c_proj(out.transpose(1, 2).flatten(2))

    def _hidden(self, block: int, normed: Tensor) -> Tensor:
        return self._t.h[block].mlp.act(self._t.h[block].mlp.c_fc(normed))

    def _feed_forward(self, block: int, x: Tensor, weight: Tensor | None = None) -> Tensor:
        blk = self._t.h[block]
        return x + blk.mlp.c_proj(self._hidden(block, weighted_layer_norm(x, blk.ln_2, weight)))

    def run_block(self, block: int, x: Tensor) -> Tensor:
        return self._feed_forward(block, self._attend(block, x))

    def _head(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        return F.linear(weighted_layer_norm(x, self._t.ln_f, weight), self._t.wte.weight)

    def run_from(self, block: int, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """As in the Protocol; `weight` (B, D) goes into every LayerNorm."""
        for b in range(block, self.shape.depth):
            x = self._feed_forward(b, self._attend(b, x, weight), weight)
        return self._head(x, weight)

    def run_half_block(self, half: int, x: Tensor, *, previous: int | None = None, last: bool = False) -> Tensor:
        block, is_ffn = divmod(half, 2)
        return self._feed_forward(block, x) if is_ffn else self._attend(block, x)

    def after_half_block(self, half: int, x: Tensor) -> Tensor:
        return self._head(x)

    def first_block(self, key: str) -> int:
        return 0 if key == "residual" else int(key.split(".")[1])

    def _causal(self, scores: Tensor) -> Tensor:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        return scores.masked_fill(mask, -torch.inf).softmax(-1)

    def trace(self, block: int, x: Tensor) -> GPT2Trace:
        blk = self._t.h[block]
        q, k, v = self._split(block, blk.ln_1(x))
        weights = self._causal(q @ k.transpose(-2, -1) * blk.attn.scaling)
        after = x + blk.attn.c_proj((weights @ v).transpose(1, 2).flatten(2))
        hidden = self._hidden(block, blk.ln_2(after))
        return GPT2Trace(q, k, v, weights, after, hidden, after + blk.mlp.c_proj(hidden))

    def logits_without(self, key: str, x: Tensor, channels: Tensor, trace: GPT2Trace | None = None) -> Tensor:
        C, B = len(channels), len(x)
        block = self.first_block(key)
        if key == "residual":
            weight = torch.ones(C, self.shape.embed_dim, dtype=x.dtype, device=x.device)
            weight[torch.arange(C, device=x.device), channels] = 0
            stream = x.unsqueeze(0).expand(C, *x.shape).flatten(0, 1)
            return self.run_from(0, stream, weight.repeat_interleave(B, 0)).unflatten(0, (C, B))
        trace = self.trace(block, x) if trace is None else trace
        without = self._without_attention if key.startswith("attention") else self._without_ffn
        return self.run_from(block + 1, without(block, trace, channels).flatten(0, 1)).unflatten(0, (C, B))

    def _without_attention(self, block: int, trace: GPT2Trace, channels: Tensor) -> Tensor:
        """The block's output with each channel masked to 0 in q, k and v, one at a time: (C, B, T, D)."""
        attn = self._t.h[block].attn
        d = attn.head_dim
        heads, inside = channels // d, channels % d
        q, k, v = (t[:, heads].transpose(0, 1) for t in (trace.q, trace.k, trace.v))  # (C, B, T, d)
        each = torch.arange(len(channels), device=channels.device)
        scores = q @ k.transpose(-2, -1)
        scores = scores - q[each, :, :, inside].unsqueeze(-1) * k[each, :, :, inside].unsqueeze(-2)
        before = trace.weights[:, heads].transpose(0, 1) @ v
        after = self._causal(scores * attn.scaling) @ v
        after[each, :, :, inside] = 0
        projection = attn.c_proj.weight.unflatten(0, (-1, d))[heads]  # (C, d, D)
        change = torch.einsum("cbtd,cdo->cbto", after - before, projection)
        stream = trace.after_attention + change
        return self._feed_forward(block, stream.flatten(0, 1)).unflatten(0, (len(channels), -1))

    def _without_ffn(self, block: int, trace: GPT2Trace, channels: Tensor) -> Tensor:
        """The block's output with each hidden channel removed, one at a time: (C, B, T, D)."""
        activation = trace.hidden[..., channels].permute(2, 0, 1).unsqueeze(-1)  # (C, B, T, 1)
        row = self._t.h[block].mlp.c_proj.weight[channels][:, None, None, :]  # (C, 1, 1, D)
        return torch.addcmul(trace.output.unsqueeze(0), activation, row, value=-1)

    def sensitivities(self, ids: Tensor) -> Sensitivities:
        sites: list[NormSite] = []
        activations: dict[str, tuple[Tensor, ...]] = {}

        def norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
            out = layer(x)
            sites.append(NormSite(x.detach(), out, layer.weight, layer.bias, layer.eps))
            return out

        x = self.embed(ids).detach().requires_grad_()
        for b, blk in enumerate(self._t.h):
            q, k, v = blk.attn.c_attn(norm(x, blk.ln_1)).chunk(3, dim=-1)  # (B, T, A) each
            activations[f"attention.{b}"] = (q, v)
            split = [t.unflatten(-1, (blk.attn.num_heads, -1)).transpose(1, 2) for t in (q, k, v)]
            out = F.scaled_dot_product_attention(split[0], split[1], split[2], is_causal=True, scale=blk.attn.scaling)
            x = x + blk.attn.c_proj(out.transpose(1, 2).flatten(2))
            hidden = self._hidden(b, norm(x, blk.ln_2))
            activations[f"ffn.{b}"] = (hidden,)
            x = x + blk.mlp.c_proj(hidden)
        return Sensitivities(F.linear(norm(x, self._t.ln_f), self._t.wte.weight), {"residual": sites}, activations)
