import pytest
import torch

from tests.support.tiny import ROTATED, VARIANTS, TensorProxy, images, kl_sum, tiny
from upvit_core.errors import Cancelled, PlanError
from upvit_core.importance.fisher import Fisher
from upvit_core.models.build import adapt, shape_of
from upvit_core.planning.ratios import Ratios, plan_uniform
from upvit_core.pruning.basis import collect_statistics, directions_scores, prune_directions
from upvit_core.pruning.basis.fold import state_of
from upvit_core.pruning.basis.scores import whole_plan
from upvit_core.pruning.repair import repair
from upvit_core.pruning.repair.layer_fit import LinearFit
from upvit_core.pruning.repair.least_squares import RIDGES, Moments, solve
from upvit_core.pruning.surgery import prune


def problem(rows=40, features=6, outputs=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, features, generator=generator, dtype=torch.float64)
    truth = torch.randn(features, outputs, generator=generator, dtype=torch.float64)
    return x, x @ truth + 0.3 * torch.randn(rows, outputs, generator=generator, dtype=torch.float64)


def moments_of(x, y, parts=3):
    moments = Moments(x.shape[1], y.shape[1])
    for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True):
        moments.add(a, b)
    return moments


def test_least_squares_equals_lstsq():
    x, y = problem()
    found = moments_of(x, y).solve((1e-12,))[0]
    assert torch.allclose(found, torch.linalg.lstsq(x, y).solution, atol=1e-8)


@pytest.mark.parametrize("ridge", [1e-3, 0.1, 1.0])
def test_ridge_equals_normal_equations_in_scaled_features(ridge):
    x, y = problem()
    size = x.square().sum(0).sqrt()
    scaled = x / size
    slow = torch.linalg.inv(scaled.T @ scaled + ridge * torch.eye(6).double()) @ scaled.T @ y / size[:, None]
    assert torch.allclose(moments_of(x, y).solve((ridge,))[0], slow, atol=1e-10)


def test_error_is_the_sum_of_squares():
    x, y = problem()
    change = torch.randn(6, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert moments_of(x, y).error(change) == pytest.approx(float((y - x @ change).square().sum()))


def test_ridge_is_the_best_of_all_on_held_out_rows():
    x, y = problem(rows=9, features=8)
    held_x, held_y = problem(rows=30, features=8)
    held_x, held_y = held_x[9:], held_y[9:]
    solution = solve(moments_of(x, y), moments_of(held_x, held_y))
    errors = {r: float((held_y - held_x @ moments_of(x, y).solve((r,))[0]).square().sum()) for r in RIDGES}
    assert solution.after == pytest.approx(min(errors.values()))
    assert errors[solution.ridge] == pytest.approx(solution.after)
    both = moments_of(torch.cat([x, held_x]), torch.cat([y, held_y]))
    assert torch.allclose(solution.change, both.solve((solution.ridge,))[0])


def test_a_layer_is_fitted_with_each_token_counting_by_its_weight():
    generator = torch.Generator().manual_seed(4)
    linear = torch.nn.Linear(5, 3).double().requires_grad_(False)
    x, target = (torch.randn(30, 4, n, generator=generator, dtype=torch.float64) for n in (5, 3))
    weights = torch.tensor([4.0, 1.0, 0.5, 0.0]).double()
    fitting = LinearFit.of(linear, weights=weights)
    for part in torch.arange(30).chunk(3):
        fitting.add(x[part], target[part], part % 5 == 4)
    before = torch.nn.functional.linear(x, linear.weight, linear.bias)
    report = fitting.finish("layer")
    rows = torch.cat([x, torch.ones(30, 4, 1).double()], -1) * weights.sqrt()[:, None]
    missing = (target - before) * weights.sqrt()[:, None]
    assert report.kept
    A, B = rows.flatten(0, 1), missing.flatten(0, 1)
    size = A.square().sum(0).sqrt()
    normal = (A / size).T @ (A / size) + report.ridge * torch.eye(6).double()
    change = torch.linalg.solve(normal, (A / size).T @ B) / size[:, None]
    after = torch.nn.functional.linear(x, linear.weight, linear.bias) - before
    assert torch.allclose(after, x @ change[:-1] + change[-1], atol=1e-9)


def cut_and_repair(variant, basis, ratio=0.5, dtype=torch.float64, count=150, **settings):
    model, shape = tiny(variant, dtype)
    proxy = TensorProxy(images(count, dtype))
    adapter = adapt(model, shape)
    if basis == "directions":
        stats = collect_statistics(adapter, proxy)
        scores = directions_scores(adapter, proxy, stats)
    else:
        stats, scores = None, Fisher().attribute(adapter, proxy)
    plan = plan_uniform(scores, Ratios.equal(ratio), basis=basis, snap=True, **settings)
    cut = prune(model, shape, plan) if stats is None else prune_directions(model, shape, plan, stats)
    repaired, report = repair(cut, model, plan, proxy, stats=stats)
    return model, cut, repaired, report, plan


@pytest.mark.parametrize(
    ("variant", "basis"), [*((name, "channels") for name in VARIANTS), *((name, "directions") for name in ROTATED)]
)
def test_repair_brings_every_kind_of_model_closer_on_new_images(variant, basis):
    model, cut, repaired, report, plan = cut_and_repair(variant, basis)
    x = images(60, seed=77)
    assert kl_sum(model, repaired, x) < kl_sum(model, cut, x)
    assert shape_of(repaired, "repaired").blocks == plan.shape_after.blocks
    assert all(layer.after < layer.before for layer in report.layers if layer.kept)
    assert len(report.layers) == 6 * plan.shape_after.depth + plan.shape_after.distilled + 1 + (
        variant == "attention pooling"
    )
    assert report.images == 150
    assert report.held_out == 30


@pytest.mark.parametrize("heads", [4, 2, 1])
def test_repair_works_with_merged_heads(heads):
    model, cut, repaired, _, _ = cut_and_repair("class token", "directions", heads=heads)
    assert kl_sum(model, repaired, images(60, seed=77)) < kl_sum(model, cut, images(60, seed=77))


def test_a_model_that_lost_nothing_needs_no_repair():
    model, shape = tiny()
    proxy = TensorProxy(images(40))
    stats = collect_statistics(adapt(model, shape), proxy)
    plan = whole_plan(shape)
    repaired, report = repair(prune_directions(model, shape, plan, stats), model, plan, proxy, stats=stats)
    assert max(layer.before for layer in report.layers) < 1e-12
    with torch.no_grad():
        change = (repaired(images()) - model(images())).log_softmax(-1)
    assert float((change - change.mean(-1, keepdim=True)).abs().max()) < 1e-6


def test_first_projection_is_the_least_squares_fit_of_the_stream():
    model, shape = tiny()
    x = images(50)
    plan = plan_uniform(Fisher().attribute(adapt(model, shape), TensorProxy(x)), Ratios.equal(0.5))
    cut = prune(model, shape, plan)
    repaired, report = repair(cut, model, plan, TensorProxy(x))
    seen = {}
    hooks = [
        model.blocks[0].norm2.register_forward_pre_hook(lambda _, i: seen.update(target=i[0])),
        repaired.blocks[0].attn.proj.register_forward_pre_hook(lambda _, i: seen.update(features=i[0])),
        repaired.blocks[0].norm1.register_forward_pre_hook(lambda _, i: seen.update(stream=i[0])),
    ]
    with torch.no_grad():
        model(x)
        repaired(x)
    for hook in hooks:
        hook.remove()
    target = (seen["target"][..., list(plan.residual.keep)] - seen["stream"]).flatten(0, 1)
    features = torch.nn.functional.pad(seen["features"].flatten(0, 1), (0, 1), value=1)
    best = features @ torch.linalg.lstsq(features, target).solution
    proj = repaired.blocks[0].attn.proj
    found = (features[:, :-1] @ proj.weight.T + proj.bias).detach()
    assert next(layer for layer in report.layers if layer.layer == "blocks.0.attn.proj").kept
    assert float((found - target).square().sum()) < 1.02 * float((best - target).square().sum())


def test_repair_is_the_same_bit_for_bit_and_touches_nothing():
    first = cut_and_repair("distilled", "directions", dtype=torch.float32)
    model, cut, plan = first[0], first[1], first[4]
    states = [state_of(m) for m in (model, cut)]
    second = cut_and_repair("distilled", "directions", dtype=torch.float32)
    assert plan == second[4]
    assert all(torch.equal(a, b) for a, b in zip(first[2].parameters(), second[2].parameters(), strict=True))
    for state, m in zip(states, (model, cut), strict=True):
        assert all(torch.equal(state[name], tensor) for name, tensor in state_of(m).items())


def test_repair_follows_a_plan_that_leaves_half_blocks_out():
    model, shape = tiny("3 heads, 5 blocks")
    proxy = TensorProxy(images(100))
    stats = collect_statistics(adapt(model, shape), proxy)
    plan = whole_plan(shape)
    blocks = (plan.blocks[0], plan.blocks[1].model_copy(update={"ffn_source": 2}), plan.blocks[4])
    plan = plan.model_copy(update={"blocks": blocks})
    cut = prune_directions(model, shape, plan, stats)
    repaired, _ = repair(cut, model, plan, proxy, stats=stats)
    assert shape_of(repaired, "repaired").depth == 3
    assert kl_sum(model, repaired, images(60, seed=77)) < kl_sum(model, cut, images(60, seed=77))


def test_repair_reports_and_can_be_cancelled():
    model, shape = tiny()
    plan = plan_uniform(Fisher().attribute(adapt(model, shape), TensorProxy(images(4))), Ratios(residual=0.5))
    cut = prune(model, shape, plan)
    shares = []
    repair(cut, model, plan, TensorProxy(images(10)), report=lambda p: shares.append(p.share))
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)

    def stop(_):
        raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        repair(cut, model, plan, TensorProxy(images(10)), report=stop)
    assert all(p.requires_grad for p in model.parameters())


def test_errors_name_what_is_missing():
    model, shape = tiny()
    proxy = TensorProxy(images(10))
    stats = collect_statistics(adapt(model, shape), proxy)
    plan = whole_plan(shape)
    cut = prune_directions(model, shape, plan, stats)
    with pytest.raises(PlanError, match="give stats"):
        repair(cut, model, plan, proxy)
    with pytest.raises(PlanError, match="at least 5 images"):
        repair(cut, model, plan, TensorProxy(images(3)), stats=stats)
    other = tiny("3 heads, 5 blocks")[0]
    with pytest.raises(PlanError, match="12 residual channels in 5 blocks, the plan 16 in 3"):
        repair(other, model, plan, proxy, stats=stats)
