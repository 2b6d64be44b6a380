"""Plan to student: pages, runs and the command line make thinner models with this."""

from pathlib import Path
from typing import Any

from torch import nn

from upvit_core.data import ImageSet, ProxySet, draw_proxy
from upvit_core.errors import PlanError
from upvit_core.importance import sharding
from upvit_core.importance.criterion import Report, silent
from upvit_core.models.build import adapt
from upvit_core.models.checkpoint import LoadedModel
from upvit_core.models.images import images_for
from upvit_core.pruning.basis import ProxyStatistics, basis_for, collect_statistics, prune_directions
from upvit_core.pruning.elastic import cut_size, keeps_prefixes
from upvit_core.pruning.repair.repair import repair as repair_student
from upvit_core.pruning.surgery import prune
from upvit_core.records.basis import Basis
from upvit_core.records.elastic import Elastic, is_elastic
from upvit_core.records.plan import Fitted, PruningPlan

IMAGES, SEED = 2000, 0


def cut(loaded: LoadedModel, plan: PruningPlan, **settings: Any) -> nn.Module:
    """The thinner model of `cut_and_record`, without the record."""
    return cut_and_record(loaded, plan, **settings)[0]


def cut_and_record(
    loaded: LoadedModel,
    plan: PruningPlan,
    *,
    repair: bool | None = None,
    data: str | ImageSet | None = None,
    root: str | None = None,
    images: int | None = None,
    seed: int | None = None,
    stats: ProxyStatistics | None = None,
    report: Report = silent,
) -> tuple[nn.Module, PruningPlan]:
    """The thinner model in eval mode, and the plan with `fitted`, from which the same weights can be made again.

    `data` (its training split) is read for `repair`, and for plans of directions. None takes the value of
    the plan's `fitted` where it has one, else 2,000 images by seed 0 without repair. `stats`: statistics of the same
    proxy images, if they have been collected already.

    Raises PlanError where images are needed and `data` is not given, and where the images of a plan that was fitted
    before are not the ones that it was fitted to.
    """
    fitted = plan.fitted
    repair = (fitted.repair if fitted else False) if repair is None else repair
    plan = plan.at_size(loaded.shape.img_size)
    if plan.basis == Basis.CHANNELS and not repair:
        thin, solved = _cut_channels(loaded, plan, solve=True)
        requested = {key: value for key, value in plan.requested.items() if key != "repair"}
        requested |= {"repair": True} if solved else {}
        return thin, plan.model_copy(update={"fitted": None, "requested": requested})
    if data is None:
        what = "Repair" if repair else "A plan that keeps directions"
        raise PlanError(f"{what} needs images; give --data.")
    if isinstance(data, str):
        data = images_for(loaded, data, "train", labelled=False, apart=True, root=root)
    again = fitted is not None and images is None and seed is None
    images = (fitted.images if fitted else IMAGES) if images is None else images
    seed = (fitted.seed if fitted else SEED) if seed is None else seed
    proxy = draw_proxy(data, min(images, len(data)), seed)
    if again and fitted is not None:
        _check_same(fitted, proxy)
    adapter = adapt(loaded.model, loaded.shape)
    if plan.basis == "directions" and stats is None:
        metric: Any = fitted.metric if again and fitted is not None and fitted.metric else "reading"
        stats = collect_statistics(adapter, proxy, metric=metric, report=report)
    if plan.basis == Basis.CHANNELS or stats is None:
        stats, basis, student = None, None, _cut_channels(loaded, plan, solve=False)[0]
    else:
        basis = basis_for(plan, stats)
        sharding.agree(*basis.tensors)
        student = prune_directions(loaded.model, loaded.shape, plan, stats, basis)
    if repair:
        student, _ = repair_student(student, loaded.model, plan, proxy, stats=stats, basis=basis, report=report)
    made = Fitted(
        repair=repair,
        metric=stats.metric if stats else "",
        data=proxy.name,
        digest=proxy.digest,
        images=len(proxy),
        seed=seed,
    )
    return student, plan.model_copy(update={"fitted": made})


def _cut_channels(loaded: LoadedModel, plan: PruningPlan, *, solve: bool) -> tuple[nn.Module, bool]:
    """A cut by channels, and whether it is repaired: `solve` repairs it if it is a size of an elastic model."""
    folder = Path(loaded.source).expanduser()
    if is_elastic(folder) and keeps_prefixes(plan):
        elastic = Elastic.load(folder, repairs=solve)
        if elastic.origin.weights == loaded.digest:
            return cut_size(loaded.model, elastic, plan.shape_after), bool(elastic.moments)
    return prune(loaded.model, loaded.shape, plan), False


def _check_same(known: Fitted, proxy: ProxySet) -> None:
    if proxy.digest != known.digest:
        raise PlanError(
            f"The plan was fitted to {known.images} images of {known.data} with digest {known.digest}, and seed "
            f"{known.seed} draws others (digest {proxy.digest}) from {proxy.name}; give the same data, or --images and "
            "--seed to fit anew."
        )
