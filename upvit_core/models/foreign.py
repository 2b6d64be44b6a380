"""Models and parts that are not supported, told by their tensors' names, so that each is refused for what it is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

TASKS = (
    (r"(^|\.)(lora_[AB]|lora_(up|down)|base_layer)\.", "a model with adapters (LoRA) that are not merged into it"),
    (r"\._packed_params|\.(SCB|qweight|qzeros|absmax|quant_map|weight_format|zero_point)$", "a quantised model"),
    (r"(^|\.)(roi_heads|proposal_generator|rpn)\.|bbox_embed|bbox_predictor|class_labels_classifier|"
     r"(^|\.)(bbox|box|class)_head\.", "an object detector"),
    (r"(^|\.)(decode_head|auxiliary_head|mask_decoder|mask_head|seg_head|upscale_block)\.|class_predictor\.",
     "a segmentation model"),
    (r"(^|\.)(neck\.(reassemble_stage|fusion_stage|convs)|reassemble_blocks)\.", "a model of depth or other maps"),
)  # fmt: skip
"""Things that whole files hold, with a backbone in them or not."""
MODELS = (
    (r"(^|\.)poolformer\.|(^|\.)encoder\.block\.\d+\.\d+\.output\.conv1\.", "a PoolFormer"),
    (r"(^|\.)layers\.\d+\.patch_embedding\.proj\.",
     "a PVTv2 in transformers' names (only those of timm and of its authors are read)"),
    (r"\.modulation\.(projection_in|f|h)\.", "a FocalNet"),
    (r"(^|\.)encoder\.stages\.\d+\.layers\.\d+\.attn\.qkv\.", "a Hiera"),
    (r"(^|\.)embeddings\.rms_norm\.", "an AIMv2 as transformers names it"),
    (r"(^|\.)predictor\.embeddings\.|encoder\.embeddings\.patch_embeddings\.proj\.", "a V-JEPA 2 (a model of videos)"),
    (r"(^|\.)(pvt|encoder)\.(encoder\.)?patch_embeddings\.\d+\.position_embeddings$|(^|\.)pos_embed1$",
     "a PVT (version 1)"),
    (r"(^|\.)state\.\d+\.(exp_avg|momentum_buffer)$", "the state of an optimizer"),
    (r"blocks_token_only\.", "a CaiT"),
    (r"\.local_mp\.|cls_attn_blocks\.", "an XCiT"),
    (r"\.xca\.", "an EdgeNeXt"),
    (r"\.attention_bias(es|_idxs)$", "a LeViT (or TinyViT, EfficientFormer)"),
    (r"\.cpb_mlp\.|continuous_position_bias_mlp", "a Swin Transformer V2"),
    (r"layers\.\d+\.blocks\.\d+\.att\w+\.(self\.)?relative_position|^swin\.", "a Swin Transformer"),
    (r"^blocks\.\d+\.attn\.relative_position_bias|^beit\.|^layers\.\d+\.lambda_[12]$|^rel_pos_bias\.", "a BEiT"),
    (r"\.rel_pos_[hw]$|\.pool_q\.", "a backbone with decomposed relative positions (SAM, ViTDet, MViT)"),
    (r"relative_position_bias", "a windowed transformer with relative positions (MaxViT, GCViT and the like)"),
    (r"\.attn\.gating_param$", "a ConViT"),
    (r"\.factoratt_crpe\.", "a CoaT"),
    (r"^transformers\.\d+\.blocks\.", "a PiT"),
    (r"\.attn_in\.qk\.", "a TNT"),
    (r"^patch_embeds\.\d", "a Twins"),
    (r"^cls_token_\d", "a CrossViT"),
    (r"^levels\.\d+\.transformer_encoder", "a NesT"),
    (r"^post_network\.\d", "a VOLO"),
    (r"\.mlp_tokens\.", "an MLP-Mixer"),
    (r"\.cpe1\.proj\.", "a DaViT"),
    (r"^blocks\.\d+\.proj\.weight$", "a Hiera"),
    (r"^embeds\.proj\.", "a NaFlexViT"),
    (r"^(text_model|token_embedding)\.|^text_projection", "the text tower of a CLIP or SigLIP"),
    (r"(^|\.)decoder_(blocks|embed|layers)\.", "a masked autoencoder as pretrained, which has no classifier"),
    (r"(^|\.)self_attn\.q_proj\.|(^|\.)(lm_head|embed_tokens)\.|crossattention|encoder_attn\.|"
     r"(^|\.)decoder\.(layers?|block)\.|word_embeddings\.", "a language model or decoder"),
    (r"(^|\.)(down_blocks|mid_block|input_blocks)\.|^x_embedder\.", "a diffusion model"),
    (r"(^|\.)decoder\.\d+\.", "a model that paints masked patches, which has no classifier"),
    (r"(^|\.)token_mixer\.", "a PoolFormer (or another MetaFormer)"),
    (r"(?<!mlp)(?<!dwconv)\.(conv_dw|dwconv)\.|downsample_layers\.|(^|\.)layer1\.0\.conv1\.|^s1\.b1\.|^features\.0\.|running_mean$|"
     r"^stem\.", "a network with convolutions in its stem or blocks (ConvNeXt, ResNet and the like)"),
)  # fmt: skip
PARTS = (
    (r"\.attn\.[qk]_norm\.", "normalised queries and keys"),
    (r"\.attn\.gate\.", "gated attention"),
    (r"\.attn\.(norm|inner_attn_ln)\.|\.mlp\.(norm|ffn_layernorm)\.", "a norm inside attention or FFN"),
    (r"^(attn_pool\.(?!latent|q\.|kv\.|proj\.|norm\.|mlp\.)|map_head\.)", "attention pooling"),
    (r"rope|rel_pos|relative_position", "rotary or relative positions"),
    (r"\.mlp\.(w1|w3|fc1_g|fc1_x|gate_proj)\b", "a gated FFN (SwiGLU)"),
    (r"\.attn\.[qv]_bias$", "separate biases of queries and values (BEiT, EVA)"),
    (r"\.attn\.lambda_", "differential attention"),
    (r"\.(attns|ffns)\.\d", "parallel blocks"),
    (r"^patch_embed\.backbone\.", "a convolutional stem"),
)


def foreign_task(keys: Iterable[str]) -> str | None:
    """The thing in a file that is more or less than a model, by all its names; None where they speak for none."""
    return _first(TASKS, keys)


def foreign_model(keys: Iterable[str]) -> str | None:
    """The kind of unsupported model whose tensors have these names; None where they speak for none."""
    return _first(MODELS, keys)


def _first(kinds: Sequence[tuple[str, str]], keys: Iterable[str]) -> str | None:
    names = list(keys)
    return next((kind for pattern, kind in kinds if any(re.search(pattern, key) for key in names)), None)


def foreign_part(keys: Iterable[str]) -> tuple[str, str] | None:
    """The first part that no supported ViT has, and the tensor that shows it."""
    names = list(keys)
    for pattern, part in PARTS:
        if key := next((key for key in names if re.search(pattern, key)), None):
            return part, key
    return None
