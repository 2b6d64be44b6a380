import copy
import dataclasses

import numpy as np
import pytest
import timm
import torch

from tests.support.elastic import FakeImages, tiny_elastic
from tests.support.tiny import TensorProxy, images
from upvit_core.api import save_model, slice_model
from upvit_core.data import draw_proxy
from upvit_core.errors import PlanError
from upvit_core.models.checkpoint import load_model
from upvit_core.models.vit import ViTAdapter
from upvit_core.planning.budget import Budget
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.pruning.elastic import cut_size, ladder_sizes, open_elastic, prefix_plan, save_elastic, size_of
from upvit_core.pruning.elastic.choose import choose_size
from upvit_core.pruning.elastic.corrections import WriterRepair, mean_removed
from upvit_core.pruning.elastic.moments import RIDGE, Solver, gather_moments
from upvit_core.pruning.repair.repair import repair
from upvit_core.records.elastic import FILE, Elastic
from upvit_core.records.ratios import Ratios


@pytest.fixture(scope="module")
def made():
    return tiny_elastic()


def logits(model, x):
    with torch.no_grad():
        return model(x)


def test_a_folder_gives_back_what_was_made_and_stock_timm_opens_it_with_the_originals_logits(made, tmp_path):
    loaded, elastic = made
    save_elastic(elastic, tmp_path)
    again, x = open_elastic(tmp_path), images(6, torch.float32)
    assert again.elastic.digest == elastic.elastic.digest
    assert again.scores.digest == elastic.scores.digest
    stock = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert float((logits(stock, x) - logits(loaded.model, x)).abs().max()) < 1e-5
    assert not Elastic.load(tmp_path, repairs=False).moments
    assert again.elastic.repair_bytes == sum(
        array.nbytes for name, array in elastic.elastic.arrays.items() if name != "norm_scales"
    )


def test_folders_that_are_none_or_whose_weights_were_changed_are_refused(made, tmp_path):
    _, elastic = made
    with pytest.raises(PlanError, match="holds no elastic model"):
        open_elastic(tmp_path)
    save_elastic(elastic, tmp_path)
    changed = copy.deepcopy(elastic.model).requires_grad_(False)
    changed.head.bias[0] += 1
    save_elastic(dataclasses.replace(elastic, model=changed), tmp_path)
    with pytest.raises(PlanError, match="not those of its elastic record"):
        open_elastic(tmp_path)
    (tmp_path / FILE).write_bytes(b"torn")
    with pytest.raises(PlanError, match="not a readable elastic record"):
        open_elastic(tmp_path)


def test_records_with_missing_or_wrong_arrays_are_refused(made):
    record = made[1].elastic
    for changes, fault in (
        ({"norm_scales": record.norm_scales[:, 1:]}, "norm_scales"),
        ({"norm_scales": record.norm_scales * np.nan}, "NaN"),
        ({"moments": {k: v for k, v in record.moments.items() if k != "mixed.0"}}, "lacks moments/mixed.0"),
        ({"moments": {**record.moments, "mixed.0": record.moments["mixed.0"][1:]}}, "mixed.0"),
    ):
        with pytest.raises(PlanError, match=fault):
            dataclasses.replace(record, **changes)


def test_scores_fall_along_every_prefix_so_that_plans_keep_prefixes(made):
    scores, shape = made[1].scores, made[1].shape
    for key, values in scores.values.items():
        heads = shape.blocks[int(key.split(".")[1])].num_heads if key.startswith("attention") else 1
        assert (np.diff(values.reshape(heads, -1)) <= 0).all(), key


def test_a_size_is_named_by_shares_widths_or_a_budget(made):
    model = made[1]
    none, half = Ratios(), size_of(model.shape, Ratios.equal(0.5))
    assert choose_size(model, Ratios.equal(0.5)) == half
    assert choose_size(model, none, widths="8:4x8x32*3") == half
    limit = count_macs(model.shape) * 0.4
    for family in ("stock", "best"):
        found = choose_size(model, none, budget=Budget(macs=limit), family=family)
        assert limit * 0.5 < count_macs(found) <= limit
        assert found.is_uniform >= (family == "stock")
    assert count_parameters(slice_model(model, budget="params=5k").shape) <= 5000
    with pytest.raises(PlanError, match="one of the three"):
        choose_size(model, Ratios.equal(0.5), widths="8:4x8x32*3")
    with pytest.raises(PlanError, match="the 4 heads of block 0"):
        slice_model(model, widths="8:2x8x32*3")
    with pytest.raises(PlanError, match="2 to 16 residual"):
        slice_model(model, widths="1:4x8x32*3")


def test_a_slice_carries_its_plan_and_opens_in_stock_timm(made, tmp_path):
    thin = slice_model(made[1], residual=0.5, attention=0.5, ffn=0.5)
    save_model(thin, tmp_path)
    x = images(6, torch.float32)
    stock = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(logits(stock, x), logits(thin.model, x))
    assert thin.plan.shape_after.blocks == load_model(tmp_path).shape.blocks
    assert thin.plan.model_digest == made[1].digest


def slow_moments(model, shape, x):
    """Inputs of every repaired layer, caught by hooks on the stock model, with a 1 behind each."""
    seen = {}
    last = 2 * shape.depth
    names = {f"blocks.{b}.{leaf}": f"{kind}.{b}" for b in range(shape.depth)
             for leaf, kind in (("attn.proj", "mixed"), ("mlp.fc2", "hidden"))}  # fmt: skip
    names |= {f"blocks.{b}.{leaf}": f"normed.{2 * b + i}" for b in range(shape.depth)
              for i, leaf in enumerate(("attn.qkv", "mlp.fc1"))}  # fmt: skip
    names["head"] = f"normed.{last}"

    def keep(name):
        return lambda module, inputs: seen.__setitem__(name, inputs[0])

    handles = [model.get_submodule(n).register_forward_pre_hook(keep(m)) for n, m in names.items()]
    logits(model, x)
    for handle in handles:
        handle.remove()
    return {name: torch.cat([t.flatten(0, -2), torch.ones(t.flatten(0, -2).shape[0], 1)], 1).double()
            for name, t in seen.items()}  # fmt: skip


def test_moments_are_those_of_the_layers_inputs(made):
    model = made[1]
    x = images(9, torch.float32, seed=5)
    found = gather_moments(ViTAdapter(model.model, model.shape), TensorProxy(x), batch_size=4)
    for name, rows in slow_moments(model.model, model.shape, x).items():
        last = model.shape.depth - 1
        if name in (f"mixed.{last}", f"normed.{2 * last + 1}", f"hidden.{last}"):
            continue  # of the last block only the tokens that the head reads are kept
        expected = (rows.T @ rows / len(rows)).numpy()
        assert np.allclose(found[name], expected[np.tril_indices(len(expected))], rtol=1e-4, atol=1e-5), name


def test_layers_solved_for_are_ridge_regressions_of_the_full_layers_outputs(made):
    model = made[1]
    x = images(20, torch.float32, seed=5)
    shape, after = model.shape, size_of(model.shape, Ratios.equal(0.5))
    moments = gather_moments(ViTAdapter(model.model, shape), TensorProxy(x))
    record = dataclasses.replace(model.elastic, moments=moments, corrections={})
    weights = {name: tensor.double() for name, tensor in model.model.state_dict().items()}
    state = Solver(record, torch.zeros((), dtype=torch.float64)).state(weights, after)
    rows, full = slow_moments(model.model, shape, x), model.model.state_dict()
    k, h = after.embed_dim, after.blocks[1].ffn
    for layer, inputs, name, outputs in (
        ("blocks.1.mlp.fc1", rows["normed.3"][:, :k], "normed.3", slice(0, h)),
        ("blocks.1.mlp.fc2", rows["hidden.1"][:, :h], "hidden.1", slice(0, k)),
    ):
        whole = torch.cat([full[f"{layer}.weight"], full[f"{layer}.bias"][:, None]], 1).double()
        target = rows[name] @ whole[outputs].T
        if "normed" in name:
            inputs = inputs - inputs.mean(1, keepdim=True)
        X = torch.cat([inputs, torch.ones(len(inputs), 1).double()], 1)
        ridge = (RIDGE * X.square().sum(0)).sqrt().diag()
        slow = torch.linalg.lstsq(torch.cat([X, ridge]), torch.cat([target, torch.zeros(len(ridge), target.shape[1])]))
        answered = X @ torch.cat([state[f"{layer}.weight"], state[f"{layer}.bias"][:, None]], 1).T
        assert torch.allclose(answered, X @ slow.solution, atol=2e-3 * float(target.abs().max()))


def test_on_the_ladder_a_slice_is_what_repair_on_images_of_its_writing_layers_made(made):
    model = made[1]
    after = ladder_sizes(model.shape)[4]
    bare = dataclasses.replace(model.elastic, corrections={})
    solved = cut_size(model.model, bare, after)
    proxy = draw_proxy(FakeImages(), 20, 0)
    plan = prefix_plan(model.shape, after)
    expected, report = repair(solved, model.model, plan, proxy, sweep=WriterRepair)
    assert {layer.layer.split(".")[-1] for layer in report.layers} == {"proj", "fc2", "head"}
    x = images(6, torch.float32)
    assert torch.allclose(logits(cut_size(model.model, model.elastic, after), x), logits(expected, x), atol=1e-4)


def test_corrections_fade_between_steps_of_the_ladder_and_stop_at_its_end(made):
    model = made[1]
    bare = dataclasses.replace(model.elastic, corrections={})

    def added(after):
        """The bias that corrections add to the head."""
        return (
            cut_size(model.model, model.elastic, after).head.bias.detach()
            - cut_size(model.model, bare, after).head.bias.detach()
        )

    record = model.elastic.corrections
    for widths, low, high in (({"residual": 12}, 0.0, 0.125), ({"residual": 9, "ffn.0": 40}, 0.125, 0.25)):
        after = model.shape.with_widths(widths)
        t = (mean_removed(model.shape, after) - low) / 0.125
        assert 0 < t < 1
        before = record[f"{low:g}/head"][:, -1] if low else 0.0
        expected = (1 - t) * before + t * record[f"{high:g}/head"][:, -1]
        assert np.allclose(added(after).numpy(), expected, atol=1e-5)
    small = size_of(model.shape, Ratios.equal(0.9))
    assert np.allclose(added(small).numpy(), record["0.75/head"][:, -1], atol=1e-5)


def test_repair_without_moments_is_refused(made):
    bare = dataclasses.replace(made[1].elastic, moments={}, corrections={})
    after = ladder_sizes(made[1].shape)[4]
    with pytest.raises(PlanError, match="has no second moments"):
        cut_size(made[1].model, bare, after, repair=True)
    raw = cut_size(made[1].model, made[1].elastic, after, repair=False)
    x = images(6, torch.float32)
    assert torch.equal(logits(cut_size(made[1].model, bare, after), x), logits(raw, x))
