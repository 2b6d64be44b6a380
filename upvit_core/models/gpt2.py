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
from dataclasses import replace
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch.nn import functional as F

from upvit_core.errors import UnsupportedModelError
from upvit_core.files import Json, Values
from upvit_core.limits import MOST_BLOCKS
from upvit_core.models.transformer import Keep, Norm, TransformerAdapter, keep_nothing, stock_norm
from upvit_core.records.shape import BlockShape, ModelShape

STD = 0.02
UNEVEN = "upvit_uneven"
STANDARD: Json = {
    "activation_function": "gelu_new",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}


class Readout(nn.Identity):
    """The input of the output layer, named as a classifier's is, so that the last feature is found in one way."""

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
        name=name,
        embed_dim=embed_dim,
        blocks=blocks,
        img_size=(1, context),
        patch_size=(1, 1),
        in_chans=1,
        num_classes=vocabulary,
        num_prefix_tokens=0,
        head_tokens=0,
        class_token=False,
        norm_eps=norm_eps,
        family="gpt2",
    )


def random_inputs(shape: ModelShape, count: int, seed: int = 0) -> Tensor:
    """Inputs that any model of this shape takes: noise (B, C, H, W), or token ids (B, T)."""
    generator = torch.Generator().manual_seed(seed)
    if shape.is_language:
        return torch.randint(0, shape.num_classes, (count, shape.img_size[1]), generator=generator)
    return torch.randn(count, shape.in_chans, *shape.img_size, generator=generator)


def gpt2_config(shape: ModelShape) -> Json:
    """The values from which `GPT2Config` builds this shape, where it can (`shape.is_uniform`); without dropout."""
    block = shape.blocks[0]
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": shape.num_classes,
        "n_positions": shape.img_size[1],
        "n_embd": shape.embed_dim,
        "n_layer": shape.depth,
        "n_head": block.num_heads,
        "n_inner": block.ffn,
        "layer_norm_epsilon": shape.norm_eps,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "bos_token_id": None,
        "eos_token_id": None,
        **STANDARD,
    }


def shape_of_config(values: Values, name: str) -> ModelShape:
    """Shape of a `config.json` of GPT-2. Raises UnsupportedModelError where it asks for something else."""
    for key, wanted in STANDARD.items():
        if values.get(key, wanted) != wanted:
            raise UnsupportedModelError(
                f"{name}: {key} is {values[key]!r}, which is not understood; only {wanted!r} is."
            )
    width = int(values["n_embd"])
    if not 1 <= int(values["n_layer"]) <= MOST_BLOCKS or min(width, int(values["n_head"])) < 1:
        raise ValueError(f"it asks for {values['n_layer']} blocks of width {width} with {values['n_head']} heads")
    block = BlockShape(int(values["n_head"]), width, int(values.get("n_inner") or 4 * width))
    return language_shape(
        name,
        vocabulary=int(values["vocab_size"]),
        context=int(values["n_positions"]),
        embed_dim=width,
        blocks=(block,) * int(values["n_layer"]),
        norm_eps=float(values.get("layer_norm_epsilon", 1e-5)),
    )


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


def text_preprocessing(values: Values | None, shape: ModelShape) -> Json:
    """The tokenizer (empty: none is known) and the number of tokens in a block of text."""
    return {"tokenizer": "", **(values or {}), "context": shape.img_size[1]}


def folder_config(shape: ModelShape, cfg: Values, name: str, class_names: object) -> Json:
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
    empty = torch.device(device).type == "meta"
    # Causal masks are buffers until transformers 5: no file holds them, so they are made in any case.
    with init_empty_weights(include_buffers=False) if empty else torch.device(device):
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
        if not empty:
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


class GPT2Adapter(TransformerAdapter):
    """Adapter of a GPT-2. Logits are (B, T, vocabulary)."""

    causal = True

    def __init__(self, model: nn.Module, shape: ModelShape):
        gpt2: Any = model.transformer
        super().__init__(model, shape, list(gpt2.h), [block.attn.scaling for block in gpt2.h])
        self.gpt2 = gpt2

    def embed(self, ids: Tensor) -> Tensor:
        return self.gpt2.wte(ids) + self.gpt2.wpe.weight[: ids.shape[1]]  # (B, T, D)

    def attend(
        self, block: int, x: Tensor, norm: Norm = stock_norm, keep: Keep = keep_nothing, *, last: bool | None = None
    ) -> Tensor:
        blk = self.blocks[block]
        q, k, v = blk.attn.c_attn(keep("normed", norm(x, blk.ln_1))).chunk(3, dim=-1)  # (B, T, A) each
        mixed = keep("mixed", self.mix(block, keep("q", q), keep("k", k), keep("v", v)))
        return keep("shortcut", x) + keep("written", blk.attn.c_proj(mixed))

    def feed(self, block: int, x: Tensor, norm: Norm = stock_norm, keep: Keep = keep_nothing) -> Tensor:
        blk = self.blocks[block]
        hidden = keep("hidden", blk.mlp.act(keep("before", blk.mlp.c_fc(keep("normed", norm(x, blk.ln_2))))))
        return keep("shortcut", x) + keep("written", blk.mlp.c_proj(hidden))

    def head(self, x: Tensor, norm: Norm = stock_norm) -> Tensor:
        return F.linear(norm(x, self.gpt2.ln_f), self.gpt2.wte.weight)

    def projection(self, block: int) -> Tensor:
        return self.blocks[block].attn.c_proj.weight

    def output_layer(self, block: int) -> Tensor:
        return self.blocks[block].mlp.c_proj.weight
