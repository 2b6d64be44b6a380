"""Closed-form repair after surgery: every linear layer refitted by least squares, in order through the network.

"Beyond the letter", step 5. There is no gradient step and no label. The thinner model runs beside the original on the
proxy images; each layer is fitted on the inputs that it really gets, after all layers before it have been repaired.
The ridge is chosen on held-out images, and a layer is changed only where its held-out error falls. Kin: CORP and other
retraining-free pruning, which repair FFN and attention but not the residual.
"""

import copy
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from upvit_core.errors import PlanError
from upvit_core.importance import sharding
from upvit_core.importance.criterion import Proxy, Report, frozen, silent
from upvit_core.models.build import adapt, shape_of
from upvit_core.models.device import exact_float32
from upvit_core.pruning.basis.fold import load as load_state
from upvit_core.pruning.basis.slice import CutBasis, basis_for
from upvit_core.pruning.basis.statistics import ProxyStatistics
from upvit_core.pruning.repair.layer_fit import RepairReport
from upvit_core.pruning.repair.layerwise import LayerwiseRepair
from upvit_core.ranks import process_count, rank
from upvit_core.records.basis import Basis
from upvit_core.records.family import load
from upvit_core.records.plan import PruningPlan

HELD_OUT = 5  # every n-th input


def repair(
    student: nn.Module,
    teacher: nn.Module,
    plan: PruningPlan,
    proxy: Proxy,
    *,
    stats: ProxyStatistics | None = None,
    sweep: type[LayerwiseRepair] | None = None,
    basis: CutBasis | None = None,
    report: Report = silent,
) -> tuple[nn.Module, RepairReport]:
    """A repaired copy of `student` in eval mode, and what was done; neither model is touched.

    student: `teacher` cut by `plan`. stats, basis: those that the student was cut with, for plans of directions. sweep:
    in place of the family's own, as one that fits fewer layers. Every fifth input chooses ridges. Memory holds both
    streams of all inputs, n·tokens·(D + k) numbers; of several processes, each holds its part.

    Raises PlanError where `stats` is missing, the student does not have the plan's shape, or inputs are too few.
    """
    before, after = plan.shape_before, plan.shape_after
    _check(student, plan, proxy)
    repaired, original = copy.deepcopy(student).eval(), teacher
    like = next(student.parameters())
    if plan.basis == Basis.DIRECTIONS:
        if stats is None:
            raise PlanError("Repairing a plan of directions needs the statistics that it was cut with; give stats.")
        basis, original = basis or basis_for(plan, stats), load_state(stats.state, stats.shape, like=like)
    start = time.perf_counter()
    kind = sweep or load(after.architecture.repair)
    with frozen(original), torch.no_grad(), exact_float32():
        batches = _batches(proxy, like, kind.batch_size, kind.held_remainder % HELD_OUT)
        adapters = adapt(repaired, after), adapt(original, before)
        fitting: LayerwiseRepair = kind(*adapters, plan, batches, report, stats=stats, basis=basis)
        fitting.run()
    seconds = time.perf_counter() - start
    return repaired, RepairReport(tuple(fitting.layers), len(proxy), len(proxy) // HELD_OUT, seconds)


def _check(student: nn.Module, plan: PruningPlan, proxy: Proxy) -> None:
    planned = plan.shape_after
    if planned.family == "vit":
        shape = shape_of(student, "the student")
        if (shape.embed_dim, shape.blocks) != (planned.embed_dim, planned.blocks):
            raise PlanError(
                f"The student has {shape.embed_dim} residual channels in {shape.depth} blocks, the plan "
                f"{planned.embed_dim} in {planned.depth}, or other widths; repair the model that this plan made."
            )
    if len(proxy) < HELD_OUT:
        unit = "blocks" if planned.architecture.task == "text" else "images"
        raise PlanError(
            f"Repair needs at least {HELD_OUT} {unit}, of which one in {HELD_OUT} is held out; got {len(proxy)}."
        )


def _batches(proxy: Proxy, like: Tensor, batch_size: int, remainder: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs of this process in the dtype of `like`, where they are no token ids, and which of them are held out."""
    seen = 0
    for inputs, _ in sharding.own_shard(proxy).batches(batch_size, like.device):
        numbers = rank() + process_count() * torch.arange(seen, seen + len(inputs), device=like.device)
        yield inputs.to(like.dtype) if inputs.is_floating_point() else inputs, numbers % HELD_OUT == remainder
        seen += len(inputs)
