"""The lesson "The right basis": channels hold little each, a rotation changes no answer, and directions survive a cut.

Everything is measured on the open model: its spectrum, its answers before and after the rotation, and three cuts of the
residual alone.
"""

from dataclasses import dataclass
from html import escape

import numpy as np
import streamlit as st

from pages.method.lesson import say, show
from pages.services import block_removals, evaluation, jobs, open_model, removal, scoring
from pages.services.open_model import OpenModel
from pages.widgets import charts, progress, tables
from pages.widgets.cards import MEASURED, Card, cards
from upvit_core.figures.channel import before_after
from upvit_core.figures.spectrum import held, spectrum_curves
from upvit_core.planning.what_if import MAX_REMOVED_PERCENT, WhatIf
from upvit_core.records.basis import Basis
from upvit_core.records.scores import ImportanceScores

MOMENTS = ("As trained", "Rotated", "Cut")
IMAGES = 200


@dataclass(frozen=True)
class Rotation:
    """Shares of energy (D,) of channels and of directions, and the answers before and after the rotation."""

    channels: np.ndarray
    directions: np.ndarray
    effect: removal.Effect
    largest: float  # largest change of any logit on any image
    spread: float  # standard deviation of the logits


def rotation_job(model: OpenModel) -> jobs.Job[Rotation]:
    """The job that computes the spectrum, rotates the model at full width and evaluates both on the same images."""

    def work(report: jobs.Report) -> Rotation:
        from upvit_core.models.predict import predict
        from upvit_core.pruning.basis import prune_directions
        from upvit_core.pruning.basis.scores import whole_plan
        from upvit_core.pruning.basis.spectrum import spectrum

        report.step("collecting second moments")
        stats = evaluation.statistics(model, report)
        loaded, data = model.weights(), model.images("val")
        report.step("rotating")
        rotated = prune_directions(loaded.model, loaded.shape, whole_plan(loaded.shape), stats)
        indices = evaluation.evaluation_indices(data, IMAGES)
        batches = list(data.batches(model.shape.batch_size(50), indices=indices))
        before, after = predict(loaded.model, batches)[0], predict(rotated, batches)[0]
        channels, directions = (share.cpu().numpy() for share in spectrum(stats))
        effect = removal.effect_of(model, before, after, indices)
        return Rotation(channels, directions, effect, float((before - after).abs().max()), float(before.std()))

    return jobs.ensure(f"rotation {model.data_key}", work, "Rotating the model")


def lesson(model: OpenModel, scores: ImportanceScores | None, *, height: int) -> None:
    """Draw the lesson in three moments: words on the left, a picture on the right."""
    text, picture = st.columns([0.36, 0.64], gap="large")
    if not scoring.can_find_directions(model):
        with text:
            say(WHY)
        picture.info(
            "This step rotates the model's stream: it needs a plain ViT with weights, and images. The demo has both."
        )
        return
    with text:
        moment = st.segmented_control(
            "Step", MOMENTS, default=MOMENTS[0], required=True, wrap=True, key="lesson-rotation"
        )
        words = st.container()
        ratio = 50
        if moment != MOMENTS[1]:
            ratio = st.slider("Residual removed", 5, MAX_REMOVED_PERCENT, 50, step=5, key="lesson-basis", format="%d%%")
    with picture:
        rotation = progress.show(rotation_job(model), height=height)
        if rotation is None:
            return
        D = model.shape.embed_dim
        kept = len(WhatIf(ratio, 0, None, 0).plan(open_model.no_scores(model.shape)).residual.keep)
        if moment == MOMENTS[1]:
            _identical(model, rotation.effect, height)
        else:
            tall = height if moment == MOMENTS[0] else height - 110
            chart = spectrum_curves(rotation.channels, rotation.directions, kept, charts.theme(), height=tall)
            show(chart, f"spectrum-{moment}")
            if moment == MOMENTS[2] and scores is not None:
                _cuts(model, scores, ratio)
    with words:
        if moment == MOMENTS[0]:
            say(
                WHY + f"<p>Here the best <b>{kept} of {D} channels</b> carry {held(rotation.channels, kept):.0f} % of "
                "the stream. The rest is not noise, and it leaves every block at once.</p>"
            )
        elif moment == MOMENTS[1]:
            say(
                "<p>Rotate the stream, so that its first axis is the <b class='residual'>direction</b> in which images "
                "differ most, and so on. Layers that write to the stream are rotated too, layers that read it are "
                f"rotated back.</p><p>So nothing changes: over {len(rotation.effect.kl)} images no logit moved by more "
                f"than <b>{rotation.largest:.1g}</b>, which is rounding (their spread is {rotation.spread:.2g}).</p>"
                "<p>LayerNorm allows it once its weights are folded into the layers that read it.</p>"
            )
        else:
            say(
                f"<p>Now cut. The best <b>{kept} directions</b> carry {held(rotation.directions, kept):.1f} %, the "
                f"best {kept} channels {held(rotation.channels, kept):.1f} %: equal width, structure and speed.</p>"
                "<p><b>Repair</b> then fits each layer to the original's outputs by least squares. No training.</p>"
            )


WHY = (
    "<p>A <b class='residual'>channel</b> is one number of the stream. Training never made a single channel mean "
    "anything: the model's knowledge lies in <i>mixtures</i> of them, spread over all.</p>"
)


def _identical(model: OpenModel, effect: removal.Effect, height: int) -> None:
    """Draw one image with the answers of both models."""
    unsure = np.argsort(effect.before.max(1), kind="stable")  # the least certain first: those would change most
    chosen = int(unsure[st.slider("Image, the least certain first", 1, len(unsure), 1, key="lesson-rotated-image") - 1])
    left, right = st.columns([0.2, 0.8])
    with left:
        tables.examples(model, effect, only=[chosen], columns=1)
    with right:
        answers, labels, tall = (effect.before[chosen], effect.after[chosen]), ("original", "rotated"), height - 120
        show(before_after(effect.names, *answers, "residual", charts.theme(), height=tall, called=labels), "rotated")


def _cuts(model: OpenModel, scores: ImportanceScores, ratio: int) -> None:
    """Draw top-1 and KL of three cuts of the residual alone, measured one after another."""
    cuts = {
        "Channels": WhatIf(ratio, 0, None, 0),
        "Directions": WhatIf(ratio, 0, None, 0, Basis.DIRECTIONS),
        "Repaired": WhatIf(ratio, 0, None, 0, Basis.DIRECTIONS, True),
    }
    if scores.basis == "directions":
        del cuts["Channels"]  # scores of directions cannot rank channels
    previews = {
        name: evaluation.preview(model, cut.plan(scores, block_removals.records()), repair=cut.repair)
        for name, cut in cuts.items()
    }

    def draw() -> None:
        row = []
        for name, job in previews.items():
            if (result := jobs.result_of(job)) is not None:
                note = f"top-1, {result.images:,} images; KL {result.kl:.2g} nats"
                row.append(Card(name, f"{result.top1:.1f} %", note, MEASURED))
            else:
                row.append(Card(name, "—", escape(job.error) or job.detail or "waiting for its turn", stale=True))
        cards(row)

    progress.redraw_when_done(tuple(previews.values()), draw)
