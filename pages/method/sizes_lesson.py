"""The lesson "One model, every size": slices of an elastic model, measured without training."""

from __future__ import annotations

from pages.method.lesson import show
from pages.services import evaluation, jobs, scoring
from pages.services.open_model import OpenModel
from upvit_core.figures.sizes import sizes_curve
from upvit_core.figures.theme import Theme

IMAGES = 500
Sizes = list[tuple[int, float]]


def sizes_job(model: OpenModel) -> jobs.Job[Sizes] | None:
    """The job that makes the elastic model and measures its ladder of sizes: parameters and top-1 in percent.

    None where no elastic model can be made, or there are no images.
    """
    if model.shape.features or not scoring.can_find_directions(model):
        return None

    def work(report: jobs.Report) -> Sizes:
        from upvit_core.evaluation import evaluate
        from upvit_core.profiling.macs import count_parameters
        from upvit_core.pruning.elastic import cut_size, ladder_sizes, make_elastic

        made = make_elastic(model.weights(), model.images("train", apart=True), n=IMAGES, report=report)
        data = model.images("val")
        indices, found = evaluation.evaluation_indices(data), Sizes()
        for after in ladder_sizes(made.shape):
            report.step("measuring every size", len(found) / 7)
            batches = data.batches(model.shape.batch_size(50), indices=indices)
            found.append((count_parameters(after), evaluate(cut_size(made.model, made.elastic, after), batches).top1))
        return found

    return jobs.ensure(f"sizes {model.data_key}", work, "Making every size")


def draw(sizes: Sizes, model: OpenModel, theme: Theme, height: int) -> None:
    """Draw the curve over all sizes."""
    params, top1 = zip(*sizes, strict=True)
    show(sizes_curve(list(params), list(top1), theme, task=model.task, height=height), "sizes")


WORDS = (
    "<p>Directions are nested: the best twenty lie inside the best forty. Turned and sorted once, <b>one model "
    "holds every size</b>, and each is its first channels.</p><p>Here are seven of them on the same images, cut from "
    "one file and repaired from what it keeps, without training. One run then teaches all of them together.</p>"
)
