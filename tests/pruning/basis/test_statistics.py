"""Second moments against sums by brute force."""

from dataclasses import replace

import pytest
import torch

from tests.support.basis import statistics_of
from tests.support.tiny import TensorProxy, images, tiny
from upvit_core.models.build import adapt, build_model
from upvit_core.pruning.basis import collect_statistics, fold
from upvit_core.records.known_shapes import deit_shape


def slow_moments(model, shape, x):
    """Second moments and output gradients by brute force: one image and one eigenvector at a time, with hooks."""
    folded = fold(model, shape)
    sums = {}

    def add(name, rows):
        for row in rows.reshape(-1, rows.shape[-1]):
            sums[name] = sums.get(name, 0) + torch.outer(row, row)

    for image in x:
        kept = {}
        handles = []
        for b, block in enumerate(folded.blocks):
            for name, module in ((f"n1.{b}", block.norm1), (f"n2.{b}", block.norm2), (f"qkv.{b}", block.attn.qkv),
                                 (f"proj.{b}", block.attn.proj), (f"fc1.{b}", block.mlp.fc1),
                                 (f"fc2.{b}", block.mlp.fc2)):  # fmt: skip
                handles.append(
                    module.register_forward_hook(lambda _, i, o, n=name, kept=kept: kept.update({n: (i[0], o)}))
                )
        handles.append(folded.head.register_forward_hook(lambda _, i, o, kept=kept: kept.update(head=(i[0], o))))
        logits = folded(image[None])
        for handle in handles:
            handle.remove()
        q = logits[0].detach().softmax(-1)
        values, vectors = torch.linalg.eigh(torch.diag(q) - torch.outer(q, q))
        for b in range(shape.depth):
            T = slice(0, shape.head_tokens) if b == shape.depth - 1 and shape.head_tokens else slice(None)
            query, key, _ = kept[f"qkv.{b}"][1][0].detach().chunk(3, -1)
            add(f"query.{b}", query[T])
            add(f"key.{b}", key - key.mean(0))
            add(f"mixed.{b}", kept[f"proj.{b}"][0][0, T].detach())
            hidden = kept[f"fc2.{b}"][0][0, T].detach()
            add(f"hidden.{b}", torch.cat([hidden, torch.ones(len(hidden), 1).double()], 1))
            stream = folded.blocks[b]
            add(f"reader.{2 * b}", kept[f"n1.{b}"][1][0].detach() - stream.norm1.bias.detach())
            add(f"reader.{2 * b + 1}", kept[f"n2.{b}"][1][0, T].detach())
            for r in (-1, -2):
                u = vectors[:, r] * values[r].sqrt()
                scalar = (u * logits[0]).sum()
                for name, tensor in ((f"reader_gradient.{2 * b}", kept[f"n1.{b}"][1]),
                                     (f"reader_gradient.{2 * b + 1}", kept[f"n2.{b}"][1]),
                                     (f"mixed_gradient.{b}", kept[f"proj.{b}"][0]),
                                     (f"written_gradient.{b}", kept[f"fc2.{b}"][1])):  # fmt: skip
                    add(name, torch.autograd.grad(scalar, tensor, retain_graph=True)[0])
                gradient = torch.autograd.grad(scalar, kept[f"qkv.{b}"][1], retain_graph=True)[0][0]  # (N, 3A)
                tokens = [("proj", kept[f"proj.{b}"][1]), ("fc1", kept[f"fc1.{b}"][1]), ("fc2", kept[f"fc2.{b}"][1])]
                parts = dict(zip("qkv", gradient.chunk(3, -1), strict=True))
                parts |= {n: torch.autograd.grad(scalar, t, retain_graph=True)[0][0] for n, t in tokens}
                for part, g in parts.items():
                    squares = (g[T] if part not in "kv" else g).square().sum(-1)
                    sums[f"token {part}.{b}"] = sums.get(f"token {part}.{b}", 0) + squares
    return sums


@pytest.mark.parametrize("variant", ["class token", "average pool", "no qkv bias, layer scale"])
def test_statistics_equal_brute_force_whatever_the_batch(variant):
    model, shape = tiny(variant)
    x = images(5)
    found = collect_statistics(adapt(model, shape), TensorProxy(x), batch_size=2)
    other = collect_statistics(adapt(model, shape), TensorProxy(x), batch_size=5)
    slow = slow_moments(model, shape, x)
    for name, gram in found.grams.items():
        scale = gram.abs().max() + 1e-30
        assert torch.allclose(other.grams[name] / scale, gram / scale, atol=1e-10)
        if name in slow and not (shape.layer_scale and "gradient" in name and "written" in name):
            assert torch.allclose(slow[name] / scale, gram / scale, atol=1e-9), name
    for name, squares in found.token_gradients.items():
        assert torch.allclose(slow[f"token {name}"], squares, rtol=1e-8), name
    assert len(slow) >= 16 * shape.depth


def test_the_same_images_give_the_same_basis_bit_for_bit():
    one, two = statistics_of(), statistics_of()
    assert torch.equal(one.directions, two.directions)
    assert all(torch.equal(one.grams[name], two.grams[name]) for name in one.grams)


def test_a_few_directions_with_most_of_the_energy_leave_the_moments_of_float32_definite():
    """At DeiT's widths, with few images, products in float32 lose the directions of little energy."""
    whole = deit_shape("tiny")
    shape = replace(whole, blocks=whole.blocks[:2])
    model = build_model(shape, seed=0).eval()
    proxy = TensorProxy(torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0)))
    moments = collect_statistics(adapt(model, shape), proxy, metric="both").readers()[0]
    values = [torch.linalg.eigvalsh(matrix) for matrix in moments[:-1]]
    assert max(float(v[-1] / v.mean()) for v in values) > 50
    for v in values:
        assert v[0] > -1e-12 * v[-1]
