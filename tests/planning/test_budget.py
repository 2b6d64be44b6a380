"""Budgets against brute force over every legal combination of widths."""

import itertools
import time
from dataclasses import replace

import numpy as np
import pytest

from tests.support.planning import Steps, scores
from upvit_core.errors import PlanError
from upvit_core.planning.budget import Budget, best_plan
from upvit_core.planning.curves import predicted_loss
from upvit_core.planning.pool import pool_per_block
from upvit_core.planning.ratios import plan_widths
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.records.known_shapes import deit_shape
from upvit_core.records.shape import BlockShape, ModelShape

TINY = replace(
    deit_shape("tiny"), name="tiny", embed_dim=6, blocks=(BlockShape(2, 6, 5),) * 2, img_size=(8, 8), patch_size=(4, 4),
    in_chans=1, num_classes=2,
)  # fmt: skip
MIXED = replace(TINY, name="mixed", embed_dim=4, blocks=(BlockShape(3, 6, 4), BlockShape(2, 4, 6)))


def every_plan(shape: ModelShape):
    """All widths: residual, and heads, attention, ffn of each block, heads as they are."""
    per_block = [
        [(b.num_heads, a, h) for a in range(b.num_heads, b.attention + 1, b.num_heads) for h in range(1, b.ffn + 1)]
        for b in shape.blocks
    ]
    for D in range(1, shape.embed_dim + 1):
        for blocks in itertools.product(*per_block):
            yield D, list(blocks)


def brute(shape: ModelShape, seed: int):
    record = scores(shape, seed)
    rows = []
    for D, blocks in every_plan(shape):
        lost = np.sort(record.residual)[: shape.embed_dim - D].sum()
        for b, (heads, a, h) in enumerate(blocks):
            own = shape.blocks[b]
            lost += np.sort(record.attention(b).reshape(heads, -1), 1)[:, : (own.attention - a) // heads].sum()
            lost += np.sort(record.ffn(b))[: own.ffn - h].sum()
        after = replace(shape, embed_dim=D, blocks=tuple(BlockShape(*block) for block in blocks))
        rows.append((lost / record.images, after))
    return record, rows


def costs(shape: ModelShape) -> dict[str, float]:
    return {"params": count_parameters(shape), "macs": count_macs(shape), "latency_ms": Steps().of(shape)}


CASES = [
    {"params": 0.5}, {"macs": 0.3}, {"macs": 0.9}, {"params": 0.45, "macs": 0.4}, {"params": 0.8, "macs": 0.2},
]  # fmt: skip


@pytest.mark.parametrize("shape", [TINY, MIXED], ids=lambda s: s.name)
@pytest.mark.parametrize("seed", [0, 1])
def test_params_and_macs_are_solved_exactly(shape: ModelShape, seed: int) -> None:
    record, rows = brute(shape, seed)
    full = costs(shape)
    counted = [(lost, costs(after), after) for lost, after in rows]
    for case in CASES:
        limits = {name: share * full[name] for name, share in case.items()}
        inside = [(lost, s) for lost, c, s in counted if all(c[n] <= limit for n, limit in limits.items())]
        if not inside:
            with pytest.raises(PlanError, match="No plan of this kind"):
                best_plan(record, Budget(**limits))
            continue
        least = min(lost for lost, _ in inside)
        found = best_plan(record, Budget(**limits))
        assert found.predicted == pytest.approx(least, rel=1e-12, abs=1e-15)
        assert found.bound == found.predicted
        assert predicted_loss(record, found.plan) == pytest.approx(least, rel=1e-9, abs=1e-12)
        assert all(costs(found.plan.shape_after)[name] <= limit for name, limit in limits.items())
        if shape is TINY:
            stock = [lost for lost, s in inside if s.is_uniform]
            if stock:
                best_stock = best_plan(record, Budget(**limits), family="stock")
                assert best_stock.plan.shape_after.is_uniform
                assert best_stock.predicted == pytest.approx(min(stock), rel=1e-12, abs=1e-15)
            equal = [lost for lost, s in inside if len(set(s.blocks)) == 1]
            uniform = best_plan(record, Budget(**limits), family="uniform")
            assert uniform.predicted == pytest.approx(min(equal), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("shape", [TINY, MIXED], ids=lambda s: s.name)
@pytest.mark.parametrize("case", [{"latency_ms": 0.8}, {"latency_ms": 0.7}, {"latency_ms": 0.75, "macs": 0.6}])
def test_latency_is_bounded(shape: ModelShape, case: dict[str, float]) -> None:
    full = costs(shape)
    limits = {name: share * full[name] for name, share in case.items()}
    gaps = []
    for seed in range(3):
        record, rows = brute(shape, seed)
        counted = [(lost, costs(after), after) for lost, after in rows]
        inside = [(lost, s) for lost, c, s in counted if all(c[n] <= limit for n, limit in limits.items())]
        least = min(lost for lost, _ in inside)
        found = best_plan(record, Budget(**limits), latency=Steps())
        assert found.bound <= least + 1e-12
        assert least - 1e-12 <= found.predicted
        assert all(costs(found.plan.shape_after)[name] <= limit for name, limit in limits.items())
        assert found.latency_ms == pytest.approx(costs(found.plan.shape_after)["latency_ms"])
        gaps.append((found.predicted - least) / least)
        if shape is TINY:
            uniform = best_plan(record, Budget(**limits), latency=Steps(), family="uniform")
            assert uniform.predicted == pytest.approx(min(lost for lost, s in inside if len(set(s.blocks)) == 1))
            stock = best_plan(record, Budget(**limits), latency=Steps(), family="stock")
            assert stock.predicted == pytest.approx(min(lost for lost, s in inside if s.is_uniform))
    assert max(gaps) < 0.15, "near the optimum even where one channel is a large step"


def test_pools_of_equal_and_of_unequal_steps_agree_with_brute_force() -> None:
    from upvit_core.planning.curves import removal_curves

    for shape in (TINY, MIXED):
        curves = removal_curves(scores(shape, 3)).attention
        pool = pool_per_block(curves)
        for i, total in enumerate(pool.totals):
            widths = pool.split(i)
            assert sum(widths) == total
            assert sum(c.at(w) for c, w in zip(curves, widths, strict=True)) == pytest.approx(pool.lost[i])
            options = [
                sum(c.at(w) for c, w in zip(curves, row, strict=True))
                for row in itertools.product(*(c.widths.tolist() for c in curves))
                if sum(row) == total
            ]
            assert pool.lost[i] == pytest.approx(min(options))


@pytest.mark.parametrize("family", ["best", "uniform", "stock", "global", "isomorphic"])
@pytest.mark.parametrize("round_to", [1, 8])
def test_every_family_keeps_the_budget(family, round_to: int) -> None:
    shape = replace(deit_shape("tiny"), embed_dim=48, blocks=(BlockShape(6, 48, 96),) * 4)
    record = scores(shape)
    limit = 0.4 * count_macs(shape)
    found = best_plan(record, Budget(macs=limit), family=family, round_to=round_to)
    after = found.plan.shape_after
    assert found.macs == count_macs(after) <= limit
    assert found.params == count_parameters(after)
    widths = [after.embed_dim, *(w for b in after.blocks for w in (b.attention, b.ffn))]
    assert all(width % round_to == 0 for width in widths)
    assert best_plan(record, Budget(macs=limit), round_to=round_to).predicted <= found.predicted + 1e-12


def test_fine_steps_never_lose_more() -> None:
    record = scores(replace(deit_shape("tiny"), embed_dim=48, blocks=(BlockShape(6, 48, 96),) * 4))
    limit = Budget(macs=0.4 * count_macs(record.shape))
    assert best_plan(record, limit).predicted <= best_plan(record, limit, round_to=8).predicted


def test_deit_base_in_under_a_second() -> None:
    record = scores(deit_shape("base"))
    full = deit_shape("base")
    for budget, latency in (
        (Budget(macs=0.25 * count_macs(full), params=0.3 * count_parameters(full)), None),
        (Budget(latency_ms=0.5 * Steps().of(full)), Steps()),
    ):
        start = time.process_time()
        found = best_plan(record, budget, latency=latency)
        assert time.process_time() - start < 5, "a second on an idle core; the benchmark prints it"
        assert found.gap <= 0.01 * found.predicted


def test_wider_blocks_where_scores_are_higher() -> None:
    record = scores()
    louder = record.with_values({"ffn.1": record.ffn(1) * 50, "residual": record.residual * 500})
    blocks = best_plan(louder, Budget(macs=0.5 * count_macs(record.shape))).plan.shape_after.blocks
    assert blocks[1].ffn > max(blocks[0].ffn, blocks[2].ffn)
    check = plan_widths(louder, 24, [(b.num_heads, b.attention, b.ffn) for b in louder.shape.blocks], requested={})
    assert predicted_loss(louder, check) == pytest.approx(0, abs=1e-12)


def test_budgets_are_read() -> None:
    assert Budget.parse(["macs=1.2G", "params=6M"]) == Budget(params=6e6, macs=1.2e9)
    assert Budget.parse(["latency_ms=4"]) == Budget(latency_ms=4)
    for bad in ("macs", "macs=", "macs=-1", "flops=3", "macs=nan", "macs=inf", "macs=1T"):
        with pytest.raises(PlanError, match="is no budget"):
            Budget.parse([bad])
    with pytest.raises(PlanError, match="at most once"):
        Budget.parse(["macs=1G", "macs=2G"])


def test_what_cannot_be_met_is_said() -> None:
    with pytest.raises(PlanError, match=r"within macs 10; the narrowest has [\d,]+ macs"):
        best_plan(scores(), Budget(macs=10))
    with pytest.raises(PlanError, match=r"within latency_ms 0\.1; the narrowest has"):
        best_plan(scores(), Budget(latency_ms=0.1), latency=Steps())
    with pytest.raises(PlanError, match="calibration"):
        best_plan(scores(), Budget(latency_ms=3))
    with pytest.raises(PlanError, match="No budget"):
        best_plan(scores(), Budget())
    with pytest.raises(PlanError, match="no allocation 'wild'"):
        best_plan(scores(), Budget(macs=1e9), family="wild")  # type: ignore[arg-type]
