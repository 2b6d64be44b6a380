"""Criteria side by side at the same plan: what each keeps, what its cut does to the model, how long it took."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from upvit_core.data import ImageSet, proxy_indices
from upvit_core.evaluation import evaluate, readout_of, run_teacher
from upvit_core.importance.agreement import compare
from upvit_core.importance.criterion import Report, silent
from upvit_core.importance.score import score
from upvit_core.models.checkpoint import LoadedModel
from upvit_core.pruning.surgery import prune
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.task import task_of


@dataclass(frozen=True)
class CriterionResult:
    """One criterion at one plan, without any training.

    `overlap`: share of the first criterion's kept channels that this one keeps too, by component. `value` is top-1 in
    percent or perplexity (`judged_by`), with its 95 % interval, and `kl` the mean KL(teacher || pruned) in nats, on
    `images` held-out images; `cosine`: mean to the teacher's features, of a model without classes; `seconds` to score.
    """

    criterion: str
    seconds: float
    overlap: dict[str, float]
    judged_by: str
    value: float
    interval: tuple[float, float]
    kl: float
    images: int
    cosine: float | None = None


def compare_criteria(
    loaded: LoadedModel,
    train: ImageSet,
    test: ImageSet,
    criteria: Sequence[str],
    make_plan: Callable[[ImportanceScores], PruningPlan],
    *,
    score_images: int = 256,
    test_images: int = 1000,
    seed: int = 0,
    known: Sequence[ImportanceScores] = (),
    report: Report = silent,
    on_criterion: Callable[[str, int, int], None] | None = None,
) -> list[CriterionResult]:
    """Score by each criterion (records in `known` are not computed again), plan, cut, and measure.

    The first criterion is the one whose kept channels the others are compared with. `on_criterion` receives the name,
    number and count of criteria as each begins; it may raise `Cancelled`.
    """
    task = task_of(loaded.shape)
    chosen = proxy_indices(test, min(test_images, len(test)), seed)
    device = next(loaded.model.parameters()).device
    size = loaded.shape.batch_size(100)
    readout = readout_of(loaded.shape, train, test)
    teacher = run_teacher(loaded.model, test.batches(size, indices=chosen, device=device), readout=readout)
    ready = {record.criterion: record for record in known}
    results: list[CriterionResult] = []
    first: tuple[ImportanceScores, PruningPlan] | None = None
    for number, name in enumerate(criteria):
        if on_criterion is not None:
            on_criterion(name, number, len(criteria))
        record = ready.get(name) or score(
            loaded, train, name, n=min(score_images, len(train)), seed=seed, report=report
        )
        plan = make_plan(record)
        first = first or (record, plan)
        student = prune(loaded.model, loaded.shape, plan)
        batches = test.batches(size, indices=chosen, device=device)
        measured = evaluate(student, batches, teacher=loaded.model, teacher_logits=teacher.logits, readout=readout)
        assert measured.kl is not None
        overlap = {part.component: part.overlap for part in compare(first[0], record, first[1], plan)}
        value, interval = task.value(measured), task.interval(measured)
        found = task.key, value, interval, measured.kl, measured.images, measured.cosine
        results.append(CriterionResult(name, record.seconds, overlap, *found))
    return results
