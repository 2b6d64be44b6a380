"""GPT-2 against transformers: forward pass, exact scores by slow removal, estimates, surgery, folders."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.support.tiny_text import CONTEXT, VOCABULARY, Blocks, letters_tokenizer, tiny_gpt2, tokens
from upvit_core.errors import CheckpointError, UnsupportedModelError
from upvit_core.importance.fisher import Fisher
from upvit_core.importance.kl import KL
from upvit_core.importance.magnitude import Magnitude, Random
from upvit_core.models.build import adapt
from upvit_core.models.checkpoint import build_model, load_model, save_model
from upvit_core.planning.ratios import Ratios, plan_uniform
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.pruning.surgery import prune
from upvit_core.records.shape import ModelShape

transformers = pytest.importorskip("transformers")


def stock(shape: ModelShape, state: dict[str, torch.Tensor]) -> torch.nn.Module:
    """transformers' own model with these weights."""
    block = shape.blocks[0]
    config = transformers.GPT2Config(
        vocab_size=shape.num_classes, n_positions=shape.img_size[1], n_embd=shape.embed_dim, n_layer=shape.depth,
        n_head=block.num_heads, n_inner=block.ffn, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).double().eval()
    missing, surplus = model.load_state_dict(state, strict=False)
    assert (missing, surplus) == (["lm_head.weight"], [])
    model.tie_weights()
    return model


def test_it_computes_what_transformers_computes() -> None:
    model, shape = tiny_gpt2()
    ids = tokens()
    expected = stock(shape, model.state_dict())(input_ids=ids).logits
    adapter = adapt(model, shape)
    torch.testing.assert_close(model(ids), expected)
    torch.testing.assert_close(adapter.run_from(0, adapter.embed(ids)), expected)
    x = adapter.embed(ids)
    for half in range(2 * shape.depth):
        x = adapter.run_half_block(half, x)
    torch.testing.assert_close(adapter.after_half_block(2 * shape.depth - 1, x), expected)
    torch.testing.assert_close(adapter.sensitivities(ids).logits, expected)
    assert count_parameters(shape) == sum(p.numel() for p in model.parameters())


def slow_logits_without(key: str, channel: int, ids: torch.Tensor) -> torch.Tensor:
    """Removal written out with plain tensors: narrower norms, masked q, k, v, one FFN channel less."""
    model, shape = tiny_gpt2()
    t = dict(model.state_dict())
    keep = [c for c in range(shape.embed_dim) if key != "residual" or c != channel]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + shape.norm_eps).sqrt()
        return x * t[f"{name}.weight"][keep] + t[f"{name}.bias"][keep]

    x = t["transformer.wte.weight"][ids][..., keep] + t["transformer.wpe.weight"][: ids.shape[1]][:, keep]
    for b, block in enumerate(shape.blocks):
        stem, A, d = f"transformer.h.{b}", block.attention, block.head_dim
        qkv = norm(x, f"{stem}.ln_1") @ t[f"{stem}.attn.c_attn.weight"][keep] + t[f"{stem}.attn.c_attn.bias"]
        if key == f"attention.{b}":
            qkv = qkv.clone()
            qkv[..., [channel, A + channel, 2 * A + channel]] = 0
        out = torch.zeros(*x.shape[:-1], A, dtype=x.dtype)
        for sample in range(len(ids)):
            for h in range(block.num_heads):
                q, k, v = (qkv[sample, :, i * A + h * d : i * A + (h + 1) * d] for i in range(3))
                for place in range(ids.shape[1]):
                    weights = ((k[: place + 1] @ q[place]) / d**0.5).softmax(0)
                    out[sample, place, h * d : (h + 1) * d] = weights @ v[: place + 1]
        x = x + out @ t[f"{stem}.attn.c_proj.weight"][:, keep] + t[f"{stem}.attn.c_proj.bias"][keep]
        rest = [c for c in range(block.ffn) if key != f"ffn.{b}" or c != channel]
        hidden = (
            norm(x, f"{stem}.ln_2") @ t[f"{stem}.mlp.c_fc.weight"][keep][:, rest] + t[f"{stem}.mlp.c_fc.bias"][rest]
        )
        hidden = F.gelu(hidden, approximate="tanh")
        x = x + hidden @ t[f"{stem}.mlp.c_proj.weight"][rest][:, keep] + t[f"{stem}.mlp.c_proj.bias"][keep]
    return norm(x, "transformer.ln_f") @ t["transformer.wte.weight"][:, keep].T


def slow_score(key: str, channel: int, ids: torch.Tensor) -> float:
    """Eq. 1 on next-token distributions, token by token, in nats summed over all tokens of all blocks."""
    model, _ = tiny_gpt2()
    total = 0.0
    for before, after in zip(
        model(ids).flatten(0, 1), slow_logits_without(key, channel, ids).flatten(0, 1), strict=True
    ):
        q, p = before.softmax(0), after.softmax(0)
        total += sum(float(a * (a.log() - b.log())) for a, b in zip(q, p, strict=True))
    return total


@torch.no_grad()
def test_exact_scores_equal_slow_removal() -> None:
    model, shape = tiny_gpt2()
    ids = tokens()
    record = KL(image_batch=3).attribute(adapt(model, shape), Blocks(ids))
    assert set(record.values) == {"residual", *(f"{c}.{b}" for c in ("attention", "ffn") for b in range(3))}
    for key, channels in (("residual", range(12)), ("attention.0", (0, 5)), ("attention.2", (11,)), ("ffn.0", (3,)),
                          ("ffn.2", (0, 19))):  # fmt: skip
        for channel in channels:
            assert record.values[key][channel] == pytest.approx(slow_score(key, channel, ids), rel=1e-6), (key, channel)


def test_fisher_in_all_directions_is_the_second_order_of_eq_1() -> None:
    """Against a slow derivative: a mask on one channel for a whole block, all tokens' Fisher information added."""
    model, shape = tiny_gpt2()
    ids = tokens(2)
    adapter = adapt(model, shape)

    def exact(b: int, channel: int) -> float:
        total = 0.0
        for one in ids[:, None]:

            def masked(m: torch.Tensor, one: torch.Tensor = one) -> torch.Tensor:
                x = adapter.embed(one)
                for block in range(b):
                    x = adapter.run_block(block, x)
                x = adapter.run_half_block(2 * b, x)
                blk = model.transformer.h[b]
                hidden = blk.mlp.act(blk.mlp.c_fc(blk.ln_2(x)))
                change = torch.zeros_like(hidden)
                change[..., channel] = hidden[..., channel]
                x = x + blk.mlp.c_proj(hidden + (m - 1) * change)
                return adapter.run_from(b + 1, x)[0]

            one_mask = torch.ones((), dtype=torch.float64)
            jacobian = torch.autograd.functional.jacobian(masked, one_mask)  # (T, V)
            q = masked(one_mask).softmax(-1)
            fisher = (q * jacobian.square()).sum() - (q * jacobian).sum(-1).square().sum()
            total += 0.5 * fisher.item()
        return total

    draws = [
        Fisher(directions="all", num_classes=VOCABULARY, seed=seed).attribute(adapter, Blocks(ids)).values["ffn.1"]
        for seed in range(60)
    ]  # fmt: skip
    mean, error = np.mean(draws, 0), np.std(draws, 0) / len(draws) ** 0.5
    for channel in (0, 7, 13):
        assert abs(mean[channel] - exact(1, channel)) < 4 * error[channel] + 1e-9
    assert np.all(error / mean < 0.2)


def test_fisher_ranks_as_removal_does() -> None:
    from scipy.stats import spearmanr

    model, shape = tiny_gpt2()
    proxy = Blocks(tokens(64))
    exact, fast = (c.attribute(adapt(model, shape), proxy).values for c in (KL(), Fisher()))
    for key, least in (("residual", 0.6), ("attention.1", 0.8), ("ffn.1", 0.9)):
        assert spearmanr(exact[key], fast[key]).statistic > least, key


def test_magnitudes_read_every_tensor_that_carries_a_channel() -> None:
    model, shape = tiny_gpt2()
    t = model.state_dict()
    values = Magnitude(1).attribute(adapt(model, shape)).values
    stem = "transformer.h.1"
    ffn = t[f"{stem}.mlp.c_fc.weight"].abs().sum(0) + t[f"{stem}.mlp.c_fc.bias"].abs()
    ffn = ffn + t[f"{stem}.mlp.c_proj.weight"].abs().sum(1)
    np.testing.assert_allclose(values["ffn.1"], ffn.numpy(), rtol=1e-9)


def half_plan(heads: int | None = 2):
    model, shape = tiny_gpt2()
    scores = Random(3).attribute(adapt(model, shape))
    return plan_uniform(scores, Ratios.equal(0.5), heads=heads)


def test_surgery_equals_an_independent_slice() -> None:
    model, shape = tiny_gpt2()
    plan = half_plan()
    thin = prune(model, shape, plan)
    source, keep = model.state_dict(), list(plan.residual.keep)
    expected = {"transformer.wte.weight": source["transformer.wte.weight"][:, keep],
                "transformer.wpe.weight": source["transformer.wpe.weight"][:, keep]}  # fmt: skip
    for part in ("weight", "bias"):
        expected[f"transformer.ln_f.{part}"] = source[f"transformer.ln_f.{part}"][keep]
    for b, block in enumerate(plan.blocks):
        a, f, stem = list(block.attention.keep), list(block.ffn.keep), f"transformer.h.{b}"
        rows = [copy * 12 + c for copy in range(3) for c in a]
        scale = torch.ones(18, dtype=torch.float64)
        scale[:6] = (3 / 3) ** 0.5  # two heads of 3 from four of 3: the same width
        for norm in ("ln_1", "ln_2"):
            for part in ("weight", "bias"):
                expected[f"{stem}.{norm}.{part}"] = source[f"{stem}.{norm}.{part}"][keep]
        expected[f"{stem}.attn.c_attn.weight"] = source[f"{stem}.attn.c_attn.weight"][keep][:, rows] * scale
        expected[f"{stem}.attn.c_attn.bias"] = source[f"{stem}.attn.c_attn.bias"][rows] * scale
        expected[f"{stem}.attn.c_proj.weight"] = source[f"{stem}.attn.c_proj.weight"][a][:, keep]
        expected[f"{stem}.attn.c_proj.bias"] = source[f"{stem}.attn.c_proj.bias"][keep]
        expected[f"{stem}.mlp.c_fc.weight"] = source[f"{stem}.mlp.c_fc.weight"][keep][:, f]
        expected[f"{stem}.mlp.c_fc.bias"] = source[f"{stem}.mlp.c_fc.bias"][f]
        expected[f"{stem}.mlp.c_proj.weight"] = source[f"{stem}.mlp.c_proj.weight"][f][:, keep]
        expected[f"{stem}.mlp.c_proj.bias"] = source[f"{stem}.mlp.c_proj.bias"][keep]
    tensors = thin.state_dict()
    assert set(tensors) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(tensors[name], tensor, msg=name)
    torch.testing.assert_close(thin(tokens()), stock(plan.shape_after, expected)(input_ids=tokens()).logits)


def test_ffn_and_unmerged_attention_equal_masks() -> None:
    """Narrower heads change the scale of the logits inside; surgery folds that back into the queries."""
    model, shape = tiny_gpt2()
    scores = Random(5).attribute(adapt(model, shape))
    plan = plan_uniform(scores, Ratios(attention=2 / 3, ffn=0.5), heads=4)
    thin = prune(model, shape, plan)
    masked = build_model(shape).double().eval()
    masked.load_state_dict(model.state_dict())
    with torch.no_grad():
        for blk, own in zip(masked.transformer.h, plan.blocks, strict=True):
            gone = [c for c in range(12) if c not in own.attention.keep]
            for copy in range(3):
                blk.attn.c_attn.weight[:, [copy * 12 + c for c in gone]] = 0
                blk.attn.c_attn.bias[[copy * 12 + c for c in gone]] = 0
            blk.mlp.c_proj.weight[[c for c in range(20) if c not in own.ffn.keep]] = 0
    torch.testing.assert_close(thin(tokens()), masked(tokens()), rtol=1e-9, atol=1e-9)


def test_folders_open_here_and_in_transformers(tmp_path: Path) -> None:
    model, shape = tiny_gpt2(torch.float32)
    plan = half_plan()
    thin = prune(model, shape, plan)
    cfg = {"tokenizer": letters_tokenizer(), "context": CONTEXT}
    save_model(thin, tmp_path, shape=plan.shape_after, pretrained_cfg=cfg, name="thin", plan_json=plan.to_json())
    again = load_model(tmp_path)
    assert torch.equal(again.model(tokens()), thin(tokens()))
    assert replace(again.shape, name="") == replace(plan.shape_after, name="")
    assert again.pretrained_cfg["tokenizer"] == cfg["tokenizer"]
    theirs, info = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    torch.testing.assert_close(theirs.eval()(input_ids=tokens()).logits, thin(tokens()))
    assert transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))("ab")["input_ids"] == [
        0,
        1,
    ]


def test_what_transformers_wrote_is_read(tmp_path: Path) -> None:
    model, shape = tiny_gpt2()
    stock(shape, model.state_dict()).float().save_pretrained(tmp_path)
    opened = load_model(tmp_path)
    torch.testing.assert_close(opened.model.double()(tokens()), model(tokens()), rtol=1e-4, atol=1e-4)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"activation_function": "relu"}))
    with pytest.raises(UnsupportedModelError, match="activation_function is 'relu'"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_embd": "wide"}))
    with pytest.raises(CheckpointError, match="malformed"):
        load_model(tmp_path)


def test_uneven_widths_are_built_from_transformers_parts() -> None:
    shape = tiny_gpt2()[1]
    blocks = tuple(replace(b, attention=a, num_heads=h, ffn=f) for b, a, h, f in zip(
        shape.blocks, (6, 12, 4), (2, 4, 1), (5, 20, 1), strict=True))  # fmt: skip
    uneven = replace(shape, blocks=blocks)
    built = build_model(uneven, seed=1).double().eval()
    adapter = adapt(built, uneven)
    torch.testing.assert_close(built(tokens()), adapter.run_from(0, adapter.embed(tokens())))
    assert count_parameters(uneven) == sum(p.numel() for p in built.parameters())


def test_macs_equal_those_of_a_counting_pass() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    shape = tiny_gpt2()[1]
    eager = stock(shape, tiny_gpt2()[0].state_dict())
    eager.config._attn_implementation = "eager"
    with FlopCounterMode(display=False) as counter:
        eager(input_ids=tokens(1))
    assert count_macs(shape) == counter.get_total_flops() // 2
