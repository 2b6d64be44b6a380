"""The oracle against itself and against stock timm: each function by a second, different route."""

import copy
import math

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.oracle import reference

SIZES = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 3, "mlp_ratio": 2, "num_classes": 5}
VARIANTS = {
    "token": ("deit_tiny_patch16_224", {}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "average": ("deit_tiny_patch16_224", {"global_pool": "avg"}),
    "average-no-class-token": ("deit_tiny_patch16_224", {"global_pool": "avg", "class_token": False}),
    "no-qkv-bias": ("deit_tiny_patch16_224", {"qkv_bias": False}),
    "layer-scale": ("deit_tiny_patch16_224", {"init_values": 0.1}),
    "registers": ("deit_tiny_patch16_224", {"reg_tokens": 2, "no_embed_class": True}),
    "pre-norm": ("deit_tiny_patch16_224", {"pre_norm": True, "global_pool": "avg", "fc_norm": False}),
}


def tiny(variant: str = "token", **sizes: int) -> nn.Module:
    name, options = VARIANTS[variant]
    model = timm.create_model(name, **{**SIZES, **sizes}, **options).double().eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            around = 1.0 if "norm" in parameter_name and parameter_name.endswith("weight") else 0.0
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(around + 0.35 * noise)
    return model


def some_images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(11), dtype=torch.float64)


@torch.no_grad()
def kl_by_loops(teacher_logits: Tensor, student_logits: Tensor) -> float:
    total = 0.0
    for q_logits, p_logits in zip(teacher_logits.tolist(), student_logits.tolist(), strict=True):
        q = [math.exp(z) for z in q_logits]
        p = [math.exp(z) for z in p_logits]
        for q_y, p_y in zip(q, p, strict=True):
            total += q_y / sum(q) * math.log(q_y / sum(q) / (p_y / sum(p)))
    return total


def whole(model: nn.Module, **changes: object) -> list[dict]:
    return [
        {
            "source": b,
            "heads": block.attn.num_heads,
            "attention_keep": list(range(block.attn.attn_dim)),
            "ffn_keep": list(range(block.mlp.fc1.out_features)),
            **changes,
        }
        for b, block in enumerate(model.blocks)
    ]


class UnreadChannels(nn.Module):
    """A LayerNorm over some channels of a stream that still carries them all; the others come out as 0."""

    def __init__(self, norm: nn.LayerNorm, keep: list[int]) -> None:
        super().__init__()
        self.norm, self.keep = norm, keep

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.norm.weight[self.keep], self.norm.bias[self.keep]
        out = torch.zeros_like(x)
        out[..., self.keep] = nn.functional.layer_norm(
            x[..., self.keep], (len(self.keep),), weight, bias, self.norm.eps
        )
        return out


class CountedChannels(nn.Module):
    """A LayerNorm in which channel c is present `counts[c]` times, by really repeating it; output times counts."""

    def __init__(self, norm: nn.LayerNorm, counts: list[int]) -> None:
        super().__init__()
        self.norm, self.counts = norm, torch.tensor(counts)

    def forward(self, x: Tensor) -> Tensor:
        repeated = torch.repeat_interleave(x, self.counts, dim=-1)
        mean = repeated.mean(-1, keepdim=True)
        deviation = (repeated.var(-1, unbiased=False, keepdim=True) + self.norm.eps).sqrt()
        return ((x - mean) / deviation * self.norm.weight + self.norm.bias) * self.counts


def with_norms(model: nn.Module, wrapper: type[nn.Module], argument: list[int]) -> nn.Module:
    changed = copy.deepcopy(model)
    for name, module in list(changed.named_modules()):
        if isinstance(module, nn.LayerNorm):
            changed.set_submodule(name, wrapper(module, argument))
    return changed


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_kl_scores_equal_masking_in_the_stock_model(variant):
    model, images = tiny(variant), some_images()
    before = copy.deepcopy(model.state_dict())
    scores = reference.kl_scores(model, images)
    assert {name: len(values) for name, values in scores.items()} == {
        "residual": 12, "attention.0": 12, "ffn.0": 24, "attention.1": 12, "ffn.1": 24,
    }  # fmt: skip
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    teacher_logits = model(images)

    def hooked(module: nn.Module, channels: list[int]) -> float:
        def zero(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
            output = output.clone()
            output[..., channels] = 0.0
            return output

        handle = module.register_forward_hook(zero)
        student_logits = model(images)
        handle.remove()
        return kl_by_loops(teacher_logits, student_logits)

    for c in (0, 5, 11):
        unread = with_norms(model, UnreadChannels, [d for d in range(12) if d != c])
        assert scores["residual"][c] == pytest.approx(kl_by_loops(teacher_logits, unread(images)), rel=1e-9)
    for b in range(2):
        for c in (0, 6, 11):
            masked = hooked(model.blocks[b].attn.qkv, [c, 12 + c, 24 + c])
            assert scores[f"attention.{b}"][c] == pytest.approx(masked, rel=1e-9)
            assert masked == pytest.approx(hooked(model.blocks[b].attn.qkv, [c, 24 + c]), rel=1e-9)
        for c in (0, 17, 23):
            assert scores[f"ffn.{b}"][c] == pytest.approx(hooked(model.blocks[b].mlp.act, [c]), rel=1e-9)
    assert all((values > 0).all() for values in scores.values())


def test_zeroing_a_residual_channel_is_another_score():
    model, images = tiny(), some_images()
    zeroed = copy.deepcopy(model)
    with torch.no_grad():
        zeroed.patch_embed.proj.weight[4] = 0.0
        zeroed.patch_embed.proj.bias[4] = 0.0
        zeroed.cls_token[..., 4] = 0.0
        zeroed.pos_embed[..., 4] = 0.0
        for block in zeroed.blocks:
            for writer in (block.attn.proj, block.mlp.fc2):
                writer.weight[4] = 0.0
                writer.bias[4] = 0.0
        zeroed_kl = kl_by_loops(model(images), zeroed(images))
    assert reference.kl_scores(model, images)["residual"][4] != pytest.approx(zeroed_kl, rel=1e-2)


@pytest.mark.parametrize("function", [reference.kl_scores, reference.fisher_scores])
def test_scores_are_sums_over_images(function):
    model, images = tiny(depth=1), some_images()
    together = function(model, images)
    apart = [function(model, image[None]) for image in images]
    for name, values in together.items():
        torch.testing.assert_close(values, sum(each[name] for each in apart))


@pytest.mark.parametrize("variant", ["token", "distilled", "average", "layer-scale"])
@torch.no_grad()
def test_block_removal(variant):
    model, images = tiny(variant, depth=3), some_images()
    teacher_logits = model(images)
    for i in range(5):
        student = copy.deepcopy(model)
        k, hybrid = divmod(i, 2)
        if hybrid:
            for part in ("norm2", "mlp", "ls2"):
                setattr(student.blocks[k], part, getattr(student.blocks[k + 1], part))
        del student.blocks[k + 1 if hybrid else k]
        expected = kl_by_loops(teacher_logits, student(images))
        assert reference.block_removal_kl(model, images, (i, i + 1)).item() == pytest.approx(expected, rel=1e-9)
    specs = whole(model)
    shallower = reference.thin(model, range(12), [specs[0], specs[2]])
    removed = reference.block_removal_kl(model, images, (2, 3)).item()
    assert removed == pytest.approx(kl_by_loops(teacher_logits, shallower(images)), rel=1e-9)


@pytest.mark.parametrize("removed", [(0, 2), (1, 0), (-1, 0), (3, 4)])
def test_block_removal_wants_neighbours(removed):
    with pytest.raises(ValueError, match="neighbouring"):
        reference.block_removal_kl(tiny(), some_images(1), removed)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_thin_at_ratio_zero_is_the_model(variant):
    model, images = tiny(variant), some_images()
    thinner = reference.thin(model, range(12), whole(model))
    assert torch.equal(thinner(images), model(images))
    assert thinner.state_dict().keys() == model.state_dict().keys()
    assert reference.count_parameters(thinner) == reference.count_parameters(model)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_thin_equals_masking_and_loads_into_stock_timm(variant):
    model, images = tiny(variant), some_images()
    residual_keep = [0, 2, 3, 5, 8, 11]
    attention_keep = [[0, 3, 5, 6, 9, 10], [1, 2, 4, 7, 8, 11]]
    ffn_keep = [list(range(1, 24, 2)), list(range(0, 24, 2))]
    specs = [{"source": b, "heads": 3, "attention_keep": attention_keep[b], "ffn_keep": ffn_keep[b]} for b in range(2)]
    thinner = reference.thin(model, residual_keep, specs)

    masked = with_norms(model, UnreadChannels, residual_keep)
    for b, block in enumerate(masked.blocks):
        dropped = [c for c in range(12) if c not in attention_keep[b]]
        for row in dropped:
            for part in range(3):
                block.attn.qkv.weight[12 * part + row] = 0.0
                if block.attn.qkv.bias is not None:
                    block.attn.qkv.bias[12 * part + row] = 0.0
        block.mlp.fc2.weight[:, [c for c in range(24) if c not in ffn_keep[b]]] = 0.0
    torch.testing.assert_close(thinner(images), masked(images), rtol=1e-10, atol=1e-10)

    name, options = VARIANTS[variant]
    stock = timm.create_model(name, **{**SIZES, "embed_dim": 6}, **options).double().eval()
    stock.load_state_dict(thinner.state_dict(), strict=True)
    assert torch.equal(stock(images), thinner(images))


@pytest.mark.parametrize("fused", [True, False])
@torch.no_grad()
def test_merged_heads(fused):
    model = tiny("no-qkv-bias" if fused else "token", num_heads=4)
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    attn = model.blocks[1].attn
    torch.testing.assert_close(reference.merged_head_attention(attn, x, 4, range(12)), attn(x))

    for heads, keep in ((2, range(12)), (2, [0, 2, 5, 7, 8, 11]), (1, [1, 4, 6, 9]), (4, [0, 5, 7, 10])):
        thinner = reference.thin(model, range(12), whole(model, heads=heads, attention_keep=keep))
        new = thinner.blocks[1].attn
        new.fused_attn = fused
        torch.testing.assert_close(new(x), reference.merged_head_attention(attn, x, heads, keep))
        scores = []
        for module, channels in ((attn, list(keep)), (new, list(range(len(keep))))):
            q, k, _ = module.qkv(x).chunk(3, dim=-1)
            width = len(keep) // heads
            group = channels[:width]
            scores.append(q[..., group] @ k[..., group].transpose(-2, -1) * module.scale)
        torch.testing.assert_close(scores[0], scores[1])


@pytest.mark.parametrize(
    ("heads", "keep"), [(2, [0, 1, 4, 5]), (3, [0, 1, 4, 8]), (3, [0, 8, 4]), (3, [0, 0, 4, 5, 8, 9])]
)
def test_illegal_heads_are_refused(heads, keep):
    model = tiny()
    with pytest.raises(ValueError, match="head"):
        reference.thin(model, range(12), whole(model, heads=heads, attention_keep=keep))


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_masked_forward(variant):
    model, images = tiny(variant), some_images()
    masks = reference._unit_masks(model)
    torch.testing.assert_close(reference._masked_logits(model, images, masks), model(images))
    masks["residual"] = torch.tensor([0.0 if c in (2, 9) else 1.0 for c in range(12)], dtype=torch.float64)
    thinner = reference.thin(model, [c for c in range(12) if c not in (2, 9)], whole(model))
    torch.testing.assert_close(reference._masked_logits(model, images, masks), thinner(images))
    counts = [1, 2, 1, 3, 1, 1, 2, 1, 1, 1, 4, 1]
    masks["residual"] = torch.tensor(counts, dtype=torch.float64)
    counted = with_norms(model, CountedChannels, counts)
    torch.testing.assert_close(reference._masked_logits(model, images, masks), counted(images))


@pytest.mark.parametrize("variant", VARIANTS)
def test_fisher_is_half_the_curvature_of_kl(variant):
    model, images = tiny(variant), some_images(2)
    scores = reference.fisher_scores(model, images)
    teacher_logits = model(images).detach()
    step = 1e-3

    def kl_at(name: str, channel: int, value: float) -> float:
        scaled = copy.deepcopy(model)
        with torch.no_grad():
            if name == "residual":
                masks = reference._unit_masks(model)
                masks[name][channel] = value
                return kl_by_loops(teacher_logits, reference._masked_logits(model, images, masks))
            kind, b = name.split(".")
            block = scaled.blocks[int(b)]
            if kind == "ffn":
                block.mlp.fc2.weight[:, channel] *= value
            else:
                for row in (channel, 24 + channel):
                    block.attn.qkv.weight[row] *= value
                    if block.attn.qkv.bias is not None:
                        block.attn.qkv.bias[row] *= value
            return kl_by_loops(teacher_logits, scaled(images))

    for name, values in scores.items():
        for c in (1, 7):
            second = (kl_at(name, c, 1 + step) - 2 * kl_at(name, c, 1.0) + kl_at(name, c, 1 - step)) / step**2
            assert values[c].item() == pytest.approx(second / 2, rel=1e-3, abs=1e-8), (name, c)


def test_fisher_is_the_expectation_over_labels():
    model, images = tiny("distilled", depth=1), some_images(2)
    expected = {name: torch.zeros_like(mask) for name, mask in reference._unit_masks(model).items()}
    for image in images:
        masks = {name: mask.requires_grad_() for name, mask in reference._unit_masks(model).items()}
        log_q = torch.log_softmax(reference._masked_logits(model, image[None], masks)[0], dim=0)
        for y in range(5):
            gradients = torch.autograd.grad(log_q[y], list(masks.values()), retain_graph=True)
            for name, gradient in zip(masks, gradients, strict=True):
                expected[name] += 0.5 * log_q[y].exp().item() * gradient**2
    for name, values in reference.fisher_scores(model, images).items():
        torch.testing.assert_close(values, expected[name])


def test_fisher_directions_add_up():
    model, images = tiny(depth=1), some_images(2)
    partial = [reference.fisher_scores(model, images, n) for n in (1, 2, 4, 5, None)]
    for name in partial[0]:
        one, two, four, five, every = (scores[name] for scores in partial)
        assert (one <= two + 1e-15).all()
        assert one.sum() < two.sum() < four.sum()
        torch.testing.assert_close(four, every)
        assert torch.equal(five, every)


def test_fisher_takes_the_largest_eigenvalue_first():
    model, image = tiny(depth=1), some_images(1)
    masks = {name: mask.requires_grad_() for name, mask in reference._unit_masks(model).items()}
    logits = reference._masked_logits(model, image, masks)[0]
    q = torch.softmax(logits.detach(), dim=0)
    direction = torch.arange(5, dtype=torch.float64)
    for _ in range(2000):
        direction = q * direction - q * (q @ direction)
        direction = direction / direction.norm()
    eigenvalue = q @ direction**2 - (q @ direction) ** 2
    gradients = torch.autograd.grad(eigenvalue.sqrt() * direction @ logits, list(masks.values()))
    scores = reference.fisher_scores(model, image, num_directions=1)
    for name, gradient in zip(masks, gradients, strict=True):
        torch.testing.assert_close(scores[name], 0.5 * gradient**2)


def test_fisher_meets_exact_kl_for_small_channels():
    model, images = tiny(), some_images()
    with torch.no_grad():
        model.blocks[0].mlp.fc2.weight *= 1e-3
    exact, fisher = reference.kl_scores(model, images)["ffn.0"], reference.fisher_scores(model, images)["ffn.0"]
    torch.testing.assert_close(fisher, exact, rtol=2e-2, atol=0.0)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_macs_against_torch_and_parameters_against_the_state(variant):
    model, image = tiny(variant), some_images(1)[0]
    keep = [0, 2, 5, 7, 8, 10]
    for each in (model, reference.thin(model, [1, 4, 9], whole(model, attention_keep=keep, ffn_keep=[3, 20]))):
        for block in each.blocks:
            block.attn.fused_attn = False
        with FlopCounterMode(display=False) as counter:
            each(image[None])
        assert 2 * reference.count_macs(each, image) == counter.get_total_flops()
        assert reference.count_macs(each, image[None]) == reference.count_macs(each, image)
        assert reference.count_parameters(each) == sum(tensor.numel() for tensor in each.state_dict().values())


def test_macs_by_hand():
    tokens = 1 + 4
    block = tokens * 12 * 36 + 2 * 3 * tokens * tokens * 4 + tokens * 12 * 12 + 2 * tokens * 12 * 24
    assert reference.count_macs(tiny(), some_images(1)) == 4 * 12 * 3 * 8 * 8 + 2 * block + 12 * 5


def test_published_sizes():
    base = timm.create_model("deit_base_patch16_224", device="meta")
    assert reference.count_parameters(base) == 86_567_656
    for target, heads, share, parameters in (
        ("deit_small_patch16_224", 6, 2, 22_050_664),
        ("deit_tiny_patch16_224", 3, 4, 5_717_416),
    ):
        spec = {"heads": heads, "attention_keep": range(0, 768, share), "ffn_keep": range(3072 // share)}
        thinner = reference.thin(base, range(768 // share), [{"source": b, **spec} for b in range(12)])
        stock = timm.create_model(target, device="meta")
        assert reference.count_parameters(thinner) == parameters
        assert {n: t.shape for n, t in thinner.state_dict().items()} == {
            n: t.shape for n, t in stock.state_dict().items()
        }


@pytest.mark.parametrize(
    "options", [{"qk_norm": True}, {"global_pool": "map"}, {"final_norm": False}, {"scale_mlp_norm": True}]
)
def test_other_models_are_refused(options):
    model = timm.create_model("deit_tiny_patch16_224", **SIZES, **options)
    with pytest.raises(ValueError, match="does not describe"):
        reference.kl_scores(model, torch.zeros(1, 3, 16, 16))
